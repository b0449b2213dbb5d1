//! Connects to a server by name: token, name look-up, then a race of QUIC and TLS over TCP, each step in bounded time.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, TokioRuntime};
use rustls_pki_types::ServerName;
use tokio::net::TcpSocket;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::error::CloseReason;
use super::limits::{
    ADDRESSES_MAX, ATTEMPTS_WITH_ALL_TICKETS, HANDSHAKE_MAX, HANDSHAKE_MIN, LOOKUP_WITHIN, RACE_DELAY,
};
use super::link::{TcpStream, proved, unproved};
use super::networks::Networks;
use super::tickets::Tickets;
use super::token::TokenSource;
use super::transport::{Transport, Transports};
use crate::wire::ALPN;

/// What an attempt needs, and what was learnt from earlier attempts.
pub(crate) struct Dialer {
    /// `host:port`.
    pub(crate) server: String,
    /// The name for which the certificate must be valid.
    pub(crate) server_name: String,
    pub(crate) transports: Transports,
    pub(crate) quic: ClientConfig,
    /// The ticket store inside `quic`.
    pub(crate) tickets: Arc<Tickets>,
    pub(crate) tcp: Arc<rustls::ClientConfig>,
    pub(crate) tokens: Arc<dyn TokenSource>,
    pub(crate) networks: Mutex<Networks>,
    /// The server's address that answered last.
    pub(crate) reached: Mutex<Option<SocketAddr>>,
    #[cfg(feature = "qlog")]
    pub(crate) qlog: Option<Traced>,
}

/// Returns the writer of a connection's trace.
#[cfg(feature = "qlog")]
pub(crate) type TraceSink = Box<dyn Fn() -> Option<Box<dyn std::io::Write + Send + Sync>> + Send + Sync>;

/// The settings of a traced connection. quinn's transport configuration cannot be cloned, so each connection gets a new
/// one.
#[cfg(feature = "qlog")]
pub(crate) struct Traced {
    pub(crate) sink: TraceSink,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) idle_timeout: Duration,
}

/// The inputs of an attempt.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    /// The socket of the previous connection, if it may still be usable.
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) bind: Option<SocketAddr>,
    /// Number of failed attempts before this one.
    pub(crate) number: u32,
    /// The application says that there is a network.
    pub(crate) hinted: bool,
    /// The token that the server refused, and the reason of that close.
    pub(crate) refused: Option<(String, CloseReason)>,
}

/// A QUIC connection whose handshake is under way, and which already accepts 0-RTT data.
pub(crate) struct Early {
    pub(crate) connection: Connection,
    pub(crate) token: String,
    pub(crate) started: Instant,
}

/// The result of a successful attempt.
pub(crate) struct Dialed {
    pub(crate) carrier: Carrier,
    pub(crate) token: String,
    pub(crate) started: Instant,
    /// The device's own IP address towards the server.
    pub(crate) network: Option<IpAddr>,
}

pub(crate) enum Carrier {
    Quic {
        endpoint: Endpoint,
        connection: Connection,
        /// Whether the server accepted what was sent on the [`Early`] connection. If not, it never will, and the lanes
        /// have to be opened again.
        early: bool,
    },
    Tcp(Box<TcpStream>),
}

