//! QUIC handshakes that are not completed (protocol.md §1), and key updates after a handshake.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

mod common;

use bimip::wire::ALPN;

use common::{Link, QuicLink, TestServer, client_endpoint, client_tls, half_open, within_bound};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";

#[tokio::test]
async fn who_finishes_no_handshake_does_not_keep_others_out() {
    let server = TestServer::with(|config| {
        config.quic.handshakes_max = 4;
        config.quic.handshakes_before_retry = 4;
    })
    .await;
    // A completed handshake has freed its place, although the session goes on.
    let mut through = Vec::new();
    for user in [ALICE, BOB, "carol@localhost"] {
        through.push(server.sign_in(user, "phone").await);
    }
    let tls = client_tls(&server.files().ca, ALPN);
    let _silent = within_bound("two answers", half_open(tls.clone(), server.quic_address(), 2)).await;
    assert!(server.try_connect().await.is_err(), "an address has half of the places");
    assert!(server.metric(r#"bimip_handshakes_refused_total{reason="address"}"#).await >= 1.0);
    for device in &mut through {
        device.ping().await;
    }
    #[cfg(target_os = "linux")] // Linux answers on all of 127.0.0.0/8.
    {
        let elsewhere = client_endpoint(tls);
        elsewhere.rebind(std::net::UdpSocket::bind("127.0.0.2:0").unwrap()).unwrap();
        assert!(QuicLink::dial(&elsewhere, server.quic_address()).await.is_ok());
    }
}

#[tokio::test]
async fn a_connection_that_goes_on_to_new_keys_goes_on() {
    let server = TestServer::start().await;
    let mut phone = server.sign_in(ALICE, "phone").await;
    for _ in 0..3 {
        let Link::Quic(link) = phone.link() else { panic!("it signed in over QUIC") };
        link.update_keys();
        phone.ping().await;
    }
}
