//! Lanes over QUIC: a stream for each (profile 2).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bimip::wire::{CloseCode, Lane};
use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ApplicationClose, ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::net::UdpSocket;

/// An endpoint for clients.
pub fn client_endpoint(tls: rustls::ClientConfig) -> Endpoint {
    let crypto = QuicClientConfig::try_from(tls).expect("aws-lc-rs has QUIC's initial cipher suite");
    let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).expect("a free UDP port");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    endpoint
}

/// Clients that begin a handshake each, from one address, are answered, and say nothing more. Their sockets go with what
/// this returns.
pub async fn half_open(tls: rustls::ClientConfig, server: SocketAddr, clients: usize) -> Vec<UdpSocket> {
    let endpoint = client_endpoint(tls);
    let mut silent = Vec::new();
    for _ in 0..clients {
        // What a client would say first, taken down where nobody answers.
        let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free UDP port");
        let address = nobody.local_addr().expect("a bound socket");
        let _connecting = endpoint.connect(address, "localhost").expect("the address is one");
        let mut first = [0; 2048];
        let (length, _) = nobody.recv_from(&mut first).await.expect("a packet");
        nobody.send_to(&first[..length], server).await.expect("loopback takes it");
        while nobody.recv_from(&mut first).await.expect("an answer").1 != server {}
        silent.push(nobody);
    }
    silent
}

/// A connection and its lanes.
pub struct QuicLink {
    connection: quinn::Connection,
    lanes: [Option<(SendStream, RecvStream)>; 4],
    /// Streams that are no lane of ours: a second opening, an unknown byte. Kept, since dropping one resets it.
    strays: Vec<(SendStream, RecvStream)>,
}

impl QuicLink {
    /// An established connection, with no lane open.
    pub async fn dial(endpoint: &Endpoint, address: SocketAddr) -> Result<Box<QuicLink>, ConnectionError> {
        let connection = endpoint.connect(address, "localhost").expect("the address is one").await?;
        Ok(Box::new(QuicLink { connection, lanes: [const { None }; 4], strays: Vec::new() }))
    }

    /// Opens a stream that names itself by `byte`, whatever that is and however often.
    pub async fn open(&mut self, byte: u8) {
        let mut streams = self.connection.open_bi().await.expect("a stream");
        streams.0.write_all(&[byte]).await.expect("a lane byte");
        match self.lanes.get_mut(usize::from(byte)) {
            Some(lane @ None) => *lane = Some(streams),
            _ => self.strays.push(streams),
        }
    }

    /// Writes to an open lane; the reason if that is no longer possible.
    pub async fn write(&mut self, lane: Lane, bytes: &[u8]) -> Result<(), String> {
        let (send, _) = self.lanes[lane.index()].as_mut().unwrap_or_else(|| panic!("{lane:?} is not open"));
        send.write_all(bytes).await.map_err(|error| error.to_string())
    }

    /// The next bytes of a lane; the reason if there are no more.
    pub async fn read(&mut self, lane: Lane) -> Result<Bytes, String> {
        let (_, recv) = self.lanes[lane.index()].as_mut().unwrap_or_else(|| panic!("{lane:?} is not open"));
        match recv.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => Ok(chunk.bytes),
            Ok(None) => Err("the server ended the lane".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The code with which the server closes.
    pub async fn closed(&self) -> CloseCode {
        match self.connection.closed().await {
            ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) => {
                CloseCode::from_quic(error_code.into_inner()).unwrap_or_else(|| panic!("close code {error_code}"))
            }
            other => panic!("expected a close by the server, got {other}"),
        }
    }

    /// Has both sides go on to new keys with the next packet (RFC 9001, 6).
    pub fn update_keys(&self) {
        self.connection.force_key_update();
    }

    /// Leaves, without a word to the session.
    pub fn close(&self) {
        self.connection.close(0u8.into(), b"");
    }
}
