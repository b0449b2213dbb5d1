//! A watch: one session's presence lane, and whom it still has to be told about.

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

/// One thing to tell a watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// About whom.
    pub owner: Eid,
    /// What is seen of them.
    pub shown: Shown,
}

/// One session's presence lane.
pub struct Watch {
    pub(super) id: u64,
    pub(super) user: Eid,
    pub(super) device: DeviceId,
    /// It is told about an owner at most once in it.
    interval: Duration,
    signal: Arc<Signal>,
    tally: Arc<Tally>,
    /// Something may be waiting; saves the lock where nothing is.
    marked: AtomicBool,
    queue: Mutex<Queue>,
}

/// Bounded: each owner stands at most once in it, and directed notices have a bound of their own.
#[derive(Default)]
struct Queue {
    /// Whom this watch stands with. A board is only asked to take the watch in as this says, with the board held.
    owners: HashMap<Eid, Standing>,
    /// The lane is gone: nobody is added any more.
    closed: bool,
    /// Until the list of owners has come from the store: what changed meanwhile, which is newer.
    loading: Option<HashMap<Eid, Option<Access>>>,
    /// Whose state has to be looked at, and since when each waits.
    ready: VecDeque<Eid>,
    /// The same, for owners about whom this watch was told a moment ago.
    postponed: BTreeSet<(Instant, Eid)>,
    waiting: HashSet<Eid>,
    /// About whom it was told within the last interval, oldest first.
    told: VecDeque<(Instant, Eid)>,
    told_at: HashMap<Eid, Instant>,
    directed: VecDeque<Told>,
    withdrawn: VecDeque<Eid>,
}

/// How a watch stands with an owner.
#[derive(Default)]
struct Standing {
    /// `None`: about to be taken off the owner's board.
    access: Option<Access>,
    /// What the lane was last told; `None`: nothing, which is as good as OFFLINE.
    told: Option<Shown>,
    /// The owner is being looked at, and may be told to be there.
    looking: bool,
}

impl Standing {
    /// Whether the owner seems to be there, as far as can be known.
    fn shows(&self) -> bool {
        self.looking || self.told.is_some_and(|told| told.status != AwarenessStatus::Offline)
    }

    /// Whether it is worth telling.
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

    /// The owner's state has changed.
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

    /// The watch is off the board of an owner whom the user may not see any more, and who therefore seems to leave, if
    /// they seemed to be there.
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

    /// Somebody tells this user alone; the oldest such notice makes room.
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

    /// While the list is loading, remembers a change for later and returns `false`.
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
    /// The next owner to look at; what was postponed long enough is ready again.
    fn next(&mut self, interval: Duration, now: Instant) -> Option<Eid> {
        while let Some((_, owner)) = self.told.pop_front_if(|(at, _)| *at + interval <= now) {
            self.told_at.remove(&owner);
        }
        if self.told.is_empty() {
            // A burst's memory goes with it.
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

/// A watch's place on the boards; dropping it takes it off them.
pub struct WatchPlace {
    pub(super) presence: Arc<Presence>,
    pub(super) watch: Arc<Watch>,
}

impl WatchPlace {
    /// The list of owners has come: the watch stands with each from now on, and is told about those who are there.
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

    /// The next thing to tell, if anything is due.
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
            // Looked at only now: the newest state, and only if it still may be seen.
            let seen = self.presence.see(&owner, &self.watch, now);
            let mut queue = self.watch.queue();
            // Not `looking` any more: the owner has withdrawn meanwhile, and seems to leave after this.
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

    /// When something that was postponed is due.
    pub fn due(&self) -> Option<Instant> {
        self.watch.queue().postponed.first().map(|(due, _)| *due)
    }

    /// What the watch's user sees of somebody; `None`: nothing, which does not tell whether they exist.
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
