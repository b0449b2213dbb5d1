//! What became of notifications that were not sent as such.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters over all watches since the start.
#[derive(Debug, Default)]
pub struct Tally {
    coalesced: AtomicU64,
    dropped: AtomicU64,
}

impl Tally {
    /// Changes that one still to be told took in, or that had been undone before they were told.
    pub fn coalesced(&self) -> u64 {
        self.coalesced.load(Ordering::Relaxed)
    }

    /// Notices to one user alone for which there was no room.
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
