//! Packets that somebody on the way writes in the server's name. The keys of QUIC's Initial packets follow from the first packet of
//! the client (RFC 9001, 5.2), so everybody who sees that can make them.

use bimip::client::Transport;
use rustls::Side;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::Version;

use crate::common::{Road, TestServer, within_bound};
use crate::{ALICE, BOB, eid, options, session};

/// An Initial packet with an application's close, as an answer to a client's Initial packet; `None` for other packets.
fn close(code: u8, initial: &[u8]) -> Option<Vec<u8>> {
    const LONG_INITIAL: u8 = 0xc0;
    // A client that knows the server leaves the fixed bit to chance (RFC 9287).
    const FIXED_BIT: u8 = 0x40;
    if (initial[0] | FIXED_BIT) & 0xf0 != LONG_INITIAL {
        return None;
    }
    let id_at = |at: usize| (&initial[at + 1..at + 1 + usize::from(initial[at])], at + 1 + usize::from(initial[at]));
    let (to, next) = id_at(5);
    let (from, _) = id_at(next);
    let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap().quic_suite().unwrap();
    let keys = suite.keys(to, Side::Server, Version::V1);

    // APPLICATION_CLOSE, its code, no reason; then padding, enough for a sample.
    let mut payload = vec![0; 32];
    payload[..3].copy_from_slice(&[0x1d, code, 0]);
    let number_bytes = 2;
    let mut header = vec![LONG_INITIAL | (number_bytes - 1), 0, 0, 0, 1, from.len() as u8];
    header.extend_from_slice(from);
    // An id of the server's, no token, and the length of what follows as a varint of two bytes.
    let length = number_bytes as usize + payload.len() + 16;
    header.extend_from_slice(&[1, 7, 0, 0x40 | (length >> 8) as u8, length as u8]);
    let number_at = header.len();
    header.extend_from_slice(&[0, 0]);
    let tag = keys.local.packet.encrypt_in_place(0, &header, &mut payload).unwrap();
    let mut packet = [&header[..], &payload, tag.as_ref()].concat();
    let sample = packet[number_at + 4..][..keys.local.header.sample_len()].to_vec();
    let (first, rest) = packet.split_first_mut().unwrap();
    keys.local.header.encrypt_in_place(&sample, first, &mut rest[number_at - 1..][..2]).unwrap();
    Some(packet)
}

/// UNAUTHENTICATED, REVOKED, REPLACED, ABUSE, and a code that there is not.
const CODES: [u8; 5] = [2, 3, 4, 5, 60];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_is_forged_in_the_handshake_stops_no_phone() {
    let server = TestServer::start().await;
    for code in CODES {
        let road = Road::to(server.quic_address()).await;
        road.answer(move |datagram| close(code, datagram));
        let (alice, _alices) = options(&server, ALICE, road.address).connect().unwrap();
        let first = within_bound("a session", alice.connected()).await.unwrap();
        assert_eq!(first.transport, Transport::Tcp, "code {code}");
        assert!(road.answered() > 0, "nothing was forged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_a_phone_that_comes_back_with_a_ticket() {
    let server = TestServer::start().await;
    for code in CODES {
        let road = Road::to(server.quic_address()).await;
        let (alice, _alices) = options(&server, ALICE, road.address).connect().unwrap();
        session(&alice, "QUIC", |session| session.transport == Transport::Quic).await;
        // Its answer comes behind the ticket.
        within_bound("a pong", alice.ping()).await.unwrap();
        road.answer(move |datagram| close(code, datagram));
        let sending = tokio::spawn({
            let alice = alice.clone();
            async move { alice.send_text(&eid(BOB), "Hey Bob!").await }
        });
        session(&alice, "TCP", |session| session.transport == Transport::Tcp).await;
        assert!(road.answered() > 0, "nothing was forged");
        within_bound("the answer", sending).await.unwrap().unwrap();
        within_bound("alice to leave", alice.close()).await;
    }
}
