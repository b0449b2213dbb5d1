//! The store in this process: an engine on the local disk, one thread that writes, a few that read.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::sync::{SemaphorePermit, oneshot, watch};

use super::archive::{self, ArchiveError, Archived};
use super::figures::{Figures, Tally};
use super::fjall::Fjall;
use super::inbox::{Promise, ReplyTo, Unplaced, Write};
use super::kv::{Key, Kv, View};
use super::ledger::{Ledger, Op, Reply, chat_version};
use super::memory::Memory;
use super::queue::{Job, Queue, Turn, queue};
use super::readers::Readers;
use super::retention::Pass;
use super::types::{
    Accepted, Access, Acknowledged, Acknowledgment, Bearer, Contact, ContactsPage, DeviceState, HistoryMessage,
    HistoryQuery, LogEntry, NewMessage, Relation, Retention, Revocation, Trimmed,
};
use super::writer::{Writer, unobserved};
use super::{LogObserver, Size, Store, StoreError, read};
use crate::limits;
use crate::wire::{ChatId, DeviceId, Eid, MessageId, Sequence, Version};

/// One durable commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Number of operations in it; zero if it holds moved cursors only.
    pub operations: usize,
    /// Number of messages that it newly accepted.
    pub messages: usize,
    /// How long it took.
    pub took: Duration,
}

/// Called for each durable commit on the writer's thread. It must not block.
pub type OnCommit = Box<dyn Fn(Commit) + Send>;

/// Called for what the retention has deleted, as it goes on. It must not block.
pub type OnTrimmed = Box<dyn Fn(Trimmed) + Send + Sync>;

/// Options of an embedded store.
pub struct Options {
    /// Called for each durable commit, for metrics.
    pub on_commit: OnCommit,
    /// Called for each part of a retention pass, for metrics.
    pub on_trimmed: OnTrimmed,
    /// Size of the engine's cache of blocks read from disk, in bytes.
    pub cache_bytes: u64,
    /// How long a call waits for a place in the writer's queue.
    pub queue_wait: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            on_commit: Box::new(unobserved),
            on_trimmed: Box::new(|_| ()),
            cache_bytes: limits::STORE_CACHE_BYTES,
            queue_wait: limits::STORE_QUEUE_WAIT,
        }
    }
}

/// [`Store`] over an embedded engine.
///
/// Writes go through one thread, which commits what is queued as a group. Reads run beside it and see every commit
/// whose caller has been answered.
pub struct Embedded {
    jobs: Queue,
    /// `None` once closed.
    engine: Mutex<Option<Arc<dyn Kv>>>,
    queue_wait: Duration,
    tally: Arc<Tally>,
    readers: Readers,
    /// The message key up to which the retention has come in this process.
    swept: Mutex<Key>,
    on_trimmed: OnTrimmed,
    /// Its sender is dropped when the writer has ended.
    ended: watch::Receiver<()>,
}

impl Embedded {
    /// Opens or creates the store in `dir`, and releases messages that an earlier process accepted but did not release.
    ///
    /// Blocks while the engine replays its journal.
    ///
    /// # Errors
    /// [`StoreError::Engine`] if the engine fails, another process has the store open, a row is corrupt, or the
    /// writer's thread cannot be started.
    pub fn open(dir: &Path, options: Options, observer: Arc<dyn LogObserver>) -> Result<Embedded, StoreError> {
        let engine = Fjall::open(dir, options.cache_bytes)?;
        Embedded::start(Arc::new(engine), options, observer)
    }

    /// Opens a store over rows in memory: for tests and simulations.
    ///
    /// # Errors
    /// [`StoreError::Engine`] if a row is corrupt, a commit fails, or the writer's thread cannot be started.
    pub fn open_memory(
        memory: Memory,
        options: Options,
        observer: Arc<dyn LogObserver>,
    ) -> Result<Embedded, StoreError> {
        Embedded::start(Arc::new(memory), options, observer)
    }

