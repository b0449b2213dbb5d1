//! Tests of the ledger's guarantees, one commit at a time.

use std::sync::Mutex;

use super::*;
use crate::limits::{
    ACKNOWLEDGED_LOOK_MAX, ACKNOWLEDGED_ROWS_MAX, DEVICES_PER_USER_MAX, REVOKED_DEVICES_PER_USER_MAX,
    SUBSCRIBERS_PER_USER_MAX,
};
use crate::store::Size;
use crate::store::kv::{Batch, Row, Slice, Span, View};
use crate::store::memory::{Fault, Memory};
use crate::store::record::{ChatRecord, FloorRecord, LocalRecord, MarkRecord, MessageRecord};
use crate::store::testing::{LATER, ack, contact, device, eid, kinds, sign_out, text, told};
use crate::store::types::{AcceptOutcome, AckTarget, Content, EntryBody, HistoryQuery, Message, RevocationTarget};
use crate::store::{Disk, read};
use crate::wire::{AckStatus, ChatId, Version};

mod acks;
mod chat;
mod contacts;
mod devices;
mod failures;
mod logs;

struct House {
    memory: Memory,
    watched: Watched,
    ledger: Ledger,
}

/// An engine that records the ranges read from its views: their spans, and how many rows they gave.
#[derive(Clone, Default)]
struct Watched {
    memory: Memory,
    ranges: Arc<Mutex<Vec<(Space, Span, usize)>>>,
}

impl Watched {
    /// What was read since the last call.
    fn ranges(&self) -> Vec<(Space, Span, usize)> {
        std::mem::take(&mut *self.ranges.lock().unwrap())
    }
}

impl Kv for Watched {
    fn view(&self) -> Box<dyn View> {
        Box::new(WatchedView(self.memory.view(), self.clone()))
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.memory.commit(batch)
    }

    fn size(&self) -> Result<Size, StoreError> {
        self.memory.size()
    }

    fn disk(&self) -> Option<Disk> {
        self.memory.disk()
    }
}

struct WatchedView(Box<dyn View>, Watched);

impl View for WatchedView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        self.0.get(space, key)
    }

    fn range(&self, space: Space, span: &Span, order: Order, limit: usize) -> Result<Vec<Row>, StoreError> {
        let rows = self.0.range(space, span, order, limit)?;
        self.1.ranges.lock().unwrap().push((space, span.clone(), rows.len()));
        Ok(rows)
    }
}

impl House {
    fn new() -> House {
        House::over(Memory::new()).0
    }

    fn over(memory: Memory) -> (House, Committed) {
        let mut recovered = Committed::default();
        let watched = Watched { memory: memory.clone(), ..Watched::default() };
        let ledger = Ledger::open(Arc::new(watched.clone()), Instant::now(), |committed| {
            recovered.appended.extend(committed.appended);
        });
        (House { memory, watched, ledger: ledger.unwrap() }, recovered)
    }

    /// Restarts the ledger after a power loss.
    fn restart(self) -> (House, Committed) {
        self.memory.crash();
        House::over(self.memory)
    }

    fn run(&mut self, ops: Vec<Op>) -> Committed {
        self.ledger.run(ops, Instant::now())
    }

    fn one(&mut self, op: Op) -> Outcome {
        self.run(vec![op]).outcomes.remove(0)
    }

    fn accept(&mut self, message: NewMessage, release: bool) -> Result<Accepted, StoreError> {
        match self.one(accept(message, release))? {
            Reply::Accepted(accepted) => Ok(accepted),
            other => panic!("{other:?}"),
        }
    }

    fn sent(&mut self, sender: &str, recipient: &str, number: u64) -> Arc<Message> {
        self.accept(text(sender, recipient, number), true).unwrap().message
    }

    fn ack(&mut self, acknowledgment: Acknowledgment) -> Result<Acknowledged, StoreError> {
        match self.one(Op::Acknowledge(acknowledgment))? {
            Reply::Acknowledged(acknowledged) => Ok(acknowledged),
            other => panic!("{other:?}"),
        }
    }

    fn open(&mut self, user: &str, name: &str) -> Result<DeviceState, StoreError> {
        match self.one(Op::OpenDevice(eid(user), device(name), LATER))? {
            Reply::Device(state) => Ok(state),
            other => panic!("{other:?}"),
        }
    }

    fn flag(&mut self, op: Op) -> Result<bool, StoreError> {
        self.one(op).map(|reply| match reply {
            Reply::Flag(flag) => flag,
            other => panic!("{other:?}"),
        })
    }

    fn log(&self, user: &str) -> Vec<Arc<LogEntry>> {
        read::log(&*self.memory.view(), &eid(user), Sequence::ZERO, usize::MAX, usize::MAX).unwrap()
    }

    fn kinds(&self, user: &str) -> Vec<&'static str> {
        kinds(self.log(user).iter().map(|entry| &**entry))
    }

    fn lines(&self, user: &str) -> Vec<String> {
        self.log(user).iter().map(|entry| told(entry)).collect()
    }

    fn rows(&self, space: Space) -> usize {
        self.memory.view().range(space, &key::all(), Order::Ascending, usize::MAX).unwrap().len()
    }

    fn states(&self) -> Vec<Option<(AckStatus, i64)>> {
        let query = HistoryQuery {
            reader: eid("bob"),
            peer: eid("alice"),
            before: None,
            after: None,
            limit: 100,
            bytes_max: usize::MAX,
        };
        read::history(&*self.memory.view(), &query).unwrap().iter().map(|message| message.acknowledged).collect()
    }

    fn put<R: record::Record>(&self, key: &[u8], record: &R) {
        self.memory.commit(vec![(R::SPACE, key.into(), Some(record.encode_to_vec().into()))]).unwrap();
    }
}

fn accept(message: NewMessage, release: bool) -> Op {
    Op::Accept { message: Box::new(message), release }
}

fn cursor(user: &str, name: &str, to: u64) -> Op {
    Op::AdvanceCursor(eid(user), device(name), Sequence::from(to))
}

fn up_to(version: u64) -> AckTarget {
    AckTarget::UpTo(ChatId::between(&eid("alice"), &eid("bob")), Version::from(version))
}

fn block(owner: &str, subscriber: &str, blocked: bool) -> Op {
    Op::SetBlock { owner: eid(owner), subscriber: eid(subscriber), blocked }
}

fn put(owner: &str, subscriber: &str) -> Op {
    Op::PutContact(eid(owner), Box::new(contact(subscriber)))
}

fn remove(owner: &str, subscriber: &str) -> Op {
    Op::RemoveContact { owner: eid(owner), subscriber: eid(subscriber) }
}
