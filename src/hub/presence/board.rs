//! The boards: each user's presence, and the watches registered with it.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::Notify;

use crate::clock::{Clock, Now};
use crate::hub::Signal;
use crate::limits::{FAN_OUT_CHUNK, PRESENCE_KEPT_MAX, PRESENCE_TOLD_PER_SECOND};
use crate::store::Access;
use crate::wire::{AwarenessStatus, DeviceId, Eid};

use super::state::{Shown, Update, UserPresence};
use super::tally::Tally;
use super::timing::Timing;
use super::watch::{Told, Watch, WatchPlace};

const SHARDS: usize = 64;

/// The presence of all users.
pub struct Presence {
    timing: Timing,
    clock: Clock,
    /// Boxed, because a hash table allocates more slots than it has entries.
    pub(super) shards: Vec<Mutex<HashMap<Eid, Box<Board>>>>,
    hasher: RandomState,
    watches: AtomicU64,
    tally: Arc<Tally>,
    /// When boards next have something to do; each board is in it at most once.
    agenda: Mutex<BTreeSet<(Instant, Eid)>>,
    agenda_changed: Notify,
    /// Users with neither device nor watch, whose choice and last time are remembered; the least recent are evicted
    /// first.
    remembered: Mutex<LruCache<Eid, ()>>,
    /// How many: [`PRESENCE_KEPT_MAX`], or fewer in a test.
    pub(super) kept_max: usize,
}

#[derive(Default)]
pub(super) struct Board {
    user: UserPresence,
    /// The shown state, as of the last change.
    latest: Option<Shown>,
    /// Whether the shown state changed since the last fan-out, even if it has changed back since: a watch that looked
    /// in between saw another state.
    changed: bool,
    fanned_out: Option<Instant>,
    /// The time of the board's entry in the agenda.
    scheduled: Option<Instant>,
    /// The watches that see this user, by watch id.
    pub(super) watchers: HashMap<u64, (Arc<Watch>, Access)>,
    /// This user's own watches.
    pub(super) watches: Vec<Arc<Watch>>,
}

impl Board {
    pub(super) fn is_idle(&self) -> bool {
        !self.user.is_there() && self.watchers.is_empty() && self.watches.is_empty() && self.scheduled.is_none()
    }

    /// Whether others see the user as anything but OFFLINE.
    fn is_seen(&self, now: Now) -> bool {
        self.user.shown(now).status != AwarenessStatus::Offline
    }

    /// Updates the shown state, and records whether it has changed.
    fn look(&mut self, now: Now) {
        let shown = self.user.shown(now);
        self.changed |= shown.differs(&self.latest.unwrap_or(Shown::GONE));
        self.latest = Some(shown);
    }

    /// Time between two fan-outs, at least `least`: the longer, the more watch.
    fn interval(&self, least: Duration) -> Duration {
        let watchers = u32::try_from(self.watchers.len()).unwrap_or(u32::MAX);
        least.max(Duration::from_secs(1) * watchers / PRESENCE_TOLD_PER_SECOND)
    }

    /// When there is something to fan out or to expire.
    fn due(&self, least: Duration, now: Now) -> Option<Instant> {
        let next = |last| now.at.max(last + self.interval(least));
        let fan_out = self.changed.then(|| self.fanned_out.map_or(now.at, next));
        fan_out.into_iter().chain(self.user.due()).min()
    }
}

impl Presence {
    /// Presence without any user.
    pub fn new(timing: Timing, clock: Clock) -> Presence {
        Presence {
            timing,
            clock,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            watches: AtomicU64::new(0),
            tally: Arc::default(),
            agenda: Mutex::default(),
            agenda_changed: Notify::new(),
            // Bounded in `remember`; a cache with a bound would allocate it at once.
            remembered: Mutex::new(LruCache::unbounded()),
            kept_max: PRESENCE_KEPT_MAX,
        }
    }

    /// A device has signed in with this connection.
    pub fn connected(&self, user: &Eid, device: &DeviceId, join: u64) {
        self.change(user, |board, now| board.user.connected(device, join, now));
    }

    /// The device's connection `join` is lost.
    pub fn lost(&self, user: &Eid, join: u64) {
        self.change(user, |board, now| board.user.lost(join, self.timing.offline_grace, now));
    }

    /// The device's connection `join` is over, and it was never sure that the device itself was there: nobody waits for it.
    pub fn lost_for_good(&self, user: &Eid, join: u64) {
        self.change(user, |board, now| board.user.lost(join, Duration::ZERO, now));
    }

    /// The device's connection `join` is gone, while its connection `heir` is there: the device counts through that one.
    pub fn passed_on(&self, user: &Eid, join: u64, heir: u64) {
        self.change(user, |board, _| board.user.passed_on(join, heir));
    }