/// Why an attempt failed.
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
    /// Makes one attempt. A connection that accepts 0-RTT data is passed to `early` at once. The result says whether
    /// the server accepted that data, or whether another connection was faster.
    pub(crate) async fn dial(
        self: Arc<Self>,
        mut attempt: Attempt,
        early: mpsc::Sender<Early>,
    ) -> Result<Dialed, DialError> {
        let token = self.token().await.map_err(DialError::Failed)?;
        if let Some((refused, reason)) = attempt.refused.take()
            && refused == token
        {
            return Err(DialError::NoNewToken(reason));
        }
        let started = Instant::now();
        let addresses = self.addresses(attempt.bind).await.map_err(DialError::Failed)?;
        let network = own_address(addresses[0], attempt.bind);
        let tried = AtomicBool::new(false);
        let (bind, number) = (attempt.bind, attempt.number);
        let shown = token.clone();
        let give = |connection: &Connection| {
            // If the channel is full or closed, there is no 0-RTT data; nothing else changes.
            let _ = early.try_send(Early { connection: connection.clone(), token: shown.clone(), started });
        };
        let quic = async {
            tried.store(true, Ordering::Relaxed);
            self.try_quic(&mut attempt, &addresses, give).await
        };
        let waited = AtomicBool::new(false);
        // If addresses of one IP family lead nowhere, the two transports should not both wait for it.
        let for_tcp = if self.has_reached(addresses[0]) { addresses.clone() } else { other_family_first(&addresses) };
        let tcp = async {
            let begun = Instant::now();
            let result = self.try_tcp(bind, number, &for_tcp).await;
            waited.store(begun.elapsed() >= RACE_DELAY, Ordering::Relaxed);
            result
        };
        let prefers_tcp = network.is_some_and(|network| self.networks().prefers_tcp(network, started));
        let carrier = match self.transports {
            Transports::Only(Transport::Quic) => quic.await,
            Transports::Only(Transport::Tcp) => tcp.await,
            Transports::Auto if prefers_tcp => race(tcp, quic).await,
            Transports::Auto => race(quic, tcp).await,
        };
        let carrier = carrier.map_err(DialError::Failed)?;
        // If there was no route before the attempt, there is one now.
        let network = network.or_else(|| match &carrier {
            Carrier::Quic { .. } => None,
            Carrier::Tcp(stream) => stream.get_ref().0.local_addr().ok().map(|own| own.ip()),
        });
        if let Some(network) = network {
            match carrier {
                // A box on the way may let the handshake pass and cut the flow behind it: the session decides.
                Carrier::Quic { .. } => {}
                // TCP's own first packet had to be repeated, so nothing at all got through before.
                Carrier::Tcp(_) if tried.load(Ordering::Relaxed) && waited.load(Ordering::Relaxed) => {
                    self.networks().quic_was_outrun(network, Instant::now());
                }
                Carrier::Tcp(_) if tried.load(Ordering::Relaxed) => {
                    self.networks().quic_was_silent(network, Instant::now());
                }
                Carrier::Tcp(_) => {}
            }
        }
        Ok(Dialed { carrier, token, started, network })
    }

    /// Tries QUIC alone, while a TCP connection is in use: QUIC is better where it works.
    pub(crate) async fn dial_quic(
        self: Arc<Self>,
        bind: Option<SocketAddr>,
        network: Option<IpAddr>,
    ) -> Result<Dialed, CloseReason> {
        let token = self.token().await?;
        let started = Instant::now();
        let addresses = self.addresses(bind).await?;
        let mut attempt = Attempt { bind, ..Attempt::default() };
        let carrier = self.try_quic(&mut attempt, &addresses, |_| ()).await;
        if let (Some(network), Err(_)) = (network, &carrier) {
            self.networks().quic_was_silent(network, Instant::now());
        }
        Ok(Dialed { carrier: carrier?, token, started, network })
    }

    pub(crate) fn networks(&self) -> MutexGuard<'_, Networks> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets a token, in bounded time.
    pub(crate) async fn token(&self) -> Result<String, CloseReason> {
        match timeout(LOOKUP_WITHIN, self.tokens.token()).await {
            Ok(Ok(token)) => Ok(token),
            Ok(Err(error)) => Err(CloseReason::NoToken(error.to_string())),
            Err(_) => Err(CloseReason::NoToken("the token source did not answer in time".into())),
        }
    }

    /// The configuration of one connection.
    fn config(&self) -> ClientConfig {
        #[cfg(feature = "qlog")]
        if let Some(Traced { sink, keep_alive, idle_timeout }) = &self.qlog
            && let Ok(mut transport) = super::tls::transport(*keep_alive, *idle_timeout)
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
        let found: Vec<_> = found.filter(reachable).collect();
        let mut addresses = with_both_families(&found);
        if let Some(place) = addresses.iter().position(|address| self.has_reached(*address)) {
            addresses[..=place].rotate_right(1);
        }
        routed_first(&mut addresses, bind);
        if addresses.is_empty() { Err(unresolved("it has no address".into())) } else { Ok(addresses) }
    }

    fn has_reached(&self, address: SocketAddr) -> bool {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) == Some(address)
    }

    /// The network has changed: what could be reached may be out of reach.
    pub(crate) fn forget_reached(&self) {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn note_reached(&self, address: SocketAddr) {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
    }

    /// Tries every address in turn.
    async fn try_quic(
        &self,
        attempt: &mut Attempt,
        addresses: &[SocketAddr],
        give: impl Fn(&Connection),
    ) -> Result<Carrier, CloseReason> {
        self.tickets.spare(attempt.number >= ATTEMPTS_WITH_ALL_TICKETS && !attempt.hinted);
        let mut last = CloseReason::Network("no address".into());
        for address in addresses {
            match self.connect(attempt, *address, &give).await {
                Ok(carrier) => {
                    self.note_reached(*address);
                    return Ok(carrier);
                }
                Err(reason) => last = reason,
            }
        }
        Err(last)
    }

    async fn connect(
        &self,
        attempt: &mut Attempt,
        address: SocketAddr,
        give: &impl Fn(&Connection),
    ) -> Result<Carrier, CloseReason> {
        let fits = |endpoint: &Endpoint| endpoint.local_addr().is_ok_and(|local| local.is_ipv6() == address.is_ipv6());
        let begin = |endpoint: Endpoint| {
            endpoint.connect_with(self.config(), address, &self.server_name).map(|connecting| (endpoint, connecting))
        };
        // What drives a socket may have ended: with its runtime, or because the system took the socket away.
        let (endpoint, connecting) = match attempt.endpoint.take().filter(fits).map(begin) {
            Some(Ok(begun)) => begun,
            _ => endpoint(attempt.bind.unwrap_or_else(|| unspecified(address)))
                .map_err(|error| CloseReason::Network(format!("cannot open a UDP socket: {error}")))
                .and_then(|endpoint| begin(endpoint).map_err(|error| CloseReason::Network(error.to_string())))?,
        };
        let silent = || CloseReason::Network(format!("no answer from {address}"));
        let within = handshake_within(attempt.number);
        let (connection, accepted) = match connecting.into_0rtt() {
            Ok(early) => early,
            Err(connecting) => {
                let connection = timeout(within, connecting).await.map_err(|_| silent())?.map_err(unproved)?;
                return Ok(Carrier::Quic { endpoint, connection, early: false });
            }
        };
        give(&connection);
        let early = timeout(within, accepted).await.map_err(|_| {
            connection.close(0u32.into(), b"");
            silent()
        })?;
        match connection.close_reason() {
            // The early session has ended and reported why; the attempt continues.
            Some(ConnectionError::LocallyClosed) => {
                Err(CloseReason::Network("closed before the handshake was over".into()))
            }
            Some(error) => Err(proved(&connection, error)),
            None => Ok(Carrier::Quic { endpoint, connection, early }),
        }
    }

    async fn try_tcp(
        &self,
        bind: Option<SocketAddr>,
        number: u32,
        addresses: &[SocketAddr],
    ) -> Result<Carrier, CloseReason> {
        let name = ServerName::try_from(self.server_name.clone())
            .map_err(|_| CloseReason::Tls(format!("{} is no name for a certificate", self.server_name)))?;
        let mut last = CloseReason::Network("no address".into());
        for address in addresses {
            let connector = TlsConnector::from(self.tcp.clone());
            match timeout(handshake_within(number), connect_tcp(connector, name.clone(), bind, *address)).await {
                Ok(Ok(stream)) => {
                    self.note_reached(*address);
                    return Ok(Carrier::Tcp(Box::new(stream)));
                }
                Ok(Err(error)) => last = tcp_reason(&error, *address),
                Err(_) => last = CloseReason::Network(format!("no answer from {address}")),
            }
        }
        Err(last)
    }
}

