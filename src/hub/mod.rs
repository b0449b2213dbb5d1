//! The registry of connected devices: wakes the tails of a user's devices, and keeps the newest log entries of
//! connected users in memory.
//!
//! Correct delivery does not depend on the hub: a tail that finds nothing in the hub's memory reads the store. The hub
//! saves that read in the usual case, a device that keeps up. Locks are per shard and never held while a session is woken;
//! presence is told of a connection's end under the lock of its user's shard.

mod place;
pub mod presence;
mod recent;
mod revocations;
mod signal;

pub use place::{Membership, Visit};
pub use recent::Recent;
pub use signal::{Notice, Relay, Signal};

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::auth::Claims;
use crate::clock::{Clock, Now};
use crate::limits::RECENT_ENTRIES_MAX;
use crate::store::{Change, Counted, LogEntry, LogObserver, Lookups, Revocation, RevocationTarget};
use crate::wire::{CloseCode, DeviceId, Eid, Sequence};

use presence::{Presence, Timing};
use recent::RecentEntries;
use revocations::Revocations;

/// Shards of the map: enough that two cores rarely contend for one, few enough to iterate over.
const SHARDS: usize = 64;

/// The registry of connected devices.
pub struct Hub {
    shards: Vec<Mutex<HashMap<Eid, User>>>,
    hasher: RandomState,
    joins: AtomicU64,
    /// Sessions that have not signed in yet; at most as many as there are connections.
    visitors: Mutex<HashMap<u64, Arc<Signal>>>,
    /// Changed only while `visitors` is locked, so that no session can join unnoticed in between.
    draining: AtomicBool,
    connected: AtomicUsize,
    presence: Arc<Presence>,
    revocations: Revocations,
    /// Devices whose log has advanced with the commit that is being announced; at most the devices of its entries'
    /// users.
    advanced: Mutex<Vec<Arc<Signal>>>,
    /// Lookups in recent entries: hits, and misses, after which the tail reads the store.
    looks: Counted,
}

/// A user with at least one connected device.
#[derive(Default)]
struct User {
    members: Vec<Member>,
    recent: RecentEntries,
}

struct Member {
    device: DeviceId,
    join: u64,
    /// Its handshake is not complete: somebody else may have recorded what its device sent, and sent it again or late.
    is_early: bool,
    signal: Arc<Signal>,
    claims: Claims,
    /// The sequence up to which the device's tail has taken everything; `None` until it first asks for entries.
    passed: Option<Sequence>,
    /// Head of the user's log when the device signed in, as the store gave it.
    head: Sequence,
}

impl User {
    /// Drops the entries that every tail has taken. If no device has a tail yet, drops all.
    fn forget_what_all_passed(&mut self) {
        let slowest = self.members.iter().filter_map(|member| member.passed).min();
        self.recent.forget_up_to(slowest.unwrap_or(Sequence::from(u64::MAX)));
    }
}

impl Hub {
    /// An empty hub on the system's clock.
    pub fn new(presence: Timing) -> Hub {
        Hub::with_clock(presence, Box::new(Now::system))
    }

    /// An empty hub; `clock` is that of its presence.
    pub fn with_clock(presence: Timing, clock: Clock) -> Hub {
        Hub {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            joins: AtomicU64::new(0),
            visitors: Mutex::default(),
            draining: AtomicBool::new(false),
            connected: AtomicUsize::new(0),
            presence: Arc::new(Presence::new(presence, clock)),
            revocations: Revocations::new(),
            advanced: Mutex::default(),
            looks: Counted::default(),
        }
    }

    /// Registers a session that has not signed in, until the returned visit is dropped. Only what every connection is told
    /// reaches it: that the server drains.
    pub fn visit(self: &Arc<Self>, signal: Arc<Signal>) -> Visit {
        let number = self.joins.fetch_add(1, Ordering::Relaxed);
        let draining = {
            let mut visitors = self.visitors.lock().unwrap_or_else(PoisonError::into_inner);
            visitors.insert(number, signal.clone());
            self.draining.load(Ordering::Relaxed)
        };
        if draining {
            // The handshake was still under way when the other sessions were told.
            signal.notify(Notice::Drain);
        }
        Visit { hub: self.clone(), number }
    }

