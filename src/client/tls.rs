//! TLS and QUIC settings for a phone: TLS 1.3 with resumption, keep-alive, small windows, and no streams opened by the
//! server.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::client::Resumption;

use super::error::BuildError;
use super::limits::{CONNECTION_WINDOW_BYTES, INITIAL_RTT, SEND_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use super::tickets::Tickets;
use crate::congestion::FlooredCubic;
use crate::wire::{ALPN, TLS_RECORD_BYTES};

/// The configuration for QUIC. Connections begin with 0-RTT data if there is a ticket.
pub(crate) fn quic_config(
    roots: RootCertStore,
    tickets: Arc<Tickets>,
    keep_alive: Option<Duration>,
    idle_timeout: Duration,
) -> Result<ClientConfig, BuildError> {
    let mut tls = tls_config(roots, tickets)?;
    // A replay of early data is harmless because every request may be repeated (protocol.md §8).
    tls.enable_early_data = true;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| refused(&error))?;
    let mut quic = ClientConfig::new(Arc::new(crypto));
    quic.transport_config(Arc::new(transport(keep_alive, idle_timeout)?));
    Ok(quic)
}

/// QUIC's transport settings, chosen in docs/decisions/0003.
pub(crate) fn transport(keep_alive: Option<Duration>, idle_timeout: Duration) -> Result<TransportConfig, BuildError> {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle_timeout.try_into().map_err(|error| refused(&error))?))
        .keep_alive_interval(keep_alive)
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(FlooredCubic::default()));
    Ok(transport)
}

/// The configuration for TLS over TCP.
pub(crate) fn tcp_config(roots: RootCertStore) -> Result<rustls::ClientConfig, BuildError> {
    let mut config = tls_config(roots, Arc::default())?;
    config.max_fragment_size = Some(TLS_RECORD_BYTES);
    Ok(config)
}

fn tls_config(roots: RootCertStore, tickets: Arc<Tickets>) -> Result<rustls::ClientConfig, BuildError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| refused(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::store(tickets);
    Ok(config)
}

fn refused(error: &dyn fmt::Display) -> BuildError {
    BuildError::Tls(error.to_string())
}
