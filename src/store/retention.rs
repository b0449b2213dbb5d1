//! What may go, and in which steps: log entries beyond their age or number, and messages that no log refers to any more.
//!
//! A pass looks at views beside the writer and hands it lists of rows to delete, a bounded number each, so that commits
//! stay short. What a list names cannot be referred to again: what was trimmed stays trimmed, and what waits for its
//! release is left out. A pass that is cut off is begun again.

use std::collections::{BTreeMap, VecDeque};

use super::kv::{Order, Space, Span, View};
use super::ledger::Op;
use super::record::{self, ChatRecord, FloorRecord, LogRecord, PendingRecord, corrupt};
use super::types::{Message, Retention};
use super::{StoreError, key};
use crate::limits;
use crate::wire::{ChatId, Eid, MessageId, Sequence, Version};

/// A message that goes, with what else stands for it.
#[derive(Clone, Debug)]
pub(crate) struct Gone {
    pub(crate) version: Version,
    pub(crate) id: MessageId,
    /// Key of its `message_id_local`.
    pub(crate) local: Vec<u8>,
}

/// One pass over everything.
pub(crate) struct Pass {
    retention: Retention,
    /// Messages accepted from then on keep their `message_id_local`, and with it themselves, as a repeat is answered
    /// with them.
    locals_from_ms: i64,
    stage: Stage,
    /// Messages to which perhaps nothing refers any more: their entries were trimmed, or they have come of age.
    candidates: VecDeque<MessageId>,
    /// Messages up to this key have come of age; they are looked at once, and again when an entry of theirs goes.
    swept: Vec<u8>,
}

enum Stage {
    /// Logs from this key on.
    Logs(Vec<u8>),
    Messages,
    Over,
}

impl Pass {
    /// `swept` is what the pass before it came to; empty: there was none in this process.
    pub(crate) fn new(retention: Retention, now_ms: i64, swept: Vec<u8>) -> Pass {
        let kept = i64::try_from(limits::LOCAL_IDS_KEPT.as_millis()).unwrap_or(i64::MAX);
        Pass {
            retention,
            locals_from_ms: now_ms.saturating_sub(kept),
            stage: Stage::Logs(Vec::new()),
            candidates: VecDeque::new(),
            swept,
        }
    }

    /// The next step's operations, perhaps none; `None`: the pass is over.
    pub(crate) fn step(&mut self, view: &dyn View) -> Result<Option<Vec<Op>>, StoreError> {
        if !self.candidates.is_empty() {
            return self.messages(view).map(Some);
        }
        match &self.stage {
            Stage::Logs(from) => {
                let from = from.clone();
                self.log(view, from).map(Some)
            }
            Stage::Messages => self.come_of_age(view).map(Some),
            Stage::Over => Ok(None),
        }
    }

    /// Where the next pass goes on among the messages.
    pub(crate) fn swept(self) -> Vec<u8> {
        self.swept
    }

    /// Trims the first log from a key on, if it has anything to trim.
    fn log(&mut self, view: &dyn View, from: Vec<u8>) -> Result<Vec<Op>, StoreError> {
        let all = key::all();
        let first = view.range(Space::Logs, &Span { from, to: all.to }, Order::Ascending, 1)?;
        let Some((first_key, oldest)) = first.first() else {
            self.stage = Stage::Messages;
            return Ok(Vec::new());
        };
        let wrong = |why| corrupt(Space::Logs, first_key, why);
        let user = key::user_of(first_key).map_err(wrong)?;
        let span = key::all_of(&user);
        let newest = view.range(Space::Logs, &span, Order::Descending, 1)?;
        let head = newest.first().map_or(Ok(Sequence::ZERO), |(key, _)| key::sequence_of(key)).map_err(wrong)?;
        let surplus = head.get().saturating_sub(self.retention.entries_max_per_user);
        let goes = |sequence: Sequence, entry: &LogRecord| {
            sequence.get() <= surplus || entry.at < self.retention.older_than_ms
        };

        let oldest = record::decode::<LogRecord>(first_key, oldest)?;
        let rows = if goes(key::sequence_of(first_key).map_err(wrong)?, &oldest) {
            view.range(Space::Logs, &span, Order::Ascending, limits::TRIM_ROWS)?
        } else {
            Vec::new()
        };
        let mut up_to = None;
        for (key, value) in &rows {
            let entry = record::decode::<LogRecord>(key, value)?;
            let sequence = key::sequence_of(key).map_err(wrong)?;
            let message = if entry.message.is_empty() {
                None
            } else {
                Some(record::message_id(&entry.message).map_err(|why| corrupt(Space::Logs, key, why))?)
            };
            let waits = |id: &MessageId| is_pending(view, *id);
            if !goes(sequence, &entry) || message.as_ref().map(waits).transpose()?.unwrap_or(false) {
                break;
            }
            self.candidates.extend(message);
            up_to = Some(sequence);
        }
        let whole_page = rows.len() == limits::TRIM_ROWS
            && up_to.is_some_and(|up_to| rows.last().is_some_and(|(key, _)| key::sequence_of(key).ok() == Some(up_to)));
        self.stage = Stage::Logs(if whole_page { span.from } else { span.to });
        let from = key::sequence_of(first_key).map_err(wrong)?;
        Ok(up_to.map(|up_to| Op::TrimLog { user, from, up_to }).into_iter().collect())
    }

