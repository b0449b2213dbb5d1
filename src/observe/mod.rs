//! What the operator sees: metrics, declared in one place, and the set-up of the log.

mod log;
mod metrics;
mod process;

pub use log::{LogFormat, Logging, end_log, log_filter, log_lines_dropped, set_log, start_log, within};
pub use metrics::{
    Buckets, CacheKind, CacheResult, CloseReason, ContentKind, DECLARED, Declared, DeliveryKind, Direction, Family,
    Label, Labels, LimitKind, MetricType, Metrics, MigrationKind, OpenResult, PayloadName, PresenceResult, QueueKind,
    Reading, RefusedFor, ReloadResult, RetentionResult, Snapshot, SparseFamily, ThisVersion, TraceResult,
    TransportKind, ZeroRttResult,
};
