//! How long presence waits for what; the operator's choice (profile 5).

use std::time::Duration;

use crate::limits;

/// The times that presence keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A lost connection still counts for so long.
    pub offline_grace: Duration,
    /// A contact's changes reach a device at most once in it.
    pub interval: Duration,
    /// A location is held no longer.
    pub location_kept: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            offline_grace: limits::OFFLINE_GRACE,
            interval: limits::PRESENCE_INTERVAL,
            location_kept: limits::LOCATION_KEPT,
        }
    }
}
