//! A QUIC connection as a [`Link`] (protocol.md §1).

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::oneshot;
use tokio::time::Interval;

use crate::limits::{MOVE_LOOKED_AT_EVERY, MOVE_LOOKED_AT_TIMES, PATHS_REMEMBERED, READ_CHUNK_BYTES};
use crate::observe::{CloseReason, MigrationKind, TransportKind};
use crate::session::{LaneSet, Link, LinkEvent, PathStats, Services};
use crate::wire::{CloseCode, FrameDecoder, Lane};

type Accepting = Pin<Box<dyn Future<Output = Result<(SendStream, RecvStream), ConnectionError>> + Send>>;
type Stopping = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One device's QUIC connection.
pub(super) struct QuicLink {
    connection: Connection,
    services: Arc<Services>,
    /// Kept between polls: a new future each time would lose its place among the waiters.
    accepting: Accepting,
    /// Streams whose lane byte has not arrived; at most [`STREAMS_MAX`].
    unnamed: Vec<(SendStream, RecvStream)>,
    /// Until the handshake is complete, if the session began before.
    early: Option<Early>,
    lanes: [Option<Box<LaneStreams>>; 4],
    /// The connection is closed; frames that had arrived before may still be unread.
    closed: Option<CloseReason>,
    draining: Option<Vec<Stopping>>,
    /// The path on which the peer was last seen.
    seen: SeenPath,
    /// The paths before it, at most [`PATHS_REMEMBERED`]. QUIC may return to one of them: the last that answered.
    before: Vec<SeenPath>,
    /// Set for a while after a move.
    looking: Option<Box<Looking>>,
    migrations: u64,
}

/// A handshake that goes on beside the session.
struct Early {
    /// Whether the session knows.
    told: bool,
    complete: oneshot::Receiver<()>,
}

/// When the path is looked at again without other activity, and how many more times.
struct Looking {
    next: Interval,
    left: u32,
}

/// What distinguishes the paths of a connection: quinn numbers them, but does not expose the numbers.
#[derive(Clone, Copy)]
struct SeenPath {
    remote: SocketAddr,
    /// Precise to the nanosecond. It is measured anew on a path to another IP address, even to one that was in use before.
    min_rtt: Duration,
}

impl SeenPath {
    fn of(connection: &Connection) -> SeenPath {
        SeenPath { remote: connection.remote_address(), min_rtt: connection.stats().path.min_rtt }
    }

    /// Whether this is the path `before` itself, and not a new path to the same address. Between ports of one IP address a new
    /// path inherits what the `last` one had measured, so that nothing distinguishes them; but a NAT is unlikely to assign a
    /// port again.
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
    pub(super) fn new(connection: Connection, services: Arc<Services>) -> QuicLink {
        let (accepting, seen) = (accept(connection.clone()), SeenPath::of(&connection));
        QuicLink {
            connection,
            services,
            accepting,
            unnamed: Vec::new(),
            early: None,
            lanes: [const { None }; 4],
            closed: None,
            draining: None,
            seen,
            before: Vec::new(),
            looking: None,
            migrations: 0,
        }
    }

    /// Adds the first stream, which was accepted before the handshake was complete. `complete` reports when it is.
    pub(super) fn early(mut self, streams: (SendStream, RecvStream), complete: oneshot::Receiver<()>) -> QuicLink {
        self.unnamed.push(streams);
        self.early = Some(Early { told: false, complete });
        self
    }

    fn poll_early(&mut self, cx: &mut Context<'_>) -> Option<LinkEvent> {
        let early = self.early.as_mut()?;
        if !std::mem::replace(&mut early.told, true) {
            return Some(LinkEvent::Early);
        }
        let Poll::Ready(complete) = Pin::new(&mut early.complete).poll(cx) else { return None };
        self.early = None;
        // If it has failed, the connection is closed.
        complete.is_ok().then_some(LinkEvent::Shaken)
    }

