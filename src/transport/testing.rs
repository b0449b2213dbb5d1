//! Helpers for tests of the transports: certificates, QUIC connections, and a crowd whose handshakes may take only a moment.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint};
use rustls_pki_types::PrivateKeyDer;

use super::quic_lb::Issuer;
use super::{Crowd, CrowdLimits, quic};
use crate::config::QuicConfig;
use crate::observe::{Metrics, TransportKind};
use crate::wire::ALPN;

/// Far longer than any event here takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const RESET_KEY: [u8; 32] = [7; 32];

/// Makes ids as a server does that is behind no balancer.
pub(super) fn unbalanced_ids() -> Arc<Issuer> {
    let random = |bytes: &mut [u8]| aws_lc_rs::rand::fill(bytes).unwrap();
    Arc::new(Issuer::unbalanced(&RESET_KEY, random).unwrap())
}

/// A server's settings, and those of a client that trusts it, under the name `localhost`.
pub(super) fn tls() -> (rustls::ServerConfig, rustls::ClientConfig) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.der().clone(), PrivateKeyDer::try_from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth();
    let mut server = server.with_single_cert(vec![certificate.clone()], key.unwrap()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    server.alpn_protocols = vec![ALPN.to_vec()];
    client.alpn_protocols = vec![ALPN.to_vec()];
    (server, client)
}

/// Room for ten, whose handshakes may take a twentieth of a second.
pub(super) fn hasty_crowd() -> Arc<Crowd> {
    let handshake_within = Duration::from_millis(50);
    Arc::new(Crowd::new(&CrowdLimits {
        connections: 10,
        per_address: 0,
        sockets: 10,
        handshakes: 10,
        handshake_within,
    }))
}

/// Waits until all places of connections and of the transport's handshakes are free.
pub(super) async fn until_nobody_is_there(crowd: &Crowd, transport: TransportKind) {
    let free = async {
        while (crowd.connections().0, crowd.handshakes(transport).0) != (0, 0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("the places are freed");
}

/// Both sides of a QUIC connection, with nothing but quinn on them.
pub(super) struct Pair {
    pub(super) server: Connection,
    pub(super) client: Connection,
    _endpoints: (Endpoint, Endpoint),
}

impl Pair {
    /// The client's own limits are quinn's, which are wider.
    pub(super) async fn connect(config: &QuicConfig) -> Pair {
        let endpoints = Pair::endpoints(config);
        let connecting = endpoints.1.connect(endpoints.0.local_addr().unwrap(), "localhost").unwrap();
        let accepting = async { endpoints.0.accept().await.unwrap().await };
        let both = tokio::time::timeout(PATIENCE, async { tokio::join!(accepting, connecting) }).await;
        let (server, client) = both.expect("a handshake");
        Pair { server: server.unwrap(), client: client.unwrap(), _endpoints: endpoints }
    }

    /// The server's with this configuration, and the client's that trusts it.
    pub(super) fn endpoints(config: &QuicConfig) -> (Endpoint, Endpoint) {
        let (server, client) = tls();
        let tickets = quic::tickets(config.max_connections, &Arc::new(Metrics::new()));
        let server = quic::server_config(config, server, tickets).unwrap();
        let server = quic::bind((Ipv4Addr::LOCALHOST, 0).into(), server, &RESET_KEY, unbalanced_ids()).unwrap();
        let crypto = QuicClientConfig::try_from(client).unwrap();
        let mut client = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        client.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        (server, client)
    }
}
