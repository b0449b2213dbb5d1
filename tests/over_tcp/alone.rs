//! TLS over TCP: the same lanes, each frame behind its lane's byte (profile 2), and the same families behind them.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use bimip::wire::proto::{PingPong, SessionOpen, TextPayloadRequest, chat_message};
use bimip::wire::{
    ALPN, CloseCode, DeviceId, Eid, Lane, LaneFrameDecoder, MessageScheme, Payload, encode_frame, envelope,
    open_envelope,
};
use common::{TestServer, within_bound};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";

/// A device over TCP that writes what it is told to.
struct Plain {
    stream: TlsStream<TcpStream>,
    decoder: LaneFrameDecoder,
}

impl Plain {
    async fn connect(server: &TestServer, alpn: &[u8]) -> std::io::Result<Plain> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(server.files().ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let socket = TcpStream::connect(server.tcp_address().unwrap()).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, socket).await?;
        Ok(Plain { stream, decoder: LaneFrameDecoder::new(64 * 1024) })
    }

    async fn signed_in(server: &TestServer, eid: &str) -> Plain {
        let mut device = Plain::connect(server, ALPN).await.unwrap();
        let (user, id) = (Eid::parse(eid).unwrap(), DeviceId::parse("phone").unwrap());
        let open = SessionOpen {
            identity: Some(user.device_identity(&id)),
            token: server.token(eid, None),
            pipelined: true,
            ..SessionOpen::default()
        };
        // Everything in one flight: the frames behind SessionOpen are held until it is accepted.
        let mut flight = frame(Lane::Control, Payload::SessionOpen(open));
        flight.extend([Lane::Chat.byte(), 0]);
        device.write(&flight).await;
        assert!(matches!(device.next(Lane::Control).await.payload, Some(Payload::SessionAccept(_))));
        device
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next frame, which must be on this lane.
    async fn next(&mut self, lane: Lane) -> MessageScheme {
        let (byte, scheme) = self.frame().await.expect("a frame, and not the end");
        assert_eq!(byte, lane.byte());
        scheme
    }

    /// The next frame, or `None` once the server has ended the stream.
    async fn frame(&mut self) -> Option<(u8, MessageScheme)> {
        loop {
            if let Some((lane, frame)) = self.decoder.next_frame().unwrap() {
                return Some((lane, open_envelope(&frame).unwrap()));
            }
            let mut bytes = [0; 4096];
            match within_bound("bytes", self.stream.read(&mut bytes)).await.unwrap() {
                0 => return None,
                read => self.decoder.feed(&bytes[..read]),
            }
        }
    }

    async fn expect_error(&mut self, lane: Lane, code: i32) {
        match self.next(lane).await.payload {
            Some(Payload::ErrorMessage(error)) => assert_eq!(error.code, code),
            other => panic!("{other:?} instead of error {code}"),
        }
    }

    /// The close code as the last error, then the end of the stream.
    async fn expect_close(&mut self, code: CloseCode) {
        self.expect_error(Lane::Control, code.tcp_error_code()).await;
        assert!(self.frame().await.is_none());
    }
}

fn frame(lane: Lane, payload: Payload) -> Vec<u8> {
    [&[lane.byte()][..], &encode_frame(&envelope(payload))].concat()
}

fn text(from: &str, to: &str, local: &str) -> Payload {
    Payload::TextPayloadRequest(TextPayloadRequest {
        from: Some(common::identity(from)),
        to: vec![common::identity(to)],
        content: format!("text {local}"),
        message_id_local: local.to_owned(),
        ..TextPayloadRequest::default()
    })
}

