//! QUIC: the endpoint, its bounds, and who is served on it (protocol.md §1).

mod link;
mod tls;

use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use governor::{Quota, RateLimiter};
use quinn::congestion::{BbrConfig, NewRenoConfig};
use quinn::{
    Connecting, Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming, RecvStream, SendStream,
    ServerConfig, TransportConfig, VarInt,
};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Congestion, QuicConfig};
use crate::congestion::FlooredCubic;
use crate::limits::{CLOSE_LINGER, RESET_INTERVAL, STREAMS_MAX, UDP_BUFFER_BYTES};
use crate::observe::{Metrics, TransportKind, ZeroRttResult};
use crate::session::{Services, drive};
use crate::store::Store;
use crate::wire::CloseCode;

use super::Tickets;
use super::bursts::ShortBursts;
use super::crowd::{Admitted, Crowd, Handshake};
use super::quic_lb::Issuer;
use link::QuicLink;
use tls::QuicTls;

/// Why the endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The address cannot be bound.
    #[error("cannot listen on UDP {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The settings cannot be used.
    #[error("quic: {0}")]
    Settings(String),
}

/// The configuration that connections are accepted with. `tls` must offer [`crate::wire::ALPN`] and only TLS 1.3. With `tickets` of
/// its own, a client that resumes one of an earlier configuration does a full handshake, and sees the certificate of `tls`.
///
/// # Errors
/// [`QuicError::Settings`] if rustls or quinn would refuse `tls`, or the idle timeout is too long.
pub fn server_config(
    config: &QuicConfig,
    tls: rustls::ServerConfig,
    tickets: Arc<Tickets>,
) -> Result<ServerConfig, QuicError> {
    let mut server = ServerConfig::with_crypto(crypto(tls, tickets)?);
    server.transport_config(Arc::new(transport(config)?)).migration(true).max_incoming(config.handshakes_max);
    Ok(server)
}

/// The same with another certificate and other tickets. Tokens that prove a client's address stay valid.
///
/// # Errors
/// [`QuicError::Settings`] if rustls or quinn would refuse `tls`.
pub fn with_tls(
    server: &ServerConfig,
    tls: rustls::ServerConfig,
    tickets: Arc<Tickets>,
) -> Result<ServerConfig, QuicError> {
    let mut server = server.clone();
    server.crypto = crypto(tls, tickets)?;
    Ok(server)
}

/// No tickets yet, for a server of so many connections. Those that clients present and that are not known are counted.
pub fn tickets(connections: usize, metrics: &Arc<Metrics>) -> Arc<Tickets> {
    let metrics = metrics.clone();
    Arc::new(Tickets::new(connections, move || metrics.zero_rtt[ZeroRttResult::Rejected].increment(1)))
}

fn crypto(mut tls: rustls::ServerConfig, tickets: Arc<Tickets>) -> Result<Arc<QuicTls>, QuicError> {
    tls.session_storage = tickets;
    // QUIC allows no other size (RFC 9001, 4.6.1); what is held of early data is bounded by the windows.
    tls.max_early_data_size = u32::MAX;
    QuicTls::new(tls).map(Arc::new).map_err(|error| QuicError::Settings(error.to_string()))
}

/// Opens the server's endpoint.
///
/// `reset_key` must be the same after a restart: with it, a restarted server tells a client at once that it no longer knows the
/// connection (RFC 9000, 10.3); else the client would only see silence. `ids` makes the connection ids.
///
/// # Errors
/// [`QuicError::Bind`] if the address cannot be bound, or outside of a tokio runtime.
pub fn bind(
    address: SocketAddr,
    server: ServerConfig,
    reset_key: &[u8; 32],
    ids: Arc<Issuer>,
) -> Result<Endpoint, QuicError> {
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, reset_key);
    let endpoint = endpoint(reset_key, ids);
    let open = || {
        let socket = roomy_socket(address)?;
        let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no tokio runtime"))?;
        let socket = ShortBursts::over(runtime.wrap_udp_socket(socket)?);
        Endpoint::new_with_abstract_socket(endpoint, Some(server), socket, runtime)
    };
    open().map_err(|source| QuicError::Bind { address, source })
}