    pub(super) fn start(
        engine: Arc<dyn Kv>,
        options: Options,
        observer: Arc<dyn LogObserver>,
    ) -> Result<Embedded, StoreError> {
        let failed = |error: std::io::Error| StoreError::Engine(format!("starting the writer: {error}"));
        let ledger = Ledger::open(engine.clone(), Instant::now(), |committed| {
            committed.appended.iter().for_each(|(user, entry)| observer.appended(user, entry));
            observer.announced();
        })?;
        let tally = ledger.tally().clone();
        let (jobs, waiting) = queue();
        let (ending, ended) = watch::channel(());
        let writer = Writer { ledger, jobs: waiting, observer, on_commit: options.on_commit };
        let run = move || {
            writer.run();
            drop(ending);
        };
        std::thread::Builder::new().name("store-writer".into()).spawn(run).map_err(failed)?;
        Ok(Embedded {
            jobs,
            engine: Mutex::new(Some(engine)),
            queue_wait: options.queue_wait,
            tally,
            readers: Readers::new(),
            swept: Mutex::default(),
            on_trimmed: options.on_trimmed,
            ended,
        })
    }

    /// Queues an operation in the given turn, and waits for its outcome.
    async fn write(&self, turn: Turn, op: Op) -> Result<Reply, StoreError> {
        let (reply, outcome) = oneshot::channel();
        self.jobs.push(turn, Job { op, reply: ReplyTo::Caller(reply) }, self.queue_wait).await?;
        // The writer drops a reply only when it ends.
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    /// Deletes what the retention has found, and returns what that was. Nobody waits for it, so while the queue is full it waits for
    /// a place.
    async fn delete(&self, op: Op) -> Result<Trimmed, StoreError> {
        let mut deleted = Trimmed::default();
        match &op {
            Op::TrimLog { from, rows, .. } => {
                deleted.entries = rows.last().map_or(0, |up_to| up_to.get() + 1 - from.get());
            }
            Op::TrimChat { gone, .. } => deleted.messages = gone.len() as u64,
            _ => {}
        }
        let place = loop {
            match self.jobs.place(&None, self.queue_wait).await {
                Err(StoreError::Overloaded) => tokio::time::sleep(limits::TRIM_PAUSE).await,
                place => break place?,
            }
        };
        let (reply, outcome) = oneshot::channel();
        self.jobs.put(place, None, Job { op, reply: ReplyTo::Caller(reply) })?;
        outcome.await.map_err(|_| StoreError::Closed)??;
        Ok(deleted)
    }

    fn put(
        &self,
        place: Result<SemaphorePermit<'_>, StoreError>,
        turn: Turn,
        write: Write,
        promise: Promise,
    ) -> Result<(), Unplaced> {
        match place {
            Err(StoreError::Overloaded) => return Err((write, promise)),
            // If the store is closed, or closes meanwhile, dropping the promise answers it.
            Err(_) => {}
            Ok(place) => {
                let _ = self.jobs.put(place, turn, Job { op: write.into_op(), reply: ReplyTo::Inbox(promise) });
            }
        }
        Ok(())
    }

    /// Reads beside the writer for the server itself, on a blocking thread: the read may wait for the disk.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn View) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(None, move |engine| read(&*engine.view())).await
    }

