//! From a server's name to a QUIC connection: token, look-up, socket, handshake, each in bounded time.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, TokioRuntime, TransportConfig, VarInt};
use rustls::RootCertStore;
use tokio::time::timeout;

use super::error::{BuildError, CloseReason};
use super::limits::{
    ADDRESSES_MAX, CONNECTION_WINDOW_BYTES, HANDSHAKE_MAX, HANDSHAKE_MIN, LOOKUP_WITHIN, SEND_WINDOW_BYTES,
    STREAM_WINDOW_BYTES,
};
use super::link::close_reason;
use super::token::TokenSource;
use crate::wire::ALPN;

/// Everything that an attempt needs, and nothing that it changes.
pub(crate) struct Dialer {
    /// `host:port`.
    pub(crate) server: String,
    /// What the certificate must be for.
    pub(crate) server_name: String,
    /// Keeps the TLS sessions of earlier connections, for resumption.
    pub(crate) quic: ClientConfig,
    pub(crate) tokens: Arc<dyn TokenSource>,
    #[cfg(feature = "qlog")]
    pub(crate) qlog: Option<Traced>,
}

/// Gives the writer of a connection's trace.
#[cfg(feature = "qlog")]
pub(crate) type TraceSink = Box<dyn Fn() -> Option<Box<dyn std::io::Write + Send + Sync>> + Send + Sync>;

/// What makes a connection that is traced: its transport, which quinn does not let us copy, is made anew for each.
#[cfg(feature = "qlog")]
pub(crate) struct Traced {
    pub(crate) sink: TraceSink,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) idle_timeout: Duration,
}

/// What an attempt starts from.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// The socket of the connection before, if it may still be good.
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) bind: Option<SocketAddr>,
    /// Failures before this one.
    pub(crate) number: u32,
    /// The token that the server refused, and how.
    pub(crate) refused: Option<(String, CloseReason)>,
}

/// What it comes to.
#[derive(Debug)]
pub(crate) struct Dialed {
    pub(crate) endpoint: Endpoint,
    pub(crate) connection: Connection,
    pub(crate) token: String,
    pub(crate) started: Instant,
}

/// Why it did not.
#[derive(Debug)]
pub(crate) enum DialError {
    /// Worth another attempt.
    Failed(CloseReason),
    /// The server refused the token, and the source has no other.
    NoNewToken(CloseReason),
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("server", &self.server).field("server_name", &self.server_name).finish()
    }
}

impl Dialer {
    /// One attempt: every address of the server's name in turn.
    pub(crate) async fn dial(self: Arc<Self>, mut attempt: Attempt) -> Result<Dialed, DialError> {
        let token = self.token().await.map_err(DialError::Failed)?;
        if let Some((refused, reason)) = attempt.refused.take()
            && refused == token
        {
            return Err(DialError::NoNewToken(reason));
        }
        let started = Instant::now();
        let mut last = CloseReason::Network(format!("{} has no address", self.server));
        for address in self.addresses(attempt.bind).await.map_err(DialError::Failed)? {
            match self.connect(&mut attempt, address).await {
                Ok((endpoint, connection)) => return Ok(Dialed { endpoint, connection, token, started }),
                Err(reason) => last = reason,
            }
        }
        Err(DialError::Failed(last))
    }

    /// A token, in bounded time.
    pub(crate) async fn token(&self) -> Result<String, CloseReason> {
        match timeout(LOOKUP_WITHIN, self.tokens.token()).await {
            Ok(Ok(token)) => Ok(token),
            Ok(Err(error)) => Err(CloseReason::NoToken(error.to_string())),
            Err(_) => Err(CloseReason::NoToken("the token source did not answer in time".into())),
        }
    }

    /// For one connection.
    fn config(&self) -> ClientConfig {
        #[cfg(feature = "qlog")]
        if let Some(Traced { sink, keep_alive, idle_timeout }) = &self.qlog
            && let Ok(mut transport) = transport(*keep_alive, *idle_timeout)
            && let Some(writer) = sink()
        {
            let mut stream = quinn::QlogConfig::default();
            stream.writer(writer).title(Some(format!("bimip client to {}", self.server)));
            transport.qlog_stream(stream.into_stream());
            let mut quic = self.quic.clone();
            quic.transport_config(Arc::new(transport));
            return quic;
        }
        self.quic.clone()
    }

