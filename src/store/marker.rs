//! Remembers which folders a store consists of, and its newest journal. The engine creates missing folders anew, and passes
//! over missing journals, so without this a store that has lost one, as after an incomplete copy, would be served without
//! what was in it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::record::FORMAT;
use super::torn::{self, JOURNAL};

/// The file that lists the folders, one name per line.
const MARKER: &str = "folders";
/// The engine's folder of these folders.
const SPACES: &str = "keyspaces";
/// The file in each of them that names its newest state. The engine takes a folder without it for one that it did not finish
/// making, and deletes it; without that of the first, which lists the others, it deletes all of them.
const CURRENT: &str = "current";

/// The file that the engine writes while it makes a store, before it makes the folders. It takes a directory without it for an
/// empty one.
const VERSION: &str = "version";
/// Length of that file.
const VERSION_BYTES: usize = 4;

/// The file that names the newest journal.
const NEWEST: &str = "journal";

/// The file with the number of the rows' format; a store without it has the first one.
const FORMAT_FILE: &str = "format";

/// What a store's directory holds before the engine opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: the engine makes a new store.
    Nothing,
    /// What is left of a start that was interrupted while the engine made a new store: nothing was committed.
    Unfinished,
    /// Every folder that it had.
    Whole,
    /// A store of a version that did not list its folders.
    Unlisted,
}

/// Checks that a store has all the folders that it had, each with the file that the engine begins with, and its journals from
/// the oldest to the newest. Whether older ones are missing cannot be told: the engine deletes the oldest as soon as all of it is
/// in the folders.
///
/// # Errors
/// Names the first one that is missing, or says why the list cannot be read, or that a later version has written the store.
pub(super) fn check(dir: &Path) -> Result<Found, String> {
    let format = format(dir).map_err(|error| error.to_string())?;
    if format > FORMAT {
        return Err(format!(
            "the store has format {format}, and this version reads up to {FORMAT}: run the version that has written it, or \
             restore a backup from before"
        ));
    }
    let marker = dir.join(MARKER);
    let listed = match fs::read_to_string(&marker) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return unlisted(dir).map_err(|error| error.to_string());
        }
        Err(error) => return Err(format!("{}: {error}", marker.display())),
    };
    if !dir.join(VERSION).is_file() {
        return Err(no_version(dir));
    }
    let folders = listed.lines().map(|name| dir.join(SPACES).join(name));
    let no_file = |file: PathBuf| (!file.is_file()).then(|| format!("the file {}", file.display()));
    let mut lost = folders.filter_map(|folder| {
        let no_folder = (!folder.is_dir()).then(|| format!("the folder {}", folder.display()));
        no_folder.or_else(|| no_file(folder.join(CURRENT)))
    });
    let missing = match lost.next() {
        Some(missing) => missing,
        // What was committed last is in the journals alone, also after the store was closed.
        None => match missing_journal(dir).map_err(|error| error.to_string())? {
            Some(journal) => format!("the journal {}", journal.display()),
            None => return Ok(Found::Whole),
        },
    };
    Err(format!(
        "{missing} is missing: bring it back, or restore a backup. Without {} what is left is served, and what was in it is lost",
        marker.display()
    ))
}

/// The number of the rows' format.
///
/// # Errors
/// As the system gives them; [`io::ErrorKind::InvalidData`] if the file is damaged.
fn format(dir: &Path) -> io::Result<u32> {
    let Some(written) = if_there(fs::read_to_string(dir.join(FORMAT_FILE)))? else { return Ok(1) };
    written.strip_suffix('\n').and_then(|number| number.parse().ok()).ok_or_else(|| {
        let why = format!("{} holds no number: bring it back, or restore a backup", dir.join(FORMAT_FILE).display());
        io::Error::new(io::ErrorKind::InvalidData, why)
    })
}

