//! Tests of log rows: entries that one commit appends to a log share rows.

use std::collections::VecDeque;

use super::*;
use crate::limits::LOG_ROW_ENTRIES_MAX;
use crate::store::record::LogRecord;
use crate::store::retention::Pass;
use crate::store::types::{LogBounds, Retention};

const MANY: u64 = 2 * LOG_ROW_ENTRIES_MAX as u64 + 3;

fn texts(numbers: std::ops::RangeInclusive<u64>) -> Vec<Op> {
    numbers.map(|number| accept(text("alice", "bob", number), true)).collect()
}

fn sequences(entries: &[Arc<LogEntry>]) -> Vec<u64> {
    entries.iter().map(|entry| entry.sequence.get()).collect()
}

fn read_after(house: &House, after: u64, limit: usize) -> Vec<u64> {
    sequences(&read::log(&*house.memory.view(), &eid("bob"), Sequence::from(after), limit, usize::MAX).unwrap())
}

/// Runs a complete pass of the retention.
fn trim(house: &mut House, retention: Retention) {
    let (mut pass, mut ops) = (Pass::new(retention, i64::MAX, Key::new()), VecDeque::new());
    while let Some(step) = pass.step(&*house.memory.view()).unwrap() {
        ops.extend(step);
        house.run(ops.drain(..).collect());
    }
}

#[test]
fn entries_of_one_commit_share_rows_up_to_the_bound_and_are_read_from_anywhere() {
    let mut house = House::new();
    house.run(texts(1..=MANY));
    house.sent("alice", "bob", MANY + 1);
    assert_eq!(
        house.rows(Space::Logs),
        2 * (3 + 1),
        "three for the commit of many and one for the other, of each user"
    );
    let all: Vec<u64> = (1..=MANY + 1).collect();
    for after in 0..=MANY + 1 {
        for limit in [1, 2, LOG_ROW_ENTRIES_MAX, usize::MAX] {
            let expected: Vec<u64> = all.iter().copied().filter(|n| *n > after).take(limit).collect();
            assert_eq!(read_after(&house, after, limit), expected, "{limit} after {after}");
        }
    }
    let numbers: Vec<_> = house.lines("bob").iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(numbers, all.iter().map(u64::to_string).collect::<Vec<_>>());
    // A ledger opened anew finds the same end.
    let (mut house, _) = house.restart();
    assert_eq!(house.open("bob", "phone").unwrap().log.head, Sequence::from(MANY + 1));
}

#[test]
fn a_page_goes_over_many_rows_of_one_entry() {
    let mut house = House::new();
    for number in 1..=150 {
        house.sent("alice", "bob", number);
    }
    assert_eq!(read_after(&house, 10, 130), (11..=140).collect::<Vec<_>>());
    assert_eq!(read_after(&house, 10, 1000), (11..=150).collect::<Vec<_>>());
}

#[test]
fn a_page_reads_the_rows_that_it_needs_and_not_one_by_one() {
    const PAGE: usize = 8 * LOG_ROW_ENTRIES_MAX;
    let ranges = |house: &House| {
        let (view, _) = (house.watched.view(), house.watched.ranges());
        assert_eq!(read::log(&*view, &eid("bob"), Sequence::ZERO, PAGE, usize::MAX).unwrap().len(), PAGE);
        house.watched.ranges().into_iter().map(|(_, _, rows)| rows).collect::<Vec<_>>()
    };
    let (mut full, mut single) = (House::new(), House::new());
    full.run(texts(1..=3 * PAGE as u64));
    for number in 1..=3 * PAGE as u64 {
        single.sent("alice", "bob", number);
    }
    assert_eq!(ranges(&full), [8], "rows of as many entries as can be");
    assert_eq!(ranges(&single), [8, PAGE - 8], "rows of one");
}

#[test]
fn acknowledgments_are_read_from_both_logs_as_they_were() {
    let mut house = House::new();
    let sent: Vec<_> = (1..=3).map(|number| house.sent("alice", "bob", number)).collect();
    let one = Op::Acknowledge(ack("bob", AckTarget::Message(sent[0].id), AckStatus::Delivered, 7));
    let done = house.run(vec![one, Op::Acknowledge(ack("bob", up_to(3), AckStatus::Read, 8))]);
    for user in ["alice", "bob"] {
        let appended: Vec<_> =
            done.appended.iter().filter(|(whose, _)| *whose == eid(user)).map(|(_, entry)| told(entry)).collect();
        assert_eq!(house.lines(user)[3..], appended[..]);
        let EntryBody::Acknowledged(read) = &house.log(user)[4].body else { panic!("{:?}", house.log(user)[4]) };
        assert_eq!((read.chat, read.changed), (sent[0].chat, true));
    }
}

