//! What a raw client's bytes travel over, and the one place that chooses it: lanes, with nothing that keeps a client from
//! misbehaving.

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

/// The two that the server listens on (profile 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A stream for each lane.
    Quic,
    /// TLS over TCP: one stream for all lanes.
    Tcp,
}

impl Transport {
    /// What the clients of this test program speak. The families' tests are compiled twice: each as a program of its
    /// own, over QUIC; and all of them in `tests/over_tcp/main.rs`.
    pub const HERE: Transport = match env!("CARGO_CRATE_NAME").as_bytes() {
        b"over_tcp" => Transport::Tcp,
        _ => Transport::Quic,
    };

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Quic => "quic",
            Transport::Tcp => "tcp",
        }
    }
}

/// TLS for clients that trust one authority.
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
    /// For clients that trust one authority.
    pub fn new(ca: &Path) -> Dialer {
        let tls = client_tls(ca, ALPN);
        Dialer { quic: client_endpoint(tls.clone()), tls: Arc::new(tls) }
    }

    /// QUIC's clients move to another socket, as phones do.
    pub fn rebind(&self, socket: std::net::UdpSocket) {
        self.quic.rebind(socket).expect("a socket");
    }

    /// An established connection with no lane open, unless the server refuses.
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
    /// Opens a lane that names itself by `byte`, whatever that is and however often.
    pub async fn open(&mut self, byte: u8) {
        match self {
            Link::Quic(link) => link.open(byte).await,
            Link::Tcp(link) => link.open(byte).await,
        }
    }

    /// Writes to an open lane; the reason if that is no longer possible.
    pub async fn write(&mut self, lane: Lane, bytes: &[u8]) -> Result<(), String> {
        match self {
            Link::Quic(link) => link.write(lane, bytes).await,
            Link::Tcp(link) => link.write(lane, bytes).await,
        }
    }

    /// The next bytes of a lane; the reason if there are no more. May be given up and called again.
    pub async fn read(&mut self, lane: Lane) -> Result<Bytes, String> {
        match self {
            Link::Quic(link) => link.read(lane).await,
            Link::Tcp(link) => link.read(lane).await,
        }
    }

    /// The code with which the server closes. What it still says before is not looked at.
    pub async fn closed(&mut self) -> CloseCode {
        match self {
            Link::Quic(link) => link.closed().await,
            Link::Tcp(link) => link.closed().await,
        }
    }

    /// Leaves, without a word to the session.
    pub fn close(self) {
        match self {
            Link::Quic(link) => link.close(),
            Link::Tcp(link) => link.close(),
        }
    }
}
