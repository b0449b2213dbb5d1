//! Whether the server should receive traffic: it is not draining, its listeners run, and the store takes writes.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::limits::{READY_KEPT, READY_WITHIN};
use crate::observe::Metrics;
use crate::store::Store;

/// What readiness depends on.
pub(super) struct Readiness {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
    /// The tasks that accept connections, by what they listen to.
    listeners: Vec<(&'static str, AbortHandle)>,
    /// Time and result of the last probe. The lock is held during a probe, so all callers that ask meanwhile share it.
    probed: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Readiness {
    pub(super) fn new(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
        listeners: Vec<(&'static str, AbortHandle)>,
    ) -> Readiness {
        Readiness { store, metrics, draining, listeners, probed: Mutex::default() }
    }

    /// Checks whether the server is ready; the error says why it is not. Also sets the metric.
    pub(super) async fn check(&self) -> Result<(), String> {
        let ready = self.look().await;
        self.metrics.ready.set(if ready.is_ok() { 1.0 } else { 0.0 });
        ready
    }

    async fn look(&self) -> Result<(), String> {
        if self.draining.is_cancelled() {
            return Err("draining".to_owned());
        }
        if let Some((name, _)) = self.listeners.iter().find(|(_, task)| task.is_finished()) {
            return Err(format!("the {name} listener has stopped; restart the server"));
        }
        let mut probed = self.probed.lock().await;
        if let Some((at, result)) = &*probed
            && at.elapsed() < READY_KEPT
        {
            return result.clone();
        }
        let result = match timeout(READY_WITHIN, self.store.check()).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the store has not written for {} s; look at the disk", READY_WITHIN.as_secs())),
        };
        *probed = Some((Instant::now(), result.clone()));
        result
    }
}