#[test]
fn an_end_that_was_forgotten_within_the_commit_is_found_in_it() {
    // The cache is so small that it forgets each end before it is needed again.
    let ledger = Ledger::open_caching(Arc::new(Memory::new()), Instant::now(), 1, drop);
    let mut ledger = ledger.unwrap();
    let ops = (1..=6).map(|number| accept(text("alice", ["bob", "carol"][number as usize % 2], number), true));
    let done = ledger.run(ops.collect(), Instant::now());
    let of_alice: Vec<_> = done.appended.iter().filter(|(user, _)| *user == eid("alice")).collect();
    assert_eq!(of_alice.iter().map(|(_, entry)| entry.sequence.get()).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn rows_of_single_entries_from_an_earlier_version_are_read() {
    let mut house = House::new();
    house.run(texts(1..=2));
    let (bob, view) = (eid("bob"), house.memory.view());
    let row_key = key::log(&bob, Sequence::from(2));
    let row = record::read::<LogRecord>(&*view, &row_key).unwrap().unwrap();
    house.put(&key::log(&bob, Sequence::from(1)), &row.earlier[0]);
    house.put(&row_key, &LogRecord { earlier: Vec::new(), ..row });
    assert_eq!(read_after(&house, 0, 9), [1, 2]);
    let (mut house, _) = house.restart();
    house.sent("alice", "bob", 3);
    assert_eq!(house.kinds("bob"), ["received"; 3]);
}

#[test]
fn a_row_goes_once_all_of_it_may() {
    let mut house = House::new();
    house.run(texts(1..=4));
    house.run(texts(5..=8));
    let keep = |entries| Retention { older_than_ms: 0, entries_max_per_user: entries };
    trim(&mut house, keep(6));
    assert_eq!(read_after(&house, 0, 99), (1..=8).collect::<Vec<_>>(), "the first row has two that are to be kept");
    trim(&mut house, keep(4));
    assert_eq!(read_after(&house, 0, 99), [5, 6, 7, 8]);
    assert_eq!(house.open("bob", "phone").unwrap().log.trimmed, Sequence::from(4));
    // By age: a text's number is its time.
    trim(&mut house, Retention { older_than_ms: 8, entries_max_per_user: u64::MAX });
    assert_eq!(read_after(&house, 0, 99), [5, 6, 7, 8], "the last of its row is too young");
    trim(&mut house, Retention { older_than_ms: 9, entries_max_per_user: u64::MAX });
    assert_eq!(read_after(&house, 0, 99), Vec::<u64>::new());
    assert_eq!(house.rows(Space::Logs), 0);
}

#[test]
fn nothing_is_looked_for_among_what_was_trimmed() {
    let mut house = House::new();
    for number in 1..=3 {
        house.sent("carol", "dave", number);
    }
    for number in 4..=23 {
        house.sent("alice", "bob", number);
    }
    let keys = |house: &House| {
        let all = |space| house.memory.view().range(space, &key::all(), Order::Ascending, usize::MAX).unwrap();
        [Space::Logs, Space::Chats].map(|space| all(space).into_iter().map(|(key, _)| key).collect::<Vec<_>>())
    };
    let before = keys(&house);
    // Both messages and entries: all of carol's, and the first ten of alice's.
    trim(&mut house, Retention { older_than_ms: 14, entries_max_per_user: u64::MAX });
    let kept = keys(&house);
    // The caches are empty.
    let (mut house, _) = house.restart();

    assert_eq!(house.open("bob", "phone").unwrap().log, LogBounds { trimmed: 10.into(), head: 20.into() });
    assert_eq!(house.open("dave", "phone").unwrap().log, LogBounds { trimmed: 3.into(), head: 3.into() });
    // Repeated as often as a client likes, and never read.
    for version in [5, 5, 10, 15, 15, 10] {
        let done = house.ack(ack("bob", up_to(version), AckStatus::Delivered, 30)).unwrap();
        assert_eq!((done.target, done.status), (up_to(version), AckStatus::Delivered));
    }
    let emptied = ChatId::between(&eid("carol"), &eid("dave"));
    let target = AckTarget::UpTo(emptied, Version::from(3));
    let refused = house.ack(ack("dave", target, AckStatus::Read, 30)).unwrap_err();
    assert_eq!(refused, StoreError::NoSuchMessage);
    assert_eq!(house.sent("carol", "dave", 31).version, Version::from(4));
    let view = house.watched.view();
    assert_eq!(chat_version(&*view, ChatId::between(&eid("alice"), &eid("bob"))).unwrap(), Version::from(20));
    let log = read::log(&*view, &eid("bob"), Sequence::ZERO, 99, usize::MAX).unwrap();
    assert_eq!(sequences(&log)[..10], (11..=20).collect::<Vec<_>>());
    for (after, before, versions) in [(None, Some(13), 11..13), (Some(1), None, 11..21), (Some(1), Some(9), 11..11)] {
        let (after, before) = (after.map(Version::from), before.map(Version::from));
        let (reader, peer) = (eid("bob"), eid("alice"));
        let query = HistoryQuery { reader, peer, before, after, limit: 50, bytes_max: usize::MAX };
        let page = read::history(&*view, &query).unwrap();
        assert!(page.iter().map(|message| message.message.version.get()).eq(versions));
    }

    let gone = |space: usize| before[space].iter().filter(|key| !kept[space].contains(key)).collect::<Vec<_>>();
    let gone = [(Space::Logs, gone(0)), (Space::Chats, gone(1))];
    assert_eq!(gone.iter().map(|(_, keys)| keys.len()).collect::<Vec<_>>(), [2 * 13, 13]);
    for (space, span, _) in house.watched.ranges() {
        let over = gone.iter().filter(|(its, _)| *its == space).flat_map(|(_, keys)| keys);
        assert_eq!(over.filter(|key| span.contains(key)).count(), 0, "{space:?} {span:?}");
    }
}

#[test]
fn an_acknowledgment_is_as_old_as_the_server_had_it_whatever_the_device_says() {
    let mut house = House::new();
    let message = house.sent("alice", "bob", 5);
    let late = Acknowledgment { received_at: 20, ..ack("bob", AckTarget::Message(message.id), AckStatus::Read, 1) };
    house.ack(late).unwrap();
    trim(&mut house, Retention { older_than_ms: 20, entries_max_per_user: u64::MAX });
    for user in ["alice", "bob"] {
        assert_eq!(house.kinds(user), ["acknowledged"], "{user}");
        assert!(house.lines(user)[0].contains("read 1 "), "it tells what the device said: {:?}", house.lines(user));
    }
    trim(&mut house, Retention { older_than_ms: 21, entries_max_per_user: u64::MAX });
    assert_eq!(house.rows(Space::Logs), 0);
}

#[test]
fn a_message_from_when_the_clock_was_ahead_holds_its_chat_and_no_pass() {
    let mut house = House::new();
    let many = limits::TRIM_ROWS as u64 + 10;
    house.run(vec![accept(NewMessage { received_at: i64::MAX - 1, ..text("alice", "bob", 1) }, true)]);
    house.run((2..=many).map(|number| accept(text("alice", "bob", number), true)).collect());
    let nothing = Retention { older_than_ms: 0, entries_max_per_user: 0 };
    // The pass comes to an end, which is what this test is about. Only the first message is too young for its
    // `message_id_local` to be forgotten.
    trim(&mut house, nothing);
    assert_eq!((house.rows(Space::Logs), house.rows(Space::Messages) as u64), (0, many));
}

#[test]
fn a_row_that_claims_more_entries_than_there_are_numbers_is_corrupt() {
    let mut house = House::new();
    house.run(texts(1..=3));
    let row = record::read::<LogRecord>(&*house.memory.view(), &key::log(&eid("bob"), Sequence::from(3)));
    let misplaced = key::log(&eid("bob"), Sequence::from(1));
    let error = row.unwrap().unwrap().entries(&misplaced).map(drop).unwrap_err();
    assert!(error.to_string().contains("corrupt row in logs"), "{error}");
}
