//! Pings from the client and from the server (BIMip-Foundation 4.2, 5.3; protocol.md §6).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;

use bimip::wire::proto::PingPong;
use bimip::wire::{Identity, Lane, Payload};

use common::{Bystanders, Got, Raw, TestServer, identity, now_ms};

const ALICE: &str = "alice@localhost";

fn request(to: Option<Identity>, request_time: i64) -> PingPong {
    PingPong { to, r#type: 1, status: 1, request_time, ..PingPong::default() }
}

async fn ask(alice: &mut Raw, ping: PingPong) -> Got<PingPong> {
    let request_id = alice.send(Lane::Control, Payload::PingpongMessage(ping)).await;
    let pong = alice.expect::<PingPong>(Lane::Control).await;
    assert_eq!((pong.request_id, pong.sequence), (request_id, 0));
    pong
}

#[tokio::test]
async fn the_server_answers_a_device() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let own = |device: &str| Some(Identity { eid: "Alice@Localhost".into(), connection_resource_id: device.into() });
    for to in [None, Some(Identity::default()), Some(identity(ALICE)), own("phone"), own("")] {
        let before = now_ms();
        let pong = ask(&mut alice, request(to.clone(), before)).await;
        assert_eq!((pong.r#type, pong.status, pong.request_time), (2, 2, before));
        assert!((before..=now_ms()).contains(&pong.response_time), "{pong:?}");
        assert_eq!(pong.rtt, pong.response_time - before);
        assert_eq!(pong.to, to);
    }
}

#[tokio::test]
async fn a_round_trip_is_never_negative() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    for ahead in [now_ms() + 3_600_000, i64::MAX] {
        let pong = ask(&mut alice, request(None, ahead)).await;
        assert_eq!((pong.request_time, pong.rtt), (ahead, 0));
    }
    // A clock at 1970, and broken clocks.
    for behind in [0, -1, i64::MIN] {
        let pong = ask(&mut alice, request(None, behind)).await;
        assert_eq!(pong.request_time, behind);
        assert!(pong.rtt > 0, "{pong:?}");
    }
}

#[tokio::test]
async fn a_ping_that_is_neither_request_nor_response_is_refused() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    for kind in [0, 3, -1] {
        let ping = PingPong { r#type: kind, ..request(None, now_ms()) };
        let request_id = alice.send(Lane::Control, Payload::PingpongMessage(ping)).await;
        alice.expect_error(Lane::Control, 400, request_id).await;
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn the_server_pings_a_silent_device_and_its_answer_feeds_the_histogram() {
    let server = TestServer::with(|config| config.session.ping_interval_ms = 1000).await;
    let before = now_ms();
    let mut alice = server.sign_in(ALICE, "phone").await;
    assert_eq!(alice.accept.ping_interval_ms, 1000);
    let count = || server.metric("bimip_ping_rtt_seconds_count");
    // On a busy machine the server's pings may come before a pong that is waited for.
    let mut pings = VecDeque::new();
    let settle = async |alice: &mut Raw, pings: &mut VecDeque<Got<PingPong>>| {
        let request_id = alice.send(Lane::Control, Payload::PingpongMessage(request(None, now_ms()))).await;
        loop {
            let next = alice.expect::<PingPong>(Lane::Control).await;
            match next.r#type {
                1 => pings.push_back(next),
                _ => return assert_eq!(next.request_id, request_id),
            }
        }
    };

    // A response without a ping is not measured.
    let unasked = PingPong { r#type: 2, status: 2, ..request(None, now_ms()) };
    alice.send(Lane::Control, Payload::PingpongMessage(unasked)).await;
    settle(&mut alice, &mut pings).await;
    assert_eq!(count().await, 0.0);

    for answered in 1..=2 {
        let ping = match pings.pop_front() {
            Some(ping) => ping,
            None => alice.expect::<PingPong>(Lane::Control).await,
        };
        assert_eq!((ping.r#type, ping.status, ping.request_id), (1, 1, 0));
        assert_eq!(ping.to, Some(alice.identity()));
        assert!((before..=now_ms()).contains(&ping.request_time), "{ping:?}");
        // A response with another request_time does not count. The right one counts once, whatever its other times are.
        for request_time in [ping.request_time - 1, ping.request_time, ping.request_time] {
            let answer = PingPong {
                r#type: 2,
                status: 2,
                request_time,
                response_time: request_time + 3_600_000,
                rtt: 3_600_000,
                ..ping.clone().into_body()
            };
            alice.send(Lane::Control, Payload::PingpongMessage(answer)).await;
        }
        settle(&mut alice, &mut pings).await;
        assert_eq!(count().await, f64::from(answered));
    }
    assert!(server.metric("bimip_ping_rtt_seconds_sum").await < 60.0, "measured on the server's own clock");
}

#[tokio::test]
async fn the_server_keeps_pinging_a_device_that_does_not_answer() {
    let server = TestServer::with(|config| config.session.ping_interval_ms = 1000).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let first = alice.expect::<PingPong>(Lane::Control).await;
    let second = alice.expect::<PingPong>(Lane::Control).await;
    assert!(second.request_time > first.request_time);
    assert_eq!(server.metric("bimip_ping_rtt_seconds_count").await, 0.0);
}
