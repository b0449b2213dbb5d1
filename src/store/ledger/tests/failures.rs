//! Tests with corrupt rows, a failing engine, and full bounds.

use std::collections::HashSet;

use super::*;
use crate::wire::MessageId;

#[test]
fn a_corrupt_row_fails_its_operation_with_its_place_and_harms_no_other() {
    let mut house = House::new();
    let message = house.sent("alice", "bob", 1);
    let key = key::message(message.id);
    house.memory.commit(vec![(Space::Messages, Slice::new(&key), Some(vec![0xff, 0xff].into()))]).unwrap();
    // Empties the caches, as after a restart.
    house.ledger.books.forget_ends();
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
    assert!(read::log(&*house.memory.view(), &eid("bob"), Sequence::ZERO, 1, usize::MAX).is_err());
    assert_eq!(read::log(&*house.memory.view(), &eid("bob"), Sequence::from(1), 9, usize::MAX).unwrap().len(), 2);
}

#[test]
fn no_row_of_garbage_makes_anything_panic() {
    let mut house = House::new();
    house.open("bob", "phone").unwrap();
    let message = house.sent("alice", "bob", 1);
    house.accept(text("bob", "alice", 2), false).unwrap();
    house.run(vec![
        put("bob", "alice"),
        Op::Revoke(Revocation { target: RevocationTarget::User(eid("bob")), issued_until: 1, expires_at: 1 }, None),
    ]);
    house.ack(ack("bob", up_to(1), AckStatus::Delivered, 1)).unwrap();
    let all = |space| house.memory.view().range(space, &key::all(), Order::Ascending, 100).unwrap();
    let good: Vec<_> = Space::ALL.iter().flat_map(|space| all(*space).into_iter().map(|row| (*space, row))).collect();
    for (space, (key, value)) in good {
        for garbage in [vec![], vec![0x80], vec![0x0a, 0x01, 0x41], vec![0x08, 0x63], value[..value.len() / 2].to_vec()]
        {
            let memory = Memory::new();
            let rows = Space::ALL.iter().flat_map(|space| all(*space).into_iter().map(|(k, v)| (*space, k, Some(v))));
            memory.commit(rows.collect()).unwrap();
            memory.commit(vec![(space, key.clone(), Some(garbage.into()))]).unwrap();
            let view = memory.view();
            for user in ["alice", "bob"] {
                let _ = read::log(&*view, &eid(user), Sequence::ZERO, 9, usize::MAX);
                let _ = read::contacts(&*view, &eid(user), None, usize::MAX);
                let _ = read::owners(&*view, &eid(user));
            }
            let _ = read::revocations(&*view);
            let query = HistoryQuery {
                reader: eid("bob"),
                peer: eid("alice"),
                before: None,
                after: None,
                limit: 9,
                bytes_max: usize::MAX,
            };
            let _ = read::history(&*view, &query);
            let Ok(mut ledger) = Ledger::open(Arc::new(memory), Instant::now(), drop) else { continue };
            ledger.run(
                vec![
                    accept(text("alice", "bob", 1), true),
                    accept(text("alice", "bob", 3), false),
                    Op::Acknowledge(ack("bob", AckTarget::Message(message.id), AckStatus::Read, 1)),
                    Op::Acknowledge(ack("bob", up_to(3), AckStatus::Read, 1)),
                    Op::OpenDevice(eid("bob"), device("phone"), LATER),
                    block("bob", "alice", true),
                    Op::Revoke(
                        Revocation { target: RevocationTarget::User(eid("bob")), issued_until: 2, expires_at: 2 },
                        Some(device("phone")),
                    ),
                    Op::DropRevocations {
                        rows: vec![key::revocation(&RevocationTarget::User(eid("bob")))],
                        expired_at: 9,
                    },
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
    let set = |value| house.memory.commit(vec![(Space::Messages, Slice::new(&key), value)]).unwrap();
    set(None);
    house.ledger.books.forget_ends();
    let commits = house.memory.commits();
    let failed = house.ledger.run(vec![Op::Release(first.id)], Instant::now());
    assert!(failed.outcomes[0].is_err() && failed.appended.is_empty());
    assert_eq!(house.memory.commits(), commits);
    set(good);
    house.one(Op::Release(first.id)).unwrap();
    assert_eq!(house.kinds("bob"), ["received", "received"]);
    assert_eq!(house.states().len(), 2);
}

#[test]
fn what_cannot_be_released_at_the_start_holds_its_chat_and_nobody_else() {
    let mut house = House::new();
    for (number, sender, recipient) in [(1, "alice", "bob"), (2, "alice", "bob"), (3, "carol", "dave")] {
        house.accept(text(sender, recipient, number), false).unwrap();
    }
    let set_floor = |house: &House, value: Option<Slice>| {
        house.memory.commit(vec![(Space::Floors, Slice::new(&key::log_floor(&eid("bob"))), value)]).unwrap();
    };
    set_floor(&house, Some(vec![0xff].into()));
    house.memory.fail_after(0, Fault::Before);
    let failed = Ledger::open(Arc::new(house.memory.clone()), Instant::now(), drop);
    assert!(matches!(failed, Err(StoreError::Engine(_))), "an engine that takes nothing is another matter");

    let (mut house, recovered) = house.restart();
    let told: HashSet<_> = recovered.appended.iter().map(|(user, _)| user.clone()).collect();
    assert_eq!(told, HashSet::from([eid("carol"), eid("dave")]));
    assert_eq!((house.kinds("carol"), house.kinds("dave")), (vec!["accepted", "copy"], vec!["received"]));
    assert_eq!(house.rows(Space::Pending), 2);
    // The next release in the chat tries again, and brings all of them, in order.
    let next = house.accept(text("alice", "bob", 4), false).unwrap().message;
    house.one(Op::Release(next.id)).unwrap_err();
    assert_eq!(house.rows(Space::Pending), 3);
    set_floor(&house, None);
    house.one(Op::Release(next.id)).unwrap();
    let versions = house.log("bob").into_iter().map(|entry| match &entry.body {
        EntryBody::Received(message) => message.version.get(),
        other => panic!("{other:?}"),
    });
    assert!(versions.eq(1..=3));
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
        assert!(house.ledger.flush_cursors().is_err());
        let (mut house, _) = house.restart();
        // Whether or not the failed commit took effect: the sender repeats, and each message is stored once.
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
fn a_disk_at_its_reserve_takes_no_new_message_and_everything_else() {
    let mut house = House::new();
    let memory = house.memory.clone();
    let disk = |free| memory.set_disk(Some(Disk { free, size: u64::MAX }));
    disk(limits::STORE_DISK_RESERVE_BYTES);
    let kept = house.accept(text("alice", "bob", 1), false).unwrap().message;
    disk(limits::STORE_DISK_RESERVE_BYTES - 1);
    for release in [false, true] {
        assert_eq!(house.accept(text("alice", "bob", 2), release).unwrap_err(), StoreError::DiskFull);
    }
    let again = house.accept(text("alice", "bob", 1), false).unwrap();
    assert_eq!((again.message.id, again.outcome), (kept.id, AcceptOutcome::Known), "it takes no space");
    house.one(Op::Release(kept.id)).unwrap();
    house.open("bob", "phone").unwrap();
    assert!(house.ack(ack("bob", up_to(1), AckStatus::Read, 1)).unwrap().changed);
    assert_eq!(house.one(Op::PutContact(eid("bob"), Box::new(contact("carol")))).unwrap_err(), StoreError::DiskFull);
    let revocation = Revocation { target: RevocationTarget::User(eid("bob")), issued_until: 1, expires_at: 1 };
    house.one(Op::Revoke(revocation, Some(device("phone")))).unwrap();
    assert!(house.flag(block("bob", "alice", true)).unwrap());
    assert_eq!(house.one(Op::PutContact(eid("bob"), Box::new(contact("alice")))).unwrap_err(), StoreError::DiskFull);
    assert!(house.flag(block("bob", "alice", false)).unwrap());
    house.one(Op::TrimLog { user: eid("bob"), from: Sequence::from(1), rows: vec![Sequence::from(1)] }).unwrap();
    disk(2 * limits::STORE_DISK_RESERVE_BYTES);
    assert_eq!(house.accept(text("alice", "bob", 2), true).unwrap().message.version, Version::from(2));
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
fn a_commit_with_very_many_rows_takes_no_further_operation() {
    let mut house = House::new();
    // Each message that is deleted is three rows.
    let trim = |messages: usize| Op::TrimChat {
        chat: ChatId::between(&eid("alice"), &eid("bob")),
        parties: (eid("alice"), eid("bob")),
        gone: (1..=messages as u64)
            .map(|number| {
                let NewMessage { sender, local_id, .. } = text("alice", "bob", number);
                let id = MessageId::new(number as i64, [0; 10]);
                Gone { version: Version::from(number), id, local: key::local(&sender, &local_id) }
            })
            .collect(),
    };
    house.ledger.apply(trim(limits::COMMIT_ROWS_MAX / 6));
    assert!(!house.ledger.is_full());
    house.ledger.apply(trim(limits::COMMIT_ROWS_MAX / 6));
    assert!(house.ledger.is_full());
    let committed = house.ledger.commit(Instant::now);
    assert!(committed.outcomes.iter().all(Result::is_ok) && !house.ledger.is_full());
}

#[test]
fn a_commit_that_has_read_very_many_rows_takes_no_further_operation() {
    let mut house = House::new();
    house.sent("alice", "bob", 1);
    house.ack(ack("bob", up_to(1), AckStatus::Read, 1)).unwrap();
    let last = ACKNOWLEDGED_LOOK_MAX as u64 + 1;
    house.run((2..=last).map(|number| accept(text("bob", "alice", number), true)).collect());
    house.ack(ack("bob", up_to(last), AckStatus::Read, 2)).unwrap();
    // Each looks for a message to bob among as many of his own.
    let applied = (1..limits::COMMIT_OPERATIONS_MAX).find(|_| {
        house.ledger.apply(Op::Acknowledge(ack("bob", up_to(last), AckStatus::Read, 3))).as_ref().unwrap();
        house.ledger.is_full()
    });
    let enough = limits::COMMIT_ROWS_MAX / ACKNOWLEDGED_LOOK_MAX;
    assert!(applied.is_some_and(|applied| (enough / 2..=enough).contains(&applied)), "{applied:?}");
    assert!(!house.ledger.commit(Instant::now).written && !house.ledger.is_full());
}

#[test]
fn the_newest_messages_are_kept_up_to_the_bound_and_older_ones_are_read_again() {
    let mut house = House::new();
    let long = |number| NewMessage { content: Content::Text("x".repeat(16 * 1024)), ..text("alice", "bob", number) };
    let first = house.accept(long(1), true).unwrap().message;
    let count = (limits::STORE_NEWEST_BYTES / (16 * 1024)) as u64;
    for number in 2..=count {
        house.accept(long(number), true).unwrap();
    }
    let looked = |house: &House| house.ledger.tally().messages.lookups();
    let read = |house: &mut House, id| house.ack(ack("bob", AckTarget::Message(id), AckStatus::Read, 1)).unwrap();
    let last = house.accept(long(count + 1), true).unwrap().message;
    assert!(read(&mut house, last.id).changed);
    assert_eq!((looked(&house).hits, looked(&house).misses), (1, 0));
    assert!(read(&mut house, first.id).changed, "the oldest made room, and the engine has it");
    assert_eq!((looked(&house).hits, looked(&house).misses), (1, 1));
}

#[test]
fn a_deleted_message_is_not_remembered() {
    let mut house = House::new();
    let message = house.sent("alice", "bob", 1);
    let gone =
        vec![Gone { version: message.version, id: message.id, local: key::local(&message.sender, &message.local_id) }];
    house.one(Op::TrimChat { chat: message.chat, parties: (eid("alice"), eid("bob")), gone }).unwrap();
    let refused = house.ack(ack("bob", AckTarget::Message(message.id), AckStatus::Read, 1));
    assert_eq!(refused.unwrap_err(), StoreError::NoSuchMessage);
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
}

#[test]
fn records_of_a_later_version_are_still_read() {
    let mut value = prost::Message::encode_to_vec(&FloorRecord { last: 7 });
    // Field 15, of type string.
    value.extend_from_slice(&[0x7a, 0x01, b'x']);
    assert_eq!(record::decode::<FloorRecord>(b"k", &value).unwrap().last, 7);
    let span = Span { from: Key::from_slice(&[2]), to: Key::from_slice(&[1]) };
    assert!(Memory::new().view().range(Space::Logs, &span, Order::Ascending, 1).unwrap().is_empty());
    // An empty value decodes to default fields. Where a default makes no sense, that is an error.
    assert!(MessageRecord::default().into_message(MessageId::new(1, [0; 10])).is_err());
    assert!(LocalRecord::default().message().is_err());
}
