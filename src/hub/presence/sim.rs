//! Seeded stories of presence under a virtual clock, which check that every watch was last told what the owner really
//! shows.
//!
//! Devices flap, users choose a status, lists change, lanes open and close. Commits, their announcements, fan-outs and
//! slow lanes interleave as in the running server. An oracle replays each owner's history to compute the right state.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::board::Board;
use super::state::{Location, Shown, Update};
use super::watch::{Told, Watch, WatchPlace};
use super::{Presence, Timing};
use crate::clock::Now;
use crate::hub::Signal;
use crate::random::Random;
use crate::store::Access;
use crate::wire::{AwarenessStatus, DeviceId, Eid};

const SEEDS: u64 = 3_000;
const STEPS: usize = 250;
const USERS: usize = 4;
const DEVICES: usize = 2;
const TIMING: Timing = Timing {
    offline_grace: Duration::from_secs(15),
    interval: Duration::from_millis(500),
    location_kept: Duration::from_secs(60),
};
/// A directed notice: nobody is really seen at such a time.
const DIRECTED: Shown = Shown { status: AwarenessStatus::Busy, last_seen: -1, location: None, silent: false };

#[test]
fn in_the_end_every_watch_was_told_what_the_owner_shows() {
    let (mut told, mut forgotten) = (0, 0);
    for seed in 1..=SEEDS {
        let mut world = World::new(seed);
        world.begin();
        for _ in 0..STEPS {
            world.step();
            world.forget_absent();
        }
        world.settle();
        world.forget_absent();
        world.check_end();
        told += world.told;
        forgotten += world.forgotten;
    }
    // Otherwise the stories would test nothing.
    assert!(told > SEEDS * 10 && forgotten > SEEDS / 10, "{told} told, {forgotten} forgotten");
}

#[test]
fn who_withdraws_or_closes_while_a_list_is_taken_over_stands_nowhere() {
    let world = World::new(0);
    let (alice, bob, access) = (user(0), user(1), Some(Access { share_location: true }));
    world.presence.connected(&alice, &device(0), 1);
    let lane = world.presence.watch(&bob, &device(0), Arc::default());
    lane.install(Vec::new());
    // The list changes between the announcement by the store's writer and the moment when the session's thread uses the
    // list that it has read before.
    world.presence.access_changed(&alice, &bob, access);
    world.presence.access_changed(&alice, &bob, None);
    world.presence.stand(&alice, &lane.watch);
    assert_eq!((lane.ask(&alice, world.now()), lane.next(world.now())), (None, None));
    let watch = lane.watch.clone();
    drop(lane);
    assert!(!watch.note(&alice, access), "a lane that is gone takes nobody in");
    world.presence.stand(&alice, &watch);
    world.check_closed();
}

/// An event of an owner's history, for the oracle.
enum Event {
    Connected(usize, u64),
    Lost(u64),
    Left(usize, u64, bool),
    Forgotten(usize, bool),
    Said(usize, Update),
}

/// A presence lane, with what its device was told.
struct Lane {
    user: usize,
    place: WatchPlace,
    /// The list that the store returned, until the session takes it over.
    loading: Option<Vec<(Eid, Access)>>,
    told: HashMap<Eid, Shown>,
    /// When it was last told anything of an owner, but for the owner's withdrawal.
    heard: HashMap<Eid, u64>,
}

struct World {
    seed: u64,
    random: Random,
    start: Now,
    /// Milliseconds since the start; the clock of presence reads it.
    time: Arc<AtomicU64>,
    presence: Arc<Presence>,
    histories: Vec<Vec<(u64, Event)>>,
    joins: u64,
    /// Connections that are signing in.
    joined: Vec<(usize, usize, u64)>,
    /// Connections whose end the server has not seen.
    connections: Vec<(usize, usize, u64)>,
    /// Access as committed, and as announced, by owner and subscriber.
    committed: BTreeMap<(usize, usize), Access>,
    announced: BTreeMap<(usize, usize), Access>,
    announcements: VecDeque<(usize, usize, Option<Access>)>,
    /// Watches that a fan-out has not marked yet.
    marks: VecDeque<(Eid, Arc<Watch>)>,
    lanes: Vec<Lane>,
    told: u64,
    /// How often a user of whom there was something was forgotten.
    forgotten: u64,
}

fn user(index: usize) -> Eid {
    Eid::parse(&format!("user{index}@x")).unwrap()
}

fn device(index: usize) -> DeviceId {
    DeviceId::parse(&format!("device{index}")).unwrap()
}

