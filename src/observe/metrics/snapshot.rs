//! A few figures that are read back from the rendered page, to be shown to a person.

use super::Metrics;

/// The figures of one moment. Except for the sessions, they count from the server's start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Signed-in sessions over QUIC.
    pub sessions_quic: f64,
    /// The same over TCP.
    pub sessions_tcp: f64,
    /// Messages accepted.
    pub accepted: f64,
    /// Messages handed to a recipient's lane.
    pub delivered: f64,
    /// Errors answered.
    pub errors: f64,
    /// Latency of live deliveries.
    pub live: Buckets,
    /// Durable commits.
    pub commits: Buckets,
}

impl Metrics {
    /// Renders the page and reads the figures from it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.render())
    }
}

impl Snapshot {
    fn of(page: &str) -> Snapshot {
        Snapshot {
            sessions_quic: sum(page, "bimip_sessions", "transport=\"quic\""),
            sessions_tcp: sum(page, "bimip_sessions", "transport=\"tcp\""),
            accepted: sum(page, "bimip_messages_accepted_total", ""),
            delivered: sum(page, "bimip_delivery_latency_seconds_count", ""),
            errors: sum(page, "bimip_errors_total", ""),
            live: Buckets::of(page, "bimip_delivery_latency_seconds_bucket", "kind=\"live\""),
            commits: Buckets::of(page, "bimip_commit_seconds_bucket", ""),
        }
    }
}

/// Labels and values of all series with a name whose labels contain a text.
fn samples<'a>(page: &'a str, name: &'a str, label: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    page.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        let all_of_name = labels.is_empty() || labels.starts_with('{');
        (all_of_name && labels.contains(label)).then_some((labels, value.parse().ok()?))
    })
}

fn sum(page: &str, name: &str, label: &str) -> f64 {
    samples(page, name, label).map(|(_, value)| value).sum()
}

/// A histogram: the number of values up to each bound, ascending; the last bound is infinite.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets(Vec<(f64, f64)>);

impl Buckets {
    fn of(page: &str, name: &str, label: &str) -> Buckets {
        let bound = |labels: &str| {
            let (_, rest) = labels.split_once("le=\"")?;
            rest.split_once('"')?.0.parse().ok()
        };
        let buckets = samples(page, name, label).filter_map(|(labels, count)| Some((bound(labels)?, count)));
        Buckets(buckets.collect())
    }

    /// The number of values.
    pub fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The values since an earlier state of the same histogram.
    #[must_use]
    pub fn since(&self, before: &Buckets) -> Buckets {
        if before.0.len() != self.0.len() {
            return self.clone();
        }
        Buckets(self.0.iter().zip(&before.0).map(|((bound, now), (_, then))| (*bound, now - then)).collect())
    }

    /// A quantile as Prometheus estimates it: values are spread evenly within a bucket, and the result is no higher than the
    /// highest finite bound. `None` if there are no values.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let wanted = self.count() * quantile;
        let mut below = (0.0, 0.0);
        for (bound, count) in &self.0 {
            if *count >= wanted && *count > below.1 {
                let part = (wanted - below.1) / (count - below.1);
                return Some(if bound.is_finite() { below.0 + (bound - below.0) * part } else { below.0 });
            }
            below = (*bound, *count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::{ContentKind, DeliveryKind, TransportKind};

    #[test]
    fn the_page_is_read_back() {
        let metrics = Metrics::new();
        assert_eq!(metrics.snapshot().live.quantile(0.5), None);
        metrics.sessions[TransportKind::Tcp].increment(2);
        metrics.accepted[ContentKind::Text].increment(3);
        metrics.accepted[ContentKind::Media].increment(1);
        metrics.delivery[DeliveryKind::Backlog].record(Duration::from_secs(1));
        let before = metrics.snapshot();
        assert_eq!(
            (before.sessions_quic, before.sessions_tcp, before.accepted, before.delivered),
            (0.0, 2.0, 4.0, 1.0)
        );
        for _ in 0..100 {
            metrics.delivery[DeliveryKind::Live].record(Duration::from_micros(2500));
        }
        metrics.delivery[DeliveryKind::Live].record(Duration::from_secs(300));
        let since = metrics.snapshot().live.since(&before.live);
        assert_eq!(since.count(), 101.0);
        let half = since.quantile(0.5).unwrap();
        assert!(half > 0.002 && half < 0.003, "{half}");
        assert_eq!(since.quantile(1.0), Some(60.0), "nothing is known beyond the last bound");
    }
}
