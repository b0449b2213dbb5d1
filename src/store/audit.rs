//! Checks that the rows of a store fit together: the invariants that the ledger keeps with every commit, verified from
//! outside.

use super::kv::{Order, Row, Space, View};
use super::record::{
    self, ChatRecord, ContactRecord, Corrupt, DeviceRecord, FloorRecord, LocalRecord, LogRecord, MarkRecord,
    MessageRecord, OwnerRecord, PendingRecord, ProbeRecord, RevocationRecord, corrupt,
};
use super::types::Revocation;
use super::{StoreError, key};
use crate::limits::STORE_PAGE_ROWS;
use crate::wire::{ChatId, Eid};

/// The contents of a store whose rows fit together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Number of users that have a log.
    pub users: u64,
    /// Number of entries in their logs.
    pub entries: u64,
    /// Number of messages, including those that are not released.
    pub messages: u64,
    /// Number of messages that wait for their release.
    pub unreleased: u64,
    /// Number of registered devices.
    pub devices: u64,
    /// Number of entries in contact lists, including blocks.
    pub contacts: u64,
}

/// Checks every row: sequences and versions follow each other without a gap from where trimming ended, and every row
/// that another row refers to exists and refers back.
///
/// # Errors
/// The first row that does not fit, with its space and key.
pub(crate) fn audit(view: &dyn View) -> Result<Audited, StoreError> {
    let mut found = Audited::default();
    logs(view, &mut found)?;
    chats(view)?;
    each(view, Space::Messages, |key, value| {
        let id = record::message_id(key).map_err(|why| corrupt(Space::Messages, key, why))?;
        let message = record::decode::<MessageRecord>(key, value)?.into_message(id);
        let message = message.map_err(|why| corrupt(Space::Messages, key, why))?;
        let row = record::read::<ChatRecord>(view, &key::chat(message.chat, message.version))?;
        let local = record::read::<LocalRecord>(view, &key::local(&message.sender, &message.local_id))?;
        let fits = row.is_some_and(|row| row.message == key) && local.is_some_and(|local| local.message == key);
        demand(fits, Space::Messages, key, "its chat or its message_id_local speaks of another message")?;
        found.messages += 1;
        Ok(())
    })?;
    each(view, Space::Locals, |key, value| {
        let id =
            record::decode::<LocalRecord>(key, value)?.message().map_err(|why| corrupt(Space::Locals, key, why))?;
        record::message_named(view, id).map(drop)
    })?;
    each(view, Space::Pending, |key, value| {
        let wrong = |why| corrupt(Space::Pending, key, why);
        let (chat, version) = record::decode::<PendingRecord>(key, value)?.place().map_err(wrong)?;
        let row = record::read::<ChatRecord>(view, &key::chat(chat, version))?;
        let fits = row.is_some_and(|row| row.message == key && !row.released());
        demand(fits, Space::Pending, key, "its message is not there or was released")?;
        found.unreleased += 1;
        Ok(())
    })?;
    people(view, &mut found)?;
    Ok(found)
}

fn logs(view: &dyn View, found: &mut Audited) -> Result<(), StoreError> {
    // The user whose log is being checked, and the expected next sequence.
    let mut at: Option<(Eid, u64)> = None;
    each(view, Space::Logs, |key, value| {
        let wrong = |why| corrupt(Space::Logs, key, why);
        let user = key::user_of(key).map_err(wrong)?;
        let mut next = match &at {
            Some((same, next)) if *same == user => *next,
            _ => {
                found.users += 1;
                floor(view, &key::log_floor(&user))? + 1
            }
        };
        for (sequence, record) in record::decode::<LogRecord>(key, value)?.entries(key)? {
            demand(sequence.get() == next, Space::Logs, key, "an entry before it is missing")?;
            record.into_entry(view, key, sequence)?;
            found.entries += 1;
            next += 1;
        }
        at = Some((user, next));
        Ok(())
    })
}

fn chats(view: &dyn View) -> Result<(), StoreError> {
    let mut at: Option<(ChatId, u64)> = None;
    each(view, Space::Chats, |key, value| {
        let wrong = |why| corrupt(Space::Chats, key, why);
        let (chat, version) = (chat_of(key).map_err(wrong)?, key::version_of(key).map_err(wrong)?);
        let next = match at {
            Some((same, next)) if same == chat => next,
            _ => floor(view, &key::chat_floor(chat))? + 1,
        };
        demand(version.get() == next, Space::Chats, key, "a version before it is missing")?;
        let row = record::decode::<ChatRecord>(key, value)?;
        row.acknowledged().map_err(wrong)?;
        let message = record::message_named(view, row.message().map_err(wrong)?)?;
        let fits = (message.chat, message.version) == (chat, version);
        demand(fits, Space::Chats, key, "its message stands in another place")?;
        let entered = head(view, &message.sender)? >= row.sender_sequence.max(row.copy_sequence)
            && head(view, &message.recipient)? >= row.recipient_sequence;
        demand(entered, Space::Chats, key, "its entries in the logs are missing")?;
        let waits = view.get(Space::Pending, &row.message)?.is_some();
        demand(waits != row.released(), Space::Chats, key, "it neither waits nor was released, or both")?;
        at = Some((chat, next + 1));
        Ok(())
    })
}

