//! Closes memtables that are full, so that fjall writes them to files.
//!
//! fjall does this by itself, but asks for it again with every commit until it is done: under load the requests fill the
//! queue from which its worker takes them, and a worker that has to put something in there waits for itself (fjall-rs/fjall
//! #257, #323). So it is asked here, once, and not on the writer's thread, as old files may have to be deleted.
//!
//! Freeing a memtable, row by row, takes some 40 ms. fjall does it where it drops its last reference, under locks for which the
//! writer's next read or commit waits; so here is one more reference to each, whoever closes it, and the last one is dropped on
//! the thread of its own.

use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ::fjall::{AbstractTree, Keyspace};

use super::background;
use super::fjall::memtable_bytes;
use super::kv::Space;

/// How long after the engine's last reference to a memtable it may stay.
const FREED_WITHIN: Duration = Duration::from_secs(1);

/// A reference that keeps it.
type Memtable = Arc<dyn Any + Send + Sync>;

pub(super) struct Rotation {
    /// Spaces whose memtable to close. `None`: it is being dropped.
    full: Option<SyncSender<Space>>,
    /// Memtables that were closed, to be freed once the engine has let go of them. `None`: the same.
    closed: Option<SyncSender<Memtable>>,
    /// Asked to be closed and not done: once is enough.
    pending: Arc<[AtomicBool; Space::COUNT]>,
    /// Those that were last seen to be written to.
    active: Mutex<[Option<Memtable>; Space::COUNT]>,
    threads: Vec<JoinHandle<()>>,
}

impl Rotation {
    /// `spaces` in the order of [`Space::ALL`].
    pub(super) fn start(spaces: &Arc<[Keyspace]>) -> io::Result<Rotation> {
        let (full, to_close) = sync_channel(Space::COUNT);
        let (closed, to_free) = sync_channel(Space::COUNT);
        let mut rotation = Rotation {
            full: Some(full),
            closed: Some(closed),
            pending: Arc::default(),
            active: Mutex::default(),
            threads: Vec::new(),
        };
        let (spaces, pending) = (spaces.clone(), rotation.pending.clone());
        // Does not give way: it holds locks for which the writer waits.
        rotation.spawn("store-rotation", move || close(&to_close, &spaces, &pending))?;
        rotation.spawn("store-free", move || {
            background::give_way();
            free(&to_free);
        })?;
        Ok(rotation)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }

    /// After a commit that wrote to `space`.
    pub(super) fn look(&self, space: Space, keyspace: &Keyspace) {
        let memtable = keyspace.tree.active_memtable();
        let pending = &self.pending[space.index()];
        let full = memtable.size() >= memtable_bytes(space);
        if full && !pending.swap(true, Ordering::AcqRel) && !given(self.full.as_ref(), space) {
            // No place: the next commit asks again.
            pending.store(false, Ordering::Release);
        }
        let memtable: Memtable = memtable;
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut active[space.index()];
        if !seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &memtable))
            && let Some(closed) = seen.replace(memtable)
        {
            // No place: the engine frees it.
            given(self.closed.as_ref(), closed);
        }
    }
}

/// Whether there was a place for it.
fn given<T>(to: Option<&SyncSender<T>>, what: T) -> bool {
    to.is_some_and(|to| to.try_send(what).is_ok())
}

fn close(full: &Receiver<Space>, spaces: &[Keyspace], pending: &[AtomicBool; Space::COUNT]) {
    for space in full {
        if let Err(error) = spaces[space.index()].rotate_memtable() {
            // The engine's own, larger bound is still there, and its next commit says what is wrong.
            tracing::error!(space = space.name(), %error, "a memtable could not be closed");
        }
        pending[space.index()].store(false, Ordering::Release);
    }
}

fn free(closed: &Receiver<Memtable>) {
    let mut kept: Vec<Memtable> = Vec::new();
    loop {
        let next = if kept.is_empty() {
            closed.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            closed.recv_timeout(FREED_WITHIN)
        };
        match next {
            Ok(memtable) => kept.push(memtable),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        kept.retain(|memtable| Arc::strong_count(memtable) > 1);
    }
}

impl Drop for Rotation {
    /// Waits for its threads, which hold the database open.
    fn drop(&mut self) {
        (self.full, self.closed) = (None, None);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
