//! One connection as lanes: frames per lane in and out, batched, prioritised. It knows no family.
//!
//! The device's task sees nothing of a transport but [`Link`], which QUIC and TLS over TCP (profile 2) implement.

mod quic;
mod tcp;

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use super::error::CloseReason;
use super::silence::Quiet;
use super::transport::Transport;
use crate::wire::{CloseCode, Lane};

pub(crate) use quic::{QuicLink, close_reason};
pub(crate) use tcp::{TcpLink, TcpStream};

/// Lanes in the order in which they are served (profile 2).
const BY_PRIORITY: [Lane; 4] = [Lane::Control, Lane::Chat, Lane::Presence, Lane::Media];

/// A connection, its lanes opened by need.
pub(crate) trait Link: Send {
    /// What carries it.
    fn transport(&self) -> Transport;

    /// Whether a lane takes another frame now.
    fn has_room(&self, lane: Lane) -> bool;

    /// Queues a frame; goes out with the next [`Link::poll`], in one write with all that is queued.
    fn queue(&mut self, lane: Lane, frame: Bytes);

    /// Writes what is queued and reads the lanes for which `reading` holds. Ready when frames came, or when a lane that
    /// was full has room; an error ends the link.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reading: &dyn Fn(Lane) -> bool,
        frames: &mut Vec<(Lane, Bytes)>,
    ) -> Poll<Result<(), CloseReason>>;

    /// Round-trip time as the transport estimates it, where it tells.
    fn rtt(&self) -> Option<Duration>;

    /// How often something arrived on this connection: the sign of life that needs no answer from the server's families.
    fn arrivals(&self) -> u64;

    /// Since when nothing has arrived, where the transport itself does not notice that the server is gone.
    fn quiet(&self) -> Option<Quiet>;

    /// Closes at once.
    fn close(&mut self, code: CloseCode, reason: &str);

    /// Writes what is queued, ends the lanes; ready when the server has all of it, as far as the transport can know, or
    /// the connection is gone.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Which lanes to open with a connection: control always, and these, in the order of priority.
fn wanted(lanes: &[Lane]) -> impl Iterator<Item = Lane> {
    BY_PRIORITY.into_iter().filter(|lane| *lane == Lane::Control || lanes.contains(lane))
}
