//! Every metric of the server: name, help, unit, labels and their values, declared here and nowhere else.
//!
//! Handles are registered once when the server starts, so that the path of a message pays for an atomic addition and no
//! look-up. Each server has a recorder of its own: two servers in one process do not mix. No label carries an eid, an
//! address or a message id, so cardinality is bounded by the tables below.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::wire::{CloseCode, ErrorCode, Lane};

/// Buckets of every latency, in seconds: 100 µs for loopback and the store, up to a minute for phones.
const LATENCY_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0,
    1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0,
];
/// Buckets of counts in one commit.
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Declares an enum whose variants are the values of a label.
macro_rules! label_values {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum $name { $($variant),* }

        impl $name {
            const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The label's value.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }
    )*};
}

label_values! {
    /// `transport`.
    TransportKind { Quic = "quic", Tcp = "tcp" }
    /// `direction`, seen from the server.
    Direction { In = "in", Out = "out" }
    /// `kind` of a delivery: from the hub's memory, or read back from the store.
    DeliveryKind { Live = "live", Backlog = "backlog" }
    /// `limit` that somebody went over.
    LimitKind {
        Frames = "frames", Messages = "messages", Awareness = "awareness", SignIns = "sign_ins",
        Connections = "connections",
    }
    /// `result` of tracing a connection.
    TraceResult { Begun = "begun", Refused = "refused", Cut = "cut" }
    /// `result` of taking up changed certificates and token keys.
    ReloadResult { Done = "done", Refused = "refused" }
    /// `result` of signing in.
    OpenResult {
        Accepted = "accepted", Renewed = "renewed", BadRequest = "bad_request", BadToken = "bad_token",
        Revoked = "revoked", WrongDevice = "wrong_device", TooManyDevices = "too_many_devices", Late = "late",
        Unavailable = "unavailable",
    }
    /// `reason` of a session's end: a close code of ours, or what the peer or the path did.
    CloseReason {
        Goodbye = "goodbye", ProtocolViolation = "protocol_violation", Unauthenticated = "unauthenticated",
        Revoked = "revoked", Replaced = "replaced", Abuse = "abuse", Draining = "draining", Internal = "internal",
        ClosedByPeer = "closed_by_peer", TimedOut = "timed_out", Reset = "reset",
    }
}

impl From<CloseCode> for CloseReason {
    fn from(code: CloseCode) -> CloseReason {
        match code {
            CloseCode::Goodbye => CloseReason::Goodbye,
            CloseCode::ProtocolViolation => CloseReason::ProtocolViolation,
            CloseCode::Unauthenticated => CloseReason::Unauthenticated,
            CloseCode::Revoked => CloseReason::Revoked,
            CloseCode::Replaced => CloseReason::Replaced,
            CloseCode::Abuse => CloseReason::Abuse,
            CloseCode::Draining => CloseReason::Draining,
            CloseCode::Internal => CloseReason::Internal,
        }
    }
}

/// The server's metrics. Methods that count are cheap and never block.
pub struct Metrics {
    recorder: PrometheusRecorder,
    sessions: Vec<Gauge>,
    opens: Vec<Vec<Counter>>,
    closes: Vec<Counter>,
    handshake: Vec<Histogram>,
    frames: Vec<Vec<Counter>>,
    delivery: Vec<Histogram>,
    rate_limited: Vec<Counter>,
    traces: Vec<Counter>,
    reloads: Vec<Counter>,
    /// Application round trips that the server measured.
    pub ping_rtt: Histogram,
    /// One durable commit of the store.
    pub commit: Histogram,
    /// Operations in one commit.
    pub commit_batch: Histogram,
    /// Devices whose tail reads the store because they fell behind what the hub remembers.
    pub tail_reads: Counter,
    /// Connection attempts turned away before a session was tried.
    pub handshakes_refused: Counter,
    /// Newcomers told to prove their address first.
    pub handshakes_retried: Counter,
    /// Messages released because their sender did not answer the VersionUpdate in time or left.
    pub releases_overdue: Counter,
    /// Awareness notifications sent.
    pub presence_told: Counter,
    /// Log entries that the retention deleted.
    pub trimmed_entries: Counter,
    /// Messages that the retention deleted with their last entry.
    pub trimmed_messages: Counter,
}

