//! Flood control: error 429 with the milliseconds to wait, then ABUSE, without effect on others (BIMip-Foundation 9;
//! protocol.md §15, §16).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use bimip::config::{Config, Rate};
use bimip::limits::STRIKES_MAX;
use bimip::wire::proto::{AwarenessNotification, AwarenessRequest, PingPong, SessionAccept, VersionUpdate};
use bimip::wire::{CloseCode, ErrorMessage, Lane, MessageScheme, Payload, encode_frame, envelope};

use common::{Bystanders, Raw, TestServer, identity, now_ms, text_of};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";

/// A rate so slow that almost nothing is refilled while a test runs.
fn burst_of(burst: u32) -> Rate {
    Rate { per_second: 1, burst }
}

/// The wait that error 429 demands. Asserts that it is at least 1 ms and at most 1 s, the time that a rate of one a second
/// takes.
fn wait_of(error: &ErrorMessage) -> Duration {
    assert_eq!(error.code, 429, "{error:?}");
    let wait = error.details.parse().unwrap_or_else(|_| panic!("no milliseconds: {error:?}"));
    assert!((1..=1_000).contains(&wait), "{error:?}");
    Duration::from_millis(wait)
}

fn ping() -> Payload {
    Payload::PingpongMessage(PingPong { r#type: 1, status: 1, request_time: now_ms(), ..PingPong::default() })
}

#[tokio::test]
async fn frames_over_the_burst_are_told_to_wait_and_then_served() {
    const BURST: u32 = 20;
    let limit = Rate { per_second: 20, burst: BURST };
    let server = TestServer::with(|config| config.limits.frames = limit).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut request_ids = Vec::new();
    for _ in 0..4 * BURST {
        request_ids.push(alice.send(Lane::Control, ping()).await);
    }
    let (mut served, mut wait) = (0, Duration::ZERO);
    for request_id in request_ids {
        let scheme = alice.recv(Lane::Control).await;
        assert_eq!(scheme.request_id, request_id, "each is answered, in order");
        match scheme.payload {
            Some(Payload::PingpongMessage(_)) => served += 1,
            Some(Payload::ErrorMessage(error)) => {
                assert_eq!(error.route, "pingpong_message");
                wait = wait_of(&error);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(served >= BURST && wait > Duration::ZERO, "{served} served");
    // After the given wait the session is served again.
    tokio::time::sleep(wait).await;
    alice.ping().await;
    let metric = server.metric(r#"bimip_rate_limited_total{limit="frames"}"#).await;
    assert_eq!(metric, f64::from(4 * BURST - served));
    // Each session has its own limit.
    server.sign_in(ALICE, "desk").await.ping().await;
}

#[tokio::test]
async fn messages_count_for_the_user_over_all_devices_and_what_was_refused_is_not_there() {
    let server = TestServer::with(|config| config.limits.messages = burst_of(5)).await;
    let mut phone = server.session(ALICE, "phone").pipelined().open().await;
    let mut desk = server.session(ALICE, "desk").pipelined().open().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    for n in 1..=3 {
        phone.say(BOB, &format!("phone-{n}"), "from the phone").await;
        bob.hear().await;
    }
    desk.expect::<bimip::wire::proto::ChatMessage>(Lane::Chat).await;
    for n in 1..=2 {
        desk.post(BOB, &format!("desk-{n}"), "from the desk").await;
        bob.hear().await;
    }
    // Both devices are over the limit now, for texts and for media.
    let request_id = phone.post(BOB, "phone-4", "too much").await;
    let error = loop {
        let scheme = phone.recv(Lane::Chat).await;
        if let Some(Payload::ErrorMessage(error)) = scheme.payload {
            assert_eq!(scheme.request_id, request_id);
            break error;
        }
    };
    let wait = wait_of(&error);
    // The limit affects neither other users nor frames that are not messages.
    bob.say(ALICE, "local-1", "hello").await;
    phone.ping().await;
    // After the wait the same message is accepted.
    tokio::time::sleep(wait).await;
    phone.post(BOB, "phone-4", "at last").await;
    let message = bob.hear().await;
    assert_eq!((text_of(&message), message.version), ("at last", 7));
}

#[tokio::test]
async fn what_is_sent_behind_a_message_over_the_rate_is_not_taken_before_it() {
    const MESSAGES: usize = 40;
    const BURST: usize = 20;
    let server = TestServer::with(|config| config.limits.messages = burst_of(BURST as u32)).await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    // Written at once, so that all of them are on the wire when the first is refused.
    let mut frames = Vec::new();
    let first = alice.request_id() + 1;
    for n in 0..MESSAGES {
        let text = Payload::TextPayloadRequest(alice.text(BOB, &format!("local-{n}"), &n.to_string()));
        let request_id = alice.request_id();
        frames.extend_from_slice(&encode_frame(&MessageScheme { request_id, ..envelope(text) }));
    }
    alice.try_write(Lane::Chat, &frames).await.unwrap();
    let (mut taken, mut refused, mut wait) = (Vec::new(), Vec::new(), Duration::ZERO);
    while taken.len() + refused.len() < MESSAGES {
        let scheme = alice.recv(Lane::Chat).await;
        let number = (scheme.request_id - first) as usize;
        match scheme.payload {
            Some(Payload::VersionUpdate(_)) => taken.push(number),
            Some(Payload::ErrorMessage(error)) => {
                wait = wait_of(&error).max(wait);
                refused.push(number);
            }
            other => panic!("{other:?}"),
        }
    }
    let from = taken.len();
    assert!((BURST..MESSAGES).contains(&from), "{from} taken");
    assert_eq!(taken, (0..from).collect::<Vec<_>>());
    assert_eq!(refused, (from..MESSAGES).collect::<Vec<_>>());
    let counted = server.metric(r#"bimip_rate_limited_total{limit="messages"}"#).await;
    assert_eq!(counted, refused.len() as f64, "those behind the first one, too");
    // After the given wait the first of them is taken, and nobody has heard of those behind it.
    tokio::time::sleep(wait).await;
    alice.post(BOB, &format!("local-{from}"), &from.to_string()).await;
    for n in 0..=from {
        assert_eq!(text_of(&*bob.hear().await), n.to_string());
    }
}

#[tokio::test]
async fn awareness_has_a_limit_of_its_own() {
    let server = TestServer::with(|config| config.limits.awareness = burst_of(4)).await;
    let lanes = [Lane::Control, Lane::Presence, Lane::Chat];
    let mut alice = server.session(ALICE, "phone").lanes(&lanes).open().await;
    let (from, to) = (Some(alice.identity()), Some(identity(BOB)));
    let request = AwarenessRequest { from: from.clone(), to, ..AwarenessRequest::default() };
    let change = AwarenessNotification { from, status: 3, ..AwarenessNotification::default() };
    for _ in 0..2 {
        alice.send(Lane::Presence, Payload::AwarenessRequest(request.clone())).await;
        alice.expect::<bimip::wire::proto::AwarenessResponse>(Lane::Presence).await;
        alice.send(Lane::Presence, Payload::AwarenessNotification(change.clone())).await;
    }
    for payload in [Payload::AwarenessRequest(request), Payload::AwarenessNotification(change)] {
        let request_id = alice.send(Lane::Presence, payload).await;
        let error = alice.expect_error(Lane::Presence, 429, request_id).await;
        wait_of(&error);
    }
    alice.ping().await;
    alice.say(BOB, "local-1", "chat goes on").await;
    assert_eq!(server.metric(r#"bimip_rate_limited_total{limit="awareness"}"#).await, 2.0);
}

#[tokio::test]
async fn sign_ins_count_for_the_address() {
    let server = TestServer::with(|config| config.limits.sign_ins = Rate { per_second: 5, burst: 3 }).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut waiting = Vec::new();
    // Good and bad sign-ins count alike. All are sent at once, so that most are over the limit.
    for n in 0..6 {
        let mut raw = server.connect().await;
        raw.open(Lane::Control).await;
        waiting.push((raw, server.session(BOB, &format!("device-{n}")).open));
    }
    let mut refused = None;
    let mut sent = Vec::new();
    for (mut raw, open) in waiting {
        let request_id = raw.send(Lane::Control, Payload::SessionOpen(open)).await;
        sent.push((raw, request_id));
    }
    for (mut raw, request_id) in sent {
        let scheme = raw.recv(Lane::Control).await;
        if let Some(Payload::ErrorMessage(error)) = scheme.payload {
            assert_eq!((scheme.request_id, error.route.as_str()), (request_id, "session_open"));
            refused = Some((raw, wait_of(&error)));
        }
    }
    let (mut raw, wait) = refused.expect("somebody was too fast");
    // The connection stays open and may sign in after the wait.
    let open = server.session(BOB, "late").open;
    tokio::time::sleep(wait).await;
    loop {
        raw.send(Lane::Control, Payload::SessionOpen(open.clone())).await;
        let scheme = raw.recv(Lane::Control).await;
        match &scheme.payload {
            Some(Payload::ErrorMessage(error)) => tokio::time::sleep(wait_of(error)).await,
            other => break assert!(matches!(other, Some(Payload::SessionAccept(SessionAccept { .. }))), "{other:?}"),
        }
    }
    raw.ping().await;
    alice.ping().await;
}

#[tokio::test]
async fn what_was_sent_behind_a_sign_in_that_has_to_wait_is_dropped() {
    let server = TestServer::with(|config| config.limits.sign_ins = burst_of(1)).await;
    let mut bob = server.connect().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    (bob.eid, bob.device) = (BOB.to_owned(), "phone".to_owned());
    bob.open(Lane::Control).await;
    bob.open(Lane::Chat).await;
    let open = server.session(BOB, "phone").pipelined().open;
    let request_id = bob.send(Lane::Control, Payload::SessionOpen(open.clone())).await;
    bob.send(Lane::Control, ping()).await;
    bob.write_frame(Lane::Control, &[0xff]).await;
    bob.post(ALICE, "local-1", "too early").await;
    bob.write_frame(Lane::Chat, &[0xff]).await;
    let mut wait = wait_of(&bob.expect_error(Lane::Control, 429, request_id).await);
    loop {
        tokio::time::sleep(wait).await;
        bob.send(Lane::Control, Payload::SessionOpen(open.clone())).await;
        match bob.recv(Lane::Control).await.payload {
            Some(Payload::ErrorMessage(error)) => wait = wait_of(&error),
            Some(Payload::SessionAccept(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    // These frames got no answers and had no effect.
    bob.ping().await;
    bob.expect_nothing_more(Lane::Chat).await;
    assert_eq!(bob.say(ALICE, "local-2", "in time").await.version, 1);
    assert_eq!(text_of(&*alice.hear().await), "in time");
}

#[tokio::test]
async fn connections_count_for_the_address_while_they_last() {
    let server = TestServer::with(|config| config.limits.connections_per_address = 3).await;
    let mut devices = Vec::new();
    for n in 0..3 {
        devices.push(server.sign_in(ALICE, &format!("device-{n}")).await);
    }
    assert!(server.try_connect().await.is_err());
    assert!(server.metric(r#"bimip_rate_limited_total{limit="connections"}"#).await >= 1.0);
    for device in &mut devices {
        device.ping().await;
    }
    devices.pop().unwrap().leave();
    // Retry until the server has noticed the end.
    let noticed = async { while server.try_connect().await.is_err() {} };
    common::within_bound("the server to notice the end", noticed).await;
}

/// Sends the payload again and again in spite of refusals, until the server closes with ABUSE.
async fn flood(raw: &mut Raw, lane: Lane, payload: Payload) {
    let frame = encode_frame(&envelope(payload));
    let frames = frame.repeat(100);
    // Read the answers, because the server stops reading a lane whose answers are not read.
    for _ in 0..3 * STRIKES_MAX / 100 {
        if raw.try_write(lane, &frames).await.is_err() {
            break;
        }
        for _ in 0..100 {
            if common::within_bound("an answer or the end", raw.try_recv(lane)).await.is_err() {
                break;
            }
        }
    }
    raw.expect_close(CloseCode::Abuse).await;
}

#[tokio::test]
async fn who_goes_on_is_closed_with_abuse_and_nobody_else_is_harmed() {
    let limit = |config: &mut Config| config.limits.awareness = burst_of(10);
    let server = TestServer::with(limit).await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = server.session(ALICE, "phone").lanes(&[Lane::Control, Lane::Presence]).open().await;
    let (from, to) = (Some(alice.identity()), Some(identity(BOB)));
    let request = AwarenessRequest { from, to, ..AwarenessRequest::default() };
    flood(&mut alice, Lane::Presence, Payload::AwarenessRequest(request)).await;
    bystanders.assert_unharmed().await;
    // The device may connect again.
    server.sign_in(ALICE, "phone").await.ping().await;
}

#[tokio::test]
async fn frames_are_abused_too() {
    let server = TestServer::with(|config| config.limits.frames = burst_of(10)).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    flood(&mut alice, Lane::Control, ping()).await;
}

#[tokio::test]
async fn a_full_outbox_of_a_returning_phone_meets_no_limit() {
    const OUTBOX: usize = 2_000;
    let server = TestServer::start().await;
    let lanes = [Lane::Control, Lane::Presence, Lane::Chat];
    let mut alice = server.session(ALICE, "phone").pipelined().lanes(&lanes).open().await;
    for n in 0..OUTBOX {
        alice.post(BOB, &format!("local-{n}"), "written in the tunnel").await;
    }
    for n in 1..=OUTBOX {
        assert_eq!(alice.expect::<VersionUpdate>(Lane::Chat).await.version, n as i64);
    }
    assert_eq!(server.metric(r#"bimip_rate_limited_total{limit="messages"}"#).await, 0.0);
    assert_eq!(server.metric(r#"bimip_rate_limited_total{limit="frames"}"#).await, 0.0);
}

#[tokio::test]
async fn a_rate_of_zero_is_no_limit() {
    let none = Rate::default();
    let server = TestServer::with(|config| {
        config.limits.frames = none;
        config.limits.messages = none;
        config.limits.sign_ins = none;
        config.limits.connections_per_address = 0;
    })
    .await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    for n in 0..100 {
        alice.say(BOB, &format!("local-{n}"), "hello").await;
    }
    alice.ping().await;
}
