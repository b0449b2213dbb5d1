//! What the operator sees: metrics, declared in one place, and the set-up of the log.

mod log;
mod metrics;

pub use log::{LogFormat, start_log};
pub use metrics::{CloseReason, DeliveryKind, Direction, LimitKind, Metrics, OpenResult, TraceResult, TransportKind};
