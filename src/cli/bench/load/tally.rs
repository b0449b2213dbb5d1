//! What is counted in a run.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::cli::bench::report::histogram;

/// Counts and latencies of some or all devices.
pub(in crate::cli::bench) struct Tally {
    pub(in crate::cli::bench) sent: u64,
    /// Of the sent, those that the server acknowledged: each of them arrived, or the run has failed.
    pub(in crate::cli::bench) acknowledged: u64,
    /// Of the sent, those whose answers were lost with their connections.
    pub(in crate::cli::bench) uncertain: u64,
    /// Of the messages that were due, those that the connection did not take in time.
    pub(in crate::cli::bench) held_back: u64,
    /// Refusals by code.
    pub(in crate::cli::bench) refused: BTreeMap<i32, u64>,
    /// Messages that came to a device, copies for a sender's other devices among them.
    pub(in crate::cli::bench) arrivals: u64,
    /// Devices that were cut off and came back.
    pub(in crate::cli::bench) cuts: u64,
    /// Connections that the server ended, by close code where that can be seen.
    pub(in crate::cli::bench) lost: BTreeMap<Option<u64>, u64>,
    /// Changes of state that users made known.
    pub(in crate::cli::bench) changes: u64,
    pub(in crate::cli::bench) accepted: Histogram<u64>,
    pub(in crate::cli::bench) delivered: Histogram<u64>,
    pub(in crate::cli::bench) receipted: Histogram<u64>,
    /// From a change to a contact who is told.
    pub(in crate::cli::bench) told: Histogram<u64>,
    /// Each delivery, where it is kept: when it was due and how long it took, in microseconds.
    pub(in crate::cli::bench) timeline: Vec<(u64, u64)>,
}

impl Tally {
    pub(in crate::cli::bench) fn new() -> Tally {
        Tally {
            sent: 0,
            acknowledged: 0,
            uncertain: 0,
            held_back: 0,
            refused: BTreeMap::new(),
            arrivals: 0,
            cuts: 0,
            lost: BTreeMap::new(),
            changes: 0,
            accepted: histogram(),
            delivered: histogram(),
            receipted: histogram(),
            told: histogram(),
            timeline: Vec::new(),
        }
    }

    pub(in crate::cli::bench) fn add(&mut self, other: Tally) -> anyhow::Result<()> {
        self.sent += other.sent;
        self.acknowledged += other.acknowledged;
        self.uncertain += other.uncertain;
        self.held_back += other.held_back;
        self.arrivals += other.arrivals;
        self.cuts += other.cuts;
        self.changes += other.changes;
        other.refused.into_iter().for_each(|(code, count)| *self.refused.entry(code).or_default() += count);
        other.lost.into_iter().for_each(|(code, count)| *self.lost.entry(code).or_default() += count);
        self.accepted.add(other.accepted)?;
        self.delivered.add(other.delivered)?;
        self.receipted.add(other.receipted)?;
        self.told.add(other.told)?;
        self.timeline.extend(other.timeline);
        Ok(())
    }
}
