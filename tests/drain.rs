//! SIGTERM during a conversation: what was answered is kept, the rest is done completely or not at all (protocol.md §14).
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::process::Stdio;

use bimip::auth::dev::DevFiles;
use bimip::wire::{ALPN, CloseCode, Lane, Payload};

use common::{Dice, Process, Raw, client_tls, half_open, program, scratch, text_of, within_bound};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";

/// The VersionUpdates that a sender has seen: `message_id_local` to version and message id.
type Answers = BTreeMap<String, (i64, String)>;

/// Reads VersionUpdates until the server ends the lane, or until there are `enough`.
async fn answers(alice: &mut Raw, answers: &mut Answers, enough: usize) {
    while answers.len() < enough {
        let next = within_bound("an answer, or the end", alice.try_recv(Lane::Chat)).await;
        let Ok(scheme) = next else { return };
        match scheme.payload {
            Some(Payload::VersionUpdate(update)) => {
                answers.insert(update.message_id_local, (update.version, update.message_id));
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn signalled_while_a_send_is_under_way(signal: i32, pipelined: bool, after: usize) {
    const MESSAGES: usize = 300;
    let directory = scratch();
    // Longer than the test, so that messages of a sender that is not pipelined still wait for its answer.
    let variables = [("BIMIP_SESSION__RELEASE_WITHIN_MS", "60000")];
    let mut server = Process::start(directory.path(), &variables).await;
    let sign_in = server.door.session(ALICE, "phone");
    let mut alice = if pipelined { sign_in.pipelined() } else { sign_in }.open().await;
    let mut idle = server.door.session("carol@localhost", "phone").open().await;
    let (mut known, mut sent) = (Answers::new(), 0);
    // When the signal comes, some messages are answered and all others are in flight.
    while sent < MESSAGES {
        sent += 1;
        alice.post(BOB, &format!("local-{sent}"), &sent.to_string()).await;
        if sent == MESSAGES / 2 {
            answers(&mut alice, &mut known, after).await;
            server.signal(signal);
        }
        if sent > MESSAGES / 2 && sent % 10 == 0 {
            // The server may stop reading at any moment, and writing to a full lane would block the test.
            break;
        }
    }
    answers(&mut alice, &mut known, usize::MAX).await;
    alice.expect_close(CloseCode::Draining).await;
    idle.expect_close(CloseCode::Draining).await;
    let status = server.ended().await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(known.len() >= after);

    let mut server = Process::start(directory.path(), &[]).await;
    let mut alice = server.door.session(ALICE, "phone").pipelined().resume_from(i64::MAX).open().await;
    let before = known.clone();
    for n in 1..=sent {
        alice.post(BOB, &format!("local-{n}"), &n.to_string()).await;
    }
    let mut again = Answers::new();
    answers(&mut alice, &mut again, sent).await;
    before.iter().for_each(|(local, answer)| assert_eq!(again.get(local), Some(answer), "{local}"));
    let mut bob = server.door.session(BOB, "phone").open().await;
    for version in 1..=sent {
        let message = bob.hear().await;
        assert_eq!(message.version, version as i64);
        let answer = again.get(&message.message_id_local).map(|(version, id)| (*version, id.as_str()));
        assert_eq!(answer, Some((message.version, message.message_id.as_str())));
        assert_eq!(format!("local-{}", text_of(&message)), message.message_id_local);
    }
    bob.expect_nothing_more(Lane::Chat).await;
    server.signal(libc::SIGTERM);
    assert_eq!(server.ended().await.code(), Some(0));
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[tokio::test]
async fn a_terminated_server_answers_or_has_not_taken_what_was_under_way() {
    let mut dice = Dice::new(1);
    for _ in 0..3 {
        signalled_while_a_send_is_under_way(libc::SIGTERM, true, dice.roll(150)).await;
    }
}

#[tokio::test]
async fn messages_that_wait_for_their_senders_answer_are_not_lost_by_draining() {
    signalled_while_a_send_is_under_way(libc::SIGTERM, false, 100).await;
}

#[tokio::test]
async fn an_interrupt_drains_too() {
    signalled_while_a_send_is_under_way(libc::SIGINT, true, 20).await;
}

#[tokio::test]
async fn handshakes_that_nobody_finishes_are_not_waited_for() {
    let directory = scratch();
    let mut server = Process::start(directory.path(), &[]).await;
    let mut idle = server.door.session(ALICE, "phone").open().await;
    let tls = client_tls(&DevFiles::in_data_dir(directory.path()).ca, ALPN);
    let _over_quic = within_bound("answers", half_open(tls, server.door.address, 3)).await;
    let _over_tcp = tokio::net::TcpStream::connect(server.door.address).await.unwrap();
    server.signal(libc::SIGTERM);
    idle.expect_close(CloseCode::Draining).await;
    assert_eq!(server.ended().await.code(), Some(0));
    // The server logs "cut off" when the time for draining runs out.
    assert!(!server.log().contains("cut off"), "{}", server.log());
}

#[tokio::test]
async fn a_second_server_on_the_same_directory_says_that_it_is_in_use() {
    let directory = scratch();
    let mut server = Process::start(directory.path(), &[]).await;
    let mut alice = server.door.session(ALICE, "phone").open().await;
    let second = program(directory.path()).env("BIMIP_LOG__LEVEL", "error").stdin(Stdio::null()).output();
    let second = within_bound("the second server to give up", second).await.unwrap();
    let complaint = String::from_utf8(second.stderr).unwrap();
    assert_eq!((second.status.code(), second.stdout.is_empty()), (Some(1), true), "{complaint}");
    assert_eq!(complaint.lines().filter(|line| line.starts_with("bimip: ")).count(), 1, "{complaint}");
    assert!(complaint.lines().count() <= 2, "one line, and a hint at most: {complaint}");
    assert!(complaint.contains("another process"), "{complaint}");
    assert!(complaint.contains(&*directory.path().to_string_lossy()), "{complaint}");
    // The first server still works.
    alice.ping().await;
    alice.say(BOB, "local-1", "still here").await;
    server.signal(libc::SIGTERM);
    assert_eq!(server.ended().await.code(), Some(0));
    // After its end the directory is free again.
    let server = Process::start(directory.path(), &[]).await;
    server.door.session(ALICE, "phone").open().await.ping().await;
}
