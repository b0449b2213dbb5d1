//! Determines what may be deleted, in bounded steps: log entries beyond their age or number, and messages that no log
//! refers to any more.
//!
//! A pass reads views beside the writer, and hands the writer lists of rows to delete. Each list is bounded, so that
//! commits stay short. A listed row cannot be referred to again: trimmed entries stay trimmed, and messages that wait
//! for their release are left out. An interrupted pass is started again. What cannot be read is passed over: one damaged row would
//! otherwise let everything behind it grow without end. Where the engine cannot read on at all, as in a damaged block, the pass goes
//! on with the next kind of rows.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::kv::{Key, Order, Space, Span, View};
use super::ledger::Op;
use super::record::{self, ChatRecord, FloorRecord, LogRecord, PendingRecord, RevocationRecord, corrupt};
use super::types::{Message, Retention};
use super::{StoreError, key};
use crate::limits;
use crate::wire::{ChatId, Eid, MessageId, Sequence, Version};

/// A message to delete, with the key of its `message_id_local`.
#[derive(Clone, Debug)]
pub(crate) struct Gone {
    pub(crate) version: Version,
    pub(crate) id: MessageId,
    /// Key of its `message_id_local`.
    pub(crate) local: Key,
}

/// One pass over everything.
pub(crate) struct Pass {
    retention: Retention,
    /// Messages received from this time on (Unix milliseconds) are kept, because a repeat of their `message_id_local`
    /// is answered with them.
    locals_from_ms: i64,
    /// Revocations that expired until then (Unix milliseconds) are deleted.
    revocations_to_ms: i64,
    stage: Stage,
    /// Messages that perhaps nothing refers to any more: their entries were trimmed, or their `message_id_local` need
    /// not be remembered any longer.
    candidates: VecDeque<MessageId>,
    /// Key below which messages are old enough that their `message_id_local` need not be remembered. Each of them
    /// becomes a candidate once for that, and again when one of its entries is trimmed.
    swept: Key,
    /// Number of logs, messages and revocations that could not be read.
    unreadable: u64,
}

enum Stage {
    /// Logs from this key on.
    Logs(Key),
    Messages,
    /// Revocations from this key on.
    Revocations(Key),
    Over,
}

impl Pass {
    /// `now_ms` is Unix milliseconds. `swept` is where the previous pass ended; empty: there was none in this process.
    pub(crate) fn new(retention: Retention, now_ms: i64, swept: Key) -> Pass {
        let before = |kept: Duration| now_ms.saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
        Pass {
            retention,
            locals_from_ms: before(limits::LOCAL_IDS_KEPT),
            revocations_to_ms: before(limits::REVOCATIONS_KEPT),
            stage: Stage::Logs(Key::new()),
            candidates: VecDeque::new(),
            swept,
            unreadable: 0,
        }
    }

    /// The operations of the next step, perhaps none; `None`: the pass is complete.
    pub(crate) fn step(&mut self, view: &dyn View) -> Result<Option<Vec<Op>>, StoreError> {
        if !self.candidates.is_empty() {
            return self.messages(view).map(Some);
        }
        match &self.stage {
            Stage::Logs(from) => {
                let from = from.clone();
                self.logs(view, from).map(Some)
            }
            Stage::Messages => self.come_of_age(view).map(Some),
            Stage::Revocations(from) => {
                let from = from.clone();
                self.revocations(view, from).map(Some)
            }
            Stage::Over => Ok(None),
        }
    }

    /// Number of logs, messages and revocations that were passed over.
    pub(crate) fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// The first one is logged with its reason: thousands may lie in the same damaged block.
    fn pass_over(&mut self, error: &StoreError) {
        if self.unreadable == 0 {
            tracing::error!(%error, "the retention passes over what it cannot read");
        }
        self.unreadable += 1;
    }

    /// The message key from which the next pass continues.
    pub(crate) fn swept(self) -> Key {
        self.swept
    }

