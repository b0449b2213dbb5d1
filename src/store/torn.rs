//! Removes a commit that a power loss has torn from the end of fjall's journal.
//!
//! fjall drops a last commit that is truncated or does not parse. If a commit parses but its checksum differs, fjall
//! treats the journal as damaged and does not open it. A power loss can leave such a commit: a page is missing within
//! one long text that does not compress. If nothing follows the commit, no caller was told of it, because the file was
//! never synced with it; so the commit is moved to a file of its own. The journal's layout is that of fjall 3,
//! described in its `journal/entry.rs`.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

/// The last bytes of every commit.
const MAGIC: [u8; 4] = [b'F', b'J', b'L', 3];
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;

/// The result for a journal that does not open.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The torn commit, `bytes` long, is now in `file` and no longer in the journal.
    PutAside { file: PathBuf, bytes: u64 },
    /// Nothing was changed: the bad commit at offset `at` of `file` is followed by more data.
    Damaged { file: PathBuf, at: u64 },
    /// Nothing was changed: the newest journal has no commit with a wrong checksum.
    Sound,
}

/// Checks the newest journal in `dir`, and moves its last commit to a file of its own if that is torn. Fails if another
/// process has the store open.
pub(super) fn put_aside(dir: &Path) -> io::Result<Outcome> {
    // fjall's own lock, held until this is done: a process that opened the store meanwhile would write behind the
    // commit that is removed.
    let lock = OpenOptions::new().read(true).write(true).open(dir.join("lock"))?;
    lock.try_lock().map_err(|_| io::Error::new(io::ErrorKind::WouldBlock, "another process has it open"))?;
    let Some((number, file)) = newest_journal(dir)? else { return Ok(Outcome::Sound) };
    let mut journal = OpenOptions::new().read(true).write(true).open(&file)?;
    let Some(torn) = torn_commit(&journal)? else { return Ok(Outcome::Sound) };
    journal.seek(SeekFrom::Start(torn.end))?;
    if !is_empty(&mut journal)? {
        return Ok(Outcome::Damaged { file, at: torn.start });
    }
    let (aside, bytes) = (dir.join(format!("{number}-{}.torn", torn.start)), torn.end - torn.start);
    journal.seek(SeekFrom::Start(torn.start))?;
    let mut copy = File::create(&aside)?;
    io::copy(&mut (&journal).take(bytes), &mut copy)?;
    copy.sync_all()?;
    journal.set_len(torn.start)?;
    journal.sync_all()?;
    Ok(Outcome::PutAside { file: aside, bytes })
}

fn newest_journal(dir: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let mut newest = None;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jnl"));
        if let Some(number) = name.and_then(|name| name.parse::<u64>().ok()) {
            newest = newest.max(Some((number, path)));
        }
    }
    Ok(newest)
}

/// Whether the rest consists of zeros, with which a journal is filled when it is created.
fn is_empty(rest: &mut impl Read) -> io::Result<bool> {
    let mut buffer = [0; 64 * 1024];
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(true),
            read if buffer[..read].iter().any(|byte| *byte != 0) => return Ok(false),
            _ => {}
        }
    }
}

/// The position of the first commit that parses but has a wrong checksum. The journal ends where a commit does not
/// parse.
fn torn_commit(journal: &File) -> io::Result<Option<Range<u64>>> {
    let mut commits = Commits { reader: BufReader::new(journal), at: 0, hash: Xxh3::new() };
    loop {
        let start = commits.at;
        match commits.next() {
            Ok(Some(true)) => {}
            Ok(Some(false)) => return Ok(Some(start..commits.at)),
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

struct Commits<R> {
    reader: R,
    at: u64,
    /// The checksum of the items of the current commit.
    hash: Xxh3,
}

impl<R: Read> Commits<R> {
    /// Whether the checksum of the next commit is right; `None`: the commit does not parse.
    fn next(&mut self) -> io::Result<Option<bool>> {
        self.hash.reset();
        if self.byte()? != START {
            return Ok(None);
        }
        // Number of items, and the commit's number.
        self.take::<12>()?;
        loop {
            match self.byte()? {
                ITEM => {
                    self.hash.update(&[ITEM]);
                    // Kind of value, compression, space, and the lengths of the key, of the value, and of the value as
                    // stored.
                    let head = self.take::<20>()?;
                    self.hash.update(&head);
                    let key = u64::from(u16::from_le_bytes([head[10], head[11]]));
                    let value = u64::from(u32::from_le_bytes([head[16], head[17], head[18], head[19]]));
                    self.hash_next(key + value)?;
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
    use crate::store::StoreError;
    use crate::store::fjall::Fjall;
    use crate::store::kv::{Batch, Kv, Slice, Space};

    const CACHE: u64 = 1024 * 1024;

    /// A text of 16 KiB that does not compress.
    fn noise(seed: u64) -> Vec<u8> {
        let mut random = crate::random::Random::new(seed);
        std::iter::repeat_with(|| random.number().to_le_bytes()).take(2048).flatten().collect()
    }

    fn batch(key: u8, value: &[u8]) -> Batch {
        vec![(Space::Messages, Slice::new(&[key]), Some(Slice::new(value)))]
    }

    /// Overwrites a page within a value with zeros, as a power loss leaves a file that was not synced.
    fn tear(dir: &Path, value: &[u8]) {
        let (_, path) = newest_journal(dir).unwrap().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(64).position(|window| *window == value[..64]).expect("it lies there as it is");
        let page = (at as u64).next_multiple_of(4096);
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[0; 4096], page).unwrap();
    }

    #[test]
    fn a_last_commit_that_was_torn_is_put_aside_and_all_before_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        engine.commit(batch(1, &noise(1)), true).unwrap();
        engine.commit(batch(2, b"short"), true).unwrap();
        engine.commit(batch(3, &noise(3)), true).unwrap();
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
        engine.commit(batch(4, &noise(4)), true).unwrap();
        drop(engine);
        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        assert_eq!([1, 4].map(|key| get(&engine, key)), [Some(noise(1)), Some(noise(4))]);
    }

    #[test]
    fn damage_that_is_followed_by_more_is_left_alone_and_its_place_told() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        engine.commit(batch(1, &noise(1)), true).unwrap();
        engine.commit(batch(2, b"short"), true).unwrap();
        assert_eq!(put_aside(folder.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock, "the engine has it");
        drop(engine);
        assert_eq!(put_aside(folder.path()).unwrap(), Outcome::Sound);
        tear(folder.path(), &noise(1));
        let (_, journal) = newest_journal(folder.path()).unwrap().unwrap();
        let before = std::fs::read(&journal).unwrap();
        for _ in 0..2 {
            let error = Fjall::open(folder.path(), CACHE).map(drop).unwrap_err();
            let StoreError::Engine(reason) = &error else { panic!("{error}") };
            assert!(reason.contains(&format!("{} is damaged at byte ", journal.display())), "{reason}");
        }
        assert!(std::fs::read(&journal).unwrap() == before, "nothing of it was touched");
    }

    #[test]
    fn a_journal_that_is_cut_off_anywhere_has_no_torn_commit() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        engine.commit(batch(1, &noise(1)), true).unwrap();
        drop(engine);
        let (_, path) = newest_journal(folder.path()).unwrap().unwrap();
        let journal = OpenOptions::new().write(true).read(true).open(&path).unwrap();
        for length in [17_000, 16_000, 4_000, 100, 21, 5, 1, 0] {
            journal.set_len(length).unwrap();
            assert_eq!(put_aside(folder.path()).unwrap(), Outcome::Sound, "{length}");
        }
    }
}
