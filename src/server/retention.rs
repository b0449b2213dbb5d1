//! Keeps the store from growing without bound: runs a pass of the retention from time to time, in the background.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::clock::Now;
use crate::config::RetentionConfig;
use crate::observe::Metrics;
use crate::store::{Retention, Store};

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Runs until `stop`. The first pass waits for a part of the interval, so that it does not slow down the start-up and servers
/// that were started together do not work together. Each later pass waits for about the interval.
pub(super) async fn run(
    config: RetentionConfig,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    random: impl Fn(&mut [u8]),
    stop: CancellationToken,
) {
    let interval = Duration::from_secs(config.interval_minutes * 60);
    let mut wait = jittered(interval / 8, &random);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = pass(&config, &*store, &metrics) => {}
        }
        wait = jittered(interval, &random);
    }
}

async fn pass(config: &RetentionConfig, store: &dyn Store, metrics: &Metrics) {
    let (began, now_ms) = (Instant::now(), Now::system().unix_ms);
    let retention = Retention {
        older_than_ms: now_ms.saturating_sub(i64::from(config.days) * DAY_MS),
        entries_max_per_user: config.entries_per_user,
    };
    match store.trim(retention, now_ms).await {
        Ok(trimmed) => {
            metrics.trimmed_entries.increment(trimmed.entries);
            metrics.trimmed_messages.increment(trimmed.messages);
            let seconds = began.elapsed().as_secs_f64();
            tracing::info!(entries = trimmed.entries, messages = trimmed.messages, seconds, "retention");
        }
        Err(error) => tracing::error!(%error, "the retention was cut off; the next pass goes on"),
    }
}

/// A random time from three to five quarters of `time`.
fn jittered(time: Duration, random: &impl Fn(&mut [u8])) -> Duration {
    let mut byte = [0];
    random(&mut byte);
    time * 3 / 4 + time * u32::from(byte[0]) / 510
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_started_together_do_not_stay_together() {
        let hour = Duration::from_secs(3600);
        let at = |byte| jittered(hour, &move |bytes: &mut [u8]| bytes.fill(byte));
        assert_eq!((at(0), at(255)), (hour * 3 / 4, hour * 5 / 4));
    }
}
