//! A raw client's connection over QUIC or TCP, and the one place that chooses between them. It offers lanes and does not
//! keep a client from misbehaving.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bimip::wire::{ALPN, CloseCode, Lane};
use bytes::Bytes;
use quinn::Endpoint;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::quic::{QuicLink, client_endpoint};
use super::tcp::TcpLink;

/// The transports that the server listens on (protocol.md §1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A stream for each lane.
    Quic,
    /// TLS over TCP: one stream for all lanes.
    Tcp,
}

impl Transport {
    /// The transport of this test program's clients. The families' tests are compiled twice: each as a program of its
    /// own, over QUIC; and all of them in `tests/over_tcp/main.rs`, over TCP.
    pub const HERE: Transport = match env!("CARGO_CRATE_NAME").as_bytes() {
        b"over_tcp" => Transport::Tcp,
        _ => Transport::Quic,
    };

    /// Its value of the metrics' label `transport`.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Quic => "quic",
            Transport::Tcp => "tcp",
        }
    }
}

/// TLS settings for clients that trust one certificate authority.
pub fn client_tls(ca: &Path, alpn: &[u8]) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("the server has written ca.pem")).expect("an authority");
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("aws-lc-rs has TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls
}

/// Connects clients to one server.
pub struct Dialer {
    quic: Endpoint,
    tls: Arc<rustls::ClientConfig>,
}

impl Dialer {
    /// For clients that trust one certificate authority.
    pub fn new(ca: &Path) -> Dialer {
        let tls = client_tls(ca, ALPN);
        Dialer { quic: client_endpoint(tls.clone()), tls: Arc::new(tls) }
    }

    /// Moves all QUIC clients to another socket, as after a change of network.
    pub fn rebind(&self, socket: std::net::UdpSocket) {
        self.quic.rebind(socket).expect("a socket");
    }

    /// An established connection with no lane open.
    ///
    /// # Errors
    /// The server refuses the connection, or the handshake fails.
    pub async fn dial(&self, over: Transport, address: SocketAddr) -> Result<Link, String> {
        Ok(match over {
            Transport::Quic => Link::Quic(QuicLink::dial(&self.quic, address).await.map_err(|e| e.to_string())?),
            Transport::Tcp => Link::Tcp(TcpLink::dial(self.tls.clone(), address).await.map_err(|e| e.to_string())?),
        })
    }
}

/// A connection and its lanes.
pub enum Link {
    /// Over QUIC.
    Quic(Box<QuicLink>),
    /// Over TLS on TCP.
    Tcp(Box<TcpLink>),
}

impl Link {
    /// Opens a lane with this lane byte. The byte may be unknown or already in use.
    pub async fn open(&mut self, byte: u8) {
        match self {
            Link::Quic(link) => link.open(byte).await,
            Link::Tcp(link) => link.open(byte).await,
        }
    }

    /// Writes to an open lane.
    ///
    /// # Errors
    /// The reason why the lane or the connection takes no more bytes.
    pub async fn write(&mut self, lane: Lane, bytes: &[u8]) -> Result<(), String> {
        match self {
            Link::Quic(link) => link.write(lane, bytes).await,
            Link::Tcp(link) => link.write(lane, bytes).await,
        }
    }

    /// The next bytes of a lane. The future may be dropped and the method called again.
    ///
    /// # Errors
    /// The reason why no more bytes will come.
    pub async fn read(&mut self, lane: Lane) -> Result<Bytes, String> {
        match self {
            Link::Quic(link) => link.read(lane).await,
            Link::Tcp(link) => link.read(lane).await,
        }
    }

    /// Waits for the server's close and returns its code. Frames that arrive before it are discarded.
    pub async fn closed(&mut self) -> CloseCode {
        match self {
            Link::Quic(link) => link.closed().await,
            Link::Tcp(link) => link.closed().await,
        }
    }

    /// Closes the connection without a `Logout`.
    pub fn close(self) {
        match self {
            Link::Quic(link) => link.close(),
            Link::Tcp(link) => link.close(),
        }
    }
}
