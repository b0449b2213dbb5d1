//! What the operator sees: metrics, declared in one place, and the set-up of the log.

mod log;
mod metrics;

pub use log::{LogFormat, log_filter, set_log, start_log};
pub use metrics::{
    CloseReason, DeliveryKind, Direction, LimitKind, Metrics, OpenResult, ReloadResult, TraceResult, TransportKind,
};
