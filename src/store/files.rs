//! Watches the engine's files, so that commits do not wait while such a file is written to disk or freed.
//!
//! **Written while they grow.** lsm-tree writes a file of some 16 or 64 MiB into the page cache and syncs it once, at
//! its end. The commits' fdatasyncs wait behind that sync, and after a merge every insert does, too, because the sync
//! runs under a lock. If the write-back is started while the file grows, little is left to write at the end.
//!
//! **Freed in steps** ([`super::shrink`]), as each file is kept open here. The thread that deletes a file, the writer
//! of commits or the engine under its lock, does not wait for its blocks to be freed either.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::background;
use super::shrink::{Shrinker, is_deleted};
use crate::limits;

/// Extension of the journals. No other file in their folder is opened, least of all the engine's lock.
const JOURNAL: &str = "jnl";

/// Watches folders, and the files that are created and deleted in them.
pub(super) struct Files {
    inotify: Arc<OwnedFd>,
    watches: Vec<i32>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Files {
    /// Starts watching the journals' folder and the tables' folders, which must exist. Returns `None` and logs a
    /// warning if the system refuses, for example for lack of inotify instances; commits then wait for files as they
    /// would without this.
    pub(super) fn watch(journals: &Path, tables: impl IntoIterator<Item = PathBuf>) -> Option<Files> {
        Files::start(journals, tables).inspect_err(given_up).ok()
    }

    fn start(journals: &Path, tables: impl IntoIterator<Item = PathBuf>) -> io::Result<Files> {
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC)?);
        let comes_and_goes = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        let mut folders = HashMap::new();
        // No MODIFY events: journals grow with each commit, which syncs them.
        let watch = inotify::add_watch(&inotify, journals, comes_and_goes)?;
        folders.insert(watch, Folder { path: journals.to_owned(), holds: Holds::Journals });
        for path in tables {
            let watch = inotify::add_watch(&inotify, &path, comes_and_goes | WatchFlags::MODIFY)?;
            folders.insert(watch, Folder { path, holds: Holds::Tables });
        }
        let watches = folders.keys().copied().collect();
        let mut care = Care { folders, open: HashMap::new(), shrinker: Shrinker::start()? };
        care.open_all()?;
        let ends = Arc::new(AtomicBool::new(false));
        let run = {
            let (inotify, ends) = (inotify.clone(), ends.clone());
            move || {
                background::give_way();
                if let Err(error) = care.run(&inotify, &ends) {
                    given_up(&error);
                }
            }
        };
        let thread = std::thread::Builder::new().name("store-files".into()).spawn(run)?;
        Ok(Files { inotify, watches, ends, thread: Some(thread) })
    }
}

fn given_up(error: &io::Error) {
    tracing::warn!(%error, "the store's files are written out and freed at once: commits wait for it");
}

struct Folder {
    path: PathBuf,
    holds: Holds,
}

#[derive(PartialEq)]
enum Holds {
    Tables,
    /// Journals, besides other files of the engine.
    Journals,
}

impl Folder {
    /// The path of the file with this name, if it is to be watched.
    fn file(&self, name: &OsStr) -> Option<PathBuf> {
        let path = self.path.join(name);
        let is_wanted = self.holds == Holds::Tables || path.extension() == Some(OsStr::new(JOURNAL));
        is_wanted.then_some(path)
    }
}

/// The state of the watching thread.
struct Care {
    folders: HashMap<i32, Folder>,
    /// At most [`limits::STORE_FILES_OPEN_MAX`] files. Further ones are freed at once when they are deleted.
    open: HashMap<PathBuf, File>,
    shrinker: Shrinker,
}

impl Care {
    /// Opens the files that exist already.
    fn open_all(&mut self) -> io::Result<()> {
        let mut files = Vec::new();
        for folder in self.folders.values() {
            for entry in folder.path.read_dir()? {
                files.extend(folder.file(&entry?.file_name()));
            }
        }
        files.into_iter().for_each(|file| self.keep_open(file));
        Ok(())
    }

    fn keep_open(&mut self, path: PathBuf) {
        if self.open.len() >= limits::STORE_FILES_OPEN_MAX || self.open.contains_key(&path) {
            return;
        }
        match OpenOptions::new().write(true).open(&path) {
            Ok(file) => drop(self.open.insert(path, file)),
            // The file is gone already, or is a folder.
            Err(error) => tracing::debug!(file = %path.display(), %error, "not kept open"),
        }
    }

