//! What is special to TLS over TCP: a device ends, breaks off or does not read the one stream (protocol.md §1).

use std::sync::Arc;

use bimip::limits::TCP_EMPTY_FRAMES_MAX;
use bimip::wire::proto::{ErrorMessage, MediaPayloadRequest, PingPong, VersionUpdate};
use bimip::wire::{ALPN, CloseCode, Lane, Payload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::common::{
    Bystanders, Link, Raw, TcpLink, TestServer, Transport, client_tls, identity, text_of, within_bound,
};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";

fn tcp(raw: &mut Raw) -> &mut TcpLink {
    match raw.link() {
        Link::Tcp(link) => link,
        Link::Quic(_) => panic!("these tests are about TCP"),
    }
}

/// Waits until the server has counted this many sessions closed for this reason.
async fn ended(server: &TestServer, reason: &str, times: f64) {
    let series = format!(r#"bimip_session_closes_total{{reason="{reason}"}}"#);
    let seen = async { while server.metric(&series).await < times {} };
    within_bound(&format!("{times} sessions to end: {reason}"), seen).await;
}

#[tokio::test]
async fn a_device_over_tcp_talks_with_one_over_quic() {
    let server = TestServer::start().await;
    assert_eq!(server.tcp_address().port(), server.quic_address().port());
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.session(BOB, "phone").over(Transport::Quic).pipelined().open().await;
    alice.say(BOB, "local-1", "over one stream").await;
    assert_eq!(text_of(&*bob.hear().await), "over one stream");
    bob.say(ALICE, "local-2", "over four").await;
    assert_eq!(text_of(&*alice.hear().await), "over four");
    for transport in [Transport::Tcp, Transport::Quic] {
        let sessions = format!(r#"bimip_sessions{{transport="{}"}}"#, transport.name());
        assert_eq!(server.metric(&sessions).await, 1.0);
    }
}

#[tokio::test]
async fn another_protocol_is_not_taken() {
    let server = TestServer::start().await;
    for (alpn, taken) in [(ALPN, true), (&b"h2"[..], false), (b"bimip/2", false)] {
        let tls = Arc::new(client_tls(&server.files().ca, alpn));
        assert_eq!(TcpLink::dial(tls, server.tcp_address()).await.is_ok(), taken);
    }
}

/// The first record of a client that speaks this one version of TLS.
fn client_hello(version: [u8; 2]) -> Vec<u8> {
    let extensions = [
        // supported_groups: x25519. signature_algorithms: ECDSA on P-256, Ed25519.
        &[0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 6, 0, 4, 4, 3, 8, 7][..],
        // application_layer_protocol_negotiation.
        &[&[0, 16, 0, 10, 0, 8, 7][..], ALPN].concat(),
        // supported_versions. key_share: none yet, which TLS 1.3 asks for next.
        &[0, 43, 0, 3, 2, version[0], version[1], 0, 51, 0, 2, 0, 0],
    ]
    .concat();
    let body = [
        // The version before TLS 1.3, random bytes, no session, a suite of TLS 1.3 and one of TLS 1.2, no compression.
        &[&[3, 3][..], &[7; 32], &[0, 0, 4, 0x13, 1, 0xc0, 0x2b, 1, 0]].concat()[..],
        &(extensions.len() as u16).to_be_bytes(),
        &extensions,
    ]
    .concat();
    let length = body.len() as u16;
    [&[22, 3, 1][..], &(length + 4).to_be_bytes(), &[1, 0], &length.to_be_bytes(), &body].concat()
}

#[tokio::test]
async fn an_older_tls_is_not_spoken() {
    let server = TestServer::start().await;
    const HANDSHAKE: u8 = 22;
    const ALERT: u8 = 21;
    // RFC 8446, 6.2: fatal, protocol_version.
    let refused = [2, 70];
    for (version, is_spoken) in [([3, 4], true), ([3, 3], false), ([3, 2], false)] {
        let mut stream = TcpStream::connect(server.tcp_address()).await.unwrap();
        stream.write_all(&client_hello(version)).await.unwrap();
        let mut answer = [0; 7];
        within_bound("an answer", stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer[0], if is_spoken { HANDSHAKE } else { ALERT }, "{version:?}");
        assert_eq!(answer[5..] == refused, !is_spoken);
    }
}

#[tokio::test]
async fn an_empty_frame_on_an_open_lane_says_nothing() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    for lane in [Lane::Control, Lane::Chat, Lane::Control] {
        alice.write_frame(lane, &[]).await;
    }
    alice.expect_nothing_more(Lane::Chat).await;
    alice.ping().await;
}

#[tokio::test]
async fn so_many_empty_frames_are_one_too_many() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let empty = |count: usize| [Lane::Control.byte(), 0].repeat(count);
    tcp(&mut alice).write_bytes(&empty(TCP_EMPTY_FRAMES_MAX as usize)).await.unwrap();
    alice.ping().await;
    tcp(&mut alice).write_bytes(&empty(1)).await.unwrap();
    alice.expect_close(CloseCode::ProtocolViolation).await;
}

#[tokio::test]
async fn an_unknown_lane_is_refused_before_its_frame_is_there() {
    let server = TestServer::start().await;
    for rest in [&[][..], &[0x7f]] {
        let mut alice = server.sign_in(ALICE, "phone").await;
        tcp(&mut alice).write_bytes(&[[4].as_slice(), rest].concat()).await.unwrap();
        alice.expect_close(CloseCode::ProtocolViolation).await;
    }
}

#[tokio::test]
async fn media_before_the_chat_lane_do_not_keep_it_from_opening() {
    const MEDIA: usize = 300;
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").lanes(&[Lane::Control, Lane::Media]).pipelined().open().await;
    for number in 0..MEDIA {
        let media = MediaPayloadRequest {
            from: Some(alice.identity()),
            to: vec![identity(BOB)],
            message_id_local: format!("local-{number}"),
            r#type: 1,
            cdn_url_id: "https://cdn.example/cat.png".into(),
            ..MediaPayloadRequest::default()
        };
        alice.send(Lane::Media, Payload::MediaPayloadRequest(media)).await;
    }
    alice.open(Lane::Chat).await;
    for _ in 0..256 {
        alice.expect::<VersionUpdate>(Lane::Chat).await;
    }
    for _ in 256..MEDIA {
        let refused = alice.expect::<ErrorMessage>(Lane::Media).await;
        assert_eq!(refused.code, 429);
    }
    alice.ping().await;
    alice.expect_nothing_more(Lane::Chat).await;
}

#[tokio::test]
async fn a_frame_before_session_open_holds_it_up_until_the_time_is_out() {
    // Bob signs in within this time on a busy machine, too.
    let server = TestServer::with(|config| config.session.open_within_ms = 4000).await;
    let mut alice = server.connect().await;
    alice.open(Lane::Chat).await;
    alice.open(Lane::Control).await;
    alice.post(BOB, "local-1", "too early").await;
    alice.send(Lane::Control, Payload::SessionOpen(server.session(ALICE, "phone").open)).await;
    alice.expect_error(Lane::Control, 401, 0).await;
    alice.expect_close(CloseCode::Unauthenticated).await;
    assert_eq!(server.sign_in(BOB, "phone").await.accept.log_head, 0);
}

#[tokio::test]
async fn the_close_code_reaches_a_device_that_is_still_sending() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    // An invalid length, and more bytes behind it than the server has read when it closes.
    let mut bytes = vec![Lane::Chat.byte(), 0xff, 0xff, 0xff, 0xff, 0xff];
    bytes.resize(200_000, 0);
    tcp(&mut alice).write_bytes(&bytes).await.unwrap();
    alice.expect_error(Lane::Chat, 413, 0).await;
    alice.expect_close(CloseCode::ProtocolViolation).await;
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn a_lane_whose_first_frame_is_too_large_is_told_so() {
    let server = TestServer::start().await;
    for lane in Lane::ALL {
        let mut stranger = server.connect().await;
        tcp(&mut stranger).takes(lane);
        tcp(&mut stranger).write_bytes(&[lane.byte(), 0xff, 0xff, 0xff, 0x7f]).await.unwrap();
        stranger.expect_error(lane, 413, 0).await;
        stranger.expect_close(CloseCode::ProtocolViolation).await;
    }
}

#[tokio::test]
async fn a_device_that_vanishes_is_seen_to_be_gone_with_or_without_the_end_of_tls() {
    let server = TestServer::start().await;
    server.sign_in(ALICE, "phone").await.leave();
    ended(&server, "closed_by_peer", 1.0).await;
    // As when the operating system kills the application: TCP ends without the end of TLS.
    drop(server.sign_in(ALICE, "phone").await);
    ended(&server, "reset", 1.0).await;
    server.sign_in(ALICE, "phone").await.ping().await;
}

#[tokio::test]
async fn what_is_cut_off_within_a_frame_was_never_said() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let text = Payload::TextPayloadRequest(alice.text(BOB, "local-1", "half of it"));
    let frame = bimip::wire::encode_frame(&bimip::wire::envelope(text));
    alice.write(Lane::Chat, &frame[..frame.len() - 1]).await;
    drop(alice);
    ended(&server, "reset", 1.0).await;
    bystanders.assert_unharmed().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    assert_eq!(alice.say(BOB, "local-1", "all of it").await.version, 1);
    assert_eq!(text_of(&*bystanders.bob.hear().await), "all of it");
}