/// A UDP socket for many connections at once, with buffers of [`UDP_BUFFER_BYTES`] if the kernel grants them.
pub(crate) fn roomy_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    let kernel = quinn::udp::UdpSocketState::new((&socket).into())?;
    // Smaller buffers work, too; `bimip doctor` reports them.
    let _ = kernel.set_recv_buffer_size((&socket).into(), UDP_BUFFER_BYTES);
    let _ = kernel.set_send_buffer_size((&socket).into(), UDP_BUFFER_BYTES);
    Ok(socket)
}

/// The version number of RFC 9000, section 15.
const QUIC_V1: u32 = 1;

fn endpoint(reset_key: hmac::Key, ids: Arc<Issuer>) -> EndpointConfig {
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
    // quinn would accept drafts, too.
    endpoint.supported_versions(vec![QUIC_V1]);
    endpoint.min_reset_interval(RESET_INTERVAL);
    endpoint.cid_generator(move || Box::new(ids.generator()));
    endpoint
}

pub(super) fn transport(config: &QuicConfig) -> Result<TransportConfig, QuicError> {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(Duration::from_millis(config.idle_timeout_ms))
        .map_err(|_| QuicError::Settings("quic.idle_timeout_ms is too long".to_owned()))?;
    transport
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(0u8.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle))
        .stream_receive_window(config.stream_receive_window.into())
        .receive_window(config.connection_receive_window.into())
        .send_window(config.send_window.into())
        .initial_rtt(Duration::from_millis(config.initial_rtt_ms));
    if config.keep_alive_ms > 0 {
        transport.keep_alive_interval(Some(Duration::from_millis(config.keep_alive_ms)));
    }
    match config.congestion {
        Congestion::Cubic => transport.congestion_controller_factory(Arc::new(FlooredCubic::default())),
        Congestion::Bbr => transport.congestion_controller_factory(Arc::new(BbrConfig::default())),
        Congestion::NewReno => transport.congestion_controller_factory(Arc::new(NewRenoConfig::default())),
    };
    Ok(transport)
}

/// Chooses the configuration that a connection is accepted with; `None`: the endpoint's own.
pub type AcceptWith = Arc<dyn Fn(&Incoming) -> Option<Arc<ServerConfig>> + Send + Sync>;

/// Accepts connections until `stop`; a task of `tasks` serves each.
pub async fn serve(
    endpoint: Endpoint,
    config: QuicConfig,
    accept_with: AcceptWith,
    crowd: Arc<Crowd>,
    (services, store): (Arc<Services>, Arc<dyn Store>),
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let unproven = Quota::per_second(NonZeroU32::new(config.handshakes_unproven_per_second).unwrap_or(NonZeroU32::MIN));
    let unproven = RateLimiter::direct(unproven);
    loop {
        let incoming = tokio::select! {
            () = stop.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let (shaking, _) = crowd.handshakes(TransportKind::Quic);
        let is_proven = incoming.remote_address_validated() || !incoming.may_retry();
        if !is_proven && (shaking >= config.handshakes_before_retry || unproven.check().is_err()) {
            // An address that does not answer costs only this packet and no state.
            services.metrics.handshakes_retried.increment(1);
            if let Err(error) = incoming.retry() {
                error.into_incoming().ignore();
            }
            continue;
        }
        // Only now: nobody gives way to an address that does not answer.
        let admitted = match crowd.admit(TransportKind::Quic, incoming.remote_address(), Instant::now()) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                refusal.count(&services.metrics);
                incoming.refuse();
                continue;
            }
        };
        let accept_with = accept_with(&incoming);
        let shared = (services.clone(), store.clone());
        let within = crowd.handshake_within();
        tasks.spawn(connect(incoming, accept_with, (admitted, within), shared, stop.clone()));
    }
}

