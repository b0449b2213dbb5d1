//! Every metric of the server: name, help, unit, labels and their values, declared here and nowhere else.
//!
//! Handles are created once when the server starts, so that counting on the path of a message costs an atomic addition and no
//! look-up. Each server has its own recorder: two servers in one process do not mix. No label carries an eid, an address or a
//! message id: the values are those of the enums in `labels`, so the number of series is bounded.

mod family;
mod labels;
mod snapshot;

pub use family::{Declared, Family, MetricType, Reading, SparseFamily};
pub use labels::{
    CacheKind, CacheResult, CloseReason, ContentKind, DeliveryKind, Direction, Label, Labels, LimitKind, MigrationKind,
    OpenResult, PayloadName, PresenceResult, QueueKind, RefusedFor, ReloadResult, RetentionResult, ThisVersion,
    TraceResult, TransportKind, ZeroRttResult,
};
pub use snapshot::{Buckets, Snapshot};

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

use crate::wire::{ErrorCode, Lane, PAYLOAD_NAMES};
use family::{Register, Registry};

/// Buckets of every latency, in seconds: below a millisecond for loopback and the store, then steps of a third to a half
/// because quantiles are read from them, up to a minute for phones.
const LATENCY_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06,
    0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 60.0,
];
/// Buckets of counts in one commit.
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Declares the metrics: each a field of [`Metrics`] and a line of [`DECLARED`].
macro_rules! metrics {
    ($($field:ident: $family:ident<$handle:ident, $labels:ty>, $kind:ident, $name:literal, $help:literal;)*) => {
        /// The server's metrics. Counting is cheap and never blocks.
        pub struct Metrics {
            registry: Arc<Registry>,
            $(#[doc = $help] pub $field: $family<$handle, $labels>,)*
        }

        /// Every metric.
        pub const DECLARED: &[Declared] = &[$(
            Declared { name: $name, kind: MetricType::$kind, help: $help, series: <$labels as Labels>::sets },
        )*];

        impl Metrics {
            fn register(registry: Arc<Registry>) -> Metrics {
                let mut declared = DECLARED.iter();
                $(
                    let $field = $family::new(&registry, declared.next().expect("each field has its line"));
                )*
                Metrics { registry, $($field),* }
            }
        }
    };
}

metrics! {
    // Sessions and connections.
    sessions: Family<Gauge, TransportKind>, Gauge, "bimip_sessions",
        "Signed-in sessions.";
    opens: Family<Counter, (TransportKind, OpenResult)>, Counter, "bimip_session_opens_total",
        "Sign-ins and renewals, by result.";
    closes: Family<Counter, CloseReason>, Counter, "bimip_session_closes_total",
        "Sessions ended, by reason.";
    handshake: Family<Histogram, TransportKind>, Histogram, "bimip_handshake_seconds",
        "First packet to established connection.";
    handshakes_refused: Family<Counter, RefusedFor>, Counter, "bimip_handshakes_refused_total",
        "Connection attempts refused for load, or because their address had its part.";
    handshakes_evicted: Family<Counter, ()>, Counter, "bimip_handshakes_evicted_total",
        "Handshakes whose place was given to a newcomer.";
    handshakes_retried: Family<Counter, ()>, Counter, "bimip_handshakes_retried_total",
        "Newcomers told to prove their address.";
    handshakes_failed: Family<Counter, TransportKind>, Counter, "bimip_handshakes_failed_total",
        "Handshakes that failed or took too long.";
    zero_rtt: Family<Counter, ZeroRttResult>, Counter, "bimip_zero_rtt_total",
        "Connections whose early data was accepted, and tickets that were not known.";

    // The network.
    migrations: Family<Counter, MigrationKind>, Counter, "bimip_path_migrations_total",
        "Changes of a connection's address, by kind.";
    path_rtt: Family<Histogram, TransportKind>, Histogram, "bimip_path_rtt_seconds",
        "Round trip as the transport has it, sampled for each connection now and then.";
    packets_sent: Family<Counter, TransportKind>, Counter, "bimip_path_packets_sent_total",
        "Packets sent to devices (segments over TCP).";
    packets_lost: Family<Counter, TransportKind>, Counter, "bimip_path_packets_lost_total",
        "Packets to devices that were lost (segments sent again over TCP).";
    traces: Family<Counter, TraceResult>, Counter, "bimip_qlog_traces_total",
        "qlog traces of connections: begun, refused for want of room, cut at their bound.";
    ping_rtt: Family<Histogram, ()>, Histogram, "bimip_ping_rtt_seconds",
        "Application round trip, server to device.";

    // Messages.
    accepted: Family<Counter, ContentKind>, Counter, "bimip_messages_accepted_total",
        "Messages accepted durably.";
    delivery: Family<Histogram, DeliveryKind>, Histogram, "bimip_delivery_latency_seconds",
        "Message accepted to handed to the recipient's lane.";
    receipt: Family<Histogram, ()>, Histogram, "bimip_receipt_latency_seconds",
        "Message accepted to its DELIVERED received, for receipts that name one message.";
    releases_overdue: Family<Counter, ()>, Counter, "bimip_releases_overdue_total",
        "Messages released without their sender's answer to the VersionUpdate.";
    frames: Family<Counter, (Lane, Direction)>, Counter, "bimip_frames_total",
        "Frames by lane and direction.";
    errors: SparseFamily<Counter, (ErrorCode, PayloadName)>, Counter, "bimip_errors_total",
        "Errors answered, by code and payload.";
    rate_limited: Family<Counter, LimitKind>, Counter, "bimip_rate_limited_total",
        "What was refused for being too fast, or too many, by limit.";
    presence: Family<Counter, PresenceResult>, Counter, "bimip_presence_notifications_total",
        "Awareness notifications to devices, by what became of them.";

    // Store and log.
    commit: Family<Histogram, ()>, Histogram, "bimip_commit_seconds",
        "One durable commit of the store.";
    commit_operations: Family<Histogram, ()>, Histogram, "bimip_commit_batch_operations",
        "Operations in one commit.";
    commit_messages: Family<Histogram, ()>, Histogram, "bimip_commit_batch_messages",
        "Messages accepted in one commit that had any.";
    tail_reads: Family<Counter, ()>, Counter, "bimip_tail_reads_total",
        "Store reads by devices that had fallen behind.";
    tail_lag: Family<Reading, ()>, Gauge, "bimip_tail_lag_entries",
        "Log entries that connected devices have still to be sent.";
    tail_lag_max: Family<Reading, ()>, Gauge, "bimip_tail_lag_max_entries",
        "The same for the one that is furthest behind.";
    tail_behind: Family<Reading, ()>, Gauge, "bimip_tail_behind_sessions",
        "Connected devices that are further behind than the hub remembers.";
    trimmed_entries: Family<Counter, ()>, Counter, "bimip_retention_entries_total",
        "Log entries that the retention deleted.";
    trimmed_messages: Family<Counter, ()>, Counter, "bimip_retention_messages_total",
        "Messages that the retention deleted with their last entry.";
    retention_passes: Family<Counter, RetentionResult>, Counter, "bimip_retention_passes_total",
        "Passes of the retention over the store, by how they ended.";
    store_disk: Family<Reading, ()>, Gauge, "bimip_store_disk_bytes",
        "Length of the store's files, its journal included.";
    store_journal: Family<Reading, ()>, Gauge, "bimip_store_journal_bytes",
        "Length of the store's journal.";
    disk_free: Family<Reading, ()>, Gauge, "bimip_disk_free_bytes",
        "Space left for this process on the data directory's file system.";
    disk_size: Family<Reading, ()>, Gauge, "bimip_disk_size_bytes",
        "Size of the data directory's file system.";
    disk_refused: Family<Counter, ()>, Counter, "bimip_disk_refused_messages_total",
        "Messages refused because the store's disk has come to its reserve.";
    cache: Family<Reading, (CacheKind, CacheResult)>, Counter, "bimip_cache_requests_total",
        "What was looked for in memory, by whether it was there.";

    // Saturation.
    queue_depth: Family<Reading, QueueKind>, Gauge, "bimip_queue_depth",
        "What waits or is under way.";
    queue_depth_max: Family<Reading, QueueKind>, Gauge, "bimip_queue_depth_max",
        "The bound of the same.";
    runtime_workers: Family<Reading, ()>, Gauge, "bimip_runtime_workers",
        "Threads that run the server's tasks.";
    runtime_tasks: Family<Reading, ()>, Gauge, "bimip_runtime_tasks",
        "Tasks that are alive.";
    runtime_queue: Family<Reading, ()>, Gauge, "bimip_runtime_queue_tasks",
        "Tasks that wait in the runtime's shared queue.";
    runtime_busy: Family<Reading, ()>, Counter, "bimip_runtime_busy_seconds_total",
        "Time that the runtime's threads were busy, all together.";
    runtime_parks: Family<Reading, ()>, Counter, "bimip_runtime_parks_total",
        "Times that a thread of the runtime went to sleep for want of work.";

    // The server.
    ready: Family<Reading, ()>, Gauge, "bimip_ready",
        "1 if the store takes writes and the server is not draining.";
    build_info: Family<Gauge, ThisVersion>, Gauge, "bimip_build_info",
        "Version of the server; always 1.";
    certificate_expires: Family<Reading, ()>, Gauge, "bimip_certificate_expires_timestamp_seconds",
        "When the certificate in use, or another of its chain, runs out, Unix time.";
    reloads: Family<Counter, ReloadResult>, Counter, "bimip_reloads_total",
        "Times that certificate and token keys were taken up anew, or stayed for an error.";
    reload_pending: Family<Reading, ()>, Gauge, "bimip_reload_pending",
        "1 while certificate or token keys on disk could not be taken up, and the former ones stay in use.";
    log_dropped: Family<Reading, ()>, Counter, "bimip_log_lines_dropped_total",
        "Lines of the log that were dropped because nobody read standard error fast enough.";
    process_cpu: Family<Reading, ()>, Counter, "process_cpu_seconds_total",
        "User and system time of the process.";
    process_resident: Family<Reading, ()>, Gauge, "process_resident_memory_bytes",
        "Memory of the process that is not swapped out.";
    process_threads: Family<Reading, ()>, Gauge, "process_threads",
        "Threads of the process.";
    process_fds: Family<Reading, ()>, Gauge, "process_open_fds",
        "Open file descriptors.";
    process_fds_max: Family<Reading, ()>, Gauge, "process_max_fds",
        "File descriptors that the process may open.";
    process_start: Family<Reading, ()>, Gauge, "process_start_time_seconds",
        "When the process started, Unix time.";
}

impl Metrics {
    /// Registers everything at zero.
    pub fn new() -> Metrics {
        let buckets = [("_seconds", LATENCY_BUCKETS), ("_operations", BATCH_BUCKETS), ("_messages", BATCH_BUCKETS)];
        let builder = buckets.iter().try_fold(PrometheusBuilder::new(), |builder, (suffix, buckets)| {
            builder.set_buckets_for_metric(Matcher::Suffix((*suffix).into()), buckets)
        });
        let recorder = builder.expect("the bucket lists are not empty").build_recorder();
        let metrics = Metrics::register(Arc::new(Registry::new(recorder)));
        metrics.build_info[ThisVersion].set(1.0);
        // Each code needs a series before its first error: the first value of a new series is no increase to Prometheus.
        for code in ErrorCode::ALL {
            metrics.errors.at((*code, PayloadName("")));
        }
        // An alert uses these codes, and the first errors of a payload may come in thousands at once.
        for code in [ErrorCode::Unavailable, ErrorCode::Internal] {
            PAYLOAD_NAMES.iter().for_each(|payload| _ = metrics.errors.at((code, PayloadName(payload))));
        }
        metrics
    }

    /// Renders the page of `/metrics`.
    pub fn render(&self) -> String {
        let mut text = self.registry.recorder.handle().render();
        self.registry.render_readings(&mut text);
        text
    }

    /// Folds samples into their buckets. The exporter keeps each sample until then, and a scrape may never come.
    pub fn run_upkeep(&self) {
        self.registry.recorder.handle().run_upkeep();
    }

    /// An error was answered. `payload` is a field name of the schema, or empty.
    pub fn error(&self, code: ErrorCode, payload: &'static str) {
        self.errors.at((code, PayloadName(payload))).increment(1);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_counted_is_rendered_beside_what_is_read() {
        let metrics = Metrics::new();
        metrics.error(ErrorCode::TooFast, "text_payload_request");
        metrics.delivery[DeliveryKind::Live].record(Duration::from_millis(5));
        let text = metrics.render();
        assert!(text.contains("bimip_errors_total{code=\"too_fast\",payload=\"text_payload_request\"} 1\n"));
        assert!(text.contains("bimip_delivery_latency_seconds_bucket{kind=\"live\",le=\"0.006\"} 1\n"));
        assert!(text.contains("bimip_delivery_latency_seconds_bucket{kind=\"live\",le=\"0.004\"} 0\n"));
        assert!(text.contains("bimip_path_migrations_total{kind=\"failed\"} 0\n"));
        assert!(!text.contains("process_cpu_seconds_total"), "nobody has read it");

        metrics.process_cpu.set(1.5);
        metrics.queue_depth[QueueKind::StoreWrites].set(3.0);
        let text = metrics.render();
        assert!(text.contains("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 1.5\n"));
        assert!(text.contains("bimip_queue_depth{queue=\"store_writes\"} 3\n"));
    }

    #[test]
    fn what_an_alert_looks_at_is_there_before_the_first_error() {
        let text = Metrics::new().render();
        for (code, payload) in
            [("unavailable", "text_payload_request"), ("internal", "history_request"), ("too_fast", "")]
        {
            let series = format!("bimip_errors_total{{code=\"{code}\",payload=\"{payload}\"}} 0\n");
            assert!(text.contains(&series), "{series}");
        }
    }

    #[test]
    fn names_say_type_and_unit_as_prometheus_wants_them() {
        for metric in DECLARED {
            let counts = metric.name.ends_with("_total");
            assert_eq!(counts, metric.kind == MetricType::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains('\n'), "{}", metric.name);
            let named = DECLARED.iter().filter(|other| other.name == metric.name);
            assert_eq!(named.count(), 1, "{}", metric.name);
        }
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let series = |metric: &Declared| {
            let buckets = if metric.kind == MetricType::Histogram { LATENCY_BUCKETS.len() + 3 } else { 1 };
            (metric.series)().len() * buckets
        };
        let all: usize = DECLARED.iter().map(series).sum();
        assert!(all < 1_500, "{all}");
    }
}