fn at(start: Now, ms: u64) -> Now {
    Now { at: start.at + Duration::from_millis(ms), unix_ms: start.unix_ms + ms as i64 }
}

impl World {
    fn new(seed: u64) -> World {
        let (start, time) = (Now { unix_ms: 1_000_000, ..Now::system() }, Arc::new(AtomicU64::new(0)));
        let clock = time.clone();
        let mut presence = Presence::new(TIMING, Box::new(move || at(start, clock.load(Ordering::Relaxed))));
        // In half of the stories nearly everybody who is absent is forgotten.
        if seed.is_multiple_of(2) {
            presence.kept_max = 1;
        }
        World {
            seed,
            random: Random::new(seed),
            start,
            time,
            presence: Arc::new(presence),
            histories: (0..USERS).map(|_| Vec::new()).collect(),
            joins: 0,
            joined: Vec::new(),
            connections: Vec::new(),
            committed: BTreeMap::new(),
            announced: BTreeMap::new(),
            announcements: VecDeque::new(),
            marks: VecDeque::new(),
            lanes: Vec::new(),
            told: 0,
            forgotten: 0,
        }
    }

    fn ms(&self) -> u64 {
        self.time.load(Ordering::Relaxed)
    }

    fn now(&self) -> Now {
        at(self.start, self.ms())
    }

    /// Most users may see each other, and have a lane.
    fn begin(&mut self) {
        (0..2 * USERS * USERS).for_each(|_| self.commit());
        for _ in 0..USERS {
            self.open_lane();
            self.list_comes();
        }
    }

    fn step(&mut self) {
        match self.random.below(33) {
            0..3 => self.join(),
            3..6 => self.appear(),
            6..8 => self.lose(),
            8 => self.leave(),
            9..14 => self.say(),
            14..16 => self.commit(),
            16..18 => self.announce(),
            18 => self.open_lane(),
            19..21 => self.list_comes(),
            21 => self.close_lane(),
            22 => self.forget(),
            23..25 => self.mark_some(),
            25..29 => self.read_lane(),
            29 => self.direct(),
            _ => self.wait(),
        }
    }

    /// A connection signs in, and waits for the store.
    fn join(&mut self) {
        self.joins += 1;
        self.joined.push((self.random.below(USERS), self.random.below(DEVICES), self.joins));
    }

    /// Completes a sign-in, not always in the order in which the connections joined.
    fn appear(&mut self) {
        let index = self.random.below(self.joined.len().max(1));
        if index < self.joined.len() {
            let (owner, phone, join) = self.joined.swap_remove(index);
            self.connections.push((owner, phone, join));
            self.presence.connected(&user(owner), &device(phone), join);
            self.happened(owner, Event::Connected(phone, join));
        }
    }

    /// Nothing is known any more of users who have no board.
    fn forget_absent(&mut self) {
        assert!(self.presence.remembered() <= self.presence.kept_max, "seed {}", self.seed);
        for owner in 0..USERS {
            let history = &self.histories[owner];
            if history.is_empty() || self.presence.has_board(&user(owner)) {
                continue;
            }
            let is_absent = gone(&oracle(history, self.ms(), self.start));
            let has_lane = self.lanes.iter().any(|lane| lane.user == owner);
            assert!(is_absent && !has_lane, "seed {}: user{owner} was forgotten", self.seed);
            self.histories[owner].clear();
            self.forgotten += 1;
        }
    }

    fn happened(&mut self, owner: usize, event: Event) {
        let ms = self.ms();
        self.histories[owner].push((ms, event));
    }

    /// Loses a connection, often one that a newer one has replaced.
    fn lose(&mut self) {
        if let Some((owner, _, join)) = self.some_connection() {
            self.presence.lost(&user(owner), join);
            self.happened(owner, Event::Lost(join));
        }
    }

    fn leave(&mut self) {
        if let Some((owner, phone, join)) = self.some_connection() {
            let signed_out = self.random.below(2) == 0;
            self.presence.left(&user(owner), &device(phone), join, signed_out);
            self.happened(owner, Event::Left(phone, join, signed_out));
        }
    }

    /// A device is signed out or revoked, now and then one that has signed in with another token.
    fn forget(&mut self) {
        if let Some((owner, phone, join)) = self.some_connection() {
            self.connections.push((owner, phone, join));
            let stays = self.random.below(4) == 0;
            self.presence.forgotten(&user(owner), &device(phone), stays);
            self.happened(owner, Event::Forgotten(phone, stays));
        }
    }

