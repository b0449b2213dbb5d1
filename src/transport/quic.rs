//! QUIC: the endpoint, its bounds, and a connection as a [`Link`] (profile 2).

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::congestion::{BbrConfig, CubicConfig, NewRenoConfig};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming, RecvStream, SendStream, ServerConfig,
    TransportConfig, VarInt,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Congestion, QuicConfig};
use crate::limits::{HANDSHAKE_WITHIN, READ_CHUNK_BYTES, STREAMS_MAX};
use crate::observe::{CloseReason, LimitKind, TransportKind};
use crate::session::{LaneSet, Link, LinkEvent, PathStats, Services, drive};
use crate::store::Store;
use crate::wire::{CloseCode, FrameDecoder, Lane};

use super::BY_PRIORITY;
use super::crowd::{Crowd, Place};

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

/// What connections are accepted with. `tls` must offer [`crate::wire::ALPN`] and TLS 1.3 alone.
pub fn server_config(config: &QuicConfig, tls: rustls::ServerConfig) -> Result<ServerConfig, QuicError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| QuicError::Settings(error.to_string()))?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::new(transport(config)?)).migration(true).max_incoming(config.handshakes_max);
    Ok(server)
}

/// The same with another certificate. What proves a client's address stays good.
pub fn with_tls(server: &ServerConfig, tls: rustls::ServerConfig) -> Result<ServerConfig, QuicError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| QuicError::Settings(error.to_string()))?;
    let mut server = server.clone();
    server.crypto = Arc::new(crypto);
    Ok(server)
}

/// Opens the server's endpoint.
///
/// `reset_key` must be the same after a restart: with it a client whose connection the restarted server no longer knows
/// is told at once (RFC 9000, 10.3), and not only by silence.
pub fn bind(address: SocketAddr, server: ServerConfig, reset_key: &[u8; 32]) -> Result<Endpoint, QuicError> {
    let reset_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, reset_key);
    let open = || {
        let socket = std::net::UdpSocket::bind(address)?;
        let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no tokio runtime"))?;
        Endpoint::new(EndpointConfig::new(Arc::new(reset_key)), Some(server), socket, runtime)
    };
    open().map_err(|source| QuicError::Bind { address, source })
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
        Congestion::Cubic => transport.congestion_controller_factory(Arc::new(CubicConfig::default())),
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
    let gate = Arc::new(Gate { handshakes: AtomicUsize::new(0) });
    loop {
        let incoming = tokio::select! {
            () = stop.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let handshakes = gate.handshakes.load(Ordering::Relaxed);
        if handshakes >= config.handshakes_max || !crowd.has_room() {
            services.metrics.handshakes_refused.increment(1);
            incoming.refuse();
        } else if !crowd.admits(incoming.remote_address()) {
            services.metrics.rate_limited(LimitKind::Connections);
            incoming.refuse();
        } else if handshakes >= config.handshakes_before_retry
            && incoming.may_retry()
            && !incoming.remote_address_validated()
        {
            // An address that does not answer costs us this one packet and no state.
            services.metrics.handshakes_retried.increment(1);
            if let Err(error) = incoming.retry() {
                error.into_incoming().ignore();
            }
        } else {
            let entry = gate.clone().enter();
            let place = crowd.clone().enter(incoming.remote_address());
            let accept_with = accept_with(&incoming);
            tasks.spawn(connect(incoming, accept_with, (entry, place), services.clone(), store.clone()));
        }
    }
}

/// Counts handshakes under way.
struct Gate {
    handshakes: AtomicUsize,
}

struct Entry(Arc<Gate>);

impl Gate {
    fn enter(self: Arc<Self>) -> Entry {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        Entry(self)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connect(
    incoming: Incoming,
    accept_with: Option<Arc<ServerConfig>>,
    (entry, _place): (Entry, Place),
    services: Arc<Services>,
    store: Arc<dyn Store>,
) {
    let began = Instant::now();
    let remote = incoming.remote_address();
    let handshake = async {
        match accept_with {
            Some(config) => incoming.accept_with(config)?.await,
            None => incoming.accept()?.await,
        }
    };
    match tokio::time::timeout(HANDSHAKE_WITHIN, handshake).await {
        Ok(Ok(connection)) => {
            drop(entry);
            services.metrics.handshake(TransportKind::Quic, began.elapsed());
            let link = QuicLink::new(connection, services.settings.frame_bytes_max);
            drive(link, services, store).await;
        }
        Ok(Err(error)) => tracing::debug!(%remote, %error, "handshake failed"),
        Err(_) => tracing::debug!(%remote, "handshake took too long"),
    }
}

type Accepting = Pin<Box<dyn Future<Output = Result<(SendStream, RecvStream), ConnectionError>> + Send>>;
type Stopping = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One device's QUIC connection.
pub struct QuicLink {
    connection: Connection,
    frame_bytes_max: usize,
    /// Kept between polls: a fresh one each time would lose its place among the waiters.
    accepting: Accepting,
    /// Streams whose lane byte has not come; at most [`STREAMS_MAX`].
    unnamed: Vec<(SendStream, RecvStream)>,
    lanes: [Option<LaneStreams>; 4],
    closed: Option<CloseReason>,
    draining: Option<Vec<Stopping>>,
    /// Where the peer was last seen, and how often that was another place than before.
    seen: SocketAddr,
    migrations: u64,
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
    /// A link over an established connection.
    pub fn new(connection: Connection, frame_bytes_max: usize) -> QuicLink {
        let (accepting, seen) = (accept(connection.clone()), connection.remote_address());
        QuicLink {
            connection,
            frame_bytes_max,
            accepting,
            unnamed: Vec::new(),
            lanes: [const { None }; 4],
            closed: None,
            draining: None,
            seen,
            migrations: 0,
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
        let decoder = FrameDecoder::new(self.frame_bytes_max);
        *slot = Some(LaneStreams { send, recv: Some(recv), decoder, queue: VecDeque::new(), queued: 0 });
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
            migrations: self.migrations + u64::from(self.remote() != self.seen),
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
        // Once a turn: quinn does not tell of it.
        let remote = self.remote();
        if remote != self.seen {
            self.seen = remote;
            self.migrations += 1;
        }
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