    async fn addresses(&self, bind: Option<SocketAddr>) -> Result<Vec<SocketAddr>, CloseReason> {
        let unresolved = |reason: String| CloseReason::Network(format!("cannot resolve {}: {reason}", self.server));
        let found = timeout(LOOKUP_WITHIN, tokio::net::lookup_host(&self.server))
            .await
            .map_err(|_| unresolved("no answer in time".into()))?
            .map_err(|error| unresolved(error.to_string()))?;
        let reachable = |address: &SocketAddr| bind.is_none_or(|bind| bind.is_ipv6() == address.is_ipv6());
        Ok(found.filter(reachable).take(ADDRESSES_MAX).collect())
    }

    async fn connect(&self, attempt: &mut Attempt, address: SocketAddr) -> Result<(Endpoint, Connection), CloseReason> {
        let fits = |endpoint: &Endpoint| endpoint.local_addr().is_ok_and(|local| local.is_ipv6() == address.is_ipv6());
        let endpoint = match attempt.endpoint.take().filter(fits) {
            Some(endpoint) => endpoint,
            None => endpoint(attempt.bind.unwrap_or_else(|| unspecified(address)))
                .map_err(|error| CloseReason::Network(format!("cannot open a UDP socket: {error}")))?,
        };
        let connecting = endpoint
            .connect_with(self.config(), address, &self.server_name)
            .map_err(|error| CloseReason::Network(error.to_string()))?;
        match timeout(handshake_within(attempt.number), connecting).await {
            Ok(Ok(connection)) => Ok((endpoint, connection)),
            Ok(Err(error)) => Err(close_reason(error)),
            Err(_) => Err(CloseReason::Network(format!("no answer from {address}"))),
        }
    }
}

/// A socket of one's own on this address.
pub(crate) fn endpoint(bind: SocketAddr) -> std::io::Result<Endpoint> {
    Endpoint::new(EndpointConfig::default(), None, UdpSocket::bind(bind)?, Arc::new(TokioRuntime))
}

/// Any address of the same family, any port.
pub(crate) fn unspecified(like: SocketAddr) -> SocketAddr {
    let ip = if like.is_ipv6() { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) };
    SocketAddr::new(ip, 0)
}

/// Host and port of `host:port`, an IPv6 address in brackets.
pub(crate) fn host(server: &str) -> Option<&str> {
    let (host, port) = server.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some(host)
}

/// QUIC as a phone wants it: TLS 1.3 with resumption, keep-alive, small windows, no stream that the server opens.
pub(crate) fn quic_config(
    roots: RootCertStore,
    keep_alive: Option<Duration>,
    idle_timeout: Duration,
) -> Result<ClientConfig, BuildError> {
    let tls = |error: &dyn fmt::Display| BuildError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| tls(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(config).map_err(|error| tls(&error))?;

    let mut quic = ClientConfig::new(Arc::new(crypto));
    quic.transport_config(Arc::new(transport(keep_alive, idle_timeout)?));
    Ok(quic)
}

fn transport(keep_alive: Option<Duration>, idle_timeout: Duration) -> Result<TransportConfig, BuildError> {
    let idle_timeout = idle_timeout.try_into().map_err(|error| BuildError::Tls(format!("idle_timeout: {error}")))?;
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle_timeout))
        .keep_alive_interval(keep_alive)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None);
    Ok(transport)
}

fn handshake_within(attempt: u32) -> Duration {
    HANDSHAKE_MIN.saturating_mul(1 << attempt.min(8)).min(HANDSHAKE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_addresses_are_host_and_port() {
        let cases = [
            ("chat.example.org:4433", Some("chat.example.org")),
            ("127.0.0.1:1", Some("127.0.0.1")),
            ("[::1]:4433", Some("::1")),
            ("chat.example.org", None),
            (":4433", None),
            ("host:0", None),
            ("host:70000", None),
        ];
        for (server, expected) in cases {
            assert_eq!(host(server), expected, "{server}");
        }
    }

    #[test]
    fn handshakes_get_more_time_up_to_a_bound() {
        assert_eq!(handshake_within(0), HANDSHAKE_MIN);
        assert!(handshake_within(1) > HANDSHAKE_MIN);
        assert_eq!(handshake_within(u32::MAX), HANDSHAKE_MAX);
    }
}
