//! A session's place in the hub, before it has signed in and after.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::auth::Claims;
use crate::wire::{DeviceId, Eid, Sequence};

use super::{Hub, Member, Recent};

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
    pub(super) join: u64,
    /// Whether it counts for the user's presence.
    pub(super) visible: bool,
}

impl Membership {
    /// Counts the device for the user's presence, from sign-in on.
    pub fn appear(&mut self, device: &DeviceId) {
        self.visible = true;
        self.hub.presence.connected(&self.user, device, self.join);
    }

    /// The device leaves on purpose: it stops counting for presence at once, without the grace.
    pub fn disappear(&mut self, device: &DeviceId, signed_out: bool) {
        self.visible = false;
        self.hub.presence.left(&self.user, device, self.join, signed_out);
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
        if self.visible {
            self.hub.presence.lost(&self.user, self.join);
        }
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
