//! Looks for what a power loss or a bad disk has left at the end of fjall's journals, before fjall opens them.
//!
//! fjall takes a commit that does not parse for the end of the journal and cuts off the rest, without a word. If a commit
//! parses but its checksum differs, fjall does not open the journal. A power loss can leave either in the last commit: it
//! was written in part, or a page is missing within it. No caller was told of that commit, because the file was never
//! synced with it; so it is moved to a file of its own. But if another commit begins behind it, the journal is damaged:
//! each is synced before the next is written, so the bad one was acknowledged. The journal's layout is that of fjall 3,
//! described in its `journal/entry.rs`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use xxhash_rust::xxh3::Xxh3;

use super::seal::Seal;
use crate::limits::STORE_LOCK_RELEASED_WITHIN;

/// The last bytes of every commit.
const MAGIC: [u8; 4] = [b'F', b'J', b'L', 3];
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
/// Bytes of a commit's beginning: number of items, and the commit's number.
const START_BYTES: usize = 12;
/// Bytes of an item's head: kind of value, compression, space, and the lengths of the key, of the value, and of the value
/// as stored.
const HEAD_BYTES: usize = 20;
/// Where the seal is in a commit: its key is that of the first item.
const SEAL_AT: usize = 1 + START_BYTES + 1 + HEAD_BYTES;

/// How a journal's name ends, behind its number.
pub(super) const JOURNAL: &str = ".jnl";
/// Left by a process whose commit has failed.
const FAILED: &str = "failed";

/// What was found at the end of the journals.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The torn commit, `bytes` long, is now in `file` and no longer in the journal.
    PutAside { file: PathBuf, bytes: u64 },
    /// Nothing was changed: the bad commit at offset `at` of `file` is followed by another one, or by a newer journal.
    Damaged { file: PathBuf, at: u64 },
    /// Nothing was changed: there is nothing behind the last whole commit.
    Sound,
}

/// Checks the journals in `dir`, and moves what is behind the last whole commit to a file of its own if it is torn. Fails
/// if another process has the store open.
pub(super) fn put_aside(dir: &Path, seal: Option<&Seal>) -> io::Result<Outcome> {
    // Held until this is done: a process that opened the store meanwhile would write behind the commit that is removed.
    let _lock = lock(dir)?;
    let failure = dir.join(FAILED);
    if failure.exists() {
        write_again(dir)?;
        std::fs::remove_file(failure)?;
    }
    let journals = journals(dir)?;
    // Whether the last whole commit is sealed, and with it all that follow.
    let mut sealed = false;
    for (number, file) in &journals {
        let mut journal = open(file)?;
        let (at, last) = end_of_commits(&journal)?;
        if last.is_some() {
            sealed = last.as_ref() == seal;
        }
        let rest = rest(&mut journal, at)?;
        if rest.is_empty() {
            continue;
        }
        // fjall may begin another journal after a commit that failed, but nothing is committed any more.
        let mut newer = journals.range(number + 1..).map(|(_, file)| open(file));
        let more_follows = newer.try_fold(false, |more, file| Ok::<_, io::Error>(more || !is_blank(&mut file?)?))?;
        if more_follows || holds_another(&rest, seal, sealed) {
            return Ok(Outcome::Damaged { file: file.clone(), at });
        }
        let aside = dir.join(format!("{number}-{at}.torn"));
        let mut copy = File::create(&aside)?;
        copy.write_all(&rest)?;
        copy.sync_all()?;
        journal.set_len(at)?;
        journal.sync_all()?;
        return Ok(Outcome::PutAside { file: aside, bytes: rest.len() as u64 });
    }
    Ok(Outcome::Sound)
}

/// Takes fjall's own lock, which keeps any process from opening the store until it is dropped.
pub(super) fn lock(dir: &Path) -> io::Result<File> {
    let lock = open(&dir.join("lock"))?;
    let given_up = Instant::now() + STORE_LOCK_RELEASED_WITHIN;
    while lock.try_lock().is_err() {
        if Instant::now() >= given_up {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process has it open"));
        }
        std::thread::sleep(STORE_LOCK_RELEASED_WITHIN / 100);
    }
    Ok(lock)
}