    /// Checks whether the device is at another address. quinn does not report it, so it is checked once a turn, and for a while
    /// after a move even without one: the return from a path that did not answer wakes no task.
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
        // When a new path does not answer its challenge, quinn returns to the very path of before (RFC 9000, 9.3.2). For a
        // phone that comes back to its former network it creates a new path.
        let kind = if self.before.iter().any(|before| path.is(before, &self.seen)) {
            MigrationKind::Failed
        } else if path.remote.ip() == self.seen.remote.ip() {
            MigrationKind::NatRebinding
        } else {
            MigrationKind::AddressChange
        };
        tracing::debug!(from = %self.seen.remote, to = %path.remote, kind = kind.name(), "the device has moved");
        self.services.metrics.migrations[kind].increment(1);
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
        while self.closed.is_none()
            && let Poll::Ready(accepted) = self.accepting.as_mut().poll(cx)
        {
            match accepted {
                Ok(streams) => {
                    self.unnamed.push(streams);
                    self.accepting = accept(self.connection.clone());
                }
                // What arrived before the close is still to be read.
                Err(error) => self.closed = Some(close_reason(&error, self.services.hub.is_draining())),
            }
        }
        let mut index = 0;
        while index < self.unnamed.len() {
            let mut byte = [0];
            match self.unnamed[index].1.poll_read(cx, &mut byte) {
                Poll::Pending => index += 1,
                Poll::Ready(Ok(1)) => {
                    let (send, recv) = self.unnamed.swap_remove(index);
                    // Idle sessions keep no memory for what happens only once.
                    self.unnamed.shrink_to_fit();
                    return Some(self.open_lane(byte[0], send, recv));
                }
                // The stream was ended or reset before it named a lane.
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
        // Fails only on a stream that is gone, which shows when it is written to.
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
            // Before the first acknowledgment quinn's is the configured one.
            rtt: (stats.frame_rx.acks > 0).then_some(stats.path.rtt),
            packets_sent: stats.path.sent_packets,
            packets_lost: stats.path.lost_packets,
            bytes_in: stats.udp_rx.bytes,
            bytes_out: stats.udp_tx.bytes,
            migrations: self.migrations + u64::from(self.remote() != self.seen.remote),
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>, wanted: LaneSet) -> Poll<LinkEvent> {
        if let Some(event) = self.poll_early(cx).or_else(|| self.poll_streams(cx)) {
            return Poll::Ready(event);
        }
        for lane in Lane::BY_PRIORITY.into_iter().filter(|lane| wanted.contains(*lane)) {
            if let Some(streams) = &mut self.lanes[lane.index()]
                && let Poll::Ready(event) = streams.poll_frame(cx, lane)
            {
                return Poll::Ready(event);
            }
        }
        self.closed.map_or(Poll::Pending, |reason| Poll::Ready(LinkEvent::Closed(reason)))
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
        for lane in Lane::BY_PRIORITY {
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

impl Drop for QuicLink {
    /// A session that ends without a close, as by a panic, is not left to quinn, which closes with code 0: GOODBYE. On a
    /// connection that is closed, this would take the place of the reason.
    fn drop(&mut self) {
        if self.connection.close_reason().is_none() {
            self.close(CloseCode::Internal, "");
        }
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
            // The waker is registered with the stream, not the future: dropping a pending read loses nothing.
            let read = pin!(recv.read_chunk(READ_CHUNK_BYTES, true)).poll(cx);
            match std::task::ready!(read) {
                Ok(Some(chunk)) => self.decoder.feed(chunk.bytes),
                // The client ended the lane, or the connection is gone, which `accepting` reports, too.
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
                // The device stopped reading this lane, or the connection is gone.
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

fn close_reason(error: &ConnectionError, draining: bool) -> CloseReason {
    match error {
        ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) => CloseReason::ClosedByPeer,
        ConnectionError::TimedOut => CloseReason::TimedOut,
        ConnectionError::LocallyClosed if draining => CloseReason::Draining,
        // Its handshake was given up: nothing else closes a connection on this side while its session runs.
        ConnectionError::LocallyClosed => CloseReason::TimedOut,
        _ => CloseReason::Reset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::QuicConfig;
    use crate::session::testing::House;
    use crate::transport::testing::Pair;

    #[tokio::test]
    async fn each_lane_is_sent_with_its_priority() {
        let (house, pair) = (House::new(|_, _| ()), Pair::connect(&QuicConfig::default()).await);
        let mut link = QuicLink::new(pair.server.clone(), house.services.clone());
        let mut streams = Vec::new();
        for lane in Lane::ALL {
            let mut stream = pair.client.open_bi().await.unwrap();
            stream.0.write_all(&[lane.byte()]).await.unwrap();
            streams.push(stream);
            let opened = std::future::poll_fn(|cx| link.poll_event(cx, LaneSet::NONE)).await;
            assert!(matches!(opened, LinkEvent::Opened(opened) if opened == lane), "{opened:?}");
            let sending = &link.lanes[lane.index()].as_ref().unwrap().send;
            assert_eq!(sending.priority().unwrap(), lane.priority());
        }
    }

    #[tokio::test]
    async fn a_session_that_is_dropped_without_a_close_is_the_servers_fault() {
        let (house, pair) = (House::new(|_, _| ()), Pair::connect(&QuicConfig::default()).await);
        let Pair { server, client, .. } = pair;
        drop(QuicLink::new(server, house.services.clone()));
        let ConnectionError::ApplicationClosed(close) = client.closed().await else { panic!("no close") };
        assert_eq!(CloseCode::from_quic(close.error_code.into_inner()), Some(CloseCode::Internal));
    }
}
