//! The behaviour of every [`Store`]: one suite, run over each implementation.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::testing::{Gate, LATER, ack, contact, device, eid, kinds, take_places, text, told};
use super::*;
use crate::limits;
use crate::wire::{AckStatus, Sequence, Version};

/// An observer that records all entries.
#[derive(Default)]
struct Seen(Mutex<Vec<(Eid, Arc<LogEntry>)>>);

impl LogObserver for Seen {
    fn appended(&self, user: &Eid, entry: &Arc<LogEntry>) {
        self.0.lock().unwrap().push((user.clone(), entry.clone()));
    }
}

async fn kinds_of(store: &dyn Store, name: &str) -> Vec<&'static str> {
    let log = store.read_log(&eid(name), Sequence::ZERO, 1000).await.unwrap();
    kinds(log.iter().map(|entry| &**entry))
}

fn page(before: Option<u64>, after: Option<u64>, limit: usize) -> HistoryQuery {
    let (before, after) = (before.map(Version::from), after.map(Version::from));
    HistoryQuery { reader: eid("alice"), peer: eid("bob"), before, after, limit, bytes_max: usize::MAX }
}

/// Runs the whole suite over a store without any rows.
async fn conforms(store: &dyn Store) {
    messages_are_numbered_released_and_read_back(store).await;
    acknowledgments_move_forward_on_both_sides(store).await;
    history_pages_both_ways(store).await;
    devices_keep_their_place(store).await;
    lists_and_blocks_hold(store).await;
    revocations_last_until_they_have_expired_for_long(store).await;
    the_retention_trims_logs_and_forgets_messages_in_time(store).await;
    reads_are_bounded_by_bytes(store).await;
    store.check().await.unwrap();
}

async fn messages_are_numbered_released_and_read_back(store: &dyn Store) {
    let first = store.accept(text("alice", "bob", 1), true).await.unwrap();
    assert_eq!((first.outcome, first.message.version.get()), (AcceptOutcome::Released, 1));
    let second = store.accept(text("bob", "alice", 2), false).await.unwrap();
    assert_eq!((second.outcome, second.message.version.get()), (AcceptOutcome::Waiting, 2));
    assert_eq!(kinds_of(store, "bob").await, ["received", "accepted"]);
    store.release(&second.message.sender, second.message.id).await.unwrap();
    store.release(&second.message.sender, second.message.id).await.unwrap();
    assert_eq!(kinds_of(store, "bob").await, ["received", "accepted", "copy"]);
    assert_eq!(kinds_of(store, "alice").await, ["sent", "received"]);

    let again = store.accept(text("alice", "bob", 1), true).await.unwrap();
    assert_eq!((again.outcome, again.sequence), (AcceptOutcome::Known, first.sequence));
    assert_eq!(again.message, first.message);
    let other = NewMessage { content: Content::Text("other".into()), ..text("alice", "bob", 1) };
    assert_eq!(store.accept(other, true).await.unwrap_err(), StoreError::Conflict);

    let media = Content::Media {
        kind: crate::wire::MediaType::Audio,
        url: "https://cdn/x".into(),
        caption: "hear".into(),
        thumbnail_url: String::new(),
        size_bytes: 77,
    };
    let third = store.accept(NewMessage { content: media.clone(), ..text("alice", "bob", 3) }, true).await.unwrap();
    let log = store.read_log(&eid("bob"), Sequence::from(3), 10).await.unwrap();
    let [entry] = log.as_slice() else { panic!("{log:?}") };
    assert!(matches!(&entry.body, EntryBody::Received(message) if *message == third.message));
    assert_eq!(third.message.content, media);
    assert_eq!(entry.committed, None);
    assert_eq!(store.chat_version(third.message.chat).await.unwrap(), Version::from(3));
    assert!(store.read_log(&eid("bob"), Sequence::from(4), 10).await.unwrap().is_empty());
}

