//! The transactions that each operation makes on the rows, over any [`Kv`], without a thread and without a clock.
//!
//! Operations are applied one after the other to one commit. They see each other's writes; nobody else does before the
//! commit. Tests and simulations drive the ledger one step at a time; [`super::writer`] drives it on its thread.

mod acks;
mod books;
mod chat;
mod contacts;
mod devices;
mod revocations;
mod trims;
mod txn;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::StoreError;
use super::figures::Tally;
use super::kv::{Key, Kv, Order, Space};
use super::record::{self, PendingRecord, ProbeRecord, corrupt};
use super::retention::Gone;
use super::types::{
    Accepted, Acknowledged, Acknowledgment, Bearer, Change, Contact, DeviceState, LogEntry, NewMessage, Revocation,
};
use super::{key, kv};
use crate::limits;
use crate::wire::{ChatId, DeviceId, Eid, MessageId, Sequence};
use books::{Books, Waiting};
use txn::{Txn, Written};

pub(crate) use books::chat_version;

/// A request to the ledger: the calls of [`super::Store`] that change something or need the newest state.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Accept {
        message: Box<NewMessage>,
        release: bool,
    },
    Release(MessageId),
    Acknowledge(Acknowledgment),
    OpenDevice(Eid, DeviceId, Bearer),
    AdvanceCursor(Eid, DeviceId, Sequence),
    PutContact(Eid, Box<Contact>),
    RemoveContact {
        owner: Eid,
        subscriber: Eid,
    },
    SetBlock {
        owner: Eid,
        subscriber: Eid,
        blocked: bool,
    },
    /// Also forgets this device of the user, and with it its place among the user's devices.
    Revoke(Revocation, Option<DeviceId>),
    /// Delete those of these rows that refuse nothing any more.
    DropRevocations {
        rows: Vec<Key>,
        expired_at: i64,
    },
    /// Deletes the oldest rows of a log, each given by the sequence of its last entry.
    TrimLog {
        user: Eid,
        /// Sequence of the first entry of the first row.
        from: Sequence,
        rows: Vec<Sequence>,
    },
    /// Deletes the oldest messages of a chat, which no log refers to.
    TrimChat {
        chat: ChatId,
        parties: (Eid, Eid),
        gone: Vec<Gone>,
    },
    /// Writes a row that nobody reads: succeeds if the engine takes it.
    Check,
}

/// The successful result of a write.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The result of [`super::Store::accept`].
    Accepted(Accepted),
    /// The result of [`super::Store::acknowledge`].
    Acknowledged(Acknowledged),
    /// The result of [`super::Store::open_device`].
    Device(DeviceState),
    /// Whether the entry was there before, or has changed, as the call says.
    Flag(bool),
    /// Done, without a value.
    Done,
}

impl Reply {
    /// The result of an accept.
    ///
    /// # Errors
    /// [`StoreError::Engine`] if this is another kind of reply.
    pub fn accepted(self) -> Result<Accepted, StoreError> {
        if let Reply::Accepted(accepted) = self { Ok(accepted) } else { Err(mismatch()) }
    }

    /// The result of an acknowledgment.
    ///
    /// # Errors
    /// [`StoreError::Engine`] if this is another kind of reply.
    pub fn acknowledged(self) -> Result<Acknowledged, StoreError> {
        if let Reply::Acknowledged(acknowledged) = self { Ok(acknowledged) } else { Err(mismatch()) }
    }

    pub(crate) fn device(self) -> Result<DeviceState, StoreError> {
        if let Reply::Device(state) = self { Ok(state) } else { Err(mismatch()) }
    }

    pub(crate) fn flag(self) -> Result<bool, StoreError> {
        if let Reply::Flag(flag) = self { Ok(flag) } else { Err(mismatch()) }
    }
}

/// The error for a reply of another kind than the operation has, which only a bug in [`Ledger::perform`] can cause. The
/// reply's content stays out of the error, because errors are logged.
fn mismatch() -> StoreError {
    StoreError::Engine("an answer to something else".to_owned())
}

/// The result of an operation.
pub(crate) type Outcome = Result<Reply, StoreError>;

/// The result of a commit.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// The outcomes, in the order of the operations.
    pub(crate) outcomes: Vec<Outcome>,
    /// The entries that the commit appended to the logs, in order.
    pub(crate) appended: Vec<(Eid, Arc<LogEntry>)>,
    /// The changes that sessions must act on, in order.
    pub(crate) changes: Vec<Change>,
    /// Whether there was anything to write.
    pub(crate) written: bool,
}

