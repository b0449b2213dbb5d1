//! A watch: one session's presence lane, and the owners it still has to be notified of.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Now;
use crate::hub::Signal;
use crate::limits::DIRECTED_MAX;
use crate::store::Access;
use crate::wire::{AwarenessStatus, DeviceId, Eid};

use super::board::Presence;
use super::state::Shown;
use super::tally::Tally;

/// A notification for a watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The user it is about.
    pub owner: Eid,
    /// The state shown.
    pub shown: Shown,
}

/// One session's presence lane.
pub struct Watch {
    pub(super) id: u64,
    pub(super) user: Eid,
    pub(super) device: DeviceId,
    /// Interval in which the watch is notified of an owner at most once.
    interval: Duration,
    signal: Arc<Signal>,
    tally: Arc<Tally>,
    /// Whether something may be waiting; saves taking the lock where nothing is.
    marked: AtomicBool,
    queue: Mutex<Queue>,
}

/// Bounded: each owner is in it at most once, and directed notices have a bound of their own.
#[derive(Default)]
struct Queue {
    /// The owners that the watch sees. A board takes the watch in only if this map says so, and checks it with the
    /// board locked.
    owners: HashMap<Eid, Standing>,
    /// The lane is closed: no owner is added any more.
    closed: bool,
    /// Set until the list of owners has come from the store: changes that arrived meanwhile, which are newer than the
    /// list.
    loading: Option<HashMap<Eid, Option<Access>>>,
    /// Owners whose state has to be looked at, in order.
    ready: VecDeque<Eid>,
    /// Owners whose state has to be looked at later, as the watch was notified of them a moment ago; with the due time.
    postponed: BTreeSet<(Instant, Eid)>,
    waiting: HashSet<Eid>,
    /// Owners that the watch was notified of within the last interval, oldest first.
    told: VecDeque<(Instant, Eid)>,
    told_at: HashMap<Eid, Instant>,
    directed: VecDeque<Told>,
    withdrawn: VecDeque<Eid>,
}

/// A watch's relation to an owner.
#[derive(Default)]
struct Standing {
    /// `None`: the watch is about to be removed from the owner's board.
    access: Option<Access>,
    /// The state that the lane was told last; `None`: none yet, which is equivalent to OFFLINE.
    told: Option<Shown>,
    /// The owner's state is being read, and the lane may be told that the owner is there.
    looking: bool,
}

impl Standing {
    /// Whether the lane may believe that the owner is there.
    fn shows(&self) -> bool {
        self.looking || self.told.is_some_and(|told| told.status != AwarenessStatus::Offline)
    }

    /// Whether `shown` differs from what the lane was told.
    fn is_news(&self, shown: &Shown) -> bool {
        match &self.told {
            Some(told) => shown.differs(told),
            None => shown.status != AwarenessStatus::Offline,
        }
    }
}

impl Watch {
    pub(super) fn new(
        id: u64,
        user: Eid,
        device: DeviceId,
        interval: Duration,
        signal: Arc<Signal>,
        tally: Arc<Tally>,
    ) -> Watch {
        let queue = Queue { loading: Some(HashMap::new()), ..Queue::default() };
        Watch { id, user, device, interval, signal, tally, marked: AtomicBool::new(false), queue: Mutex::new(queue) }
    }

    /// Queues an owner whose state has changed.
    pub fn mark(&self, owner: &Eid) {
        {
            let mut queue = self.queue();
            if !queue.waiting.insert(owner.clone()) {
                return self.tally.coalesce();
            }
            match queue.told_at.get(owner) {
                Some(at) => {
                    let due = *at + self.interval;
                    queue.postponed.insert((due, owner.clone()));
                }
                None => queue.ready.push_back(owner.clone()),
            }
        }
        self.wake();
    }

    /// The watch was removed from the board of an owner whom the user may not see any more. If the lane may believe
    /// that the owner is there, it is told that the owner has left.
    pub(super) fn withdraw(&self, owner: &Eid) {
        {
            let mut queue = self.queue();
            if !queue.owners.remove(owner).is_some_and(|standing| standing.shows()) || queue.withdrawn.contains(owner) {
                return;
            }
            queue.withdrawn.push_back(owner.clone());
        }
        self.wake();
    }

    /// What the user may see of the owner.
    pub(super) fn access(&self, owner: &Eid) -> Option<Access> {
        self.queue().owners.get(owner)?.access
    }

    /// Queues a notice for this user alone. If there are too many, the oldest is dropped.
    pub(super) fn direct(&self, told: Told) {
        {
            let mut queue = self.queue();
            if queue.directed.len() >= DIRECTED_MAX {
                queue.directed.pop_front();
                self.tally.drop_one();
            }
            queue.directed.push_back(told);
        }
        self.wake();
    }