async fn acknowledgments_move_forward_on_both_sides(store: &dyn Store) {
    let message = store.accept(text("alice", "bob", 4), true).await.unwrap().message;
    let one = AckTarget::Message(message.id);
    let delivered = store.acknowledge(ack("bob", one.clone(), AckStatus::Delivered, 100)).await.unwrap();
    assert_eq!((delivered.status, delivered.at, delivered.changed), (AckStatus::Delivered, 100, true));
    assert_eq!((&delivered.sender, delivered.chat), (&message.sender, message.chat));
    let again = store.acknowledge(ack("bob", one.clone(), AckStatus::Delivered, 101)).await.unwrap();
    assert_eq!((again.at, again.changed), (100, false));
    assert_eq!(store.acknowledge(ack("alice", one, AckStatus::Read, 102)).await.unwrap_err(), StoreError::NotRecipient);
    let all = AckTarget::UpTo(message.chat, Version::from(99));
    let read = store.acknowledge(ack("bob", all, AckStatus::Read, 103)).await.unwrap();
    assert_eq!(read.target, AckTarget::UpTo(message.chat, Version::from(4)));
    for name in ["alice", "bob"] {
        let log = store.read_log(&eid(name), Sequence::ZERO, 1000).await.unwrap();
        let newest: Vec<_> = log.iter().rev().take(2).map(|entry| entry.body.clone()).collect();
        let [EntryBody::Acknowledged(last), EntryBody::Acknowledged(first)] = newest.as_slice() else {
            panic!("{newest:?}")
        };
        assert_eq!((first, last), (&delivered, &read));
    }
}

async fn history_pages_both_ways(store: &dyn Store) {
    let versions = async |query| {
        let page: Vec<HistoryMessage> = store.history(query).await.unwrap();
        page.iter().map(|message| message.message.version.get()).collect::<Vec<_>>()
    };
    assert_eq!(versions(page(None, None, 50)).await, [1, 2, 3, 4]);
    assert_eq!(versions(page(None, None, 2)).await, [3, 4]);
    assert_eq!(versions(page(Some(3), None, 1)).await, [2]);
    assert_eq!(versions(page(None, Some(1), 2)).await, [2, 3]);
    assert_eq!(versions(page(Some(4), Some(1), 1)).await, [3]);
    let states = store.history(page(None, None, 50)).await.unwrap();
    let states: Vec<_> = states.iter().map(|message| message.acknowledged).collect();
    let read = Some((AckStatus::Read, 103));
    assert_eq!(states, [read, None, read, read]);
}

async fn devices_keep_their_place(store: &dyn Store) {
    let (bob, tablet) = (eid("bob"), device("tablet"));
    let new = store.open_device(&bob, &tablet, LATER).await.unwrap();
    assert_eq!((new.cursor, new.log.trimmed), (Sequence::ZERO, Sequence::ZERO));
    store.advance_cursor(&bob, &tablet, Sequence::from(2));
    store.advance_cursor(&bob, &tablet, Sequence::from(1));
    assert_eq!(store.open_device(&bob, &tablet, LATER).await.unwrap().cursor, Sequence::from(2));
    store.advance_cursor(&bob, &tablet, Sequence::from(u64::MAX));
    assert_eq!(store.open_device(&bob, &tablet, LATER).await.unwrap().cursor, new.log.head);
    let signed_out =
        Revocation { target: RevocationTarget::Token(bob.clone(), [9; 32]), issued_until: 0, expires_at: 9 };
    store.revoke(signed_out, Some(tablet.clone())).await.unwrap();
    assert_eq!(store.open_device(&bob, &tablet, LATER).await.unwrap().cursor, Sequence::ZERO);
}

async fn lists_and_blocks_hold(store: &dyn Store) {
    let (alice, bob, eve) = (eid("alice"), eid("bob"), eid("eve"));
    assert!(!store.put_contact(&alice, contact("bob")).await.unwrap());
    assert!(store.put_contact(&alice, contact("bob")).await.unwrap());
    assert!(store.set_block(&alice, &eve, true).await.unwrap());
    assert_eq!(store.accept(text("eve", "alice", 90), true).await.unwrap_err(), StoreError::Blocked);
    let list = store.contacts(&alice, None, usize::MAX).await.unwrap().contacts;
    assert_eq!(list[0], contact("bob"));
    assert_eq!((&list[1].subscriber, list[1].subscribed, list[1].blocked), (&eve, false, true));
    let seen: Vec<_> = store.owners_of(&bob).await.unwrap().into_iter().map(|(owner, _)| owner).collect();
    assert_eq!(seen, std::slice::from_ref(&alice));
    assert!(store.owners_of(&eve).await.unwrap().is_empty());
    assert!(store.set_block(&alice, &eve, false).await.unwrap());
    assert!(store.remove_contact(&alice, &bob).await.unwrap());
    assert!(store.contacts(&alice, None, usize::MAX).await.unwrap().contacts.is_empty());
}

