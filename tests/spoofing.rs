//! A client that claims to be another user, or names what belongs to another user, learns nothing and changes nothing.
//!
//! `tests/refusals/requests.rs` tries the `from`, `owner` and `entity` of every request, `tests/refusals/tokens.rs` tries
//! tokens. This file tries the other identities and names of requests.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

mod common;

use bimip::wire::proto::{
    AcknowledgmentRequest, AwarenessNotification, HistoryPage, HistoryRequest, SyncAck, TokenRevokeRequest,
};
use bimip::wire::{CloseCode, ErrorMessage, Identity, Lane, Payload};

use common::{Bystanders, TestServer, identity, text_of};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";
const EVE: &str = "eve@localhost";

fn device(eid: &str, device: &str) -> Identity {
    Identity { eid: eid.to_owned(), connection_resource_id: device.to_owned() }
}

#[tokio::test]
async fn nobody_else_answers_a_version_update() {
    let server = TestServer::with(|config| config.session.release_within_ms = 60_000).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut desk = server.sign_in(ALICE, "desk").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut eve = server.sign_in(EVE, "phone").await;
    let update = alice.say(BOB, "local-1", "not yet").await;
    for other in [&mut desk, &mut bob, &mut eve] {
        other.answer(&update).await;
        other.expect_nothing_more(Lane::Chat).await;
    }
    // Alice's second message waits for the first one.
    let second = alice.say(BOB, "local-2", "now").await;
    alice.answer(&second).await;
    bob.expect_nothing_more(Lane::Chat).await;
    alice.answer(&update).await;
    assert_eq!(text_of(&*bob.hear().await), "not yet");
    assert_eq!(text_of(&*bob.hear().await), "now");
}

#[tokio::test]
async fn nobody_reads_or_acknowledges_somebody_elses_chat() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut eve = server.sign_in(EVE, "phone").await;
    alice.say(BOB, "local-1", "for bob alone").await;
    let message = bob.hear().await;
    for peer in [ALICE, BOB] {
        let request = HistoryRequest { peer: Some(identity(peer)), ..HistoryRequest::default() };
        eve.send(Lane::Chat, Payload::HistoryRequest(request)).await;
        assert_eq!(eve.expect::<HistoryPage>(Lane::Chat).await.messages, []);
    }
    let by_id = AcknowledgmentRequest {
        from: Some(eve.identity()),
        to: Some(identity(ALICE)),
        message_id: message.message_id.clone(),
        status: 3,
        ..AcknowledgmentRequest::default()
    };
    let by_chat = AcknowledgmentRequest {
        message_id: String::new(),
        chat_id: message.chat_id.clone(),
        up_to_version: 1,
        ..by_id.clone()
    };
    for request in [by_id, by_chat] {
        let request_id = eve.send(Lane::Chat, Payload::AcknowledgmentRequest(request)).await;
        let error = eve.expect::<ErrorMessage>(Lane::Chat).await;
        assert_eq!(error.request_id, request_id);
        assert!([400, 403, 404].contains(&error.code), "{error:?}");
    }
    // Eve's SyncAck beyond the head of her own log moves no other user's cursor.
    eve.send(Lane::Chat, Payload::SyncAck(SyncAck { sequence: 1_000 })).await;
    eve.expect_nothing_more(Lane::Chat).await;
    alice.expect_nothing_more(Lane::Chat).await;
    let request = HistoryRequest { peer: Some(identity(ALICE)), ..HistoryRequest::default() };
    bob.send(Lane::Chat, Payload::HistoryRequest(request)).await;
    assert_eq!(bob.expect::<HistoryPage>(Lane::Chat).await.messages[0].acknowledgment, 1);
    let mut again = server.sign_in(BOB, "phone").await;
    assert_eq!((again.accept.resume_from, text_of(&*again.hear().await)), (0, "for bob alone"));
}

#[tokio::test]
async fn a_session_does_not_become_somebody_elses() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let (own, alices) = (server.token(EVE, None), server.token(ALICE, None));
    for (who, token) in [
        (device(ALICE, "phone"), &own),
        (device(ALICE, "phone"), &alices),
        (device(EVE, "phone"), &alices),
        (device(EVE, "tablet"), &own),
    ] {
        let mut eve = server.sign_in(EVE, "phone").await;
        let mut open = server.session(EVE, "phone").token(token).open;
        open.identity = Some(who.clone());
        let request_id = eve.send(Lane::Control, Payload::SessionOpen(open)).await;
        eve.expect_error(Lane::Control, 401, request_id).await;
        eve.expect_close(CloseCode::Unauthenticated).await;
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn nobody_revokes_for_somebody_else_or_for_a_device_of_theirs() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut eve = server.sign_in(EVE, "phone").await;
    for to in [identity(ALICE), device(ALICE, "phone"), device("ALICE@localhost", "phone")] {
        let request = TokenRevokeRequest { to: Some(to), r#type: 1, ..TokenRevokeRequest::default() };
        let request_id = eve.send(Lane::Control, Payload::TokenRevokeRequest(request)).await;
        eve.expect_error(Lane::Control, 403, request_id).await;
    }
    // A device id that alice uses too means eve's own device when eve names it with her eid.
    let request = TokenRevokeRequest { to: Some(device(EVE, "tablet")), r#type: 1, ..TokenRevokeRequest::default() };
    eve.send(Lane::Control, Payload::TokenRevokeRequest(request)).await;
    let response = eve.expect::<bimip::wire::proto::TokenRevokeResponse>(Lane::Control).await;
    assert_eq!(response.status, 1);
    alice.ping().await;
    server.sign_in(ALICE, "tablet").await.ping().await;
}

#[tokio::test]
async fn a_word_to_somebody_comes_from_who_said_it_whatever_it_claims() {
    let server = TestServer::start().await;
    let lanes = [Lane::Control, Lane::Presence];
    let mut bob = server.session(BOB, "phone").lanes(&lanes).open().await;
    let mut eve = server.session(EVE, "phone").lanes(&lanes).open().await;
    for from in [identity(ALICE), device(ALICE, "phone"), device(EVE, "tablet"), identity(BOB)] {
        let word = AwarenessNotification {
            from: Some(from),
            to: Some(identity(BOB)),
            status: 4,
            ..AwarenessNotification::default()
        };
        let request_id = eve.send(Lane::Presence, Payload::AwarenessNotification(word)).await;
        eve.expect_error(Lane::Presence, 403, request_id).await;
    }
    let word = AwarenessNotification {
        from: Some(identity("EVE@localhost")),
        to: Some(device(BOB, "another")),
        status: 4,
        last_seen: i64::MAX,
        ..AwarenessNotification::default()
    };
    eve.send(Lane::Presence, Payload::AwarenessNotification(word)).await;
    let told = bob.expect::<AwarenessNotification>(Lane::Presence).await;
    assert_eq!((told.from.clone(), told.status), (Some(identity(EVE)), 4));
    assert!(told.last_seen <= common::now_ms());
}
