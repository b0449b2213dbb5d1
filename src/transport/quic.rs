//! QUIC: the endpoint, its bounds, and a connection as a [`Link`] (profile 2).

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use bytes::Bytes;
use quinn::congestion::{BbrConfig, NewRenoConfig};
use quinn::{
    Connecting, Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming, RecvStream, SendStream,
    ServerConfig, TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use tokio::time::{Interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Congestion, QuicConfig};
use crate::congestion::FlooredCubic;
use crate::limits::{
    CLOSE_LINGER, HANDSHAKE_WITHIN, MOVE_LOOKED_AT_EVERY, MOVE_LOOKED_AT_TIMES, PATHS_REMEMBERED, READ_CHUNK_BYTES,
    STREAMS_MAX, UDP_BUFFER_BYTES,
};
use crate::observe::{CloseReason, LimitKind, Metrics, MigrationKind, TransportKind, ZeroRttResult};
use crate::session::{LaneSet, Link, LinkEvent, PathStats, Services, drive};
use crate::store::Store;
use crate::wire::{CloseCode, FrameDecoder, Lane};

use super::BY_PRIORITY;
use super::Tickets;
use super::bursts::ShortBursts;
use super::crowd::{Crowd, Place, Shaking};
use super::quic_lb::Issuer;
use super::quic_tls::QuicTls;

/// Why the endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The address cannot be bound.
    #[error("cannot listen on UDP {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The settings cannot be used.
    #[error("quic: {0}")]
    Settings(String),
}

/// What connections are accepted with. `tls` must offer [`crate::wire::ALPN`] and TLS 1.3 alone. Tickets that an earlier
/// one gave are not known to it: who resumes does a whole handshake, and sees the certificate that `tls` has.
pub fn server_config(
    config: &QuicConfig,
    tls: rustls::ServerConfig,
    metrics: &Arc<Metrics>,
) -> Result<ServerConfig, QuicError> {
    let mut server = ServerConfig::with_crypto(crypto(tls, metrics)?);
    server.transport_config(Arc::new(transport(config)?)).migration(true).max_incoming(config.handshakes_max);
    Ok(server)
}

/// The same with another certificate, and without the tickets of before. What proves a client's address stays good.
pub fn with_tls(
    server: &ServerConfig,
    tls: rustls::ServerConfig,
    metrics: &Arc<Metrics>,
) -> Result<ServerConfig, QuicError> {
    let mut server = server.clone();
    server.crypto = crypto(tls, metrics)?;
    Ok(server)
}

fn crypto(mut tls: rustls::ServerConfig, metrics: &Arc<Metrics>) -> Result<Arc<QuicTls>, QuicError> {
    let metrics = metrics.clone();
    tls.session_storage = Arc::new(Tickets::new(move || metrics.zero_rtt(ZeroRttResult::Rejected)));
    // QUIC knows no other size (RFC 9001, 4.6.1); what is held of it is bounded by the windows.
    tls.max_early_data_size = u32::MAX;
    QuicTls::new(tls).map(Arc::new).map_err(|error| QuicError::Settings(error.to_string()))
}

/// Opens the server's endpoint.
///
/// `reset_key` must be the same after a restart: with it a client whose connection the restarted server no longer knows
/// is told at once (RFC 9000, 10.3), and not only by silence. `ids`: connection ids by which a load balancer finds it.
pub fn bind(
    address: SocketAddr,
    server: ServerConfig,
    reset_key: &[u8; 32],
    ids: Option<Arc<Issuer>>,
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

/// A UDP socket for many connections at once, with room for [`UDP_BUFFER_BYTES`] where the kernel gives it.
pub(crate) fn roomy_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    let kernel = quinn::udp::UdpSocketState::new((&socket).into())?;
    // Smaller ones serve too; `bimip doctor` tells of them.
    let _ = kernel.set_recv_buffer_size((&socket).into(), UDP_BUFFER_BYTES);
    let _ = kernel.set_send_buffer_size((&socket).into(), UDP_BUFFER_BYTES);
    Ok(socket)
}