    fn some_connection(&mut self) -> Option<(usize, usize, u64)> {
        let index = self.random.below(self.connections.len().max(1));
        (index < self.connections.len()).then(|| self.connections.swap_remove(index))
    }

    fn say(&mut self) {
        let Some((owner, phone, join)) = self.some_connection() else { return };
        self.connections.push((owner, phone, join));
        use AwarenessStatus::{Away, Busy, DoNotDisturb, Idle, Invisible, Offline, Online};
        let statuses = [Online, Online, Idle, Idle, Away, Busy, DoNotDisturb, Invisible, Offline];
        let status = statuses[self.random.below(statuses.len())];
        let place = Location { latitude: self.random.below(3) as f64, longitude: 7.0 };
        let location = (self.random.below(3) == 0).then_some(place);
        let update = Update { status, silent: self.random.below(5) == 0, location };
        self.presence.update(&user(owner), &device(phone), &update);
        self.happened(owner, Event::Said(phone, update));
    }

    /// Somebody sends one user a notice, which need not be true.
    fn direct(&mut self) {
        let (owner, other) = (self.random.below(USERS), self.random.below(USERS));
        self.presence.direct(&user(other), &Told { owner: user(owner), shown: DIRECTED });
    }

    /// The store's writer has committed a change of a list, and is about to announce it.
    fn commit(&mut self) {
        let (owner, other) = (self.random.below(USERS), self.random.below(USERS));
        let access = (self.random.below(3) > 0).then(|| Access { share_location: self.random.below(2) == 0 });
        if owner == other || self.committed.get(&(owner, other)).copied() == access {
            return;
        }
        set(&mut self.committed, (owner, other), access);
        self.announcements.push_back((owner, other, access));
        if self.random.below(2) == 0 {
            self.announce();
        }
    }

    fn announce(&mut self) {
        if let Some((owner, other, access)) = self.announcements.pop_front() {
            set(&mut self.announced, (owner, other), access);
            self.presence.access_changed(&user(owner), &user(other), access);
            if access.is_none() {
                // The lane forgets the `last_seen` of an owner who withdraws.
                let lanes = self.lanes.iter_mut().filter(|lane| lane.user == other);
                lanes.for_each(|lane| lane.told.retain(|told, shown| *told != user(owner) || !gone(shown)));
            }
        }
    }

    fn open_lane(&mut self) {
        let (index, phone) = (self.random.below(USERS), self.random.below(DEVICES));
        let place = self.presence.watch(&user(index), &device(phone), Arc::<Signal>::default());
        let admitted = self.committed.iter().filter(|((_, other), _)| *other == index);
        let loading = Some(admitted.map(|((owner, _), access)| (user(*owner), *access)).collect());
        self.lanes.push(Lane { user: index, place, loading, told: HashMap::new(), heard: HashMap::new() });
    }

    fn list_comes(&mut self) {
        let Some(index) = self.some_lane() else { return };
        let lane = &mut self.lanes[index];
        if let Some(owners) = lane.loading.take() {
            lane.place.install(owners);
        }
    }

    fn close_lane(&mut self) {
        if let Some(index) = self.some_lane() {
            self.lanes.swap_remove(index);
        }
    }

    fn some_lane(&mut self) -> Option<usize> {
        let index = self.random.below(self.lanes.len().max(1));
        (index < self.lanes.len()).then_some(index)
    }

    fn fan_out(&mut self) {
        let due: Vec<_> = self.presence.run_due().collect();
        for (owner, watches) in due {
            self.marks.extend(watches.into_iter().map(|watch| (owner.clone(), watch)));
        }
    }

    fn mark_some(&mut self) {
        for _ in 0..self.random.below(4) {
            let Some((owner, watch)) = self.marks.pop_front() else { return };
            watch.mark(&owner);
        }
    }

    /// The lane takes a few frames.
    fn read_lane(&mut self) {
        if let Some(index) = self.some_lane() {
            let frames = self.random.below(4);
            self.read(index, frames);
        }
    }

