//! The places of the reads that run beside the writer. A user has few of them: who asks for much at once waits behind its
//! own reads, and nobody else does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::StoreError;
use crate::limits;
use crate::wire::Eid;

pub(super) struct Readers {
    places: Arc<Semaphore>,
    users: Arc<Users>,
    /// Each read that runs, or waits for one of `places`, holds a clone.
    asked: Arc<()>,
}

/// The places of each user of whom a read runs or waits. There are no more users than reads, which their callers bound.
#[derive(Default)]
struct Users(Mutex<HashMap<Eid, Arc<Semaphore>>>);

/// The place of one read, until it is dropped.
pub(super) struct Place {
    _place: OwnedSemaphorePermit,
    _own: Option<Own>,
    _asked: Arc<()>,
}

/// A read's claim to one of its user's places.
struct Own {
    user: Eid,
    /// Until it is dropped.
    places: Option<Arc<Semaphore>>,
    place: Option<OwnedSemaphorePermit>,
    users: Arc<Users>,
}

impl Readers {
    pub(super) fn new() -> Readers {
        Readers {
            places: Arc::new(Semaphore::new(limits::STORE_READERS_MAX)),
            users: Arc::default(),
            asked: Arc::default(),
        }
    }

    /// A place for a read that a user asked for, or the server itself, once one is free.
    ///
    /// # Errors
    /// [`StoreError::Closed`] if the store is closed.
    pub(super) async fn place(&self, user: Option<&Eid>) -> Result<Place, StoreError> {
        let mut own = user.map(|user| Own::new(user, &self.users));
        if let Some(own) = &mut own
            && let Some(places) = own.places.clone()
        {
            own.place = places.acquire_owned().await.ok();
        }
        // Not before: what waits for its own user keeps no other read waiting.
        let asked = self.asked.clone();
        let place = self.places.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        Ok(Place { _place: place, _own: own, _asked: asked })
    }

    /// Number of reads that run, or wait for one of the places of all.
    pub(super) fn asked(&self) -> usize {
        Arc::strong_count(&self.asked) - 1
    }

    /// All places, once no read runs; `None`: they are closed.
    pub(super) async fn all(&self) -> Option<SemaphorePermit<'_>> {
        self.places.acquire_many(limits::STORE_READERS_MAX as u32).await.ok()
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> Arc<Semaphore> {
        self.places.clone()
    }

    /// From now on there are no places.
    pub(super) fn close(&self) {
        self.places.close();
    }
}

impl Users {
    fn lock(&self) -> MutexGuard<'_, HashMap<Eid, Arc<Semaphore>>> {
        // A poisoned lock can be used: nothing panics half-way through a change while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Own {
    fn new(user: &Eid, users: &Arc<Users>) -> Own {
        let new = || Arc::new(Semaphore::new(limits::STORE_READS_PER_USER_MAX));
        let places = users.lock().entry(user.clone()).or_insert_with(new).clone();
        Own { user: user.clone(), places: Some(places), place: None, users: users.clone() }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.place = None;
        let mut users = self.users.lock();
        // Given back under the lock, as they are claimed: of two that go together, the second sees that it is the last.
        self.places = None;
        if users.get(&self.user).is_some_and(|places| Arc::strong_count(places) == 1) {
            users.remove(&self.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_util::future::{join_all, join3};
    use tokio::time::timeout;

    use super::*;
    use crate::store::kv::{Batch, Kv, Order, Row, Slice, Space, Span, View};
    use crate::store::memory::Memory;
    use crate::store::testing::{Nobody, eid};
    use crate::store::{Disk, Embedded, HistoryQuery, Options, Size, Store};
    use crate::wire::Sequence;

    /// An engine that tells of each range read, and holds those of chats until the sender of `until` is dropped.
    #[derive(Clone)]
    struct Slow {
        memory: Memory,
        begun: tokio::sync::mpsc::Sender<Space>,
        until: Arc<Mutex<mpsc::Receiver<()>>>,
    }

    impl Kv for Slow {
        fn view(&self) -> Box<dyn View> {
            Box::new(SlowView(self.memory.view(), self.clone()))
        }

        fn commit(&self, batch: Batch) -> Result<(), StoreError> {
            self.memory.commit(batch)
        }

        fn size(&self) -> Result<Size, StoreError> {
            self.memory.size()
        }

        fn disk(&self) -> Option<Disk> {
            self.memory.disk()
        }
    }

    struct SlowView(Box<dyn View>, Slow);

    impl View for SlowView {
        fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, StoreError> {
            self.0.get(space, key)
        }

        fn range(&self, space: Space, span: &Span, order: Order, limit: usize) -> Result<Vec<Row>, StoreError> {
            self.1.begun.blocking_send(space).unwrap();
            if space == Space::Chats {
                let _ = self.1.until.lock().unwrap().recv();
            }
            self.0.range(space, span, order, limit)
        }
    }

    #[tokio::test]
    async fn who_asks_for_many_slow_pages_keeps_nobody_else_from_reading() {
        const PAGES: usize = 64;
        let (begun, mut begins) = tokio::sync::mpsc::channel(2 * PAGES);
        let (go_on, until) = mpsc::channel();
        // At the start the engine's pending rows are read, not yet within a runtime that could wait for it.
        let slow = Slow { memory: Memory::new(), begun, until: Arc::new(Mutex::new(until)) };
        let open = move || Embedded::start(Arc::new(slow), Options::default(), Arc::new(Nobody)).unwrap();
        let store = tokio::task::spawn_blocking(open).await.unwrap();
        assert_eq!(begins.recv().await, Some(Space::Pending));
        let page = || {
            let (reader, peer) = (eid("much"), eid("other"));
            store.history(HistoryQuery { reader, peer, before: None, after: None, limit: 200, bytes_max: usize::MAX })
        };
        // They are polled in this order.
        let (pages, log, ()) =
            join3(join_all((0..PAGES).map(|_| page())), store.read_log(&eid("little"), Sequence::ZERO, 1), async {
                let began = async { while begins.recv().await.unwrap() != Space::Logs {} };
                timeout(Duration::from_secs(60), began).await.expect("the other's read begins while no page ends");
                drop(go_on);
            })
            .await;
        assert!(pages.into_iter().all(|page| page.unwrap().is_empty()) && log.unwrap().is_empty());
        assert_eq!(store.figures().reads, 0);
    }

    #[tokio::test]
    async fn a_user_has_so_many_places_and_none_is_remembered_of_who_reads_nothing() {
        let (readers, user) = (Readers::new(), eid("much"));
        let mut places = Vec::new();
        for _ in 0..limits::STORE_READS_PER_USER_MAX {
            places.push(readers.place(Some(&user)).await.unwrap());
        }
        let mut next = Box::pin(readers.place(Some(&user)));
        let mut given_up = Box::pin(readers.place(Some(&user)));
        tokio::select! {
            biased;
            _ = &mut next => panic!("one place too many"),
            _ = &mut given_up => panic!("one place too many"),
            () = ready(()) => {}
        }
        let own = readers.place(None).await.unwrap();
        assert_eq!((readers.asked(), readers.users.lock().len()), (limits::STORE_READS_PER_USER_MAX + 1, 1));
        drop(given_up);
        drop(places.pop());
        places.push(next.await.unwrap());
        drop(own);
        drop(places);
        assert_eq!((readers.asked(), readers.users.lock().len()), (0, 0));
    }
}
