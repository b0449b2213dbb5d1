//! Who is connected: wakes the tails of a user's devices, and keeps the newest entries of connected users in memory.
//!
//! Nothing here is needed for delivery to be right: a tail that finds nothing in the hub's memory reads the store. The
//! hub makes the usual case, a device that keeps up, cost no read. Locks are per shard and never held over a wake-up.

mod recent;
mod signal;

pub use recent::Recent;
pub use signal::{Notice, Signal};

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::{LogEntry, LogObserver};
use crate::wire::{CloseCode, DeviceId, Eid, Sequence};

use recent::RecentEntries;

/// Shards of the map: enough that two cores rarely meet, few enough to walk over.
const SHARDS: usize = 64;

/// The registry of connected devices.
pub struct Hub {
    shards: Vec<Mutex<HashMap<Eid, User>>>,
    hasher: RandomState,
    joins: AtomicU64,
    connected: AtomicUsize,
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
    signal: Arc<Signal>,
    /// The device's tail has taken everything up to here; `None` as long as it follows nothing.
    passed: Option<Sequence>,
}

impl User {
    /// The slowest follower decides; nobody following, nothing is kept.
    fn forget_what_all_passed(&mut self) {
        let slowest = self.members.iter().filter_map(|member| member.passed).min();
        self.recent.forget_up_to(slowest.unwrap_or(Sequence::from(u64::MAX)));
    }
}

impl Hub {
    /// An empty hub.
    pub fn new() -> Hub {
        Hub {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            joins: AtomicU64::new(0),
            connected: AtomicUsize::new(0),
        }
    }

    /// Registers a device until the returned membership is dropped. An older connection of the same device is told
    /// that it was replaced (profile 3).
    pub fn join(self: &Arc<Self>, user: &Eid, device: &DeviceId, signal: Arc<Signal>) -> Membership {
        let join = self.joins.fetch_add(1, Ordering::Relaxed);
        let member = Member { device: device.clone(), join, signal, passed: None };
        let replaced = {
            let mut shard = self.shard(user);
            let members = &mut shard.entry(user.clone()).or_default().members;
            let older = members.iter().position(|m| m.device == *device).map(|index| members.swap_remove(index));
            members.push(member);
            older
        };
        match replaced {
            Some(older) => older.signal.notify(Notice::Close(CloseCode::Replaced)),
            None => _ = self.connected.fetch_add(1, Ordering::Relaxed),
        }
        Membership { hub: self.clone(), user: user.clone(), join }
    }

    /// Connected devices.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// Tells every connected device.
    pub fn broadcast(&self, notice: &Notice) {
        for shard in &self.shards {
            let signals: Vec<_> = {
                let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                shard.values().flat_map(|user| &user.members).map(|member| member.signal.clone()).collect()
            };
            signals.iter().for_each(|signal| signal.notify(notice.clone()));
        }
    }

    fn shard(&self, user: &Eid) -> MutexGuard<'_, HashMap<Eid, User>> {
        let index = self.hasher.hash_one(user) as usize % SHARDS;
        // What a panicking holder left is still a map of who is connected.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Hub {
    fn default() -> Self {
        Hub::new()
    }
}

impl LogObserver for Hub {
    fn appended(&self, user: &Eid, entry: &Arc<LogEntry>) {
        let signals: Vec<_> = {
            let mut shard = self.shard(user);
            let Some(user) = shard.get_mut(user) else { return };
            user.recent.push(entry.clone());
            user.forget_what_all_passed();
            user.members.iter().map(|member| member.signal.clone()).collect()
        };
        signals.iter().for_each(|signal| signal.advanced());
    }
}

/// A device's place in the hub; leaving is dropping it, so no way out of a session can forget it.
pub struct Membership {
    hub: Arc<Hub>,
    user: Eid,
    join: u64,
}

impl Membership {
    /// What the hub remembers of the user's log after a position; also tells the hub that the device has all before it.
    pub fn recent(&self, after: Sequence, limit: usize) -> Recent {
        let mut shard = self.hub.shard(&self.user);
        let Some(user) = shard.get_mut(&self.user) else { return Recent::Nothing };
        let found = user.recent.after(after, limit);
        let passed = match &found {
            Recent::Entries(entries) => entries.last().map_or(after, |entry| entry.sequence),
            Recent::Nothing | Recent::Behind => after,
        };
        if let Some(member) = user.members.iter_mut().find(|member| member.join == self.join) {
            member.passed = member.passed.max(Some(passed));
        }
        user.forget_what_all_passed();
        found
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut shard = self.hub.shard(&self.user);
        let Some(user) = shard.get_mut(&self.user) else { return };
        let Some(index) = user.members.iter().position(|member| member.join == self.join) else { return };
        user.members.swap_remove(index);
        if user.members.is_empty() {
            shard.remove(&self.user);
        }
        self.hub.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::EntryBody;
    use crate::wire::{AckStatus, ChatId, Version};

    fn eid(text: &str) -> Eid {
        Eid::parse(text).unwrap()
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
            body,
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
        let (hub, alice) = (Arc::new(Hub::new()), eid("alice@x"));
        let signal = Arc::new(Signal::default());
        let place = hub.join(&alice, &DeviceId::parse("phone").unwrap(), signal.clone());
        assert!(matches!(place.recent(3.into(), 10), Recent::Nothing));
        assert!(!signal.take_advanced());
        (5..8).for_each(|n| hub.appended(&alice, &entry(n)));
        assert!(signal.take_advanced());
        assert_eq!(sequences(place.recent(4.into(), 2)), [5, 6]);
        assert_eq!(sequences(place.recent(6.into(), 2)), [7]);
        assert!(matches!(place.recent(7.into(), 2), Recent::Nothing));
        // All passed and let go; an older position has to read the store.
        assert!(matches!(place.recent(5.into(), 2), Recent::Behind));
    }

    #[test]
    fn the_slowest_device_bounds_what_is_kept_up_to_the_limit() {
        let (hub, alice) = (Arc::new(Hub::new()), eid("alice@x"));
        let fast = hub.join(&alice, &DeviceId::parse("fast").unwrap(), Arc::default());
        let slow = hub.join(&alice, &DeviceId::parse("slow").unwrap(), Arc::default());
        assert!(matches!(slow.recent(Sequence::ZERO, 10), Recent::Nothing));
        let last = crate::limits::RECENT_ENTRIES_MAX as u64 + 10;
        for n in 1..=last {
            hub.appended(&alice, &entry(n));
            assert_eq!(sequences(fast.recent((n - 1).into(), 10)), [n]);
        }
        assert!(matches!(slow.recent(Sequence::ZERO, 10), Recent::Behind));
        assert_eq!(sequences(slow.recent(10.into(), 1)), [11]);
    }

    #[test]
    fn the_same_device_again_replaces_the_older_and_leaving_is_dropping() {
        let (hub, alice) = (Arc::new(Hub::new()), eid("alice@x"));
        let phone = DeviceId::parse("phone").unwrap();
        let (old, new) = (Arc::new(Signal::default()), Arc::new(Signal::default()));
        let first = hub.join(&alice, &phone, old.clone());
        let second = hub.join(&alice, &phone, new.clone());
        assert_eq!(old.take_notice(), Some(Notice::Close(CloseCode::Replaced)));
        assert_eq!((new.take_notice(), hub.connected()), (None, 1));
        drop(first);
        assert_eq!(hub.connected(), 1);
        hub.appended(&alice, &entry(1));
        assert!(new.take_advanced());
        drop(second);
        assert_eq!(hub.connected(), 0);
    }
}