    /// As [`Embedded::read`], for the user who asked for it.
    async fn read_for<T: Send + 'static>(
        &self,
        user: &Eid,
        read: impl FnOnce(&dyn View) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(Some(user), move |engine| read(&*engine.view())).await
    }

    /// As [`Embedded::read`] or [`Embedded::read_for`], with the engine instead of a view.
    async fn ask<T: Send + 'static>(
        &self,
        user: Option<&Eid>,
        ask: impl FnOnce(&dyn Kv) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = self.readers.place(user).await?;
        let engine = self.engine().clone().ok_or(StoreError::Closed)?;
        let task = tokio::task::spawn_blocking(move || {
            let result = ask(&*engine);
            // In this order: once `close` has all places, no reader holds the engine.
            drop(engine);
            drop(place);
            result
        });
        task.await.unwrap_or_else(|error| Err(StoreError::Engine(format!("reading: {error}"))))
    }

    /// Writes an archive of a consistent view while other operations go on. It contains everything that was answered
    /// before, and no commit in part. `now_ms` is Unix milliseconds. `out` may block: it runs on a blocking thread, and
    /// counts as one of the concurrent reads.
    ///
    /// # Errors
    /// [`ArchiveError::Io`] if `out` fails; [`ArchiveError::Store`] if the engine fails or the store is closed. What
    /// was written until then is not a complete archive.
    pub async fn archive(
        &self,
        now_ms: i64,
        mut out: impl std::io::Write + Send + 'static,
    ) -> Result<Archived, ArchiveError> {
        self.read(move |view| Ok(archive::write(view, now_ms, &mut out))).await?
    }

    fn engine(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Kv>>> {
        // A poisoned lock can be used: nothing panics half-way through a change while holding it.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Store for Embedded {
    async fn accept(&self, message: NewMessage, release: bool) -> Result<Accepted, StoreError> {
        let write = Write::Accept(Box::new(message), release);
        self.write(write.turn(), write.into_op()).await?.accepted()
    }

    async fn release(&self, sender: &Eid, message: MessageId) -> Result<(), StoreError> {
        let write = Write::Release(sender.clone(), message);
        self.write(write.turn(), write.into_op()).await.map(drop)
    }

    async fn acknowledge(&self, acknowledgment: Acknowledgment) -> Result<Acknowledged, StoreError> {
        let write = Write::Acknowledge(Box::new(acknowledgment));
        self.write(write.turn(), write.into_op()).await?.acknowledged()
    }

    fn submit(&self, write: Write, promise: Promise) -> Result<(), Unplaced> {
        let turn = write.turn();
        self.put(self.jobs.try_place(&turn), turn, write, promise)
    }

    async fn submit_later(&self, write: Write, promise: Promise) -> Result<(), Unplaced> {
        let turn = write.turn();
        self.put(self.jobs.place(&turn, self.queue_wait).await, turn, write, promise)
    }

    async fn history(&self, query: HistoryQuery) -> Result<Vec<HistoryMessage>, StoreError> {
        let reader = query.reader.clone();
        self.read_for(&reader, move |view| read::history(view, &query)).await
    }

    async fn read_log(&self, user: &Eid, after: Sequence, limit: usize) -> Result<Vec<Arc<LogEntry>>, StoreError> {
        let reader = user.clone();
        self.read_for(user, move |view| read::log(view, &reader, after, limit, limits::TAIL_READ_BYTES)).await
    }

    async fn open_device(&self, user: &Eid, device: &DeviceId, bearer: Bearer) -> Result<DeviceState, StoreError> {
        self.write(Some(user.clone()), Op::OpenDevice(user.clone(), device.clone(), bearer)).await?.device()
    }

    fn advance_cursor(&self, user: &Eid, device: &DeviceId, sequence: Sequence) {
        let op = Op::AdvanceCursor(user.clone(), device.clone(), sequence);
        // The move may be lost: then entries are delivered once more, or the next move makes up for it.
        self.jobs.offer(Some(user.clone()), Job { op, reply: ReplyTo::Nobody });
    }

    async fn put_contact(&self, owner: &Eid, contact: Contact) -> Result<bool, StoreError> {
        self.write(Some(owner.clone()), Op::PutContact(owner.clone(), Box::new(contact))).await?.flag()
    }

    async fn remove_contact(&self, owner: &Eid, subscriber: &Eid) -> Result<bool, StoreError> {
        self.write(Some(owner.clone()), Op::RemoveContact { owner: owner.clone(), subscriber: subscriber.clone() })
            .await?
            .flag()
    }

    async fn set_block(&self, owner: &Eid, subscriber: &Eid, blocked: bool) -> Result<bool, StoreError> {
        self.write(Some(owner.clone()), Op::SetBlock { owner: owner.clone(), subscriber: subscriber.clone(), blocked })
            .await?
            .flag()
    }

    async fn contacts(&self, owner: &Eid, after: Option<&Eid>, bytes: usize) -> Result<ContactsPage, StoreError> {
        let (reader, after) = (owner.clone(), after.cloned());
        self.read_for(owner, move |view| read::contacts(view, &reader, after.as_ref(), bytes)).await
    }

    async fn owners_of(&self, subscriber: &Eid) -> Result<Vec<(Eid, Access)>, StoreError> {
        let reader = subscriber.clone();
        self.read_for(subscriber, move |view| read::owners(view, &reader)).await
    }

    async fn relation(&self, asker: &Eid, owner: &Eid, other: &Eid) -> Result<Relation, StoreError> {
        let (owner, other) = (owner.clone(), other.clone());
        self.read_for(asker, move |view| read::relation(view, &owner, &other)).await
    }

    async fn revoke(&self, revocation: Revocation, forget: Option<DeviceId>) -> Result<(), StoreError> {
        let turn = Some(revocation.target.user().clone());
        self.write(turn, Op::Revoke(revocation, forget)).await.map(drop)
    }

    async fn revocations(&self) -> Result<Vec<Revocation>, StoreError> {
        self.read(read::revocations).await
    }

    async fn trim(&self, retention: Retention, now_ms: i64) -> Result<Trimmed, StoreError> {
        // Taken out: after a pass that fails, the next one starts with the first message again, because this pass may
        // have trimmed entries of messages that it did not come to.
        let swept = std::mem::take(&mut *self.swept.lock().unwrap_or_else(PoisonError::into_inner));
        let (mut pass, mut trimmed) = (Pass::new(retention, now_ms, swept), Trimmed::default());
        loop {
            let (after, ops) = self.read(move |view| pass.step(view).map(|ops| (pass, ops))).await?;
            pass = after;
            let Some(ops) = ops else { break };
            // Some together, so that they share commits; more would keep the server's other operations from their turn.
            let mut ops = ops.into_iter().map(|op| self.delete(op)).peekable();
            while ops.peek().is_some() {
                for deleted in try_join_all(ops.by_ref().take(limits::STORE_TURN_MAX)).await? {
                    (self.on_trimmed)(deleted);
                    trimmed.entries += deleted.entries;
                    trimmed.messages += deleted.messages;
                }
            }
            tokio::time::sleep(limits::TRIM_PAUSE).await;
        }
        trimmed.unreadable = pass.unreadable();
        *self.swept.lock().unwrap_or_else(PoisonError::into_inner) = pass.swept();
        Ok(trimmed)
    }

    async fn chat_version(&self, chat: ChatId) -> Result<Version, StoreError> {
        self.read(move |view| chat_version(view, chat)).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.write(None, Op::Check).await.map(drop)
    }

    fn figures(&self) -> Figures {
        Figures {
            writes_waiting: self.jobs.len(),
            reads: self.readers.asked(),
            unreleased: self.tally.unreleased.load(Ordering::Relaxed),
            log_ends: self.tally.log_ends.lookups(),
            chat_ends: self.tally.chat_ends.lookups(),
            messages: self.tally.messages.lookups(),
            lists: self.tally.lists.lookups(),
        }
    }

    async fn size(&self) -> Result<Size, StoreError> {
        self.ask(None, |engine| engine.size()).await
    }

    async fn close(&self) {
        self.jobs.close();
        // `changed` fails once the writer has ended.
        while self.ended.clone().changed().await.is_ok() {}
        // Held to the end: a read that waits for its place is refused, and gets none in between.
        let _places = self.readers.all().await;
        *self.engine() = None;
        self.readers.close();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::store::Disk;
    use crate::store::kv::Batch;
    use crate::store::testing::Nobody;

    /// An engine that notes how many places are free when it goes.
    #[derive(Default)]
    struct Goes {
        rows: Memory,
        places: Mutex<Option<Arc<Semaphore>>>,
        free: Arc<Mutex<Option<usize>>>,
    }

    impl Kv for Goes {
        fn view(&self) -> Box<dyn View> {
            self.rows.view()
        }

        fn commit(&self, batch: Batch) -> Result<(), StoreError> {
            self.rows.commit(batch)
        }

        fn size(&self) -> Result<Size, StoreError> {
            self.rows.size()
        }

        fn disk(&self) -> Option<Disk> {
            self.rows.disk()
        }
    }

    impl Drop for Goes {
        fn drop(&mut self) {
            *self.free.lock().unwrap() = self.places.lock().unwrap().as_ref().map(|places| places.available_permits());
        }
    }

    #[tokio::test]
    async fn no_read_gets_a_place_while_the_engine_goes() {
        let engine = Arc::new(Goes::default());
        let free = engine.free.clone();
        let store = Embedded::start(engine.clone(), Options::default(), Arc::new(Nobody)).unwrap();
        *engine.places.lock().unwrap() = Some(store.readers.places());
        drop(engine);
        assert!(store.revocations().await.unwrap().is_empty());
        store.close().await;
        assert_eq!(*free.lock().unwrap(), Some(0));
        assert_eq!(store.revocations().await.unwrap_err(), StoreError::Closed);
    }
}
