//! One connection as lanes of frames, with batching and priorities. It does not know the protocol's families.
//!
//! The device's task sees only the trait [`Link`], which QUIC and TLS over TCP (protocol.md §1) implement.

mod quic;
mod tcp;

use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use super::error::CloseReason;
use super::silence::Quiet;
use super::transport::Transport;
use crate::wire::{CloseCode, Lane};

pub(crate) use quic::{QuicLink, proved, unproved};
pub(crate) use tcp::{TcpLink, TcpStream};

/// A connection whose lanes are opened when needed.
pub(crate) trait Link: Send {
    /// The transport.
    fn transport(&self) -> Transport;

    /// Whether a lane has room for another frame.
    fn has_room(&self, lane: Lane) -> bool;

    /// Queues a frame. The next [`Link::poll`] writes it together with everything else that is queued.
    fn queue(&mut self, lane: Lane, frame: Bytes);

    /// Writes what is queued and reads the lanes for which `reading` is true. Ready when frames arrived or a full lane
    /// has room again; an error ends the link.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reading: &dyn Fn(Lane) -> bool,
        frames: &mut Vec<(Lane, Bytes)>,
    ) -> Poll<Result<(), CloseReason>>;

    /// Round-trip time as the transport estimates it, if it does.
    fn rtt(&self) -> Option<Duration>;

    /// Counts arrivals on this connection: a sign of life that needs no answer from the server's session.
    fn arrivals(&self) -> u64;

    /// Since when nothing has arrived; `None` if the transport itself notices that the server is gone.
    fn quiet(&self) -> Option<Quiet>;

    /// Counts what has been sent on this connection, of whatever kind, if the transport tells.
    fn sent(&self) -> u64;

    /// The server's address, where the connection can move without it.
    fn remote(&self) -> Option<SocketAddr>;

    /// Whether the transport has given the connection up because nothing arrived for its idle timeout.
    fn timed_out(&self) -> bool;

    /// Closes at once.
    fn close(&mut self, code: CloseCode, reason: &str);

    /// Writes what is queued and ends the lanes. Ready when the server has received everything, as far as the transport
    /// can know, or the connection is gone.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// The lanes that must be open to send on this one, in order. A media message is answered on chat (protocol.md §7).
fn needed(lane: Lane) -> impl Iterator<Item = Lane> {
    (lane == Lane::Media).then_some(Lane::Chat).into_iter().chain([lane])
}

/// The lanes to open with a connection: control, and those in `lanes`, in order of priority.
fn wanted(lanes: &[Lane]) -> impl Iterator<Item = Lane> {
    Lane::BY_PRIORITY.into_iter().filter(|lane| *lane == Lane::Control || lanes.contains(lane))
}
