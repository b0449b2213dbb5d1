//! The ledger's promises, one commit at a time.

use super::*;
use crate::limits::{ACKNOWLEDGED_ROWS_MAX, DEVICES_PER_USER_MAX, SUBSCRIBERS_PER_USER_MAX};
use crate::store::kv::Span;
use crate::store::memory::{Fault, Memory};
use crate::store::read;
use crate::store::record::{ChatRecord, FloorRecord, LocalRecord, MarkRecord, MessageRecord};
use crate::store::testing::{ack, contact, device, eid, kinds, text, told};
use crate::store::types::{AcceptOutcome, AckTarget, Content, EntryBody, HistoryQuery, Message, RevocationTarget};
use crate::wire::{AckStatus, ChatId, Version};

struct House {
    memory: Memory,
    ledger: Ledger,
}

impl House {
    fn new() -> House {
        House::over(Memory::new()).0
    }

    fn over(memory: Memory) -> (House, Committed) {
        let (ledger, committed) = Ledger::open(Arc::new(memory.clone()), Instant::now()).unwrap();
        (House { memory, ledger }, committed)
    }

    /// As after a power loss.
    fn restart(self) -> (House, Committed) {
        self.memory.crash(0);
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
        match self.one(Op::OpenDevice(eid(user), device(name)))? {
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
        read::log(&*self.memory.view(), &eid(user), Sequence::ZERO, usize::MAX).unwrap()
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
        let query = HistoryQuery { reader: eid("bob"), peer: eid("alice"), before: None, after: None, limit: 100 };
        read::history(&*self.memory.view(), &query).unwrap().iter().map(|message| message.acknowledged).collect()
    }

    fn put<R: record::Record>(&self, key: Vec<u8>, record: &R) {
        self.memory.commit(vec![(R::SPACE, key.into(), Some(record.encode_to_vec().into()))], true).unwrap();
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

// --- Accepting and releasing ---

#[test]
fn a_message_released_at_once_is_five_rows_and_one_commit() {
    let mut house = House::new();
    let message = house.sent("alice", "bob", 1);
    assert_eq!(house.memory.commits(), 1);
    for space in [Space::Messages, Space::Chats, Space::Locals] {
        assert_eq!(house.rows(space), 1);
    }
    assert_eq!((house.rows(Space::Logs), house.rows(Space::Pending)), (2, 0));
    assert_eq!(house.lines("alice"), [format!("1 sent {} from phone", message.id)]);
    assert_eq!(house.lines("bob"), [format!("1 received {} from none", message.id)]);
}

#[test]
fn nobody_sees_a_message_before_its_release() {
    let mut house = House::new();
    let accepted = house.accept(text("alice", "bob", 1), false).unwrap();
    assert_eq!(accepted.outcome, AcceptOutcome::Waiting);
    assert_eq!((house.kinds("alice"), house.kinds("bob")), (vec!["accepted"], vec![]));
    assert!(house.states().is_empty());
    let released = house.run(vec![Op::Release(accepted.message.id)]);
    let users: Vec<_> = released.appended.iter().map(|(user, entry)| format!("{user} {}", told(entry))).collect();
    let id = accepted.message.id;
    assert_eq!(users, [format!("bob@x 1 received {id} from none"), format!("alice@x 2 copy {id} from phone")]);
    assert!(released.appended.iter().all(|(_, entry)| entry.committed.is_some()));
    assert_eq!(house.states(), [None]);
    assert_eq!(house.rows(Space::Pending), 0);
}

#[test]
fn within_a_chat_messages_are_released_in_the_order_of_their_versions() {
    let mut house = House::new();
    let first = house.accept(text("alice", "bob", 1), false).unwrap().message;
    let second = house.accept(text("bob", "alice", 2), false).unwrap().message;
    let third = house.accept(text("alice", "bob", 3), true).unwrap();
    let fourth = house.accept(text("alice", "bob", 4), false).unwrap().message;
    assert_eq!(third.outcome, AcceptOutcome::Waiting);
    // Another chat of the same sender does not wait.
    assert_eq!(house.accept(text("alice", "carol", 5), true).unwrap().outcome, AcceptOutcome::Released);
    for waiting in [second.id, third.message.id] {
        let commits = house.memory.commits();
        assert!(house.one(Op::Release(waiting)).is_ok());
        assert_eq!(house.memory.commits(), commits);
    }
    let released = house.run(vec![Op::Release(first.id)]);
    let versions: Vec<_> = released
        .appended
        .iter()
        .filter_map(|(_, entry)| match &entry.body {
            EntryBody::Received(message) => Some(message.version.get()),
            _ => None,
        })
        .collect();
    assert_eq!(versions, [1, 2, 3]);
    assert_eq!(house.rows(Space::Pending), 1);
    house.one(Op::Release(fourth.id)).unwrap();
    assert_eq!(house.states().len(), 4);
}

#[test]
fn releasing_again_or_something_unknown_writes_nothing() {
    let mut house = House::new();
    let message = house.accept(text("alice", "bob", 1), false).unwrap().message;
    house.one(Op::Release(message.id)).unwrap();
    let commits = house.memory.commits();
    house.one(Op::Release(message.id)).unwrap();
    house.one(Op::Release(MessageId::new(9, [9; 10]))).unwrap();
    assert_eq!(house.memory.commits(), commits);
}

#[test]
fn start_up_releases_what_was_accepted_and_not_released() {
    let mut house = House::new();
    for number in 1..=3 {
        house.accept(text("alice", "bob", number), false).unwrap();
    }
    house.accept(text("bob", "carol", 4), false).unwrap();
    let (house, committed) = house.restart();
    assert_eq!(committed.appended.len(), 8);
    assert_eq!(house.kinds("alice"), ["accepted", "accepted", "accepted", "copy", "copy", "copy"]);
    assert_eq!(house.states().len(), 3);
    let versions: Vec<_> = house
        .log("bob")
        .iter()
        .filter_map(|entry| match &entry.body {
            EntryBody::Received(message) => Some(message.version.get()),
            _ => None,
        })
        .collect();
    assert_eq!(versions, [1, 2, 3]);
    assert_eq!(house.rows(Space::Pending), 0);
    // Durably: another crash changes nothing.
    let lines = house.lines("bob");
    let (house, committed) = house.restart();
    assert!(committed.appended.is_empty());
    assert_eq!(house.lines("bob"), lines);
}

#[test]
fn the_same_message_again_is_known_and_another_under_its_name_a_conflict() {
    let mut house = House::new();
    let again = NewMessage { created_at: 99, received_at: 99, device: device("tablet"), ..text("alice", "bob", 1) };
    let other = NewMessage { recipient: eid("carol"), ..text("alice", "bob", 1) };
    let theirs = NewMessage { sender: eid("carol"), entropy: [3; 10], ..text("alice", "bob", 1) };
    // In one commit, and then again in a later one.
    let first = house.run(vec![
        accept(text("alice", "bob", 1), true),
        accept(again.clone(), false),
        accept(other.clone(), true),
        accept(theirs, true),
    ]);
    let [
        Ok(Reply::Accepted(first)),
        Ok(Reply::Accepted(known)),
        Err(StoreError::Conflict),
        Ok(Reply::Accepted(theirs)),
    ] = first.outcomes.as_slice()
    else {
        panic!("{:?}", first.outcomes)
    };
    assert_eq!((known.outcome, known.sequence), (AcceptOutcome::Known, first.sequence));
    assert_eq!(known.message, first.message);
    assert_eq!(theirs.outcome, AcceptOutcome::Released);
    let (mut house, _) = house.restart();
    let known = house.accept(again, true).unwrap();
    assert_eq!((known.outcome, &known.message), (AcceptOutcome::Known, &first.message));
    assert_eq!(house.accept(other, true).unwrap_err(), StoreError::Conflict);
    assert_eq!(house.kinds("alice"), ["sent"]);
}

#[test]
fn every_part_of_the_content_tells_messages_apart() {
    let media = |kind, url: &str, caption: &str, size_bytes| {
        let content =
            Content::Media { kind, url: url.into(), caption: caption.into(), thumbnail_url: String::new(), size_bytes };
        record::digest(&NewMessage { content, ..text("alice", "bob", 1) })
    };
    use crate::wire::MediaType::{Audio, Image};
    let all = [
        media(Image, "ab", "c", 1),
        media(Audio, "ab", "c", 1),
        media(Image, "a", "bc", 1),
        media(Image, "ab", "c", 2),
        record::digest(&text("alice", "bob", 1)),
        record::digest(&text("alice", "carol", 1)),
        record::digest(&text("alice", "bob", 2)),
    ];
    let distinct: std::collections::HashSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
}

#[test]
fn a_blocked_sender_stores_nothing_but_learns_of_what_it_sent_before() {
    let mut house = House::new();
    house.sent("alice", "bob", 1);
    assert!(house.flag(Op::SetBlock { owner: eid("bob"), subscriber: eid("alice"), blocked: true }).unwrap());
    let commits = house.memory.commits();
    assert_eq!(house.accept(text("alice", "bob", 2), true).unwrap_err(), StoreError::Blocked);
    assert_eq!(house.accept(text("alice", "bob", 1), true).unwrap().outcome, AcceptOutcome::Known);
    assert_eq!(house.memory.commits(), commits);
    // The version that was refused is the next one's.
    assert_eq!(house.sent("bob", "alice", 3).version, Version::from(2));
}

#[test]
fn numbers_that_trimming_took_do_not_come_again() {
    let mut house = House::new();
    house.sent("alice", "bob", 1);
    let message = house.sent("alice", "bob", 2);
    for (space, span) in [(Space::Logs, key::all()), (Space::Chats, key::all())] {
        let rows = house.memory.view().range(space, &span, Order::Ascending, 100).unwrap();
        house.memory.commit(rows.into_iter().map(|(key, _)| (space, key, None)).collect(), true).unwrap();
    }
    for user in ["alice", "bob"] {
        house.put(key::log_floor(&eid(user)), &FloorRecord { last: 2 });
    }
    house.put(key::chat_floor(message.chat), &FloorRecord { last: 2 });
    let (mut house, _) = house.restart();
    assert_eq!(chat_version(&*house.memory.view(), message.chat).unwrap(), Version::from(2));
    let log = house.open("bob", "phone").unwrap().log;
    assert_eq!((log.trimmed, log.head), (Sequence::from(2), Sequence::from(2)));
    let next = house.accept(text("alice", "bob", 3), true).unwrap();
    assert_eq!((next.message.version, next.sequence), (Version::from(3), Sequence::from(3)));
    assert_eq!(house.lines("bob"), [format!("3 received {} from none", next.message.id)]);
    // A bulk acknowledgment passes over what is gone.
    let read = house.ack(ack("bob", up_to(3), AckStatus::Read, 9)).unwrap();
    assert_eq!((read.target, read.changed), (up_to(3), true));
}

#[test]
fn more_than_the_bound_do_not_wait_for_their_release() {
    let mut house = House::new();
    for number in 0..limits::STORE_UNRELEASED_MAX as u64 {
        let mut entropy = [0; 10];
        entropy[..8].copy_from_slice(&number.to_be_bytes());
        let chat = ChatId::between(&eid("x"), &eid("y"));
        house.ledger.books.unreleased.insert(chat, Version::from(number), MessageId::new(1, entropy), false);
    }
    assert_eq!(house.accept(text("alice", "bob", 1), false).unwrap_err(), StoreError::Overloaded);
    assert!(house.accept(text("alice", "bob", 1), true).is_ok());
}

// --- Acknowledging ---

#[test]
fn only_the_recipient_acknowledges_and_only_what_it_can_see() {
    let mut house = House::new();
    let waiting = house.accept(text("alice", "bob", 1), false).unwrap().message;
    let one = AckTarget::Message(waiting.id);
    let unknown = AckTarget::Message(MessageId::new(1, [1; 10]));
    for target in [one.clone(), unknown, up_to(1)] {
        let refused = house.ack(ack("bob", target, AckStatus::Read, 1)).unwrap_err();
        assert_eq!(refused, StoreError::NoSuchMessage);
    }
    house.one(Op::Release(waiting.id)).unwrap();
    assert_eq!(house.ack(ack("alice", one.clone(), AckStatus::Read, 1)).unwrap_err(), StoreError::NotRecipient);
    assert_eq!(house.ack(ack("eve", one, AckStatus::Read, 1)).unwrap_err(), StoreError::NotRecipient);
    assert_eq!(house.ack(ack("eve", up_to(1), AckStatus::Read, 1)).unwrap_err(), StoreError::NoSuchMessage);
    assert_eq!(house.ack(ack("bob", up_to(0), AckStatus::Read, 1)).unwrap_err(), StoreError::NoSuchMessage);
    assert_eq!(house.states(), [None]);
}

#[test]
fn an_acknowledgment_moves_forward_and_is_entered_once_on_both_sides() {
    let mut house = House::new();
    let message = house.sent("alice", "bob", 1);
    let one = || AckTarget::Message(message.id);
    let read = house.ack(ack("bob", one(), AckStatus::Read, 7)).unwrap();
    assert_eq!((read.status, read.at, read.changed), (AckStatus::Read, 7, true));
    for status in [AckStatus::Delivered, AckStatus::Read] {
        let commits = house.memory.commits();
        let stored = house.ack(ack("bob", one(), status, 8)).unwrap();
        assert_eq!((stored.status, stored.at, stored.changed), (AckStatus::Read, 7, false));
        assert_eq!(house.memory.commits(), commits);
    }
    let line =
        |sequence, origin| format!("{sequence} read 7 Message({}) by bob@x of alice@x from {origin}", message.id);
    assert_eq!(house.lines("alice")[1..], [line(2, "none")]);
    assert_eq!(house.lines("bob")[1..], [line(2, "phone")]);
    let row: ChatRecord =
        record::read(&*house.memory.view(), &key::chat(message.chat, message.version)).unwrap().unwrap();
    assert_eq!((row.delivered_at, row.read_at), (7, 7));
}

#[test]
fn a_bulk_acknowledgment_covers_the_peers_released_messages_with_one_entry() {
    let mut house = House::new();
    let first = house.sent("alice", "bob", 1);
    house.sent("bob", "alice", 2);
    house.sent("alice", "bob", 3);
    house.sent("alice", "bob", 4);
    house.accept(text("alice", "bob", 5), false).unwrap();
    house.ack(ack("bob", AckTarget::Message(first.id), AckStatus::Read, 10)).unwrap();

    let delivered = house.ack(ack("bob", up_to(3), AckStatus::Delivered, 11)).unwrap();
    assert_eq!((delivered.target, delivered.sender), (up_to(3), eid("alice")));
    let (read, told_delivered) = (Some((AckStatus::Read, 10)), Some((AckStatus::Delivered, 11)));
    assert_eq!(house.states(), [read, None, told_delivered, None]);
    // Further than anything is released; the waiting one is not touched.
    let all = house.ack(ack("bob", up_to(99), AckStatus::Read, 12)).unwrap();
    assert_eq!((all.target, all.changed), (up_to(4), true));
    let all_read = Some((AckStatus::Read, 12));
    assert_eq!(house.states(), [read, None, all_read, all_read]);
    for user in ["alice", "bob"] {
        assert_eq!(house.kinds(user).iter().filter(|kind| **kind == "acknowledged").count(), 3);
    }
    let again = house.ack(ack("bob", up_to(4), AckStatus::Delivered, 13)).unwrap();
    assert_eq!((again.status, again.at, again.changed, again.target), (AckStatus::Read, 12, false, up_to(4)));
    // The sender's own acknowledgment covers bob's one message.
    let hers = house.ack(ack("alice", up_to(4), AckStatus::Delivered, 14)).unwrap();
    assert!(hers.changed);
    assert_eq!(house.states()[1], Some((AckStatus::Delivered, 14)));
}

#[test]
fn bulk_and_single_acknowledgments_mix_in_any_order() {
    let mut house = House::new();
    let sent: Vec<_> = (1..=6).map(|number| house.sent("alice", "bob", number)).collect();
    house.ack(ack("bob", up_to(4), AckStatus::Delivered, 1)).unwrap();
    house.ack(ack("bob", AckTarget::Message(sent[2].id), AckStatus::Read, 2)).unwrap();
    house.ack(ack("bob", AckTarget::Message(sent[5].id), AckStatus::Read, 3)).unwrap();
    house.ack(ack("bob", up_to(2), AckStatus::Read, 4)).unwrap();
    house.ack(ack("bob", up_to(6), AckStatus::Delivered, 5)).unwrap();
    let (read, delivered) = (|at| Some((AckStatus::Read, at)), |at| Some((AckStatus::Delivered, at)));
    assert_eq!(house.states(), [read(4), read(4), read(2), delivered(1), delivered(5), read(3)]);
    let mark: MarkRecord = record::read(&*house.memory.view(), &key::mark(sent[0].chat, &eid("bob"))).unwrap().unwrap();
    assert_eq!((mark.delivered, mark.read), (6, 2));
}

#[test]
fn a_bulk_acknowledgment_says_how_far_it_came() {
    let mut house = House::new();
    let count = ACKNOWLEDGED_ROWS_MAX as u64 + 20;
    for number in 1..=count {
        house.ledger.apply(accept(text("alice", "bob", number), true));
        if house.ledger.is_full() {
            house.ledger.commit(Instant::now);
        }
    }
    house.ledger.commit(Instant::now);
    let first = house.ack(ack("bob", up_to(count), AckStatus::Read, 1)).unwrap();
    assert_eq!(first.target, up_to(ACKNOWLEDGED_ROWS_MAX as u64));
    let rest = house.ack(ack("bob", up_to(count), AckStatus::Read, 2)).unwrap();
    assert_eq!((rest.target, rest.changed), (up_to(count), true));
    let last = house.ack(ack("bob", up_to(count), AckStatus::Read, 3)).unwrap();
    assert_eq!((last.target, last.changed, last.at), (up_to(count), false, 2));
}

#[test]
fn an_acknowledgment_moves_the_devices_cursor_to_the_message() {
    let mut house = House::new();
    house.open("bob", "phone").unwrap();
    let sent: Vec<_> = (1..=3).map(|number| house.sent("alice", "bob", number)).collect();
    let one = AckTarget::Message(sent[1].id);
    house.ack(ack("bob", one, AckStatus::Delivered, 1)).unwrap();
    assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::from(2));
    house.ack(ack("bob", up_to(3), AckStatus::Read, 2)).unwrap();
    assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::from(3));
    // Nothing new for the state, but for this device.
    house.open("bob", "tablet").unwrap();
    let theirs = Acknowledgment { device: device("tablet"), ..ack("bob", up_to(2), AckStatus::Read, 3) };
    assert!(!house.ack(theirs).unwrap().changed);
    assert_eq!(house.open("bob", "tablet").unwrap().cursor, Sequence::from(2));
}

// --- Devices ---

#[test]
fn a_cursor_moves_forward_only_and_not_past_the_head() {
    let mut house = House::new();
    house.open("bob", "phone").unwrap();
    for number in 1..=3 {
        house.sent("alice", "bob", number);
    }
    for (to, stands) in [(2, 2), (1, 2), (9, 3), (0, 3)] {
        house.run(vec![cursor("bob", "phone", to)]);
        assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::from(stands));
    }
}

