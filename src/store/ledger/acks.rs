//! Acknowledgments of one message, and of all messages up to a version (protocol.md §7, Receipts).

use super::books::{Books, Stored};
use super::txn::Txn;
use crate::limits;
use crate::store::kv::{Order, Slice, Space, View};
use crate::store::record::{self, ChatRecord, MarkRecord, corrupt};
use crate::store::types::{AckTarget, Acknowledged, Acknowledgment, EntryBody};
use crate::store::{StoreError, key};
use crate::wire::{AckStatus, ChatId, Eid, MessageId, Sequence, Version};

impl Books {
    pub(super) fn acknowledge(&mut self, txn: &mut Txn, ack: Acknowledgment) -> Result<Acknowledged, StoreError> {
        let (acknowledged, sequence) = match ack.target {
            AckTarget::Message(id) => self.acknowledge_one(txn, &ack, id)?,
            AckTarget::UpTo(chat, version) => self.acknowledge_up_to(txn, &ack, chat, version)?,
        };
        if acknowledged.changed {
            let body = || EntryBody::Acknowledged(acknowledged.clone());
            self.append(txn, &acknowledged.sender, None, ack.received_at, body())?;
            self.append(txn, &acknowledged.reader, Some(ack.device.clone()), ack.received_at, body())?;
        }
        self.advance_cursor(txn, &ack.reader, &ack.device, sequence)?;
        Ok(acknowledged)
    }

    /// Acknowledges one message. Also returns the message's sequence in the reader's log.
    fn acknowledge_one(
        &mut self,
        txn: &mut Txn,
        ack: &Acknowledgment,
        id: MessageId,
    ) -> Result<(Acknowledged, Sequence), StoreError> {
        if self.unreleased.contains(id) {
            return Err(StoreError::NoSuchMessage);
        }
        let Stored { message, mut row } = self.stored(txn, id)?.ok_or(StoreError::NoSuchMessage)?;
        if message.recipient != ack.reader {
            return Err(StoreError::NotRecipient);
        }
        let row_key = key::chat(message.chat, message.version);
        let changed = row.advance(ack.status, ack.at);
        let state = row.acknowledged().map_err(|why| corrupt(Space::Chats, &row_key, why))?;
        let (status, at) = state.unwrap_or((ack.status, ack.at));
        if changed {
            self.put_row(txn, &row_key, &row)?;
        }
        let (reader, sender, chat) = (ack.reader.clone(), message.sender.clone(), message.chat);
        let target = AckTarget::Message(id);
        let acknowledged = Acknowledged { reader, sender, target, chat, status, at, changed };
        Ok((acknowledged, Sequence::from(row.recipient_sequence)))
    }

    fn acknowledge_up_to(
        &mut self,
        txn: &mut Txn,
        ack: &Acknowledgment,
        chat: ChatId,
        wanted: Version,
    ) -> Result<(Acknowledged, Sequence), StoreError> {
        let end = self.chat(txn, chat)?.ok_or(StoreError::NoSuchMessage)?;
        let (low, high) = &end.parties;
        let (sender, from_high) = match &ack.reader {
            reader if reader == low => (high.clone(), true),
            reader if reader == high => (low.clone(), false),
            _ => return Err(StoreError::NoSuchMessage),
        };
        let last = wanted.min(self.unreleased.released(chat, end.version));
        if last == Version::ZERO {
            return Err(StoreError::NoSuchMessage);
        }
        let floor = record::chat_floor(txn, chat)?;
        let forward = self.go_forward(txn, ack, chat, from_high, floor, last)?;
        let newest = match forward.newest {
            Some(row) => Some(row),
            None => newest_for_reader(txn, chat, from_high, floor, forward.covered)?,
        };
        // The state that all of the messages have: the newest may be further than the others.
        let (status, at) = match &newest {
            Some((_, row)) if !forward.changed => {
                let read = all_read(txn, &ack.reader, chat, from_high, floor, forward.covered)?;
                let status = if read { AckStatus::Read } else { ack.status };
                (status, row.reached(status))
            }
            _ => (ack.status, ack.at),
        };
        let target = AckTarget::UpTo(chat, forward.covered);
        let (reader, changed) = (ack.reader.clone(), forward.changed);
        let acknowledged = Acknowledged { reader, sender, target, chat, status, at, changed };
        let sequence = newest.map_or(0, |(_, row)| row.recipient_sequence);
        Ok((acknowledged, Sequence::from(sequence)))
    }

