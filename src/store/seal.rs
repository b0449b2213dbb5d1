//! Marks in the journal where a commit begins, so that nothing within a commit is taken for another one.
//!
//! Clients write what they like into the journal, also what looks like a whole commit. Therefore every commit begins
//! with a key that only this store knows.

use std::io;
use std::path::Path;

use super::marker;

/// The key of the first item of every commit: random, and never told to anybody.
pub(super) type Seal = [u8; 16];

/// The file that holds it.
const FILE: &str = "seal";

/// The store's seal; `None`: it has none yet, because it is new or was made by a version without seals.
///
/// # Errors
/// As the system gives them; [`io::ErrorKind::InvalidData`] if the file is damaged.
pub(super) fn read(dir: &Path) -> io::Result<Option<Seal>> {
    let file = dir.join(FILE);
    let named = |kind, why: String| io::Error::new(kind, format!("{}: {why}", file.display()));
    match std::fs::read(&file) {
        Ok(bytes) => match Seal::try_from(bytes.as_slice()) {
            Ok(seal) => Ok(Some(seal)),
            Err(_) => Err(named(
                io::ErrorKind::InvalidData,
                format!("{} bytes instead of {}: bring it back, or restore a backup", bytes.len(), size_of::<Seal>()),
            )),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(error.kind(), error.to_string())),
    }
}

/// Makes a seal for a store that has none.
///
/// # Errors
/// As the system gives them.
pub(super) fn make(dir: &Path) -> io::Result<Seal> {
    let mut seal = Seal::default();
    getrandom::fill(&mut seal).map_err(io::Error::other)?;
    marker::replace(dir, FILE, &seal)?;
    Ok(seal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fjall::Fjall;

    #[test]
    fn a_store_keeps_its_seal_and_another_has_another() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let open = |number: usize| {
            let dir = folders[number].path().join("store");
            Fjall::open(&dir, 1 << 20).unwrap();
            read(&dir).unwrap().unwrap()
        };
        let first = open(0);
        assert_eq!(open(0), first);
        assert_ne!(open(1), first);
        // A store of a version without seals gets one.
        let dir = folders[0].path().join("store");
        std::fs::remove_file(dir.join(FILE)).unwrap();
        assert_eq!(read(&dir).unwrap(), None);
        assert_ne!(open(0), first);
        std::fs::write(dir.join(FILE), &first[..3]).unwrap();
        let Err(error) = Fjall::open(&dir, 1 << 20) else { panic!("it opens with a part of its seal") };
        assert!(error.to_string().contains("seal: 3 bytes instead of 16"), "{error}");
    }
}