/// Runs last, as it trims what the other parts have left.
async fn the_retention_trims_logs_and_forgets_messages_in_time(store: &dyn Store) {
    const DAY: i64 = 24 * 3600 * 1000;
    let (rita, sam) = (eid("rita"), eid("sam"));
    let at = |number: u64, ms: i64| NewMessage { received_at: ms, ..text("rita", "sam", number) };
    let mut ids = Vec::new();
    for number in 0..600 {
        ids.push(store.accept(at(1000 + number, 1000 + number as i64), true).await.unwrap().message.id);
    }
    let waiting = store.accept(at(1600, 1600), false).await.unwrap().message;
    let keep = |entries_max_per_user, older_than_ms| Retention { older_than_ms, entries_max_per_user };
    let versions = async || {
        let query = HistoryQuery {
            reader: rita.clone(),
            peer: sam.clone(),
            before: None,
            after: None,
            limit: 1000,
            bytes_max: usize::MAX,
        };
        let page: Vec<HistoryMessage> = store.history(query).await.unwrap();
        page.iter().map(|message| message.message.version.get()).collect::<Vec<_>>()
    };

    // Trims by number, more rows than one step takes. The messages stay, as a repeat has to be answered with them.
    let trimmed = store.trim(keep(100, 0), 2000).await.unwrap();
    assert_eq!(trimmed.messages, 0);
    let log = store.read_log(&sam, Sequence::ZERO, 1000).await.unwrap();
    assert_eq!((log.len(), log[0].sequence.get()), (100, 501));
    let state = store.open_device(&sam, &device("new"), LATER).await.unwrap();
    assert_eq!((state.log.trimmed.get(), state.log.head.get()), (500, 600));
    assert_eq!(versions().await.len(), 600);
    let again = store.accept(at(1000, 5000), true).await.unwrap();
    assert_eq!((again.outcome, again.message.id), (AcceptOutcome::Known, ids[0]));

    // Once its `message_id_local` need not be remembered, a message is deleted if no entry refers to it any more. Sam's
    // log has lost 500 entries; Rita's log, which has one entry more, has lost 501.
    let trimmed = store.trim(keep(100, 0), 8 * DAY).await.unwrap();
    assert_eq!(trimmed.entries, 0);
    assert_eq!(versions().await, (501..=600).collect::<Vec<_>>());
    let seen = ack("sam", AckTarget::Message(ids[0]), AckStatus::Read, 1);
    assert_eq!(store.acknowledge(seen).await.unwrap_err(), StoreError::NoSuchMessage);

    // Trimming by age deletes everything but the message that waits. It is released all the same, and numbers continue.
    let trimmed = store.trim(keep(1000, 9 * DAY), 9 * DAY).await.unwrap();
    assert_eq!(trimmed.messages, 104, "and the four between alice and bob");
    assert!(store.read_log(&sam, Sequence::ZERO, 10).await.unwrap().is_empty());
    assert_eq!(kinds_of(store, "rita").await, ["accepted"]);
    store.release(&waiting.sender, waiting.id).await.unwrap();
    assert_eq!(versions().await, [601]);
    assert_eq!(store.read_log(&sam, Sequence::ZERO, 10).await.unwrap()[0].sequence.get(), 601);
    store.trim(keep(0, 0), 9 * DAY).await.unwrap();
    assert!(versions().await.is_empty());
    let last = store.accept(at(1601, 9 * DAY), true).await.unwrap();
    assert_eq!((last.message.version.get(), last.sequence.get()), (602, 603));
    let new = store.accept(at(1000, 9 * DAY), true).await.unwrap();
    assert_eq!((new.outcome, new.message.version.get()), (AcceptOutcome::Released, 603));
}

async fn revocations_last_until_they_have_expired_for_long(store: &dyn Store) {
    let targets = [
        RevocationTarget::Token(eid("bob"), [7; 32]),
        RevocationTarget::Device(eid("bob"), device("phone")),
        RevocationTarget::User(eid("bob")),
    ];
    for (number, target) in (1..).zip(&targets) {
        let revocation = Revocation { target: target.clone(), issued_until: 10, expires_at: 100 * number };
        store.revoke(revocation, None).await.unwrap();
    }
    // What refuses nothing any more is deleted with what else is over, and not at once: the clock may be wrong for now.
    let kept = limits::REVOCATIONS_KEPT.as_millis() as i64;
    for (now, left) in [(1_000, &targets[..]), (kept + 200, &targets[2..])] {
        store.trim(Retention { older_than_ms: 0, entries_max_per_user: u64::MAX }, now).await.unwrap();
        let revocations = store.revocations().await.unwrap();
        let kept = |target: &&RevocationTarget| revocations.iter().any(|revocation| revocation.target == **target);
        assert!(targets.iter().filter(kept).eq(left), "{revocations:?}");
    }
}

