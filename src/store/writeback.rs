//! Has the kernel write the engine's files while they grow.
//!
//! lsm-tree writes a file of some 16 or 64 MiB into memory and has it written to disk at its end, all at once: the commits'
//! fdatasyncs wait behind it, and after a merge every insert does too, as it is done under a lock. Written bit by bit
//! meanwhile there is little left to be written at the end.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::background;
use crate::limits;

/// Watches folders, and the files that grow in them.
pub(super) struct Writeback {
    inotify: Arc<OwnedFd>,
    watches: Vec<i32>,
    thread: Option<JoinHandle<()>>,
}

impl Writeback {
    /// Watches these folders from now on: at least one, and all of them are there. `None`, which the log tells: the system
    /// has no room for it, and commits wait for files as they would without.
    pub(super) fn start(folders: impl IntoIterator<Item = PathBuf>) -> Option<Writeback> {
        Writeback::watch(folders).inspect_err(given_up).ok()
    }

    fn watch(folders: impl IntoIterator<Item = PathBuf>) -> io::Result<Writeback> {
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC)?);
        let mut watched = HashMap::new();
        for folder in folders {
            watched.insert(inotify::add_watch(&inotify, &folder, WatchFlags::MODIFY | WatchFlags::ONLYDIR)?, folder);
        }
        let watches = watched.keys().copied().collect();
        let run = {
            let inotify = inotify.clone();
            move || {
                background::give_way();
                if let Err(error) = run(&inotify, &watched) {
                    given_up(&error);
                }
            }
        };
        let thread = std::thread::Builder::new().name("store-writeback".into()).spawn(run)?;
        Ok(Writeback { inotify, watches, thread: Some(thread) })
    }
}

fn given_up(error: &io::Error) {
    tracing::warn!(%error, "the store's files are written out at their end only: commits wait for it");
}

fn run(inotify: &OwnedFd, folders: &HashMap<i32, PathBuf>) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(inotify, &mut buffer);
    let mut grown: Vec<PathBuf> = Vec::new();
    loop {
        let event = match events.next() {
            Ok(event) => event,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if event.events().contains(ReadFlags::IGNORED) {
            // The watch was taken away: it is the end.
            return Ok(());
        }
        // An event without a name says that some were lost; there will be more.
        if let (Some(folder), Some(name)) = (folders.get(&event.wd()), event.file_name()) {
            let file = folder.join(OsStr::from_bytes(name.to_bytes()));
            if !grown.contains(&file) {
                grown.push(file);
            }
        }
        if events.is_buffer_empty() {
            for file in grown.drain(..) {
                if let Err(error) = write_out(&file) {
                    tracing::debug!(file = %file.display(), %error, "not written out yet");
                }
            }
            std::thread::sleep(limits::STORE_WRITEBACK_PAUSE);
        }
    }
}

/// Begins to write what of the file is in memory alone. Promises nothing: that is for the engine's own sync.
#[allow(unsafe_code)]
fn write_out(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: no pointers; the descriptor is open until the end of the call. From 0 for 0 bytes is all of it.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        // Each of them ends the thread.
        for watch in &self.watches {
            let _ = inotify::remove_watch(&self.inotify, *watch);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);
    const PIECE: usize = 64 * 1024;
    const PIECES: usize = 64;

    /// Pages of a file that are in memory alone (cachestat(2), Linux 6.5).
    #[allow(unsafe_code)]
    fn dirty_pages(file: &File) -> Option<u64> {
        const CACHESTAT: libc::c_long = 451;
        let range = [0u64; 2];
        // Cached, dirty, under way, evicted, evicted a short while ago.
        let mut figures = [0u64; 5];
        // SAFETY: both arrays are as the call wants them, and live through it.
        let done = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), figures.as_mut_ptr(), 0) };
        (done == 0).then(|| figures[1])
    }

    fn written(folder: &Path) -> File {
        let mut file = File::create_new(folder.join("1")).unwrap();
        for _ in 0..PIECES {
            file.write_all(&[1; PIECE]).unwrap();
        }
        file
    }

    #[test]
    fn a_file_that_grows_in_a_watched_folder_is_written_without_being_synced() {
        let began = Instant::now();
        loop {
            let [watched, beside] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let control = written(beside.path());
            let Some(pages) = dirty_pages(&control).filter(|pages| *pages > 1) else {
                return eprintln!("NOT RUN: this kernel or file system does not tell what is in memory alone");
            };
            let _writeback = Writeback::start([watched.path().to_owned()]).unwrap();
            let file = written(watched.path());
            while dirty_pages(&file).unwrap() > pages / 2 {
                assert!(began.elapsed() < PATIENCE, "nothing was written out");
                std::thread::sleep(Duration::from_millis(1));
            }
            if dirty_pages(&control).unwrap() > pages / 2 {
                return;
            }
            // A kernel that has much to write does so by itself, which says nothing.
            assert!(began.elapsed() < PATIENCE, "what nobody watched was written as soon");
        }
    }

    #[test]
    fn what_is_not_there_cannot_be_watched_and_what_was_watched_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Writeback::start([folder.path().join("none")]).is_none());
        drop(Writeback::start([folder.path().to_owned()]).unwrap());
    }
}