#[tokio::test]
async fn a_device_over_tcp_talks_with_one_over_quic() {
    let server = TestServer::start().await;
    assert_eq!(server.tcp_address().unwrap().port(), server.quic_address().port());
    let mut alice = Plain::signed_in(&server, ALICE).await;
    let mut bob = server.sign_in(BOB, "phone").await;
    alice.write(&frame(Lane::Chat, text(ALICE, BOB, "1"))).await;
    let update = alice.next(Lane::Chat).await;
    assert!(matches!(&update.payload, Some(Payload::VersionUpdate(update)) if update.version == 1), "{update:?}");
    assert_eq!(update.sequence, 1);
    assert_eq!(bob.hear().await.version, 1);
    bob.say(ALICE, "2", "text 2").await;
    let heard = alice.next(Lane::Chat).await;
    let Some(Payload::ChatMessage(message)) = heard.payload else { panic!("{heard:?}") };
    assert_eq!((message.version, message.payload), (2, Some(chat_message::Payload::Text("text 2".to_owned()))));
    assert_eq!(server.metric("bimip_sessions{transport=\"tcp\"}").await, 1.0);
}

#[tokio::test]
async fn what_is_wrong_is_refused_as_over_quic_and_the_close_code_is_the_last_error() {
    let server = TestServer::start().await;
    let mut alice = Plain::signed_in(&server, ALICE).await;
    let ping = PingPong { r#type: 1, status: 1, ..PingPong::default() };
    alice.write(&frame(Lane::Chat, Payload::PingpongMessage(ping.clone()))).await;
    alice.expect_error(Lane::Chat, 421).await;
    alice.write(&[Lane::Control.byte(), 1, 0xff]).await;
    alice.expect_error(Lane::Control, 400).await;
    // An empty frame on an open lane says nothing.
    alice.write(&[Lane::Control.byte(), 0]).await;
    alice.write(&frame(Lane::Control, Payload::PingpongMessage(ping))).await;
    assert!(
        matches!(alice.next(Lane::Control).await.payload, Some(Payload::PingpongMessage(pong)) if pong.status == 2)
    );
    // A length prefix of 65,537.
    alice.write(&[Lane::Chat.byte(), 0x81, 0x80, 0x04]).await;
    alice.expect_error(Lane::Chat, 413).await;
    alice.expect_close(CloseCode::ProtocolViolation).await;

    let mut stranger = Plain::connect(&server, ALPN).await.unwrap();
    stranger.write(&[9, 0]).await;
    stranger.expect_close(CloseCode::ProtocolViolation).await;

    let mut silent = Plain::connect(&server, ALPN).await.unwrap();
    silent.write(&frame(Lane::Control, Payload::PingpongMessage(PingPong::default()))).await;
    silent.expect_error(Lane::Control, 401).await;
    silent.expect_close(CloseCode::Unauthenticated).await;

    let other = Plain::connect(&server, b"h2").await;
    assert!(other.is_err(), "another protocol is not taken");
}

#[tokio::test]
async fn nothing_is_pushed_on_a_lane_that_was_not_opened_and_a_drain_says_so() {
    let server = TestServer::start().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut alice = Plain::connect(&server, ALPN).await.unwrap();
    let (user, id) = (Eid::parse(ALICE).unwrap(), DeviceId::parse("phone").unwrap());
    let open = SessionOpen {
        identity: Some(user.device_identity(&id)),
        token: server.token(ALICE, None),
        ..SessionOpen::default()
    };
    alice.write(&frame(Lane::Control, Payload::SessionOpen(open))).await;
    alice.next(Lane::Control).await;
    bob.say(ALICE, "1", "for later").await;
    let ping = PingPong { r#type: 1, status: 1, ..PingPong::default() };
    alice.write(&frame(Lane::Control, Payload::PingpongMessage(ping))).await;
    // The pong comes first, although a message waits.
    alice.next(Lane::Control).await;
    alice.write(&[Lane::Chat.byte(), 0]).await;
    assert!(matches!(alice.next(Lane::Chat).await.payload, Some(Payload::ChatMessage(_))));
    let draining = tokio::spawn(server.shutdown());
    alice.expect_close(CloseCode::Draining).await;
    draining.await.unwrap();
}