/// The only writer of an engine; an engine must not have two.
pub(crate) struct Ledger {
    kv: Arc<dyn Kv>,
    books: Books,
    /// The commit under construction.
    txn: Option<Txn>,
    outcomes: Vec<Outcome>,
    /// The error after which the engine is not written to any more.
    failed: Option<StoreError>,
}

impl Ledger {
    /// Takes over an engine's rows, and releases the messages that were accepted but not released, in version order
    /// within each chat. `committed` is called with the result of each commit. A message that cannot be released, as one
    /// whose recipient's log has a corrupt row, waits with those behind it for the next release in its chat or the next
    /// start: one user's row must not keep the server from all others.
    pub(crate) fn open(kv: Arc<dyn Kv>, now: Instant, committed: impl FnMut(Committed)) -> Result<Ledger, StoreError> {
        Ledger::open_caching(kv, now, limits::STORE_ENDS_CACHED, committed)
    }

    /// As [`Ledger::open`], with a cache of `ends` log ends and chat ends.
    fn open_caching(
        kv: Arc<dyn Kv>,
        now: Instant,
        ends: usize,
        mut committed: impl FnMut(Committed),
    ) -> Result<Ledger, StoreError> {
        let mut ledger = Ledger { kv, books: Books::new(ends), txn: None, outcomes: Vec::new(), failed: None };
        ledger.load_unreleased()?;
        let mut waiting = ledger.books.unreleased.in_order().into_iter().peekable();
        let mut held = None;
        while waiting.peek().is_some() {
            while let Some((chat, id)) = waiting.next_if(|_| !ledger.is_full()) {
                if held != Some(chat)
                    && let Err(error) = ledger.apply(Op::Release(id))
                {
                    tracing::error!(%chat, message = %id, %error, "a message was not released");
                    ledger.books.unreleased.make_all_ready(chat);
                    held = Some(chat);
                }
            }
            let step = ledger.commit(|| now);
            if let Some(error) = ledger.failed {
                return Err(error);
            }
            committed(step);
        }
        Ok(ledger)
    }

    fn load_unreleased(&mut self) -> Result<(), StoreError> {
        let view = self.kv.view();
        let mut span = key::all();
        loop {
            let rows = view.range(Space::Pending, &span, Order::Ascending, limits::STORE_PAGE_ROWS)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            span = key::following(span, last);
            for (key, value) in &rows {
                let wrong = |why| corrupt(Space::Pending, key, why);
                let id = record::message_id(key).map_err(wrong)?;
                let (chat, version) = record::decode::<PendingRecord>(key, value)?.place().map_err(wrong)?;
                self.books.unreleased.insert(chat, version, Waiting { id, received: None, ready: false });
            }
        }
    }

    /// Applies operations and commits them together.
    #[cfg(test)]
    pub(crate) fn run(&mut self, ops: Vec<Op>, now: Instant) -> Committed {
        for op in ops {
            self.apply(op);
        }
        self.commit(|| now)
    }

    /// Applies an operation to the commit. The returned outcome holds unless the commit fails.
    pub(crate) fn apply(&mut self, op: Op) -> &Outcome {
        let outcome = match &self.failed {
            Some(error) => Err(error.clone()),
            None => self.perform(op),
        };
        self.add(outcome)
    }

    /// Refuses a message that was submitted behind one that was refused for now, without applying it.
    pub(crate) fn refuse(&mut self) -> &Outcome {
        let error = self.failed.clone().unwrap_or(StoreError::ChatFull);
        self.add(Err(error))
    }

    fn add(&mut self, outcome: Outcome) -> &Outcome {
        self.outcomes.push(outcome);
        &self.outcomes[self.outcomes.len() - 1]
    }