/// Serves a connection from its first packet to its end.
///
/// This is not an `async fn`, and the handshake is boxed: a task reserves memory for everything that is moved into it, and idle
/// sessions would keep what their first packet needed.
fn connect(
    incoming: Incoming,
    accept_with: Option<Arc<ServerConfig>>,
    (Admitted { connection: place, handshake: shaking, .. }, within): (Admitted, Duration),
    (services, store): (Arc<Services>, Arc<dyn Store>),
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    let begun = Box::pin(begin(incoming, accept_with, (shaking, within), services.clone(), stop));
    async move {
        let _place = place;
        match begun.await {
            None => {}
            Some(Begun::Shaken(connection)) => {
                let link = QuicLink::new(connection, services.clone());
                drive(link, services, store).await;
            }
            // The client sent something before the handshake was complete.
            Some(Begun::Early { connection, streams, complete, handshake }) => {
                let link = QuicLink::new(connection, services.clone()).early(streams, complete);
                tokio::join!(drive(link, services, store), handshake);
            }
        }
    }
}

/// How far a connection is when its session begins.
enum Begun {
    Shaken(Connection),
    /// The handshake is not complete, and continues beside the session.
    Early {
        connection: Connection,
        streams: (SendStream, RecvStream),
        /// Receives when it is; closed if it has failed.
        complete: oneshot::Receiver<()>,
        handshake: Pin<Box<dyn Future<Output = ()> + Send>>,
    },
}

/// Waits until the client may be served; `None` if it is gone.
async fn begin(
    incoming: Incoming,
    accept_with: Option<Arc<ServerConfig>>,
    (shaking, within): (Handshake, Duration),
    services: Arc<Services>,
    stop: CancellationToken,
) -> Option<Begun> {
    let began = Instant::now();
    let remote = incoming.remote_address();
    let accepted = match accept_with {
        Some(config) => incoming.accept_with(config),
        None => incoming.accept(),
    };
    // A server's connection can always be used before its handshake is complete: it reads 0-RTT data, and answers.
    let Ok(Ok((connection, proof))) = accepted.map(Connecting::into_0rtt) else {
        tracing::debug!(%remote, "the first packet could not be answered");
        if !stop.is_cancelled() {
            services.metrics.handshakes_failed[TransportKind::Quic].increment(1);
        }
        return None;
    };
    let (shaken, metrics) = (connection.clone(), services.metrics.clone());
    let (completed, complete) = oneshot::channel();
    let mut handshake = Box::pin(async move {
        let given_up = tokio::select! {
            biased;
            _ = proof => None,
            () = shaking.evicted() => {
                metrics.handshakes_evicted.increment(1);
                Some("others need the handshake's place")
            }
            () = sleep(within) => {
                metrics.handshakes_failed[TransportKind::Quic].increment(1);
                Some("handshake took too long")
            }
        };
        drop(shaking);
        if let Some(reason) = given_up {
            tracing::debug!(%remote, reason, "handshake given up");
            return shaken.close(VarInt::from_u32(CloseCode::Internal.code().unsigned_abs()), reason.as_bytes());
        }
        match shaken.close_reason() {
            // The server ends what it answered early, or a client what it had established.
            Some(ConnectionError::LocallyClosed | ConnectionError::ApplicationClosed(_)) => {}
            Some(error) => {
                tracing::debug!(%remote, %error, "handshake failed");
                metrics.handshakes_failed[TransportKind::Quic].increment(1);
            }
            None => {
                metrics.handshake[TransportKind::Quic].record(began.elapsed());
                // Nobody receives it unless the session began early.
                let _ = completed.send(());
            }
        }
    });
    // A client whose handshake is almost complete, or that has sent something, is still told why the server closes; a shutdown
    // does not wait for others.
    let too_late = async move {
        stop.cancelled().await;
        sleep(CLOSE_LINGER).await;
    };
    let first = tokio::select! {
        biased;
        first = connection.accept_bi() => Some(first),
        () = &mut handshake => None,
        () = too_late => {
            let code = CloseCode::Draining;
            connection.close(VarInt::from_u32(code.code().unsigned_abs()), code.name().as_bytes());
            return None;
        }
    };
    match first {
        Some(Ok(streams)) => {
            if streams.1.is_0rtt() {
                services.metrics.zero_rtt[ZeroRttResult::Accepted].increment(1);
            }
            Some(Begun::Early { connection, streams, complete, handshake })
        }
        Some(Err(_)) => {
            handshake.await;
            None
        }
        None => connection.close_reason().is_none().then_some(Begun::Shaken(connection)),
    }
}

#[cfg(test)]
mod tests;
