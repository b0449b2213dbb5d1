//! What the store can say about itself to whoever watches it: sizes, what waits, what was found in memory.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What the store knows of itself without asking its engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Operations that wait for the writer.
    pub writes_waiting: usize,
    /// Reads that run.
    pub reads: usize,
    /// Messages that wait for their release.
    pub unreleased: usize,
    /// Newest numbers of logs.
    pub log_ends: Lookups,
    /// Newest numbers of chats.
    pub chat_ends: Lookups,
    /// Lengths of subscriber lists.
    pub lists: Lookups,
    /// Messages that are released or acknowledged.
    pub messages: Lookups,
}

/// What an engine takes, and how often it had to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes on disk, the journal's included.
    pub disk_bytes: u64,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// Blocks of files.
    pub blocks: Lookups,
}

/// How often something was looked for in memory since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// And was there.
    pub hits: u64,
    /// And had to be fetched.
    pub misses: u64,
}

/// A cache counts by itself.
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

/// What the ledger counts on the writer's thread and others read.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) unreleased: AtomicUsize,
    pub(crate) log_ends: Counted,
    pub(crate) chat_ends: Counted,
    pub(crate) lists: Counted,
    pub(crate) messages: Counted,
}
