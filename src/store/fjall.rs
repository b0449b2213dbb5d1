//! The engine on disk: fjall 3, a log-structured tree with one journal for all spaces.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable, Snapshot};

use super::background;
#[cfg(target_os = "linux")]
use super::files::Files;
use super::kv::{Batch, Kv, Order, Row, Slice, Space, Span, View};
use super::marker::{self, Found};
use super::rotation::{self, Rotation};
use super::seal::{self, Seal};
use super::torn::{self, Outcome};
use super::{Disk, Lookups, Size, StoreError};
use crate::limits;

/// The space with the seals, which never has a row for them: each is the deletion of one.
const SEALS: Space = Space::Probe;
/// Estimated memory of a row in a memtable besides its key and value, in bytes.
const ROW_OVERHEAD_BYTES: usize = 64;
/// The folder of the table files within a space's own folder.
#[cfg(target_os = "linux")]
const TABLES_FOLDER: &str = "tables";

pub(crate) struct Fjall {
    /// Dropped first: what it gives the engine once the database is gone is never done, and keeps the engine's lock for ever.
    rotation: Rotation,
    dir: PathBuf,
    database: Database,
    /// In the order of [`Space::ALL`].
    spaces: Arc<[Keyspace]>,
    #[cfg(target_os = "linux")]
    _files: Option<Files>,
    seal: Seal,
    /// The snapshot of the last complete commit. A snapshot taken while a commit is being applied could show parts of
    /// it: when the engine has written a file, it makes everything visible that has a sequence number by then.
    newest: Mutex<Snapshot>,
    /// Bytes of all rows that were written since it was opened.
    written: Arc<AtomicU64>,
}

impl Fjall {
    /// Opens or creates the database in `dir` and replays its journal. Fails if another process has it open.
    pub(crate) fn open(dir: &Path, cache_bytes: u64) -> Result<Fjall, StoreError> {
        let told = |why: String| StoreError::Engine(format!("opening {}: {why}", dir.display()));
        let failed = |error| match error {
            ::fjall::Error::Locked => StoreError::Engine("another process has it open".to_owned()),
            error => told(error.to_string()),
        };
        let mut found = marker::check(dir).map_err(told)?;
        if found == Found::Unfinished {
            marker::clear_unfinished(dir).map_err(|error| told(error.to_string()))?;
            found = marker::check(dir).map_err(told)?;
        }
        let known = seal::read(dir).map_err(|error| told(error.to_string()))?;
        let open = || {
            let builder = Database::builder(dir)
                .cache_size(cache_bytes)
                .max_cached_files(Some(limits::STORE_TABLES_OPEN_MAX))
                .max_journaling_size(limits::STORE_JOURNAL_BYTES_MAX)
                .worker_threads(limits::STORE_WORKERS);
            gives_way(|| builder.open())
        };
        if found != Found::Nothing {
            match torn::put_aside(dir, known.as_ref()).map_err(|error| told(error.to_string()))? {
                Outcome::PutAside { file, bytes } => tracing::warn!(
                    file = %file.display(), bytes,
                    "the last commit is torn and was put aside: nobody was told of it, unless the disk has lost a part of it since"
                ),
                Outcome::CutOff { file, bytes } => tracing::warn!(
                    file = %file.display(), bytes,
                    "the last commit has failed and was cut off: the disk is too full for a copy"
                ),
                Outcome::Damaged { file, at } => {
                    return Err(told(format!("{} is damaged at byte {at}, and more follows", file.display())));
                }
                Outcome::Sound => {}
            }
        }
        let database = open().map_err(failed)?;
        let spaces = Space::ALL
            .iter()
            .map(|space| database.keyspace(space.name(), || options(*space)))
            .collect::<Result<Arc<[Keyspace]>, _>>()
            .map_err(failed)?;
        marker::write(dir).map_err(|error| told(error.to_string()))?;
        let seal = match known {
            Some(seal) => seal,
            None => seal::make(dir).map_err(|error| told(error.to_string()))?,
        };
        if found == Found::Nothing {
            tracing::info!(store = %dir.display(), "a new store was made");
        }
        let rotation =
            Rotation::start(dir, &spaces).map_err(|error| StoreError::Engine(format!("rotation: {error}")))?;
        let newest = Mutex::new(database.snapshot());
        Ok(Fjall {
            rotation,
            dir: dir.to_owned(),
            database,
            #[cfg(target_os = "linux")]
            _files: Files::watch(dir, spaces.iter().map(|space| space.path().join(TABLES_FOLDER))),
            spaces,
            seal,
            newest,
            written: Arc::default(),
        })
    }

