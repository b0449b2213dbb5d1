//! What is special to QUIC: handshakes that are not completed or not taken, key updates, and lanes of which a device ends one
//! side (protocol.md §1).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

mod common;

use bimip::wire::{ALPN, CloseCode, Lane, TEXT_BYTES_MAX};

use common::{Link, QuicLink, Raw, TestServer, client_endpoint, client_tls, half_open, text_of, within_bound};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";

fn quic(raw: &mut Raw) -> &mut QuicLink {
    match raw.link() {
        Link::Quic(link) => link,
        Link::Tcp(_) => panic!("these tests are about QUIC"),
    }
}

#[tokio::test]
async fn who_finishes_no_handshake_does_not_keep_others_out() {
    const PLACES: usize = 4;
    let server = TestServer::with(|config| {
        config.quic.handshakes_max = PLACES;
        config.quic.handshakes_before_retry = PLACES;
    })
    .await;
    // A completed handshake has freed its place, although the session goes on.
    let mut through = Vec::new();
    for user in [ALICE, BOB, "carol@localhost"] {
        through.push(server.sign_in(user, "phone").await);
    }
    let tls = client_tls(&server.files().ca, ALPN);
    let _silent = within_bound("as many answers", half_open(tls.clone(), server.quic_address(), PLACES)).await;
    #[cfg(target_os = "linux")] // Linux answers on all of 127.0.0.0/8.
    {
        let elsewhere = client_endpoint(tls);
        elsewhere.rebind(std::net::UdpSocket::bind("127.0.0.2:0").unwrap()).unwrap();
        let _newcomer = within_bound("a handshake", QuicLink::dial(&elsewhere, server.quic_address())).await.unwrap();
        let evicted = async { while server.metric("bimip_handshakes_evicted_total").await == 0.0 {} };
        within_bound("the end of a handshake", evicted).await;
        let (connections, others) = (r#"bimip_queue_depth{queue="connections"}"#, through.len() + PLACES);
        let closed = async { while server.metric(connections).await != others as f64 {} };
        within_bound("the end of its connection", closed).await;
        assert_eq!(server.metric("bimip_handshakes_evicted_total").await, 1.0);
    }
    for device in &mut through {
        device.ping().await;
    }
}

#[tokio::test]
async fn another_protocol_is_not_taken() {
    let server = TestServer::start().await;
    for (alpn, taken) in [(ALPN, true), (&b"h3"[..], false), (b"bimip/2", false)] {
        let endpoint = client_endpoint(client_tls(&server.files().ca, alpn));
        let dialed = within_bound("a handshake", QuicLink::dial(&endpoint, server.quic_address())).await;
        assert_eq!(dialed.is_ok(), taken, "{}", alpn.escape_ascii());
    }
}

#[tokio::test]
async fn who_comes_behind_many_newcomers_proves_its_address_although_few_handshakes_are_under_way() {
    let server = TestServer::with(|config| {
        config.quic.handshakes_unproven_per_second = 1;
        config.quic.handshakes_before_retry = config.quic.handshakes_max;
    })
    .await;
    let told = async {
        while server.metric("bimip_handshakes_retried_total").await == 0.0 {
            tokio::join!(server.connect(), server.connect(), server.connect());
        }
    };
    within_bound("a newcomer that proves its address", told).await;
    server.sign_in(ALICE, "phone").await.ping().await;
}

#[tokio::test]
async fn a_connection_that_goes_on_to_new_keys_goes_on() {
    let server = TestServer::start().await;
    let mut phone = server.sign_in(ALICE, "phone").await;
    for _ in 0..3 {
        quic(&mut phone).update_keys();
        phone.ping().await;
    }
}

#[tokio::test]
async fn a_lane_on_which_a_device_says_no_more_still_brings_it_everything_and_does_not_open_again() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    quic(&mut bob).finish(Lane::Chat);
    bob.ping().await;
    alice.say(BOB, "local-1", "you may listen").await;
    assert_eq!(text_of(&*bob.hear().await), "you may listen");
    bob.open(Lane::Chat).await;
    bob.expect_close(CloseCode::ProtocolViolation).await;
    alice.ping().await;
}

#[tokio::test]
async fn a_lane_that_a_device_stops_reading_for_good_costs_it_nothing_else() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    quic(&mut bob).stop(Lane::Chat);
    bob.ping().await;
    // Each of these is for a lane that takes nothing any more: more than the lane's queue holds.
    let long = "x".repeat(TEXT_BYTES_MAX);
    for number in 0..8 {
        alice.say(BOB, &format!("local-{number}"), &long).await;
    }
    bob.post(ALICE, "local-1", "I do not listen").await;
    assert_eq!(text_of(&*alice.hear().await), "I do not listen");
    bob.ping().await;
    let mut bob = server.session(BOB, "phone").open().await;
    for version in 1..=8 {
        assert_eq!(bob.hear().await.version, version, "he missed nothing");
    }
}
