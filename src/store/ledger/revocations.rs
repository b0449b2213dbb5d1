//! Revocations of tokens, devices and users (protocol.md §13).

use super::txn::Txn;
use crate::limits;
use crate::store::kv::{Order, Space, View};
use crate::store::record::{self, RevocationRecord};
use crate::store::types::{Change, Revocation};
use crate::store::{StoreError, key};

/// Records a revocation. If the same target was revoked before, the result refuses at least as much as before.
pub(super) fn revoke(txn: &mut Txn, revocation: Revocation) -> Result<(), StoreError> {
    let row = key::revocation(&revocation.target);
    let mut record = RevocationRecord::from(&revocation);
    if let Some(old) = record::read::<RevocationRecord>(txn, &row)? {
        record.issued_until = record.issued_until.max(old.issued_until);
        record.expires_at = record.expires_at.max(old.expires_at);
    }
    txn.put(&row, &record);
    txn.changed(Change::Revoked(Revocation {
        expires_at: record.expires_at,
        issued_until: record.issued_until,
        ..revocation
    }));
    Ok(())
}

/// Removes expired revocations. What exceeds the bound of a commit is left for the next call.
pub(super) fn drop_expired(txn: &mut Txn, now_ms: i64) -> Result<(), StoreError> {
    let mut span = key::all();
    while txn.rows() < limits::COMMIT_ROWS_MAX {
        let rows = txn.range(Space::Revocations, &span, Order::Ascending, limits::STORE_PAGE_ROWS)?;
        let Some((last, _)) = rows.last() else { break };
        span = key::following(span, last);
        for (key, value) in &rows {
            if record::decode::<RevocationRecord>(key, value)?.expires_at <= now_ms {
                txn.delete(Space::Revocations, key);
            }
        }
    }
    Ok(())
}
