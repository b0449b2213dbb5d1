//! Presence, contacts, revocation, logout, pings, history and bulk receipts, from the client library and the program against
//! a running server.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use bimip::client::limits::AHEAD_BYTES_MAX;
use bimip::client::{
    Admission, CloseReason, Content, Device, Event, Events, FileOutbox, Media, Outbox, RequestError, Revoke, SendError,
    State, Transport, Transports,
};
use bimip::wire::{
    AckStatus, AwarenessStatus, ChatId, CloseCode, DeviceId, Eid, ErrorCode, MediaType, PingStatus, Sequence, Version,
};
use common::{TestServer, within_bound};
use serde_json::Value;

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";

fn eid(text: &str) -> Eid {
    Eid::parse(text).unwrap()
}

fn options(server: &TestServer, user: &str, name: &str) -> bimip::client::Builder {
    Device::builder()
        .server(server.quic_address().to_string())
        .server_name("localhost")
        .roots_pem(server.files().ca)
        .identity(eid(user), DeviceId::parse(name).unwrap())
        .token(server.token(user, None))
}

async fn device(server: &TestServer, user: &str, name: &str) -> (Device, Events) {
    let (device, events) = options(server, user, name).connect().unwrap();
    within_bound("a session", device.connected()).await.unwrap();
    (device, events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_over_the_rate_arrives_in_order() {
    const MESSAGES: usize = 200;
    let rate = bimip::config::Rate { per_second: 50, burst: 100 };
    let server = TestServer::with(|config| config.limits.messages = rate).await;
    let (bob, mut heard) = device(&server, BOB, "phone").await;
    let (alice, _events) = device(&server, ALICE, "phone").await;
    let submit = |n: usize| alice.submit(alice.draft(&eid(BOB), Content::Text(n.to_string()))).unwrap();
    let tickets: Vec<_> = (0..MESSAGES).map(submit).collect();
    for (n, ticket) in tickets.into_iter().enumerate() {
        let sent = within_bound("an answer", ticket).await.unwrap();
        assert_eq!(sent.version, Version::from(n as u64 + 1));
    }
    for n in 0..MESSAGES {
        let text = next(&mut heard, "a message", |event| match event {
            Event::Message(message) => message.text().map(str::to_owned),
            _ => None,
        });
        assert_eq!(text.await, n.to_string());
    }
    assert!(server.metric(r#"bimip_rate_limited_total{limit="messages"}"#).await > 0.0, "some were put off");
    drop(bob);
}

/// The first event for which `fits` returns a value; earlier events are skipped.
async fn next<T>(events: &mut Events, what: &str, fits: impl Fn(Event) -> Option<T>) -> T {
    let found = async {
        loop {
            let event = events.next().await.expect("a device that goes on");
            if let Some(found) = fits(event) {
                return found;
            }
        }
    };
    within_bound(what, found).await
}

async fn presence(events: &mut Events, of: &str, status: AwarenessStatus) {
    next(events, status.name(), |event| match event {
        Event::Presence(told) => {
            let from = Eid::from_identity(told.from.as_ref()).unwrap();
            (from == eid(of) && told.status == status.code()).then_some(())
        }
        _ => None,
    })
    .await;
}

fn admission(nickname: &str) -> Admission {
    Admission { nickname: nickname.to_owned(), ..Admission::default() }
}

/// Texts of 16 KiB, the longest allowed: together more than a device reads ahead of its application.
const UNREAD_TEXTS: usize = AHEAD_BYTES_MAX / 16_384 + 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_reads_nothing_is_told_that_its_answer_lies_behind_and_gets_everything_once_it_reads() {
    let server = TestServer::start().await;
    let (alice, mut heard) = device(&server, ALICE, "phone").await;
    let text = |number: usize| format!("{number:016384}");
    let mut sending: Vec<_> = Vec::new();
    for number in 0..UNREAD_TEXTS {
        sending.push(alice.submit(alice.draft(&eid(BOB), Content::Text(text(number)))).unwrap());
        if sending.len() == 64 {
            for ticket in sending.drain(..) {
                within_bound("a text to be accepted", ticket).await.unwrap();
            }
        }
    }
    for ticket in sending {
        within_bound("a text to be accepted", ticket).await.unwrap();
    }
    for transport in [Transport::Quic, Transport::Tcp] {
        let name = format!("phone-{transport:?}").to_lowercase();
        let options = options(&server, BOB, &name).auto_deliver(true).transports(Transports::Only(transport));
        let (bob, mut events) = options.connect().unwrap();
        let to = eid(ALICE);
        let behind = bob.send_text(&to, format!("over {transport:?}"));
        assert_eq!(within_bound("to be told", behind).await, Err(SendError::Unread), "over {transport:?}");
        for number in 0..UNREAD_TEXTS {
            let message = next(&mut events, "a message", |event| match event {
                Event::Message(message) if message.from == eid(ALICE) => Some(message),
                _ => None,
            });
            assert!(message.await.text() == Some(&text(number)), "number {number} over {transport:?}");
        }
        // The text that the device sent meanwhile was accepted all the same, and once.
        next(&mut events, "its own to be accepted", |event| matches!(event, Event::Accepted(_)).then_some(())).await;
        bob.send_text(&eid(ALICE), "and now").await.unwrap();
        for expected in [format!("over {transport:?}"), "and now".to_owned()] {
            let message = next(&mut heard, "Bob's text", |event| match event {
                Event::Message(message) => Some(message),
                _ => None,
            });
            assert_eq!(message.await.text(), Some(expected.as_str()));
        }
        bob.close().await;
    }
    let newest = alice.history(&eid(BOB), None, Some(Version::from(UNREAD_TEXTS as u64 - 3)), 3).await.unwrap();
    let states: Vec<_> = newest.messages.iter().map(|message| message.acknowledgment).collect();
    assert_eq!(states, [AckStatus::Delivered; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_pages_both_ways_with_the_states_that_bulk_receipts_set() {
    let server = TestServer::start().await;
    let (alice, mut heard) = device(&server, ALICE, "phone").await;
    let (bob, _bobs) = device(&server, BOB, "phone").await;
    for number in 1..=5 {
        alice.send_text(&eid(BOB), format!("number {number}")).await.unwrap();
    }
    let media = Media {
        kind: MediaType::Image,
        url: "https://cdn.example/1".into(),
        caption: "a cat".into(),
        thumbnail_url: String::new(),
        size_bytes: 1 << 20,
    };
    let sent = alice.send_media(&eid(BOB), media.clone()).await.unwrap();
    assert_eq!(sent.version, Version::from(6));
    let chat = ChatId::between(&eid(ALICE), &eid(BOB));
    let read = bob.acknowledge_up_to(chat, Version::from(3), &eid(ALICE), AckStatus::Read).await;
    assert_eq!(read, Ok(AckStatus::Read));
    next(&mut heard, "the receipt", |event| match event {
        Event::Acknowledged(receipt) => (receipt.by == eid(BOB)).then_some(()),
        _ => None,
    })
    .await;

    let newest = alice.history(&eid(BOB), None, None, 2).await.unwrap();
    assert_eq!((newest.chat_id, newest.complete), (chat, false));
    assert_eq!(newest.messages[0].text(), Some("number 5"));
    assert_eq!(newest.messages[1].content, Content::Media(media));
    let before = bob.history(&eid(ALICE), Some(Version::from(5)), None, 50).await.unwrap();
    let states: Vec<_> =
        before.messages.iter().map(|message| (message.version.get(), message.acknowledgment)).collect();
    use AckStatus::{Read, Unread};
    assert_eq!((states, before.complete), (vec![(1, Read), (2, Read), (3, Read), (4, Unread)], true));
    let after = bob.history(&eid(ALICE), None, Some(Version::from(1)), 2).await.unwrap();
    let versions: Vec<_> = after.messages.iter().map(|message| message.version.get()).collect();
    assert_eq!((versions, after.complete), (vec![2, 3], false));
    let wrong = bob.history(&eid(ALICE), None, None, 201).await;
    assert!(matches!(wrong, Err(RequestError::Refused(refusal)) if refusal.kind() == Some(ErrorCode::Malformed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_comes_back_leaves_what_another_one_has_set_since() {
    use AwarenessStatus::{Away, Invisible, Offline, Online};
    let server = TestServer::start().await;
    let tcp = options(&server, ALICE, "phone").transports(Transports::Only(Transport::Tcp));
    let (phone, mut phones) = tcp.connect().unwrap();
    let (laptop, _laptops) = device(&server, ALICE, "laptop").await;
    let (bob, _bobs) = device(&server, BOB, "phone").await;
    laptop.add_subscriber(&eid(BOB), admission("Bob")).await.unwrap();
    let seen_by =
        async |device: &Device| within_bound("an answer", device.presence_of(&eid(ALICE))).await.unwrap().status;
    // What the phone set, what the laptop set then, and what Bob sees of it.
    for (before, since, shown) in [(Online, Invisible, Offline), (Away, Online, Online), (Invisible, Online, Online)] {
        within_bound("a session", phone.connected()).await.unwrap();
        phone.set_presence(before, true, None).await.unwrap();
        assert_eq!(seen_by(&phone).await, before);
        laptop.set_presence(since, true, None).await.unwrap();
        presence(&mut phones, ALICE, since).await;
        // Over TCP this makes a new session.
        phone.network_changed().await.unwrap();
        next(&mut phones, "a session", |event| matches!(event, Event::Connected(_)).then_some(())).await;
        assert_eq!(seen_by(&phone).await, since, "{before:?}");
        assert_eq!(seen_by(&bob).await, shown, "{before:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_is_seen_by_those_who_are_admitted() {
    let server = TestServer::start().await;
    let (alice, _alices) = device(&server, ALICE, "phone").await;
    let (bob, mut bobs) = device(&server, BOB, "phone").await;
    assert_eq!(bob.presence_of(&eid(ALICE)).await.unwrap().status, AwarenessStatus::Unknown);
    assert_eq!(bob.ping_device(&eid(ALICE), None).await.unwrap().status, PingStatus::Fail);

    assert_eq!(alice.add_subscriber(&eid(BOB), admission("Bob")).await, Ok(false));
    presence(&mut bobs, ALICE, AwarenessStatus::Online).await;
    alice.set_presence(AwarenessStatus::Busy, true, Some((52.5, 13.4))).await.unwrap();
    presence(&mut bobs, ALICE, AwarenessStatus::Busy).await;
    let seen = bob.presence_of(&eid(ALICE)).await.unwrap();
    assert_eq!((seen.status, seen.location), (AwarenessStatus::Busy, Some((52.5, 13.4))));
    let reach = bob.ping_device(&eid(ALICE), None).await.unwrap();
    assert!(reach.status == PingStatus::Ok && reach.rtt.is_some(), "{reach:?}");
    let nowhere = DeviceId::parse("nowhere").unwrap();
    let reach = bob.ping_device(&eid(ALICE), Some(&nowhere)).await.unwrap();
    assert_eq!((reach.status, reach.rtt), (PingStatus::Unreachable, None));
    alice.tell_presence(&eid(BOB), AwarenessStatus::Away, None).await.unwrap();
    presence(&mut bobs, ALICE, AwarenessStatus::Away).await;

    alice.set_presence(AwarenessStatus::Invisible, true, None).await.unwrap();
    presence(&mut bobs, ALICE, AwarenessStatus::Offline).await;
    alice.set_presence(AwarenessStatus::DoNotDisturb, true, None).await.unwrap();
    presence(&mut bobs, ALICE, AwarenessStatus::DoNotDisturb).await;

    let wrong = alice.set_presence(AwarenessStatus::Online, true, Some((91.0, 0.0))).await;
    assert!(matches!(wrong, Err(RequestError::Invalid(_))));
    alice.leave().await.unwrap();
    presence(&mut bobs, ALICE, AwarenessStatus::Offline).await;

    // A presence that is set before the device is connected is sent later, and not again after the device was replaced.
    let (alice, _alices) = options(&server, ALICE, "phone").connect().unwrap();
    alice.set_presence(AwarenessStatus::Online, true, None).await.unwrap();
    presence(&mut bobs, ALICE, AwarenessStatus::Online).await;
    let (other, _others) = options(&server, ALICE, "phone").connect().unwrap();
    other.set_presence(AwarenessStatus::Away, true, None).await.unwrap();
    presence(&mut bobs, ALICE, AwarenessStatus::Away).await;
    let mut state = alice.state();
    within_bound("the end", state.wait_for(|state| matches!(state, State::Closed(_)))).await.unwrap();
    alice.reconnect().await.unwrap();
    within_bound("a session", alice.connected()).await.unwrap();
    assert_eq!(alice.presence_of(&eid(ALICE)).await.unwrap().status, AwarenessStatus::Away);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_blocks_are_kept_and_a_long_list_is_one_answer() {
    let server = TestServer::start().await;
    let (alice, _alices) = device(&server, ALICE, "phone").await;
    let (bob, _bobs) = device(&server, BOB, "phone").await;
    assert_eq!(alice.add_subscriber(&eid(BOB), admission("Bob")).await, Ok(false));
    assert_eq!(alice.add_subscriber(&eid(BOB), admission("Bobby")).await, Ok(true));
    alice.block(&eid(BOB)).await.unwrap();
    let refused = bob.send_text(&eid(ALICE), "Hey!").await;
    assert!(matches!(refused, Err(SendError::Refused(refusal)) if refusal.kind() == Some(ErrorCode::Forbidden)));
    let list = alice.subscribers().await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].eid.clone(), list[0].nickname.as_str(), list[0].blocked), (eid(BOB), "Bobby", true));
    alice.unblock(&eid(BOB)).await.unwrap();
    bob.send_text(&eid(ALICE), "Hey!").await.unwrap();
    alice.remove_subscriber(&eid(BOB)).await.unwrap();
    assert!(matches!(alice.remove_subscriber(&eid(BOB)).await, Err(RequestError::Failed(_))));

    // A frame holds about a hundred of these entries.
    let mut adding = tokio::task::JoinSet::new();
    for number in 0..200 {
        let alice = alice.clone();
        adding.spawn(async move {
            let wide = Admission { group: "g".repeat(256), ..admission(&"n".repeat(256)) };
            alice.add_subscriber(&eid(&format!("user{number:03}@localhost")), wide).await.unwrap()
        });
    }
    within_bound("200 entries", adding.join_all()).await;
    let list = alice.subscribers().await.unwrap();
    let names: std::collections::BTreeSet<_> = list.iter().map(|contact| contact.eid.to_string()).collect();
    assert_eq!((list.len(), names.len()), (200, 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_and_signing_out_end_what_they_are_about() {
    let server = TestServer::start().await;
    let (alice, _alices) = device(&server, ALICE, "phone").await;
    let (tablet, _tablets) = device(&server, ALICE, "tablet").await;
    let (bob, _bobs) = device(&server, BOB, "phone").await;
    let theirs = bob.revoke_of(&eid(ALICE), Revoke::All).await;
    assert!(matches!(theirs, Err(RequestError::Refused(refusal)) if refusal.kind() == Some(ErrorCode::Forbidden)));
    let forged = bob.revoke(Revoke::Token("no token".to_owned())).await;
    assert!(matches!(forged, Err(RequestError::Failed(_))));

    alice.revoke(Revoke::Device(DeviceId::parse("tablet").unwrap())).await.unwrap();
    let mut state = tablet.state();
    let closed =
        within_bound("the end", state.wait_for(|state| matches!(state, State::Closed(_)))).await.unwrap().clone();
    let State::Closed(CloseReason::Server { code, .. }) = closed else { panic!("{closed:?}") };
    assert!(matches!(code, CloseCode::Revoked | CloseCode::Unauthenticated), "{code:?}");

    within_bound("the end", bob.sign_out()).await.unwrap();
    assert!(matches!(bob.ping().await, Err(RequestError::Closed(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_waited_in_a_file_goes_out_in_the_next_life_of_the_application() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = || Box::new(FileOutbox::open(folder.path().join("outbox")).unwrap());
    // The device's first run finds no server.
    let nowhere = options(&server, ALICE, "phone").server("127.0.0.1:9").outbox(file());
    let (alice, _events) = nowhere.connect().unwrap();
    let ticket = alice.submit(alice.draft(&eid(BOB), Content::Text("from before".to_owned()))).unwrap();
    alice.close().await;
    assert!(matches!(ticket.await, Err(SendError::Unanswered(_))));
    drop(alice);

    let (_bob, mut bobs) = device(&server, BOB, "phone").await;
    let (_alice, mut alices) = options(&server, ALICE, "phone").outbox(file()).connect().unwrap();
    next(&mut alices, "the answer", |event| matches!(event, Event::Accepted(_)).then_some(())).await;
    let text = next(&mut bobs, "the text", |event| match event {
        Event::Message(message) => message.text().map(str::to_owned),
        _ => None,
    });
    assert_eq!(text.await, "from before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_in_a_log_that_the_server_lost_skips_nothing_of_the_present_one() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = || FileOutbox::open(folder.path().join("outbox")).unwrap();
    // Of the log before, the device had seen 50 entries.
    let mut outbox = file();
    outbox.load(&eid(BOB)).unwrap();
    outbox.advance(Sequence::from(50)).unwrap();
    drop(outbox);
    let (alice, _alices) = device(&server, ALICE, "phone").await;
    for number in 1..=3 {
        alice.send_text(&eid(BOB), number.to_string()).await.unwrap();
    }
    let (bob, mut bobs) = options(&server, BOB, "phone").outbox(Box::new(file())).connect().unwrap();
    let session = within_bound("a session", bob.connected()).await.unwrap();
    assert!(session.gap, "{session:?}");
    for number in 1..=3 {
        let text = next(&mut bobs, "a message", |event| match event {
            Event::Message(message) => message.text().map(str::to_owned),
            _ => None,
        });
        assert_eq!(text.await, number.to_string());
    }
    within_bound("the end", bob.close()).await;
    while bobs.next().await.is_some() {}
    drop(bob);
    assert_eq!(file().load(&eid(BOB)).unwrap().cursor, Some(Sequence::from(3)));
}

fn command(server: &TestServer, user: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bimip"));
    command
        .args(arguments)
        .args(["--as", user, "--server", &server.quic_address().to_string(), "--data-dir"])
        .arg(&server.config().data_dir)
        .env_clear();
    command
}

/// Runs the program as this user. Returns whether it succeeded, standard output and standard error.
async fn program(server: &TestServer, user: &str, arguments: &[&str]) -> (bool, String, String) {
    let mut command = command(server, user, arguments);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// The first status that `bimip presence --watch` prints for this user.
async fn watched(server: &TestServer, user: &str) -> String {
    let mut child = command(server, user, &["presence", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let read = tokio::task::spawn_blocking(move || {
        lines.map_while(Result::ok).find_map(|line| object(&line)["status"].as_str().map(str::to_owned))
    });
    let status = within_bound("a change", read).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    status.expect("a change before the program ended")
}

async fn prints(server: &TestServer, user: &str, arguments: &[&str]) -> String {
    let (success, out, err) = program(server, user, arguments).await;
    assert!(success && err.is_empty(), "{arguments:?}: {err}");
    out
}

fn object(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_lists_blocks_and_shows_presence() {
    let server = TestServer::start().await;
    let run = async |user, arguments: &[&str]| prints(&server, user, arguments).await;
    assert_eq!(run(ALICE, &["contacts"]).await, "nobody\n");
    let add = ["contacts", "add", BOB, "--nickname", "Bob", "--group", "friends", "--no-location"];
    assert_eq!(run(ALICE, &add).await, format!("added {BOB}\n"));
    let updated = object(&run(ALICE, &["contacts", "add", BOB, "--nickname", "Bobby", "--json"]).await);
    assert_eq!((updated["event"].as_str(), updated["eid"].as_str()), (Some("updated"), Some(BOB)));
    assert_eq!(run(ALICE, &["contacts", "list"]).await, format!("{BOB} \"Bobby\", sees locations\n"));
    assert_eq!(object(&run(ALICE, &["contacts", "--json"]).await)["share_location"], true);

    let (_alice, _alices) = device(&server, ALICE, "phone").await;
    assert_eq!(object(&run(ALICE, &["presence", "--set", "dnd", "--json"]).await)["status"], "do_not_disturb");
    let seen = object(&run(BOB, &["presence", "--of", ALICE, "--json"]).await);
    assert_eq!((seen["from"].as_str(), seen["status"].as_str()), (Some(ALICE), Some("do_not_disturb")));
    assert_eq!(watched(&server, BOB).await, "do_not_disturb");
    let (success, _, err) = program(&server, BOB, &["presence", "--for", "1"]).await;
    assert!(!success && err.contains("--watch"), "{err}");

    assert_eq!(run(ALICE, &["block", BOB]).await, format!("blocked {BOB}\n"));
    assert_eq!(object(&run(BOB, &["presence", "--of", ALICE, "--json"]).await)["status"], "unknown");
    assert_eq!(object(&run(ALICE, &["block", BOB, "--undo", "--json"]).await)["event"], "unblocked");
    assert_eq!(run(ALICE, &["contacts", "remove", BOB]).await, format!("removed {BOB}\n"));
    let (success, out, err) = program(&server, ALICE, &["contacts", "remove", BOB]).await;
    assert!(!success && out.is_empty() && err.contains("not in the list"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_revokes() {
    let server = TestServer::start().await;
    let (phone, _phones) = device(&server, ALICE, "phone").await;
    let printed = prints(&server, ALICE, &["revoke", "--of-device", "phone", "--json"]).await;
    let revoked = object(&printed);
    assert_eq!((revoked["what"].as_str(), revoked["device"].as_str()), (Some("device"), Some("phone")));
    let mut state = phone.state();
    within_bound("the end", state.wait_for(|state| matches!(state, State::Closed(_)))).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, server.token(BOB, None)).unwrap();
    let path = path.to_str().unwrap();
    let printed = prints(&server, BOB, &["revoke", "--token", path]).await;
    assert_eq!(printed, format!("revoked for {BOB}: the token in {path}\n"));
    let (success, _, err) = program(&server, BOB, &["contacts", "--token-file", path]).await;
    assert!(!success && err.contains("does not let"), "{err}");
    let (success, _, err) = program(&server, BOB, &["revoke", "--user", ALICE, "--all"]).await;
    assert!(!success && err.contains("403"), "{err}");
    assert!(!program(&server, BOB, &["revoke"]).await.0);
}