/// Returns the first transport to connect. `second` starts when `first` has failed or [`RACE_DELAY`] is over. A failure
/// that another transport cannot avoid ends both; a refused certificate is none ([`is_of_the_path`]).
async fn race(
    first: impl Future<Output = Result<Carrier, CloseReason>>,
    second: impl Future<Output = Result<Carrier, CloseReason>>,
) -> Result<Carrier, CloseReason> {
    let failed = Notify::new();
    let mut first = pin!(first);
    let mut second = pin!(async {
        let _ = timeout(RACE_DELAY, failed.notified()).await;
        second.await
    });
    let (mut first_reason, mut second_reason) = (None, None);
    loop {
        tokio::select! {
            biased;
            result = &mut first, if first_reason.is_none() => match result {
                Err(reason) if is_of_the_path(&reason) => {
                    failed.notify_one();
                    first_reason = Some(reason);
                }
                decided => return decided,
            },
            result = &mut second, if second_reason.is_none() => match result {
                Err(reason) if is_of_the_path(&reason) => second_reason = Some(reason),
                decided => return decided,
            },
            else => {
                // A certificate says more than a silence.
                let mut reasons: Vec<_> = first_reason.into_iter().chain(second_reason).collect();
                let told = reasons.iter().position(|reason| matches!(reason, CloseReason::Tls(_))).unwrap_or(0);
                return Err(reasons.swap_remove(told));
            }
        }
    }
}