/// Connection ids that this server recognises after a restart too: only those are answered with a reset.
fn endpoint(reset_key: hmac::Key, ids: Option<Arc<Issuer>>) -> EndpointConfig {
    // Longer than a connection id, so that it is no one's reset token.
    let tag = hmac::sign(&reset_key, b"bimip: key of connection ids without a server id");
    let key = tag.as_ref().iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte));
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
    match ids {
        Some(ids) => endpoint.cid_generator(move || Box::new(ids.generator())),
        None => endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key))),
    };
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

/// What a connection is accepted with, where that is not the endpoint's own.
pub type AcceptWith = Arc<dyn Fn(&Incoming) -> Option<Arc<ServerConfig>> + Send + Sync>;

/// Accepts connections until `stop`, each served by a task of `tasks`.
pub async fn serve(
    endpoint: Endpoint,
    config: QuicConfig,
    accept_with: AcceptWith,
    crowd: Arc<Crowd>,
    (services, store): (Arc<Services>, Arc<dyn Store>),
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    // A real address can begin handshakes without end and finish none, and proves itself as often as it is asked to. So one
    // address gets half of the places, as over TCP.
    let places = Crowd::new(config.handshakes_max.div_ceil(2), config.handshakes_max);
    loop {
        let incoming = tokio::select! {
            () = stop.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let remote = incoming.remote_address();
        if !places.has_room() || !places.admits(remote) || !crowd.has_room() {
            services.metrics.handshakes_refused.increment(1);
            incoming.refuse();
        } else if !crowd.admits(remote) {
            services.metrics.rate_limited(LimitKind::Connections);
            incoming.refuse();
        } else if crowd.handshakes(TransportKind::Quic) >= config.handshakes_before_retry
            && incoming.may_retry()
            && !incoming.remote_address_validated()
        {
            // An address that does not answer costs us this one packet and no state.
            services.metrics.handshakes_retried.increment(1);
            if let Err(error) = incoming.retry() {
                error.into_incoming().ignore();
            }
        } else {
            let shaking = (crowd.clone().shake(TransportKind::Quic), places.clone().enter(remote));
            let place = crowd.clone().enter(remote);
            let accept_with = accept_with(&incoming);
            let shared = (services.clone(), store.clone());
            tasks.spawn(connect(incoming, accept_with, (shaking, place), shared, stop.clone()));
        }
    }
}

/// Serves a connection from its first packet to its end.
///
/// This is no `async fn`, and the handshake is boxed: a task keeps room for all that went into it, and idle sessions would
/// keep it for their first packet.
fn connect(
    incoming: Incoming,
    accept_with: Option<Arc<ServerConfig>>,
    (shaking, place): ((Shaking, Place), Place),
    (services, store): (Arc<Services>, Arc<dyn Store>),
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    let begun = Box::pin(begin(incoming, accept_with, shaking, services.clone(), stop));
    async move {
        let _place = place;
        match begun.await {
            None => {}
            Some(Begun::Shaken(connection)) => {
                let link = QuicLink::new(connection, services.clone());
                drive(link, services, store).await;
            }
            // The client has said something in the meantime.
            Some(Begun::Early(connection, streams, handshake)) => {
                let link = QuicLink::new(connection, services.clone()).with(streams);
                tokio::join!(drive(link, services, store), handshake);
            }
        }
    }
}

/// How far a connection has come when its session begins.
enum Begun {
    Shaken(Connection),
    /// Not to the end of its handshake, which goes on.
    Early(Connection, (SendStream, RecvStream), Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// Until the client may be listened to, or is gone.
async fn begin(
    incoming: Incoming,
    accept_with: Option<Arc<ServerConfig>>,
    shaking: (Shaking, Place),
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
    let Ok(Ok((connection, complete))) = accepted.map(Connecting::into_0rtt) else {
        tracing::debug!(%remote, "the first packet was none that could be answered");
        return None;
    };
    let (shaken, metrics) = (connection.clone(), services.metrics.clone());
    let mut handshake = Box::pin(async move {
        if tokio::time::timeout(HANDSHAKE_WITHIN, complete).await.is_err() {
            tracing::debug!(%remote, "handshake took too long");
            return shaken
                .close(VarInt::from_u32(CloseCode::Internal.code().unsigned_abs()), b"handshake took too long");
        }
        drop(shaking);
        match shaken.close_reason() {
            Some(error) => tracing::debug!(%remote, %error, "handshake failed"),
            None => metrics.handshake(TransportKind::Quic, began.elapsed()),
        }
    });
    // Who is as good as through, or has said something, hears why the server goes; a shutdown does not wait for others.
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
                services.metrics.zero_rtt(ZeroRttResult::Accepted);
            }
            Some(Begun::Early(connection, streams, handshake))
        }
        Some(Err(_)) => {
            handshake.await;
            None
        }
        None => connection.close_reason().is_none().then_some(Begun::Shaken(connection)),
    }
}