async fn reads_are_bounded_by_bytes(store: &dyn Store) {
    let long = |number| {
        let content = Content::Text("x".repeat(16 * 1024));
        NewMessage { content, ..text("victor", "walter", number) }
    };
    for number in 0..20 {
        store.accept(long(number), true).await.unwrap();
    }
    let entries = store.read_log(&eid("walter"), Sequence::ZERO, 100).await.unwrap();
    assert_eq!(entries.len(), limits::TAIL_READ_BYTES / (16 * 1024));
    let rest = store.read_log(&eid("walter"), Sequence::from(19), 100).await.unwrap();
    assert_eq!(rest.len(), 1);
    for (bytes_max, expected) in [(0, 2), (16 * 1024, 2), (40_000, 3), (usize::MAX, 20)] {
        for after in [None, Some(Version::ZERO)] {
            let (reader, peer) = (eid("walter"), eid("victor"));
            let query = HistoryQuery { reader, peer, before: None, after, limit: 100, bytes_max };
            assert_eq!(store.history(query).await.unwrap().len(), expected, "{bytes_max} bytes, {after:?}");
        }
    }
}

fn options() -> Options {
    Options { cache_bytes: 1 << 20, ..Options::default() }
}

#[tokio::test]
async fn a_store_in_memory_conforms() {
    let store = Embedded::open_memory(Memory::new(), options(), Arc::new(Seen::default())).unwrap();
    conforms(&store).await;
    store.close().await;
}

#[tokio::test]
async fn a_store_on_disk_conforms_and_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(Seen::default());
    let store = Embedded::open(dir.path(), options(), seen.clone()).unwrap();
    conforms(&store).await;
    let waiting = store.accept(text("alice", "bob", 70), false).await.unwrap().message;
    store.open_device(&eid("bob"), &device("watch"), LATER).await.unwrap();
    store.advance_cursor(&eid("bob"), &device("watch"), Sequence::from(3));
    let before = store.read_log(&eid("bob"), Sequence::ZERO, 1000).await.unwrap();
    store.close().await;

    let store = Embedded::open(dir.path(), options(), seen).unwrap();
    let after = store.read_log(&eid("bob"), Sequence::ZERO, 1000).await.unwrap();
    let lines = |log: &[Arc<LogEntry>]| log.iter().map(|entry| told(entry)).collect::<Vec<_>>();
    assert_eq!(lines(&after[..before.len()]), lines(&before));
    // Start-up has released the waiting message.
    let [released] = &after[before.len()..] else { panic!("{after:?}") };
    assert!(matches!(&released.body, EntryBody::Received(message) if message.id == waiting.id));
    let state = store.open_device(&eid("bob"), &device("watch"), LATER).await.unwrap();
    assert_eq!((state.cursor, state.log.head), (Sequence::from(3), released.sequence));
    let next = store.accept(text("alice", "bob", 71), true).await.unwrap().message;
    assert_eq!(next.version, waiting.version.next());
    store.close().await;
}

/// Copies the files as they are at this moment, which is what a killed process leaves.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.is_dir() { copy(&entry, &to) } else { std::fs::copy(entry, to).map(drop).unwrap() }
    }
}