    /// The device has left on purpose with this connection; presence shows it at once (protocol.md §12).
    pub fn left(&self, user: &Eid, device: &DeviceId, join: u64, signed_out: bool) {
        self.change(user, |board, now| board.user.left(device, join, signed_out, now));
    }

    /// The device is signed out or revoked, connected or not: its DO_NOT_BROADCAST no longer hides the user, and it counts no
    /// longer, unless it `stays` with a connection of another token.
    pub fn forgotten(&self, user: &Eid, device: &DeviceId, stays: bool) {
        self.change(user, |board, now| board.user.forget(device, stays, now));
    }

    /// The `last_seen` that others see of the user, Unix milliseconds: now while the user is there.
    pub fn last_seen(&self, user: &Eid) -> i64 {
        let now = (self.clock)();
        self.shard(user).get(user).map_or(0, |board| board.user.shown(now).last_seen)
    }

    /// A device has stated its user's presence; the user's other devices are notified.
    pub fn update(&self, user: &Eid, device: &DeviceId, update: &Update) {
        let others = self.change(user, |board, now| {
            let before = board.user.shown_to_self(now);
            board.user.update(device, update, self.timing.location_kept, now);
            let after = board.user.shown_to_self(now);
            if after.silent == before.silent && !after.differs(&before) {
                return Vec::new();
            }
            board.watches.iter().filter(|watch| watch.device != *device).cloned().collect::<Vec<_>>()
        });
        others.iter().for_each(|watch| watch.mark(user));
    }

    /// Sends one user a notice about another user that nobody else gets. Nothing is stored.
    pub fn direct(&self, to: &Eid, told: &Told) {
        self.watches_of(to).iter().for_each(|watch| watch.direct(told.clone()));
    }

    /// Adds a watch for an open presence lane. It is notified of nothing until [`WatchPlace::install`].
    pub fn watch(self: &Arc<Self>, user: &Eid, device: &DeviceId, signal: Arc<Signal>) -> WatchPlace {
        let id = self.watches.fetch_add(1, Ordering::Relaxed);
        let watch =
            Arc::new(Watch::new(id, user.clone(), device.clone(), self.timing.interval, signal, self.tally.clone()));
        self.change(user, |board, _| board.watches.push(watch.clone()));
        WatchPlace { presence: self.clone(), watch }
    }

    /// Changes what `subscriber` may see of `owner`.
    pub fn access_changed(&self, owner: &Eid, subscriber: &Eid, access: Option<Access>) {
        for watch in self.watches_of(subscriber) {
            if !watch.note(owner, access) {
                continue;
            }
            match access {
                Some(_) => self.stand(owner, &watch),
                None => {
                    self.change(owner, |board, _| board.watchers.remove(&watch.id));
                    watch.withdraw(owner);
                }
            }
        }
    }

    /// One of two users has blocked the other: neither is told any more what the other has said to them alone.
    pub fn blocked(&self, one: &Eid, other: &Eid) {
        for (to, from) in [(one, other), (other, one)] {
            self.watches_of(to).iter().for_each(|watch| watch.forget_directed(from));
        }
    }

    /// Registers a watch with an owner, if the watch's own list still has that owner: the owner may have withdrawn, or
    /// the lane closed, since the caller looked. Marks the watch if there is anything to see.
    pub(super) fn stand(&self, owner: &Eid, watch: &Arc<Watch>) {
        let visible = self.change(owner, |board, now| {
            let Some(access) = watch.access(owner) else { return false };
            board.watchers.insert(watch.id, (watch.clone(), access));
            board.is_seen(now)
        });
        if visible {
            watch.mark(owner);
        }
    }

    /// Removes a watch from all boards.
    pub(super) fn leave(&self, watch: &Arc<Watch>, owners: impl Iterator<Item = Eid>) {
        for owner in owners {
            self.change(&owner, |board, _| board.watchers.remove(&watch.id));
        }
        self.change(&watch.user, |board, _| board.watches.retain(|other| other.id != watch.id));
    }

    /// What a watch's user sees of `owner`. The cost is the same whether the owner exists or not.
    pub(super) fn see(&self, owner: &Eid, watch: &Watch, now: Now) -> Option<Shown> {
        let shard = self.shard(owner);
        let board = shard.get(owner)?;
        if *owner == watch.user {
            return Some(board.user.shown_to_self(now));
        }
        let (_, access) = board.watchers.get(&watch.id)?;
        let shown = board.user.shown(now);
        Some(Shown { location: shown.location.filter(|_| access.share_location), ..shown })
    }

    /// Counters of notifications that were not sent.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Number of users that are not connected but remembered.
    pub fn remembered(&self) -> usize {
        self.remembered_users().len()
    }

    #[cfg(test)]
    pub(super) fn has_board(&self, user: &Eid) -> bool {
        self.shard(user).contains_key(user)
    }