type Accepting = Pin<Box<dyn Future<Output = Result<(SendStream, RecvStream), ConnectionError>> + Send>>;
type Stopping = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One device's QUIC connection.
pub struct QuicLink {
    connection: Connection,
    services: Arc<Services>,
    /// Kept between polls: a fresh one each time would lose its place among the waiters.
    accepting: Accepting,
    /// Streams whose lane byte has not come; at most [`STREAMS_MAX`].
    unnamed: Vec<(SendStream, RecvStream)>,
    lanes: [Option<Box<LaneStreams>>; 4],
    closed: Option<CloseReason>,
    draining: Option<Vec<Stopping>>,
    /// The path over which the peer was last seen, and those before, of which one may be where QUIC goes back to: the
    /// last that answered. At most [`PATHS_REMEMBERED`].
    seen: SeenPath,
    before: Vec<SeenPath>,
    /// For a while after a move.
    looking: Option<Box<Looking>>,
    migrations: u64,
}

/// When the path is looked at again without another reason, and how many more times.
struct Looking {
    next: Interval,
    left: u32,
}

/// What tells one path of a connection from another: quinn numbers them, and keeps the numbers to itself.
#[derive(Clone, Copy)]
struct SeenPath {
    remote: SocketAddr,
    /// To the nanosecond, and measured anew on a path to another IP address, also to one that was in use before.
    min_rtt: Duration,
}

impl SeenPath {
    fn of(connection: &Connection) -> SeenPath {
        SeenPath { remote: connection.remote_address(), min_rtt: connection.stats().path.min_rtt }
    }

    /// Whether it is a path `before` the `last` one itself, and no new path to the same place. Between ports of one
    /// address a new path knows what the last one knew, so that nothing tells; but no NAT is likely to give a port again.
    fn is(&self, before: &SeenPath, last: &SeenPath) -> bool {
        let same_address = self.remote.ip() == last.remote.ip();
        self.remote == before.remote && (same_address || self.min_rtt == before.min_rtt)
    }
}

struct LaneStreams {
    send: SendStream,
    /// `None` once the client ended the lane, or broke its framing.
    recv: Option<RecvStream>,
    decoder: FrameDecoder,
    queue: VecDeque<Bytes>,
    queued: usize,
}

impl QuicLink {
    /// A link over a connection.
    pub fn new(connection: Connection, services: Arc<Services>) -> QuicLink {
        let (accepting, seen) = (accept(connection.clone()), SeenPath::of(&connection));
        QuicLink {
            connection,
            services,
            accepting,
            unnamed: Vec::new(),
            lanes: [const { None }; 4],
            closed: None,
            draining: None,
            seen,
            before: Vec::new(),
            looking: None,
            migrations: 0,
        }
    }

    /// With the first stream, which was accepted already.
    fn with(mut self, streams: (SendStream, RecvStream)) -> QuicLink {
        self.unnamed.push(streams);
        self
    }

