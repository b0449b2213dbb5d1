//! Subscriber lists and blocks (protocol.md §11), and the index of the owners who list a user.

use super::books::{Books, ListLength};
use super::txn::Txn;
use crate::limits::SUBSCRIBERS_PER_USER_MAX;
use crate::store::kv::{Order, Space, View as _};
use crate::store::record::{self, ContactRecord, OwnerRecord};
use crate::store::types::{Access, Change, Contact};
use crate::store::{StoreError, key};
use crate::wire::Eid;

impl Books {
    /// Adds or changes a subscriber. A block stays as it is, and so does the time at which the user was first added.
    pub(super) fn put_contact(&mut self, txn: &mut Txn, owner: &Eid, contact: Contact) -> Result<bool, StoreError> {
        let old = self.contact(txn, owner, &contact.subscriber)?;
        let there = old.as_ref().filter(|old| old.subscribed);
        // Thousands of a user's are as large as many messages.
        if there.is_none() && self.reserve.is_touched() {
            return Err(StoreError::DiskFull);
        }
        let new = ContactRecord {
            subscribed: true,
            nickname: contact.nickname,
            group: contact.group,
            resource_id: contact.resource_id,
            share_location: contact.share_location,
            blocked: old.as_ref().is_some_and(|old| old.blocked),
            added_at: there.map_or(contact.added_at, |old| old.added_at),
        };
        let was_there = there.is_some();
        self.change_contact(txn, owner, &contact.subscriber, old, Some(new))?;
        Ok(was_there)
    }

    pub(super) fn remove_contact(&mut self, txn: &mut Txn, owner: &Eid, subscriber: &Eid) -> Result<bool, StoreError> {
        let old = self.contact(txn, owner, subscriber)?;
        let Some(there) = old.as_ref().filter(|old| old.subscribed) else { return Ok(false) };
        let new = there.blocked.then(only_blocked);
        self.change_contact(txn, owner, subscriber, old, new)?;
        Ok(true)
    }

    pub(super) fn set_block(
        &mut self,
        txn: &mut Txn,
        owner: &Eid,
        subscriber: &Eid,
        blocked: bool,
    ) -> Result<bool, StoreError> {
        let old = self.contact(txn, owner, subscriber)?;
        if old.as_ref().is_some_and(|old| old.blocked) == blocked {
            return Ok(false);
        }
        let new = match &old {
            Some(old) if old.subscribed => Some(ContactRecord { blocked, ..old.clone() }),
            _ => blocked.then(only_blocked),
        };
        self.change_contact(txn, owner, subscriber, old, new)?;
        if blocked {
            txn.changed(Change::Blocked(owner.clone(), subscriber.clone()));
        }
        Ok(true)
    }

    fn contact(&self, txn: &Txn, owner: &Eid, subscriber: &Eid) -> Result<Option<ContactRecord>, StoreError> {
        record::read(txn, &key::pair(owner, subscriber))
    }

    fn change_contact(
        &mut self,
        txn: &mut Txn,
        owner: &Eid,
        subscriber: &Eid,
        old: Option<ContactRecord>,
        new: Option<ContactRecord>,
    ) -> Result<(), StoreError> {
        let (was, is) = (counted(old.as_ref()), counted(new.as_ref()));
        let mut length = self.list(txn, owner)?;
        length.subscribed = changed(length.subscribed, was.subscribed, is.subscribed)?;
        length.blocked = changed(length.blocked, was.blocked, is.blocked)?;
        let row = key::pair(owner, subscriber);
        match &new {
            Some(record) => txn.put(&row, record),
            None => txn.delete(Space::Contacts, &row),
        }
        self.index(txn, owner, subscriber)?;
        // A block also hides the blocked user's presence from the user who blocks.
        self.index(txn, subscriber, owner)?;
        self.lists.put(owner.clone(), length);
        Ok(())
    }

    /// Enters `owner` among the owners whose presence `subscriber` may see, or removes it.
    fn index(&self, txn: &mut Txn, owner: &Eid, subscriber: &Eid) -> Result<(), StoreError> {
        let entry = self.contact(txn, owner, subscriber)?;
        let visible = entry.as_ref().is_some_and(|entry| entry.subscribed && !entry.blocked)
            && !self.contact(txn, subscriber, owner)?.is_some_and(|entry| entry.blocked);
        let row = key::pair(subscriber, owner);
        let there = record::read::<OwnerRecord>(txn, &row)?;
        let access = entry.filter(|_| visible).map(|entry| Access { share_location: entry.share_location });
        if there.map(|OwnerRecord { share_location }| Access { share_location }) == access {
            return Ok(());
        }
        match access {
            Some(Access { share_location }) => txn.put(&row, &OwnerRecord { share_location }),
            None => txn.delete(Space::Owners, &row),
        }
        txn.changed(Change::Access { owner: owner.clone(), subscriber: subscriber.clone(), access });
        Ok(())
    }

    fn list(&mut self, txn: &Txn, owner: &Eid) -> Result<ListLength, StoreError> {
        let known = self.lists.get(owner);
        self.tally.lists.count(known.is_some());
        if let Some(length) = known {
            return Ok(*length);
        }
        let mut length = ListLength::default();
        // No list is longer than the bounds of subscribers and blocks together.
        let rows = txn.range(Space::Contacts, &key::all_of(owner), Order::Ascending, 2 * SUBSCRIBERS_PER_USER_MAX)?;
        for (key, value) in rows {
            let one = counted(Some(&record::decode(&key, &value)?));
            length.subscribed += one.subscribed;
            length.blocked += one.blocked;
        }
        self.lists.put(owner.clone(), length);
        Ok(length)
    }
}

/// What an entry adds to the length of the list. A blocked subscriber counts for both bounds, so that removing it as a
/// subscriber always works.
fn counted(contact: Option<&ContactRecord>) -> ListLength {
    let (subscribed, blocked) = contact.map_or((false, false), |contact| (contact.subscribed, contact.blocked));
    ListLength { subscribed: subscribed.into(), blocked: blocked.into() }
}

fn changed(length: usize, was: usize, is: usize) -> Result<usize, StoreError> {
    if is > was && length >= SUBSCRIBERS_PER_USER_MAX {
        return Err(StoreError::ListFull);
    }
    Ok((length + is).saturating_sub(was))
}

fn only_blocked() -> ContactRecord {
    ContactRecord { blocked: true, ..ContactRecord::default() }
}
