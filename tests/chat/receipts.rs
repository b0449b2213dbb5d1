//! Acknowledgments: what a recipient may report about a message, and who is told (BIMip-Foundation 5.9.3; protocol.md §7).

use bimip::wire::proto::{AcknowledgmentRequest, AcknowledgmentResponse, ChatMessage};
use bimip::wire::{AckStatus, Lane, Payload};

use super::common::{Got, Raw, TestServer, identity, now_ms, text_of};
use super::{ALICE, BOB, CAROL};

const DELIVERED: AckStatus = AckStatus::Delivered;
const READ: AckStatus = AckStatus::Read;

/// Alice's phone has sent bob's phone a message.
async fn delivered(server: &TestServer) -> (Raw, Raw, Got<ChatMessage>) {
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    alice.say(BOB, "local-1", "Hey Bob!").await;
    let message = bob.hear().await;
    (alice, bob, message)
}

async fn acknowledge(bob: &mut Raw, message: &ChatMessage, status: AckStatus) -> Got<AcknowledgmentResponse> {
    let request_id = bob.acknowledge(message, status).await;
    let reply = bob.expect::<AcknowledgmentResponse>(Lane::Chat).await;
    assert_eq!((reply.request_id, reply.sequence), (request_id, 0));
    reply
}

#[tokio::test]
async fn an_acknowledgment_is_answered_and_reaches_every_other_device_of_both() {
    let server = TestServer::start().await;
    let (mut alice, mut bob, message) = delivered(&server).await;
    let mut tablet = server.session(ALICE, "tablet").resume_from(1).open().await;
    let mut bobs_tablet = server.session(BOB, "tablet").resume_from(1).open().await;
    for status in [DELIVERED, READ] {
        let before = now_ms();
        let reply = acknowledge(&mut bob, &message, status).await;
        assert_eq!(reply.from.as_ref().unwrap().eid, BOB);
        assert_eq!(reply.to.as_ref().unwrap().eid, ALICE);
        assert_eq!((&reply.message_id, &reply.chat_id), (&message.message_id, &message.chat_id));
        assert_eq!((reply.status, reply.up_to_version), (status.code(), 0));
        assert!((before..=now_ms()).contains(&reply.timestamp), "{reply:?}");
        for device in [&mut alice, &mut tablet, &mut bobs_tablet] {
            let receipt = device.expect::<AcknowledgmentResponse>(Lane::Chat).await;
            assert_eq!((&*receipt, receipt.request_id), (&*reply, 0));
            assert!(receipt.sequence > 0, "it comes from the log");
        }
    }
    for device in [&mut alice, &mut bob, &mut tablet, &mut bobs_tablet] {
        device.expect_nothing_more(Lane::Chat).await;
    }
    // Devices that were off line get it later, in its place in the log.
    for (eid, own) in [(ALICE, "sender"), (BOB, "receiver")] {
        let mut late = server.sign_in(eid, "late").await;
        let copy = late.hear().await;
        assert_eq!((copy.author.as_str(), copy.acknowledgment), (own, if own == "sender" { 4 } else { 1 }));
        for status in [DELIVERED, READ] {
            let receipt = late.expect::<AcknowledgmentResponse>(Lane::Chat).await;
            assert_eq!((receipt.status, &receipt.message_id), (status.code(), &message.message_id));
        }
        late.expect_nothing_more(Lane::Chat).await;
    }
}