#[test]
fn a_cursor_waits_for_the_next_durable_commit_or_the_end() {
    let mut house = House::new();
    house.open("bob", "phone").unwrap();
    house.sent("alice", "bob", 1);
    house.sent("alice", "bob", 2);
    let commits = house.memory.commits();
    house.run(vec![cursor("bob", "phone", 1)]);
    assert_eq!(house.memory.commits(), commits);
    assert!(house.ledger.has_unwritten_cursors());
    // A crash here loses it, and only it.
    let (mut house, _) = house.restart();
    assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::ZERO);

    house.run(vec![cursor("bob", "phone", 1)]);
    house.sent("alice", "bob", 3);
    assert!(!house.ledger.has_unwritten_cursors());
    let (mut house, _) = house.restart();
    assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::from(1));

    house.run(vec![cursor("bob", "phone", 2)]);
    house.ledger.flush_cursors().unwrap();
    assert_eq!(house.memory.unsynced(), 1);
    house.ledger.close().unwrap();
    assert_eq!(house.memory.unsynced(), 0);
    let (mut house, _) = house.restart();
    assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::from(2));
}

#[test]
fn opening_a_known_device_writes_nothing() {
    let mut house = House::new();
    house.open("bob", "phone").unwrap();
    assert_eq!((house.memory.commits(), house.memory.unsynced()), (1, 0));
    house.open("bob", "phone").unwrap();
    assert_eq!(house.memory.commits(), 1);
}