    /// When [`Presence::run_due`] next has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.agenda().first().map(|(at, _)| *at)
    }

    /// Does what is due: ends graces, and returns the watches of each user whose state has changed, a user at most once
    /// in its interval. The caller marks them in chunks, so that a user with many watches does not delay all others.
    pub fn run_due(&self) -> impl Iterator<Item = (Eid, Vec<Arc<Watch>>)> + '_ {
        std::iter::from_fn(move || {
            loop {
                let now = (self.clock)();
                let (at, owner) = self.agenda().pop_first_if_due(now.at)?;
                let watches = self.change(&owner, |board, now| {
                    if board.scheduled == Some(at) {
                        board.scheduled = None;
                    }
                    board.user.expire(now);
                    board.look(now);
                    if !board.changed {
                        return Vec::new();
                    }
                    let interval = board.interval(self.timing.interval);
                    if board.fanned_out.is_some_and(|last| last + interval > now.at) {
                        return Vec::new(); // Scheduled again in `change`.
                    }
                    (board.changed, board.fanned_out) = (false, Some(now.at));
                    board.watchers.values().map(|(watch, _)| watch.clone()).collect()
                });
                if !watches.is_empty() {
                    return Some((owner, watches));
                }
            }
        })
    }

    /// Runs what is due, for as long as the server runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            let work: Vec<_> = self.run_due().collect();
            for (owner, watches) in work {
                for chunk in watches.chunks(FAN_OUT_CHUNK) {
                    chunk.iter().for_each(|watch| watch.mark(&owner));
                    tokio::task::yield_now().await;
                }
            }
            let changed = self.agenda_changed.notified();
            match self.due() {
                None => changed.await,
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                },
            }
        }
    }

    /// Changes a board, and puts it on the agenda as its new state requires.
    fn change<T>(&self, user: &Eid, change: impl FnOnce(&mut Board, Now) -> T) -> T {
        let now = (self.clock)();
        let (result, evicted, sooner) = {
            let mut shard = self.shard(user);
            let was_idle = shard.get(user).is_some_and(|board| board.is_idle());
            let board = shard.entry(user.clone()).or_default();
            let result = change(board, now);
            board.look(now);
            let mut sooner = false;
            if let Some(at) = board.due(self.timing.interval, now)
                && board.scheduled.is_none_or(|scheduled| at < scheduled)
            {
                let before = board.scheduled.replace(at);
                sooner = self.schedule(user, before, at);
            }
            // Under the shard's lock: an idle board that is not remembered would stay for ever.
            let (is_idle, is_blank) = (board.is_idle(), board.user.is_blank());
            let evicted = match is_idle {
                // Of users who were never there since the start. They must not displace those of whom there is something.
                true if is_blank => {
                    shard.remove(user);
                    None
                }
                true => self.remember(user),
                false if was_idle => self.remembered_users().pop(user).and(None),
                false => None,
            };
            (result, evicted, sooner)
        };
        if sooner {
            self.agenda_changed.notify_one();
        }
        if let Some(evicted) = evicted {
            let mut shard = self.shard(&evicted);
            // It may have been busy meanwhile, and be remembered again.
            let is_idle = shard.get(&evicted).is_some_and(|board| board.is_idle());
            if is_idle && !self.remembered_users().contains(&evicted) {
                shard.remove(&evicted);
            }
        }
        result
    }

    /// Returns `true` if nothing is due earlier, so that the task has to be woken.
    fn schedule(&self, user: &Eid, before: Option<Instant>, at: Instant) -> bool {
        let mut agenda = self.agenda();
        if let Some(before) = before {
            agenda.remove(&(before, user.clone()));
        }
        agenda.insert((at, user.clone()));
        agenda.first().is_some_and(|(first, _)| *first == at)
    }

    /// Keeps an idle user's board for a while. Returns the user who has been idle for longest if there are too many.
    fn remember(&self, user: &Eid) -> Option<Eid> {
        let mut remembered = self.remembered_users();
        remembered.put(user.clone(), ());
        (remembered.len() > self.kept_max).then(|| remembered.pop_lru()).flatten().map(|(evicted, ())| evicted)
    }

    fn watches_of(&self, user: &Eid) -> Vec<Arc<Watch>> {
        self.shard(user).get(user).map(|board| board.watches.clone()).unwrap_or_default()
    }

    fn remembered_users(&self) -> MutexGuard<'_, LruCache<Eid, ()>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, user: &Eid) -> MutexGuard<'_, HashMap<Eid, Box<Board>>> {
        let index = self.hasher.hash_one(user) as usize % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn agenda(&self) -> MutexGuard<'_, BTreeSet<(Instant, Eid)>> {
        self.agenda.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes due entries from the front.
trait Agenda {
    fn pop_first_if_due(&mut self, now: Instant) -> Option<(Instant, Eid)>;
}

impl Agenda for BTreeSet<(Instant, Eid)> {
    fn pop_first_if_due(&mut self, now: Instant) -> Option<(Instant, Eid)> {
        if self.first()?.0 > now { None } else { self.pop_first() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(kept_max: usize) -> Presence {
        let timing = Timing { interval: Duration::ZERO, ..Timing::default() };
        Presence { kept_max, ..Presence::new(timing, Box::new(Now::system)) }
    }

    fn user(number: usize) -> Eid {
        Eid::parse(&format!("user{number}@x")).unwrap()
    }

    fn phone() -> DeviceId {
        DeviceId::parse("phone").unwrap()
    }

    #[test]
    fn a_flapping_owner_whom_many_watch_costs_so_many_notifications_a_second_and_the_newest_is_told() {
        const WATCHERS: usize = 3_000;
        const SECONDS: usize = 10;
        let (start, ms) = (Now::system(), Arc::new(AtomicU64::new(0)));
        let at = move |ms: u64| Now { at: start.at + Duration::from_millis(ms), ..start };
        let clock = ms.clone();
        let clock: Clock = Box::new(move || at(clock.load(Ordering::Relaxed)));
        let (presence, owner) = (Arc::new(Presence::new(Timing::default(), clock)), user(0));
        presence.connected(&owner, &phone(), 1);
        let watch = |number| {
            let lane = presence.watch(&user(number), &phone(), Arc::default());
            lane.install(vec![(owner.clone(), Access { share_location: true })]);
            lane
        };
        let lanes: Vec<_> = (1..=WATCHERS).map(watch).collect();
        let mut told = vec![Vec::new(); WATCHERS];
        // It changes ten times a second, and then no more.
        for tenth in 0..10 * (SECONDS + 5) {
            ms.store(100 * tenth as u64, Ordering::Relaxed);
            let status = if tenth % 2 == 0 { AwarenessStatus::Away } else { AwarenessStatus::Online };
            if tenth < 10 * SECONDS {
                presence.update(&owner, &phone(), &Update { status, silent: false, location: None });
            }
            for (owner, watches) in presence.run_due() {
                watches.iter().for_each(|watch| watch.mark(&owner));
            }
            for (lane, told) in lanes.iter().zip(&mut told) {
                told.extend(std::iter::from_fn(|| lane.next(at(100 * tenth as u64))).map(|told| told.shown.status));
            }
        }
        // All are told when the lanes open, and once more in the end.
        let most = 2 * WATCHERS + SECONDS * PRESENCE_TOLD_PER_SECOND as usize;
        let sum = told.iter().map(Vec::len).sum::<usize>();
        assert!(sum <= most, "{sum} notifications");
        assert!(told.iter().all(|told| told.last() == Some(&AwarenessStatus::Online)));
    }

    #[test]
    fn the_longest_absent_is_forgotten() {
        let presence = presence(2);
        let mut joins = 0;
        let mut visit = |number: usize| {
            joins += 1;
            presence.connected(&user(number), &phone(), joins);
            assert!(presence.last_seen(&user(number)) > 0);
            presence.left(&user(number), &phone(), joins, false);
            presence.run_due().for_each(drop);
        };
        let known = || (1..=4).filter(|number| presence.last_seen(&user(*number)) > 0).collect::<Vec<_>>();
        [1, 2, 3].into_iter().for_each(&mut visit);
        assert_eq!((known(), presence.remembered()), (vec![2, 3], 2));
        // Who was there again is the newest.
        [2, 4].into_iter().for_each(&mut visit);
        assert_eq!((known(), presence.remembered()), (vec![2, 4], 2));
        // Who is there takes no place.
        presence.connected(&user(1), &phone(), 99);
        assert_eq!((known(), presence.remembered()), (vec![1, 2, 4], 2));
    }

    #[test]
    fn who_comes_back_while_being_forgotten_is_there() {
        const USERS: usize = 3;
        const ROUNDS: usize = 20_000;
        let presence = presence(1);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let presence = &presence;
                scope.spawn(move || {
                    let device = DeviceId::parse(&format!("device{thread}")).unwrap();
                    for round in 0..ROUNDS {
                        let (user, join) = (user((round * (thread + 1)) % USERS), (2 * round + thread) as u64);
                        presence.connected(&user, &device, join);
                        assert!(presence.last_seen(&user) > 0, "somebody who is there was forgotten");
                        presence.left(&user, &device, join, false);
                        presence.run_due().for_each(drop);
                    }
                });
            }
        });
        presence.run_due().for_each(drop);
        let boards: usize = presence.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        // A board that an eviction by two threads at once has left behind would stay for ever.
        assert_eq!((boards, presence.remembered()), (1, 1));
    }
}