    /// Waits while the engine is behind with the files of these spaces. The engine's commit would wait as well, but for
    /// ever if the engine has failed meanwhile.
    fn wait_for_files(&self, written: &[bool; Space::COUNT]) -> Result<(), StoreError> {
        let spaces = || Space::ALL.into_iter().filter(|space| written[space.index()]);
        while spaces().any(|space| rotation::is_behind(space, &self.spaces[space.index()])) {
            // Fails if the engine has failed.
            self.database.persist(PersistMode::Buffer).map_err(failed)?;
            std::thread::sleep(limits::STORE_FILES_LOOKED_AT_EVERY);
        }
        Ok(())
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut writes = OwnedWriteBatch::with_capacity(self.database.clone(), 1 + batch.len())
            .durability(Some(PersistMode::SyncData));
        writes.remove(&self.spaces[SEALS.index()], self.seal);
        let mut written = [false; Space::COUNT];
        written[SEALS.index()] = true;
        let mut bytes = 0;
        for (space, key, value) in batch {
            bytes += ROW_OVERHEAD_BYTES + key.len() + value.as_ref().map_or(0, |value| value.len());
            written[space.index()] = true;
            let keyspace = &self.spaces[space.index()];
            match value {
                Some(value) => writes.insert(keyspace, key, value),
                None => writes.remove(keyspace, key),
            }
        }
        self.wait_for_files(&written)?;
        writes.commit().map_err(failed)?;
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        // Drops the former snapshot outside the lock.
        let snapshot = self.database.snapshot();
        let former = std::mem::replace(&mut *self.newest(), snapshot);
        drop(former);
        let spaces = Space::ALL.into_iter().filter(|space| written[space.index()]);
        spaces.for_each(|space| self.rotation.look(space, &self.spaces[space.index()]));
        Ok(())
    }

    fn newest(&self) -> MutexGuard<'_, Snapshot> {
        // A poisoned lock can be used: nothing panics half-way through a change while holding it.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the database on a thread of low priority, which the engine's worker threads inherit: they write and merge
/// files, and that takes a core for a tenth of a second at a time.
fn gives_way(open: impl FnOnce() -> ::fjall::Result<Database> + Send) -> ::fjall::Result<Database> {
    let run = || {
        background::give_way();
        open()
    };
    std::thread::scope(|scope| match std::thread::Builder::new().name("store-open".into()).spawn_scoped(scope, run) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(error) => Err(error.into()),
    })
}

/// Size of a space's memtable, in bytes, at which it is written to a file.
pub(super) fn memtable_bytes(space: Space) -> u64 {
    match space {
        Space::Messages | Space::Chats | Space::Locals | Space::Logs => limits::STORE_MEMTABLE_BYTES_MAX,
        // Small or short-lived rows: a row and its deletion mostly meet in one memtable.
        _ => limits::STORE_MEMTABLE_BYTES_MAX / 4,
    }
}

fn options(space: Space) -> KeyspaceCreateOptions {
    // Point reads in these spaces nearly always find their key, so a filter in the last level would save nothing.
    let hits = matches!(space, Space::Messages | Space::Chats | Space::Logs);
    // The engine's own bound is only a backstop: [`Rotation`] closes a memtable earlier.
    KeyspaceCreateOptions::default().max_memtable_size(4 * memtable_bytes(space)).expect_point_read_hits(hits)
}

fn failed(error: ::fjall::Error) -> StoreError {
    StoreError::Engine(error.to_string())
}

impl Kv for Fjall {
    fn view(&self) -> Box<dyn View> {
        Box::new(FjallView {
            snapshot: self.newest().clone(),
            spaces: self.spaces.clone(),
            written: self.written.clone(),
        })
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.write(batch).inspect_err(|_| torn::note_failure(&self.dir))
    }

    fn size(&self) -> Result<Size, StoreError> {
        let mut blocks = Lookups::default();
        for space in &*self.spaces {
            blocks.hits += space.metrics().block_load_cached_count() as u64;
            blocks.misses += space.metrics().block_load_io_count() as u64;
        }
        Ok(Size {
            disk_bytes: self.database.disk_space().map_err(failed)?,
            journal_bytes: self.database.journal_disk_space().map_err(failed)?,
            blocks,
        })
    }

    fn disk(&self) -> Option<Disk> {
        Disk::of(&self.dir).ok()
    }

