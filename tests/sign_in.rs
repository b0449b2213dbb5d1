//! Signing in, staying signed in, and being replaced (protocol.md §5).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use bimip::wire::proto::{SessionAccept, TokenRevokeRequest, TokenRevokeResponse, VersionUpdate};
use bimip::wire::{CloseCode, Identity, Lane, Payload};

use common::{Bystanders, Got, Raw, TestServer, Transport, now_ms, now_s, text_of};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";

/// Sends SessionOpen on an open session; returns the request id.
async fn renew(raw: &mut Raw, eid: &str, device: &str, token: String) -> i64 {
    let identity = Some(Identity { eid: eid.to_owned(), connection_resource_id: device.to_owned() });
    let open = bimip::wire::proto::SessionOpen { identity, token, ..Default::default() };
    raw.send(Lane::Control, Payload::SessionOpen(open)).await
}

#[tokio::test]
async fn session_accept_tells_the_device_where_it_stands() {
    let server = TestServer::with(|config| {
        config.server_name = "north".to_owned();
        config.session.ping_interval_ms = 12_000;
        config.session.max_frame_bytes = 32 * 1024;
        config.quic.idle_timeout_ms = 90_000;
    })
    .await;
    let (before, signed) = (now_ms(), now_s());
    let token = server.token_at(ALICE, None, signed, Duration::from_secs(1234));
    let mut alice = server.session("Alice@LocalHost", "phone").token(token.clone()).pipelined().open().await;
    let accept = alice.accept.clone();
    let identity = Identity { eid: ALICE.to_owned(), connection_resource_id: "phone".to_owned() };
    assert_eq!(accept.identity, Some(identity));
    assert!((before..=now_ms()).contains(&accept.server_time), "{accept:?}");
    assert_eq!((accept.log_head, accept.resume_from), (0, 0));
    assert_eq!(accept.ping_interval_ms, 12_000);
    assert_eq!(accept.max_frame_bytes, 32 * 1024);
    assert_eq!(accept.idle_timeout_ms, 90_000);
    assert_eq!(accept.token_expires_at, (signed + 1234) * 1000);
    assert_eq!(accept.server, "north");
    assert!(!accept.session_id.is_empty());

    for n in 1..=3 {
        alice.say(BOB, &format!("local-{n}"), "hello").await;
    }
    alice.sync(2).await;
    let again = server.session(ALICE, "phone").open().await.accept;
    assert_eq!((again.log_head, again.resume_from), (3, 2));
    assert_ne!(again.session_id, accept.session_id);
}

#[tokio::test]
async fn where_the_tail_really_starts_is_within_the_log() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    alice.say(BOB, "local-1", "hello").await;
    alice.say(BOB, "local-2", "hello").await;
    for (asked, start) in [(0, 0), (1, 1), (2, 2), (3, 2), (i64::MAX, 2), (-1, 0)] {
        let accept = server.session(ALICE, "phone").resume_from(asked).open().await.accept;
        assert_eq!((accept.resume_from, accept.log_head), (start, 2), "asked for {asked}");
    }
}

#[tokio::test]
async fn frames_sent_behind_session_open_are_held_and_then_served() {
    let server = TestServer::start().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut alice = server.connect().await;
    (alice.eid, alice.device) = (ALICE.to_owned(), "phone".to_owned());
    let mut open = server.session(ALICE, "phone").pipelined().open;
    open.client = "a client in a hurry".to_owned();
    let mut opening = 0;
    if Transport::HERE == Transport::Tcp {
        // On the one stream a frame before SessionOpen would block it.
        alice.open(Lane::Control).await;
        opening = alice.send(Lane::Control, Payload::SessionOpen(open.clone())).await;
    }
    alice.open(Lane::Chat).await;
    let first = alice.post(BOB, "local-1", "held").await;
    let second = alice.post(BOB, "local-2", "held too").await;
    if Transport::HERE == Transport::Quic {
        // The chat lane and its frames even precede the control lane. Once the server has answered later packets, it has
        // received them.
        bob.ping().await;
        bob.ping().await;
        alice.open(Lane::Control).await;
        opening = alice.send(Lane::Control, Payload::SessionOpen(open)).await;
    }
    let ping = bimip::wire::proto::PingPong { r#type: 1, ..Default::default() };
    let pinging = alice.send(Lane::Control, Payload::PingpongMessage(ping)).await;

    assert_eq!(alice.expect::<SessionAccept>(Lane::Control).await.request_id, opening);
    assert_eq!(alice.expect::<bimip::wire::proto::PingPong>(Lane::Control).await.request_id, pinging);
    for (request_id, version) in [(first, 1), (second, 2)] {
        let update = alice.expect::<VersionUpdate>(Lane::Chat).await;
        assert_eq!((update.request_id, update.version), (request_id, version));
    }
    assert_eq!(text_of(&*bob.hear().await), "held");
    assert_eq!(text_of(&*bob.hear().await), "held too");
}

#[tokio::test]
async fn frames_sent_behind_a_refused_session_open_are_dropped() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut mallory = server.connect().await;
    (mallory.eid, mallory.device) = (ALICE.to_owned(), "phone".to_owned());
    mallory.open(Lane::Chat).await;
    if Transport::HERE == Transport::Quic {
        // Over TCP this frame would block SessionOpen.
        mallory.post(BOB, "local-1", "never to be seen").await;
        bystanders.carol.ping().await;
    }
    mallory.open(Lane::Control).await;
    let open = server.session(ALICE, "phone").pipelined().token("forged").open;
    let opening = mallory.send(Lane::Control, Payload::SessionOpen(open)).await;
    mallory.post(BOB, "local-2", "nor this").await;
    mallory.expect_error(Lane::Control, 401, opening).await;
    mallory.expect_close(CloseCode::Unauthenticated).await;
    bystanders.assert_unharmed().await;
    // Mallory's message was not accepted either: version 1 of the chat is still free.
    let update = server.session(ALICE, "phone").pipelined().open().await.say(BOB, "local-1", "the real alice").await;
    assert_eq!(update.version, 1);
}

