//! Signing in: which `SessionOpen` an answer is about, and for how long the server wants the next one put off (profile 3).

use std::time::{Duration, Instant};

use super::{Core, Link};
use crate::client::error::Refusal;
use crate::client::limits::{BACKOFF_MAX, RENEW_RETRY};
use crate::wire::proto::SessionOpen;
use crate::wire::{ErrorCode, Lane, MessageScheme, Payload, encode_frame, envelope};

/// What was asked of the server, and what it said.
#[derive(Debug, Default)]
pub(super) struct SignIn {
    /// Counts down: no other request has an id below zero.
    last_id: i64,
    /// The newest `SessionOpen` that is not answered.
    asked: Option<i64>,
    /// The server did not look at it, and wants it again after this.
    put_off: Option<Duration>,
}

impl SignIn {
    /// Whether a reply with this id is the answer. One without any can be nothing else while nothing else may be answered.
    fn is_answer(&self, request_id: i64, opening: bool) -> bool {
        self.asked.is_some_and(|asked| request_id == asked || opening && request_id == 0)
    }
}

impl Core {
    /// Asks for a session, or for the open one to go on.
    pub(super) fn put_session_open(&mut self, open: SessionOpen) {
        self.sign_in.last_id -= 1;
        self.sign_in.put_off = None;
        self.sign_in.asked = Some(self.sign_in.last_id);
        let open = envelope(Payload::SessionOpen(open));
        let open = MessageScheme { request_id: self.sign_in.last_id, ..open };
        self.lanes[Lane::Control.index()].answers.push_back(encode_frame(&open));
    }

    /// A sign-in that was not looked at (429, 503) says nothing of the token. In place of a session the link goes, as the
    /// server takes nothing else on it; a renewal is made again on the session that goes on. Whether it was one.
    pub(super) fn sign_in_put_off(&mut self, request_id: i64, refusal: &Refusal, now: Instant) -> bool {
        let opening = matches!(self.link, Link::Opening { .. });
        let later = matches!(refusal.kind(), Some(ErrorCode::TooFast | ErrorCode::Unavailable));
        if !later || !self.sign_in.is_answer(request_id, opening) {
            return false;
        }
        self.sign_in.asked = None;
        if opening {
            self.sign_in.put_off = Some(refusal.wait().unwrap_or_default().min(BACKOFF_MAX));
        } else {
            let wait = refusal.wait().unwrap_or(RENEW_RETRY).min(RENEW_RETRY);
            self.renew_at = Some(now + wait + self.jitter.up_to(RENEW_RETRY));
        }
        true
    }

    /// Whether another connection would be put off as well.
    pub(crate) fn is_put_off(&self) -> bool {
        self.sign_in.put_off.is_some()
    }

    /// How long the server wants it put off, once.
    pub(crate) fn take_put_off(&mut self) -> Option<Duration> {
        self.sign_in.put_off.take()
    }
}