    /// The engine deletes what a merge has replaced when it closes the next memtable, of whatever space; this is the smallest.
    fn make_room(&self) {
        self.rotation.close_early(SEALS);
    }
}

/// A snapshot from between two commits: fjall's plain reads would show some rows of a commit that is being applied.
///
/// A returned slice may be part of a larger block and keeps all of it in memory. Rows are therefore decoded at once,
/// not kept.
struct FjallView {
    snapshot: Snapshot,
    spaces: Arc<[Keyspace]>,
    written: Arc<AtomicU64>,
}

impl View for FjallView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        self.snapshot.get(&self.spaces[space.index()], key).map_err(failed)
    }

    fn range(&self, space: Space, span: &Span, order: Order, limit: usize) -> Result<Vec<Row>, StoreError> {
        if span.from >= span.to {
            return Ok(Vec::new());
        }
        let mut rows = self.snapshot.range(&self.spaces[space.index()], span.from.as_slice()..span.to.as_slice());
        let mut taken = Vec::new();
        while taken.len() < limit {
            let row = match order {
                Order::Ascending => rows.next(),
                Order::Descending => rows.next_back(),
            };
            let Some(row) = row else { break };
            taken.push(row.into_inner().map_err(failed)?);
        }
        Ok(taken)
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::time::{Duration, Instant};

    use ::fjall::AbstractTree;

    use super::*;
    #[cfg(target_os = "linux")]
    use crate::store::testing::{Pages, beside_the_build};

    /// Far longer than it takes to write some tens of MiB.
    const PATIENCE: Duration = Duration::from_secs(60);

    impl Fjall {
        /// Closes all memtables, as if they were full.
        pub(crate) fn close_memtables(&self) {
            for space in &*self.spaces {
                space.rotate_memtable().unwrap();
            }
        }

        /// Closes all memtables, and waits until they are files.
        pub(crate) fn write_files(&self) {
            for space in &*self.spaces {
                space.rotate_memtable_and_wait().unwrap();
            }
        }
    }

    #[test]
    fn a_view_stays_as_it_was_while_commits_are_applied_and_files_written() {
        const COMMITS: u32 = 1500;
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), 1024 * 1024).unwrap();
        let done = AtomicU32::new(0);
        let key = |n: u32| n.to_be_bytes();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..=COMMITS {
                    let row = |space| (space, Slice::from(key(n)), Some(Slice::from("row")));
                    engine.commit([Space::Messages, Space::Floors, Space::Logs].map(row).to_vec()).unwrap();
                    done.store(n, Ordering::Release);
                }
            });
            scope.spawn(|| {
                while done.load(Ordering::Acquire) < COMMITS {
                    engine.spaces[Space::Floors.index()].rotate_memtable().unwrap();
                }
            });
            let look = |view: &dyn View, n| {
                [Space::Messages, Space::Logs].map(|space| view.get(space, &key(n)).unwrap().is_some())
            };
            while done.load(Ordering::Acquire) < COMMITS {
                let (n, mut views) = (done.load(Ordering::Acquire) + 1, Vec::new());
                while done.load(Ordering::Acquire) < n.min(COMMITS) {
                    let view = engine.view();
                    let first = look(&*view, n);
                    views.push((view, first));
                }
                for (view, first) in views {
                    assert_eq!(first[0], first[1], "commit {n} shows in part");
                    assert_eq!(look(&*view, n), first, "commit {n} came into a view that was there before");
                }
            }
        });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_committed_is_on_the_disk() {
        let folder = beside_the_build();
        let dir = folder.path().join("store");
        let engine = Fjall::open(&dir, 1024 * 1024).unwrap();
        let journal = std::fs::File::open(torn::journals(&dir).unwrap().pop_last().unwrap().1).unwrap();
        let control = folder.path().join("control");
        for n in 0..50u32 {
            let row = (Space::Logs, Slice::from(n.to_be_bytes()), Some(Slice::from(vec![7; 16 * 1024])));
            engine.commit(vec![row]).unwrap();
            let left = Pages::of(&journal).map(|pages| pages.dirty);
            std::fs::write(&control, [7; 16 * 1024]).unwrap();
            let unsynced = Pages::of(&std::fs::File::open(&control).unwrap()).map_or(0, |pages| pages.dirty);
            if unsynced == 0 {
                return crate::skip::skip("this kernel or file system does not tell what is in memory alone");
            }
            assert_eq!(left, Some(0), "pages of the journal are in memory alone");
        }
    }

    #[test]
    fn full_memtables_become_files_while_more_is_written_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), 1024 * 1024).unwrap();
        let (logs, bytes) = (&engine.spaces[Space::Logs.index()], memtable_bytes(Space::Logs));
        let value = Slice::from(vec![7; 8 * 1024]);
        let (began, mut rows) = (Instant::now(), 0u32);
        let first = Arc::downgrade(&logs.tree.active_memtable());
        let is_freed = || first.upgrade().is_none();
        while rows as u64 * value.len() as u64 <= 2 * bytes || logs.tree.table_count() < 2 || !is_freed() {
            assert!(began.elapsed() < PATIENCE, "{rows} rows, {} files", logs.tree.table_count());
            let row = |n: u32| (Space::Logs, Slice::from(n.to_be_bytes()), Some(value.clone()));
            engine.commit((rows..rows + 64).map(row).collect()).unwrap();
            rows += 64;
            // Still below the engine's own bound, so it was not the engine that closed the memtable.
            assert!(logs.tree.active_memtable().size() < 4 * bytes);
        }
        #[cfg(target_os = "linux")]
        assert!(logs.path().join(TABLES_FOLDER).read_dir().unwrap().next().is_some(), "that is where they grow");
        drop(engine);
        let engine = Fjall::open(folder.path(), 1024 * 1024).unwrap();
        let view = engine.view();
        for n in (0..rows).step_by(97).chain([rows - 1]) {
            assert_eq!(view.get(Space::Logs, &n.to_be_bytes()).unwrap().as_ref(), Some(&value), "row {n} of {rows}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_merge_has_replaced_is_deleted_when_room_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), 1024 * 1024).unwrap();
        let logs = &engine.spaces[Space::Logs.index()];
        let tables = || logs.path().join(TABLES_FOLDER).read_dir().unwrap().count();
        let mut random = crate::random::Random::new(1);
        let began = Instant::now();
        // Until a merge is the last thing that the engine has done: it has replaced tables, and their files are still there. While it
        // goes on there is one more, its own.
        while tables() <= logs.tree.table_count() + 1 {
            assert!(began.elapsed() < PATIENCE, "{} files of {} tables", tables(), logs.tree.table_count());
            let noise: Vec<u8> = std::iter::repeat_with(|| random.number() as u8).take(64 * 1024).collect();
            engine.commit(vec![(Space::Logs, Slice::from([7]), Some(Slice::from(noise)))]).unwrap();
            logs.rotate_memtable_and_wait().unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        // A view of before the merge may read the replaced tables, and the engine has one of the last commit.
        engine.commit(vec![(Space::Floors, Slice::from([7]), Some(Slice::from([7])))]).unwrap();
        engine.make_room();
        let began = Instant::now();
        while tables() > logs.tree.table_count() {
            assert!(began.elapsed() < PATIENCE, "{} files of {} tables", tables(), logs.tree.table_count());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_store_that_has_lost_the_journal_that_the_engine_has_begun_does_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("store");
        let engine = Fjall::open(&dir, 1024 * 1024).unwrap();
        let mut random = crate::random::Random::new(1);
        let noise: Vec<u8> = std::iter::repeat_with(|| random.number() as u8).take(64 * 1024).collect();
        let (value, began, mut rows) = (Slice::from(noise), Instant::now(), 0u32);
        // The engine begins another one when it writes a memtable to a file and 64 MB are in the journal.
        while !std::fs::read_to_string(dir.join("journal")).unwrap().starts_with("1.") {
            assert!(began.elapsed() < PATIENCE, "{rows} rows");
            let row = |n: u32| (Space::Logs, Slice::from(n.to_be_bytes()), Some(value.clone()));
            engine.commit((rows..rows + 16).map(row).collect()).unwrap();
            rows += 16;
        }
        drop(engine);
        let journal = torn::journals(&dir).unwrap().pop_last().unwrap().1;
        let away = folder.path().join("away");
        std::fs::rename(&journal, &away).unwrap();
        let Err(error) = Fjall::open(&dir, 1024 * 1024) else { panic!("it opens without {journal:?}") };
        assert!(error.to_string().contains(&format!("the journal {} is missing", journal.display())), "{error}");
        std::fs::rename(&away, &journal).unwrap();
        let engine = Fjall::open(&dir, 1024 * 1024).unwrap();
        let last = (rows - 1).to_be_bytes();
        assert_eq!(engine.view().get(Space::Logs, &last).unwrap().as_ref(), Some(&value));
    }
}
