//! Tests of accepting and releasing messages (protocol.md §7).

use super::*;

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
    // The releases are durable: another crash changes nothing.
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
    // All in one commit; below, the same again in later commits.
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
    let media = |kind, [url, caption, thumbnail_url]: [&str; 3], size_bytes| {
        let [url, caption, thumbnail_url] = [url, caption, thumbnail_url].map(str::to_owned);
        let content = Content::Media { kind, url, caption, thumbnail_url, size_bytes };
        record::digest(&NewMessage { content, ..text("alice", "bob", 1) })
    };
    use crate::wire::MediaType::{Audio, Image};
    let all = [
        media(Image, ["ab", "c", ""], 1),
        media(Audio, ["ab", "c", ""], 1),
        media(Image, ["a", "bc", ""], 1),
        media(Image, ["ab", "", "c"], 1),
        media(Image, ["ab", "c", "d"], 1),
        media(Image, ["ab", "c", ""], 2),
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
    // The refused message has not used up a version.
    assert_eq!(house.sent("bob", "alice", 3).version, Version::from(2));
}

#[test]
fn numbers_that_trimming_took_do_not_come_again() {
    let mut house = House::new();
    house.sent("alice", "bob", 1);
    let message = house.sent("alice", "bob", 2);
    for (space, span) in [(Space::Logs, key::all()), (Space::Chats, key::all())] {
        let rows = house.memory.view().range(space, &span, Order::Ascending, 100).unwrap();
        house.memory.commit(rows.into_iter().map(|(key, _)| (space, key, None)).collect()).unwrap();
    }
    for user in ["alice", "bob"] {
        house.put(&key::log_floor(&eid(user)), &FloorRecord { last: 2 });
    }
    house.put(&key::chat_floor(message.chat), &FloorRecord { last: 2 });
    let (mut house, _) = house.restart();
    assert_eq!(chat_version(&*house.memory.view(), message.chat).unwrap(), Version::from(2));
    let log = house.open("bob", "phone").unwrap().log;
    assert_eq!((log.trimmed, log.head), (Sequence::from(2), Sequence::from(2)));
    let next = house.accept(text("alice", "bob", 3), true).unwrap();
    assert_eq!((next.message.version, next.sequence), (Version::from(3), Sequence::from(3)));
    assert_eq!(house.lines("bob"), [format!("3 received {} from none", next.message.id)]);
    // A bulk acknowledgment skips the deleted messages.
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
        let waiting = Waiting { id: MessageId::new(1, entropy), received: None, ready: false };
        house.ledger.books.unreleased.insert(chat, Version::from(number), waiting);
    }
    assert_eq!(house.accept(text("alice", "bob", 1), false).unwrap_err(), StoreError::Overloaded);
    assert!(house.accept(text("alice", "bob", 1), true).is_ok());
}

#[test]
fn more_than_the_bound_of_a_chat_do_not_wait_and_those_that_do_are_released_by_one() {
    let mut house = House::new();
    let first = house.accept(text("alice", "bob", 1), false).unwrap().message.id;
    let many = limits::STORE_UNRELEASED_CHAT_MAX as u64;
    let waiting = house.run((2..=many).map(|number| accept(text("alice", "bob", number), true)).collect());
    assert!(waiting.outcomes.iter().all(Result::is_ok));
    for (sender, recipient) in [("alice", "bob"), ("bob", "alice")] {
        assert_eq!(house.accept(text(sender, recipient, many + 1), true).unwrap_err(), StoreError::ChatFull);
    }
    assert!(house.accept(text("alice", "carol", many + 2), false).is_ok(), "another chat is as it was");
    house.one(Op::Release(first)).unwrap();
    assert_eq!(house.kinds("bob").len() as u64, many);
    assert_eq!(house.accept(text("alice", "bob", many + 1), true).unwrap().outcome, AcceptOutcome::Released);
}