/// Leaves a note for the next [`put_aside`] that a commit failed. It is only needed until the machine is started anew, so
/// it is not synced.
pub(super) fn note_failure(dir: &Path) {
    let _ = File::create(dir.join(FAILED));
}

/// Writes the journals in `dir` once more, as they read, and syncs them. After a sync that has failed, the kernel counts
/// pages as written that are in its memory alone, so another sync would not bring them to the disk.
fn write_again(dir: &Path) -> io::Result<()> {
    for file in journals(dir)?.values() {
        let mut journal = open(file)?;
        let (mut at, mut buffer) = (0, vec![0; 64 * 1024]);
        loop {
            journal.seek(SeekFrom::Start(at))?;
            let read = journal.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            // What was never written stays a hole.
            if buffer[..read].iter().any(|byte| *byte != 0) {
                journal.seek(SeekFrom::Start(at))?;
                journal.write_all(&buffer[..read])?;
            }
            at += read as u64;
        }
        journal.sync_all()?;
    }
    Ok(())
}

fn open(file: &Path) -> io::Result<File> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
    OpenOptions::new().read(true).write(true).open(file).map_err(named)
}

/// The journals, oldest first.
pub(super) fn journals(dir: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut journals = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(JOURNAL));
        if let Some(number) = name.and_then(|name| name.parse().ok()) {
            journals.insert(number, path);
        }
    }
    Ok(journals)
}

