//! One user's presence over all devices, as rules without side effects (BIMip-Foundation 4.1; protocol.md §12).

use std::time::{Duration, Instant};

use crate::clock::Now;
use crate::limits::DEVICES_PER_USER_MAX;
use crate::wire::{AwarenessStatus, DeviceId};

/// A position in degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Location {
    /// Within ±90.
    pub latitude: f64,
    /// Within ±180.
    pub longitude: f64,
}

/// A device's statement about itself or its user.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Anything but UNKNOWN.
    pub status: AwarenessStatus,
    /// Whether DO_NOT_BROADCAST is set.
    pub silent: bool,
    /// `None`: not given; an earlier location stays until it expires.
    pub location: Option<Location>,
}

/// The state of a user as somebody sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shown {
    /// Never UNKNOWN, and INVISIBLE only to the user's own devices.
    pub status: AwarenessStatus,
    /// Unix milliseconds; zero: not known.
    pub last_seen: i64,
    /// Shown only to subscribers whose list entry shares it.
    pub location: Option<Location>,
    /// Whether DO_NOT_BROADCAST holds; only the user's own devices are told.
    pub silent: bool,
}

impl Shown {
    /// The state of a user of whom nothing is known, or who has just withdrawn access.
    pub(super) const GONE: Shown =
        Shown { status: AwarenessStatus::Offline, last_seen: 0, location: None, silent: false };

    /// Whether the change from `before` is worth a notification. While the user is there, a change of `last_seen` alone
    /// is not.
    pub(super) fn differs(&self, before: &Shown) -> bool {
        let gone = self.status == AwarenessStatus::Offline;
        self.status != before.status || self.location != before.location || gone && self.last_seen != before.last_seen
    }
}

/// A user's presence. Bounded: it has at most [`DEVICES_PER_USER_MAX`] connected and as many silent devices.
#[derive(Debug, Default)]
pub(super) struct UserPresence {
    devices: Vec<Device>,
    /// AWAY, BUSY, DO_NOT_DISTURB or INVISIBLE: holds for all devices until one of them sends ONLINE.
    choice: Option<AwarenessStatus>,
    /// Devices that said DO_NOT_BROADCAST, connected or not, until they say BROADCAST.
    silent: Vec<DeviceId>,
    /// The location, and the time at which it expires.
    location: Option<(Location, Instant)>,
    /// When a device was last there, Unix milliseconds.
    seen: i64,
    /// The `last_seen` that others see while the user hides, Unix milliseconds.
    frozen: Option<i64>,
}

#[derive(Debug)]
struct Device {
    id: DeviceId,
    /// The number of the connection that counts.
    join: u64,
    /// ONLINE, IDLE, or OFFLINE if the device says so itself.
    status: AwarenessStatus,
    /// Set if its connection is lost; the device counts until then.
    lost_until: Option<Instant>,
}

impl UserPresence {
    /// A device has signed in. What it said before a short loss still holds. A connection that was replaced while it
    /// signed in is ignored.
    pub(super) fn connected(&mut self, id: &DeviceId, join: u64, now: Now) {
        if self.devices.iter().any(|device| device.id == *id && device.join > join) {
            return;
        }
        self.seen = now.unix_ms;
        match self.devices.iter_mut().find(|device| device.id == *id) {
            Some(device) => (device.join, device.lost_until) = (join, None),
            None => {
                // Most users have one device.
                self.devices.reserve_exact(1);
                self.devices.push(Device { id: id.clone(), join, status: AwarenessStatus::Online, lost_until: None })
            }
        }
    }

    /// A device's connection is lost; the device counts for `grace` more. Ignored if a newer connection has replaced
    /// it.
    pub(super) fn lost(&mut self, join: u64, grace: Duration, now: Now) {
        if let Some(device) = self.devices.iter_mut().find(|device| device.join == join) {
            device.lost_until = Some(now.at + grace);
            self.seen = now.unix_ms;
        }
    }

    /// A device counts through another of its connections from now on. Ignored if it does so already.
    pub(super) fn passed_on(&mut self, join: u64, heir: u64) {
        if let Some(device) = self.devices.iter_mut().find(|device| device.join == join) {
            device.join = heir;
        }
    }

    /// A device has left on purpose: there is no grace. The device stays if a newer connection has replaced this one.
    /// Signing out also ends the device's DO_NOT_BROADCAST.
    pub(super) fn left(&mut self, id: &DeviceId, join: u64, signed_out: bool, now: Now) {
        self.devices.retain(|device| device.join != join);
        self.seen = now.unix_ms;
        self.expire(now);
        if signed_out {
            self.speak(id, now);
        }
    }

