//! Remembers which folders a store consists of. The engine creates missing ones anew, and a missing journal too, so without
//! this a store that has lost one, as after an incomplete copy, would be served as an empty one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::torn;

/// The file that lists the folders, one name per line.
const MARKER: &str = "folders";
/// The engine's folder of these folders.
const SPACES: &str = "keyspaces";
/// The file in each of them that names its newest state. The engine takes a folder without it for one that it did not finish
/// making, and deletes it; without that of the first, which lists the others, it deletes all of them.
const CURRENT: &str = "current";

/// What a store's directory holds before the engine opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: the engine makes a new store.
    Nothing,
    /// Every folder that it had.
    Whole,
    /// A store of a version that did not list its folders.
    Unlisted,
}

/// Checks that a store has all the folders that it had, each with the file that the engine begins with, and a journal.
///
/// # Errors
/// Names the first one that is missing, or says why the list cannot be read.
pub(super) fn check(dir: &Path) -> Result<Found, String> {
    let marker = dir.join(MARKER);
    let listed = match fs::read_to_string(&marker) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir.join(SPACES).exists() => {
            return Ok(Found::Unlisted);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(format!("{}: {error}", marker.display())),
    };
    let folders = listed.lines().map(|name| dir.join(SPACES).join(name));
    let mut lost = folders.filter_map(|folder| {
        let current = folder.join(CURRENT);
        let no_folder = (!folder.is_dir()).then(|| format!("the folder {}", folder.display()));
        no_folder.or_else(|| (!current.is_file()).then(|| format!("the file {}", current.display())))
    });
    let missing = match lost.next() {
        Some(missing) => missing,
        // What was committed last is there alone, also after the store was closed.
        None if torn::journals(dir).map_err(|error| error.to_string())?.is_empty() => {
            format!("the journal {}", dir.join("N.jnl").display())
        }
        None => return Ok(Found::Whole),
    };
    Err(format!(
        "{missing} is missing: bring it back, or restore a backup. Without {} what is left is served, and what was in it is lost",
        marker.display()
    ))
}

/// Lists the folders that the store has now, if that is not what the list says.
///
/// # Errors
/// As the system gives them.
pub(super) fn write(dir: &Path) -> io::Result<()> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir.join(SPACES))? {
        let entry = entry?;
        // The engine passes over files that are not its own.
        if entry.path().is_dir() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let list: String = names.iter().map(|name| format!("{name}\n")).collect();
    let marker = dir.join(MARKER);
    if fs::read_to_string(&marker).is_ok_and(|listed| listed == list) {
        return Ok(());
    }
    replace(dir, MARKER, list.as_bytes())
}

/// Writes a file in `dir` so that it has either its former content or all of the new one, also after a power loss.
///
/// # Errors
/// As the system gives them.
pub(super) fn replace(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let unfinished = dir.join(format!("{name}.new"));
    fs::write(&unfinished, content)?;
    fs::File::open(&unfinished)?.sync_all()?;
    fs::rename(&unfinished, dir.join(name))?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fjall::Fjall;

    #[test]
    fn a_store_that_has_lost_a_folder_does_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("store");
        assert_eq!(check(&dir), Ok(Found::Nothing));
        Fjall::open(&dir, 1 << 20).unwrap();
        assert_eq!(check(&dir), Ok(Found::Whole));
        let listed = fs::read_to_string(dir.join(MARKER)).unwrap();
        assert!(listed.lines().count() > 1, "{listed}");
        let files = || {
            let folders = listed.lines().map(|name| dir.join(SPACES).join(name));
            folders.map(|folder| fs::read_dir(folder).unwrap().count()).collect::<Vec<_>>()
        };
        let whole = files();
        for name in listed.lines() {
            let (space, away) = (dir.join(SPACES).join(name), folder.path().join("away"));
            for there in [space.clone(), space.join(CURRENT)] {
                fs::rename(&there, &away).unwrap();
                let Err(error) = Fjall::open(&dir, 1 << 20) else { panic!("it opens without {there:?}") };
                assert!(error.to_string().contains(&there.display().to_string()), "{error}");
                assert!(!there.exists(), "the engine has not touched it");
                fs::rename(&away, &there).unwrap();
            }
        }
        assert_eq!(files(), whole, "nor anything else");
        let journal = torn::journals(&dir).unwrap().pop_last().unwrap().1;
        let away = folder.path().join("journal");
        fs::rename(&journal, &away).unwrap();
        let Err(error) = Fjall::open(&dir, 1 << 20) else { panic!("it opens without its journal") };
        assert!(error.to_string().contains("the journal "), "{error}");
        assert!(!journal.exists(), "the engine has made none");
        fs::rename(&away, &journal).unwrap();
        Fjall::open(&dir, 1 << 20).unwrap();
        // An earlier version's, which has no list, gets one.
        fs::remove_file(dir.join(MARKER)).unwrap();
        assert_eq!(check(&dir), Ok(Found::Unlisted));
        Fjall::open(&dir, 1 << 20).unwrap();
        assert_eq!(fs::read_to_string(dir.join(MARKER)).unwrap(), listed);
    }

    #[test]
    fn a_file_that_is_not_the_stores_keeps_it_from_nothing() {
        let dir = tempfile::tempdir().unwrap();
        Fjall::open(dir.path(), 1 << 20).unwrap();
        fs::write(dir.path().join(SPACES).join(".nfs0001"), "stray").unwrap();
        for _ in 0..2 {
            Fjall::open(dir.path(), 1 << 20).unwrap();
        }
    }
}