/// Whether the other transport may get through all the same: boxes on the way that break into TLS do so with one of them.
fn is_of_the_path(reason: &CloseReason) -> bool {
    matches!(reason, CloseReason::Network(_) | CloseReason::Tls(_))
}

async fn connect_tcp(
    connector: TlsConnector,
    name: ServerName<'static>,
    bind: Option<SocketAddr>,
    address: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    if let Some(bind) = bind {
        // The chosen port is for UDP; TCP uses any.
        socket.bind(SocketAddr::new(bind.ip(), 0))?;
    }
    let stream = socket.connect(address).await?;
    // Frames are already batched before they are written, so Nagle's algorithm would only delay them.
    stream.set_nodelay(true)?;
    let stream = connector.connect(name, stream).await?;
    match stream.get_ref().1.alpn_protocol() {
        Some(ALPN) => Ok(stream),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::NoApplicationProtocol)),
    }
}

fn tcp_reason(error: &io::Error, address: SocketAddr) -> CloseReason {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => CloseReason::Tls(tls.to_string()),
        None => CloseReason::Network(format!("no connection to {address}: {error}")),
    }
}

/// Opens a new UDP socket on this address.
pub(crate) fn endpoint(bind: SocketAddr) -> io::Result<Endpoint> {
    Endpoint::new(EndpointConfig::default(), None, UdpSocket::bind(bind)?, Arc::new(TokioRuntime))
}

/// The same addresses, with those of the other IP family than the first one's in front.
fn other_family_first(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let of_first = |address: &&SocketAddr| address.is_ipv6() == addresses[0].is_ipv6();
    let (same, other): (Vec<_>, Vec<_>) = addresses.iter().partition(of_first);
    [other, same].concat()
}

/// The first [`ADDRESSES_MAX`] addresses. If all are of one IP family, the last of them gives way to the first of the other.
fn with_both_families(found: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut addresses: Vec<_> = found.iter().copied().take(ADDRESSES_MAX).collect();
    let is_other = |address: &&SocketAddr| Some(address.is_ipv6()) != found.first().map(SocketAddr::is_ipv6);
    if let Some(other) = found.iter().find(is_other)
        && !addresses.contains(other)
        && let Some(last) = addresses.last_mut()
    {
        *last = *other;
    }
    addresses
}

/// Moves addresses to which there is no route behind the others. What could be reached in one network need not be within
/// reach in the next one, of which nobody may have told the device. QUIC would wait there as for a lost packet.
fn routed_first(addresses: &mut [SocketAddr], bind: Option<SocketAddr>) {
    addresses.sort_by_cached_key(|address| own_address(*address, bind).is_none());
}

/// The unspecified address of the same IP family, with any port.
pub(crate) fn unspecified(like: SocketAddr) -> SocketAddr {
    let ip = if like.is_ipv6() { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) };
    SocketAddr::new(ip, 0)
}