#[tokio::test]
async fn a_state_only_moves_forward() {
    let server = TestServer::start().await;
    let (mut alice, mut bob, message) = delivered(&server).await;
    let mut tablet = server.session(BOB, "tablet").resume_from(1).open().await;
    let read = acknowledge(&mut bob, &message, READ).await;
    // Late acknowledgments from the phone, and one from the tablet, which has only now received the message: each is answered
    // with the stored state.
    assert_eq!(*acknowledge(&mut bob, &message, DELIVERED).await, *read);
    assert_eq!(*acknowledge(&mut bob, &message, READ).await, *read);
    assert_eq!(tablet.expect::<AcknowledgmentResponse>(Lane::Chat).await.status, 3);
    assert_eq!(*acknowledge(&mut tablet, &message, DELIVERED).await, *read);

    // Alice is told of the one change and of nothing else.
    assert_eq!(*alice.expect::<AcknowledgmentResponse>(Lane::Chat).await, *read);
    alice.say(BOB, "local-2", "next").await;
    assert_eq!(text_of(&*bob.hear().await), "next");

    let server = server.restart().await;
    let mut bob = server.session(BOB, "phone").resume_from(i64::MAX).open().await;
    assert_eq!(*acknowledge(&mut bob, &message, DELIVERED).await, *read);
}

#[tokio::test]
async fn a_sender_that_is_away_hears_of_it_when_it_comes_back() {
    let server = TestServer::start().await;
    let (alice, mut bob, message) = delivered(&server).await;
    let seen = alice.last_sequence;
    alice.leave();
    let reply = acknowledge(&mut bob, &message, READ).await;
    let mut alice = server.session(ALICE, "phone").resume_from(seen).open().await;
    assert_eq!(*alice.expect::<AcknowledgmentResponse>(Lane::Chat).await, *reply);
}

#[tokio::test]
async fn only_the_recipient_acknowledges() {
    let server = TestServer::start().await;
    let (mut alice, mut bob, message) = delivered(&server).await;
    let mut carol = server.sign_in(CAROL, "phone").await;
    for stranger in [&mut alice, &mut carol] {
        for status in [DELIVERED, READ] {
            let request_id = stranger.acknowledge(&message, status).await;
            let error = stranger.expect_error(Lane::Chat, 403, request_id).await;
            assert_eq!(error.route, "acknowledgment_request");
        }
    }
    // None of these was stored, and alice was told of none.
    assert_eq!(acknowledge(&mut bob, &message, DELIVERED).await.status, 2);
    assert_eq!(alice.expect::<AcknowledgmentResponse>(Lane::Chat).await.status, 2);
    bob.expect_nothing_more(Lane::Chat).await;
}

#[tokio::test]
async fn an_acknowledgment_of_nothing_is_refused() {
    let server = TestServer::start().await;
    let (mut alice, mut bob, message) = delivered(&server).await;
    let right = AcknowledgmentRequest {
        from: Some(bob.identity()),
        to: Some(identity(ALICE)),
        message_id: message.message_id.clone(),
        status: 2,
        timestamp: now_ms(),
        ..AcknowledgmentRequest::default()
    };
    let unknown = || "01890000-0000-7000-8000-000000000000".to_owned();
    let wrong = [
        (404, AcknowledgmentRequest { message_id: unknown(), ..right.clone() }),
        (400, AcknowledgmentRequest { message_id: String::new(), ..right.clone() }),
        (400, AcknowledgmentRequest { message_id: "srv-456".into(), ..right.clone() }),
        (400, AcknowledgmentRequest { status: 0, ..right.clone() }),
        (400, AcknowledgmentRequest { status: 1, ..right.clone() }),
        (400, AcknowledgmentRequest { status: 4, ..right.clone() }),
        (400, AcknowledgmentRequest { status: 5, ..right.clone() }),
        (400, AcknowledgmentRequest { to: None, ..right.clone() }),
        (400, AcknowledgmentRequest { to: Some(identity("alice")), ..right.clone() }),
    ];
    for (code, request) in wrong {
        let request_id = bob.send(Lane::Chat, Payload::AcknowledgmentRequest(request)).await;
        let error = bob.expect_error(Lane::Chat, code, request_id).await;
        assert_eq!(error.route, "acknowledgment_request");
    }
    assert_eq!(acknowledge(&mut bob, &message, DELIVERED).await.status, 2);
    assert_eq!(alice.expect::<AcknowledgmentResponse>(Lane::Chat).await.status, 2);
}

