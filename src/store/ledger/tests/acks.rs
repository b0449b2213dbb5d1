//! Tests of acknowledgments (protocol.md §7, Receipts).

use super::*;

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
    // Asks for more than is released: the message that waits is not changed.
    let all = house.ack(ack("bob", up_to(99), AckStatus::Read, 12)).unwrap();
    assert_eq!((all.target, all.changed), (up_to(4), true));
    let all_read = Some((AckStatus::Read, 12));
    assert_eq!(house.states(), [read, None, all_read, all_read]);
    for user in ["alice", "bob"] {
        assert_eq!(house.kinds(user).iter().filter(|kind| **kind == "acknowledged").count(), 3);
    }
    let again = house.ack(ack("bob", up_to(4), AckStatus::Delivered, 13)).unwrap();
    assert_eq!((again.status, again.at, again.changed, again.target), (AckStatus::Read, 12, false, up_to(4)));
    // Alice's own acknowledgment covers bob's one message.
    let hers = house.ack(ack("alice", up_to(4), AckStatus::Delivered, 14)).unwrap();
    assert!(hers.changed);
    assert_eq!(house.states()[1], Some((AckStatus::Delivered, 14)));
}

#[test]
fn a_bulk_acknowledgment_is_answered_with_the_state_that_all_have() {
    let mut house = House::new();
    house.sent("alice", "bob", 1);
    let newest = house.sent("alice", "bob", 2);
    house.ack(ack("bob", up_to(2), AckStatus::Delivered, 10)).unwrap();
    house.ack(ack("bob", AckTarget::Message(newest.id), AckStatus::Read, 11)).unwrap();
    // Only the newest is read.
    let again = house.ack(ack("bob", up_to(2), AckStatus::Delivered, 12)).unwrap();
    assert_eq!((again.status, again.at, again.changed), (AckStatus::Delivered, 10, false));
    house.ack(ack("bob", up_to(1), AckStatus::Read, 13)).unwrap();
    let again = house.ack(ack("bob", up_to(2), AckStatus::Delivered, 14)).unwrap();
    assert_eq!((again.status, again.at, again.changed), (AckStatus::Read, 11, false));
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
fn one_repeated_in_the_same_commit_reads_few_rows_of_what_the_first_changed() {
    let mut house = House::new();
    let count = ACKNOWLEDGED_ROWS_MAX as u64;
    for first in (1..=count).step_by(1000) {
        house.run((first..first + 1000).map(|number| accept(text("alice", "bob", number), true)).collect());
    }
    let read = || Op::Acknowledge(ack("bob", up_to(count), AckStatus::Read, 1));
    house.ledger.apply(read());
    house.watched.ranges();
    let Ok(Reply::Acknowledged(again)) = house.ledger.apply(read()) else { panic!("no answer") };
    assert_eq!((&again.target, again.status, again.changed), (&up_to(count), AckStatus::Read, false));
    let rows: usize = house.watched.ranges().iter().map(|(_, _, rows)| rows).sum();
    assert!(rows <= 4 * ACKNOWLEDGED_LOOK_MAX, "{rows}");
}

#[test]
fn one_that_changes_nothing_looks_at_few_rows_however_often_it_comes() {
    let mut house = House::new();
    house.sent("alice", "bob", 1);
    house.ack(ack("bob", up_to(1), AckStatus::Read, 1)).unwrap();
    let few = ACKNOWLEDGED_LOOK_MAX as u64;
    let bobs =
        |numbers: std::ops::RangeInclusive<u64>| numbers.map(|n| accept(text("bob", "alice", n), true)).collect();
    house.run(bobs(2..=few));
    let near = house.ack(ack("bob", up_to(few), AckStatus::Delivered, 2)).unwrap();
    assert_eq!((near.status, near.at, near.changed), (AckStatus::Read, 1, false));
    house.run(bobs(few + 1..=4 * few));
    let far = house.ack(ack("bob", up_to(4 * few), AckStatus::Delivered, 3)).unwrap();
    assert_eq!((far.status, far.at, far.changed), (AckStatus::Delivered, 3, false), "it did not look further");
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
    // The state does not change, but this device's cursor moves.
    house.open("bob", "tablet").unwrap();
    let theirs = Acknowledgment { device: device("tablet"), ..ack("bob", up_to(2), AckStatus::Read, 3) };
    assert!(!house.ack(theirs).unwrap().changed);
    assert_eq!(house.open("bob", "tablet").unwrap().cursor, Sequence::from(2));
}
