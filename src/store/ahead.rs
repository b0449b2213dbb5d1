//! Writes zeros into fjall's journal ahead of where it writes.
//!
//! fjall makes a journal as a file of 64 MiB without blocks. A commit that needs a new block changes the file's and the
//! file system's tables too, and on one with a journal of its own `fdatasync` waits for that as well: at a low rate nearly
//! each commit. So the next blocks are written in advance, many at once; then a commit overwrites, and its data is all that
//! is synced. What a file without blocks holds is zeros, so the journal reads as before, whatever a crash leaves of this.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::torn::newest_journal;

/// Written at once. Synced with the commit that follows, so not much.
const STEP_BYTES: usize = 256 * 1024;
/// A commit of more has more to write than tables, and would use a step up at once.
const COMMIT_BYTES_MAX: usize = 16 * 1024;
/// After so much that did not go into the journal that is looked at, there is another.
const ELSEWHERE_BYTES: usize = 2 * STEP_BYTES;

static ZEROS: [u8; STEP_BYTES] = [0; STEP_BYTES];

pub(super) struct Ahead {
    dir: PathBuf,
    /// Whether the file system is one that overwrites in place.
    serves: bool,
    journal: Option<Journal>,
    /// Committed since the journal was seen to grow, or looked for.
    unseen: usize,
}

struct Journal {
    number: u64,
    file: File,
    /// When it was found: one that was there at the start has been cut to what it holds, and is appended to.
    length: u64,
    /// Up to here it has blocks.
    filled: u64,
}

impl Ahead {
    pub(super) fn new(dir: &Path) -> Ahead {
        Ahead { dir: dir.to_owned(), serves: overwrites_in_place(dir), journal: None, unseen: ELSEWHERE_BYTES }
    }

    /// After a commit of about so many bytes. Nobody else may be writing to the journal: what is written here lies behind
    /// all that it has, and that only holds as long as it does not grow.
    pub(super) fn committed(&mut self, bytes: usize) {
        if !self.serves {
            return;
        }
        self.unseen += bytes;
        if let Err(error) = self.follow(bytes) {
            // The engine meets it itself where it matters.
            tracing::debug!(%error, "zeros ahead in the journal");
            (self.serves, self.journal) = (false, None);
        }
    }

    fn follow(&mut self, bytes: usize) -> io::Result<()> {
        if self.unseen >= ELSEWHERE_BYTES {
            self.look()?;
        }
        if bytes > COMMIT_BYTES_MAX {
            return Ok(());
        }
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let Some(hole) = hole(&journal.file, journal.filled, journal.length)? else { return Ok(()) };
        if hole > journal.filled || hole == 0 {
            let step = (journal.length - hole).min(STEP_BYTES as u64);
            journal.file.write_all_at(&ZEROS[..step as usize], hole)?;
            journal.filled = hole + step;
            self.unseen = 0;
        }
        Ok(())
    }

    /// Finds the newest journal; the one before it is let go of, as the engine deletes it.
    fn look(&mut self) -> io::Result<()> {
        self.unseen = 0;
        let known = self.journal.as_ref().map(|journal| journal.number);
        if let Some((number, path)) = newest_journal(&self.dir)?
            && known != Some(number)
        {
            let file = OpenOptions::new().write(true).open(path)?;
            let length = file.metadata()?.len();
            // Else it is just being made.
            if length > 0 {
                self.journal = Some(Journal { number, file, length, filled: 0 });
            }
        }
        Ok(())
    }
}

/// The first place from `from` on that has no block; `None` if there is none before `length`.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn hole(file: &File, from: u64, length: u64) -> io::Result<Option<u64>> {
    use std::os::fd::AsRawFd;

    if from >= length {
        return Ok(None);
    }
    let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
    // SAFETY: no pointers, and the descriptor is open; its position is nobody's.
    let hole = unsafe { libc::lseek(file.as_raw_fd(), from, libc::SEEK_HOLE) };
    if hole < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(hole).ok().filter(|hole| *hole < length))
}

#[cfg(not(target_os = "linux"))]
fn hole(_: &File, _: u64, _: u64) -> io::Result<Option<u64>> {
    Ok(None)
}

