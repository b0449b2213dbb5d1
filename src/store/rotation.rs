//! Closes memtables that are full, so that fjall writes them to files.
//!
//! fjall does this by itself, but asks for it again with every commit until it is done: under load the requests fill the
//! queue from which its worker takes them, and a worker that has to put something in there waits for itself (fjall-rs/fjall
//! #257, #323). So it is asked here, once, and not on the writer's thread, as old files may have to be deleted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use ::fjall::{AbstractTree, Keyspace};

use super::fjall::memtable_bytes;
use super::kv::Space;

pub(super) struct Rotation {
    /// `None`: it is being dropped.
    wanted: Option<SyncSender<Space>>,
    /// Asked for and not done; so the channel never has more than one of each space.
    pending: Arc<[AtomicBool; Space::COUNT]>,
    thread: Option<JoinHandle<()>>,
}

impl Rotation {
    /// `spaces` in the order of [`Space::ALL`].
    pub(super) fn start(spaces: &Arc<[Keyspace]>) -> io::Result<Rotation> {
        let (wanted, requests) = sync_channel::<Space>(Space::COUNT);
        let pending: Arc<[AtomicBool; Space::COUNT]> = Arc::default();
        let run = {
            let (spaces, pending) = (spaces.clone(), pending.clone());
            move || {
                for space in requests {
                    if let Err(error) = spaces[space.index()].rotate_memtable() {
                        // The engine's own, larger bound is still there, and its next commit says what is wrong.
                        tracing::error!(space = space.name(), %error, "a memtable could not be closed");
                    }
                    pending[space.index()].store(false, Ordering::Release);
                }
            }
        };
        let thread = std::thread::Builder::new().name("store-rotation".into()).spawn(run)?;
        Ok(Rotation { wanted: Some(wanted), pending, thread: Some(thread) })
    }

    /// After a commit that wrote to `space`.
    pub(super) fn look(&self, space: Space, keyspace: &Keyspace) {
        if keyspace.tree.active_memtable().size() < memtable_bytes(space) {
            return;
        }
        if !self.pending[space.index()].swap(true, Ordering::AcqRel)
            && let Some(wanted) = &self.wanted
        {
            // There is a place for each space.
            let _ = wanted.try_send(space);
        }
    }
}

impl Drop for Rotation {
    /// Waits for its thread, which holds the database open.
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
