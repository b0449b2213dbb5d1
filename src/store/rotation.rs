//! Closes full memtables, so that fjall writes them to files.
//!
//! fjall does this by itself, but requests it again with every commit until it is done. Under load the requests fill
//! the queue of fjall's worker, and a worker that has to put something into its own full queue waits for itself
//! (fjall-rs/fjall #257, #323). This module therefore closes a memtable once, and not on the writer's thread, as old
//! files may have to be deleted.
//!
//! Freeing a memtable, row by row, takes some 40 ms. fjall frees it where it drops its last reference, under locks for
//! which the writer's next read or commit waits. This module therefore holds one more reference to each memtable,
//! whether it or fjall closes it, and drops that reference last, on a thread of its own.
//!
//! fjall begins another journal only before it writes a memtable to a file, so that thread also notes the newest journal.

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use ::fjall::{AbstractTree, Keyspace};

use super::background;
use super::fjall::memtable_bytes;
use super::kv::Space;
use super::marker;
use crate::limits::{MEMTABLE_CLOSED_EARLY_EVERY, MEMTABLE_FREED_WITHIN, MEMTABLES_CLOSED_MAX};

/// A reference that keeps a memtable in memory.
type Memtable = Arc<dyn Any + Send + Sync>;

pub(super) struct Rotation {
    /// Spaces whose memtable is to be closed. `None` while `Rotation` is being dropped.
    full: Option<SyncSender<Space>>,
    /// Closed memtables, to be freed once the engine has dropped its references. `None` while `Rotation` is being
    /// dropped.
    closed: Option<SyncSender<Memtable>>,
    /// Spaces whose memtable is requested to be closed and is not yet: one request is enough.
    pending: Arc<[AtomicBool; Space::COUNT]>,
    /// When a memtable was last closed early.
    early: Mutex<Option<Instant>>,
    /// The active memtable of each space, as last seen.
    active: Mutex<[Option<Memtable>; Space::COUNT]>,
    threads: Vec<JoinHandle<()>>,
}

impl Rotation {
    /// `spaces` in the order of [`Space::ALL`]; `dir` is where the journals are.
    pub(super) fn start(dir: &Path, spaces: &Arc<[Keyspace]>) -> io::Result<Rotation> {
        let (full, to_close) = sync_channel(Space::COUNT);
        let (closed, to_free) = sync_channel(Space::COUNT);
        let mut rotation = Rotation {
            full: Some(full),
            closed: Some(closed),
            pending: Arc::default(),
            early: Mutex::default(),
            active: Mutex::default(),
            threads: Vec::new(),
        };
        let (locked, spaces, pending) = (spaces.clone(), spaces.clone(), rotation.pending.clone());
        // Keeps its normal priority, as it holds locks for which the writer waits.
        rotation.spawn("store-rotation", move || close(&to_close, &spaces, &pending))?;
        // A damaged note is written anew: what was opened with it had no list of its folders.
        let (dir, mut noted) = (dir.to_owned(), marker::noted_newest(dir).unwrap_or_default());
        // With the engine's lock, which goes with its last space: another process would note its own.
        let mut note = move || {
            let _locked = &locked;
            if let Err(error) = marker::note_newest(&dir, &mut noted) {
                tracing::warn!(%error, "the newest journal could not be noted: a copy of the store without it would open");
            }
        };
        note();
        rotation.spawn("store-free", move || {
            background::give_way();
            free(&to_free, note);
        })?;
        Ok(rotation)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }

    /// Checks the memtable of `space` after a commit that wrote to it: requests to close it if it is full, and has the
    /// one that it has replaced freed.
    pub(super) fn look(&self, space: Space, keyspace: &Keyspace) {
        let memtable = keyspace.tree.active_memtable();
        if memtable.size() >= memtable_bytes(space) {
            self.request(space);
        }
        let memtable: Memtable = memtable;
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut active[space.index()];
        if !seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &memtable))
            && let Some(closed) = seen.replace(memtable)
        {
            // If the channel is full, the engine frees the memtable.
            given(self.closed.as_ref(), closed);
        }
    }

    /// Closes the memtable of a space though it is not full, unless that was done a moment ago.
    pub(super) fn close_early(&self, space: Space) {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        if early.is_none_or(|last| last.elapsed() >= MEMTABLE_CLOSED_EARLY_EVERY) {
            *early = Some(Instant::now());
            self.request(space);
        }
    }

    fn request(&self, space: Space) {
        let pending = &self.pending[space.index()];
        if !pending.swap(true, Ordering::AcqRel) && !given(self.full.as_ref(), space) {
            // The channel is full: the next commit asks again.
            pending.store(false, Ordering::Release);
        }
    }
}

/// Whether a commit to the space has to wait until the engine has written some file.
pub(super) fn is_behind(space: Space, keyspace: &Keyspace) -> bool {
    keyspace.tree.sealed_memtable_count() >= MEMTABLES_CLOSED_MAX
        && keyspace.tree.active_memtable().size() >= 2 * memtable_bytes(space)
}

/// Sends without waiting; `false` if the channel is full or closed.
fn given<T>(to: Option<&SyncSender<T>>, what: T) -> bool {
    to.is_some_and(|to| to.try_send(what).is_ok())
}

fn close(full: &Receiver<Space>, spaces: &[Keyspace], pending: &[AtomicBool; Space::COUNT]) {
    for space in full {
        let keyspace = &spaces[space.index()];
        // Otherwise the next commit asks again.
        if keyspace.tree.sealed_memtable_count() < MEMTABLES_CLOSED_MAX
            && let Err(error) = keyspace.rotate_memtable()
        {
            // The engine's own, larger bound still applies, and its next commit reports what is wrong.
            tracing::error!(space = space.name(), %error, "a memtable could not be closed");
        }
        pending[space.index()].store(false, Ordering::Release);
    }
}

fn free(closed: &Receiver<Memtable>, mut freed: impl FnMut()) {
    let mut kept: Vec<Memtable> = Vec::new();
    loop {
        let next = if kept.is_empty() {
            closed.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            closed.recv_timeout(MEMTABLE_FREED_WITHIN)
        };
        match next {
            Ok(memtable) => kept.push(memtable),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return freed(),
        }
        let closed = kept.len();
        kept.retain(|memtable| Arc::strong_count(memtable) > 1);
        if kept.len() < closed {
            freed();
        }
    }
}

impl Drop for Rotation {
    /// Waits for the threads, which hold the database open.
    fn drop(&mut self) {
        (self.full, self.closed) = (None, None);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
