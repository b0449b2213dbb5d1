//! What goes out on one lane: frames that belong to the connection, and when requests and messages may follow.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use crate::client::limits::{ANSWERS_BYTES_MAX, ANSWERS_MAX, REQUEST_WITHIN};

/// The outgoing direction of one lane.
#[derive(Debug, Default)]
pub(super) struct LaneOut {
    /// Frames that belong to this connection only; they go before requests.
    answers: VecDeque<Bytes>,
    answer_bytes: usize,
    /// The server put a request off: this lane's requests and messages wait until then.
    pub(super) hold: Option<Instant>,
    /// No message goes out before this time.
    pub(super) sends_after: Option<Instant>,
    /// Set while no message may go out until all that are in flight are answered, because they may be put off too.
    /// Holds at most until this time.
    pub(super) settling: Option<Instant>,
    /// Number of messages that may be in flight, since one was put off. Starts at one and grows by one with each
    /// answer. Without it, a device over its rate would resend everything that waits each time.
    pub(super) window: Option<usize>,
}

impl LaneOut {
    /// Whether there is room for a frame that the server can do without.
    pub(super) fn has_room(&self) -> bool {
        self.answers.len() < ANSWERS_MAX && self.answer_bytes < ANSWERS_BYTES_MAX
    }

    /// Adds a frame that belongs to this connection.
    pub(super) fn push(&mut self, frame: Bytes) {
        self.answer_bytes += frame.len();
        self.answers.push_back(frame);
    }

    /// Takes the oldest of these frames.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let frame = self.answers.pop_front()?;
        self.answer_bytes -= frame.len();
        Some(frame)
    }

    /// Ends the wait for messages in flight, once they are answered or overdue. If overdue, the window is lifted as
    /// well.
    pub(super) fn settle(&mut self, on_the_way: usize, now: Instant) {
        match self.settling {
            Some(_) if on_the_way == 0 => self.settling = None,
            Some(until) if until <= now => (self.settling, self.window) = (None, None),
            _ => {}
        }
    }

    /// Whether a message may go out.
    pub(super) fn sends(&mut self, on_the_way: usize, now: Instant) -> bool {
        self.settle(on_the_way, now);
        if self.window.is_some_and(|window| on_the_way >= window) {
            self.settling.get_or_insert(now + REQUEST_WITHIN);
        }
        self.settling.is_none() && self.sends_after.is_none_or(|after| after <= now)
    }
}