    /// Messages that no longer have to answer a repeat.
    fn come_of_age(&mut self, view: &dyn View) -> Result<Vec<Op>, StoreError> {
        let to = MessageId::new(self.locals_from_ms, [0; 10]);
        let span = Span { from: self.swept.clone(), to: key::message(to) };
        let rows = view.range(Space::Messages, &span, Order::Ascending, limits::TRIM_ROWS)?;
        match rows.last() {
            None => self.stage = Stage::Over,
            Some((last, _)) => self.swept = key::following(key::all(), last).from,
        }
        for (key, _) in &rows {
            self.candidates.push_back(record::message_id(key).map_err(|why| corrupt(Space::Messages, key, why))?);
        }
        Ok(Vec::new())
    }

    /// Deletes, of some candidates' chats, all messages that nothing refers to.
    fn messages(&mut self, view: &dyn View) -> Result<Vec<Op>, StoreError> {
        let mut chats: BTreeMap<ChatId, (Version, MessageId)> = BTreeMap::new();
        let some = self.candidates.len().min(limits::TRIM_ROWS);
        for id in self.candidates.drain(..some).collect::<Vec<_>>() {
            if let Some(message) = record::message(view, id)?
                && self.is_past(view, &message)?
            {
                let newest = chats.entry(message.chat).or_insert((message.version, id));
                *newest = (message.version, id).max(*newest);
            }
        }
        let (mut ops, mut room) = (Vec::new(), limits::TRIM_ROWS);
        for (chat, (version, id)) in chats {
            let (op, rows) = if room > 0 { self.chat(view, chat, version, room)? } else { (None, 0) };
            room -= rows;
            // More of this chat is to go than a step takes.
            if room == 0 {
                self.candidates.push_back(id);
            }
            ops.extend(op);
        }
        Ok(ops)
    }

    /// Deletes a chat's oldest messages, up to a version, as far as nothing refers to them: in the order of their
    /// versions, as both logs have them in that order, so that what is left of the chat has no hole.
    fn chat(
        &self,
        view: &dyn View,
        chat: ChatId,
        up_to: Version,
        limit: usize,
    ) -> Result<(Option<Op>, usize), StoreError> {
        let span = key::versions(chat, Version::ZERO, Some(up_to.next()));
        let rows = view.range(Space::Chats, &span, Order::Ascending, limit)?;
        let (mut gone, mut parties) = (Vec::new(), None);
        for (key, value) in &rows {
            let row = record::decode::<ChatRecord>(key, value)?;
            let id = row.message().map_err(|why| corrupt(Space::Chats, key, why))?;
            let message = record::message_named(view, id)?;
            if !self.is_past(view, &message)? {
                break;
            }
            let local = key::local(&message.sender, &message.local_id);
            gone.push(Gone { version: message.version, id, local });
            parties = Some((message.sender.clone(), message.recipient.clone()));
        }
        let op = parties.map(|parties| Op::TrimChat { chat, parties, gone });
        Ok((op, rows.len()))
    }

    /// Whether no log refers to a message and no repeat of it has to be known.
    fn is_past(&self, view: &dyn View, message: &Message) -> Result<bool, StoreError> {
        if message.received_at >= self.locals_from_ms || is_pending(view, message.id)? {
            return Ok(false);
        }
        let row_key = key::chat(message.chat, message.version);
        let Some(row) = record::read::<ChatRecord>(view, &row_key)? else {
            return Err(corrupt(Space::Chats, &row_key, "its message is there, and it is not"));
        };
        let trimmed = |user: &Eid| {
            let floor = record::read::<FloorRecord>(view, &key::log_floor(user))?;
            Ok::<_, StoreError>(floor.map_or(0, |floor| floor.last))
        };
        Ok(row.released()
            && trimmed(&message.recipient)? >= row.recipient_sequence
            && trimmed(&message.sender)? >= row.sender_sequence.max(row.copy_sequence))
    }
}

fn is_pending(view: &dyn View, id: MessageId) -> Result<bool, StoreError> {
    Ok(record::read::<PendingRecord>(view, &key::message(id))?.is_some())
}
