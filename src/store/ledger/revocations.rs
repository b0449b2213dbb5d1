//! Revocations of tokens, devices and users (protocol.md §13).

use super::books::Books;
use super::txn::Txn;
use crate::limits;
use crate::store::kv::{Key, Order, Space, View};
use crate::store::record::{self, RevocationRecord};
use crate::store::types::{Bearer, Change, Revocation, RevocationTarget};
use crate::store::{StoreError, key};
use crate::wire::{DeviceId, Eid};

impl Books {
    /// Records a revocation and, if a device of the same user is named, forgets that device. If the same target was revoked
    /// before, the result refuses at least as much as before.
    pub(super) fn revoke(
        &mut self,
        txn: &mut Txn,
        revocation: Revocation,
        forget: Option<DeviceId>,
    ) -> Result<(), StoreError> {
        let row = key::revocation(&revocation.target);
        let mut record = RevocationRecord::from(&revocation);
        if let Some(old) = record::read::<RevocationRecord>(txn, &row)? {
            record.issued_until = record.issued_until.max(old.issued_until);
            record.expires_at = record.expires_at.max(old.expires_at);
        } else if let RevocationTarget::Device(user, _) = &revocation.target {
            // These rows last for years, and a client can make up any number of device ids.
            let bound = limits::REVOKED_DEVICES_PER_USER_MAX;
            let devices = txn.range(Space::Revocations, &key::revoked_devices(user), Order::Ascending, bound)?;
            if devices.len() >= bound {
                // Those that a revocation of all of the user's tokens covers refuse nothing of their own.
                let user = key::revocation(&RevocationTarget::User(user.clone()));
                let all = record::read::<RevocationRecord>(txn, &user)?.unwrap_or_default();
                let mut left = devices.len();
                for (name, value) in devices {
                    let old = record::decode::<RevocationRecord>(&name, &value)?;
                    if old.issued_until <= all.issued_until && old.expires_at <= all.expires_at {
                        lapse(txn, &name, old);
                        left -= 1;
                    }
                }
                if left >= bound {
                    return Err(StoreError::TooManyRevoked);
                }
            }
        }
        if let Some(device) = forget {
            self.forget_device(txn, revocation.target.user().clone(), device)?;
        }
        txn.put(&row, &record);
        txn.changed(Change::Revoked(Revocation {
            expires_at: record.expires_at,
            issued_until: record.issued_until,
            ..revocation
        }));
        Ok(())
    }
}

/// Whether a token is revoked. A row that has expired counts as well: it outlives every token that it refuses.
pub(super) fn refuse(txn: &Txn, user: &Eid, device: &DeviceId, bearer: Bearer) -> Result<bool, StoreError> {
    let row = |target| record::read::<RevocationRecord>(txn, &key::revocation(&target));
    let covers = |row: Option<RevocationRecord>| row.is_some_and(|row| bearer.issued_at <= row.issued_until);
    Ok(row(RevocationTarget::Token(user.clone(), bearer.fingerprint))?.is_some()
        || covers(row(RevocationTarget::Device(user.clone(), device.clone()))?)
        || covers(row(RevocationTarget::User(user.clone()))?))
}

/// Deletes those of the rows that have expired. A later revocation of the same target may have prolonged a row since it was
/// selected.
pub(super) fn drop_expired(txn: &mut Txn, rows: &[Key], now_ms: i64) -> Result<(), StoreError> {
    for row in rows {
        if let Some(record) = record::read::<RevocationRecord>(txn, row)?.filter(|record| record.expires_at <= now_ms) {
            lapse(txn, row, record);
        }
    }
    Ok(())
}

/// Deletes a revocation, and tells those who remember it. Nobody remembers one that names nothing.
fn lapse(txn: &mut Txn, row: &[u8], record: RevocationRecord) {
    txn.delete(Space::Revocations, row);
    if let Ok(revocation) = Revocation::try_from(record) {
        txn.changed(Change::Lapsed(revocation.target));
    }
}