#[tokio::test]
async fn a_lane_opened_later_gets_what_came_before() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.session(BOB, "phone").lanes(&[Lane::Control]).open().await;
    alice.say(BOB, "local-1", "waiting for your chat lane").await;
    bob.ping().await;
    bob.open(Lane::Chat).await;
    assert_eq!(text_of(&*bob.hear().await), "waiting for your chat lane");
}

#[tokio::test]
async fn a_token_that_runs_out_ends_the_session_unless_it_was_renewed() {
    let server = TestServer::start().await;
    let now = now_s();
    let short = |seconds| server.token_at(ALICE, None, now, Duration::from_secs(seconds));
    // Longer than two sign-ins and a renewal take on a busy machine.
    let mut renewed = server.session(ALICE, "renewed").token(short(6)).open().await;
    let mut expiring = server.session(ALICE, "expiring").token(short(7)).open().await;
    assert_eq!(renewed.accept.token_expires_at, (now + 6) * 1000);

    let request_id = renew(&mut renewed, ALICE, "renewed", short(3600)).await;
    let accept = renewed.expect::<SessionAccept>(Lane::Control).await;
    assert_eq!((accept.request_id, accept.token_expires_at), (request_id, (now + 3600) * 1000));
    assert_eq!(accept.session_id, renewed.accept.session_id);
    assert_eq!(accept.identity, renewed.accept.identity);

    let error = expiring.expect_error(Lane::Control, 401, 0).await;
    assert_eq!(error.message, "token expired");
    expiring.expect_close(CloseCode::Unauthenticated).await;
    assert!(now_s() >= now + 7, "not before its time");
    // The renewed session has outlived its first token by a second.
    renewed.ping().await;
}

#[tokio::test]
async fn renewing_keeps_everything_else_as_it_is() {
    let server = TestServer::start().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    alice.say(BOB, "local-1", "before").await;
    let request_id = renew(&mut alice, ALICE, "phone", server.token(ALICE, Some("phone"))).await;
    let accept: Got<SessionAccept> = alice.expect(Lane::Control).await;
    assert_eq!((accept.request_id, accept.log_head, accept.resume_from), (request_id, 1, 1));
    // The session is still pipelined, although the renewal did not ask for it, and no entry is delivered again.
    alice.say(BOB, "local-2", "after").await;
    assert_eq!(text_of(&*bob.hear().await), "before");
    assert_eq!(text_of(&*bob.hear().await), "after");
    alice.expect_nothing_more(Lane::Chat).await;
}

#[tokio::test]
async fn a_renewal_that_is_refused_ends_the_session() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mallory = "mallory@localhost";
    for (eid, device, token) in [
        (ALICE, "phone", "forged".to_owned()),
        (ALICE, "phone", server.token_at(ALICE, None, now_s() - 3600, Duration::from_secs(60))),
        (ALICE, "phone", server.token(mallory, None)),
        (ALICE, "phone", server.token(ALICE, Some("tablet"))),
        (ALICE, "tablet", server.token(ALICE, None)),
        (mallory, "phone", server.token(mallory, None)),
    ] {
        let mut alice = server.sign_in(ALICE, "phone").await;
        let request_id = renew(&mut alice, eid, device, token).await;
        alice.expect_error(Lane::Control, 401, request_id).await;
        alice.expect_close(CloseCode::Unauthenticated).await;
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn the_same_device_signing_in_again_replaces_its_older_connection() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut tablet = server.sign_in(BOB, "tablet").await;
    let mut first = server.sign_in(BOB, "phone").await;
    for n in 1..=3 {
        let mut second = server.sign_in(BOB, "phone").await;
        first.expect_close(CloseCode::Replaced).await;
        let local = format!("local-{n}");
        alice.say(BOB, &local, &local).await;
        let seen: Vec<String> = {
            let mut seen = Vec::new();
            // From the log's start each time, because nothing was acknowledged.
            for _ in 0..n {
                seen.push(text_of(&*second.hear().await).to_owned());
            }
            seen
        };
        assert_eq!(seen.last().unwrap(), &local);
        first = second;
    }
    // Another device of the same user is not replaced.
    tablet.ping().await;
    assert_eq!(text_of(&*tablet.hear().await), "local-1");
}

