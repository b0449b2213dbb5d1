//! What the server and the outbox are told about the position in the log (protocol.md §9).

use std::time::Instant;

use super::{Core, Link};
use crate::wire::proto::SyncAck;
use crate::wire::{Lane, Payload, Sequence};

impl Core {
    /// Tells the server what is safe here: `said` by the application or, if the application leaves that to the device,
    /// what it took, if a report is due or `force`d. Returns the position, which the outbox has to keep as well if it
    /// was `said`.
    pub(crate) fn sync(&mut self, said: Option<Sequence>, force: bool, now: Instant) -> Option<Sequence> {
        let sequence = match said {
            Some(sequence) => self.cursor.say(sequence)?,
            None if !self.settings.auto_sync || !matches!(self.link, Link::Open) => return None,
            None if force || self.cursor.sync_due(now).is_some_and(|due| due <= now) => self.cursor.sync()?,
            None => return None,
        };
        // Before a session is accepted, its log may be another one. Then this is repeated (`session_accept`).
        if self.is_open() {
            self.answer_frame(Lane::Chat, Payload::SyncAck(SyncAck { sequence: sequence.wire() }));
        }
        Some(sequence)
    }

    /// The log position that the outbox has to store, if that is due or `force`d: everything up to it was taken by the
    /// application and, where the device acknowledges automatically, has an acknowledgment at the server. Also a position
    /// that replaces one in another log.
    pub(crate) fn keep(&mut self, force: bool, now: Instant) -> Option<Sequence> {
        if let Some(instead) = self.cursor.keep_instead() {
            return Some(instead);
        }
        let due = force || self.keep_due(now).is_some_and(|due| due <= now);
        let unacknowledged = self.unacknowledged();
        if due && self.settings.auto_sync { self.cursor.keep(unacknowledged) } else { None }
    }

    pub(super) fn keep_due(&mut self, now: Instant) -> Option<Instant> {
        let unacknowledged = self.unacknowledged();
        if self.settings.auto_sync { self.cursor.keep_due(unacknowledged, now) } else { None }
    }

    /// Log position of the oldest message whose delivery the server has yet to be told.
    fn unacknowledged(&self) -> Option<Sequence> {
        [self.requests.unacknowledged(), self.receipts.oldest()].into_iter().flatten().min()
    }
}