    fn run(mut self, inotify: &OwnedFd, ends: &AtomicBool) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(inotify, &mut buffer);
        let mut grown: Vec<PathBuf> = Vec::new();
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let what = event.events();
            // A removed watch means the end. Its event may be lost if too many events are queued, but not all events
            // are, and `ends` is checked with each.
            if what.contains(ReadFlags::IGNORED) || ends.load(Ordering::Acquire) {
                return Ok(());
            }
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                self.look_for_deleted();
            } else if let (Some(folder), Some(name)) = (self.folders.get(&event.wd()), name)
                && let Some(file) = folder.file(name)
            {
                if what.contains(ReadFlags::DELETE) {
                    self.open.remove(&file).into_iter().for_each(|file| self.shrinker.free(file));
                } else {
                    if what.contains(ReadFlags::MODIFY) && !grown.contains(&file) {
                        grown.push(file.clone());
                    }
                    self.keep_open(file);
                }
            }
            if events.is_buffer_empty() {
                for file in grown.drain(..) {
                    if let Err(error) = self.write_out(&file) {
                        tracing::debug!(file = %file.display(), %error, "not written out yet");
                    }
                }
                std::thread::sleep(limits::STORE_FILES_PAUSE);
            }
        }
    }

    /// Events were lost: finds deleted files by their missing names. They would keep their disk space for ever
    /// otherwise.
    fn look_for_deleted(&mut self) {
        for (_, file) in self.open.extract_if(|_, file| is_deleted(file)) {
            self.shrinker.free(file);
        }
    }

    /// Starts to write the file's dirty pages to disk. Guarantees nothing: durability is left to the engine's own sync.
    #[allow(unsafe_code)]
    fn write_out(&self, path: &Path) -> io::Result<()> {
        let (opened, file);
        match self.open.get(path) {
            Some(kept) => file = kept,
            None => {
                opened = File::open(path)?;
                file = &opened;
            }
        }
        // SAFETY: the call takes no pointers, and the descriptor is open until its end. Offset 0 with 0 bytes means the
        // whole file.
        match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        // Each removal wakes the thread.
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
    use crate::store::testing::{Pages, beside_the_build};

    const PATIENCE: Duration = Duration::from_secs(60);
    const PIECE: usize = 64 * 1024;
    const PIECES: usize = 64;

    fn dirty_pages(file: &File) -> Option<u64> {
        Pages::of(file).map(|pages| pages.dirty)
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
            let [watched, beside] = [beside_the_build(), beside_the_build()];
            let control = written(beside.path());
            let Some(pages) = dirty_pages(&control).filter(|pages| *pages > 1) else {
                return crate::skip::skip("this kernel or file system does not tell what is in memory alone");
            };
            let _files = Files::watch(beside.path(), [watched.path().to_owned()]).unwrap();
            let file = written(watched.path());
            while dirty_pages(&file).unwrap() > pages / 2 {
                assert!(began.elapsed() < PATIENCE, "nothing was written out");
                std::thread::sleep(Duration::from_millis(1));
            }
            if dirty_pages(&control).unwrap() > pages / 2 {
                return;
            }
            // The kernel may have written both files by itself, which proves nothing: repeat.
            assert!(began.elapsed() < PATIENCE, "what nobody watched was written as soon");
        }
    }

    /// Deletes a file once it is kept open, and waits until it is truncated.
    fn delete(path: &Path) {
        let began = Instant::now();
        let is_open = || {
            let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
            let mut files = descriptors.filter_map(|entry| entry.ok()?.path().read_link().ok());
            files.any(|file| file == path)
        };
        while !is_open() {
            assert!(began.elapsed() < PATIENCE, "{} is not kept open", path.display());
            std::thread::sleep(Duration::from_millis(1));
        }
        let look = File::open(path).unwrap();
        let whole = length(&look);
        std::fs::remove_file(path).unwrap();
        while length(&look) == whole {
            assert!(began.elapsed() < PATIENCE, "{} is not cut shorter", path.display());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn length(file: &File) -> u64 {
        file.metadata().unwrap().len()
    }

    #[test]
    fn files_that_were_there_and_that_came_are_freed_bit_by_bit() {
        let [journals, tables] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let long = |path: &Path| File::create_new(path).unwrap().set_len(64 * limits::STORE_FREED_BYTES).unwrap();
        let before = tables.path().join("before");
        // Not kept open: it is the engine's alone.
        let other = journals.path().join("lock");
        [&before, &other].into_iter().for_each(|path| long(path));
        let _files = Files::watch(journals.path(), [tables.path().to_owned()]).unwrap();
        for path in [tables.path().join("after"), journals.path().join("7.jnl")] {
            long(&path);
            delete(&path);
        }
        delete(&before);
        let look = File::open(&other).unwrap();
        std::fs::remove_file(&other).unwrap();
        let last = journals.path().join("8.jnl");
        long(&last);
        delete(&last);
        assert_eq!(length(&look), 64 * limits::STORE_FREED_BYTES);
    }

    #[test]
    fn no_more_are_kept_open_than_there_may_be_and_what_is_gone_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = |number: usize| folder.path().join(number.to_string());
        for number in 0..limits::STORE_FILES_OPEN_MAX + 10 {
            File::create_new(path(number)).unwrap();
        }
        let tables = Folder { path: folder.path().to_owned(), holds: Holds::Tables };
        let mut care =
            Care { folders: HashMap::from([(0, tables)]), open: HashMap::new(), shrinker: Shrinker::start().unwrap() };
        care.open_all().unwrap();
        assert_eq!(care.open.len(), limits::STORE_FILES_OPEN_MAX);
        let gone = care.open.keys().take(3).cloned().collect::<Vec<_>>();
        gone.iter().for_each(|path| std::fs::remove_file(path).unwrap());
        care.look_for_deleted();
        assert_eq!(care.open.len(), limits::STORE_FILES_OPEN_MAX - gone.len());
        assert!(gone.iter().all(|path| !care.open.contains_key(path)));
    }

    #[test]
    fn what_is_not_there_cannot_be_watched_and_what_was_watched_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Files::watch(folder.path(), [folder.path().join("none")]).is_none());
        assert!(Files::watch(&folder.path().join("none"), []).is_none());
        drop(Files::watch(folder.path(), []).unwrap());
    }
}