    /// Trims logs from a key on, until it has examined enough rows.
    fn logs(&mut self, view: &dyn View, mut from: Key) -> Result<Vec<Op>, StoreError> {
        let (mut ops, mut looked_at) = (Vec::new(), 0);
        while looked_at < limits::TRIM_ROWS {
            let rest = Span { from, to: key::all().to };
            let first = match view.range(Space::Logs, &rest, Order::Ascending, 1) {
                Ok(first) => first,
                // Nobody can tell where the next log begins. Messages and revocations can go all the same.
                Err(error) => {
                    self.pass_over(&error);
                    self.stage = Stage::Messages;
                    return Ok(ops);
                }
            };
            let Some((first, oldest)) = first.first() else {
                self.stage = Stage::Messages;
                return Ok(ops);
            };
            looked_at += 1;
            let user = match key::user_of(first) {
                Ok(user) => user,
                Err(why) => {
                    self.pass_over(&corrupt(Space::Logs, first, why));
                    from = key::following(key::all(), first).from;
                    continue;
                }
            };
            from = key::all_of(&user).to;
            let (op, rows) = match self.oldest_of(view, user, (first, oldest)) {
                Ok(found) => found,
                Err(error) => {
                    self.pass_over(&error);
                    continue;
                }
            };
            looked_at += rows;
            // This log may have more rows to trim.
            if rows == limits::TRIM_ROWS
                && let Some(Op::TrimLog { user, rows, .. }) = &op
                && let Some(up_to) = rows.last()
            {
                from = key::entries(user, *up_to).from;
            }
            ops.extend(op);
        }
        self.stage = Stage::Logs(from);
        Ok(ops)
    }

    /// Trims a page of a log, given its oldest row, if that row may be deleted. Also returns how many rows it has examined.
    fn oldest_of(
        &mut self,
        view: &dyn View,
        user: Eid,
        (key, value): (&[u8], &[u8]),
    ) -> Result<(Option<Op>, usize), StoreError> {
        let surplus = self.surplus(view, &user)?;
        match self.goes(surplus, key, value)? {
            Some(_) => self.log(view, user, surplus),
            None => Ok((None, 0)),
        }
    }

    /// The sequence up to which a log exceeds its maximum number of entries.
    fn surplus(&self, view: &dyn View, user: &Eid) -> Result<u64, StoreError> {
        let newest = view.range(Space::Logs, &key::all_of(user), Order::Descending, 1)?;
        let Some((key, _)) = newest.first() else { return Ok(0) };
        let head = key::sequence_of(key).map_err(|why| corrupt(Space::Logs, key, why))?;
        Ok(head.get().saturating_sub(self.retention.entries_max_per_user))
    }

    /// The last sequence and the entries of a row, if all of them may be deleted; otherwise `None`.
    fn goes(&self, surplus: u64, key: &[u8], value: &[u8]) -> Result<Option<(Sequence, Vec<LogRecord>)>, StoreError> {
        let last = key::sequence_of(key).map_err(|why| corrupt(Space::Logs, key, why))?;
        let mut entries = Vec::new();
        for (sequence, entry) in record::decode::<LogRecord>(key, value)?.entries(key)? {
            if sequence.get() > surplus && entry.at >= self.retention.older_than_ms {
                return Ok(None);
            }
            entries.push(entry);
        }
        Ok(Some((last, entries)))
    }