impl Metrics {
    /// Registers everything at zero.
    pub fn new() -> Metrics {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), LATENCY_BUCKETS)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_operations".into()), BATCH_BUCKETS))
            .expect("the bucket lists are not empty")
            .build_recorder();
        let r = &recorder;
        let info = counter(
            r,
            "bimip_build_info",
            "Version of the server; always 1.",
            &[("version", env!("CARGO_PKG_VERSION"))],
        );
        info.absolute(1);
        let per_transport = |name, help| -> Vec<Histogram> {
            TransportKind::ALL
                .iter()
                .map(|t| histogram(r, name, help, Unit::Seconds, &[("transport", t.name())]))
                .collect()
        };
        Metrics {
            sessions: TransportKind::ALL
                .iter()
                .map(|t| gauge(r, "bimip_sessions", "Signed-in sessions.", &[("transport", t.name())]))
                .collect(),
            opens: TransportKind::ALL
                .iter()
                .map(|t| {
                    let open = |result: &OpenResult| {
                        let labels = [("transport", t.name()), ("result", result.name())];
                        counter(r, "bimip_session_opens_total", "Sign-ins by result.", &labels)
                    };
                    OpenResult::ALL.iter().map(open).collect()
                })
                .collect(),
            closes: CloseReason::ALL
                .iter()
                .map(|c| {
                    counter(r, "bimip_session_closes_total", "Sessions ended, by reason.", &[("reason", c.name())])
                })
                .collect(),
            handshake: per_transport("bimip_handshake_seconds", "First packet to established connection."),
            frames: Lane::ALL
                .iter()
                .map(|lane| {
                    let frames = |direction: &Direction| {
                        let labels = [("lane", lane.name()), ("direction", direction.name())];
                        counter(r, "bimip_frames_total", "Frames by lane and direction.", &labels)
                    };
                    Direction::ALL.iter().map(frames).collect()
                })
                .collect(),
            delivery: DeliveryKind::ALL
                .iter()
                .map(|kind| {
                    let help = "Message accepted to handed to the recipient's lane.";
                    histogram(r, "bimip_delivery_latency_seconds", help, Unit::Seconds, &[("kind", kind.name())])
                })
                .collect(),
            rate_limited: LimitKind::ALL
                .iter()
                .map(|limit| {
                    let help = "What was refused for being too fast, or too many, by limit.";
                    counter(r, "bimip_rate_limited_total", help, &[("limit", limit.name())])
                })
                .collect(),
            traces: TraceResult::ALL
                .iter()
                .map(|result| {
                    let help = "qlog traces of connections: begun, refused for want of room, cut at their bound.";
                    counter(r, "bimip_qlog_traces_total", help, &[("result", result.name())])
                })
                .collect(),
            reloads: ReloadResult::ALL
                .iter()
                .map(|result| {
                    let help = "Times that certificate and token keys were taken up anew, or stayed for an error.";
                    counter(r, "bimip_reloads_total", help, &[("result", result.name())])
                })
                .collect(),
            ping_rtt: histogram(
                r,
                "bimip_ping_rtt_seconds",
                "Application round trip, server to device.",
                Unit::Seconds,
                &[],
            ),
            commit: histogram(r, "bimip_commit_seconds", "One durable commit of the store.", Unit::Seconds, &[]),
            commit_batch: histogram(r, "bimip_commit_batch_operations", "Operations in one commit.", Unit::Count, &[]),
            tail_reads: counter(r, "bimip_tail_reads_total", "Store reads by devices that had fallen behind.", &[]),
            handshakes_refused: counter(
                r,
                "bimip_handshakes_refused_total",
                "Connection attempts refused for load.",
                &[],
            ),
            handshakes_retried: counter(
                r,
                "bimip_handshakes_retried_total",
                "Newcomers told to prove their address.",
                &[],
            ),
            releases_overdue: counter(
                r,
                "bimip_releases_overdue_total",
                "Messages released without their sender's answer to the VersionUpdate.",
                &[],
            ),
            presence_told: counter(r, "bimip_presence_notifications_total", "Awareness notifications sent.", &[]),
            trimmed_entries: counter(
                r,
                "bimip_retention_entries_total",
                "Log entries that the retention deleted.",
                &[],
            ),
            trimmed_messages: counter(
                r,
                "bimip_retention_messages_total",
                "Messages that the retention deleted with their last entry.",
                &[],
            ),
            recorder,
        }
    }

    /// What renders `/metrics`.
    pub fn prometheus(&self) -> PrometheusHandle {
        self.recorder.handle()
    }

    /// A session was accepted or renewed, or was refused.
    pub fn opened(&self, transport: TransportKind, result: OpenResult) {
        self.opens[transport as usize][result as usize].increment(1);
    }

    /// Signed-in sessions of a transport.
    pub fn sessions(&self, transport: TransportKind) -> &Gauge {
        &self.sessions[transport as usize]
    }

    /// A session that had been accepted ended.
    pub fn closed(&self, reason: CloseReason) {
        self.closes[reason as usize].increment(1);
    }

    /// A transport handshake took this long.
    pub fn handshake(&self, transport: TransportKind, took: Duration) {
        self.handshake[transport as usize].record(took);
    }

    /// Frames crossed a lane.
    pub fn frames(&self, lane: Lane, direction: Direction, count: u64) {
        self.frames[lane.index()][direction as usize].increment(count);
    }

    /// An entry was handed to a recipient's lane this long after it was accepted.
    pub fn delivered(&self, kind: DeliveryKind, latency: Duration) {
        self.delivery[kind as usize].record(latency);
    }

    /// Somebody went over a limit.
    pub fn rate_limited(&self, limit: LimitKind) {
        self.rate_limited[limit as usize].increment(1);
    }

    /// What became of a connection's trace.
    pub fn traced(&self, result: TraceResult) {
        self.traces[result as usize].increment(1);
    }

    /// Certificate and token keys were taken up anew, or were not.
    pub fn reloaded(&self, result: ReloadResult) {
        self.reloads[result as usize].increment(1);
    }

    /// An error was answered. `payload` is a field name of the schema, or empty.
    pub fn error(&self, code: ErrorCode, payload: &'static str) {
        let labels = [("code", code_text(code)), ("payload", payload)];
        counter(&self.recorder, "bimip_errors_total", "Errors answered, by code and payload.", &labels).increment(1);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

fn code_text(code: ErrorCode) -> &'static str {
    code.name()
}

const METADATA: Metadata<'static> = Metadata::new("bimip", Level::INFO, None);

fn key(name: &'static str, labels: &[(&'static str, &'static str)]) -> Key {
    Key::from_parts(name, labels.iter().map(|(k, v)| Label::from_static_parts(k, v)).collect::<Vec<_>>())
}

fn counter(
    r: &PrometheusRecorder,
    name: &'static str,
    help: &'static str,
    labels: &[(&'static str, &'static str)],
) -> Counter {
    r.describe_counter(KeyName::from_const_str(name), None, help.into());
    r.register_counter(&key(name, labels), &METADATA)
}

fn gauge(
    r: &PrometheusRecorder,
    name: &'static str,
    help: &'static str,
    labels: &[(&'static str, &'static str)],
) -> Gauge {
    r.describe_gauge(KeyName::from_const_str(name), None, help.into());
    r.register_gauge(&key(name, labels), &METADATA)
}

fn histogram(
    r: &PrometheusRecorder,
    name: &'static str,
    help: &'static str,
    unit: Unit,
    labels: &[(&'static str, &'static str)],
) -> Histogram {
    r.describe_histogram(KeyName::from_const_str(name), Some(unit), help.into());
    r.register_histogram(&key(name, labels), &METADATA)
}