    /// Registers a device until the returned membership is dropped. Older connections of the same device are told to close as
    /// replaced (protocol.md §5, Again).
    pub fn join(self: &Arc<Self>, device: &DeviceId, claims: Claims, signal: Arc<Signal>) -> Membership {
        let membership = self.join_early(device, claims, signal);
        membership.confirm();
        membership
    }

    /// The same for a connection whose handshake is not complete: it is beside older ones, until [`Membership::confirm`].
    pub fn join_early(self: &Arc<Self>, device: &DeviceId, claims: Claims, signal: Arc<Signal>) -> Membership {
        let user = &claims.eid.clone();
        let join = {
            let mut shard = self.shard(user);
            // Under the lock: of two connections of a device the one that replaces the other must have the higher number.
            let join = self.joins.fetch_add(1, Ordering::Relaxed);
            let (device, head) = (device.clone(), Sequence::ZERO);
            let member = Member { device, join, is_early: true, signal, claims, passed: None, head };
            let members = &mut shard.entry(user.clone()).or_default().members;
            // Most users have one or two devices, and a vector starts with four places.
            members.reserve_exact(1);
            members.push(member);
            join
        };
        self.connected.fetch_add(1, Ordering::Relaxed);
        Membership { hub: self.clone(), user: user.clone(), device: device.clone(), join }
    }

    /// The presence of all users.
    pub fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }

    /// Loads revocations that were recorded before the server started.
    pub fn recall(&self, revocations: &[Revocation]) {
        revocations.iter().for_each(|revocation| self.revocations.insert(revocation));
    }

    /// Whether a token has been revoked. Call this after joining: then a concurrent revocation either is found here, or
    /// finds the session among those that it closes.
    pub fn refuses(&self, claims: &Claims, device: &DeviceId) -> bool {
        self.revocations.refuse(claims, device)
    }

    /// Asks one connected device of a user, or all of them, to answer a ping; `false` if none is connected.
    pub fn relay_ping(&self, user: &Eid, device: Option<&DeviceId>, relay: &Relay) -> bool {
        let signals: Vec<_> = {
            let shard = self.shard(user);
            let members = shard.get(user).map_or(&[][..], |user| &user.members);
            let asked = members.iter().filter(|member| device.is_none_or(|device| member.device == *device));
            asked.map(|member| member.signal.clone()).collect()
        };
        signals.iter().for_each(|signal| signal.notify(Notice::Ping(relay.clone())));
        !signals.is_empty()
    }

    /// Number of connected devices; one that signs in again early counts twice until its handshake is complete.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// Starts the shutdown: tells every connected device, signed in or not, and every one that still connects.
    pub fn drain(&self) {
        {
            let _visitors = self.visitors.lock().unwrap_or_else(PoisonError::into_inner);
            self.draining.store(true, Ordering::Relaxed);
        }
        self.broadcast(&Notice::Drain);
    }

    /// Whether the server is shutting down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// How far connected devices are behind their logs. Iterates over all of them.
    pub fn lag(&self) -> Lag {
        let mut lag = Lag::default();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for user in shard.values() {
                let head = user.recent.head();
                for member in &user.members {
                    let Some(passed) = member.passed else { continue };
                    lag.add(head.max(member.head).get().saturating_sub(passed.get()));
                }
            }
        }
        lag
    }

    /// How often a tail found entries in memory, and how often it had to read the store.
    pub fn looks(&self) -> Lookups {
        self.looks.lookups()
    }

    /// Sends a notice to every connected device, signed in or not.
    pub fn broadcast(&self, notice: &Notice) {
        let visitors: Vec<_> = self.visitors.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        visitors.iter().for_each(|signal| signal.notify(notice.clone()));
        for shard in &self.shards {
            let signals: Vec<_> = {
                let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                shard.values().flat_map(|user| &user.members).map(|member| member.signal.clone()).collect()
            };
            signals.iter().for_each(|signal| signal.notify(notice.clone()));
        }
    }

    /// A device was signed out or revoked: it counts for presence no longer, unless it has signed in with a token that is
    /// good, and its DO_NOT_BROADCAST ends.
    pub fn forgotten(&self, user: &Eid, device: &DeviceId) {
        let stays = self.shard(user).get(user).is_some_and(|user| {
            let good = |member: &Member| !self.revocations.refuse(&member.claims, &member.device);
            user.members.iter().any(|member| member.device == *device && good(member))
        });
        self.presence.forgotten(user, device, stays);
    }

    /// Tells the sessions that used the revoked target to close.
    fn close_revoked(&self, target: &RevocationTarget) {
        let (RevocationTarget::Token(user, _) | RevocationTarget::Device(user, _) | RevocationTarget::User(user)) =
            target;
        let signals: Vec<_> = {
            let shard = self.shard(user);
            let members = shard.get(user).map_or(&[][..], |user| &user.members);
            let refused = members.iter().filter(|m| self.revocations.refuse(&m.claims, &m.device));
            refused.map(|member| member.signal.clone()).collect()
        };
        signals.iter().for_each(|signal| signal.notify(Notice::Close(CloseCode::Revoked)));
    }

    fn advanced(&self) -> MutexGuard<'_, Vec<Arc<Signal>>> {
        self.advanced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, user: &Eid) -> MutexGuard<'_, HashMap<Eid, User>> {
        let index = self.hasher.hash_one(user) as usize % SHARDS;
        // A poisoned lock can be used: after a panic the map still says who is connected.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Hub {
    fn default() -> Self {
        Hub::new(Timing::default())
    }
}

