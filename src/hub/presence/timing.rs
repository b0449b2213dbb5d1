//! The waiting times of presence, which the operator may configure (protocol.md §12).

use std::time::Duration;

use crate::limits;

/// The waiting times of presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a lost connection still counts.
    pub offline_grace: Duration,
    /// Interval in which a device is notified of a contact's changes at most once.
    pub interval: Duration,
    /// How long a location is kept at most.
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
