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

    /// Whether the lane is in it.
    pub fn contains(self, lane: Lane) -> bool {
        self.0 & (1 << lane.index()) != 0
    }
}

/// What happened on a link.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The client opened a lane.
    Opened(Lane),
    /// A whole frame arrived, without its prefix.
    Frame(Lane, Bytes),
    /// A frame is longer than allowed; nothing more comes from this lane.
    Oversized(Lane),
    /// A lane opened twice, or an unknown one.
    Violation(&'static str),
    /// The peer is gone, or has said so. Nothing more comes.
    Closed(CloseReason),
}

/// What a link's path has done since the connection began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStats {
    /// The current round-trip time, smoothed; `None` where the transport does not tell.
    pub rtt: Option<Duration>,
    /// Packets sent since the connection began, or since it moved to this path; zero where the kernel does not say.
    pub packets_sent: u64,
    /// Of those, packets that were declared lost.
    pub packets_lost: u64,
    /// Bytes that came: of UDP payload, or of what TLS carried.
    pub bytes_in: u64,
    /// Bytes that went; over QUIC those that were sent again too.
    pub bytes_out: u64,
    /// How often the peer was seen at another address than before. An address that it had for less time than it took to
    /// say something is not seen.
    pub migrations: u64,
}

/// One device's connection. Everything here returns at once; `Poll::Pending` means that the context's waker is called.
pub trait Link: Send + 'static {
    /// Which transport it is.
    fn kind(&self) -> TransportKind;

    /// Where the peer is now; it may move.
    fn remote(&self) -> SocketAddr;

    /// What its path has done. Costs a lock or a system call: to be asked now and then, not for each frame.
    fn path(&self) -> PathStats;

    /// The next event; frames only of the lanes in `wanted`, in the order of the lanes' priority. What is not wanted
    /// stays in the transport, whose flow control then stops the peer.
    fn poll_event(&mut self, cx: &mut Context<'_>, wanted: LaneSet) -> Poll<LinkEvent>;

    /// Queues a frame, prefix included. Dropped if the lane is not open.
    fn push(&mut self, lane: Lane, frame: Bytes);

    /// Bytes queued on a lane that the transport has not taken.
    fn queued(&self, lane: Lane) -> usize;

    /// Hands what is queued to the transport, each lane as far as it goes: a full lane does not delay another. Ready
    /// when nothing is left.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Says with the last frame that the connection closes, where the transport's own close cannot carry the code.
    fn announce(&mut self, code: CloseCode, reason: &str);

    /// Ends the lanes; ready when everything that was queued has reached the peer, as far as the transport can know.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Closes at once.
    fn close(&mut self, code: CloseCode, reason: &str);
}
