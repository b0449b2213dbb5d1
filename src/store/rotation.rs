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

enum Task {
    /// Close the space's memtable.
    Close(Space),
    /// It was closed: free it once the engine has let go of it.
    Free(Memtable),
}

pub(super) struct Rotation {
    /// `None`: it is being dropped.
    tasks: Option<SyncSender<Task>>,
    /// Asked to be closed and not done: once is enough.
    pending: Arc<[AtomicBool; Space::COUNT]>,
    /// Those that were last seen to be written to.
    active: Mutex<[Option<Memtable>; Space::COUNT]>,
    thread: Option<JoinHandle<()>>,
}

impl Rotation {
    /// `spaces` in the order of [`Space::ALL`].
    pub(super) fn start(spaces: &Arc<[Keyspace]>) -> io::Result<Rotation> {
        let (tasks, waiting) = sync_channel(2 * Space::COUNT);
        let pending: Arc<[AtomicBool; Space::COUNT]> = Arc::default();
        let run = {
            let (spaces, pending) = (spaces.clone(), pending.clone());
            move || {
                background::give_way();
                run(&waiting, &spaces, &pending);
            }
        };
        let thread = std::thread::Builder::new().name("store-rotation".into()).spawn(run)?;
        Ok(Rotation { tasks: Some(tasks), pending, active: Mutex::default(), thread: Some(thread) })
    }

    /// After a commit that wrote to `space`.
    pub(super) fn look(&self, space: Space, keyspace: &Keyspace) {
        let memtable = keyspace.tree.active_memtable();
        let pending = &self.pending[space.index()];
        let full = memtable.size() >= memtable_bytes(space);
        if full && !pending.swap(true, Ordering::AcqRel) && !self.ask(Task::Close(space)) {
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
            self.ask(Task::Free(closed));
        }
    }

    /// Whether there is a place for it.
    fn ask(&self, task: Task) -> bool {
        self.tasks.as_ref().is_some_and(|tasks| tasks.try_send(task).is_ok())
    }
}

fn run(tasks: &Receiver<Task>, spaces: &[Keyspace], pending: &[AtomicBool; Space::COUNT]) {
    let mut closed: Vec<Memtable> = Vec::new();
    loop {
        let task = if closed.is_empty() {
            tasks.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            tasks.recv_timeout(FREED_WITHIN)
        };
        match task {
            Ok(Task::Close(space)) => {
                if let Err(error) = spaces[space.index()].rotate_memtable() {
                    // The engine's own, larger bound is still there, and its next commit says what is wrong.
                    tracing::error!(space = space.name(), %error, "a memtable could not be closed");
                }
                pending[space.index()].store(false, Ordering::Release);
            }
            Ok(Task::Free(memtable)) => closed.push(memtable),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        closed.retain(|memtable| Arc::strong_count(memtable) > 1);
    }
}

impl Drop for Rotation {
    /// Waits for its thread, which holds the database open.
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
