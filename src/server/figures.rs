//! Gathers the figures that are not maintained while they change: sizes, queues, lag, the runtime, the process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::limits::{
    FIGURES_KEPT, FIGURES_WITHIN, PRESENCE_KEPT_MAX, STORE_QUEUE_MAX, STORE_READERS_MAX, STORE_UNRELEASED_MAX,
};
use crate::observe::{CacheKind, CacheResult, Metrics, PresenceResult, QueueKind, TransportKind, log_lines_dropped};
use crate::session::Services;
use crate::store::{Lookups, Store};
use crate::transport::Crowd;

/// The sources of the figures.
pub(super) struct Figures {
    pub(super) services: Arc<Services>,
    pub(super) store: Arc<dyn Store>,
    pub(super) crowd: Arc<Crowd>,
    pub(super) data_dir: PathBuf,
    pub(super) gathered: Mutex<Gathered>,
}

#[derive(Default)]
pub(super) struct Gathered {
    /// When the figures were last gathered: many simultaneous scrapes gather them only once.
    at: Option<Instant>,
    /// Reads what the operating system has to be asked for, which may take long: one thread at most waits for a disk that hangs.
    reading: Option<JoinHandle<()>>,
}

impl Figures {
    /// Updates the readings, unless that was done a moment ago.
    pub(super) async fn gather(&self) {
        let mut gathered = self.gathered.lock().await;
        if gathered.at.is_some_and(|at| at.elapsed() < FIGURES_KEPT) {
            return;
        }
        let metrics = &self.services.metrics;
        store(metrics, &*self.store).await;
        self.hub(metrics);
        self.connections(metrics);
        runtime(metrics);
        metrics.log_dropped.set(log_lines_dropped() as f64);
        self.system(&mut gathered.reading).await;
        gathered.at = Some(Instant::now());
    }

    /// Reads the figures of the operating system on a thread that may block, and waits for it only so long.
    async fn system(&self, reading: &mut Option<JoinHandle<()>>) {
        let read = reading.get_or_insert_with(|| {
            let (metrics, data_dir) = (self.services.metrics.clone(), self.data_dir.clone());
            spawn_blocking(move || {
                metrics.read_process();
                metrics.read_disk(&data_dir);
            })
        });
        if timeout(FIGURES_WITHIN, read).await.is_ok() {
            *reading = None;
        }
    }

    fn hub(&self, metrics: &Metrics) {
        let hub = &self.services.hub;
        let lag = hub.lag();
        metrics.tail_lag.set(lag.entries as f64);
        metrics.tail_lag_max.set(lag.furthest as f64);
        metrics.tail_behind.set(lag.behind as f64);
        cache(metrics, CacheKind::RecentEntries, hub.looks());
        let presence = hub.presence();
        metrics.presence[PresenceResult::Coalesced].absolute(presence.tally().coalesced());
        metrics.presence[PresenceResult::Dropped].absolute(presence.tally().dropped());
        queue(metrics, QueueKind::PresenceKept, presence.remembered(), PRESENCE_KEPT_MAX);
    }

    fn connections(&self, metrics: &Metrics) {
        let (connections, max) = self.crowd.connections();
        queue(metrics, QueueKind::Connections, connections, max);
        let (sockets, max) = self.crowd.sockets();
        queue(metrics, QueueKind::ConnectionsTcp, sockets, max);
        let (quic, max) = self.crowd.handshakes(TransportKind::Quic);
        queue(metrics, QueueKind::HandshakesQuic, quic, max);
        let (tcp, max) = self.crowd.handshakes(TransportKind::Tcp);
        queue(metrics, QueueKind::HandshakesTcp, tcp, max);
    }
}

async fn store(metrics: &Metrics, store: &dyn Store) {
    // First the figures that need no reader: they show when all readers are busy.
    let figures = store.figures();
    queue(metrics, QueueKind::StoreWrites, figures.writes_waiting, STORE_QUEUE_MAX);
    queue(metrics, QueueKind::StoreReads, figures.reads, STORE_READERS_MAX);
    queue(metrics, QueueKind::Unreleased, figures.unreleased, STORE_UNRELEASED_MAX);
    cache(metrics, CacheKind::LogEnds, figures.log_ends);
    cache(metrics, CacheKind::ChatEnds, figures.chat_ends);
    cache(metrics, CacheKind::Messages, figures.messages);
    cache(metrics, CacheKind::Lists, figures.lists);
    // A disk that hangs must not hide the other figures.
    let Ok(Ok(size)) = timeout(FIGURES_WITHIN, store.size()).await else { return };
    metrics.store_disk.set(size.disk_bytes as f64);
    metrics.store_journal.set(size.journal_bytes as f64);
    cache(metrics, CacheKind::Blocks, size.blocks);
}

fn queue(metrics: &Metrics, queue: QueueKind, depth: usize, max: usize) {
    metrics.queue_depth[queue].set(depth as f64);
    metrics.queue_depth_max[queue].set(max as f64);
}

fn cache(metrics: &Metrics, cache: CacheKind, lookups: Lookups) {
    metrics.cache[(cache, CacheResult::Hit)].set(lookups.hits as f64);
    metrics.cache[(cache, CacheResult::Miss)].set(lookups.misses as f64);
}

fn runtime(metrics: &Metrics) {
    let runtime = Handle::current().metrics();
    let workers = runtime.num_workers();
    metrics.runtime_workers.set(workers as f64);
    metrics.runtime_tasks.set(runtime.num_alive_tasks() as f64);
    metrics.runtime_queue.set(runtime.global_queue_depth() as f64);
    let busy = (0..workers).map(|worker| runtime.worker_total_busy_duration(worker).as_secs_f64());
    metrics.runtime_busy.set(busy.sum());
    let parks = (0..workers).map(|worker| runtime.worker_park_count(worker) as f64);
    metrics.runtime_parks.set(parks.sum());
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::io::{self, Write};
    use std::sync::mpsc;

    use super::*;
    use crate::store::testing::Nobody;
    use crate::store::{Embedded, Memory, Options};

    /// Occupies a reader of the store: reports that it has one, and holds it until the sender of `until` is dropped.
    struct Held {
        has: tokio::sync::mpsc::Sender<()>,
        until: mpsc::Receiver<()>,
    }

    impl Write for Held {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.has.try_send(());
            let _ = self.until.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_store_whose_readers_are_all_at_work_shows_so() {
        let embedded = Embedded::open_memory(Memory::default(), Options::default(), Arc::new(Nobody)).unwrap();
        let embedded = Arc::new(embedded);
        let (has, mut have) = tokio::sync::mpsc::channel(STORE_READERS_MAX);
        let holding: Vec<_> = (0..STORE_READERS_MAX)
            .map(|_| {
                let (hold, until) = mpsc::channel();
                let (store, held) = (embedded.clone(), Held { has: has.clone(), until });
                tokio::spawn(async move { store.archive(0, held).await });
                hold
            })
            .collect();
        for _ in &holding {
            have.recv().await.unwrap();
        }
        let metrics = Metrics::new();
        tokio::select! {
            biased;
            () = store(&metrics, &*embedded) => panic!("there was a turn for its size"),
            () = ready(()) => {}
        }
        assert_eq!(metrics.queue_depth[QueueKind::StoreReads].get(), Some(STORE_READERS_MAX as f64));
        drop(holding);
        store(&metrics, &*embedded).await;
        assert_eq!(metrics.store_disk.get(), Some(0.0));
    }
}
