//! Reads that need only a view: logs, history, lists, revocations.

use std::sync::Arc;

use super::kv::{Order, Space, View};
use super::record::{self, ChatRecord, ContactRecord, LogRecord, OwnerRecord, RevocationRecord, corrupt};
use super::types::{Access, ContactsPage, HistoryMessage, HistoryQuery, LogEntry, Relation, Revocation};
use super::{StoreError, key};
use crate::limits;
use crate::wire::{ChatId, Eid, Sequence};

/// At most `limit` entries after `after`. Stops early once the entries hold `bytes_max` bytes of messages.
pub(crate) fn log(
    view: &dyn View,
    user: &Eid,
    after: Sequence,
    limit: usize,
    bytes_max: usize,
) -> Result<Vec<Arc<LogEntry>>, StoreError> {
    let after = after.max(record::log_floor(view, user)?);
    let (mut entries, mut span, mut read) = (Vec::new(), key::entries(user, after), 0);
    let mut bytes = 0;
    while entries.len() < limit {
        let missing = limit - entries.len();
        // Number of rows to read: assumes full rows at first, then as many entries per row as in the rows read so far.
        // If all rows are full, the first read is enough.
        let likely = match read {
            0 => missing.div_ceil(limits::LOG_ROW_ENTRIES_MAX),
            _ => missing.saturating_mul(read).div_ceil(entries.len().max(1)),
        };
        let wanted = likely.min(limits::STORE_PAGE_ROWS);
        let rows = view.range(Space::Logs, &span, Order::Ascending, wanted)?;
        for (key, value) in &rows {
            let row = record::decode::<LogRecord>(key, value)?.entries(key)?;
            let unread = row.skip_while(|(sequence, _)| *sequence <= after);
            for (sequence, record) in unread.take(limit - entries.len()) {
                let entry = record.into_entry(view, key, sequence)?;
                bytes += entry.content_bytes();
                entries.push(Arc::new(entry));
                if bytes >= bytes_max {
                    return Ok(entries);
                }
            }
        }
        read += rows.len();
        match rows.last() {
            Some((last, _)) if rows.len() == wanted => span = key::following(span, last),
            _ => break,
        }
    }
    Ok(entries)
}

/// Number of unreleased messages that a page of history expects among a chat's newest.
const UNRELEASED_USUALLY: usize = 8;

/// A page of a chat. Stops before `limit` once it holds at least two messages and more than `bytes_max` bytes of content.
pub(crate) fn history(view: &dyn View, query: &HistoryQuery) -> Result<Vec<HistoryMessage>, StoreError> {
    let chat = ChatId::between(&query.reader, &query.peer);
    let order = match (query.after, query.before) {
        (Some(_), None) => Order::Ascending,
        _ => Order::Descending,
    };
    let (floor, mut before) = (record::chat_floor(view, chat)?, query.before);
    let mut after = query.after.map_or(floor, |after| after.max(floor));
    let (mut page, mut bytes) = (Vec::new(), 0);
    let is_full = |page: &Vec<_>, bytes: usize| page.len() >= query.limit || page.len() >= 2 && bytes > query.bytes_max;
    while !is_full(&page, bytes) {
        // Some more than needed, as the newest messages may wait for their release.
        let wanted = query.limit - page.len() + UNRELEASED_USUALLY;
        let rows = view.range(Space::Chats, &key::versions(chat, after, before), order, wanted)?;
        let Some((last, _)) = rows.last() else { break };
        let last = key::version_of(last).map_err(|why| corrupt(Space::Chats, last, why))?;
        match order {
            Order::Ascending => after = last,
            Order::Descending => before = Some(last),
        }
        for (key, value) in &rows {
            let row = record::decode::<ChatRecord>(key, value)?;
            if is_full(&page, bytes) {
                break;
            }
            if row.released() {
                let message = message(view, key, &row)?;
                bytes += message.message.content.bytes();
                page.push(message);
            }
        }
        if rows.len() < wanted {
            break;
        }
    }
    if order == Order::Descending {
        page.reverse();
    }
    Ok(page)
}

fn message(view: &dyn View, key: &[u8], row: &ChatRecord) -> Result<HistoryMessage, StoreError> {
    let wrong = |why| corrupt(Space::Chats, key, why);
    let message = record::message_named(view, row.message().map_err(wrong)?)?;
    Ok(HistoryMessage { message, acknowledged: row.acknowledged().map_err(wrong)? })
}

/// A page of a list: those behind `after`, one at least and otherwise as many as fill `bytes`.
pub(crate) fn contacts(
    view: &dyn View,
    owner: &Eid,
    after: Option<&Eid>,
    bytes: usize,
) -> Result<ContactsPage, StoreError> {
    let mut span = key::all_of(owner);
    if let Some(after) = after {
        span = key::following(span, &key::pair(owner, after));
    }
    let (mut contacts, mut left) = (Vec::new(), bytes);
    loop {
        let rows = view.range(Space::Contacts, &span, Order::Ascending, limits::STORE_PAGE_ROWS)?;
        let Some((last, _)) = rows.last() else { return Ok(ContactsPage { contacts, more: false }) };
        span = key::following(span, last);
        for (key, value) in &rows {
            let subscriber = key::other_of(owner, key).map_err(|why| corrupt(Space::Contacts, key, why))?;
            let length = subscriber.as_str().len() + value.len();
            if length > left && !contacts.is_empty() {
                return Ok(ContactsPage { contacts, more: true });
            }
            left = left.saturating_sub(length);
            contacts.push(record::decode::<ContactRecord>(key, value)?.into_contact(subscriber));
        }
    }
}

pub(crate) fn owners(view: &dyn View, subscriber: &Eid) -> Result<Vec<(Eid, Access)>, StoreError> {
    let span = key::all_of(subscriber);
    let rows = view.range(Space::Owners, &span, Order::Ascending, limits::OWNERS_READ_MAX)?;
    rows.iter()
        .map(|(key, value)| {
            let owner = key::other_of(subscriber, key).map_err(|why| corrupt(Space::Owners, key, why))?;
            let OwnerRecord { share_location } = record::decode(key, value)?;
            Ok((owner, Access { share_location }))
        })
        .collect()
}

/// Reads the same rows whoever the two users are, so that the cost reveals nothing about them.
pub(crate) fn relation(view: &dyn View, owner: &Eid, other: &Eid) -> Result<Relation, StoreError> {
    let access = record::read::<OwnerRecord>(view, &key::pair(other, owner))?;
    let blocks = |one, two| -> Result<bool, StoreError> {
        Ok(record::read::<ContactRecord>(view, &key::pair(one, two))?.is_some_and(|contact| contact.blocked))
    };
    let (there, here) = (blocks(owner, other)?, blocks(other, owner)?);
    let access = access.map(|OwnerRecord { share_location }| Access { share_location });
    Ok(Relation { access, blocked: there || here })
}

/// All revocations, whatever the time: a clock that is ahead must not bring back a token that was revoked.
pub(crate) fn revocations(view: &dyn View) -> Result<Vec<Revocation>, StoreError> {
    let (mut all, mut span) = (Vec::new(), key::all());
    loop {
        let rows = view.range(Space::Revocations, &span, Order::Ascending, limits::STORE_PAGE_ROWS)?;
        let Some((last, _)) = rows.last() else { return Ok(all) };
        span = key::following(span, last);
        for (key, value) in &rows {
            let record = record::decode::<RevocationRecord>(key, value)?;
            all.push(Revocation::try_from(record).map_err(|why| corrupt(Space::Revocations, key, why))?);
        }
    }
}