/// Checks devices, lists and revocations.
fn people(view: &dyn View, found: &mut Audited) -> Result<(), StoreError> {
    each(view, Space::Devices, |key, value| {
        let user = key::user_of(key).map_err(|why| corrupt(Space::Devices, key, why))?;
        let cursor = record::decode::<DeviceRecord>(key, value)?.cursor;
        demand(cursor <= head(view, &user)?, Space::Devices, key, "its cursor is past the log's end")?;
        found.devices += 1;
        Ok(())
    })?;
    each(view, Space::Contacts, |key, value| {
        let wrong = |why| corrupt(Space::Contacts, key, why);
        let contact = record::decode::<ContactRecord>(key, value)?;
        let owner = key::user_of(key).map_err(wrong)?;
        let subscriber = key::other_of(&owner, key).map_err(wrong)?;
        let there = view.get(Space::Owners, &key::pair(&subscriber, &owner))?.is_some();
        let other = record::read::<ContactRecord>(view, &key::pair(&subscriber, &owner))?;
        let visible = contact.subscribed && !contact.blocked && !other.is_some_and(|other| other.blocked);
        demand(there == visible, Space::Contacts, key, "the index of who sees whom says otherwise")?;
        found.contacts += 1;
        Ok(())
    })?;
    each(view, Space::Owners, |key, value| {
        let wrong = |why| corrupt(Space::Owners, key, why);
        let owner = record::decode::<OwnerRecord>(key, value)?;
        let subscriber = key::user_of(key).map_err(wrong)?;
        let of = key::other_of(&subscriber, key).map_err(wrong)?;
        let contact = record::read::<ContactRecord>(view, &key::pair(&of, &subscriber))?;
        let fits = contact.is_some_and(|contact| {
            contact.subscribed && !contact.blocked && contact.share_location == owner.share_location
        });
        demand(fits, Space::Owners, key, "the list that it is about says otherwise")
    })?;
    each(view, Space::Floors, |key, value| record::decode::<FloorRecord>(key, value).map(drop))?;
    each(view, Space::Marks, |key, value| record::decode::<MarkRecord>(key, value).map(drop))?;
    each(view, Space::Probe, |key, value| record::decode::<ProbeRecord>(key, value).map(drop))?;
    each(view, Space::Revocations, |key, value| {
        let revocation = Revocation::try_from(record::decode::<RevocationRecord>(key, value)?);
        revocation.map(drop).map_err(|why| corrupt(Space::Revocations, key, why))
    })
}

fn demand(holds: bool, space: Space, key: &[u8], otherwise: &'static str) -> Result<(), StoreError> {
    if holds { Ok(()) } else { Err(corrupt(space, key, Corrupt(otherwise))) }
}

fn each(
    view: &dyn View,
    space: Space,
    mut look: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut span = key::all();
    loop {
        let page: Vec<Row> = view.range(space, &span, Order::Ascending, STORE_PAGE_ROWS)?;
        for (key, value) in &page {
            look(key, value)?;
        }
        let Some((last, _)) = page.last() else { return Ok(()) };
        span = key::following(span, last);
    }
}

/// The number up to which trimming has deleted.
fn floor(view: &dyn View, key: &[u8]) -> Result<u64, StoreError> {
    Ok(record::read::<FloorRecord>(view, key)?.map_or(0, |floor| floor.last))
}

/// The newest sequence of a log.
fn head(view: &dyn View, user: &Eid) -> Result<u64, StoreError> {
    match view.range(Space::Logs, &key::all_of(user), Order::Descending, 1)?.first() {
        Some((key, _)) => Ok(key::sequence_of(key).map_err(|why| corrupt(Space::Logs, key, why))?.get()),
        None => floor(view, &key::log_floor(user)),
    }
}

fn chat_of(key: &[u8]) -> Result<ChatId, Corrupt> {
    key.first_chunk().map(|bytes| ChatId::from_bytes(*bytes)).ok_or(Corrupt("a key too short"))
}
