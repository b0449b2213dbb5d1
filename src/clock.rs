//! The time, as an argument: rules get it handed in, so that a simulation can drive them.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For durations and deadlines.
    pub at: Instant,
    /// Unix milliseconds, for the wire.
    pub unix_ms: i64,
}

impl Now {
    /// The system's clocks.
    pub fn system() -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { at: Instant::now(), unix_ms: i64::try_from(unix.as_millis()).unwrap_or(i64::MAX) }
    }
}

/// Where the time comes from.
pub type Clock = Box<dyn Fn() -> Now + Send + Sync>;