    /// Moves the rows up to `last`, all of them released, forward. Starts where an earlier bulk acknowledgment or the
    /// trimming ended.
    fn go_forward(
        &mut self,
        txn: &mut Txn,
        ack: &Acknowledgment,
        chat: ChatId,
        from_high: bool,
        floor: Version,
        last: Version,
    ) -> Result<Forward, StoreError> {
        let mark_key = key::mark(chat, &ack.reader);
        let mut mark = record::read::<MarkRecord>(txn, &mark_key)?.unwrap_or_default();
        let done = Version::from(if ack.status == AckStatus::Read { mark.read } else { mark.delivered });
        let mut forward = Forward { covered: done.min(last), changed: false, newest: None };
        let mut looked_at = 0;
        while forward.covered < last && looked_at < limits::ACKNOWLEDGED_ROWS_MAX {
            let span = key::versions(chat, forward.covered.max(floor), Some(last.next()));
            let page = limits::STORE_PAGE_ROWS.min(limits::ACKNOWLEDGED_ROWS_MAX - looked_at);
            let rows = txn.range(Space::Chats, &span, Order::Ascending, page)?;
            looked_at += rows.len();
            // Fewer rows than a page: there are no more up to `last`. Versions without a row have been trimmed.
            if rows.len() < page {
                forward.covered = last;
            }
            for (key, value) in rows {
                let mut row = record::decode::<ChatRecord>(&key, &value)?;
                let version = key::version_of(&key).map_err(|why| corrupt(Space::Chats, &key, why))?;
                forward.covered = forward.covered.max(version);
                if row.from_high != from_high {
                    continue;
                }
                if row.advance(ack.status, ack.at) {
                    self.put_row(txn, &key, &row)?;
                    forward.changed = true;
                }
                forward.newest = Some((key, row));
            }
        }
        if forward.covered > done {
            mark.delivered = mark.delivered.max(forward.covered.get());
            if ack.status == AckStatus::Read {
                mark.read = forward.covered.get();
            }
            txn.put(&mark_key, &mark);
        }
        Ok(forward)
    }
}

/// The result of a bulk acknowledgment.
struct Forward {
    /// Up to this version, every message for the reader is at least in the requested state.
    covered: Version,
    changed: bool,
    /// The last row for the reader among those read.
    newest: Option<(Slice, ChatRecord)>,
}

/// Whether every message for the reader up to `last` is known to be read. Reads at most
/// [`limits::ACKNOWLEDGED_LOOK_MAX`] rows to find out.
fn all_read(
    txn: &Txn,
    reader: &Eid,
    chat: ChatId,
    from_high: bool,
    floor: Version,
    last: Version,
) -> Result<bool, StoreError> {
    let mark = record::read::<MarkRecord>(txn, &key::mark(chat, reader))?.unwrap_or_default();
    let span = key::versions(chat, Version::from(mark.read).max(floor), Some(last.next()));
    let rows = txn.range(Space::Chats, &span, Order::Ascending, limits::ACKNOWLEDGED_LOOK_MAX)?;
    for (key, value) in &rows {
        let row = record::decode::<ChatRecord>(key, value)?;
        if row.from_high == from_high && row.status != AckStatus::Read.code() {
            return Ok(false);
        }
    }
    Ok(rows.len() < limits::ACKNOWLEDGED_LOOK_MAX)
}

/// The newest row for the reader up to `last`, if it is among the newest [`limits::ACKNOWLEDGED_LOOK_MAX`] rows.
fn newest_for_reader(
    txn: &Txn,
    chat: ChatId,
    from_high: bool,
    floor: Version,
    last: Version,
) -> Result<Option<(Slice, ChatRecord)>, StoreError> {
    let span = key::versions(chat, floor, Some(last.next()));
    // It is usually among the first rows.
    for page in [8, limits::ACKNOWLEDGED_LOOK_MAX] {
        for (key, value) in txn.range(Space::Chats, &span, Order::Descending, page)? {
            let row = record::decode::<ChatRecord>(&key, &value)?;
            if row.from_high == from_high {
                return Ok(Some((key, row)));
            }
        }
    }
    Ok(None)
}