    fn read(&mut self, index: usize, frames: usize) {
        let (now, ms, seed) = (self.now(), self.ms(), self.seed);
        let interval = TIMING.interval.as_millis() as u64;
        let lane = &mut self.lanes[index];
        if lane.loading.is_some() {
            return;
        }
        for _ in 0..frames {
            let Some(told) = lane.place.next(now) else { return };
            self.told += 1;
            if told.owner == user(lane.user) {
                continue;
            }
            if told.shown != Shown::GONE
                && let Some(before) = lane.heard.insert(told.owner.clone(), ms)
            {
                assert!(ms >= before + interval, "seed {seed}: {told:?} twice within an interval");
            }
            if told.shown == DIRECTED {
                continue;
            }
            let before = lane.told.get(&told.owner).copied();
            let known = before.is_some_and(|shown| shown.status != AwarenessStatus::Offline);
            if told.shown == Shown::GONE {
                // An owner who withdraws appears to leave at once. If the owner did not appear to be there, nothing is
                // sent.
                assert!(known, "seed {seed}: {told:?} of nobody");
                lane.told.insert(told.owner, told.shown);
                continue;
            }
            let owner = (0..USERS).find(|index| user(*index) == told.owner).unwrap();
            // The access that was announced, and those committed since then.
            let pair = (owner, lane.user);
            let pending = self.announcements.iter().filter(|(a, b, _)| (*a, *b) == pair).map(|(_, _, access)| *access);
            let allowed: Vec<_> = pending.chain([self.announced.get(&pair).copied()]).flatten().collect();
            assert!(!allowed.is_empty(), "seed {seed}: {told:?} to user{}", lane.user);
            let shared = allowed.iter().any(|access| access.share_location);
            assert!(told.shown.location.is_none() || shared, "seed {seed}: {told:?} to user{}", lane.user);
            assert!(told.shown.status != AwarenessStatus::Invisible && !told.shown.silent, "seed {seed}: {told:?}");
            if let Some(shown) = before {
                assert!(told.shown.differs(&shown), "seed {seed}: {told:?} is no news");
            }
            lane.told.insert(told.owner, told.shown);
        }
    }

    fn wait(&mut self) {
        let ms = match self.random.below(8) {
            0..3 => self.random.below(100),
            3..7 => self.random.below(1_000),
            _ => self.random.below(20_000),
        };
        self.pass(ms as u64);
    }

    /// Time passes. What becomes due is done at once, as in the running server.
    fn pass(&mut self, ms: u64) {
        let end = self.ms() + ms;
        while let Some(due) = self.presence.due() {
            let due = due.duration_since(self.start.at).as_nanos().div_ceil(1_000_000) as u64;
            if due > end {
                break;
            }
            self.time.fetch_max(due, Ordering::Relaxed);
            self.fan_out();
        }
        self.time.store(end, Ordering::Relaxed);
    }

    /// Nothing new happens, and everything under way completes. Whether locations are still kept at the end is
    /// random.
    fn settle(&mut self) {
        while !self.announcements.is_empty() {
            self.announce();
        }
        for lane in &mut self.lanes {
            if let Some(owners) = lane.loading.take() {
                lane.place.install(owners);
            }
        }
        for _ in 0..20 + 60 * self.random.below(2) {
            self.pass(1_000);
            while !self.marks.is_empty() {
                self.mark_some();
            }
            (0..self.lanes.len()).for_each(|index| self.read(index, usize::MAX));
        }
    }

    fn check_end(&mut self) {
        // Exactly the idle boards are remembered: one more would count a user who is there, one less would never go.
        let idle = |shard: &std::sync::Mutex<HashMap<Eid, Box<Board>>>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).values().filter(|board| board.is_idle()).count()
        };
        let idle: usize = self.presence.shards.iter().map(idle).sum();
        assert_eq!(self.presence.remembered(), idle, "seed {}", self.seed);
        let (seed, now) = (self.seed, self.now());
        for lane in &self.lanes {
            for owner in (0..USERS).filter(|owner| *owner != lane.user) {
                let told = lane.told.get(&user(owner)).copied();
                let context = || format!("seed {seed}: user{owner} to user{}", lane.user);
                let access = self.committed.get(&(owner, lane.user));
                let Some(access) = access else {
                    assert!(told.is_none_or(|shown| gone(&shown)), "{}: {told:?}", context());
                    assert_eq!(lane.place.ask(&user(owner), now), None, "{}", context());
                    continue;
                };
                let really = oracle(&self.histories[owner], self.ms(), self.start);
                let really = Shown { location: really.location.filter(|_| access.share_location), ..really };
                let asked = lane.place.ask(&user(owner), now);
                assert_eq!(asked, Some(really), "{}", context());
                match told {
                    Some(told) => assert!(
                        !really.differs(&told) || told == Shown::GONE && gone(&really),
                        "{}: told {told:?}, really {really:?}",
                        context()
                    ),
                    None => assert!(gone(&really), "{}: never told {really:?}", context()),
                }
            }
        }
        self.lanes.clear();
        self.check_closed();
    }

    /// Checks that nothing is left of closed lanes.
    fn check_closed(&self) {
        for shard in &self.presence.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let left = shard.iter().find(|(_, board)| !board.watchers.is_empty() || !board.watches.is_empty());
            assert!(left.is_none(), "seed {}: a closed lane is still beside {}", self.seed, left.unwrap().0);
        }
    }
}

