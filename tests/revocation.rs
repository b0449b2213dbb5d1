//! Token revocation: one token, a device, a user; who may revoke, since when it holds, and which sessions it closes
//! (BIMip-Foundation 4.3, 5.4; protocol.md §13).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use bimip::auth::dev::DevFiles;
use bimip::auth::{Grant, Signer};
use bimip::wire::proto::{TokenRevokeRequest, TokenRevokeResponse};
use bimip::wire::{CloseCode, Eid, Identity, Lane, Payload};

use common::{Bystanders, Got, Raw, TestServer, identity, now_ms, now_s, sign};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";
const SUCCESS: i32 = 1;
const FAILED: i32 = 2;

fn device(eid: &str, device: &str) -> Identity {
    Identity { eid: eid.to_owned(), connection_resource_id: device.to_owned() }
}

async fn revoke(raw: &mut Raw, to: Identity, token: &str) -> Got<TokenRevokeResponse> {
    let before = now_ms();
    let request =
        TokenRevokeRequest { to: Some(to.clone()), token: token.to_owned(), r#type: 1, timestamp: before, rtt: 0 };
    let request_id = raw.send(Lane::Control, Payload::TokenRevokeRequest(request)).await;
    let response = raw.expect::<TokenRevokeResponse>(Lane::Control).await;
    assert_eq!((response.request_id, response.r#type, &response.to), (request_id, 2, &Some(to)));
    assert!((before..=now_ms()).contains(&response.timestamp), "{response:?}");
    assert_eq!(response.rtt, response.timestamp - before);
    assert!(!format!("{response:?}").contains("eyJ"), "no token comes back");
    response
}

async fn is_refused(server: &TestServer, (eid, device): (&str, &str), token: &str) {
    let (mut raw, request_id) = server.session(eid, device).token(token).attempt().await;
    raw.expect_error(Lane::Control, 401, request_id).await;
    raw.expect_close(CloseCode::Unauthenticated).await;
}

async fn is_accepted(server: &TestServer, (eid, device): (&str, &str), token: &str) -> Raw {
    let mut raw = server.session(eid, device).token(token).open().await;
    raw.ping().await;
    raw
}

fn issued(server: &TestServer, eid: &str, second: i64) -> String {
    server.token_at(eid, None, second, Duration::from_secs(3600))
}

#[tokio::test]
async fn one_token_is_refused_and_its_sessions_close() {
    let server = TestServer::start().await;
    let (lost, kept) = (server.token(ALICE, None), server.token(ALICE, None));
    let mut phone = server.session(ALICE, "phone").token(lost.clone()).open().await;
    let mut tablet = server.session(ALICE, "tablet").token(lost.clone()).open().await;
    let mut desk = server.session(ALICE, "desk").token(kept.clone()).open().await;
    assert_eq!(revoke(&mut desk, identity(ALICE), &lost).await.status, SUCCESS);
    phone.expect_close(CloseCode::Revoked).await;
    tablet.expect_close(CloseCode::Revoked).await;
    desk.ping().await;
    // Revoking again succeeds.
    assert_eq!(revoke(&mut desk, identity(ALICE), &lost).await.status, SUCCESS);
    let server = server.restart().await;
    is_refused(&server, (ALICE, "phone"), &lost).await;
    is_refused(&server, (ALICE, "desk"), &lost).await;
    is_accepted(&server, (ALICE, "phone"), &kept).await;
}

#[tokio::test]
async fn who_revokes_its_own_token_is_answered_before_it_is_closed() {
    let server = TestServer::start().await;
    let token = server.token(ALICE, None);
    let mut phone = server.session(ALICE, "phone").token(token.clone()).open().await;
    assert_eq!(revoke(&mut phone, identity(ALICE), &token).await.status, SUCCESS);
    phone.expect_close(CloseCode::Revoked).await;
    is_refused(&server, (ALICE, "phone"), &token).await;
}

#[tokio::test]
async fn a_devices_tokens_up_to_that_second_are_refused_on_it_alone() {
    let mut server = TestServer::start().await;
    let token = server.token(ALICE, None);
    let mut phone = server.session(ALICE, "phone").token(token.clone()).open().await;
    let mut desk = server.session(ALICE, "desk").token(token.clone()).open().await;
    let second = revoke(&mut desk, device(ALICE, "phone"), "").await.timestamp / 1000;
    phone.expect_close(CloseCode::Revoked).await;
    desk.ping().await;
    let (before, same, after) =
        (issued(&server, ALICE, second - 100), issued(&server, ALICE, second), issued(&server, ALICE, second + 1));
    for _ in 0..2 {
        for token in [&token, &before, &same] {
            is_refused(&server, (ALICE, "phone"), token).await;
        }
        is_accepted(&server, (ALICE, "desk"), &same).await;
        is_accepted(&server, (ALICE, "phone"), &after).await;
        server = server.restart().await;
    }
}

#[tokio::test]
async fn a_device_that_is_revoked_gives_its_place_back_and_begins_anew() {
    let server = TestServer::start().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    bob.say(ALICE, "local-1", "one").await;
    let mut lost = server.sign_in(ALICE, "lost").await;
    lost.hear().await;
    lost.sync(1).await;
    let mut others = Vec::new();
    for n in 2..=16 {
        others.push(server.sign_in(ALICE, &format!("device-{n}")).await);
    }
    let (mut refused, request_id) = server.session(ALICE, "device-17").attempt().await;
    refused.expect_error(Lane::Control, 403, request_id).await;
    let desk = &mut others[0];
    let second = revoke(desk, device(ALICE, "lost"), "").await.timestamp / 1000;
    lost.expect_close(CloseCode::Revoked).await;
    // The device comes back with a newer token and starts like a new device.
    let newer = issued(&server, ALICE, second + 1);
    let found = is_accepted(&server, (ALICE, "lost"), &newer).await;
    assert_eq!(found.accept.resume_from, 0);
    found.leave();
    revoke(desk, device(ALICE, "lost"), "").await;
    server.sign_in(ALICE, "device-17").await.ping().await;
    // Revoking the whole user frees no device's place.
    let token = server.token(ALICE, None);
    revoke(desk, identity(ALICE), &token).await;
    let (mut refused, request_id) = server.session(ALICE, "device-18").attempt().await;
    refused.expect_error(Lane::Control, 403, request_id).await;
}

#[tokio::test]
async fn a_users_tokens_up_to_that_second_are_refused_on_all_devices() {
    let mut server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut phone = server.sign_in(ALICE, "phone").await;
    let mut desk = server.sign_in(ALICE, "desk").await;
    let second = revoke(&mut phone, identity("Alice@LOCALHOST"), "").await.timestamp / 1000;
    phone.expect_close(CloseCode::Revoked).await;
    desk.expect_close(CloseCode::Revoked).await;
    bystanders.assert_unharmed().await;
    let (same, after) = (issued(&server, ALICE, second), issued(&server, ALICE, second + 1));
    for _ in 0..2 {
        is_refused(&server, (ALICE, "phone"), &same).await;
        is_refused(&server, (ALICE, "never-seen"), &same).await;
        is_accepted(&server, (ALICE, "phone"), &after).await;
        is_accepted(&server, (BOB, "desk"), &issued(&server, BOB, second)).await;
        server = server.restart().await;
    }
}

#[tokio::test]
async fn only_an_admin_revokes_somebody_elses() {
    let server = TestServer::start().await;
    let alices = server.token(ALICE, None);
    let mut alice = server.session(ALICE, "phone").token(alices.clone()).open().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    for (to, token) in [(identity(ALICE), ""), (device(ALICE, "phone"), ""), (identity(ALICE), alices.as_str())] {
        let request = TokenRevokeRequest { to: Some(to), token: token.to_owned(), r#type: 1, timestamp: 0, rtt: 0 };
        let request_id = bob.send(Lane::Control, Payload::TokenRevokeRequest(request)).await;
        let error = bob.expect_error(Lane::Control, 403, request_id).await;
        assert!(!format!("{error:?}").contains("eyJ"), "{error:?}");
    }
    alice.ping().await;

    let scoped = |scope: &str| {
        let grant = Grant {
            eid: Eid::parse("root@localhost").unwrap(),
            device: None,
            ttl: Duration::from_secs(60),
            scope: Some(scope.to_owned()),
        };
        Signer::from_pem_file(&server.files().token_key).unwrap().sign(&grant, now_s()).unwrap()
    };
    let mut almost = is_accepted(&server, ("root@localhost", "almost"), &scoped("administrator nadmin")).await;
    let request = TokenRevokeRequest { to: Some(identity(ALICE)), r#type: 1, ..TokenRevokeRequest::default() };
    let request_id = almost.send(Lane::Control, Payload::TokenRevokeRequest(request)).await;
    almost.expect_error(Lane::Control, 403, request_id).await;

    let mut root = is_accepted(&server, ("root@localhost", "console"), &scoped("read admin")).await;
    assert_eq!(revoke(&mut root, identity(ALICE), &alices).await.status, SUCCESS);
    alice.expect_close(CloseCode::Revoked).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    assert_eq!(revoke(&mut root, device(ALICE, "phone"), "").await.status, SUCCESS);
    alice.expect_close(CloseCode::Revoked).await;
    assert_eq!(revoke(&mut root, identity("nobody@localhost"), "").await.status, SUCCESS);
    root.ping().await;
    bob.ping().await;
}

#[tokio::test]
async fn a_token_that_was_never_issued_to_the_user_fails() {
    let server = TestServer::start().await;
    let other = tempfile::tempdir().unwrap();
    bimip::auth::dev::ensure(other.path(), &[]).unwrap();
    let key = DevFiles::in_data_dir(other.path()).token_key;
    let hour = Duration::from_secs(3600);
    let mut alice = server.sign_in(ALICE, "phone").await;
    let forged = sign(&key, ALICE, None, now_s(), hour);
    let altered = server.token(ALICE, None).replace('.', "..");
    for bad in [forged, altered, server.token(BOB, None), "x".to_owned(), "e30.e30.".to_owned()] {
        assert_eq!(revoke(&mut alice, identity(ALICE), &bad).await.status, FAILED);
    }
    // An expired token needs no revocation.
    let expired = server.token_at(ALICE, None, now_s() - 7200, hour);
    assert_eq!(revoke(&mut alice, identity(ALICE), &expired).await.status, SUCCESS);
    alice.ping().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    for (to, r#type) in [
        (None, 1),
        (Some(Identity::default()), 1),
        (Some(identity("alice")), 1),
        (Some(device(ALICE, "a b")), 1),
        (Some(identity(ALICE)), 2),
        (Some(identity(ALICE)), -1),
    ] {
        let request = TokenRevokeRequest { to, r#type, ..TokenRevokeRequest::default() };
        let request_id = alice.send(Lane::Control, Payload::TokenRevokeRequest(request)).await;
        alice.expect_error(Lane::Control, 400, request_id).await;
    }
    // An invalid device id beside a token is refused and not echoed.
    let to = Some(device(ALICE, &"x".repeat(60 * 1024)));
    let request = TokenRevokeRequest { to, token: "x".to_owned(), r#type: 1, ..TokenRevokeRequest::default() };
    let request_id = alice.send(Lane::Control, Payload::TokenRevokeRequest(request)).await;
    alice.expect_error(Lane::Control, 400, request_id).await;
    alice.ping().await;
}

#[tokio::test]
async fn a_session_does_not_go_on_with_a_token_that_was_revoked() {
    let server = TestServer::start().await;
    let (used, revoked) = (server.token(ALICE, None), server.token(ALICE, None));
    let mut phone = server.session(ALICE, "phone").token(used.clone()).open().await;
    assert_eq!(revoke(&mut phone, identity(ALICE), &revoked).await.status, SUCCESS);
    phone.ping().await;
    let renew = server.session(ALICE, "phone").token(revoked).open;
    let request_id = phone.send(Lane::Control, Payload::SessionOpen(renew)).await;
    phone.expect_error(Lane::Control, 401, request_id).await;
    phone.expect_close(CloseCode::Unauthenticated).await;
    // A renewed session closes when its present token is revoked, not its former one.
    let newer = server.token(ALICE, None);
    let mut phone = server.session(ALICE, "phone").token(used.clone()).open().await;
    let renew = server.session(ALICE, "phone").token(newer.clone()).open;
    phone.send(Lane::Control, Payload::SessionOpen(renew)).await;
    phone.expect::<bimip::wire::proto::SessionAccept>(Lane::Control).await;
    let mut desk = server.sign_in(ALICE, "desk").await;
    assert_eq!(revoke(&mut desk, identity(ALICE), &used).await.status, SUCCESS);
    phone.ping().await;
    assert_eq!(revoke(&mut desk, identity(ALICE), &newer).await.status, SUCCESS);
    phone.expect_close(CloseCode::Revoked).await;
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn what_was_answered_survives_kill_9() {
    let directory = common::scratch();
    let server = common::Process::start(directory.path(), &[]).await;
    let key = DevFiles::in_data_dir(Path::new(directory.path())).token_key;
    let token = sign(&key, ALICE, None, now_s(), Duration::from_secs(60));
    let mut alice = server.door.session(ALICE, "phone").token(token.clone()).open().await;
    let mut bob = server.door.session(BOB, "phone").open().await;
    assert_eq!(revoke(&mut alice, identity(ALICE), &token).await.status, SUCCESS);
    let second = revoke(&mut bob, identity(BOB), "").await.timestamp / 1000;
    server.kill().await;
    let server = common::Process::start(directory.path(), &[]).await;
    let bobs = sign(&key, BOB, None, second, Duration::from_secs(60));
    for (eid, token) in [(ALICE, token), (BOB, bobs)] {
        let (mut raw, request_id) = server.door.session(eid, "phone").token(token).attempt().await;
        raw.expect_error(Lane::Control, 401, request_id).await;
        raw.expect_close(CloseCode::Unauthenticated).await;
    }
    let later = sign(&key, BOB, None, second + 1, Duration::from_secs(60));
    server.door.session(BOB, "phone").token(later).open().await.ping().await;
}
