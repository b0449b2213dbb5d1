//! Figures of the store for monitoring: sizes, queue lengths, cache hits.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Figures that need no call to the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Operations that wait for the writer.
    pub writes_waiting: usize,
    /// Reads in progress, and those that wait for a place.
    pub reads: usize,
    /// Messages that wait for their release.
    pub unreleased: usize,
    /// Cache lookups of a log's newest sequence.
    pub log_ends: Lookups,
    /// Cache lookups of a chat's newest version.
    pub chat_ends: Lookups,
    /// Cache lookups of the length of a subscriber list.
    pub lists: Lookups,
    /// Cache lookups of a message to release or acknowledge.
    pub messages: Lookups,
}

/// The engine's size on disk, and the lookups in its block cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes on disk, including the journal.
    pub disk_bytes: u64,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// Cache lookups of blocks of table files.
    pub blocks: Lookups,
}

/// Cache lookups since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// Lookups that found the value in memory.
    pub hits: u64,
    /// Lookups that had to fetch the value.
    pub misses: u64,
}

/// Counters of a cache's lookups.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Counted {
    pub(crate) fn count(&self, hit: bool) {
        let counter = if hit { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn lookups(&self) -> Lookups {
        Lookups { hits: self.hits.load(Ordering::Relaxed), misses: self.misses.load(Ordering::Relaxed) }
    }
}

/// Counters that the ledger updates on the writer's thread and other threads read.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) unreleased: AtomicUsize,
    pub(crate) log_ends: Counted,
    pub(crate) chat_ends: Counted,
    pub(crate) lists: Counted,
    pub(crate) messages: Counted,
}
