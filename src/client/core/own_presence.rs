//! The presence that this device last set for its user. It is sent again on every connection (BIMip-Foundation 5.2;
//! protocol.md §12).

use std::time::Instant;

use bytes::Bytes;

use crate::client::limits::LOCATION_KEPT;
use crate::wire::proto::AwarenessNotification;
use crate::wire::{Payload, encode_frame, envelope};

/// Holds one state: only the newest is worth sending.
#[derive(Debug, Default)]
pub(super) struct OwnPresence {
    told: Option<(AwarenessNotification, Instant)>,
    due: bool,
}

impl OwnPresence {
    pub(super) fn set(&mut self, state: AwarenessNotification, now: Instant) {
        self.told = Some((state, now));
        self.due = true;
    }

    /// There is a new connection: the server may have forgotten the state, or never have received it.
    pub(super) fn again(&mut self) {
        self.due = self.told.is_some();
    }

    pub(super) fn is_due(&self) -> bool {
        self.due
    }

    /// The frame that is due. A location that the server would have forgotten is left out.
    pub(super) fn take(&mut self, now: Instant) -> Option<Bytes> {
        if !std::mem::take(&mut self.due) {
            return None;
        }
        let (state, at) = self.told.as_mut()?;
        if now.saturating_duration_since(*at) >= LOCATION_KEPT {
            (state.latitude, state.longitude) = (None, None);
        }
        Some(encode_frame(&envelope(Payload::AwarenessNotification(state.clone()))))
    }
}
