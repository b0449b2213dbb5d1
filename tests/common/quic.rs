//! Lanes over QUIC: one stream for each lane (protocol.md §1).

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

/// Begins a handshake from each of `clients` sockets on one address, waits for the server's answer, and sends nothing more.
/// The sockets stay open until the returned list is dropped.
pub async fn half_open(tls: rustls::ClientConfig, server: SocketAddr, clients: usize) -> Vec<UdpSocket> {
    let endpoint = client_endpoint(tls);
    let mut silent = Vec::new();
    for _ in 0..clients {
        // Capture a client's first packet at a socket that does not answer.
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
    /// Streams of a lane that was opened before, or of an unknown lane byte. Kept, because dropping a stream resets it.
    strays: Vec<(SendStream, RecvStream)>,
}

impl QuicLink {
    /// An established connection with no lane open.
    ///
    /// # Errors
    /// The server refuses the connection, or the handshake fails.
    pub async fn dial(endpoint: &Endpoint, address: SocketAddr) -> Result<Box<QuicLink>, ConnectionError> {
        let connection = endpoint.connect(address, "localhost").expect("the address is one").await?;
        Ok(Box::new(QuicLink { connection, lanes: [const { None }; 4], strays: Vec::new() }))
    }

    /// Opens a stream with this lane byte. The byte may be unknown or already in use.
    pub async fn open(&mut self, byte: u8) {
        let mut streams = self.connection.open_bi().await.expect("a stream");
        streams.0.write_all(&[byte]).await.expect("a lane byte");
        match self.lanes.get_mut(usize::from(byte)) {
            Some(lane @ None) => *lane = Some(streams),
            _ => self.strays.push(streams),
        }
    }

    /// Writes to an open lane.
    ///
    /// # Errors
    /// The reason why the stream takes no more bytes.
    pub async fn write(&mut self, lane: Lane, bytes: &[u8]) -> Result<(), String> {
        let (send, _) = self.lanes[lane.index()].as_mut().unwrap_or_else(|| panic!("{lane:?} is not open"));
        send.write_all(bytes).await.map_err(|error| error.to_string())
    }

    /// The next bytes of a lane.
    ///
    /// # Errors
    /// The reason why no more bytes will come.
    pub async fn read(&mut self, lane: Lane) -> Result<Bytes, String> {
        let (_, recv) = self.lanes[lane.index()].as_mut().unwrap_or_else(|| panic!("{lane:?} is not open"));
        match recv.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => Ok(chunk.bytes),
            Ok(None) => Err("the server ended the lane".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Ends the sending side of an open lane.
    pub fn finish(&mut self, lane: Lane) {
        let (send, _) = self.lanes[lane.index()].as_mut().unwrap_or_else(|| panic!("{lane:?} is not open"));
        send.finish().expect("it has not ended yet");
    }

    /// Stops the receiving side of an open lane: QUIC's STOP_SENDING.
    pub fn stop(&mut self, lane: Lane) {
        let (_, recv) = self.lanes[lane.index()].as_mut().unwrap_or_else(|| panic!("{lane:?} is not open"));
        recv.stop(0u8.into()).expect("it has not ended yet");
    }

    /// Waits for the server's close and returns its code.
    pub async fn closed(&self) -> CloseCode {
        match self.connection.closed().await {
            ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) => {
                CloseCode::from_quic(error_code.into_inner()).unwrap_or_else(|| panic!("close code {error_code}"))
            }
            other => panic!("expected a close by the server, got {other}"),
        }
    }

    /// Starts a key update with the next packet (RFC 9001, 6).
    pub fn update_keys(&self) {
        self.connection.force_key_update();
    }

    /// How many datagrams it has sent.
    pub fn sent(&self) -> u64 {
        self.connection.stats().udp_tx.datagrams
    }

    /// Waits until it has sent more than these datagrams, and then no more for a while. For a runtime of one thread, on
    /// which its connection sends all that it may before this looks again.
    pub async fn rest(&self, before: u64) {
        let (mut sent, mut looks) = (before, 0);
        while looks < 100 {
            tokio::task::yield_now().await;
            looks += 1;
            if self.sent() == before {
                looks = 0;
            }
            if self.sent() > sent {
                (sent, looks) = (self.sent(), 0);
            }
        }
    }

    /// Closes the connection without a `Logout`.
    pub fn close(&self) {
        self.connection.close(0u8.into(), b"");
    }
}
