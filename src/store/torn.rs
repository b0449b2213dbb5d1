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
    /// The torn commit, `bytes` long, was cut off `file`: its process was told that it failed, and the disk has no room for a copy.
    CutOff { file: PathBuf, bytes: u64 },
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
    let failed = failure.exists();
    if failed {
        write_again(dir)?;
    }
    let outcome = look_at_ends(dir, seal, failed)?;
    if failed {
        std::fs::remove_file(failure)?;
    }
    Ok(outcome)
}

/// `failed`: a commit was the last one because it failed.
fn look_at_ends(dir: &Path, seal: Option<&Seal>, failed: bool) -> io::Result<Outcome> {
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
        let (aside, bytes) = (dir.join(format!("{number}-{at}.torn")), rest.len() as u64);
        let outcome = match copy(&rest, &aside) {
            // Most likely it failed for that reason, and without this nobody could start before something else is deleted.
            Err(error) if failed && is_full(&error) => Outcome::CutOff { file: file.clone(), bytes },
            copied => copied.map(|()| Outcome::PutAside { file: aside, bytes })?,
        };
        journal.set_len(at)?;
        journal.sync_all()?;
        return Ok(outcome);
    }
    Ok(Outcome::Sound)
}

/// Writes a file, or leaves none.
fn copy(bytes: &[u8], to: &Path) -> io::Result<()> {
    let written = File::create(to).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.inspect_err(|_| drop(std::fs::remove_file(to)))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
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
            // What was never written stays a hole: the disk may be full.
            if let Some(last) = buffer[..read].iter().rposition(|byte| *byte != 0) {
                journal.seek(SeekFrom::Start(at))?;
                journal.write_all(&buffer[..=last])?;
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
mod tests;