impl LogObserver for Hub {
    fn appended(&self, user: &Eid, entry: &Arc<LogEntry>) {
        let mut shard = self.shard(user);
        let Some(user) = shard.get_mut(user) else { return };
        user.recent.push(entry.clone());
        user.forget_what_all_passed();
        let signals = user.members.iter().map(|member| &member.signal);
        self.advanced().extend(signals.filter(|signal| signal.mark()).cloned());
    }

    fn announced(&self) {
        // Sessions that got an answer have been woken by it, and may have seen their log already.
        let signals = std::mem::take(&mut *self.advanced());
        signals.iter().for_each(|signal| signal.wake());
    }

    fn changed(&self, change: &Change) {
        match change {
            Change::Access { owner, subscriber, access } => self.presence.access_changed(owner, subscriber, *access),
            Change::Blocked(one, other) => self.presence.blocked(one, other),
            Change::Revoked(revocation) => {
                self.revocations.insert(revocation);
                self.close_revoked(&revocation.target);
                if let RevocationTarget::Device(user, device) = &revocation.target {
                    self.forgotten(user, device);
                }
            }
            Change::Lapsed(target) => self.revocations.remove(target),
        }
    }
}

/// How far connected devices are behind. Devices that have not asked for their log do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Number of entries still to be sent, summed over all devices.
    pub entries: u64,
    /// Number of entries still to be sent to the device that is furthest behind.
    pub furthest: u64,
    /// Number of devices that are further behind than the hub can remember.
    pub behind: usize,
}

