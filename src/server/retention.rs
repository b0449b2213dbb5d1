//! Keeps the store from growing without bound: runs a pass of the retention from time to time, in the background.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::clock::Now;
use crate::config::RetentionConfig;
use crate::observe::{Metrics, RetentionResult};
use crate::store::{Retention, Store, Trimmed};

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Runs until `stop`. The first pass waits for a part of the interval, so that it does not slow down the start-up and servers
/// that were started together do not work together. Each later pass waits for about the interval; after one that failed, for that part.
pub(super) async fn run(
    config: RetentionConfig,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    random: impl Fn(&mut [u8]),
    stop: CancellationToken,
) {
    let interval = Duration::from_secs(config.interval_minutes * 60);
    let soon = interval / 8;
    let mut wait = jittered(soon, &random);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        let complete = tokio::select! {
            () = stop.cancelled() => return,
            complete = pass(&config, &*store, &metrics) => complete,
        };
        wait = jittered(if complete { interval } else { soon }, &random);
    }
}

/// Returns whether it came to its end.
async fn pass(config: &RetentionConfig, store: &dyn Store, metrics: &Metrics) -> bool {
    let (began, now_ms) = (Instant::now(), Now::system().unix_ms);
    let retention = Retention {
        older_than_ms: now_ms.saturating_sub(i64::from(config.days) * DAY_MS),
        entries_max_per_user: config.entries_per_user,
    };
    let trimmed = store.trim(retention, now_ms).await;
    let result = match &trimmed {
        Ok(Trimmed { unreadable: 0, .. }) => RetentionResult::Done,
        Ok(_) => RetentionResult::Partial,
        Err(_) => RetentionResult::Failed,
    };
    metrics.retention_passes[result].increment(1);
    match &trimmed {
        Ok(Trimmed { entries, messages, unreadable }) => {
            let seconds = began.elapsed().as_secs_f64();
            tracing::info!(entries, messages, unreadable, seconds, "retention");
        }
        Err(error) => tracing::error!(%error, "the retention was cut off; the next pass goes on"),
    }
    trimmed.is_ok()
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
    use crate::store::testing::{Nobody, eid, text};
    use crate::store::{Embedded, Memory, NewMessage, Options};
    use crate::wire::Sequence;

    #[tokio::test]
    async fn entries_go_that_are_too_old_or_too_many_and_a_pass_is_counted_by_its_end() {
        let (metrics, memory) = (Metrics::new(), Memory::new());
        let store = Embedded::open_memory(memory.clone(), Options::default(), Arc::new(Nobody)).unwrap();
        let now_ms = Now::system().unix_ms;
        for (number, days) in [(1, 31), (2, 29), (3, 28)] {
            let received_at = now_ms - days * DAY_MS;
            store.accept(NewMessage { received_at, ..text("alice", "bob", number) }, true).await.unwrap();
        }
        let left = async || {
            let entries = store.read_log(&eid("bob"), Sequence::ZERO, 9).await.unwrap();
            entries.iter().map(|entry| entry.sequence.get()).collect::<Vec<_>>()
        };
        let config = RetentionConfig { days: 30, entries_per_user: 100, interval_minutes: 60 };
        assert!(pass(&config, &store, &metrics).await);
        assert_eq!(left().await, [2, 3]);
        assert!(pass(&RetentionConfig { entries_per_user: 1, ..config.clone() }, &store, &metrics).await);
        assert_eq!(left().await, [3]);
        memory.fail_after(0, crate::store::Fault::Before);
        assert!(!pass(&RetentionConfig { days: 1, ..config.clone() }, &store, &metrics).await);
        let text = metrics.render();
        for (result, passes) in [("done", 2), ("failed", 1), ("partial", 0)] {
            let series = format!("bimip_retention_passes_total{{result=\"{result}\"}} {passes}\n");
            assert!(text.contains(&series), "{series}");
        }
    }

    #[test]
    fn servers_started_together_do_not_stay_together() {
        let hour = Duration::from_secs(3600);
        let at = |byte| jittered(hour, &move |bytes: &mut [u8]| bytes.fill(byte));
        assert_eq!((at(0), at(255)), (hour * 3 / 4, hour * 5 / 4));
    }
}
