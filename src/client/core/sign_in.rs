//! Signing in: which `SessionOpen` an answer is about, and what it says of the token (profile 3).

use std::time::{Duration, Instant};

use super::{Core, Link};
use crate::client::error::{CloseReason, Refusal};
use crate::client::limits::{BACKOFF_MAX, RENEW_BEFORE, RENEW_RETRY, RENEW_SPREAD};
use crate::wire::proto::SessionOpen;
use crate::wire::{ErrorCode, Lane, MessageScheme, Payload, encode_frame, envelope};

/// What was asked of the server, and what it said.
#[derive(Debug, Default)]
pub(super) struct SignIn {
    /// Counts down: no other request has an id below zero.
    last_id: i64,
    /// The newest `SessionOpen` that is not answered, and its token.
    asked: Option<(i64, String)>,
    /// The session's token.
    accepted: Option<String>,
    /// One that the server looked at and refused.
    refused: Option<String>,
    /// The server did not look at it, and wants it again after this.
    put_off: Option<Duration>,
    /// How it said that.
    put_off_by: Option<Refusal>,
}

impl SignIn {
    /// Whether a reply with this id is the answer. One without any can be nothing else while nothing else may be answered.
    fn is_answer(&self, request_id: i64, opening: bool) -> bool {
        self.asked.as_ref().is_some_and(|(asked, _)| request_id == *asked || opening && request_id == 0)
    }
}

impl Core {
    /// Asks for a session, or for the open one to go on.
    pub(super) fn put_session_open(&mut self, open: SessionOpen) {
        self.sign_in.last_id -= 1;
        self.sign_in.asked = Some((self.sign_in.last_id, open.token.clone()));
        let open = envelope(Payload::SessionOpen(open));
        let open = MessageScheme { request_id: self.sign_in.last_id, ..open };
        self.lanes[Lane::Control.index()].answers.push_back(encode_frame(&open));
    }

    /// Another connection: nothing was said about its token.
    pub(super) fn sign_in_anew(&mut self, token: String) {
        self.sign_in = SignIn { last_id: self.sign_in.last_id, ..SignIn::default() };
        self.put_session_open(self.session_open(token));
    }

    /// Signs in anew on the open session (profile 3). A token that the server has, or is about to look at, is nothing new.
    pub(crate) fn renew(&mut self, token: String, now: Instant) {
        if !self.is_open() {
            return;
        }
        let asked = self.sign_in.asked.as_ref().map(|(_, token)| token);
        if [asked, self.sign_in.accepted.as_ref()].contains(&Some(&token)) {
            return self.renew_later(now);
        }
        self.put_session_open(self.session_open(token));
        // Until the answer says better.
        self.renew_at = Some(now + RENEW_RETRY);
    }

    /// The token source had nothing new; it is asked again later.
    pub(crate) fn renew_later(&mut self, now: Instant) {
        self.renew_at = self.renew_at.map(|_| now + RENEW_RETRY);
    }

    /// The session is that of the token that was asked for.
    pub(super) fn sign_in_accepted(&mut self, request_id: i64) {
        // Only the answer to an older renewal names another.
        if let Some((_, token)) = self.sign_in.asked.take_if(|(asked, _)| [*asked, 0].contains(&request_id)) {
            self.sign_in.accepted = Some(token);
        }
    }

    /// When to renew a token that lives for so long yet. Spread, as those of a fleet that signed in at once end at once.
    pub(super) fn renewal_at(&mut self, lives: Duration, now: Instant) -> Instant {
        let before = RENEW_BEFORE.min(lives / 10) + self.jitter.up_to(RENEW_SPREAD.min(lives / 10));
        now + (lives - before)
    }

    /// An error that says no to the `SessionOpen` which it names was about its token, or at least about nothing that
    /// another attempt with it would change.
    pub(super) fn sign_in_refused(&mut self, request_id: i64) {
        if let Some((_, token)) = self.sign_in.asked.take_if(|(asked, _)| *asked == request_id) {
            self.sign_in.refused = Some(token);
        }
    }

    /// The token that is not to be shown again, when the server has closed for want of a good one: the one that it refused,
    /// or else the session's, which ran out or was revoked. Not one that it had not looked at.
    pub(crate) fn take_refused_token(&mut self) -> Option<String> {
        let SignIn { refused, accepted, .. } = &mut self.sign_in;
        refused.take().or(accepted.take())
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
            self.sign_in.put_off_by = Some(refusal.clone());
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

    /// Why the link goes whose sign-in was put off.
    pub(super) fn put_off_reason(&mut self) -> Option<CloseReason> {
        self.sign_in.put_off_by.take().map(CloseReason::PutOff)
    }

    /// How long the server wants it put off, once.
    pub(crate) fn take_put_off(&mut self) -> Option<Duration> {
        self.sign_in.put_off.take()
    }
}