    /// Trims a page of a log, up to the first row that stays. Also returns how many rows it has examined.
    fn log(&mut self, view: &dyn View, user: Eid, surplus: u64) -> Result<(Option<Op>, usize), StoreError> {
        let floor = record::read::<FloorRecord>(view, &key::log_floor(&user))?;
        let trimmed = Sequence::from(floor.map_or(0, |floor| floor.last));
        let page = view.range(Space::Logs, &key::entries(&user, trimmed), Order::Ascending, limits::TRIM_ROWS)?;
        let mut rows = Vec::new();
        'rows: for (key, value) in &page {
            let (last, entries) = match self.goes(surplus, key, value) {
                Ok(Some(goes)) => goes,
                Ok(None) => break,
                // What is before it goes all the same.
                Err(error) => {
                    self.pass_over(&error);
                    break;
                }
            };
            let mut messages = Vec::new();
            for entry in entries.iter().filter(|entry| !entry.message.is_empty()) {
                let id = record::message_id(&entry.message).map_err(|why| corrupt(Space::Logs, key, why))?;
                if is_pending(view, id)? {
                    break 'rows;
                }
                messages.push(id);
            }
            self.candidates.extend(messages);
            rows.push(last);
        }
        let op = (!rows.is_empty()).then(|| Op::TrimLog { user, from: trimmed.next(), rows });
        Ok((op, page.len()))
    }

    /// Makes candidates of the messages whose `message_id_local` need not be remembered any longer.
    fn come_of_age(&mut self, view: &dyn View) -> Result<Vec<Op>, StoreError> {
        let to = MessageId::new(self.locals_from_ms, [0; 10]);
        let span = Span { from: self.swept.clone(), to: key::message(to) };
        let rows = match view.range(Space::Messages, &span, Order::Ascending, limits::TRIM_ROWS) {
            Ok(rows) => rows,
            Err(error) => {
                self.pass_over(&error);
                self.stage = Stage::Revocations(Key::new());
                return Ok(Vec::new());
            }
        };
        match rows.last() {
            None => self.stage = Stage::Revocations(Key::new()),
            Some((last, _)) => self.swept = key::following(key::all(), last).from,
        }
        for (key, _) in &rows {
            match record::message_id(key) {
                Ok(id) => self.candidates.push_back(id),
                Err(why) => self.pass_over(&corrupt(Space::Messages, key, why)),
            }
        }
        Ok(Vec::new())
    }

    /// Reads a page of revocations and deletes the expired ones.
    fn revocations(&mut self, view: &dyn View, from: Key) -> Result<Vec<Op>, StoreError> {
        let page =
            view.range(Space::Revocations, &Span { from, to: key::all().to }, Order::Ascending, limits::TRIM_ROWS)?;
        self.stage = match page.last() {
            None => Stage::Over,
            Some((last, _)) => Stage::Revocations(key::following(key::all(), last).from),
        };
        let mut rows = Vec::new();
        for (key, value) in page {
            match record::decode::<RevocationRecord>(&key, &value) {
                Ok(revocation) if revocation.expires_at <= self.revocations_to_ms => rows.push(Key::from_slice(&key)),
                Ok(_) => {}
                Err(error) => self.pass_over(&error),
            }
        }
        let op = (!rows.is_empty()).then_some(Op::DropRevocations { rows, expired_at: self.revocations_to_ms });
        Ok(op.into_iter().collect())
    }

    /// Takes some candidates, and deletes all messages of their chats that nothing refers to.
    fn messages(&mut self, view: &dyn View) -> Result<Vec<Op>, StoreError> {
        let mut chats: BTreeMap<ChatId, (Version, MessageId)> = BTreeMap::new();
        let some = self.candidates.len().min(limits::TRIM_ROWS);
        for id in self.candidates.drain(..some).collect::<Vec<_>>() {
            match self.past(view, id) {
                Ok(Some(message)) => {
                    let newest = chats.entry(message.chat).or_insert((message.version, id));
                    *newest = (message.version, id).max(*newest);
                }
                Ok(None) => {}
                Err(error) => self.pass_over(&error),
            }
        }
        let (mut ops, mut room) = (Vec::new(), limits::TRIM_ROWS);
        for (chat, (version, id)) in chats {
            if room == 0 {
                self.candidates.push_back(id);
                continue;
            }
            let (op, rows) = match self.chat(view, chat, version, room) {
                Ok(found) => found,
                Err(error) => {
                    self.pass_over(&error);
                    continue;
                }
            };
            room -= rows;
            // The chat may have more to delete than a step takes. If nothing was deleted, nothing more will be in this
            // pass: an earlier message holds back the rest, such as one from when the clock was ahead.
            if room == 0 && op.is_some() {
                self.candidates.push_back(id);
            }
            ops.extend(op);
        }
        Ok(ops)
    }

    /// Deletes a chat's oldest messages, up to a version, as far as nothing refers to them. It proceeds in version
    /// order, which is their order in both logs, too, so that what is left of the chat has no gap. Also returns how
    /// many rows it has read.
    fn chat(
        &self,
        view: &dyn View,
        chat: ChatId,
        up_to: Version,
        limit: usize,
    ) -> Result<(Option<Op>, usize), StoreError> {
        let floor = record::read::<FloorRecord>(view, &key::chat_floor(chat))?;
        let trimmed = Version::from(floor.map_or(0, |floor| floor.last));
        let span = key::versions(chat, trimmed, Some(up_to.next()));
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

    /// The message of this id if it is there and may be deleted.
    fn past(&self, view: &dyn View, id: MessageId) -> Result<Option<Message>, StoreError> {
        let Some(message) = record::message(view, id)? else { return Ok(None) };
        Ok(self.is_past(view, &message)?.then_some(message))
    }

    /// Whether no log refers to a message, and its `message_id_local` need not be remembered any longer.
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;
    use crate::store::kv::{Kv, Row, Slice};
    use crate::store::testing::{Gate, Nobody, eid, take_places, text};
    use crate::store::{Embedded, Memory, Options, Revocation, RevocationTarget, Store, Trimmed};

    const ALL: Retention = Retention { older_than_ms: 100, entries_max_per_user: u64::MAX };

    /// An engine with a damaged block in one space.
    struct Damaged(Box<dyn View>, Space);

    impl View for Damaged {
        fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, StoreError> {
            self.0.get(space, key)
        }

        fn range(&self, space: Space, span: &Span, order: Order, limit: usize) -> Result<Vec<Row>, StoreError> {
            match space == self.1 {
                true => Err(StoreError::Engine("checksum mismatch".to_owned())),
                false => self.0.range(space, span, order, limit),
            }
        }
    }

    #[tokio::test]
    async fn a_damaged_block_keeps_no_other_kind_of_rows_from_being_deleted() {
        const NOW: i64 = 100 * 24 * 3600 * 1000;
        let memory = Memory::new();
        let store = Embedded::open_memory(memory.clone(), Options::default(), Arc::new(Nobody)).unwrap();
        store.accept(text("alice", "bob", 1), true).await.unwrap();
        let target = RevocationTarget::User(eid("bob"));
        store.revoke(Revocation { target, issued_until: 1, expires_at: 1 }, None).await.unwrap();
        store.close().await;
        for damaged in [Space::Logs, Space::Messages] {
            let view = Damaged(memory.view(), damaged);
            let (mut pass, mut ops) = (Pass::new(ALL, NOW, Key::new()), Vec::new());
            while let Some(more) = pass.step(&view).unwrap() {
                ops.extend(more);
            }
            assert_eq!(pass.unreadable(), 1);
            assert!(ops.iter().any(|op| matches!(op, Op::DropRevocations { .. })), "{damaged:?}");
            assert_eq!(ops.iter().any(|op| matches!(op, Op::TrimLog { .. })), damaged != Space::Logs);
        }
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_read_keeps_no_other_from_being_trimmed() {
        let (memory, counted) = (Memory::new(), Arc::new(Mutex::new(0)));
        let on_trimmed = {
            let counted = counted.clone();
            Box::new(move |trimmed: Trimmed| *counted.lock().unwrap() += trimmed.entries)
        };
        let options = Options { on_trimmed, ..Options::default() };
        let store = Embedded::open_memory(memory.clone(), options, Arc::new(Nobody)).unwrap();
        for (number, recipient) in (1..).zip(["bob", "bob", "carol"]) {
            store.accept(text("alice", recipient, number), true).await.unwrap();
        }
        let row = |user: &str, sequence| Slice::new(&key::log(&eid(user), Sequence::from(sequence)));
        let damage = |row: Slice| memory.commit(vec![(Space::Logs, row, Some(vec![0xff, 0xff].into()))]).unwrap();
        // The second row of bob's log, and a row whose key names no user.
        damage(row("bob", 2));
        damage(Slice::new(&[0]));
        let trimmed = store.trim(ALL, 100).await.unwrap();
        assert_eq!(trimmed, Trimmed { entries: 3 + 1 + 1, messages: 0, unreadable: 2 });
        assert!(store.read_log(&eid("carol"), Sequence::ZERO, 9).await.unwrap().is_empty());
        // Now it is the oldest.
        assert_eq!(store.trim(ALL, 100).await.unwrap(), Trimmed { unreadable: 2, ..Trimmed::default() });
        assert_eq!(*counted.lock().unwrap(), 5, "as it went");
    }

    #[tokio::test]
    async fn a_pass_waits_for_a_store_that_has_no_place() {
        let (gate, go_on) = Gate::new();
        let options = Options { queue_wait: Duration::ZERO, ..Options::default() };
        let store = Arc::new(Embedded::open_memory(Memory::new(), options, gate.clone()).unwrap());
        let accept = |number| {
            let store = store.clone();
            tokio::spawn(async move { store.accept(text("alice", "bob", number), true).await })
        };
        let first = accept(1);
        gate.reached().await;
        // Each entry is one turn of the gate.
        go_on.send(()).unwrap();
        gate.reached().await;
        go_on.send(()).unwrap();
        first.await.unwrap().unwrap();
        let second = accept(2);
        gate.reached().await;
        // The writer is blocked, and everybody else is refused.
        take_places(&store, limits::STORE_QUEUE_MAX);
        assert_eq!(store.check().await.unwrap_err(), StoreError::Overloaded);
        let mut trimming = Box::pin(store.trim(ALL, 100));
        // Long enough to be refused on a busy machine as well: a pass that does not wait would end here.
        let waited = tokio::time::timeout(Duration::from_secs(1), &mut trimming).await;
        assert!(waited.is_err(), "{waited:?}");
        drop(go_on);
        second.await.unwrap().unwrap();
        assert_eq!(trimming.await.unwrap().entries, 4, "of both messages in both logs");
    }
}