    /// Sees whether the device is at another address. quinn does not tell, so this is asked once a turn, and for a while
    /// after a move also without any: the return from a path that did not answer wakes nobody.
    fn poll_move(&mut self, cx: &mut Context<'_>) {
        self.notice_move();
        while let Some(looking) = &mut self.looking
            && looking.next.poll_tick(cx).is_ready()
        {
            looking.left -= 1;
            if looking.left == 0 {
                self.looking = None;
            }
            self.notice_move();
        }
    }

    fn notice_move(&mut self) {
        let path = SeenPath::of(&self.connection);
        if path.remote == self.seen.remote {
            self.seen = path;
            return;
        }
        // When a new path does not answer its challenge, quinn goes on with the very path of before (RFC 9000, 9.3.2); to
        // a phone that comes back to its former network it makes a new one.
        let kind = if self.before.iter().any(|before| path.is(before, &self.seen)) {
            MigrationKind::Failed
        } else if path.remote.ip() == self.seen.remote.ip() {
            MigrationKind::NatRebinding
        } else {
            MigrationKind::AddressChange
        };
        tracing::debug!(from = %self.seen.remote, to = %path.remote, kind = kind.name(), "the device has moved");
        self.services.metrics.migrated(kind);
        self.migrations += 1;
        let left = std::mem::replace(&mut self.seen, path);
        if kind == MigrationKind::Failed {
            self.before.clear();
            self.looking = None;
        } else {
            self.before.truncate(PATHS_REMEMBERED - 1);
            self.before.insert(0, left);
            let next = tokio::time::interval(MOVE_LOOKED_AT_EVERY);
            self.looking = Some(Box::new(Looking { next, left: MOVE_LOOKED_AT_TIMES }));
        }
    }

    fn poll_streams(&mut self, cx: &mut Context<'_>) -> Option<LinkEvent> {
        while let Poll::Ready(accepted) = self.accepting.as_mut().poll(cx) {
            match accepted {
                Ok(streams) => {
                    self.unnamed.push(streams);
                    self.accepting = accept(self.connection.clone());
                }
                Err(error) => {
                    let reason = close_reason(&error);
                    self.closed = Some(reason);
                    return Some(LinkEvent::Closed(reason));
                }
            }
        }
        let mut index = 0;
        while index < self.unnamed.len() {
            let mut byte = [0];
            match self.unnamed[index].1.poll_read(cx, &mut byte) {
                Poll::Pending => index += 1,
                Poll::Ready(Ok(1)) => {
                    let (send, recv) = self.unnamed.swap_remove(index);
                    // Idle sessions keep no room for what is over once.
                    self.unnamed.shrink_to_fit();
                    return Some(self.open_lane(byte[0], send, recv));
                }
                // Ended or reset before it named a lane.
                Poll::Ready(_) => _ = self.unnamed.swap_remove(index),
            }
        }
        None
    }

    fn open_lane(&mut self, byte: u8, send: SendStream, recv: RecvStream) -> LinkEvent {
        let Some(lane) = Lane::from_byte(byte) else { return LinkEvent::Violation("unknown lane") };
        let slot = &mut self.lanes[lane.index()];
        if slot.is_some() {
            return LinkEvent::Violation("lane opened twice");
        }
        // Fails only on a stream that is gone, which shows when it is written.
        let _ = send.set_priority(lane.priority());
        let decoder = FrameDecoder::new(self.services.settings.frame_bytes_max);
        *slot = Some(Box::new(LaneStreams { send, recv: Some(recv), decoder, queue: VecDeque::new(), queued: 0 }));
        LinkEvent::Opened(lane)
    }
}

fn accept(connection: Connection) -> Accepting {
    Box::pin(async move { connection.accept_bi().await })
}