/// ext4 and XFS do; one that copies on write, or has no blocks, would only write twice.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn overwrites_in_place(dir: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;

    let Ok(path) = std::ffi::CString::new(dir.as_os_str().as_bytes()) else { return false };
    let mut about = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends with a zero, and there is room for the answer.
    if unsafe { libc::statfs(path.as_ptr(), about.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: it was filled in, as the call succeeded.
    let about = unsafe { about.assume_init() };
    [libc::EXT4_SUPER_MAGIC, libc::XFS_SUPER_MAGIC].iter().any(|kind| i128::from(*kind) == i128::from(about.f_type))
}

#[cfg(not(target_os = "linux"))]
fn overwrites_in_place(_: &Path) -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const LENGTH: usize = 4 * 1024 * 1024;

    fn ahead(dir: &Path) -> Ahead {
        Ahead { serves: true, ..Ahead::new(dir) }
    }

    /// A journal as the engine makes it.
    fn journal(dir: &Path, number: u64) -> File {
        let file = File::create_new(dir.join(format!("{number}.jnl"))).unwrap();
        file.set_len(LENGTH as u64).unwrap();
        file
    }

    /// Bytes that have blocks, in memory or on disk.
    fn blocks(file: &File) -> u64 {
        hole(file, 0, LENGTH as u64).unwrap().unwrap_or(LENGTH as u64)
    }

    /// Commits of some sizes one after the other, each told of; what the journal has then.
    fn commit(ahead: &mut Ahead, file: &File, commits: usize, mut size: impl FnMut(usize) -> usize) -> Vec<u8> {
        let mut written = Vec::new();
        for n in 0..commits {
            let bytes = vec![n as u8 | 1; size(n)];
            file.write_all_at(&bytes, written.len() as u64).unwrap();
            written.extend(&bytes);
            ahead.committed(bytes.len());
        }
        written
    }

    #[test]
    fn blocks_lie_ahead_and_the_journal_reads_as_before() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ahead, file) = (ahead(folder.path()), journal(folder.path(), 1));
        let first = commit(&mut ahead, &file, 1, |_| 100);
        assert!(blocks(&file) > STEP_BYTES as u64, "the first commit's block and a step");
        let rest = commit(&mut ahead, &file, 2000, |n| 1 + n * 7919 % 3000);
        assert!(rest.len() > 8 * STEP_BYTES && first.len() < rest.len());
        assert!(blocks(&file) > rest.len() as u64, "the next commit needs no new block");
        let mut expected = rest;
        expected.resize(LENGTH, 0);
        assert!(std::fs::read(folder.path().join("1.jnl")).unwrap() == expected, "something was overwritten");
    }

    #[test]
    fn the_journal_ends_where_it_did() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ahead, file) = (ahead(folder.path()), journal(folder.path(), 1));
        let written = commit(&mut ahead, &file, LENGTH / 4000, |_| 4000);
        assert_eq!(file.metadata().unwrap().len(), LENGTH as u64);
        assert_eq!(blocks(&file), LENGTH as u64);
        let mut expected = written;
        expected.resize(LENGTH, 0);
        assert!(std::fs::read(folder.path().join("1.jnl")).unwrap() == expected, "something was overwritten");
    }

    #[test]
    fn large_commits_are_left_to_themselves_and_small_ones_after_them_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ahead, file) = (ahead(folder.path()), journal(folder.path(), 1));
        let large = commit(&mut ahead, &file, 20, |_| COMMIT_BYTES_MAX + 1).len();
        assert!(blocks(&file) < (large + STEP_BYTES) as u64);
        file.write_all_at(&[1; 100], large as u64).unwrap();
        ahead.committed(100);
        assert!(blocks(&file) >= (large + STEP_BYTES) as u64);
    }

    #[test]
    fn the_next_journal_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut ahead = ahead(folder.path());
        commit(&mut ahead, &journal(folder.path(), 1), 1, |_| 100);
        let next = journal(folder.path(), 2);
        commit(&mut ahead, &next, ELSEWHERE_BYTES / 1000 + 1, |_| 1000);
        assert!(blocks(&next) > (ELSEWHERE_BYTES + STEP_BYTES / 2) as u64);
    }

    #[test]
    fn a_journal_that_is_appended_to_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ahead, file) = (ahead(folder.path()), journal(folder.path(), 1));
        file.set_len(0).unwrap();
        let written = commit(&mut ahead, &file, 600, |_| 1000).len() as u64;
        let about = file.metadata().unwrap();
        assert_eq!(about.len(), written);
        assert!(about.blocks() * 512 < written + STEP_BYTES as u64);
    }
}
