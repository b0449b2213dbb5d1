//! The presence that this device last set for its user (BIMip-Foundation 5.2; protocol.md §12).
//!
//! It is sent on every connection until the server is known to have it: a question about the user follows on the same
//! lane, and its answer shows that. Then the server keeps it, and another device of the user may set something newer, of
//! which this one does not hear while it is away. So from then on it is sent again only as far as it hides the user, or
//! is about this device alone.

use std::time::Duration;

use bytes::Bytes;

use super::Now;
use crate::client::limits::LOCATION_KEPT;
use crate::wire::proto::{AwarenessNotification, AwarenessRequest};
use crate::wire::{AwarenessIntention, AwarenessStatus, Identity, MessageScheme, Payload, encode_frame, envelope};

/// Holds one state: only the newest is worth sending.
#[derive(Debug, Default)]
pub(super) struct OwnPresence {
    told: Option<Told>,
    due: Due,
    /// Number of states that were sent with a question.
    asked: i64,
    /// The `request_id` of the newest state and its question, until the answer.
    waits_for: Option<i64>,
}

#[derive(Debug)]
struct Told {
    state: AwarenessNotification,
    at: Now,
    /// Whether the server is known to have it.
    taken: bool,
}

/// What has to be sent next.
#[derive(Debug, Default, PartialEq, Eq)]
enum Due {
    #[default]
    Nothing,
    State,
    Question,
}

impl Told {
    fn is_invisible(&self) -> bool {
        self.state.status == AwarenessStatus::Invisible.code()
    }

    /// What is left to say without a status that is the user's choice or ends it. IDLE does neither, and the user is
    /// hidden as well with it.
    fn without_choice(mut self) -> Option<Told> {
        self.state.status = AwarenessStatus::Idle.code();
        (self.state.awareness_intention == AwarenessIntention::DoNotBroadcast.code()).then_some(self)
    }

    /// What to send again on another connection. Without a location that the server has had: it would be shown for longer
    /// than its time.
    fn again(mut self) -> Option<Told> {
        if self.taken {
            (self.state.latitude, self.state.longitude) = (None, None);
        }
        let of_device = [AwarenessStatus::Idle, AwarenessStatus::Offline].map(AwarenessStatus::code);
        if !self.taken || self.is_invisible() || of_device.contains(&self.state.status) {
            return Some(self);
        }
        self.without_choice()
    }
}

impl OwnPresence {
    pub(super) fn set(&mut self, state: AwarenessNotification, now: Now) {
        self.told = Some(Told { state, at: now, taken: false });
        (self.due, self.waits_for) = (Due::State, None);
    }

    /// There is a new connection: the server may have forgotten the state, or never have received it.
    pub(super) fn again(&mut self) {
        self.told = self.told.take().and_then(Told::again);
        self.due = if self.told.is_some() { Due::State } else { Due::Nothing };
        self.waits_for = None;
    }

    pub(super) fn is_due(&self) -> bool {
        self.due != Due::Nothing
    }

    /// Whether something is to be sent, or the server is not known to have what was sent.
    pub(super) fn is_unsettled(&self) -> bool {
        self.is_due() || self.waits_for.is_some()
    }

    /// The frame that is due. A location that the server would have forgotten is left out.
    pub(super) fn take(&mut self, now: Now) -> Option<Bytes> {
        let due = std::mem::take(&mut self.due);
        let Told { state, at, taken } = self.told.as_mut()?;
        let payload = match due {
            Due::Nothing => return None,
            Due::State => {
                if is_old(*at, now) {
                    (state.latitude, state.longitude) = (None, None);
                }
                if !*taken {
                    // Far below the ids of `SignIn`, which are negative as well.
                    self.waits_for = Some(i64::MIN + self.asked);
                    self.asked += 1;
                    self.due = Due::Question;
                }
                Payload::AwarenessNotification(state.clone())
            }
            Due::Question => {
                let to = state.from.as_ref().map(|own| Identity { eid: own.eid.clone(), ..Identity::default() });
                Payload::AwarenessRequest(AwarenessRequest { from: state.from.clone(), to, ..Default::default() })
            }
        };
        let request_id = self.waits_for.unwrap_or(0);
        Some(encode_frame(&MessageScheme { request_id, ..envelope(payload) }))
    }

    /// Handles an answer about a user. Returns whether it is that to the question: the server has the state.
    pub(super) fn answered(&mut self, request_id: i64, status: i32) -> bool {
        if self.waits_for.take_if(|id| *id == request_id).is_none() {
            return false;
        }
        if let Some(told) = &mut self.told {
            told.taken = true;
        }
        self.heard(status);
        true
    }

    /// The server refused the state or the question.
    pub(super) fn refused(&mut self, request_id: i64) {
        self.waits_for.take_if(|id| *id == request_id);
    }

    /// The server says how the user is. If INVISIBLE is over, another device has ended it.
    pub(super) fn heard(&mut self, status: i32) {
        let ended = |told: &mut Told| told.taken && told.is_invisible() && status != told.state.status;
        if let Some(told) = self.told.take_if(ended) {
            self.told = told.without_choice();
            self.due = Due::Nothing;
        }
    }
}

/// Whether a location is too old to be sent. The monotonic clock stands still while the phone sleeps, and the wall clock may
/// be set: if that went back, nobody knows how long ago it was.
fn is_old(at: Now, now: Now) -> bool {
    let by_wall = u64::try_from(now.unix_ms.saturating_sub(at.unix_ms)).map_or(Duration::MAX, Duration::from_millis);
    now.instant.saturating_duration_since(at.instant).max(by_wall) >= LOCATION_KEPT
}
