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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Content, EntryBody, Message};
    use crate::wire::{ChatId, MessageId, Version};

    #[test]
    fn long_messages_are_kept_up_to_their_bytes_and_the_oldest_go_first() {
        const BYTES: usize = 16 * 1024;
        const LAST: u64 = 20;
        let (bob, alice) = (crate::store::testing::eid("bob"), crate::store::testing::eid("alice"));
        let entry = |sequence: u64| {
            let message = Message {
                id: MessageId::new(sequence as i64, [0; 10]),
                chat: ChatId::between(&alice, &bob),
                version: Version::from(sequence),
                sender: bob.clone(),
                device: crate::store::testing::device("phone"),
                recipient: alice.clone(),
                local_id: crate::wire::LocalId::parse("local").unwrap(),
                content: Content::Text("x".repeat(BYTES)),
                created_at: 0,
                received_at: 0,
            };
            LogEntry {
                sequence: Sequence::from(sequence),
                origin: None,
                at: 0,
                body: EntryBody::Received(Arc::new(message)),
                committed: None,
                received: None,
                frame: std::sync::OnceLock::new(),
            }
        };
        let mut recent = RecentEntries::default();
        (1..=LAST).for_each(|sequence| recent.push(Arc::new(entry(sequence))));
        // As many as fit: each once as a message, and once as a frame.
        let kept = (RECENT_BYTES_MAX / (2 * BYTES + ENTRY_OVERHEAD_BYTES)) as u64;
        assert!((1..LAST).contains(&kept));
        let oldest = LAST - kept;
        let Recent::Entries(entries) = recent.after(Sequence::from(oldest), usize::MAX) else {
            panic!("too few are kept")
        };
        assert_eq!(entries.len() as u64, kept);
        assert!(matches!(recent.after(Sequence::from(oldest - 1), usize::MAX), Recent::Behind(_)), "too many are kept");
    }
}
