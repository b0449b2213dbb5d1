//! What the server and the outbox are told about the position in the log (protocol.md §9).

use std::time::Instant;

use super::Core;
use crate::wire::proto::SyncAck;
use crate::wire::{Lane, Payload, Sequence};

impl Core {
    /// Tells the server what is safe here: `said` by the application or, if the application leaves that to the device,
    /// what it took, if a report is due or `force`d. Returns the position, which the outbox has to keep as well if it
    /// was `said`.
    pub(crate) fn sync(&mut self, said: Option<Sequence>, force: bool, now: Instant) -> Option<Sequence> {
        let sequence = match said {
            Some(sequence) => self.cursor.say(sequence)?,
            None if self.sync_due(now).is_some_and(|due| force || due <= now) => self.cursor.sync()?,
            None => return None,
        };
        self.put_sync(sequence);
        Some(sequence)
    }

    /// When the server has to be told what the application took, if there is news.
    pub(super) fn sync_due(&mut self, now: Instant) -> Option<Instant> {
        if self.settings.auto_sync && self.tails && self.is_open() { self.cursor.sync_due(now) } else { None }
    }

    /// Repeats what the application said: the last SyncAck may have been lost with the previous connection, or had to wait
    /// for chat.
    pub(super) fn say_again(&mut self) {
        if let (false, Some(said)) = (self.settings.auto_sync, self.cursor.said()) {
            self.put_sync(said);
        }
    }

    /// A frame goes out that opens chat, if it was not open.
    pub(super) fn opens_chat(&mut self) {
        if !std::mem::replace(&mut self.tails, true) {
            self.say_again();
        }
    }

    /// Before a session is accepted, its log may be another one; then this is repeated (`session_accept`). On a closed
    /// chat lane it would be the frame that opens it, and the server would deliver to an application that asked for no
    /// messages; those count as safe once they are taken, and no later process gets them.
    fn put_sync(&mut self, sequence: Sequence) {
        if self.is_open() && self.tails {
            self.answer_frame(Lane::Chat, Payload::SyncAck(SyncAck { sequence: sequence.wire() }));
        }
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
