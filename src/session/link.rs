//! What a session needs from a transport: frames per lane, in and out. QUIC and TLS over TCP implement it.

use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use crate::observe::{CloseReason, TransportKind};
use crate::wire::{CloseCode, Lane};

/// A set of lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneSet(u8);

impl LaneSet {
    /// No lane.
    pub const NONE: LaneSet = LaneSet(0);

    /// With this lane too.
    pub fn with(self, lane: Lane) -> LaneSet {
        LaneSet(self.0 | 1 << lane.index())
    }

    /// Whether the lane is in the set.
    pub fn contains(self, lane: Lane) -> bool {
        self.0 & (1 << lane.index()) != 0
    }
}

/// What happened on a link.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The handshake is not complete (0-RTT). Comes first if at all, and `Shaken` follows, or `Closed`.
    Early,
    /// The handshake is complete: whoever is there is who sent what came before, and has sent it now.
    Shaken,
    /// The client opened a lane.
    Opened(Lane),
    /// A whole frame arrived, without its prefix.
    Frame(Lane, Bytes),
    /// A frame is longer than allowed; nothing more comes from this lane.
    Oversized(Lane),
    /// A lane was opened twice, or an unknown one was named.
    Violation(&'static str),
    /// The connection is gone, or the peer has ended it. Nothing follows but frames of lanes that were not wanted, once they
    /// are; then this again.
    Closed(CloseReason),
}

/// Statistics of a connection's path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStats {
    /// The current round-trip time, smoothed; `None` if none was measured yet, or the transport does not report it.
    pub rtt: Option<Duration>,
    /// Packets sent since the connection began, or since it moved to this path; zero if the kernel does not report it.
    pub packets_sent: u64,
    /// Of those, packets that were declared lost.
    pub packets_lost: u64,
    /// Bytes received: UDP payload, or what TLS carried.
    pub bytes_in: u64,
    /// Bytes sent; over QUIC this includes retransmissions.
    pub bytes_out: u64,
    /// How often the peer was seen at another address than before. A short stay at an address is missed if nothing arrives from
    /// there that wakes the session.
    pub migrations: u64,
}

/// One device's connection. All methods return at once; after `Poll::Pending` the context's waker is called.
pub trait Link: Send + 'static {
    /// Which transport it is.
    fn kind(&self) -> TransportKind;

    /// The peer's current address, which may change.
    fn remote(&self) -> SocketAddr;

    /// Statistics of the path. Costs a lock or a system call, so call it from time to time and not for each frame.
    fn path(&self) -> PathStats;

    /// The next event. Frames come only from the lanes in `wanted`, in the order of the lanes' priority. Frames of other lanes
    /// stay in the transport, whose flow control then stops the peer.
    fn poll_event(&mut self, cx: &mut Context<'_>, wanted: LaneSet) -> Poll<LinkEvent>;

    /// Queues a frame, length prefix included. It is dropped if the lane is not open.
    fn push(&mut self, lane: Lane, frame: Bytes);

    /// Bytes queued on a lane that the transport has not taken.
    fn queued(&self, lane: Lane) -> usize;

    /// Hands queued frames to the transport, each lane as far as it has room: a full lane does not delay another. Ready when
    /// nothing is left.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Queues a last frame with the close code, if the transport's own close cannot carry it.
    fn announce(&mut self, code: CloseCode, reason: &str);

    /// Ends the lanes. Ready when everything that was queued has reached the peer, as far as the transport can know.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Closes at once.
    fn close(&mut self, code: CloseCode, reason: &str);
}