#[tokio::test]
async fn one_acknowledgment_may_be_for_all_up_to_a_version() {
    let server = TestServer::start().await;
    let (mut alice, mut bob, first) = delivered(&server).await;
    for n in 2..=4 {
        alice.say(BOB, &format!("local-{n}"), "more").await;
    }
    let second = bob.hear().await;
    bob.hear().await;
    let fourth = bob.hear().await;
    let request = AcknowledgmentRequest {
        from: Some(bob.identity()),
        to: Some(identity(ALICE)),
        status: 3,
        timestamp: now_ms(),
        chat_id: first.chat_id.clone(),
        up_to_version: 3,
        ..AcknowledgmentRequest::default()
    };
    let request_id = bob.send(Lane::Chat, Payload::AcknowledgmentRequest(request)).await;
    let reply = bob.expect::<AcknowledgmentResponse>(Lane::Chat).await;
    assert_eq!((reply.request_id, reply.status, reply.up_to_version), (request_id, 3, 3));
    assert_eq!((reply.message_id.as_str(), &reply.chat_id), ("", &first.chat_id));
    assert_eq!((reply.from.as_ref().unwrap().eid.as_str(), reply.to.as_ref().unwrap().eid.as_str()), (BOB, ALICE));
    assert_eq!(*alice.expect::<AcknowledgmentResponse>(Lane::Chat).await, *reply);
    // The bulk acknowledgment covered the second message, but not the fourth.
    assert_eq!(acknowledge(&mut bob, &second, DELIVERED).await.status, 3);
    assert_eq!(acknowledge(&mut bob, &fourth, DELIVERED).await.status, 2);
    let receipt = alice.expect::<AcknowledgmentResponse>(Lane::Chat).await;
    assert_eq!((receipt.status, &receipt.message_id), (2, &fourth.message_id));
}

#[tokio::test]
async fn a_message_that_is_named_is_the_one_whatever_else_is_given() {
    let server = TestServer::start().await;
    let (mut alice, mut bob, first) = delivered(&server).await;
    alice.say(BOB, "local-2", "more").await;
    let second = bob.hear().await;
    for chat_id in [first.chat_id.clone(), "0".repeat(32)] {
        let request = AcknowledgmentRequest {
            from: Some(bob.identity()),
            to: Some(identity(ALICE)),
            message_id: first.message_id.clone(),
            status: 3,
            timestamp: now_ms(),
            chat_id,
            up_to_version: 2,
        };
        bob.send(Lane::Chat, Payload::AcknowledgmentRequest(request)).await;
        let reply = bob.expect::<AcknowledgmentResponse>(Lane::Chat).await;
        assert_eq!((&reply.message_id, reply.status, reply.up_to_version), (&first.message_id, 3, 0));
    }
    assert_eq!(acknowledge(&mut bob, &second, DELIVERED).await.status, 2, "it was not read");
}

#[tokio::test]
async fn without_a_time_or_with_one_to_come_an_acknowledgment_counts_from_now() {
    let server = TestServer::start().await;
    let (mut alice, mut bob, mut message) = delivered(&server).await;
    for timestamp in [0, now_ms() + 3_600_000] {
        let request = AcknowledgmentRequest {
            from: Some(bob.identity()),
            to: Some(identity(ALICE)),
            message_id: message.message_id.clone(),
            status: 3,
            timestamp,
            ..AcknowledgmentRequest::default()
        };
        let before = now_ms();
        bob.send(Lane::Chat, Payload::AcknowledgmentRequest(request)).await;
        let reply = bob.expect::<AcknowledgmentResponse>(Lane::Chat).await;
        assert!((before..=now_ms()).contains(&reply.timestamp), "{reply:?}");
        assert_eq!(alice.expect::<AcknowledgmentResponse>(Lane::Chat).await.timestamp, reply.timestamp);
        alice.say(BOB, &format!("local-{timestamp}"), "more").await;
        message = bob.hear().await;
    }
}
