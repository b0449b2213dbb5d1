//! The newest log entries of one connected user: bounded, in order and without a gap.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::limits::{RECENT_BYTES_MAX, RECENT_ENTRIES_MAX};
use crate::store::LogEntry;
use crate::wire::Sequence;

/// Estimated memory of an entry besides its content, in bytes: ids, eids, counters.
const ENTRY_OVERHEAD_BYTES: usize = 400;

/// What the hub holds of a log after a position.
#[derive(Debug)]
pub enum Recent {
    /// No newer entry has been committed since the first connected device of the user joined.
    Nothing,
    /// The entries that follow the position, without a gap.
    Entries(Vec<Arc<LogEntry>>),
    /// Entries up to this one follow, but the hub no longer has the next one: read the store.
    Behind(Sequence),
}

#[derive(Default)]
pub(super) struct RecentEntries {
    entries: VecDeque<Arc<LogEntry>>,
    bytes: usize,
    head: Sequence,
}

impl RecentEntries {
    /// Appends the log's next entry, and drops the oldest ones that exceed the bounds.
    pub(super) fn push(&mut self, entry: Arc<LogEntry>) {
        debug_assert!(self.head == Sequence::ZERO || entry.sequence == self.head.next(), "the log has no gaps");
        self.head = entry.sequence;
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
        while self.entries.len() > RECENT_ENTRIES_MAX || self.bytes > RECENT_BYTES_MAX {
            self.forget_oldest();
        }
    }

    /// The newest entry appended so far; zero: none.
    pub(super) fn head(&self) -> Sequence {
        self.head
    }

    /// At most `limit` entries that follow `after`.
    pub(super) fn after(&self, after: Sequence, limit: usize) -> Recent {
        if self.head <= after {
            return Recent::Nothing;
        }
        match self.entries.front() {
            Some(oldest) if oldest.sequence <= after.next() => {
                let skip = (after.next().get() - oldest.sequence.get()) as usize;
                Recent::Entries(self.entries.iter().skip(skip).take(limit).cloned().collect())
            }
            _ => Recent::Behind(self.head),
        }
    }

    /// Drops the entries that every device has taken.
    pub(super) fn forget_up_to(&mut self, passed: Sequence) {
        while self.entries.front().is_some_and(|oldest| oldest.sequence <= passed) {
            self.forget_oldest();
        }
        if self.entries.is_empty() {
            // An idle user holds no buffer.
            self.entries = VecDeque::new();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.entries.pop_front() {
            self.bytes -= weight(&oldest);
        }
    }
}

fn weight(entry: &LogEntry) -> usize {
    // The content counts twice: in the message and in its encoded frame.
    2 * entry.content_bytes() + ENTRY_OVERHEAD_BYTES
}
