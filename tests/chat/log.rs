//! Each user's log and the devices that tail it: off line, second devices, cursors, slow readers (protocol.md §9).

use bimip::wire::proto::{AcknowledgmentResponse, SyncAck, VersionUpdate};
use bimip::wire::{AckStatus, Lane, MessageScheme, Payload};

use super::common::{Raw, TestServer, text_of};
use super::{ALICE, BOB};

/// Sends the texts `from..=to` from alice to bob, and waits until each is accepted.
async fn send_texts(alice: &mut Raw, from: usize, to: usize) {
    for n in from..=to {
        alice.say(BOB, &format!("local-{n}"), &n.to_string()).await;
    }
}

/// Asserts that the next messages are the texts `from..=to`, and that nothing follows.
async fn hear_texts(bob: &mut Raw, from: usize, to: usize) {
    for n in from..=to {
        assert_eq!(text_of(&*bob.hear().await), n.to_string());
    }
    bob.expect_nothing_more(Lane::Chat).await;
}

#[tokio::test]
async fn what_came_while_a_user_was_away_is_delivered_in_order() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    // Bob has not signed in yet.
    send_texts(&mut alice, 1, 5).await;
    let mut bob = server.sign_in(BOB, "phone").await;
    assert_eq!((bob.accept.log_head, bob.accept.resume_from), (5, 0));
    hear_texts(&mut bob, 1, 5).await;
    bob.sync(5).await;
    bob.leave();
    send_texts(&mut alice, 6, 9).await;
    let mut bob = server.sign_in(BOB, "phone").await;
    hear_texts(&mut bob, 6, 9).await;
}

#[tokio::test]
async fn a_new_device_starts_at_the_logs_start_and_each_has_its_own_cursor() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut phone = server.sign_in(BOB, "phone").await;
    send_texts(&mut alice, 1, 3).await;
    hear_texts(&mut phone, 1, 3).await;
    phone.sync(3).await;

    let mut tablet = server.sign_in(BOB, "tablet").await;
    assert_eq!(tablet.accept.resume_from, 0);
    hear_texts(&mut tablet, 1, 3).await;
    tablet.sync(1).await;
    hear_texts(&mut server.sign_in(BOB, "tablet").await, 2, 3).await;
    hear_texts(&mut server.sign_in(BOB, "phone").await, 4, 3).await;
}

#[tokio::test]
async fn a_sync_ack_moves_the_stored_cursor_and_never_back() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    send_texts(&mut alice, 1, 5).await;
    let mut bob = server.sign_in(BOB, "phone").await;
    hear_texts(&mut bob, 1, 5).await;
    for (acknowledged, cursor) in [(0, 0), (2, 2), (4, 4), (3, 4), (0, 4)] {
        bob.sync(acknowledged).await;
        bob = server.sign_in(BOB, "phone").await;
        assert_eq!(bob.accept.resume_from, cursor, "after a SyncAck of {acknowledged}");
        hear_texts(&mut bob, cursor as usize + 1, 5).await;
    }
    let request_id = bob.send(Lane::Chat, Payload::SyncAck(SyncAck { sequence: -1 })).await;
    bob.expect_error(Lane::Chat, 400, request_id).await;
}

#[tokio::test]
async fn a_sync_ack_beyond_the_log_loses_nothing_that_comes_later() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    send_texts(&mut alice, 1, 2).await;
    let mut bob = server.sign_in(BOB, "phone").await;
    hear_texts(&mut bob, 1, 2).await;
    bob.sync(i64::MAX).await;
    bob.leave();
    send_texts(&mut alice, 3, 4).await;
    hear_texts(&mut server.sign_in(BOB, "phone").await, 3, 4).await;
}

#[tokio::test]
async fn an_acknowledged_message_moves_the_stored_cursor() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    send_texts(&mut alice, 1, 4).await;
    let mut bob = server.sign_in(BOB, "phone").await;
    for (nth, status) in [(1, AckStatus::Delivered), (3, AckStatus::Read), (2, AckStatus::Delivered)] {
        // Read from the start each time, so that any message can be acknowledged.
        bob = server.session(BOB, "phone").resume_from(0).open().await;
        let mut message = bob.hear().await;
        for _ in 1..nth {
            message = bob.hear().await;
        }
        assert_eq!(message.sequence, nth);
        let request_id = bob.acknowledge(&message, status).await;
        while bob.recv(Lane::Chat).await.request_id != request_id {}
        bob.leave();
        bob = server.sign_in(BOB, "phone").await;
        assert_eq!(bob.accept.resume_from, if nth == 2 { 3 } else { nth });
    }
    assert_eq!(text_of(&*bob.hear().await), "4");
}

#[tokio::test]
async fn resume_from_goes_before_the_stored_cursor() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    send_texts(&mut alice, 1, 5).await;
    let mut bob = server.sign_in(BOB, "phone").await;
    hear_texts(&mut bob, 1, 5).await;
    bob.sync(3).await;
    for resume_from in [4, 1, 0, 5] {
        let mut bob = server.session(BOB, "phone").resume_from(resume_from).open().await;
        assert_eq!(bob.accept.resume_from, resume_from);
        hear_texts(&mut bob, resume_from as usize + 1, 5).await;
    }
    // None of these sign-ins moved the stored cursor.
    assert_eq!(server.sign_in(BOB, "phone").await.accept.resume_from, 3);
}