impl Lag {
    fn add(&mut self, entries: u64) {
        self.entries += entries;
        self.furthest = self.furthest.max(entries);
        self.behind += usize::from(entries > RECENT_ENTRIES_MAX as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI64;
    use std::time::Duration;

    use super::*;
    use crate::store::EntryBody;
    use crate::wire::{AckStatus, AwarenessStatus, ChatId, Version};

    fn eid(text: &str) -> Eid {
        Eid::parse(text).unwrap()
    }

    fn claims(user: &Eid) -> Claims {
        let (eid, fingerprint) = (user.clone(), [0; 32]);
        Claims { eid, device: None, fingerprint, issued_at: Some(100), expires_at: 0, admin: false }
    }

    fn entry(sequence: u64) -> Arc<LogEntry> {
        let (alice, bob) = (eid("alice@x"), eid("bob@x"));
        let chat = ChatId::between(&alice, &bob);
        let body = EntryBody::Acknowledged(crate::store::Acknowledged {
            reader: bob,
            sender: alice,
            target: crate::store::AckTarget::UpTo(chat, Version::from(sequence)),
            chat,
            status: AckStatus::Read,
            at: 0,
            changed: true,
        });
        Arc::new(LogEntry {
            sequence: sequence.into(),
            origin: None,
            at: 0,
            body,
            received: None,
            committed: None,
            frame: std::sync::OnceLock::new(),
        })
    }

    fn sequences(recent: Recent) -> Vec<u64> {
        match recent {
            Recent::Entries(entries) => entries.iter().map(|entry| entry.sequence.get()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_tail_that_keeps_up_is_served_from_memory_and_memory_is_let_go() {
        let (hub, alice) = (Arc::new(Hub::default()), eid("alice@x"));
        let signal = Arc::new(Signal::default());
        let place = hub.join(&DeviceId::parse("phone").unwrap(), claims(&alice), signal.clone());
        assert!(matches!(place.recent(3.into(), 10), Recent::Nothing));
        assert!(!signal.take_advanced());
        (5..8).for_each(|n| hub.appended(&alice, &entry(n)));
        assert!(signal.take_advanced());
        assert_eq!(sequences(place.recent(4.into(), 2)), [5, 6]);
        assert_eq!(sequences(place.recent(6.into(), 2)), [7]);
        assert!(matches!(place.recent(7.into(), 2), Recent::Nothing));
        // The device has taken all entries, so they are dropped; an older position has to read the store.
        assert!(matches!(place.recent(5.into(), 2), Recent::Behind(head) if head == 7.into()));
    }

    #[test]
    fn the_slowest_device_bounds_what_is_kept_up_to_the_limit() {
        let (hub, alice) = (Arc::new(Hub::default()), eid("alice@x"));
        let fast = hub.join(&DeviceId::parse("fast").unwrap(), claims(&alice), Arc::default());
        let slow = hub.join(&DeviceId::parse("slow").unwrap(), claims(&alice), Arc::default());
        assert!(matches!(slow.recent(Sequence::ZERO, 10), Recent::Nothing));
        let last = crate::limits::RECENT_ENTRIES_MAX as u64 + 10;
        for n in 1..=last {
            hub.appended(&alice, &entry(n));
            assert_eq!(sequences(fast.recent((n - 1).into(), 10)), [n]);
        }
        assert!(matches!(slow.recent(Sequence::ZERO, 10), Recent::Behind(_)));
        assert_eq!(sequences(slow.recent(10.into(), 1)), [11]);
    }

    #[test]
    fn a_device_is_behind_by_what_it_has_not_been_sent() {
        let (hub, alice) = (Arc::new(Hub::default()), eid("alice@x"));
        let place = hub.join(&DeviceId::parse("phone").unwrap(), claims(&alice), Arc::default());
        place.starts_at(100.into());
        assert_eq!(hub.lag(), Lag::default(), "it has not asked for its log");
        assert!(matches!(place.recent(20.into(), 10), Recent::Nothing));
        assert_eq!(hub.lag(), Lag { entries: 80, furthest: 80, behind: 1 });
        hub.appended(&alice, &entry(101));
        assert!(matches!(place.recent(99.into(), 10), Recent::Behind(_)));
        assert_eq!(hub.lag(), Lag { entries: 2, furthest: 2, behind: 0 });
        assert_eq!(sequences(place.recent(100.into(), 10)), [101]);
        assert_eq!(hub.lag().entries, 0);
        assert_eq!(hub.looks(), Lookups { hits: 1, misses: 1 });
    }

    #[test]
    fn the_same_device_again_replaces_the_older_and_leaving_is_dropping() {
        let (hub, alice) = (Arc::new(Hub::default()), eid("alice@x"));
        let phone = DeviceId::parse("phone").unwrap();
        let (old, new) = (Arc::new(Signal::default()), Arc::new(Signal::default()));
        let first = hub.join(&phone, claims(&alice), old.clone());
        let second = hub.join(&phone, claims(&alice), new.clone());
        assert_eq!(old.take_notice(), Some(Notice::Close(CloseCode::Replaced)));
        assert_eq!((new.take_notice(), hub.connected()), (None, 1));
        drop(first);
        assert_eq!(hub.connected(), 1);
        hub.appended(&alice, &entry(1));
        assert!(new.take_advanced());
        drop(second);
        assert_eq!(hub.connected(), 0);
    }

    #[test]
    fn who_comes_while_the_server_drains_is_told_too() {
        let hub = Arc::new(Hub::default());
        let (early, late) = (Arc::new(Signal::default()), Arc::new(Signal::default()));
        let _early = hub.visit(early.clone());
        assert_eq!(early.take_notice(), None);
        hub.drain();
        let _late = hub.visit(late.clone());
        assert_eq!((early.take_notice(), late.take_notice()), (Some(Notice::Drain), Some(Notice::Drain)));
    }

    #[test]
    fn a_revocation_closes_what_used_it_and_refuses_what_was_issued_until_then() {
        let (hub, alice) = (Arc::new(Hub::default()), eid("alice@x"));
        let (phone, desk) = (DeviceId::parse("phone").unwrap(), DeviceId::parse("desk").unwrap());
        let (on_phone, on_desk) = (Arc::new(Signal::default()), Arc::new(Signal::default()));
        let _phone = hub.join(&phone, claims(&alice), on_phone.clone());
        let _desk = hub.join(&desk, claims(&alice), on_desk.clone());
        let revoke = |target, issued_until| {
            hub.changed(&Change::Revoked(Revocation { target, issued_until, expires_at: i64::MAX }));
        };
        revoke(RevocationTarget::Device(alice.clone(), phone.clone()), 99);
        assert_eq!(on_phone.take_notice(), None);
        revoke(RevocationTarget::Device(alice.clone(), phone.clone()), 100);
        assert_eq!(on_phone.take_notice(), Some(Notice::Close(CloseCode::Revoked)));
        assert_eq!(on_desk.take_notice(), None);
        assert!(hub.refuses(&claims(&alice), &phone) && !hub.refuses(&claims(&alice), &desk));
        let later = Claims { issued_at: Some(101), ..claims(&alice) };
        assert!(!hub.refuses(&later, &phone));
        hub.changed(&Change::Lapsed(RevocationTarget::Device(alice.clone(), phone.clone())));
        assert!(!hub.refuses(&claims(&alice), &phone), "it is for the one that covers it to refuse");
        hub.recall(&[Revocation { target: RevocationTarget::User(alice.clone()), issued_until: 100, expires_at: 1 }]);
        assert!(hub.refuses(&claims(&alice), &phone), "a clock that is ahead makes nothing valid again");
        revoke(RevocationTarget::Token(alice.clone(), [0; 32]), 0);
        assert_eq!(on_desk.take_notice(), Some(Notice::Close(CloseCode::Revoked)));
        assert!(hub.refuses(&later, &phone));
    }

    #[test]
    fn a_connection_that_is_replaced_leaves_its_device_to_its_successor_also_without_a_grace() {
        let hub = Arc::new(Hub::new(Timing { offline_grace: Duration::ZERO, ..Timing::default() }));
        let (alice, phone) = (eid("alice@x"), DeviceId::parse("phone").unwrap());
        let first = hub.join(&phone, claims(&alice), Arc::default());
        first.appear();
        // It has not signed in yet when the first is gone.
        let second = hub.join(&phone, claims(&alice), Arc::default());
        drop(first);
        assert_eq!(status(&hub, &alice), AwarenessStatus::Online);
        drop(second);
        assert_eq!(status(&hub, &alice), AwarenessStatus::Offline);
    }

    #[test]
    fn an_early_connection_replaces_the_older_one_when_its_handshake_is_complete_and_not_before() {
        let (hub, alice) = (Arc::new(Hub::default()), eid("alice@x"));
        let phone = DeviceId::parse("phone").unwrap();
        let (signal, others) = (Arc::new(Signal::default()), Arc::new(Signal::default()));
        let live = hub.join(&phone, claims(&alice), signal.clone());
        live.appear();
        let early = || {
            let early = hub.join_early(&phone, claims(&alice), others.clone());
            early.appear();
            early
        };
        let (replay, returning) = (early(), early());
        hub.appended(&alice, &entry(1));
        assert!(signal.take_advanced() && others.take_advanced());
        // The handshake of the one fails, and what it said of itself on the way out concerns no other.
        replay.disappear(false);
        drop(replay);
        assert_eq!((signal.take_notice(), status(&hub, &alice)), (None, AwarenessStatus::Online));
        let late = early();
        returning.confirm();
        assert_eq!(signal.take_notice(), Some(Notice::Close(CloseCode::Replaced)));
        drop(live);
        drop(late);
        assert_eq!((others.take_notice(), hub.connected()), (None, 1));
        assert_eq!(status(&hub, &alice), AwarenessStatus::Online);
        returning.disappear(false);
        drop(returning);
        let alone = early();
        assert_eq!(status(&hub, &alice), AwarenessStatus::Online);
        drop(alone);
        assert_eq!((hub.connected(), status(&hub, &alice)), (0, AwarenessStatus::Offline), "no grace");
    }

    #[test]
    fn an_early_connection_that_never_signs_in_was_not_seen() {
        let time = Arc::new(AtomicI64::new(1_000));
        let clock = time.clone();
        let clock = move || Now { unix_ms: clock.load(Ordering::Relaxed), ..Now::system() };
        let hub = Arc::new(Hub::with_clock(Timing::default(), Box::new(clock)));
        let (alice, phone) = (eid("alice@x"), DeviceId::parse("phone").unwrap());
        let last_seen = || {
            hub.presence.run_due().for_each(drop);
            let desk = hub.presence.watch(&alice, &DeviceId::parse("desk").unwrap(), Arc::default());
            desk.ask(&alice, Now::system()).unwrap().last_seen
        };
        let live = hub.join(&phone, claims(&alice), Arc::default());
        live.appear();
        live.disappear(false);
        drop(live);
        time.store(2_000, Ordering::Relaxed);
        drop(hub.join_early(&phone, claims(&alice), Arc::default()));
        assert_eq!(last_seen(), 1_000);
        let early = hub.join_early(&phone, claims(&alice), Arc::default());
        early.appear();
        drop(early);
        assert_eq!(last_seen(), 2_000);
    }

    #[test]
    fn an_early_connection_that_was_replaced_meanwhile_replaces_nobody() {
        let (hub, alice) = (Arc::new(Hub::default()), eid("alice@x"));
        let phone = DeviceId::parse("phone").unwrap();
        let (of_early, of_live) = (Arc::new(Signal::default()), Arc::new(Signal::default()));
        let early = hub.join_early(&phone, claims(&alice), of_early.clone());
        let _live = hub.join(&phone, claims(&alice), of_live.clone());
        early.confirm();
        assert_eq!(of_early.take_notice(), Some(Notice::Close(CloseCode::Replaced)));
        assert_eq!((of_live.take_notice(), hub.connected()), (None, 1));
    }

    /// What the user's own devices see.
    fn status(hub: &Hub, user: &Eid) -> AwarenessStatus {
        hub.presence.run_due().for_each(drop);
        let desk = hub.presence.watch(user, &DeviceId::parse("desk").unwrap(), Arc::default());
        desk.ask(user, Now::system()).unwrap().status
    }

    #[test]
    fn a_revoked_device_seems_to_be_there_only_with_a_token_that_is_good() {
        for (issued_at, status) in [(100, AwarenessStatus::Offline), (101, AwarenessStatus::Online)] {
            let (hub, alice, phone) = (Arc::new(Hub::default()), eid("alice@x"), DeviceId::parse("phone").unwrap());
            let with = Claims { issued_at: Some(issued_at), ..claims(&alice) };
            let place = hub.join(&phone, with, Arc::default());
            place.appear();
            let desk = hub.presence().watch(&alice, &DeviceId::parse("desk").unwrap(), Arc::default());
            let target = RevocationTarget::Device(alice.clone(), phone);
            hub.changed(&Change::Revoked(Revocation { target, issued_until: 100, expires_at: i64::MAX }));
            assert_eq!(desk.ask(&alice, Now::system()).unwrap().status, status, "issued at {issued_at}");
        }
    }
}