#[test]
fn a_user_has_so_many_devices_and_a_forgotten_one_makes_room() {
    let mut house = House::new();
    for number in 0..DEVICES_PER_USER_MAX {
        house.open("bob", &format!("d{number}")).unwrap();
    }
    assert_eq!(house.open("bob", "more").unwrap_err(), StoreError::TooManyDevices);
    house.open("bob", "d0").unwrap();
    house.open("alice", "phone").unwrap();
    house.one(Op::ForgetDevice(eid("bob"), device("d0"))).unwrap();
    house.open("bob", "more").unwrap();
}

#[test]
fn a_forgotten_device_is_not_brought_back_by_what_was_under_way() {
    let mut house = House::new();
    house.open("bob", "phone").unwrap();
    let message = house.sent("alice", "bob", 1);
    house.run(vec![
        cursor("bob", "phone", 1),
        Op::ForgetDevice(eid("bob"), device("phone")),
        cursor("bob", "phone", 1),
    ]);
    house.ack(ack("bob", AckTarget::Message(message.id), AckStatus::Read, 1)).unwrap();
    assert_eq!(house.rows(Space::Devices), 0);
    assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::ZERO);
}

// --- Contacts, blocks, revocations ---

fn owners(house: &House, of: &str) -> Vec<String> {
    let owners = read::owners(&*house.memory.view(), &eid(of)).unwrap();
    owners.iter().map(|(owner, _)| owner.to_string()).collect()
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

#[test]
fn a_contact_is_added_changed_and_removed() {
    let mut house = House::new();
    assert!(!house.flag(remove("alice", "bob")).unwrap());
    assert!(!house.flag(put("alice", "bob")).unwrap());
    let renamed = Contact { nickname: "Bobby".into(), added_at: 99, ..contact("bob") };
    assert!(house.flag(Op::PutContact(eid("alice"), Box::new(renamed.clone()))).unwrap());
    let list = read::contacts(&*house.memory.view(), &eid("alice")).unwrap();
    assert_eq!(list, [Contact { added_at: 5, ..renamed }]);
    assert!(house.flag(remove("alice", "bob")).unwrap());
    assert_eq!(house.rows(Space::Contacts) + house.rows(Space::Owners), 0);
}

#[test]
fn a_block_survives_being_added_changed_and_removed() {
    let mut house = House::new();
    assert!(house.flag(block("alice", "bob", true)).unwrap());
    assert!(!house.flag(block("alice", "bob", true)).unwrap());
    assert!(!house.flag(put("alice", "bob")).unwrap(), "blocked is not subscribed");
    assert!(house.flag(put("alice", "bob")).unwrap());
    assert!(house.flag(remove("alice", "bob")).unwrap());
    assert!(!house.flag(remove("alice", "bob")).unwrap());
    let (mut house, _) = house.restart();
    let list = read::contacts(&*house.memory.view(), &eid("alice")).unwrap();
    assert_eq!((list.len(), list[0].blocked, list[0].subscribed), (1, true, false));
    assert!(house.flag(block("alice", "bob", false)).unwrap());
    assert!(!house.flag(block("alice", "bob", false)).unwrap());
    assert_eq!(house.rows(Space::Contacts), 0);
}

#[test]
fn a_block_either_way_hides_the_owners() {
    let mut house = House::new();
    house.run(vec![put("alice", "bob"), put("bob", "alice"), put("carol", "bob")]);
    assert_eq!(owners(&house, "bob"), ["alice@x", "carol@x"]);
    house.one(block("bob", "alice", true)).unwrap();
    assert_eq!((owners(&house, "bob"), owners(&house, "alice")), (vec!["carol@x".into()], vec![]));
    house.run(vec![block("alice", "bob", true), block("bob", "alice", false)]);
    assert_eq!((owners(&house, "bob"), owners(&house, "alice")), (vec!["carol@x".into()], vec![]));
    house.one(block("alice", "bob", false)).unwrap();
    assert_eq!(owners(&house, "alice"), ["bob@x"]);
    house.one(remove("alice", "bob")).unwrap();
    assert_eq!(owners(&house, "bob"), ["carol@x"]);
}

#[test]
fn lists_are_bounded_subscribers_and_blocks_apart() {
    let mut house = House::new();
    let some = |number| format!("user{number}");
    let fill = |house: &mut House, op: &dyn Fn(&str) -> Op| {
        for number in 0..SUBSCRIBERS_PER_USER_MAX {
            house.ledger.apply(op(&some(number)));
        }
        assert!(house.ledger.commit(Instant::now).outcomes.iter().all(Result::is_ok));
    };
    fill(&mut house, &|user| put("alice", user));
    assert_eq!(house.flag(put("alice", "more")).unwrap_err(), StoreError::ListFull);
    assert!(house.flag(put("alice", "user7")).unwrap());
    assert!(house.flag(block("alice", "user7", true)).unwrap());
    assert!(house.flag(block("alice", "user7", false)).unwrap());
    let (mut house, _) = house.restart();
    fill(&mut house, &|user| block("alice", &format!("not-{user}"), true));
    assert_eq!(house.flag(block("alice", "more", true)).unwrap_err(), StoreError::ListFull);
    assert_eq!(house.flag(block("alice", "user7", true)).unwrap_err(), StoreError::ListFull);
    assert_eq!(house.flag(put("alice", "not-user1")).unwrap_err(), StoreError::ListFull);
    assert!(house.flag(remove("alice", "user8")).unwrap());
    assert!(!house.flag(put("alice", "not-user1")).unwrap());
    // Both full, and a subscriber that is blocked: it can still be removed.
    assert!(house.flag(remove("alice", "not-user1")).unwrap());
    assert_eq!(house.flag(block("alice", "more", true)).unwrap_err(), StoreError::ListFull);
    assert!(house.flag(block("alice", "not-user1", false)).unwrap());
    assert!(house.flag(block("alice", "more", true)).unwrap());
}

#[test]
fn a_revocation_never_gets_weaker_and_goes_when_it_has_expired() {
    let mut house = House::new();
    let revoke = |target: &RevocationTarget, issued_until, expires_at| {
        Op::Revoke(Revocation { target: target.clone(), issued_until, expires_at })
    };
    let (token, user) = (RevocationTarget::Token(eid("bob"), [1; 32]), RevocationTarget::User(eid("bob")));
    house.run(vec![revoke(&token, 0, 50), revoke(&user, 10, 100), revoke(&user, 7, 90)]);
    let (mut house, _) = house.restart();
    let (valid, expired) = read::revocations(&*house.memory.view(), 50).unwrap();
    assert_eq!(valid, [Revocation { target: user, issued_until: 10, expires_at: 100 }]);
    assert!(expired);
    house.one(Op::DropRevocations { expired_at: 50 }).unwrap();
    assert_eq!(house.rows(Space::Revocations), 1);
}

// --- Failures ---

#[test]
fn a_corrupt_row_fails_its_operation_with_its_place_and_harms_no_other() {
    let mut house = House::new();
    let message = house.sent("alice", "bob", 1);
    let key = key::message(message.id);
    house.memory.commit(vec![(Space::Messages, key.into(), Some(vec![0xff, 0xff].into()))], true).unwrap();
    let committed = house.run(vec![
        accept(text("carol", "bob", 2), true),
        Op::Acknowledge(ack("bob", AckTarget::Message(message.id), AckStatus::Read, 1)),
        accept(text("alice", "bob", 1), true),
        accept(text("alice", "bob", 3), true),
    ]);
    let [Ok(_), Err(StoreError::Engine(one)), Err(StoreError::Engine(other)), Ok(_)] = committed.outcomes.as_slice()
    else {
        panic!("{:?}", committed.outcomes)
    };
    assert!(one.contains("messages") && other.contains("messages"), "{one}, {other}");
    assert!(read::log(&*house.memory.view(), &eid("bob"), Sequence::ZERO, 1).is_err());
    assert_eq!(read::log(&*house.memory.view(), &eid("bob"), Sequence::from(1), 9).unwrap().len(), 2);
}

#[test]
fn no_row_of_garbage_makes_anything_panic() {
    let mut house = House::new();
    house.open("bob", "phone").unwrap();
    let message = house.sent("alice", "bob", 1);
    house.accept(text("bob", "alice", 2), false).unwrap();
    house.run(vec![
        put("bob", "alice"),
        Op::Revoke(Revocation { target: RevocationTarget::User(eid("bob")), issued_until: 1, expires_at: 1 }),
    ]);
    house.ack(ack("bob", up_to(1), AckStatus::Delivered, 1)).unwrap();
    let all = |space| house.memory.view().range(space, &key::all(), Order::Ascending, 100).unwrap();
    let good: Vec<_> = Space::ALL.iter().flat_map(|space| all(*space).into_iter().map(|row| (*space, row))).collect();
    for (space, (key, value)) in good {
        for garbage in [vec![], vec![0x80], vec![0x0a, 0x01, 0x41], vec![0x08, 0x63], value[..value.len() / 2].to_vec()]
        {
            let memory = Memory::new();
            let rows = Space::ALL.iter().flat_map(|space| all(*space).into_iter().map(|(k, v)| (*space, k, Some(v))));
            memory.commit(rows.collect(), true).unwrap();
            memory.commit(vec![(space, key.clone(), Some(garbage.into()))], true).unwrap();
            let view = memory.view();
            for user in ["alice", "bob"] {
                let _ = read::log(&*view, &eid(user), Sequence::ZERO, 9);
                let _ = read::contacts(&*view, &eid(user));
                let _ = read::owners(&*view, &eid(user));
            }
            let _ = read::revocations(&*view, 0);
            let query = HistoryQuery { reader: eid("bob"), peer: eid("alice"), before: None, after: None, limit: 9 };
            let _ = read::history(&*view, &query);
            let Ok((mut ledger, _)) = Ledger::open(Arc::new(memory), Instant::now()) else { continue };
            ledger.run(
                vec![
                    accept(text("alice", "bob", 1), true),
                    accept(text("alice", "bob", 3), false),
                    Op::Acknowledge(ack("bob", AckTarget::Message(message.id), AckStatus::Read, 1)),
                    Op::Acknowledge(ack("bob", up_to(3), AckStatus::Read, 1)),
                    Op::OpenDevice(eid("bob"), device("phone")),
                    block("bob", "alice", true),
                    Op::Revoke(Revocation {
                        target: RevocationTarget::User(eid("bob")),
                        issued_until: 2,
                        expires_at: 2,
                    }),
                    Op::DropRevocations { expired_at: 9 },
                ],
                Instant::now(),
            );
        }
    }
}

#[test]
fn a_release_that_fails_half_way_leaves_nothing_and_can_be_repeated() {
    let mut house = House::new();
    let first = house.accept(text("alice", "bob", 1), false).unwrap().message;
    let second = house.accept(text("alice", "bob", 2), true).unwrap().message;
    let key = key::message(second.id);
    let good = house.memory.view().get(Space::Messages, &key).unwrap();
    let set = |value| house.memory.commit(vec![(Space::Messages, key.clone().into(), value)], true).unwrap();
    set(None);
    let commits = house.memory.commits();
    assert!(house.ledger.run(vec![Op::Release(first.id)], Instant::now()).outcomes[0].is_err());
    assert_eq!(house.memory.commits(), commits);
    set(good);
    house.one(Op::Release(first.id)).unwrap();
    assert_eq!(house.kinds("bob"), ["received", "received"]);
    assert_eq!(house.states().len(), 2);
}

#[test]
fn when_a_commit_fails_so_do_all_of_its_operations_and_all_later_ones() {
    for (fault, kept) in [(Fault::Before, 1), (Fault::After, 3)] {
        let mut house = House::new();
        house.sent("alice", "bob", 1);
        house.memory.fail_after(0, fault);
        let ops = vec![accept(text("alice", "bob", 2), true), Op::Check, accept(text("alice", "bob", 3), true)];
        let failed = house.run(ops);
        assert!(failed.outcomes.iter().all(|outcome| matches!(outcome, Err(StoreError::Engine(_)))));
        assert!(failed.appended.is_empty());
        assert!(house.ledger.has_failed());
        assert!(house.one(Op::Check).is_err());
        assert!(house.ledger.close().is_err());
        let (mut house, _) = house.restart();
        // Whatever became of it: the sender repeats, and each message is there once.
        for number in 2..=3 {
            let known = house.accept(text("alice", "bob", number), true).unwrap().outcome == AcceptOutcome::Known;
            assert_eq!(known, fault == Fault::After);
        }
        assert_eq!(house.states().len(), 3);
        assert!(
            house
                .memory
                .view()
                .get(Space::Locals, &key::local(&eid("alice"), &text("alice", "bob", kept).local_id))
                .unwrap()
                .is_some()
        );
    }
}

#[test]
fn a_commit_takes_no_more_than_its_bound() {
    let mut house = House::new();
    for _ in 0..limits::COMMIT_OPERATIONS_MAX - 1 {
        house.ledger.apply(Op::Check);
        assert!(!house.ledger.is_full());
    }
    house.ledger.apply(Op::Check);
    assert!(house.ledger.is_full());
    house.ledger.commit(Instant::now);
    assert!(!house.ledger.is_full());
}

#[test]
fn too_many_moved_cursors_are_written_at_once() {
    let mut house = House::new();
    house.sent("alice", "bob", 1);
    house.open("bob", "phone").unwrap();
    for number in 1..limits::CURSORS_UNWRITTEN_MAX {
        house.ledger.books.cursors.insert((eid(&format!("u{number}")), device("phone")), Sequence::from(1));
    }
    let commits = house.memory.commits();
    house.run(vec![cursor("bob", "phone", 1)]);
    assert_eq!(house.memory.commits(), commits + 1);
    assert!(!house.ledger.has_unwritten_cursors());
    assert_eq!(house.memory.unsynced(), 1);
}

#[test]
fn records_of_a_later_version_are_still_read() {
    let mut value = prost::Message::encode_to_vec(&FloorRecord { last: 7 });
    // Field 15, a string.
    value.extend_from_slice(&[0x7a, 0x01, b'x']);
    assert_eq!(record::decode::<FloorRecord>(b"k", &value).unwrap().last, 7);
    let span = Span { from: vec![2], to: vec![1] };
    assert!(Memory::new().view().range(Space::Logs, &span, Order::Ascending, 1).unwrap().is_empty());
    // An empty value is a record of nothing but defaults; where that makes no sense it is an error.
    assert!(MessageRecord::default().into_message(MessageId::new(1, [0; 10])).is_err());
    assert!(LocalRecord::default().message().is_err());
}
