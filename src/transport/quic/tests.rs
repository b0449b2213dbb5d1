//! What clients of the endpoint are granted, and how it answers those that are none.

use std::net::Ipv4Addr;

use bytes::BytesMut;
use futures_util::FutureExt;
use quinn::congestion::{Bbr, NewReno};
use quinn_proto::{ConnectionIdGenerator, DatagramEvent};
use tokio::time::timeout;

use super::*;
use crate::congestion::Floored;
use crate::limits::{CONNECTION_RECEIVE_WINDOW, SEND_WINDOW, STREAM_RECEIVE_WINDOW};
use crate::session::testing::House;
use crate::transport::testing::{PATIENCE, Pair, RESET_KEY, hasty_crowd, unbalanced_ids, until_nobody_is_there};

#[test]
fn a_fleet_that_lost_its_server_learns_of_it_within_the_first_packets() {
    let config = endpoint(hmac::Key::new(hmac::HMAC_SHA256, &RESET_KEY), unbalanced_ids());
    let mut before = unbalanced_ids().generator();
    let mut restarted = quinn_proto::Endpoint::new(Arc::new(config), None, true, None);
    let (mut now, mut answers) = (Instant::now(), 0);
    for device in 1..=1000u16 {
        let mut packet = BytesMut::from(&[0x40][..]);
        packet.extend_from_slice(&before.generate_cid());
        packet.resize(60, 0);
        let from = SocketAddr::from(([192, 0, 2, 1], device));
        now += RESET_INTERVAL;
        let event = restarted.handle(now, from, None, None, packet, &mut Vec::new());
        answers += usize::from(matches!(event, Some(DatagramEvent::Response(_))));
    }
    assert_eq!(answers, 1000);
}

#[tokio::test]
async fn who_does_not_complete_its_handshake_is_cut_off_and_its_places_are_free() {
    let (house, crowd, stop) = (House::new(|_, _| ()), hasty_crowd(), CancellationToken::new());
    let (config, (endpoint, device)) = (QuicConfig::default(), Pair::endpoints(&QuicConfig::default()));
    let address = endpoint.local_addr().unwrap();
    let services = (house.services.clone(), house.store.clone());
    let served = serve(
        endpoint,
        config,
        Arc::new(|_: &Incoming| None),
        crowd.clone(),
        services,
        TaskTracker::new(),
        stop.clone(),
    );
    let serving = tokio::spawn(served);

    // A client's first packet, which is recorded at a socket that does not answer; nothing follows it.
    let nobody = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let _connecting = device.connect(nobody.local_addr().unwrap(), "localhost").unwrap();
    let mut first = [0; 2048];
    let (length, _) = nobody.recv_from(&mut first).await.unwrap();
    nobody.send_to(&first[..length], address).await.unwrap();
    // The server's part of the handshake.
    let answered = async { while nobody.recv_from(&mut first).await.unwrap().1 != address {} };
    timeout(PATIENCE, answered).await.expect("an answer");
    until_nobody_is_there(&crowd, TransportKind::Quic).await;
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn a_client_has_the_streams_and_windows_that_it_is_granted_and_no_more() {
    let pair = Pair::connect(&QuicConfig::default()).await;
    assert_eq!(pair.client.max_datagram_size(), None);
    assert!(pair.client.open_uni().now_or_never().is_none());
    let much = vec![7; 2 * CONNECTION_RECEIVE_WINDOW as usize];
    let (mut streams, mut taken) = (Vec::new(), Vec::new());
    for _ in 0..STREAMS_MAX {
        let (mut send, recv) = pair.client.open_bi().now_or_never().expect("a stream").unwrap();
        // As much as it may send before the server has read anything.
        taken.push(send.write(&much).now_or_never().map_or(0, |written| written.unwrap()));
        streams.push((send, recv));
    }
    assert!(pair.client.open_bi().now_or_never().is_none(), "one stream more");
    // All but the last have a window of their own, and together they fill the connection's.
    let (last, others) = taken.split_last().unwrap();
    assert!(others.iter().all(|bytes| *bytes == STREAM_RECEIVE_WINDOW as usize), "{taken:?}");
    assert_eq!((*last, others.iter().sum::<usize>()), (0, CONNECTION_RECEIVE_WINDOW as usize));
}

#[tokio::test]
async fn no_more_is_kept_for_a_client_than_the_send_window() {
    let pair = Pair::connect(&QuicConfig::default()).await;
    let (mut send, _recv) = pair.client.open_bi().await.unwrap();
    send.write_all(&[0]).await.unwrap();
    let (mut send, _recv) = pair.server.accept_bi().await.unwrap();
    let much = vec![7; 2 * SEND_WINDOW as usize];
    assert_eq!(send.write(&much).now_or_never().map(Result::unwrap), Some(SEND_WINDOW as usize));
    assert!(send.write(&much).now_or_never().is_none());
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_is_given_up_after_its_idle_timeout() {
    let pair = Pair::connect(&QuicConfig { idle_timeout_ms: 200, ..QuicConfig::default() }).await;
    let end = timeout(PATIENCE, pair.server.closed()).await.expect("its own timeout, and not the client's");
    assert!(matches!(end, quinn::ConnectionError::TimedOut), "{end:?}");
}

#[tokio::test]
async fn a_path_begins_with_the_round_trip_and_the_controller_of_the_configuration() {
    for congestion in [Congestion::Cubic, Congestion::Bbr, Congestion::NewReno] {
        let config = QuicConfig { initial_rtt_ms: 123, congestion, ..QuicConfig::default() };
        let (server, client) = Pair::endpoints(&config);
        let _connecting = client.connect(server.local_addr().unwrap(), "localhost").unwrap();
        let incoming = timeout(PATIENCE, server.accept()).await.expect("a first packet").unwrap();
        let (connection, _) = incoming.accept().unwrap().into_0rtt().unwrap();
        assert_eq!(connection.rtt(), Duration::from_millis(123));
        let controller = connection.congestion_state().into_any();
        let is = [controller.is::<Floored>(), controller.is::<Bbr>(), controller.is::<NewReno>()];
        assert_eq!(is, [Congestion::Cubic, Congestion::Bbr, Congestion::NewReno].map(|named| named == congestion));
    }
}

#[tokio::test]
async fn a_draft_of_quic_is_answered_with_the_one_version_that_is_spoken() {
    let (server, _) = Pair::endpoints(&QuicConfig::default());
    let client = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    // A long header of draft 29 (RFC 9000, 17.2), with a destination id of eight bytes and a source id of none.
    let mut packet = vec![0xc0, 0xff, 0, 0, 0x1d, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0];
    packet.resize(1200, 0);
    client.send_to(&packet, server.local_addr().unwrap()).await.unwrap();
    let mut answer = [0; 2048];
    let length = timeout(PATIENCE, client.recv(&mut answer)).await.expect("an answer").unwrap();
    // Version 0 says that these are the versions; then follow the two ids the other way round (RFC 9000, 17.2.1).
    assert_eq!(answer[1..15], [0, 0, 0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let versions = answer[15..length].chunks(4).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
    // Those of this form exist so that clients learn to ignore what they do not know (RFC 9000, 15).
    let versions: Vec<_> = versions.filter(|version| version & 0x0f0f_0f0f != 0x0a0a_0a0a).collect();
    assert_eq!(versions, [QUIC_V1]);
}
