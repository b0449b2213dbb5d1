//! Devices and their cursors in their user's log (protocol.md §5, Devices; §9, the cursor).

use super::books::Books;
use super::revocations;
use super::txn::Txn;
use crate::limits;
use crate::store::kv::{Order, Space, View};
use crate::store::record::{self, DeviceRecord};
use crate::store::types::{Bearer, DeviceState};
use crate::store::{StoreError, key};
use crate::wire::{DeviceId, Eid, Sequence};

impl Books {
    pub(super) fn open_device(
        &mut self,
        txn: &mut Txn,
        user: &Eid,
        device: &DeviceId,
        bearer: Bearer,
    ) -> Result<DeviceState, StoreError> {
        if revocations::refuse(txn, user, device, bearer)? {
            return Err(StoreError::Revoked);
        }
        let log = self.log(txn, user)?;
        if let Some(cursor) = self.cursor(txn, user, device)? {
            return Ok(DeviceState { cursor, log });
        }
        let bound = limits::DEVICES_PER_USER_MAX;
        let known = txn.range(Space::Devices, &key::all_of(user), Order::Ascending, bound)?;
        if known.len() >= bound {
            return Err(StoreError::TooManyDevices);
        }
        txn.put(&key::device(user, device), &DeviceRecord::default());
        Ok(DeviceState { cursor: Sequence::ZERO, log })
    }

    /// Moves a cursor forward only, and not past the log's head. An unregistered device is ignored: one that signs out
    /// may still have an acknowledgment under way.
    pub(super) fn advance_cursor(
        &mut self,
        txn: &Txn,
        user: &Eid,
        device: &DeviceId,
        to: Sequence,
    ) -> Result<(), StoreError> {
        let Some(cursor) = self.cursor(txn, user, device)? else { return Ok(()) };
        let to = to.min(self.log(txn, user)?.head);
        if to > cursor {
            self.cursors.insert((user.clone(), device.clone()), to);
        }
        Ok(())
    }

    pub(super) fn forget_device(&mut self, txn: &mut Txn, user: Eid, device: DeviceId) -> Result<(), StoreError> {
        if self.cursor(txn, &user, &device)?.is_some() {
            txn.delete(Space::Devices, &key::device(&user, &device));
            self.cursors.remove(&(user, device));
        }
        Ok(())
    }

    /// Adds the moved cursors to the commit.
    pub(super) fn write_cursors(&mut self, txn: &mut Txn) {
        for ((user, device), cursor) in self.cursors.drain() {
            txn.put(&key::device(&user, &device), &DeviceRecord { cursor: cursor.get() });
        }
    }

    /// The device's cursor; `None`: the device is not registered.
    fn cursor(&self, txn: &Txn, user: &Eid, device: &DeviceId) -> Result<Option<Sequence>, StoreError> {
        if let Some(cursor) = self.cursors.get(&(user.clone(), device.clone())) {
            return Ok(Some(*cursor));
        }
        let record = record::read::<DeviceRecord>(txn, &key::device(user, device))?;
        Ok(record.map(|record| Sequence::from(record.cursor)))
    }
}
