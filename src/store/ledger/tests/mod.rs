//! Tests of the ledger's guarantees, one commit at a time.

use super::*;
use crate::limits::{
    ACKNOWLEDGED_LOOK_MAX, ACKNOWLEDGED_ROWS_MAX, DEVICES_PER_USER_MAX, REVOKED_DEVICES_PER_USER_MAX,
    SUBSCRIBERS_PER_USER_MAX,
};
use crate::store::kv::{Slice, Span};
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
    ledger: Ledger,
}

impl House {
    fn new() -> House {
        House::over(Memory::new()).0
    }

    fn over(memory: Memory) -> (House, Committed) {
        let mut recovered = Committed::default();
        let ledger = Ledger::open(Arc::new(memory.clone()), Instant::now(), |committed| {
            recovered.appended.extend(committed.appended);
        });
        (House { memory, ledger: ledger.unwrap() }, recovered)
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