/// What the journal holds from `at` on, without the zeros with which it is filled when it is created.
fn rest(journal: &mut File, at: u64) -> io::Result<Vec<u8>> {
    journal.seek(SeekFrom::Start(at))?;
    let (mut rest, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    let mut zeros = 0;
    loop {
        let read = journal.read(&mut buffer)?;
        if read == 0 {
            return Ok(rest);
        }
        let filled = buffer[..read].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if filled > 0 {
            rest.resize(rest.len() + zeros, 0);
            rest.extend_from_slice(&buffer[..filled]);
            zeros = 0;
        }
        zeros += read - filled;
    }
}

/// Whether nothing was ever written to a journal.
pub(super) fn is_blank(journal: &mut File) -> io::Result<bool> {
    Ok(rest(journal, 0)?.is_empty())
}

/// Where the last whole commit ends that has only whole ones before it, and what is where its seal should be; `None`: there is no
/// such commit.
fn end_of_commits(journal: &File) -> io::Result<(u64, Option<Seal>)> {
    let length = journal.metadata()?.len();
    let mut commits = Commits::new(BufReader::with_capacity(64 * 1024, journal), length);
    let mut last = None;
    loop {
        let start = commits.at;
        if !commits.next_is_whole()? {
            return Ok((start, last));
        }
        last = Some(commits.first_key);
    }
}

/// Whether there is another commit behind the bad one at the beginning. `sealed`: all commits in `rest` have the seal.
fn holds_another(rest: &[u8], seal: Option<&Seal>, sealed: bool) -> bool {
    let begins_behind = |seal: &Seal| {
        let seals = rest.windows(seal.len()).enumerate().filter(|(_, bytes)| bytes == seal);
        seals.map(|(at, _)| at != SEAL_AT).reduce(|one, other| one || other)
    };
    // Without any seal it was written by a version that had none, or the page with the seal is missing and no other commit is there.
    seal.and_then(begins_behind).unwrap_or_else(|| !sealed && holds_whole_commit(rest))
}

/// Whether there is a whole commit behind the bad one at the beginning, or what a client has written to look like one.
fn holds_whole_commit(rest: &[u8]) -> bool {
    let is_whole = |from: usize| {
        let reader = &rest[from..];
        let mut commits = Commits::new(reader, reader.len() as u64);
        commits.next_is_whole().is_ok_and(|whole| whole)
    };
    (1..rest.len()).filter(|from| rest[*from] == START).any(is_whole)
}

struct Commits<R> {
    reader: R,
    at: u64,
    /// Where the reader ends.
    length: u64,
    /// The checksum of the items of the current commit.
    hash: Xxh3,
    /// The first item's key in the current commit; zeros, if it is not as long as a seal.
    first_key: Seal,
}

impl<R: Read> Commits<R> {
    fn new(reader: R, length: u64) -> Commits<R> {
        Commits { reader, at: 0, length, hash: Xxh3::new(), first_key: Seal::default() }
    }

    /// Whether the next commit parses and its checksum is right.
    fn next_is_whole(&mut self) -> io::Result<bool> {
        match self.next() {
            Ok(right) => Ok(right == Some(true)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the checksum of the next commit is right; `None`: the commit does not parse.
    fn next(&mut self) -> io::Result<Option<bool>> {
        self.hash.reset();
        if self.byte()? != START {
            return Ok(None);
        }
        self.take::<START_BYTES>()?;
        self.first_key = Seal::default();
        let first = self.at;
        loop {
            let is_first = self.at == first;
            match self.byte()? {
                ITEM => {
                    self.hash.update(&[ITEM]);
                    let head = self.take::<HEAD_BYTES>()?;
                    self.hash.update(&head);
                    let key = u64::from(u16::from_le_bytes([head[10], head[11]]));
                    let value = u64::from(u32::from_le_bytes([head[16], head[17], head[18], head[19]]));
                    let mut left = key + value;
                    if is_first && key == size_of::<Seal>() as u64 {
                        self.first_key = self.take()?;
                        self.hash.update(&self.first_key);
                        left = value;
                    }
                    self.hash_next(left)?;
                }
                CLEAR => {
                    self.hash.update(&[CLEAR]);
                    self.hash_next(8)?;
                }
                END => {
                    let checksum = u64::from_le_bytes(self.take()?);
                    return Ok((self.take()? == MAGIC).then(|| checksum == self.hash.digest()));
                }
                _ => return Ok(None),
            }
        }
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.take().map(|[byte]| byte)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn hash_next(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.length.saturating_sub(self.at) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let hashed = io::copy(&mut (&mut self.reader).take(bytes), &mut Hashing(&mut self.hash))?;
        self.at += hashed;
        if hashed == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

struct Hashing<'a>(&'a mut Xxh3);

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::store::fjall::Fjall;
    use crate::store::kv::{Batch, Kv, Slice, Space};
    use crate::store::{StoreError, seal};

    const CACHE: u64 = 1024 * 1024;

    /// A text of 16 KiB that does not compress.
    fn noise(seed: u64) -> Vec<u8> {
        let mut random = crate::random::Random::new(seed);
        std::iter::repeat_with(|| random.number().to_le_bytes()).take(2048).flatten().collect()
    }

    fn batch(key: u8, value: &[u8]) -> Batch {
        vec![(Space::Messages, Slice::new(&[key]), Some(Slice::new(value)))]
    }

    fn newest_journal(dir: &Path) -> PathBuf {
        journals(dir).unwrap().pop_last().unwrap().1
    }

    fn look(dir: &Path) -> io::Result<Outcome> {
        put_aside(dir, seal::read(dir)?.as_ref())
    }

    /// Overwrites a page within a value with zeros, as a power loss leaves a file that was not synced.
    fn tear(dir: &Path, value: &[u8]) {
        let path = newest_journal(dir);
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(64).position(|window| *window == value[..64]).expect("it lies there as it is");
        let page = (at as u64).next_multiple_of(4096);
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[0; 4096], page).unwrap();
    }

    #[test]
    fn a_last_commit_that_was_torn_is_put_aside_and_all_before_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        engine.commit(batch(1, &noise(1))).unwrap();
        engine.commit(batch(2, b"short")).unwrap();
        engine.commit(batch(3, &noise(3))).unwrap();
        drop(engine);
        tear(folder.path(), &noise(3));

        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        let get =
            |engine: &Fjall, key: u8| engine.view().get(Space::Messages, &[key]).unwrap().map(|value| value.to_vec());
        assert_eq!(get(&engine, 1), Some(noise(1)));
        assert_eq!(get(&engine, 2), Some(b"short".to_vec()));
        assert_eq!(get(&engine, 3), None);
        let aside = |entry: io::Result<std::fs::DirEntry>| {
            let path = entry.unwrap().path();
            path.extension().is_some_and(|end| end == "torn").then(|| std::fs::metadata(path).unwrap().len())
        };
        let kept: Vec<u64> = std::fs::read_dir(folder.path()).unwrap().filter_map(aside).collect();
        assert!(matches!(kept[..], [bytes] if bytes > 16 * 1024), "{kept:?}");
        engine.commit(batch(4, &noise(4))).unwrap();
        drop(engine);
        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        assert_eq!([1, 4].map(|key| get(&engine, key)), [Some(noise(1)), Some(noise(4))]);
    }

    /// Where a journal's first commit ends.
    fn end_of_first(journal: &Path) -> u64 {
        let bytes = std::fs::read(journal).unwrap();
        let mut commits = Commits::new(&bytes[..], bytes.len() as u64);
        assert!(commits.next_is_whole().unwrap());
        commits.at
    }

    #[test]
    fn a_torn_commit_in_which_a_client_has_written_a_whole_one_is_put_aside() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let engines = folders.each_ref().map(|folder| Fjall::open(folder.path(), CACHE).unwrap());
        engines[0].commit(batch(1, b"short")).unwrap();
        let journal = newest_journal(folders[0].path());
        let mut imitated = std::fs::read(&journal).unwrap();
        imitated.truncate(end_of_commits(&File::open(&journal).unwrap()).unwrap().0 as usize);
        engines[1].commit([batch(1, &imitated), batch(2, &noise(2))].concat()).unwrap();
        drop(engines);
        tear(folders[1].path(), &noise(2));
        assert!(matches!(look(folders[1].path()).unwrap(), Outcome::PutAside { bytes, .. } if bytes > 16 * 1024));

        // Also if what is missing is the page with the seal, because all that follows a sealed commit is sealed.
        let engine = Fjall::open(folders[1].path(), CACHE).unwrap();
        engine.commit(batch(1, b"sealed")).unwrap();
        engine.commit([batch(2, &noise(2)), batch(3, &imitated)].concat()).unwrap();
        drop(engine);
        let torn = newest_journal(folders[1].path());
        let at = end_of_first(&torn);
        let page = at.next_multiple_of(4096);
        OpenOptions::new().write(true).open(&torn).unwrap().write_all_at(&vec![0; (page - at) as usize], at).unwrap();
        assert!(matches!(look(folders[1].path()).unwrap(), Outcome::PutAside { bytes, .. } if bytes > 16 * 1024));

        // With the store's own seal it is one that follows.
        let engine = Fjall::open(folders[1].path(), CACHE).unwrap();
        imitated[SEAL_AT..SEAL_AT + size_of::<Seal>()]
            .copy_from_slice(&seal::read(folders[1].path()).unwrap().unwrap());
        engine.commit([batch(1, &imitated), batch(2, &noise(2))].concat()).unwrap();
        drop(engine);
        tear(folders[1].path(), &noise(2));
        assert_eq!(look(folders[1].path()).unwrap(), Outcome::Damaged { file: torn, at });
    }

    #[test]
    fn damage_that_is_followed_by_more_is_left_alone_and_its_place_told() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        engine.commit(batch(1, &noise(1))).unwrap();
        engine.commit(batch(2, b"short")).unwrap();
        assert_eq!(look(folder.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock, "the engine has it");
        drop(engine);
        assert_eq!(look(folder.path()).unwrap(), Outcome::Sound);
        tear(folder.path(), &noise(1));
        let journal = newest_journal(folder.path());
        let before = std::fs::read(&journal).unwrap();
        for _ in 0..2 {
            let error = Fjall::open(folder.path(), CACHE).map(drop).unwrap_err();
            let StoreError::Engine(reason) = &error else { panic!("{error}") };
            assert!(reason.contains(&format!("{} is damaged at byte ", journal.display())), "{reason}");
        }
        assert!(std::fs::read(&journal).unwrap() == before, "nothing of it was touched");
    }

    #[test]
    fn a_commit_that_is_cut_off_anywhere_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        engine.commit(batch(1, b"short")).unwrap();
        let whole = {
            let path = newest_journal(folder.path());
            end_of_commits(&File::open(path).unwrap()).unwrap().0
        };
        engine.commit(batch(2, &noise(2))).unwrap();
        drop(engine);
        let path = newest_journal(folder.path());
        let before = std::fs::read(&path).unwrap();
        for bytes in [16_000, 4_000, 100, 21, 5, 1] {
            std::fs::write(&path, &before[..whole as usize + bytes]).unwrap();
            let file = folder.path().join(format!("0-{whole}.torn"));
            let outcome = look(folder.path()).unwrap();
            // What is cut may end with zeros, like an empty journal.
            let kept = std::fs::read(&file).unwrap();
            assert!(before[whole as usize..].starts_with(&kept), "{bytes}");
            assert_eq!(outcome, Outcome::PutAside { file, bytes: kept.len() as u64 });
            assert_eq!(look(folder.path()).unwrap(), Outcome::Sound, "{bytes}");
        }
        std::fs::write(&path, &before[..whole as usize]).unwrap();
        assert_eq!(look(folder.path()).unwrap(), Outcome::Sound);
        std::fs::write(&path, []).unwrap();
        assert_eq!(look(folder.path()).unwrap(), Outcome::Sound);
    }

    #[test]
    fn a_hole_that_begins_with_a_commit_is_damage_if_a_whole_one_follows() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        (1..=4).for_each(|key| engine.commit(batch(key, &noise(u64::from(key)))).unwrap());
        drop(engine);
        let path = newest_journal(folder.path());
        let mut bytes = std::fs::read(&path).unwrap();
        let commit = end_of_commits(&File::open(&path).unwrap()).unwrap().0 as usize / 4;
        bytes[commit..2 * commit + 100].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let damaged = Outcome::Damaged { file: path.clone(), at: commit as u64 };
        assert_eq!(look(folder.path()).unwrap(), damaged);
        assert!(Fjall::open(folder.path(), CACHE).is_err());
        assert!(std::fs::read(&path).unwrap() == bytes, "nothing of it was touched");
        // The same if the commits have no seals that are known.
        assert_eq!(put_aside(folder.path(), None).unwrap(), damaged);
        // In an older journal what follows is the newer one, unless nothing was written to it.
        let cut = bytes.iter().rposition(|byte| *byte != 0).unwrap() - 10;
        bytes.truncate(cut);
        bytes[commit..2 * commit + 100].fill(7);
        bytes.truncate(commit + 50);
        std::fs::write(&path, &bytes).unwrap();
        let newer = folder.path().join("1.jnl");
        std::fs::write(&newer, b"more").unwrap();
        assert_eq!(look(folder.path()).unwrap(), damaged);
        std::fs::write(&newer, [0; 100]).unwrap();
        assert!(matches!(look(folder.path()).unwrap(), Outcome::PutAside { bytes: 50, .. }));
        assert_eq!(look(folder.path()).unwrap(), Outcome::Sound);
    }

    #[test]
    fn a_store_whose_commit_failed_is_written_again_when_it_opens() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        engine.commit(batch(1, &noise(1))).unwrap();
        drop(engine);
        let journal = newest_journal(folder.path());
        let before = std::fs::read(&journal).unwrap();
        write_again(folder.path()).unwrap();
        assert!(std::fs::read(&journal).unwrap() == before);
        note_failure(folder.path());
        for _ in 0..2 {
            let engine = Fjall::open(folder.path(), CACHE).unwrap();
            assert!(!folder.path().join(FAILED).exists());
            let value = engine.view().get(Space::Messages, &[1]).unwrap();
            assert_eq!(value.map(|value| value.to_vec()), Some(noise(1)));
        }
    }
}
