//! Logout: a device signs out, or leaves for now (BIMip-Foundation 4.6, 5.7; protocol.md §13).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use bimip::wire::proto::{Logout, SubscriberListRequest};
use bimip::wire::{CloseCode, Lane, Payload};

use common::{Bystanders, Raw, TestServer, identity, now_ms, now_s, text_of};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";

/// Sends Logout and expects the answer and the close.
async fn log_out(raw: &mut Raw, status: i32, r#type: i32) {
    let before = now_ms();
    let logout = Logout { entity: Some(raw.user()), r#type, status, timestamp: before };
    let request_id = raw.send(Lane::Control, Payload::Logout(logout)).await;
    let response = raw.expect::<Logout>(Lane::Control).await;
    assert_eq!((response.request_id, response.r#type, response.status), (request_id, 2, 3));
    assert_eq!(response.entity, Some(raw.identity()));
    assert!((before..=now_ms()).contains(&response.timestamp));
    raw.expect_close(CloseCode::Goodbye).await;
}

async fn is_refused(server: &TestServer, device: &str, token: &str) {
    let (mut raw, request_id) = server.session(ALICE, device).token(token).attempt().await;
    raw.expect_error(Lane::Control, 401, request_id).await;
    raw.expect_close(CloseCode::Unauthenticated).await;
}

#[tokio::test]
async fn a_device_that_signs_out_loses_its_token_and_its_place_in_the_log() {
    let mut server = TestServer::start().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    let mut desk = server.sign_in(ALICE, "desk").await;
    for (n, (status, r#type)) in [(0, 1), (3, 1), (4, 1), (0, 0)].into_iter().enumerate() {
        bob.say(ALICE, &format!("local-{n}"), &n.to_string()).await;
        let token = server.token(ALICE, None);
        let mut phone = server.session(ALICE, "phone").token(token.clone()).open().await;
        assert_eq!(phone.accept.resume_from, 0, "a device that signed out is new again");
        for _ in 0..=n {
            phone.hear().await;
        }
        phone.sync(phone.last_sequence).await;
        log_out(&mut phone, status, r#type).await;
        is_refused(&server, "phone", &token).await;
        is_refused(&server, "another", &token).await;
        desk.ping().await;
        if n == 1 {
            server = server.restart().await;
            is_refused(&server, "phone", &token).await;
            bob = server.session(BOB, "phone").pipelined().resume_from(i64::MAX).open().await;
            desk = server.sign_in(ALICE, "desk").await;
        }
    }
}

#[tokio::test]
async fn a_device_that_leaves_for_now_forgets_nothing() {
    let server = TestServer::start().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    bob.say(ALICE, "local-1", "one").await;
    let token = server.token(ALICE, Some("phone"));
    let mut phone = server.session(ALICE, "phone").token(token.clone()).open().await;
    phone.hear().await;
    phone.sync(1).await;
    log_out(&mut phone, 1, 1).await;
    bob.say(ALICE, "local-2", "two").await;
    let mut phone = server.session(ALICE, "phone").token(token).open().await;
    assert_eq!(phone.accept.resume_from, 1);
    assert_eq!(text_of(&*phone.hear().await), "two");
}

#[tokio::test]
async fn only_the_token_that_signed_out_is_refused() {
    let server = TestServer::start().await;
    let (first, other) = (server.token(ALICE, None), server.token(ALICE, None));
    let mut phone = server.session(ALICE, "phone").token(first.clone()).open().await;
    let mut desk = server.session(ALICE, "desk").token(other.clone()).open().await;
    log_out(&mut phone, 3, 1).await;
    is_refused(&server, "phone", &first).await;
    desk.ping().await;
    server.session(ALICE, "phone").token(other).open().await.ping().await;
}

#[tokio::test]
async fn another_session_with_the_token_that_signed_out_is_closed() {
    let server = TestServer::start().await;
    let token = server.token(ALICE, None);
    let mut phone = server.session(ALICE, "phone").token(token.clone()).open().await;
    let mut desk = server.session(ALICE, "desk").token(token).open().await;
    log_out(&mut phone, 0, 1).await;
    desk.expect_close(CloseCode::Revoked).await;
}

#[tokio::test]
async fn signing_out_makes_room_for_another_device() {
    let server = TestServer::start().await;
    let mut devices = Vec::new();
    for n in 0..16 {
        devices.push(server.sign_in(ALICE, &format!("device-{n}")).await);
    }
    let (mut refused, request_id) = server.session(ALICE, "device-16").attempt().await;
    refused.expect_error(Lane::Control, 403, request_id).await;
    log_out(&mut devices[3], 3, 1).await;
    server.sign_in(ALICE, "device-16").await.ping().await;
    // A device that leaves for now keeps its place.
    log_out(&mut devices[5], 1, 1).await;
    let (mut refused, request_id) = server.session(ALICE, "device-17").attempt().await;
    refused.expect_error(Lane::Control, 403, request_id).await;
}

#[tokio::test]
async fn what_is_no_logout_is_refused_and_the_session_goes_on() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let own = Some(alice.identity());
    let tablet = Some(bimip::wire::Identity { connection_resource_id: "tablet".into(), ..identity(ALICE) });
    for (code, entity, r#type, status) in [
        (400, own.clone(), 2, 3),
        (400, own.clone(), 3, 3),
        (400, own.clone(), 1, 2),
        (400, own.clone(), 1, 5),
        (400, own, 1, -1),
        (400, None, 1, 3),
        (403, tablet, 1, 3),
        (403, Some(identity(BOB)), 1, 1),
    ] {
        let logout = Logout { entity, r#type, status, timestamp: now_ms() };
        let request_id = alice.send(Lane::Control, Payload::Logout(logout)).await;
        alice.expect_error(Lane::Control, code, request_id).await;
    }
    alice.ping().await;
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn a_token_issued_later_signs_the_device_in_again() {
    let server = TestServer::start().await;
    let mut phone = server.sign_in(ALICE, "phone").await;
    log_out(&mut phone, 3, 1).await;
    // Also a token issued in the same second is good: Logout revoked one token, not the device.
    let token = server.token_at(ALICE, Some("phone"), now_s(), Duration::from_secs(60));
    server.session(ALICE, "phone").token(token).open().await.ping().await;
}

/// While the list is read, the session takes nothing else from control.
#[tokio::test]
async fn a_logout_right_before_the_close_counts_also_behind_another_request() {
    let server = TestServer::start().await;
    let token = server.token(ALICE, None);
    let mut desk = server.session(ALICE, "desk").token(token.clone()).open().await;
    let requests = |phone: &Raw| {
        let list = SubscriberListRequest { owner: Some(phone.user()) };
        let logout = Logout { entity: Some(phone.user()), r#type: 1, status: 3, timestamp: now_ms() };
        vec![Payload::SubscriberListRequest(list), Payload::Logout(logout)]
    };
    server.leave_behind(ALICE, token, Lane::Control, requests).await;
    desk.expect_close(CloseCode::Revoked).await;
}