#[tokio::test]
async fn a_refused_sign_in_replaces_nobody() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let (mut forger, request_id) = server.session(ALICE, "phone").token("forged").attempt().await;
    forger.expect_error(Lane::Control, 401, request_id).await;
    forger.expect_close(CloseCode::Unauthenticated).await;
    alice.ping().await;
}

#[tokio::test]
async fn a_revoked_token_signs_nobody_in_and_replaces_nobody() {
    let server = TestServer::start().await;
    let stolen = server.token(ALICE, Some("phone"));
    let mut alice = server.session(ALICE, "phone").token(server.token(ALICE, Some("phone"))).open().await;
    let revoke = TokenRevokeRequest { to: Some(alice.user()), token: stolen.clone(), r#type: 1, ..Default::default() };
    let request_id = alice.send(Lane::Control, Payload::TokenRevokeRequest(revoke)).await;
    let revoked = alice.expect::<TokenRevokeResponse>(Lane::Control).await;
    assert_eq!((revoked.request_id, revoked.status), (request_id, 1));

    let (mut thief, request_id) = server.session(ALICE, "phone").token(stolen).attempt().await;
    thief.expect_error(Lane::Control, 401, request_id).await;
    thief.expect_close(CloseCode::Unauthenticated).await;
    alice.ping().await;
}

#[tokio::test]
async fn a_user_has_at_most_16_devices() {
    let server = TestServer::start().await;
    let mut devices = Vec::new();
    for n in 1..=16 {
        devices.push(server.sign_in(ALICE, &format!("device-{n}")).await);
    }
    let (mut one_too_many, request_id) = server.session(ALICE, "device-17").attempt().await;
    let error = one_too_many.expect_error(Lane::Control, 403, request_id).await;
    assert_eq!(error.route, "session_open");
    one_too_many.expect_close(CloseCode::Unauthenticated).await;

    // The 16 devices go on, one of them over a new connection. Another user has 16 devices of its own.
    for device in &mut devices {
        device.ping().await;
    }
    devices.into_iter().for_each(Raw::leave);
    server.sign_in(ALICE, "device-7").await.ping().await;
    server.sign_in(BOB, "device-17").await.ping().await;

    // Devices count also while they are not connected, and after a restart.
    let server = server.restart().await;
    let (mut still, request_id) = server.session(ALICE, "device-17").attempt().await;
    still.expect_error(Lane::Control, 403, request_id).await;
    server.sign_in(ALICE, "device-16").await.ping().await;
}

#[tokio::test]
async fn two_servers_in_one_process_do_not_mix() {
    let (one, other) = tokio::join!(TestServer::start(), TestServer::start());
    let mut bob = other.sign_in(BOB, "phone").await;
    let mut alice = one.session(ALICE, "phone").pipelined().open().await;
    alice.say(BOB, "local-1", "to the bob over there").await;
    let mut other_alice = other.session(ALICE, "phone").pipelined().open().await;
    let update = other_alice.say(BOB, "local-1", "to the bob over here").await;
    assert_eq!((update.version, update.sequence), (1, 1));
    assert_eq!(text_of(&*bob.hear().await), "to the bob over here");
    alice.ping().await;

    // The two servers share neither keys nor metrics.
    let (mut stranger, request_id) = one.session(ALICE, "phone").token(other.token(ALICE, None)).attempt().await;
    stranger.expect_error(Lane::Control, 401, request_id).await;
    let transport = Transport::HERE.name();
    let opens = |result| format!(r#"bimip_session_opens_total{{transport="{transport}",result="{result}"}}"#);
    let (accepted, refused) = (opens("accepted"), opens("bad_token"));
    assert_eq!((one.metric(&accepted).await, one.metric(&refused).await), (1.0, 1.0));
    assert_eq!((other.metric(&accepted).await, other.metric(&refused).await), (2.0, 0.0));
}

#[tokio::test]
async fn a_server_that_stops_tells_its_devices_to_reconnect() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    alice.say(BOB, "local-1", "just in time").await;
    assert_eq!(text_of(&*bob.hear().await), "just in time");
    let stopping = tokio::spawn(server.shutdown());
    alice.expect_close(CloseCode::Draining).await;
    bob.expect_close(CloseCode::Draining).await;
    common::within_bound("the server to have stopped", stopping).await.unwrap();
}

#[tokio::test]
async fn a_server_that_stops_tells_those_who_have_not_signed_in_too() {
    let server = TestServer::start().await;
    let mut stranger = server.connect().await;
    stranger.open(Lane::Control).await;
    let stopping = tokio::spawn(server.shutdown());
    stranger.expect_close(CloseCode::Draining).await;
    common::within_bound("the server to have stopped", stopping).await.unwrap();
}