fn missing_journal(dir: &Path) -> io::Result<Option<PathBuf>> {
    let journals = torn::journals(dir)?;
    let newest = noted_newest(dir)?.max(journals.keys().next_back().copied());
    Ok(match (journals.keys().next(), newest) {
        (Some(oldest), Some(newest)) => {
            let missing = (*oldest..=newest).find(|number| !journals.contains_key(number));
            missing.map(|number| dir.join(format!("{number}{JOURNAL}")))
        }
        (_, Some(newest)) => Some(dir.join(format!("{newest}{JOURNAL}"))),
        (_, None) => Some(dir.join(format!("N{JOURNAL}"))),
    })
}

/// The number of the newest journal that was noted; `None`: none was, as by an earlier version.
///
/// # Errors
/// As the system gives them; [`io::ErrorKind::InvalidData`] if the note is damaged.
pub(super) fn noted_newest(dir: &Path) -> io::Result<Option<u64>> {
    let Some(noted) = if_there(fs::read_to_string(dir.join(NEWEST)))? else { return Ok(None) };
    let number =
        noted.strip_suffix('\n').and_then(|name| name.strip_suffix(JOURNAL)).and_then(|number| number.parse().ok());
    number.map(Some).ok_or_else(|| {
        let why = format!("{} does not name a journal: bring it back, or restore a backup", dir.join(NEWEST).display());
        io::Error::new(io::ErrorKind::InvalidData, why)
    })
}

/// Notes the newest journal, if it is another than the one noted before, and remembers its number in `noted`. The note never
/// names one that may not be there after a power loss; for a while after the engine has begun a journal it names the one before.
///
/// # Errors
/// As the system gives them.
pub(super) fn note_newest(dir: &Path, noted: &mut Option<u64>) -> io::Result<()> {
    let newest = torn::journals(dir)?.into_keys().next_back();
    if let Some(number) = newest
        && newest != *noted
    {
        // The journal's name is on disk before the note.
        fs::File::open(dir)?.sync_all()?;
        replace(dir, NEWEST, format!("{number}{JOURNAL}\n").as_bytes())?;
        *noted = newest;
    }
    Ok(())
}

/// What a directory without a list holds.
///
/// # Errors
/// As the system gives them; [`io::ErrorKind::InvalidData`] for what is left of a store without [`VERSION`].
fn unlisted(dir: &Path) -> io::Result<Found> {
    let version = if_there(fs::read(dir.join(VERSION)))?;
    // Until it is synced, a power loss may leave zeros in it.
    let is_written = |version: &Vec<u8>| version.len() >= VERSION_BYTES && version.iter().any(|byte| *byte != 0);
    if version.as_ref().is_some_and(is_written) {
        return Ok(Found::Unlisted);
    }
    let journals = if_there(torn::journals(dir))?.unwrap_or_default();
    let has_folders = if_there(fs::read_dir(dir.join(SPACES)))?.is_some_and(|mut folders| folders.next().is_some());
    for journal in journals.values() {
        if has_folders || !torn::is_blank(&mut fs::File::open(journal)?)? {
            return Err(io::Error::new(io::ErrorKind::InvalidData, no_version(dir)));
        }
    }
    Ok(if version.is_none() && journals.is_empty() { Found::Nothing } else { Found::Unfinished })
}

fn no_version(dir: &Path) -> String {
    format!("the file {} is missing: bring it back, or restore a backup", dir.join(VERSION).display())
}

/// Removes what is left of a start that was interrupted while the engine made a new store: the engine makes none over it.
///
/// # Errors
/// As the system gives them; [`io::ErrorKind::WouldBlock`] if another process is making the store.
pub(super) fn clear_unfinished(dir: &Path) -> io::Result<()> {
    let _lock = torn::lock(dir)?;
    // Before this process had the lock, another one may have finished it.
    if unlisted(dir)? == Found::Unfinished {
        let journals = torn::journals(dir)?;
        journals.into_values().try_for_each(fs::remove_file)?;
        if_there(fs::remove_file(dir.join(VERSION)))?;
    }
    Ok(())
}

fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Lists the folders that the store has now, and the format of what will be written, if that is not what its files say.
///
/// # Errors
/// As the system gives them.
pub(super) fn write(dir: &Path) -> io::Result<()> {
    let number = || replace(dir, FORMAT_FILE, format!("{FORMAT}\n").as_bytes());
    if format(dir)? != FORMAT {
        number()?;
    } else if !dir.join(FORMAT_FILE).exists() {
        // Without it the store has the first format, which is this one, so it can also be written later.
        let _ = number().inspect_err(|error| tracing::warn!(%error, "the store's format was not noted"));
    }
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
    use crate::store::kv::{Batch, Kv, Slice, Space};

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
        for (there, named) in [(journal, "the journal "), (dir.join(VERSION), "the file ")] {
            let away = folder.path().join("away");
            fs::rename(&there, &away).unwrap();
            let Err(error) = Fjall::open(&dir, 1 << 20) else { panic!("it opens without {there:?}") };
            assert!(error.to_string().contains(named), "{error}");
            assert!(!there.exists(), "the engine has made none");
            fs::rename(&away, &there).unwrap();
        }
        Fjall::open(&dir, 1 << 20).unwrap();
        // An earlier version's, which has no list, gets one.
        fs::remove_file(dir.join(MARKER)).unwrap();
        assert_eq!(check(&dir), Ok(Found::Unlisted));
        Fjall::open(&dir, 1 << 20).unwrap();
        assert_eq!(fs::read_to_string(dir.join(MARKER)).unwrap(), listed);
    }

    #[test]
    fn a_store_that_has_lost_one_of_its_newer_journals_does_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("store");
        Fjall::open(&dir, 1 << 20).unwrap();
        assert_eq!(noted_newest(&dir).unwrap(), Some(0));
        let journal = |number: u64| dir.join(format!("{number}{JOURNAL}"));
        [1, 2].into_iter().for_each(|number| fs::write(journal(number), []).unwrap());
        let (mut noted, away) = (None, folder.path().join("away"));
        assert_eq!(check(&dir), Ok(Found::Whole), "the note may name an older one");
        note_newest(&dir, &mut noted).unwrap();
        assert_eq!((noted, noted_newest(&dir).unwrap(), check(&dir)), (Some(2), Some(2), Ok(Found::Whole)));
        let lost: [(&[u64], u64); 5] = [(&[1], 1), (&[2], 2), (&[1, 2], 1), (&[0, 2], 2), (&[0, 1, 2], 2)];
        for (lost, named) in lost {
            for number in lost {
                fs::rename(journal(*number), away.with_extension(number.to_string())).unwrap();
            }
            let error = check(&dir).unwrap_err();
            assert!(
                error.starts_with(&format!("the journal {} is missing", journal(named).display())),
                "{lost:?}: {error}"
            );
            for number in lost {
                fs::rename(away.with_extension(number.to_string()), journal(*number)).unwrap();
            }
        }
        // The engine has deleted the oldest.
        fs::remove_file(journal(0)).unwrap();
        assert_eq!(check(&dir), Ok(Found::Whole));
        fs::write(dir.join(NEWEST), "2.jn").unwrap();
        assert!(check(&dir).unwrap_err().contains("does not name a journal"));
        // A version that notes none has written the store.
        fs::remove_file(dir.join(NEWEST)).unwrap();
        assert_eq!(check(&dir), Ok(Found::Whole));
        // Somebody does without what was in it.
        for note in ["9.jnl\n", "damaged"] {
            fs::write(dir.join(NEWEST), note).unwrap();
            fs::remove_file(dir.join(MARKER)).unwrap();
            (0..2).for_each(|_| drop(Fjall::open(&dir, 1 << 20).unwrap()));
        }
    }

    fn row() -> Batch {
        vec![(Space::Messages, Slice::new(b"key"), Some(Slice::new(b"value")))]
    }

    #[test]
    fn a_first_start_that_was_interrupted_anywhere_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("store");
        let (spaces, journal) = (dir.join(SPACES), dir.join("0.jnl"));
        let opens = |done: &dyn std::fmt::Debug| {
            let engine = Fjall::open(&dir, 1 << 20).unwrap_or_else(|error| panic!("{done:?}: {error}"));
            engine.commit(row()).unwrap();
            drop(engine);
            assert_eq!(check(&dir), Ok(Found::Whole), "{done:?}");
            fs::remove_dir_all(&dir).unwrap();
        };
        // In the order in which the engine makes them.
        let steps: [&dyn Fn(); 10] = [
            &|| fs::create_dir(&dir).unwrap(),
            &|| fs::write(dir.join("lock"), []).unwrap(),
            &|| fs::create_dir(&spaces).unwrap(),
            &|| fs::write(&journal, []).unwrap(),
            &|| fs::File::create(&journal).unwrap().set_len(1 << 20).unwrap(),
            &|| fs::write(dir.join(VERSION), []).unwrap(),
            &|| fs::write(dir.join(VERSION), b"FJL").unwrap(),
            &|| fs::write(dir.join(VERSION), [0; 4]).unwrap(),
            &|| fs::write(dir.join(VERSION), b"FJL\x03").unwrap(),
            &|| fs::create_dir_all(spaces.join("0").join("tables")).unwrap(),
        ];
        for done in 0..=steps.len() {
            steps[..done].iter().for_each(|step| step());
            let found = match done {
                0..=3 => Found::Nothing,
                4..=8 => Found::Unfinished,
                _ => Found::Unlisted,
            };
            assert_eq!(check(&dir), Ok(found), "{done}");
            opens(&done);
        }
        // Then the spaces, each with its folder first.
        for whole in [0, 1, Space::COUNT] {
            let database = ::fjall::Database::builder(&dir).open().unwrap();
            for space in &Space::ALL[..whole] {
                database.keyspace(space.name(), ::fjall::KeyspaceCreateOptions::default).unwrap();
            }
            drop(database);
            fs::create_dir_all(spaces.join((whole + 1).to_string()).join("tables")).unwrap();
            opens(&("spaces", whole));
        }
    }

    #[test]
    fn a_store_that_is_being_made_by_another_process_is_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0.jnl"), []).unwrap();
        let lock = fs::File::create(dir.path().join("lock")).unwrap();
        lock.lock().unwrap();
        let Err(error) = Fjall::open(dir.path(), 1 << 20) else { panic!("it opens") };
        assert!(error.to_string().contains("another process has it open"), "{error}");
        assert!(dir.path().join("0.jnl").exists());
        drop(lock);
        Fjall::open(dir.path(), 1 << 20).unwrap().commit(row()).unwrap();
        let engine = Fjall::open(dir.path(), 1 << 20).unwrap();
        assert!(engine.view().get(Space::Messages, b"key").unwrap().is_some());
    }

    #[test]
    fn what_is_left_of_a_store_is_not_taken_for_an_unfinished_one() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, away) = (folder.path().join("store"), folder.path().join("away"));
        Fjall::open(&dir, 1 << 20).unwrap().commit(row()).unwrap();
        [MARKER, VERSION].into_iter().for_each(|file| fs::remove_file(dir.join(file)).unwrap());
        let journal = dir.join("0.jnl");
        let refused = || {
            let Err(error) = Fjall::open(&dir, 1 << 20) else { panic!("it opens") };
            assert!(error.to_string().contains("version is missing"), "{error}");
        };
        refused();
        fs::rename(dir.join(SPACES), &away).unwrap();
        refused();
        assert!(journal.exists());
        fs::rename(&away, dir.join(SPACES)).unwrap();
        fs::write(&journal, []).unwrap();
        refused();
        assert!(fs::read_dir(dir.join(SPACES)).unwrap().count() > 1);
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
