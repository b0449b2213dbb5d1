//! The time as an argument: rules receive it from their caller, so that a simulation can control it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// One moment on the monotonic clock and on the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For durations and deadlines.
    pub at: Instant,
    /// Unix milliseconds, for the wire.
    pub unix_ms: i64,
}

impl Now {
    /// Reads the system's clocks.
    pub fn system() -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { at: Instant::now(), unix_ms: i64::try_from(unix.as_millis()).unwrap_or(i64::MAX) }
    }
}

/// A function that returns the current time.
pub type Clock = Box<dyn Fn() -> Now + Send + Sync>;
