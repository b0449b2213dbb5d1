//! Revoked tokens, devices and users, in memory: a sign-in is checked here and never waits for the disk (protocol.md
//! §13).

use std::time::{Duration, Instant};

use moka::Expiry;
use moka::sync::Cache;

use crate::auth::Claims;
use crate::clock::Now;
use crate::store::{Revocation, RevocationTarget};

/// The revocations, each kept as long as there is a token that it could refuse.
///
/// Not bounded by eviction, which would admit revoked tokens, but by the rows in the store: at most one for each user
/// and device, and one for each revoked token until that token expires.
pub(super) struct Revocations {
    entries: Cache<RevocationTarget, Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Unix seconds.
    issued_until: i64,
    /// Unix milliseconds.
    expires_at: i64,
    /// Time until it expires, for the cache.
    left: Duration,
}

impl Revocations {
    pub(super) fn new() -> Revocations {
        Revocations { entries: Cache::builder().expire_after(UntilExpired).build() }
    }

    pub(super) fn insert(&self, revocation: &Revocation, now: Now) {
        let left = revocation.expires_at.saturating_sub(now.unix_ms);
        let entry = Entry {
            issued_until: revocation.issued_until,
            expires_at: revocation.expires_at,
            left: Duration::from_millis(u64::try_from(left).unwrap_or(0)),
        };
        self.entries.insert(revocation.target.clone(), entry);
    }

    /// Forgets a revocation that another one covers.
    pub(super) fn remove(&self, target: &RevocationTarget) {
        self.entries.invalidate(target);
    }

    /// Whether a token is revoked. A token that does not say when it was issued counts as older than every revocation.
    pub(super) fn refuse(&self, claims: &Claims, device: &crate::wire::DeviceId, now: Now) -> bool {
        let issued = claims.issued_at.unwrap_or(0);
        let entry = |target| self.entries.get(&target).filter(|entry| entry.expires_at > now.unix_ms);
        let user = &claims.eid;
        entry(RevocationTarget::Token(user.clone(), claims.fingerprint)).is_some()
            || entry(RevocationTarget::Device(user.clone(), device.clone())).is_some_and(|e| issued <= e.issued_until)
            || entry(RevocationTarget::User(user.clone())).is_some_and(|e| issued <= e.issued_until)
    }
}

struct UntilExpired;

impl Expiry<RevocationTarget, Entry> for UntilExpired {
    fn expire_after_create(&self, _: &RevocationTarget, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.left)
    }

    fn expire_after_update(
        &self,
        _: &RevocationTarget,
        entry: &Entry,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.left)
    }
}