#[tokio::test]
async fn what_was_answered_is_on_disk_when_the_process_just_ends() {
    let (dir, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Embedded::open(dir.path(), options(), Arc::new(Seen::default())).unwrap();
    for number in 1..=50 {
        store.accept(text("alice", "bob", number), number % 2 == 0).await.unwrap();
    }
    copy(dir.path(), killed.path());
    store.close().await;
    let store = Embedded::open(killed.path(), options(), Arc::new(Seen::default())).unwrap();
    let versions: Vec<_> = store.history(page(None, None, 99)).await.unwrap();
    let versions: Vec<_> = versions.iter().map(|message| message.message.version.get()).collect();
    assert_eq!(versions, (1..=50).collect::<Vec<_>>());
    let known = store.accept(text("alice", "bob", 50), true).await.unwrap();
    assert_eq!(known.outcome, AcceptOutcome::Known);
    store.close().await;
}

#[tokio::test]
async fn the_observer_is_told_in_order_before_the_caller() {
    let seen = Arc::new(Seen::default());
    let store = Embedded::open_memory(Memory::new(), options(), seen.clone()).unwrap();
    for number in 1..=20 {
        store.accept(text("alice", "bob", number), true).await.unwrap();
        let seen = seen.0.lock().unwrap();
        let sent: Vec<_> = seen.iter().filter(|(user, _)| *user == eid("alice")).collect();
        assert_eq!(sent.len() as u64, number);
        assert!(sent.iter().zip(1..).all(|((_, entry), at)| entry.sequence.get() == at && entry.committed.is_some()));
    }
}

#[tokio::test]
async fn what_waits_becomes_one_commit_and_what_the_queue_cannot_take_is_refused() {
    let (gate, go_on) = Gate::new();
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let on_commit = {
        let sizes = sizes.clone();
        Box::new(move |commit: Commit| sizes.lock().unwrap().push((commit.operations, commit.messages)))
    };
    let options = Options { on_commit, queue_wait: Duration::ZERO, ..options() };
    let store = Arc::new(Embedded::open_memory(Memory::new(), options, gate.clone()).unwrap());
    let accept = |number| {
        let store = store.clone();
        tokio::spawn(async move { store.accept(text("alice", "bob", number), true).await })
    };
    let first = accept(1);
    gate.reached().await;
    // The writer is blocked. Cursor moves take all places but one, a message the last one.
    take_places(&store, limits::STORE_QUEUE_MAX - 1);
    let second = {
        let store = store.clone();
        let accepted = tokio::spawn(async move { store.accept(text("alice", "bob", 2), true).await });
        tokio::task::yield_now().await;
        accepted
    };
    assert_eq!(store.accept(text("alice", "bob", 3), true).await.unwrap_err(), StoreError::Overloaded);
    drop(go_on);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    store.close().await;
    assert_eq!(*sizes.lock().unwrap(), [(1, 1), (limits::COMMIT_OPERATIONS_MAX, 1)]);
}

#[tokio::test]
async fn a_closed_store_has_written_its_cursors_and_refuses() {
    let memory = Memory::new();
    let store = Embedded::open_memory(memory.clone(), options(), Arc::new(Seen::default())).unwrap();
    store.accept(text("alice", "bob", 1), true).await.unwrap();
    store.open_device(&eid("bob"), &device("phone"), LATER).await.unwrap();
    store.advance_cursor(&eid("bob"), &device("phone"), Sequence::from(1));
    store.close().await;
    store.close().await;
    assert_eq!(store.accept(text("alice", "bob", 2), true).await.unwrap_err(), StoreError::Closed);
    assert_eq!(store.contacts(&eid("bob"), None, 1).await.unwrap_err(), StoreError::Closed);
    assert_eq!(store.check().await.unwrap_err(), StoreError::Closed);
    memory.crash();
    let store = Embedded::open_memory(memory, options(), Arc::new(Seen::default())).unwrap();
    let state = store.open_device(&eid("bob"), &device("phone"), LATER).await.unwrap();
    assert_eq!(state.cursor, Sequence::from(1));
}

#[tokio::test]
async fn an_idle_store_writes_its_cursors() {
    let memory = Memory::new();
    let store = Embedded::open_memory(memory.clone(), options(), Arc::new(Seen::default())).unwrap();
    store.accept(text("alice", "bob", 1), true).await.unwrap();
    store.open_device(&eid("bob"), &device("phone"), LATER).await.unwrap();
    let before = memory.commits();
    store.advance_cursor(&eid("bob"), &device("phone"), Sequence::from(1));
    let written = async {
        while memory.commits() == before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), written).await.expect("the cursor is written");
}

#[tokio::test]
async fn after_a_failed_commit_nothing_is_taken_but_reads_go_on() {
    let memory = Memory::new();
    let seen = Arc::new(Seen::default());
    let store = Embedded::open_memory(memory.clone(), options(), seen.clone()).unwrap();
    store.accept(text("alice", "bob", 1), true).await.unwrap();
    memory.fail_after(0, Fault::Before);
    for number in 2..4 {
        let error = store.accept(text("alice", "bob", number), true).await.unwrap_err();
        assert!(matches!(error, StoreError::Engine(_)), "{error}");
    }
    assert!(store.check().await.is_err());
    assert_eq!(kinds_of(&store, "bob").await, ["received"]);
    assert_eq!(seen.0.lock().unwrap().len(), 2);
    store.close().await;
}

#[tokio::test]
async fn two_processes_cannot_open_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), options(), Arc::new(Seen::default())).unwrap();
    assert!(Embedded::open(dir.path(), options(), Arc::new(Seen::default())).is_err());
    store.close().await;
    assert!(Embedded::open(dir.path(), options(), Arc::new(Seen::default())).is_ok());
}