impl Link for QuicLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Quic
    }

    fn remote(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    fn path(&self) -> PathStats {
        let stats = self.connection.stats();
        PathStats {
            rtt: Some(stats.path.rtt),
            packets_sent: stats.path.sent_packets,
            packets_lost: stats.path.lost_packets,
            bytes_in: stats.udp_rx.bytes,
            bytes_out: stats.udp_tx.bytes,
            migrations: self.migrations + u64::from(self.remote() != self.seen.remote),
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>, wanted: LaneSet) -> Poll<LinkEvent> {
        if let Some(reason) = self.closed {
            return Poll::Ready(LinkEvent::Closed(reason));
        }
        if let Some(event) = self.poll_streams(cx) {
            return Poll::Ready(event);
        }
        for lane in BY_PRIORITY.into_iter().filter(|lane| wanted.contains(*lane)) {
            if let Some(streams) = &mut self.lanes[lane.index()]
                && let Poll::Ready(event) = streams.poll_frame(cx, lane)
            {
                return Poll::Ready(event);
            }
        }
        Poll::Pending
    }

    fn push(&mut self, lane: Lane, frame: Bytes) {
        if let Some(streams) = &mut self.lanes[lane.index()] {
            streams.queued += frame.len();
            streams.queue.push_back(frame);
        }
    }

    fn queued(&self, lane: Lane) -> usize {
        self.lanes[lane.index()].as_ref().map_or(0, |streams| streams.queued)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_move(cx);
        let mut all = Poll::Ready(());
        for lane in BY_PRIORITY {
            if let Some(streams) = &mut self.lanes[lane.index()]
                && streams.poll_write(cx).is_pending()
            {
                all = Poll::Pending;
            }
        }
        all
    }

    fn announce(&mut self, _code: CloseCode, _reason: &str) {
        // QUIC's own close carries the code.
    }

    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        std::task::ready!(self.poll_flush(cx));
        let lanes = &mut self.lanes;
        let draining = self.draining.get_or_insert_with(|| {
            lanes
                .iter_mut()
                .flatten()
                .filter_map(|streams| {
                    streams.send.finish().ok()?;
                    let stopped = streams.send.stopped();
                    Some(Box::pin(async move { _ = stopped.await }) as Stopping)
                })
                .collect()
        });
        draining.retain_mut(|stopped| stopped.as_mut().poll(cx).is_pending());
        if draining.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn close(&mut self, code: CloseCode, reason: &str) {
        self.connection.close(VarInt::from_u32(code.code().unsigned_abs()), reason.as_bytes());
    }
}

impl LaneStreams {
    fn poll_frame(&mut self, cx: &mut Context<'_>, lane: Lane) -> Poll<LinkEvent> {
        let Some(recv) = &mut self.recv else { return Poll::Pending };
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Poll::Ready(LinkEvent::Frame(lane, frame)),
                Ok(None) => {}
                Err(_) => {
                    self.recv = None;
                    return Poll::Ready(LinkEvent::Oversized(lane));
                }
            }
            // Registers by stream, not by future: dropping a pending read loses nothing.
            let read = pin!(recv.read_chunk(READ_CHUNK_BYTES, true)).poll(cx);
            match std::task::ready!(read) {
                Ok(Some(chunk)) => self.decoder.feed(chunk.bytes),
                // The client ended the lane, or the connection is gone, which accepting says too.
                Ok(None) | Err(_) => {
                    self.recv = None;
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.queue.is_empty() {
            let write = pin!(self.send.write_chunks(self.queue.make_contiguous())).poll(cx);
            match std::task::ready!(write) {
                Ok(written) => {
                    self.queued -= written.bytes;
                    self.queue.drain(..written.chunks);
                }
                // The device wants no more of this lane, or the connection is gone.
                Err(_) => {
                    self.queue.clear();
                    self.queued = 0;
                }
            }
        }
        // An idle lane holds no buffer.
        self.queue = VecDeque::new();
        Poll::Ready(())
    }
}

fn close_reason(error: &ConnectionError) -> CloseReason {
    match error {
        ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) => CloseReason::ClosedByPeer,
        ConnectionError::TimedOut => CloseReason::TimedOut,
        ConnectionError::LocallyClosed => CloseReason::Draining,
        _ => CloseReason::Reset,
    }
}