fn gone(shown: &Shown) -> bool {
    shown.status == AwarenessStatus::Offline
}

fn set(list: &mut BTreeMap<(usize, usize), Access>, pair: (usize, usize), access: Option<Access>) {
    match access {
        Some(access) => _ = list.insert(pair, access),
        None => _ = list.remove(&pair),
    }
}

/// The rules of protocol.md §12, applied literally to the whole history.
fn oracle(history: &[(u64, Event)], end: u64, start: Now) -> Shown {
    use AwarenessStatus::{Idle, Invisible, Offline, Online};
    let (grace, kept) = (TIMING.offline_grace.as_millis() as u64, TIMING.location_kept.as_millis() as u64);
    let mut devices: BTreeMap<usize, (u64, AwarenessStatus, Option<u64>)> = BTreeMap::new();
    let (mut choice, mut silent) = (None, Vec::new());
    let (mut location, mut seen, mut frozen) = (None, 0, None);
    for (ms, event) in history {
        let unix = at(start, *ms).unix_ms;
        devices.retain(|_, (_, _, lost)| lost.is_none_or(|lost| lost + grace > *ms));
        if devices.is_empty() {
            location = None;
        }
        // Whoever hides while OFFLINE is not seen to do so.
        let says_offline = devices.values().all(|(_, status, _)| *status == Offline);
        let hidden_as = if says_offline && (choice.is_none() || devices.is_empty()) { seen } else { unix };
        match event {
            Event::Connected(device, join) => {
                let (newest, _, lost) = devices.entry(*device).or_insert((*join, Online, None));
                if join >= newest {
                    (*newest, *lost, seen) = (*join, None, unix);
                }
            }
            Event::Lost(join) => {
                if let Some((_, _, lost)) = devices.values_mut().find(|(newest, _, _)| newest == join) {
                    (*lost, seen) = (Some(*ms), unix);
                }
            }
            Event::Left(device, join, signed_out) => {
                devices.retain(|_, (newest, _, _)| newest != join);
                silent.retain(|silent| silent != device || !signed_out);
                seen = unix;
                if *signed_out && devices.is_empty() && choice != Some(Invisible) && silent.is_empty() {
                    seen = frozen.unwrap_or(seen);
                }
            }
            Event::Forgotten(device, stays) => {
                if !stays && devices.remove(device).is_some_and(|(_, _, lost)| lost.is_none()) {
                    seen = unix;
                }
                silent.retain(|silent| silent != device);
                if choice != Some(Invisible) && silent.is_empty() && frozen.is_some() {
                    // Others do not see that somebody was there while hiding.
                    seen = if devices.is_empty() { frozen.unwrap_or(seen) } else { unix };
                }
            }
            Event::Said(device, update) => {
                seen = unix;
                match update.status {
                    Online | Idle | Offline => {
                        choice = choice.filter(|_| update.status != Online);
                        devices.get_mut(device).into_iter().for_each(|(_, status, _)| *status = update.status);
                    }
                    chosen => choice = Some(chosen),
                }
                silent.retain(|silent| silent != device);
                silent.extend(Some(*device).filter(|device| update.silent && devices.contains_key(device)));
                location = update.location.map(|location| (location, *ms)).or(location);
            }
        }
        let hides = choice == Some(Invisible) || !silent.is_empty();
        if hides {
            location = None;
        }
        frozen = if hides { Some(frozen.unwrap_or(hidden_as)) } else { None };
    }
    devices.retain(|_, (_, _, lost)| lost.is_none_or(|lost| lost + grace > end));
    if let Some(frozen) = frozen {
        return Shown { last_seen: frozen, ..Shown::GONE };
    }
    let of_devices: Vec<_> = devices.values().map(|(_, status, _)| *status).collect();
    let status = match () {
        () if !of_devices.is_empty() && choice.is_some() => choice.unwrap_or(Offline),
        () if of_devices.contains(&Online) => Online,
        () if of_devices.contains(&Idle) => Idle,
        () => return Shown { last_seen: seen, ..Shown::GONE },
    };
    let location = location.filter(|(_, ms)| ms + kept > end).map(|(location, _)| location);
    Shown { status, last_seen: at(start, end).unix_ms, location, silent: false }
}