    /// The device is signed out or revoked, connected or not. Unless it stays, with a connection of another token, it counts
    /// no longer: ending its DO_NOT_BROADCAST must not show the user there through itself.
    pub(super) fn forget(&mut self, id: &DeviceId, stays: bool, now: Now) {
        if !stays {
            if self.devices.iter().any(|device| device.id == *id && device.lost_until.is_none()) {
                self.seen = now.unix_ms;
            }
            self.devices.retain(|device| device.id != *id);
            self.expire(now);
        }
        self.speak(id, now);
    }

    /// A device has said something. Its location, if given, is kept for `kept`.
    pub(super) fn update(&mut self, id: &DeviceId, update: &Update, kept: Duration, now: Now) {
        // What others see of a user who hides from now on. For one who is OFFLINE to them it must not change.
        let hidden_as = match (self.frozen, self.status()) {
            (Some(frozen), _) => frozen,
            (None, AwarenessStatus::Offline) => self.seen,
            (None, _) => now.unix_ms,
        };
        self.seen = now.unix_ms;
        match update.status {
            AwarenessStatus::Online | AwarenessStatus::Idle | AwarenessStatus::Offline => {
                if update.status == AwarenessStatus::Online {
                    self.choice = None;
                }
                if let Some(device) = self.devices.iter_mut().find(|device| device.id == *id) {
                    device.status = update.status;
                }
            }
            choice => self.choice = Some(choice),
        }
        // A device that was just forgotten may still have said something. Nobody could end its DO_NOT_BROADCAST.
        let counts = self.devices.iter().any(|device| device.id == *id);
        match update.silent {
            true if counts && !self.silent.contains(id) && self.silent.len() < DEVICES_PER_USER_MAX => {
                self.silent.push(id.clone())
            }
            true => {}
            false => self.silent.retain(|device| device != id),
        }
        if let Some(location) = update.location
            && self.is_there()
        {
            self.location = Some((location, now.at + kept));
        }
        if self.hidden() {
            // The location of a hiding user must not appear later either.
            self.location = None;
        }
        self.frozen = self.hidden().then_some(hidden_as);
    }

    /// Removes devices whose grace is over, and the location when it expires or no device is left.
    pub(super) fn expire(&mut self, now: Now) {
        self.devices.retain(|device| device.lost_until.is_none_or(|until| until > now.at));
        if self.devices.is_empty() || self.location.is_some_and(|(_, until)| until <= now.at) {
            self.location = None;
        }
    }