    fn perform(&mut self, op: Op) -> Outcome {
        let books = &mut self.books;
        let txn = self.txn.get_or_insert_with(|| {
            books.reserve.look(self.kv.disk());
            Txn::new(self.kv.view())
        });
        txn.begin_operation();
        let outcome = match op {
            Op::Accept { message, release } => books.accept(txn, *message, release).map(Reply::Accepted),
            Op::Release(id) => books.release(txn, id).map(|()| Reply::Done),
            Op::Acknowledge(acknowledgment) => books.acknowledge(txn, acknowledgment).map(Reply::Acknowledged),
            Op::OpenDevice(user, device, bearer) => books.open_device(txn, &user, &device, bearer).map(Reply::Device),
            Op::AdvanceCursor(user, device, to) => books.advance_cursor(txn, &user, &device, to).map(|()| Reply::Done),
            Op::PutContact(owner, contact) => books.put_contact(txn, &owner, *contact).map(Reply::Flag),
            Op::RemoveContact { owner, subscriber } => books.remove_contact(txn, &owner, &subscriber).map(Reply::Flag),
            Op::SetBlock { owner, subscriber, blocked } => {
                books.set_block(txn, &owner, &subscriber, blocked).map(Reply::Flag)
            }
            Op::Revoke(revocation, forget) => books.revoke(txn, revocation, forget).map(|()| Reply::Done),
            Op::DropRevocations { rows, expired_at } => {
                revocations::drop_expired(txn, &rows, expired_at).map(|()| Reply::Done)
            }
            Op::TrimLog { user, rows, .. } => books.trim_log(txn, &user, &rows).map(|()| Reply::Done),
            Op::TrimChat { chat, parties, gone } => books.trim_chat(txn, chat, &parties, gone).map(|()| Reply::Done),
            Op::Check => {
                txn.put(key::PROBE, &ProbeRecord {});
                Ok(Reply::Done)
            }
        };
        // A refused operation has written nothing, so the roll-back costs nothing. Only an engine that fails half-way
        // leaves writes to take back.
        if outcome.is_err() && txn.roll_back() {
            books.forget_ends();
        }
        outcome
    }

    /// Whether the commit has reached its bound of operations or rows.
    pub(crate) fn is_full(&self) -> bool {
        self.outcomes.len() >= limits::COMMIT_OPERATIONS_MAX
            || self.txn.as_ref().is_some_and(|txn| txn.rows().max(txn.rows_read()) >= limits::COMMIT_ROWS_MAX)
    }

    /// The ledger's counters.
    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.books.tally
    }

    /// Whether the engine has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether a moved cursor is not written yet and still can be.
    pub(crate) fn has_unwritten_cursors(&self) -> bool {
        self.failed.is_none() && !self.books.cursors.is_empty()
    }

    /// Commits what was applied. `now` is called after the commit. If the engine fails, so do all operations of the
    /// commit and all later ones.
    pub(crate) fn commit(&mut self, now: impl FnOnce() -> Instant) -> Committed {
        if self.books.cursors.len() >= limits::CURSORS_UNWRITTEN_MAX {
            self.add_cursors();
        }
        let outcomes = std::mem::take(&mut self.outcomes);
        self.books.tally.unreleased.store(self.books.unreleased.len(), Ordering::Relaxed);
        let Some(txn) = self.txn.take() else { return Committed { outcomes, ..Committed::default() } };
        let Written { batch, mut appended, changes } = txn.finish();
        let written = !batch.is_empty();
        match self.write(batch) {
            Err(error) => {
                let outcomes = outcomes.iter().map(|_| Err(error.clone())).collect();
                Committed { outcomes, ..Committed::default() }
            }
            Ok(()) => {
                let committed = Some(now());
                for (_, entry) in &mut appended {
                    if let Some(entry) = Arc::get_mut(entry) {
                        entry.committed = committed;
                    }
                }
                Committed { outcomes, appended, changes, written }
            }
        }
    }

    /// Makes a commit of the moved cursors. Nothing may have been applied since the last commit.
    ///
    /// # Errors
    /// The error with which the engine has failed, now or before.
    pub(crate) fn flush_cursors(&mut self) -> Result<(), StoreError> {
        self.add_cursors();
        match (self.txn.take(), &self.failed) {
            (_, Some(error)) => Err(error.clone()),
            (Some(txn), None) => self.write(txn.finish().batch),
            (None, None) => Ok(()),
        }
    }

    /// Adds the moved cursors to the commit under construction. They are not in each commit, because a device that
    /// receives much moves its cursor with each.
    pub(crate) fn add_cursors(&mut self) {
        if self.failed.is_none() && !self.books.cursors.is_empty() {
            let txn = self.txn.get_or_insert_with(|| Txn::new(self.kv.view()));
            self.books.write_cursors(txn);
        }
    }

    fn write(&mut self, batch: kv::Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let result = self.kv.commit(batch);
        match &result {
            Err(error) => self.failed = Some(error.clone()),
            // Now, because the engine's view of before the commit keeps what that view could read.
            Ok(()) if self.books.reserve.wants_room() => self.kv.make_room(),
            Ok(()) => {}
        }
        result
    }
}