/// The address from which the system would send; finding it costs no packet.
pub(crate) fn own_address(server: SocketAddr, bind: Option<SocketAddr>) -> Option<IpAddr> {
    let socket =
        UdpSocket::bind(bind.map_or_else(|| unspecified(server), |bind| SocketAddr::new(bind.ip(), 0))).ok()?;
    socket.connect(server).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The host in `host:port`, without the brackets of an IPv6 address; `None` if this is not `host:port`.
pub(crate) fn host(server: &str) -> Option<&str> {
    let (host, port) = server.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some(host)
}

fn handshake_within(attempt: u32) -> Duration {
    HANDSHAKE_MIN.saturating_mul(1 << attempt.min(8)).min(HANDSHAKE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tls;

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
    fn where_nothing_was_reached_yet_the_second_transport_begins_with_the_other_family() {
        let addresses =
            |list: &[&str]| list.iter().map(|address| address.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = addresses(&["[::1]:1", "[::2]:1", "127.0.0.1:1"]);
        assert_eq!(other_family_first(&found), addresses(&["127.0.0.1:1", "[::1]:1", "[::2]:1"]));
        assert_eq!(other_family_first(&found[..2]), found[..2]);
    }

    #[test]
    fn an_address_without_a_route_is_tried_last_and_names_no_network() {
        // No system has a route to a link-local address without its link.
        let (unroutable, local) = ("[fe80::1]:1".parse().unwrap(), SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        let mut addresses = [unroutable, local, unroutable];
        routed_first(&mut addresses, None);
        assert_eq!(addresses, [local, unroutable, unroutable]);
        assert_eq!(own_address(addresses[0], None), Some(Ipv4Addr::LOCALHOST.into()));
        // Without any route, the order stays.
        let mut addresses = [unroutable, local];
        routed_first(&mut addresses, Some("192.0.2.1:0".parse().unwrap()));
        assert_eq!(addresses, [unroutable, local]);
    }

    #[test]
    fn a_socket_that_nothing_drives_any_more_is_replaced_and_the_same_address_tried() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let gone = runtime();
        let undriven = gone.block_on(async { endpoint(any) }).unwrap();
        drop(gone);

        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()).into();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut serves = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        serves.alpn_protocols = vec![ALPN.to_vec()];
        let serves = quinn::crypto::rustls::QuicServerConfig::try_from(serves).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        runtime().block_on(async {
            let serving = Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(serves)), any).unwrap();
            let tickets = Arc::new(Tickets::default());
            let dialer = Dialer {
                server: String::new(),
                server_name: "localhost".to_owned(),
                transports: Transports::Only(Transport::Quic),
                quic: tls::quic_config(roots.clone(), tickets.clone(), None, HANDSHAKE_MAX).unwrap(),
                tickets,
                tcp: Arc::new(tls::tcp_config(roots).unwrap()),
                tokens: Arc::new(String::new()),
                networks: Mutex::new(Networks::new(HANDSHAKE_MAX)),
                reached: Mutex::default(),
                #[cfg(feature = "qlog")]
                qlog: None,
            };
            let mut attempt = Attempt { endpoint: Some(undriven), ..Attempt::default() };
            let addresses = [serving.local_addr().unwrap()];
            let (dialed, served) = tokio::join!(dialer.try_quic(&mut attempt, &addresses, |_| ()), async {
                // Nothing comes if no socket is left.
                timeout(HANDSHAKE_MAX, serving.accept()).await.ok()??.await.ok()
            });
            assert!(dialed.is_ok() && served.is_some(), "{:?}", dialed.err());
        });
    }

    #[test]
    fn handshakes_get_more_time_up_to_a_bound() {
        assert_eq!(handshake_within(0), HANDSHAKE_MIN);
        assert!(handshake_within(1) > HANDSHAKE_MIN);
        assert_eq!(handshake_within(u32::MAX), HANDSHAKE_MAX);
    }

    #[test]
    fn the_other_ip_family_has_a_place_among_many_addresses_of_one() {
        let six = |last: u16| SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last), 1));
        let four = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let crowd: Vec<_> = (1..=5).map(six).chain([four]).collect();
        assert_eq!(with_both_families(&crowd), [six(1), six(2), six(3), four]);
        assert_eq!(with_both_families(&[six(1), four]), [six(1), four]);
        assert_eq!(with_both_families(&crowd[..5]), crowd[..4]);
        assert_eq!(with_both_families(&[]), []);
    }

    #[tokio::test]
    async fn a_box_that_breaks_into_tls_over_one_transport_does_not_end_the_other() {
        let slow = || async {
            tokio::time::sleep(2 * RACE_DELAY).await;
            Err(CloseReason::Local)
        };
        let broken = || async { Err(CloseReason::Tls("the certificate of a captive portal".into())) };
        // The slow one decides, whichever goes first.
        assert_eq!(race(slow(), broken()).await.err(), Some(CloseReason::Local));
        assert_eq!(race(broken(), slow()).await.err(), Some(CloseReason::Local));
        let silent = async { Err(CloseReason::Network("no answer".into())) };
        assert!(matches!(race(silent, broken()).await, Err(CloseReason::Tls(_))));
    }
}