#[tokio::test]
async fn a_version_update_comes_again_until_the_device_says_it_is_safe() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let first = alice.say(BOB, "local-1", "Hey Bob!").await;
    for _ in 0..2 {
        alice = server.sign_in(ALICE, "phone").await;
        let again = alice.expect::<VersionUpdate>(Lane::Chat).await;
        assert_eq!((&*again, again.sequence, again.request_id), (&*first, first.sequence, 0));
    }
    // Only the sending device gets the VersionUpdate.
    let mut tablet = server.sign_in(ALICE, "tablet").await;
    assert_eq!(tablet.hear().await.message_id, first.message_id);
    tablet.expect_nothing_more(Lane::Chat).await;

    alice.sync(first.sequence).await;
    server.sign_in(ALICE, "phone").await.expect_nothing_more(Lane::Chat).await;
}

#[tokio::test]
async fn the_log_reads_the_same_live_later_and_after_a_restart() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut tablet = server.session(ALICE, "tablet").pipelined().open().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    // Bob's texts, texts from both of alice's devices, and receipts. Each step waits for its effect on alice's phone.
    let mut live = Vec::new();
    for n in 0..10 {
        alice.post(BOB, &format!("phone-{n}"), "from the phone").await;
        let update = live_next(&mut alice, &mut live).await;
        if let Some(Payload::VersionUpdate(update)) = update.payload {
            alice.answer(&update).await;
        }
        let heard = bob.hear().await;
        bob.acknowledge(&heard, AckStatus::Read).await;
        bob.expect::<AcknowledgmentResponse>(Lane::Chat).await;
        live_next(&mut alice, &mut live).await;

        let local = format!("bob-{n}");
        bob.say(ALICE, &local, "from bob").await;
        live_next(&mut alice, &mut live).await;

        tablet.post(BOB, &format!("tablet-{n}"), "from the tablet").await;
        live_next(&mut alice, &mut live).await;
        bob.hear().await;
    }
    assert_eq!(live.len(), 40);
    // Each sequence is higher than the one before.
    assert!(live.iter().all(|scheme| scheme.sequence > 0));
    assert!(live.is_sorted_by(|one, next| one.sequence < next.sequence));

    assert_eq!(replay(&server, "phone", live.len()).await, live);
    // A new device of alice gets copies of her own messages instead of VersionUpdates, and everything else unchanged.
    let other = replay(&server, "new", live.len()).await;
    let copies =
        |of: &[MessageScheme]| of.iter().filter(|s| matches!(s.payload, Some(Payload::ChatMessage(_)))).count();
    assert_eq!((copies(&live), copies(&other)), (20, 30));

    let server = server.restart().await;
    assert_eq!(replay(&server, "phone", live.len()).await, live);
    assert_eq!(replay(&server, "new", live.len()).await, other);
}

/// The next frame. Keeps it in `live` without its request id, which only the first delivery has.
async fn live_next(alice: &mut Raw, live: &mut Vec<MessageScheme>) -> MessageScheme {
    let scheme = alice.recv(Lane::Chat).await;
    live.push(MessageScheme { request_id: 0, ..scheme.clone() });
    scheme
}

/// Alice's whole log as one of her devices sees it. Asserts that it is this many frames.
async fn replay(server: &TestServer, device: &str, frames: usize) -> Vec<MessageScheme> {
    let mut alice = server.session(ALICE, device).resume_from(0).open().await;
    let mut seen = Vec::new();
    for _ in 0..frames {
        seen.push(alice.recv(Lane::Chat).await);
    }
    alice.expect_nothing_more(Lane::Chat).await;
    seen
}

#[tokio::test]
async fn a_device_that_comes_and_goes_while_messages_come_sees_each_once() {
    const TEXTS: usize = 600;
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let sending = async {
        // In batches, so that the log grows while bob signs in.
        for flight in (1..=TEXTS).step_by(20) {
            for n in flight..flight + 20 {
                alice.post(BOB, &format!("local-{n}"), &n.to_string()).await;
            }
            for _ in 0..20 {
                alice.expect::<VersionUpdate>(Lane::Chat).await;
            }
        }
    };
    let hearing = async {
        let (mut heard, mut stay) = (0, 1);
        while heard < TEXTS {
            let mut bob = server.session(BOB, "phone").resume_from(heard as i64).open().await;
            let until = (heard + stay).min(TEXTS);
            while heard < until {
                let message = bob.hear().await;
                heard += 1;
                assert_eq!((message.sequence, text_of(&message)), (heard as i64, heard.to_string().as_str()));
            }
            bob.leave();
            // Vary the length of the stay, so that the change from reading the store to live delivery falls everywhere.
            stay = stay * 7 % 101;
        }
    };
    tokio::join!(sending, hearing);
    server.session(BOB, "phone").resume_from(TEXTS as i64).open().await.expect_nothing_more(Lane::Chat).await;
}

#[tokio::test]
async fn a_device_that_does_not_read_holds_nobody_back_and_misses_nothing() {
    // Far more than every buffer between the log and a device that does not read.
    const TEXTS: usize = 400;
    let content = "x".repeat(15 * 1024);
    // No timer of the session may wake the tail.
    let server = TestServer::with(|config| {
        config.session.open_within_ms = 600_000;
        config.session.ping_interval_ms = 60_000;
    })
    .await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut stuck = server.sign_in(BOB, "stuck").await;
    let mut tablet = server.sign_in(BOB, "tablet").await;
    for n in 1..=TEXTS {
        alice.say(BOB, &format!("local-{n}"), &content).await;
        assert_eq!(tablet.hear().await.version, n as i64);
    }
    // Its other lanes are not held back either.
    stuck.ping().await;
    for n in 1..=TEXTS {
        let message = stuck.hear().await;
        assert_eq!((message.version, message.sequence), (n as i64, n as i64));
    }
    stuck.expect_nothing_more(Lane::Chat).await;
}