    /// Notes a change of access and returns `true`. While the list is loading, remembers the change for later and
    /// returns `false`; it also returns `false` once the lane is closed.
    pub(super) fn note(&self, owner: &Eid, access: Option<Access>) -> bool {
        let mut queue = self.queue();
        if queue.closed {
            return false;
        }
        if let Some(changes) = &mut queue.loading {
            changes.insert(owner.clone(), access);
            return false;
        }
        queue.owners.entry(owner.clone()).or_default().access = access;
        true
    }

    fn wake(&self) {
        if !self.marked.swap(true, Ordering::AcqRel) {
            self.signal.advanced();
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// The next owner to look at. Moves owners to `ready` whose postponement is over.
    fn next(&mut self, interval: Duration, now: Instant) -> Option<Eid> {
        while let Some((_, owner)) = self.told.pop_front_if(|(at, _)| *at + interval <= now) {
            self.told_at.remove(&owner);
        }
        if self.told.is_empty() {
            // Frees the memory that a burst has taken.
            (self.told, self.told_at) = (VecDeque::new(), HashMap::new());
        }
        while self.postponed.first().is_some_and(|(due, _)| *due <= now) {
            let (_, owner) = self.postponed.pop_first()?;
            self.ready.push_back(owner);
        }
        let owner = self.ready.pop_front()?;
        self.waiting.remove(&owner);
        Some(owner)
    }

    fn was_told(&mut self, owner: &Eid, now: Instant) {
        if self.told_at.insert(owner.clone(), now).is_none() {
            self.told.push_back((now, owner.clone()));
        }
    }
}

/// A watch's place on the boards; dropping it removes the watch from them.
pub struct WatchPlace {
    pub(super) presence: Arc<Presence>,
    pub(super) watch: Arc<Watch>,
}

impl WatchPlace {
    /// The list of owners has come from the store: registers the watch with each of them, and marks those who are
    /// there.
    pub fn install(&self, owners: Vec<(Eid, Access)>) {
        let mut access: HashMap<Eid, Option<Access>> = owners.into_iter().map(|(owner, a)| (owner, Some(a))).collect();
        {
            let mut queue = self.watch.queue();
            access.extend(queue.loading.take().unwrap_or_default());
            access.retain(|_, access| access.is_some());
            let standing =
                |(owner, a): (&Eid, &Option<Access>)| (owner.clone(), Standing { access: *a, ..Standing::default() });
            queue.owners = access.iter().map(standing).collect();
        }
        access.keys().for_each(|owner| self.presence.stand(owner, &self.watch));
    }

    /// The next notification, if one is due.
    pub fn next(&self, now: Now) -> Option<Told> {
        loop {
            let owner = {
                let mut queue = self.watch.queue();
                if let Some(told) = queue.directed.pop_front() {
                    return Some(told);
                }
                if let Some(owner) = queue.withdrawn.pop_front() {
                    return Some(Told { owner, shown: Shown::GONE });
                }
                let Some(owner) = queue.next(self.watch.interval, now.at) else {
                    self.watch.marked.store(false, Ordering::Release);
                    return None;
                };
                if let Some(standing) = queue.owners.get_mut(&owner) {
                    standing.looking = true;
                }
                owner
            };
            // Read only now, to get the newest state, and only if it may still be seen.
            let seen = self.presence.see(&owner, &self.watch, now);
            let mut queue = self.watch.queue();
            // If `looking` is no longer set, the owner has withdrawn meanwhile, and the lane is told after this that
            // the owner has left.
            let mut standing = queue.owners.get_mut(&owner).filter(|standing| standing.looking);
            if let Some(standing) = &mut standing {
                standing.looking = false;
            }
            let Some(shown) = seen else { continue };
            if let Some(standing) = standing {
                if !standing.is_news(&shown) {
                    self.watch.tally.coalesce();
                    continue;
                }
                standing.told = Some(shown);
            }
            queue.was_told(&owner, now.at);
            return Some(Told { owner, shown });
        }
    }

    /// Whether [`WatchPlace::next`] may have something now.
    pub fn is_marked(&self) -> bool {
        self.watch.marked.load(Ordering::Acquire)
    }

    /// When the first postponed owner is due.
    pub fn due(&self) -> Option<Instant> {
        self.watch.queue().postponed.first().map(|(due, _)| *due)
    }

    /// What the watch's user sees of `owner`; `None`: nothing, which does not reveal whether the owner exists.
    pub fn ask(&self, owner: &Eid, now: Now) -> Option<Shown> {
        self.presence.see(owner, &self.watch, now)
    }
}

impl Drop for WatchPlace {
    fn drop(&mut self) {
        let owners = {
            let mut queue = self.watch.queue();
            queue.closed = true;
            std::mem::take(&mut queue.owners)
        };
        self.presence.leave(&self.watch, owners.into_keys());
    }
}
