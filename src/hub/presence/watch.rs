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

/// Bounded: each owner is in it at most once, and directed notices, one of an owner, have a bound of their own.
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
    /// The newest directed notice of each owner who sent one.
    directed: VecDeque<Directed>,
    withdrawn: VecDeque<Eid>,
}

struct Directed {
    told: Told,
    /// The owner's state was to be looked at before, and goes first.
    behind: bool,
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
            // Whoever is not to be seen any more is not seen by a notice from before.
            queue.directed.retain(|directed| directed.told.owner != *owner);
            if !queue.owners.remove(owner).is_some_and(|standing| standing.shows()) || queue.withdrawn.contains(owner) {
                return;
            }
            queue.withdrawn.push_back(owner.clone());
        }
        self.wake();
    }

    /// Drops the notice for this user alone that waits of an owner, whatever the user may see of the owner.
    pub(super) fn forget_directed(&self, owner: &Eid) {
        self.queue().directed.retain(|directed| directed.told.owner != *owner);
    }

    /// What the user may see of the owner.
    pub(super) fn access(&self, owner: &Eid) -> Option<Access> {
        self.queue().owners.get(owner)?.access
    }

    /// Queues a notice for this user alone, which replaces an earlier one of the same owner. If too many owners send one, the
    /// oldest is dropped.
    pub(super) fn direct(&self, told: Told) {
        {
            let mut queue = self.queue();
            let behind = queue.waiting.contains(&told.owner);
            if let Some(earlier) = queue.directed.iter_mut().find(|directed| directed.told.owner == told.owner) {
                *earlier = Directed { told, behind };
                return self.tally.coalesce();
            }
            if queue.directed.len() >= DIRECTED_MAX {
                queue.directed.pop_front();
                self.tally.drop_one();
            }
            queue.directed.push_back(Directed { told, behind });
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
    /// Forgets of whom the watch was notified longer ago than the interval, and moves owners to `ready` whose postponement is
    /// over.
    fn advance(&mut self, interval: Duration, now: Instant) {
        while let Some((_, owner)) = self.told.pop_front_if(|(at, _)| *at + interval <= now) {
            self.told_at.remove(&owner);
        }
        if self.told.is_empty() {
            // Frees the memory that a burst has taken.
            (self.told, self.told_at) = (VecDeque::new(), HashMap::new());
        }
        while self.postponed.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, owner)) = self.postponed.pop_first()
        {
            self.ready.push_back(owner);
        }
    }

    /// The next directed notice whose time has come.
    fn next_directed(&mut self) -> Option<Told> {
        let is_due = |next: &Directed| !next.behind && !self.told_at.contains_key(&next.told.owner);
        let place = self.directed.iter().position(is_due)?;
        self.directed.remove(place).map(|directed| directed.told)
    }

    /// Whether the owner shares the location with the watch's user.
    fn shares_location(&self, owner: &Eid) -> bool {
        self.owners.get(owner).and_then(|standing| standing.access).is_some_and(|access| access.share_location)
    }

    /// The next owner to look at.
    fn next(&mut self, interval: Duration) -> Option<Eid> {
        loop {
            let owner = self.ready.pop_front()?;
            if let Some(at) = self.told_at.get(&owner) {
                // By a directed notice, since the owner was queued.
                self.postponed.insert((*at + interval, owner));
                continue;
            }
            self.waiting.remove(&owner);
            self.directed.iter_mut().filter(|next| next.told.owner == owner).for_each(|next| next.behind = false);
            return Some(owner);
        }
    }

    /// When the first postponed owner or directed notice is due.
    fn due(&self, interval: Duration) -> Option<Instant> {
        let told = |next: &Directed| self.told_at.get(&next.told.owner).filter(|_| !next.behind);
        let directed = self.directed.iter().filter_map(told).map(|at| *at + interval).min();
        directed.into_iter().chain(self.postponed.first().map(|(due, _)| *due)).min()
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

    /// The next notification, if one is due. Whoever has taken one asks again until there are no more.
    pub fn next(&self, now: Now) -> Option<Told> {
        if !self.is_marked() && self.due().is_none_or(|due| due > now.at) {
            return None;
        }
        loop {
            let owner = {
                let mut queue = self.watch.queue();
                // Many may become due together, and the lane may have room for some of them only.
                self.watch.marked.store(true, Ordering::Release);
                queue.advance(self.watch.interval, now.at);
                if let Some(mut told) = queue.next_directed() {
                    if !queue.shares_location(&told.owner) {
                        // As the list is now, whatever it was when the notice was said.
                        told.shown.location = None;
                    }
                    queue.was_told(&told.owner, now.at);
                    return Some(told);
                }
                if let Some(owner) = queue.withdrawn.pop_front() {
                    return Some(Told { owner, shown: Shown::GONE });
                }
                let Some(owner) = queue.next(self.watch.interval) else {
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

    /// When the first notification that was put off is due.
    pub fn due(&self) -> Option<Instant> {
        self.watch.queue().due(self.watch.interval)
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::super::Timing;
    use super::*;
    use AwarenessStatus::{Away, Busy, Online};

    /// Bob's presence lane, under a clock that only the test moves.
    struct Bench {
        presence: Arc<Presence>,
        lane: WatchPlace,
        start: Now,
        ms: Arc<AtomicU64>,
    }

    fn eid(name: &str) -> Eid {
        Eid::parse(&format!("{name}@x")).unwrap()
    }

    impl Bench {
        fn new() -> Bench {
            let (start, ms) = (Now::system(), Arc::new(AtomicU64::new(0)));
            let clock = ms.clone();
            let clock = move || at(start, clock.load(Ordering::Relaxed));
            let presence = Arc::new(Presence::new(Timing::default(), Box::new(clock)));
            let lane = presence.watch(&eid("bob"), &DeviceId::parse("phone").unwrap(), Arc::default());
            lane.install(Vec::new());
            Bench { presence, lane, start, ms }
        }

        fn direct(&self, from: &str, status: AwarenessStatus, last_seen: i64) {
            let shown = Shown { status, last_seen, location: None, silent: false };
            self.presence.direct(&eid("bob"), &Told { owner: eid(from), shown });
        }

        /// What the lane is told at this time.
        fn told_at(&self, ms: u64) -> Vec<Told> {
            self.ms.store(ms, Ordering::Relaxed);
            std::iter::from_fn(|| self.lane.next(at(self.start, ms))).collect()
        }

        fn due(&self) -> Option<u64> {
            self.lane.due().map(|due| due.duration_since(self.start.at).as_millis() as u64)
        }
    }

    fn at(start: Now, ms: u64) -> Now {
        Now { at: start.at + Duration::from_millis(ms), unix_ms: start.unix_ms + ms as i64 }
    }

    #[test]
    fn of_many_directed_notices_only_the_newest_is_told_and_nobody_elses_is_lost() {
        let bench = Bench::new();
        let mut number = 0;
        let mut told = Vec::new();
        for ms in (0..1_000).step_by(100) {
            if ms == 200 {
                bench.direct("alice", Away, 0);
            }
            for _ in 0..2 * DIRECTED_MAX {
                number += 1;
                bench.direct("mallory", Busy, number);
            }
            told.extend(bench.told_at(ms).into_iter().map(|told| (ms, told)));
        }
        assert_eq!(bench.due(), Some(1_000));
        told.extend(bench.told_at(1_000).into_iter().map(|told| (1_000, told)));
        let of = |name: &str| told.iter().filter(|(_, told)| told.owner == eid(name)).collect::<Vec<_>>();
        let seen: Vec<_> = of("mallory").iter().map(|(ms, told)| (*ms, told.shown.last_seen)).collect();
        let each = 2 * DIRECTED_MAX as i64;
        assert_eq!(seen, [(0, each), (500, 6 * each), (1_000, number)]);
        assert_eq!(of("alice").iter().map(|(ms, _)| *ms).collect::<Vec<_>>(), [200]);
        assert_eq!(bench.presence.tally().dropped(), 0);
        assert_eq!((bench.told_at(9_000), bench.due()), (Vec::new(), None));
    }

    #[test]
    fn the_oldest_directed_notice_makes_room() {
        let bench = Bench::new();
        for number in 0..=DIRECTED_MAX {
            bench.direct(&format!("user{number}"), Busy, 0);
        }
        let owners: Vec<_> = bench.told_at(0).into_iter().map(|told| told.owner).collect();
        assert_eq!(owners, (1..=DIRECTED_MAX).map(|number| eid(&format!("user{number}"))).collect::<Vec<_>>());
        assert_eq!(bench.presence.tally().dropped(), 1);
    }

    #[test]
    fn a_directed_notice_and_the_owners_state_come_in_their_order_and_not_within_the_interval() {
        for state_first in [true, false] {
            let (bench, alice, phone) = (Bench::new(), eid("alice"), DeviceId::parse("phone").unwrap());
            bench.presence.connected(&alice, &phone, 1);
            bench.presence.access_changed(&alice, &eid("bob"), Some(Access { share_location: true }));
            let statuses = |told: Vec<Told>| told.into_iter().map(|told| told.shown.status).collect::<Vec<_>>();
            assert_eq!(statuses(bench.told_at(0)), [Online]);
            let away = || {
                let update = super::super::Update { status: Away, silent: false, location: None };
                bench.presence.update(&alice, &phone, &update);
                bench.lane.watch.mark(&alice);
            };
            if state_first {
                away();
            }
            bench.direct("alice", Busy, 0);
            if !state_first {
                away();
            }
            assert_eq!((statuses(bench.told_at(100)), bench.due()), (Vec::new(), Some(500)));
            let order = if state_first { [Away, Busy] } else { [Busy, Away] };
            assert_eq!((statuses(bench.told_at(500)), bench.due()), (vec![order[0]], Some(1_000)));
            assert_eq!((statuses(bench.told_at(1_000)), bench.due()), (vec![order[1]], None));
        }
    }

    #[test]
    fn who_is_blocked_is_not_heard_by_a_notice_from_before_also_while_the_lane_opens() {
        for bob_blocks in [true, false] {
            let (mut bench, alice, bob) = (Bench::new(), eid("alice"), eid("bob"));
            bench.lane = bench.presence.watch(&bob, &DeviceId::parse("phone").unwrap(), Arc::default());
            ["alice", "carol"].into_iter().for_each(|from| bench.direct(from, Busy, 0));
            let (one, other) = if bob_blocks { (&bob, &alice) } else { (&alice, &bob) };
            bench.presence.blocked(one, other);
            bench.lane.install(Vec::new());
            let told: Vec<_> = bench.told_at(0).into_iter().map(|told| told.owner).collect();
            assert_eq!((told, bench.due()), (vec![eid("carol")], None));
        }
    }

    #[test]
    fn a_location_that_is_no_longer_shared_is_not_told_by_a_notice_from_before() {
        let (bench, alice) = (Bench::new(), eid("alice"));
        let shares = |share_location| {
            bench.presence.access_changed(&alice, &eid("bob"), Some(Access { share_location }));
        };
        let says = |status| {
            let location = Some(super::super::Location { latitude: 1.0, longitude: 2.0 });
            let shown = Shown { status, last_seen: 0, location, silent: false };
            bench.presence.direct(&eid("bob"), &Told { owner: alice.clone(), shown });
        };
        let told_at = |ms| {
            let told = bench.told_at(ms).into_iter().map(|told| (told.shown.status, told.shown.location.is_some()));
            told.collect::<Vec<_>>()
        };
        shares(true);
        says(Busy);
        assert_eq!(told_at(0), [(Busy, true)]);
        says(Away);
        shares(false);
        assert_eq!(told_at(500), [(Away, false)]);
        // Nor by one that was on its way here when the list changed.
        says(Busy);
        assert_eq!(told_at(1_000), [(Busy, false)]);
    }

    #[test]
    fn an_owner_who_withdraws_is_not_seen_by_a_notice_from_before() {
        let (bench, alice) = (Bench::new(), eid("alice"));
        bench.direct("alice", Online, 0);
        assert_eq!(bench.told_at(0).len(), 1);
        bench.direct("alice", Busy, 0);
        bench.presence.access_changed(&alice, &eid("bob"), None);
        assert_eq!((bench.told_at(1_000), bench.due()), (Vec::new(), None));
    }
}
