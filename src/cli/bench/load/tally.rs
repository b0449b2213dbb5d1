//! The counters of a run.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::cli::bench::report::histogram;

/// Counters and latencies of some or all devices.
pub(in crate::cli::bench) struct Tally {
    pub(in crate::cli::bench) sent: u64,
    /// Sent messages that the server acknowledged. Each of them arrived, or the run has failed.
    pub(in crate::cli::bench) acknowledged: u64,
    /// Sent messages whose answers were lost with the connection.
    pub(in crate::cli::bench) uncertain: u64,
    /// Due messages that were not sent, because the connection did not accept them in time.
    pub(in crate::cli::bench) held_back: u64,
    /// Refusals by code.
    pub(in crate::cli::bench) refused: BTreeMap<i32, u64>,
    /// Messages received by a device, including copies for a sender's other devices.
    pub(in crate::cli::bench) arrivals: u64,
    /// How often a device disconnected as planned and came back.
    pub(in crate::cli::bench) cuts: u64,
    /// Connections that failed, by the server's close code where it is visible.
    pub(in crate::cli::bench) lost: BTreeMap<Option<u64>, u64>,
    /// Presence changes that users announced.
    pub(in crate::cli::bench) changes: u64,
    pub(in crate::cli::bench) accepted: Histogram<u64>,
    pub(in crate::cli::bench) delivered: Histogram<u64>,
    pub(in crate::cli::bench) receipted: Histogram<u64>,
    /// Latency from a change to a contact's notification.
    pub(in crate::cli::bench) told: Histogram<u64>,
    /// Each delivery, if the plan keeps them: due time and latency, in microseconds.
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
