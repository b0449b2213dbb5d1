//! Signing in: which `SessionOpen` an answer belongs to, and what the answer says about the token (protocol.md §5).

use std::time::{Duration, Instant};

use super::{Core, Link};
use crate::client::error::{CloseReason, Refusal};
use crate::client::limits::{BACKOFF_MAX, RENEW_BEFORE, RENEW_RETRY, RENEW_SPREAD};
use crate::wire::proto::SessionOpen;
use crate::wire::{ErrorCode, Lane, MessageScheme, Payload, encode_frame, envelope};

/// The `SessionOpen` that was sent, and the server's answer.
#[derive(Debug, Default)]
pub(super) struct SignIn {
    /// Counts down from zero, so that no other request has the same id.
    last_id: i64,
    /// The newest unanswered `SessionOpen`: its id and token.
    asked: Option<(i64, String)>,
    /// The session's token.
    accepted: Option<String>,
    /// A token that the server checked and refused.
    refused: Option<String>,
    /// When the token was last renewed.
    renewed: Option<Instant>,
    /// The server did not check the token, and wants `SessionOpen` again later.
    put_off: Option<Refusal>,
    /// The server does not admit this device, whatever its token.
    denied: Option<Refusal>,
}

impl SignIn {
    /// Whether a reply with this id is the answer. Before the session is open, a reply without an id can be nothing
    /// else.
    fn is_answer(&self, request_id: i64, opening: bool) -> bool {
        self.asked.as_ref().is_some_and(|(asked, _)| request_id == *asked || opening && request_id == 0)
    }
}

impl Core {
    /// Queues a `SessionOpen`: for a new session, or to renew the token of the open one.
    pub(super) fn put_session_open(&mut self, open: SessionOpen) {
        self.sign_in.last_id -= 1;
        self.sign_in.asked = Some((self.sign_in.last_id, open.token.clone()));
        let open = envelope(Payload::SessionOpen(open));
        let open = MessageScheme { request_id: self.sign_in.last_id, ..open };
        self.lanes[Lane::Control.index()].push(encode_frame(&open));
    }

    /// Signs in on a new connection. Nothing is known about its token yet.
    pub(super) fn sign_in_anew(&mut self, token: String) {
        self.sign_in = SignIn { last_id: self.sign_in.last_id, ..SignIn::default() };
        self.put_session_open(self.session_open(token));
    }

    /// Renews the token on the open session (protocol.md §5). A token that the session has, or that is already on its
    /// way, is not a new one.
    pub(crate) fn renew(&mut self, token: String, now: Instant) {
        if !self.is_open() {
            return;
        }
        let asked = self.sign_in.asked.as_ref().map(|(_, token)| token);
        if [asked, self.sign_in.accepted.as_ref()].contains(&Some(&token)) {
            return self.renew_later(now);
        }
        self.put_session_open(self.session_open(token));
        self.sign_in.renewed = Some(now);
        // Replaced when the answer arrives.
        self.renew_at = Some(now + RENEW_RETRY);
    }

    /// The token source had no new token; it is asked again later.
    pub(crate) fn renew_later(&mut self, now: Instant) {
        self.renew_at = self.renew_at.map(|_| now + RENEW_RETRY);
    }

    /// The token of the answered `SessionOpen` is now the session's.
    pub(super) fn sign_in_accepted(&mut self, request_id: i64) {
        // The id differs only if this answers an older renewal.
        if let Some((_, token)) = self.sign_in.asked.take_if(|(asked, _)| [*asked, 0].contains(&request_id)) {
            self.sign_in.accepted = Some(token);
        }
    }

    /// When to renew a token with this remaining life. The time is random, because devices that signed in at the same
    /// time have tokens that expire at the same time. A server to which each new token is as good as expired is not asked
    /// without a pause.
    pub(super) fn renewal_at(&mut self, lives: Duration, now: Instant) -> Instant {
        let before = RENEW_BEFORE.min(lives / 10) + self.jitter.up_to(RENEW_SPREAD.min(lives / 10));
        let at = now + (lives - before);
        self.sign_in.renewed.map_or(at, |renewed| at.max(renewed + RENEW_RETRY))
    }

    /// An error that names the `SessionOpen` has refused its token, or has another cause that repeating the same token
    /// would not change.
    pub(super) fn sign_in_refused(&mut self, request_id: i64) {
        if let Some((_, token)) = self.sign_in.asked.take_if(|(asked, _)| *asked == request_id) {
            self.sign_in.refused = Some(token);
        }
    }

    /// The token not to use again after the server closed for lack of a valid one: the one that it refused, or else the
    /// session's, which expired or was revoked. Never one that it had not checked.
    pub(crate) fn take_refused_token(&mut self) -> Option<String> {
        let SignIn { refused, accepted, .. } = &mut self.sign_in;
        refused.take().or(accepted.take())
    }

    /// Handles an error that puts a sign-in off (429, 503) and says nothing about the token. Without a session the
    /// connection has to be closed, as the server accepts nothing else on it; a renewal is repeated later on the open
    /// session. Returns whether the error was about a sign-in.
    pub(super) fn sign_in_put_off(&mut self, request_id: i64, refusal: &Refusal, now: Instant) -> bool {
        let opening = matches!(self.link, Link::Opening { .. });
        let later = matches!(refusal.kind(), Some(ErrorCode::TooFast | ErrorCode::Unavailable));
        if !later || !self.sign_in.is_answer(request_id, opening) {
            return false;
        }
        self.sign_in.asked = None;
        if opening {
            self.sign_in.put_off = Some(refusal.clone());
        } else {
            let wait = refusal.wait().unwrap_or(RENEW_RETRY).min(RENEW_RETRY);
            self.renew_at = Some(now + wait + self.jitter.up_to(RENEW_RETRY));
        }
        true
    }

    /// Handles an error that denies this device a session and says nothing about the token (403: the user has too many
    /// devices). Returns whether it was one.
    pub(super) fn sign_in_denied(&mut self, request_id: i64, refusal: &Refusal) -> bool {
        let opening = matches!(self.link, Link::Opening { .. });
        let denied =
            opening && refusal.kind() == Some(ErrorCode::Forbidden) && self.sign_in.is_answer(request_id, opening);
        if denied {
            self.sign_in.asked = None;
            self.sign_in.denied = Some(refusal.clone());
        }
        denied
    }

    /// Whether the server put the sign-in off or denied it; on another connection it would do the same.
    pub(crate) fn has_no_session(&self) -> bool {
        self.no_session().is_some()
    }

    /// Why the link must be closed: its sign-in was put off or denied.
    pub(super) fn no_session(&self) -> Option<CloseReason> {
        let SignIn { put_off, denied, .. } = &self.sign_in;
        put_off.clone().map(CloseReason::PutOff).or_else(|| denied.clone().map(CloseReason::Denied))
    }

    /// How long the server put the sign-in off; returned once.
    pub(crate) fn take_put_off(&mut self) -> Option<Duration> {
        let refusal = self.sign_in.put_off.take()?;
        Some(refusal.wait().unwrap_or_default().min(BACKOFF_MAX))
    }
}
