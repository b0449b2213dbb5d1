//! A session's place in the hub, before it has signed in and after.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::auth::Claims;
use crate::wire::{CloseCode, DeviceId, Eid, Sequence};

use super::{Hub, Member, Notice, Recent, User};

/// A session's place in the hub before it has signed in.
pub struct Visit {
    pub(super) hub: Arc<Hub>,
    pub(super) number: u64,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.hub.visitors.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// A device's place in the hub. Dropping it is the only way to leave, so no exit path of a session can forget to.
pub struct Membership {
    pub(super) hub: Arc<Hub>,
    pub(super) user: Eid,
    pub(super) device: DeviceId,
    pub(super) join: u64,
}

impl Membership {
    /// Counts the device for the user's presence, from sign-in on.
    pub fn appear(&self) {
        self.hub.presence.connected(&self.user, &self.device, self.join);
    }

    /// The handshake is complete, so that the device itself is there: its older connections are told to close as replaced.
    pub fn confirm(&self) {
        let replaced: Vec<_> = {
            let mut shard = self.hub.shard(&self.user);
            let members = shard.get_mut(&self.user).map(|user| &mut user.members);
            let Some(members) = members else { return };
            // Not found: a newer connection has replaced this one.
            let Some(own) = members.iter_mut().find(|member| member.join == self.join) else { return };
            own.is_early = false;
            let replaced = members.extract_if(.., |m| m.device == self.device && m.join < self.join).collect();
            members.shrink_to_fit();
            replaced
        };
        self.hub.connected.fetch_sub(replaced.len(), Ordering::Relaxed);
        replaced.iter().for_each(|older| older.signal.notify(Notice::Close(CloseCode::Replaced)));
    }

    /// The device leaves on purpose: it stops counting for presence at once, without the grace.
    pub fn disappear(&self, signed_out: bool) {
        let shard = self.hub.shard(&self.user);
        if let Some(heir) = self.heir(shard.get(&self.user)) {
            self.hub.presence.passed_on(&self.user, self.join, heir);
        }
        self.hub.presence.left(&self.user, &self.device, self.join, signed_out);
    }

    /// Records the head of the user's log when the store was asked: entries up to it count for [`Hub::lag`].
    pub fn starts_at(&self, head: Sequence) {
        self.with_member(|member| member.head = head);
    }

    /// The newest entry of the user's log, once [`Membership::starts_at`] has said where it began.
    pub fn head(&self) -> Sequence {
        let shard = self.hub.shard(&self.user);
        let Some(user) = shard.get(&self.user) else { return Sequence::ZERO };
        let member = user.members.iter().find(|member| member.join == self.join);
        user.recent.head().max(member.map_or(Sequence::ZERO, |member| member.head))
    }

    /// Replaces the claims after the session has renewed its token.
    pub fn renew(&self, claims: Claims) {
        self.with_member(|member| member.claims = claims);
    }

    /// The newest other connection of the device.
    fn heir(&self, user: Option<&User>) -> Option<u64> {
        let others = user?.members.iter().filter(|member| member.device == self.device && member.join != self.join);
        others.map(|member| member.join).max()
    }

    fn with_member(&self, change: impl FnOnce(&mut Member)) {
        let mut shard = self.hub.shard(&self.user);
        let members = shard.get_mut(&self.user).map_or(&mut [][..], |user| &mut user.members);
        if let Some(member) = members.iter_mut().find(|member| member.join == self.join) {
            change(member);
        }
    }

    /// At most `limit` remembered entries of the user's log after a position. Also records that the device has
    /// everything up to there.
    pub fn recent(&self, after: Sequence, limit: usize) -> Recent {
        let mut shard = self.hub.shard(&self.user);
        let Some(user) = shard.get_mut(&self.user) else { return Recent::Nothing };
        let found = user.recent.after(after, limit);
        let passed = match &found {
            Recent::Entries(entries) => {
                self.hub.looks.count(true);
                entries.last().map_or(after, |entry| entry.sequence)
            }
            Recent::Behind(_) => {
                self.hub.looks.count(false);
                after
            }
            Recent::Nothing => after,
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
        // Locked to the end: of two connections of a device that go together, the second finds nobody to leave the device to.
        let mut shard = self.hub.shard(&self.user);
        let members = shard.get_mut(&self.user).map(|user| &mut user.members);
        let own = members.and_then(|members| {
            let index = members.iter().position(|member| member.join == self.join)?;
            Some(members.swap_remove(index))
        });
        self.hub.connected.fetch_sub(usize::from(own.is_some()), Ordering::Relaxed);
        let presence = &self.hub.presence;
        match self.heir(shard.get(&self.user)) {
            // It has signed in, or is about to, and then reports the loss itself.
            Some(heir) => presence.passed_on(&self.user, self.join, heir),
            // It may have been nobody, and nobody is waited for.
            None if own.is_some_and(|own| own.is_early) => presence.lost_for_good(&self.user, self.join),
            None => presence.lost(&self.user, self.join),
        }
        if shard.get(&self.user).is_some_and(|user| user.members.is_empty()) {
            shard.remove(&self.user);
        }
    }
}
