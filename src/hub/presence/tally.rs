//! Counters of presence notifications that were not sent on their own.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters over all watches since the start.
#[derive(Debug, Default)]
pub struct Tally {
    coalesced: AtomicU64,
    dropped: AtomicU64,
}

impl Tally {
    /// Number of changes that were merged into a pending notification, or undone before they were sent.
    pub fn coalesced(&self) -> u64 {
        self.coalesced.load(Ordering::Relaxed)
    }

    /// Number of directed notices that were dropped for lack of room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn coalesce(&self) {
        self.coalesced.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}
