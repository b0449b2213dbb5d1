//! Samples the path to one device (round trip and losses) at a bounded cost.

use std::time::Instant;

use crate::limits::PATH_SAMPLED_EVERY;
use crate::observe::{Metrics, TransportKind};

use super::{Now, PathStats};

/// When a connection's path is sampled next, and what the last sample was.
pub(super) struct PathMeter {
    due: Instant,
    seen: PathStats,
}

impl PathMeter {
    pub(super) fn new(now: Now) -> PathMeter {
        PathMeter { due: now.at, seen: PathStats::default() }
    }

    /// Whether a sample is due. An idle connection is not woken for it.
    pub(super) fn is_due(&self, now: Now) -> bool {
        self.due <= now.at
    }

    /// Counts what was sent and lost since the last look, and records the round trip if a sample is due. If none was measured
    /// yet, the sample stays due.
    pub(super) fn look(&mut self, path: &PathStats, kind: TransportKind, metrics: &Metrics, now: Now) {
        let (sent, lost) = self.since(path);
        metrics.packets_sent[kind].increment(sent);
        metrics.packets_lost[kind].increment(lost);
        self.seen = *path;
        if let Some(rtt) = path.rtt
            && self.is_due(now)
        {
            self.due = now.at + PATH_SAMPLED_EVERY;
            metrics.path_rtt[kind].record(rtt);
        }
    }

    fn since(&self, path: &PathStats) -> (u64, u64) {
        // A new path counts from zero.
        let before = if path.packets_sent < self.seen.packets_sent { PathStats::default() } else { self.seen };
        (path.packets_sent - before.packets_sent, path.packets_lost.saturating_sub(before.packets_lost))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn packets_are_counted_once_also_over_a_change_of_path() {
        let metrics = Metrics::new();
        let now = Now::system();
        let mut meter = PathMeter::new(now);
        assert!(meter.is_due(now));
        let rtt = Some(Duration::from_millis(50));
        let path = |packets_sent, packets_lost| PathStats { rtt, packets_sent, packets_lost, ..PathStats::default() };
        for (sent, lost) in [(10, 0), (100, 5), (100, 5), (7, 1), (9, 1)] {
            meter.look(&path(sent, lost), TransportKind::Quic, &metrics, now);
        }
        assert!(!meter.is_due(now));
        let text = metrics.render();
        assert!(text.contains("bimip_path_packets_sent_total{transport=\"quic\"} 109\n"), "{text}");
        assert!(text.contains("bimip_path_packets_lost_total{transport=\"quic\"} 6\n"));
        assert!(text.contains("bimip_path_rtt_seconds_count{transport=\"quic\"} 1\n"), "once in an interval");
    }

    #[test]
    fn a_round_trip_is_recorded_once_there_is_one() {
        let metrics = Metrics::new();
        let now = Now::system();
        let mut meter = PathMeter::new(now);
        let look = |meter: &mut PathMeter, rtt: Option<u64>| {
            let rtt = rtt.map(Duration::from_millis);
            meter.look(&PathStats { rtt, ..PathStats::default() }, TransportKind::Quic, &metrics, now);
            meter.is_due(now)
        };
        assert!(look(&mut meter, None), "it is looked for again");
        assert!(!look(&mut meter, Some(50)));
        assert!(metrics.render().contains("bimip_path_rtt_seconds_sum{transport=\"quic\"} 0.05\n"));
    }
}
