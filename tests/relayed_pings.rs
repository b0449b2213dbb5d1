//! Connectivity of another device: pings that the server relays (BIMip-Foundation 4.2, 5.3; protocol.md §6).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

mod common;

use bimip::wire::proto::{BlockSubscriber, PingPong, SubscriberAddRequest, SubscriberAddResponse};
use bimip::wire::{Identity, Lane, Payload};

use common::{Got, Raw, TestServer, identity, now_ms, within_bound};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";
const OK: i32 = 2;
const FAIL: i32 = 3;
const TIMEOUT: i32 = 4;
const UNREACHABLE: i32 = 6;

fn device(eid: &str, device: &str) -> Identity {
    Identity { eid: eid.to_owned(), connection_resource_id: device.to_owned() }
}

/// Requests a ping of another device; returns the request id.
async fn ask(raw: &mut Raw, to: Identity) -> i64 {
    let ping = PingPong { to: Some(to), r#type: 1, status: 1, request_time: now_ms(), ..PingPong::default() };
    raw.send(Lane::Control, Payload::PingpongMessage(ping)).await
}

async fn outcome(raw: &mut Raw, request_id: i64, to: Identity) -> Got<PingPong> {
    let pong = raw.expect::<PingPong>(Lane::Control).await;
    assert_eq!((pong.request_id, pong.r#type, &pong.to), (request_id, 2, &Some(to)));
    assert!(pong.request_time > 0 && pong.response_time >= pong.request_time && pong.rtt >= 0, "{pong:?}");
    pong
}

/// The next frame of control; it must be the server's ping to this device.
async fn asked(raw: &mut Raw) -> Got<PingPong> {
    let ping = raw.expect::<PingPong>(Lane::Control).await;
    assert_eq!((ping.r#type, ping.status, &ping.to), (1, 1, &Some(raw.identity())));
    ping
}

/// The server's pings to this device so far.
async fn asked_so_far(raw: &mut Raw) -> Vec<PingPong> {
    let mut pings = Vec::new();
    // The first answer may go out before pings that were to go at the same time, the second one does not.
    for _ in 0..2 {
        let own = raw.identity();
        let request_id = ask(raw, own).await;
        loop {
            let ping = raw.expect::<PingPong>(Lane::Control).await;
            if ping.request_id == request_id {
                break;
            }
            pings.push(ping.into_body());
        }
    }
    pings
}

async fn answer(raw: &mut Raw, ping: &PingPong) {
    let pong = PingPong { r#type: 2, status: 2, response_time: now_ms(), rtt: 77_777, ..ping.clone() };
    raw.send(Lane::Control, Payload::PingpongMessage(pong)).await;
}

async fn admit(owner: &mut Raw, subscriber: &str) {
    let (owner_id, subscriber) = (Some(owner.user()), Some(identity(subscriber)));
    let add = SubscriberAddRequest { owner: owner_id, subscriber, ..SubscriberAddRequest::default() };
    owner.send(Lane::Control, Payload::SubscriberAddRequest(add)).await;
    owner.expect::<SubscriberAddResponse>(Lane::Control).await;
}

#[tokio::test]
async fn a_subscriber_gets_the_measured_round_trip() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    admit(&mut alice, BOB).await;
    for to in [device(ALICE, "phone"), identity(ALICE), identity("Alice@Localhost")] {
        let request_id = ask(&mut bob, to.clone()).await;
        let ping = asked(&mut alice).await;
        answer(&mut alice, &ping).await;
        let pong = outcome(&mut bob, request_id, to).await;
        assert_eq!(pong.status, OK);
        assert!(pong.rtt < 60_000, "measured by the server, whatever the device claims: {pong:?}");
    }
}

#[tokio::test]
async fn with_an_empty_resource_id_any_device_serves() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    admit(&mut alice, BOB).await;
    alice.leave();
    let mut desk = server.sign_in(ALICE, "desk").await;
    // The server may not have noticed yet that the phone is gone. Then it still pings the phone and gets no answer.
    let noticed = async {
        let mut request_id = ask(&mut bob, device(ALICE, "phone")).await;
        while outcome(&mut bob, request_id, device(ALICE, "phone")).await.status != UNREACHABLE {
            request_id = ask(&mut bob, device(ALICE, "phone")).await;
        }
    };
    within_bound("the server to notice the end", noticed).await;
    let request_id = ask(&mut bob, identity(ALICE)).await;
    let ping = asked(&mut desk).await;
    answer(&mut desk, &ping).await;
    assert_eq!(outcome(&mut bob, request_id, identity(ALICE)).await.status, OK);
}

#[tokio::test]
async fn ones_own_other_device_needs_no_subscription() {
    let server = TestServer::start().await;
    let mut phone = server.sign_in(ALICE, "phone").await;
    let mut desk = server.sign_in(ALICE, "desk").await;
    let request_id = ask(&mut phone, device(ALICE, "desk")).await;
    let ping = asked(&mut desk).await;
    answer(&mut desk, &ping).await;
    assert_eq!(outcome(&mut phone, request_id, device(ALICE, "desk")).await.status, OK);
    let request_id = ask(&mut phone, device(ALICE, "tablet")).await;
    assert_eq!(outcome(&mut phone, request_id, device(ALICE, "tablet")).await.status, UNREACHABLE);
}

#[tokio::test]
async fn a_device_that_is_not_connected_is_unreachable() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    admit(&mut alice, BOB).await;
    let request_id = ask(&mut bob, device(ALICE, "tablet")).await;
    assert_eq!(outcome(&mut bob, request_id, device(ALICE, "tablet")).await.status, UNREACHABLE);
    let logout = bimip::wire::proto::Logout { entity: Some(alice.identity()), r#type: 1, status: 1, timestamp: 0 };
    alice.send(Lane::Control, Payload::Logout(logout)).await;
    alice.expect_close(bimip::wire::CloseCode::Goodbye).await;
    let request_id = ask(&mut bob, identity(ALICE)).await;
    assert_eq!(outcome(&mut bob, request_id, identity(ALICE)).await.status, UNREACHABLE);
}

#[tokio::test]
async fn with_an_empty_resource_id_the_first_answer_of_any_device_counts() {
    let server = TestServer::start().await;
    let mut devices = Vec::new();
    for name in ["phone", "tablet", "desk"] {
        devices.push(server.sign_in(ALICE, name).await);
    }
    let mut bob = server.sign_in(BOB, "phone").await;
    admit(&mut devices[0], BOB).await;
    // Any of the devices may be the first to answer. Later answers change nothing.
    for first in 0..devices.len() {
        let request_id = ask(&mut bob, identity(ALICE)).await;
        let mut pings = Vec::new();
        for device in &mut devices {
            pings.push(asked(device).await);
        }
        answer(&mut devices[first], &pings[first]).await;
        assert_eq!(outcome(&mut bob, request_id, identity(ALICE)).await.status, OK);
        for (device, ping) in devices.iter_mut().zip(&pings) {
            answer(device, ping).await;
            device.ping().await;
        }
        bob.ping().await;
    }
}

#[tokio::test]
async fn a_stranger_fails_alike_for_those_who_exist_and_those_who_do_not() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    // Bob's own list does not count, only alice's.
    admit(&mut bob, ALICE).await;
    let strangers = [device(ALICE, "phone"), device(ALICE, "tablet"), identity(ALICE), identity("nobody@localhost")];
    for to in strangers {
        let request_id = ask(&mut bob, to.clone()).await;
        let pong = outcome(&mut bob, request_id, to).await;
        assert_eq!((pong.status, pong.rtt), (FAIL, 0));
    }
    // A block outweighs alice's list.
    admit(&mut alice, BOB).await;
    let block = BlockSubscriber { owner: Some(alice.user()), subscriber: Some(identity(BOB)), ..Default::default() };
    alice.send(Lane::Control, Payload::BlockSubscriber(block)).await;
    alice.expect::<BlockSubscriber>(Lane::Control).await;
    let request_id = ask(&mut bob, identity(ALICE)).await;
    assert_eq!(outcome(&mut bob, request_id, identity(ALICE)).await.status, FAIL);
    alice.ping().await; // Alice's device was never pinged.
}

#[tokio::test]
async fn a_device_that_never_answers_times_out_and_others_answers_do_not_count() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut desk = server.sign_in(ALICE, "desk").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut carol = server.sign_in("carol@localhost", "phone").await;
    admit(&mut alice, BOB).await;
    let before = std::time::Instant::now();
    let request_id = ask(&mut bob, device(ALICE, "phone")).await;
    let ping = asked(&mut alice).await;
    // The same answer from three other devices, and the phone's answer to a ping that was never sent.
    answer(&mut desk, &ping).await;
    answer(&mut carol, &ping).await;
    answer(&mut bob, &ping).await;
    answer(&mut alice, &PingPong { request_time: ping.request_time + 1, ..ping.clone().into_body() }).await;
    let pong = outcome(&mut bob, request_id, device(ALICE, "phone")).await;
    assert_eq!((pong.status, pong.rtt), (TIMEOUT, 0));
    assert!(before.elapsed().as_millis() >= 5_000);
    // A late answer changes nothing.
    answer(&mut alice, &ping).await;
    alice.ping().await;
    bob.ping().await;
    // A device that disconnects without answering also counts as a timeout.
    let request_id = ask(&mut bob, device(ALICE, "phone")).await;
    asked(&mut alice).await;
    alice.leave();
    assert_eq!(outcome(&mut bob, request_id, device(ALICE, "phone")).await.status, TIMEOUT);
}

#[tokio::test]
async fn only_so_many_are_under_way() {
    const UNDER_WAY: usize = 16;
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut desk = server.sign_in(ALICE, "desk").await;
    let mut requests = Vec::new();
    for _ in 0..UNDER_WAY {
        requests.push(ask(&mut alice, device(ALICE, "desk")).await);
    }
    let request_id = ask(&mut alice, device(ALICE, "desk")).await;
    let error = alice.expect_error(Lane::Control, 429, request_id).await;
    assert!(error.details.parse::<u64>().is_ok_and(|wait| wait > 0), "{error:?}");
    for ping in asked_so_far(&mut desk).await {
        answer(&mut desk, &ping).await;
    }
    let mut answered = Vec::new();
    for _ in 0..UNDER_WAY {
        let pong = alice.expect::<PingPong>(Lane::Control).await;
        assert_eq!(pong.status, OK);
        answered.push(pong.request_id);
    }
    answered.sort();
    assert_eq!(answered, requests);
    let request_id = ask(&mut alice, device(ALICE, "desk")).await;
    let ping = asked(&mut desk).await;
    answer(&mut desk, &ping).await;
    outcome(&mut alice, request_id, device(ALICE, "desk")).await;
}

#[tokio::test]
async fn all_who_ask_before_a_device_answers_get_its_answer() {
    const EACH: usize = 10;
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut askers = [server.sign_in(ALICE, "desk").await, server.sign_in(ALICE, "tablet").await];
    let mut requests = Vec::new();
    for asker in &mut askers {
        for _ in 0..EACH {
            requests.push(ask(asker, device(ALICE, "phone")).await);
        }
        asker.ping().await;
    }
    for ping in asked_so_far(&mut alice).await {
        answer(&mut alice, &ping).await;
    }
    for (asker, requests) in askers.iter_mut().zip(requests.chunks(EACH)) {
        for request_id in requests {
            assert_eq!(outcome(asker, *request_id, device(ALICE, "phone")).await.status, OK);
        }
    }
}

#[tokio::test]
async fn a_name_that_is_none_is_refused() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let long = "x".repeat(60 * 1024);
    for to in [identity("bob"), device(BOB, "a b"), identity("@"), device("", "phone"), device("", &long)] {
        let request_id = ask(&mut alice, to).await;
        alice.expect_error(Lane::Control, 400, request_id).await;
    }
}