    /// When [`UserPresence::expire`] next has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let lost = self.devices.iter().filter_map(|device| device.lost_until);
        lost.chain(self.location.map(|(_, until)| until)).min()
    }

    /// Whether any device counts as connected.
    pub(super) fn is_there(&self) -> bool {
        !self.devices.is_empty()
    }

    /// The state shown to those who may see it.
    pub(super) fn shown(&self, now: Now) -> Shown {
        if self.hidden() {
            return Shown { last_seen: self.frozen.unwrap_or(self.seen), ..Shown::GONE };
        }
        match self.status() {
            AwarenessStatus::Offline => Shown { last_seen: self.seen, ..Shown::GONE },
            status => Shown { status, last_seen: now.unix_ms, location: self.location_at(now), silent: false },
        }
    }

    /// The state shown to the user's own devices: the truth.
    pub(super) fn shown_to_self(&self, now: Now) -> Shown {
        let status = self.status();
        let last_seen = if status == AwarenessStatus::Offline { self.seen } else { now.unix_ms };
        Shown { status, last_seen, location: self.location_at(now), silent: !self.silent.is_empty() }
    }

    fn location_at(&self, now: Now) -> Option<Location> {
        self.location.filter(|(_, until)| *until > now.at).map(|(location, _)| location)
    }

    fn status(&self) -> AwarenessStatus {
        let best = self.devices.iter().map(|device| device.status).min_by_key(|status| match status {
            AwarenessStatus::Online => 0,
            AwarenessStatus::Idle => 1,
            _ => 2,
        });
        match best {
            None => AwarenessStatus::Offline,
            Some(of_device) => self.choice.unwrap_or(of_device),
        }
    }

    fn hidden(&self) -> bool {
        self.choice == Some(AwarenessStatus::Invisible) || !self.silent.is_empty()
    }

    /// Ends the device's DO_NOT_BROADCAST, because nobody can end it on that device any more. Others see then whether the
    /// user is there. If not, they do not see that the user was there while hiding.
    fn speak(&mut self, id: &DeviceId, now: Now) {
        self.silent.retain(|device| device != id);
        if !self.hidden()
            && let Some(frozen) = self.frozen.take()
        {
            self.seen = if self.is_there() { now.unix_ms } else { frozen };
        }
    }

    /// Whether there is nothing to remember of a user who is not there.
    pub(super) fn is_blank(&self) -> bool {
        self.seen == 0 && self.choice.is_none() && self.silent.is_empty() && self.devices.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AwarenessStatus::*;

    const GRACE: Duration = Duration::from_secs(15);
    const KEPT: Duration = Duration::from_secs(600);

    fn device(name: &str) -> DeviceId {
        DeviceId::parse(name).unwrap()
    }

    fn say(status: AwarenessStatus) -> Update {
        Update { status, silent: false, location: None }
    }

    /// The time `seconds` after a fixed start.
    fn at(start: Now, seconds: u64) -> Now {
        Now { at: start.at + Duration::from_secs(seconds), unix_ms: start.unix_ms + 1000 * seconds as i64 }
    }

    #[test]
    fn the_best_device_counts_and_a_choice_holds_over_all() {
        let (start, phone, desk) = (Now::system(), device("phone"), device("desk"));
        let mut user = UserPresence::default();
        assert_eq!(user.shown(start).status, Offline);
        user.connected(&phone, 1, start);
        user.connected(&desk, 2, start);
        user.update(&phone, &say(Idle), KEPT, start);
        assert_eq!(user.shown(start).status, Online);
        user.update(&desk, &say(Idle), KEPT, start);
        assert_eq!(user.shown(start).status, Idle);
        user.update(&desk, &say(Busy), KEPT, start);
        user.update(&phone, &say(Idle), KEPT, start);
        assert_eq!(user.shown(start).status, Busy);
        // Also over a device that says OFFLINE of itself, before or after.
        for status in [Offline, Away, Offline] {
            user.update(&phone, &say(status), KEPT, start);
            user.update(&desk, &say(Offline), KEPT, start);
        }
        assert_eq!(user.shown(start), Shown { status: Away, last_seen: start.unix_ms, location: None, silent: false });
        assert_eq!(user.shown_to_self(at(start, 5)).last_seen, at(start, 5).unix_ms, "it is there");
        user.update(&phone, &say(Online), KEPT, start);
        assert_eq!(user.shown(start).status, Online);
        for device in [&phone, &desk] {
            user.update(device, &say(Offline), KEPT, start);
        }
        assert_eq!((user.shown(start).status, user.shown_to_self(start).status), (Offline, Offline));
    }

    #[test]
    fn a_lost_connection_has_a_grace_and_leaving_has_none() {
        let (start, phone) = (Now::system(), device("phone"));
        let mut user = UserPresence::default();
        user.connected(&phone, 1, start);
        user.update(&phone, &say(Idle), KEPT, start);
        user.lost(1, GRACE, at(start, 10));
        user.expire(at(start, 20));
        assert_eq!(user.shown(at(start, 20)).status, Idle);
        user.connected(&phone, 2, at(start, 21));
        user.lost(1, GRACE, at(start, 22));
        assert_eq!((user.due(), user.shown(at(start, 60)).status), (None, Idle));
        user.lost(2, GRACE, at(start, 30));
        user.expire(at(start, 45));
        assert_eq!(user.shown(at(start, 45)), Shown { last_seen: at(start, 30).unix_ms, ..Shown::GONE });
        user.connected(&phone, 3, at(start, 50));
        assert_eq!(user.shown(at(start, 50)).status, Online);
        user.left(&phone, 3, false, at(start, 51));
        assert_eq!(user.shown(at(start, 51)).status, Offline);
    }

    #[test]
    fn a_connection_that_was_replaced_does_not_touch_its_successors_presence() {
        let (start, phone) = (Now::system(), device("phone"));
        let mut user = UserPresence::default();
        user.connected(&phone, 2, start);
        user.connected(&phone, 1, start);
        user.lost(1, GRACE, at(start, 1));
        user.left(&phone, 1, false, at(start, 1));
        user.expire(at(start, 60));
        assert_eq!((user.due(), user.shown(at(start, 60)).status), (None, Online));
    }

    #[test]
    fn hiding_shows_offline_with_a_frozen_time_and_forgets_the_place() {
        let (start, phone, desk) = (Now::system(), device("phone"), device("desk"));
        let mut user = UserPresence::default();
        user.connected(&phone, 1, start);
        user.connected(&desk, 2, start);
        let location = Some(Location { latitude: 1.0, longitude: 2.0 });
        user.update(&phone, &Update { location, ..say(Online) }, KEPT, start);
        assert_eq!(user.shown(start).location, location);
        assert_eq!(user.shown(at(start, 600)).location, None);
        let frozen = Shown { last_seen: at(start, 5).unix_ms, ..Shown::GONE };
        user.update(&desk, &say(Invisible), KEPT, at(start, 5));
        user.update(&desk, &Update { silent: true, ..say(Idle) }, KEPT, at(start, 6));
        assert_eq!(user.shown(at(start, 9)), frozen);
        assert_eq!(user.shown_to_self(at(start, 9)).status, Invisible);
        user.update(&phone, &say(Online), KEPT, at(start, 10));
        assert_eq!(user.shown(at(start, 11)), frozen);
        user.update(&desk, &say(Online), KEPT, at(start, 12));
        assert_eq!(
            user.shown(at(start, 12)),
            Shown { status: Online, last_seen: at(start, 12).unix_ms, location: None, silent: false }
        );
    }

    #[test]
    fn a_user_who_is_offline_hides_unnoticed() {
        let (start, phone) = (Now::system(), device("phone"));
        for hiding in [say(Invisible), Update { silent: true, ..say(Online) }] {
            let mut user = UserPresence::default();
            user.connected(&phone, 1, start);
            user.update(&phone, &say(Offline), KEPT, at(start, 5));
            let before = user.shown(at(start, 6));
            user.update(&phone, &hiding, KEPT, at(start, 9));
            let after = user.shown(at(start, 10));
            assert_eq!(after, before);
            assert!(!after.differs(&before));
            user.update(&phone, &say(Online), KEPT, at(start, 12));
            assert_eq!(user.shown(at(start, 12)).status, Online);
        }
    }

    #[test]
    fn a_device_that_hides_its_user_shows_nothing_when_it_is_forgotten() {
        let (start, phone) = (Now::system(), device("phone"));
        let hidden = |lost: bool| {
            let mut user = UserPresence::default();
            user.connected(&phone, 1, start);
            user.update(&phone, &Update { silent: true, ..say(Online) }, KEPT, at(start, 5));
            if lost {
                user.lost(1, GRACE, at(start, 50));
            }
            user
        };
        let gone = Shown { last_seen: at(start, 5).unix_ms, ..Shown::GONE };
        for lost in [false, true] {
            let mut user = hidden(lost);
            user.forget(&phone, false, at(start, 60));
            assert_eq!(user.shown(at(start, 60)), gone, "revoked, and its connection {lost}");
            user.lost(1, GRACE, at(start, 61));
            assert_eq!((user.shown(at(start, 62)), user.due()), (gone, None));
        }
        let mut user = hidden(false);
        user.left(&phone, 1, true, at(start, 60));
        assert_eq!(user.shown(at(start, 60)), gone, "signed out");
        let mut user = hidden(false);
        user.connected(&phone, 2, at(start, 58));
        user.forget(&phone, true, at(start, 60));
        assert_eq!(user.shown(at(start, 60)).status, Online, "there with another token");
        let mut user = UserPresence::default();
        user.connected(&phone, 1, start);
        user.forget(&phone, false, at(start, 60));
        let gone = Shown { last_seen: at(start, 60).unix_ms, ..Shown::GONE };
        assert_eq!(user.shown(at(start, 60)), gone, "it never hid");
    }

    #[test]
    fn a_device_that_was_just_forgotten_hides_nobody() {
        let (start, phone, desk) = (Now::system(), device("phone"), device("desk"));
        let mut user = UserPresence::default();
        user.connected(&phone, 1, start);
        user.connected(&desk, 2, start);
        user.forget(&phone, false, start);
        let hides = Update { silent: true, ..say(Online) };
        user.update(&phone, &hides, KEPT, start);
        assert_eq!(user.shown(start).status, Online, "nobody could end it");
        // One that is lost still counts, and one that has signed in again.
        user.lost(2, GRACE, start);
        user.update(&desk, &hides, KEPT, start);
        assert_eq!(user.shown(start).status, Offline);
        user.forget(&desk, false, start);
        user.connected(&phone, 3, start);
        assert_eq!(user.shown(start).status, Online);
        user.update(&phone, &hides, KEPT, start);
        assert_eq!(user.shown(start).status, Offline);
    }

    #[test]
    fn a_lost_device_that_is_forgotten_does_not_bring_back_who_is_not_there() {
        let (start, phone) = (Now::system(), device("phone"));
        for there in [false, true] {
            let mut user = UserPresence::default();
            user.connected(&phone, 1, start);
            user.update(&phone, &Update { silent: true, ..say(Online) }, KEPT, at(start, 5));
            if there {
                user.connected(&device("desk"), 2, at(start, 6));
            }
            user.left(&phone, 1, false, at(start, 7));
            let now = at(start, 60);
            user.forget(&phone, false, now);
            let seen = if there { now } else { at(start, 5) };
            assert_eq!(user.shown(now).last_seen, seen.unix_ms);
        }
    }
}
