//! Revoked tokens, devices and users, in memory: a sign-in is checked here and never waits for the disk (protocol.md
//! §13).

use moka::sync::Cache;

use crate::auth::Claims;
use crate::store::{Revocation, RevocationTarget};
use crate::wire::DeviceId;

/// The revocations, each with the second (Unix) until which it refuses what was issued. They are those of the store, which
/// tells when it forgets one; none goes by this server's clock alone.
///
/// Not bounded by eviction, which would admit revoked tokens, but by the rows in the store: at most one for each user
/// and device, and one for each revoked token until that token has expired.
pub(super) struct Revocations {
    entries: Cache<RevocationTarget, i64>,
}

impl Revocations {
    pub(super) fn new() -> Revocations {
        Revocations { entries: Cache::builder().build() }
    }

    pub(super) fn insert(&self, revocation: &Revocation) {
        self.entries.insert(revocation.target.clone(), revocation.issued_until);
    }

    /// Forgets a revocation that has lapsed.
    pub(super) fn remove(&self, target: &RevocationTarget) {
        self.entries.invalidate(target);
    }

    /// Whether a token is revoked. A token that does not say when it was issued counts as older than every revocation.
    pub(super) fn refuse(&self, claims: &Claims, device: &DeviceId) -> bool {
        let issued = claims.issued_at.unwrap_or(0);
        let covers = |target| self.entries.get(&target).is_some_and(|issued_until| issued <= issued_until);
        let user = &claims.eid;
        self.entries.contains_key(&RevocationTarget::Token(user.clone(), claims.fingerprint))
            || covers(RevocationTarget::Device(user.clone(), device.clone()))
            || covers(RevocationTarget::User(user.clone()))
    }
}