#[tokio::test]
async fn a_pong_overtakes_the_messages_that_a_slow_reader_has_not_taken() {
    const MESSAGES: usize = 300;
    const BYTES: usize = 10_000;
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    for n in 1..=MESSAGES {
        alice.say(BOB, &format!("local-{n}"), &"x".repeat(BYTES)).await;
    }
    let mut bob = server.sign_in(BOB, "phone").await;
    // Meanwhile the server writes to bob's connection what it can.
    for _ in 0..100 {
        alice.ping().await;
    }
    bob.send(Lane::Control, Payload::PingpongMessage(PingPong { r#type: 1, ..PingPong::default() })).await;
    for _ in 0..100 {
        alice.ping().await;
    }
    bob.expect::<PingPong>(Lane::Control).await;
    let ahead = tcp(&mut bob).waiting(Lane::Chat);
    // Most of these bytes lie in the receive buffer of bob's kernel. Without a bound on the server's side, all messages
    // were ahead of the pong.
    assert!(ahead < 256 * 1024, "{ahead} bytes were ahead of it");
    for n in 1..=MESSAGES {
        assert_eq!(bob.hear().await.version, n as i64);
    }
}

#[tokio::test]
async fn who_connects_and_says_nothing_does_not_keep_others_out() {
    const PLACES: usize = 4;
    let server = TestServer::with(|config| {
        config.quic.handshakes_max = PLACES;
        config.quic.handshakes_before_retry = PLACES;
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..PLACES {
        silent.push(TcpStream::connect(server.tcp_address()).await.unwrap());
    }
    #[cfg(target_os = "linux")] // Linux answers on all of 127.0.0.0/8.
    {
        let elsewhere = tokio::net::TcpSocket::new_v4().unwrap();
        elsewhere.bind(([127, 0, 0, 2], 0).into()).unwrap();
        let elsewhere = elsewhere.connect(server.tcp_address()).await.unwrap();
        let tls = Arc::new(client_tls(&server.files().ca, ALPN));
        assert!(TcpLink::over(elsewhere, tls).await.is_ok());
        let (mut oldest, mut said) = (silent.remove(0), Vec::new());
        within_bound("the end of the oldest handshake", oldest.read_to_end(&mut said)).await.unwrap();
        assert!(said.is_empty());
        assert_eq!(server.metric("bimip_handshakes_evicted_total").await, 1.0);
    }
    // The silent connections' places become free.
    drop(silent);
    let back = async { while server.try_connect().await.is_err() {} };
    within_bound("a place", back).await;
}
