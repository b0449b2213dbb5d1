//! The effect of each payload from the server, family by family.

use std::time::{Duration, Instant};

use super::{Core, Link, Now, Taken};
use crate::client::cursor::Log;
use crate::client::error::{Refusal, RequestError, SendError};
use crate::client::event::{Accepted, Acknowledged, Event, Message, Refused, Session};
use crate::client::limits::{BACKOFF_MAX, BACKOFF_MIN, OUTBOX_MESSAGES_MAX, REQUEST_WITHIN};
use crate::client::receipts::{Delivery, Receipts};
use crate::client::requests::{Answer, PendingSend, Sent, answer};
use crate::wire::proto::{AcknowledgmentResponse, ChatMessage, PingPong, SessionAccept, VersionUpdate};
use crate::wire::{
    Author, ErrorCode, Exchange, Lane, LogoutStatus, Payload, PingStatus, Sequence, Version, VersionStatus,
};

impl Core {
    /// protocol.md §5.
    pub(super) fn session_accept(&mut self, accept: SessionAccept, request_id: i64, now: Instant) {
        let left = accept.token_expires_at.saturating_sub(accept.server_time);
        let lives = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        self.renew_at = (accept.token_expires_at > 0).then(|| self.renewal_at(lives, now));
        self.sign_in_accepted(request_id);
        // On an open session this confirms a renewed token and says nothing new about the log.
        let Link::Opening { passage, dialed, .. } = self.link else { return };
        let (start, head) = (Sequence::from_wire(accept.resume_from), Sequence::from_wire(accept.log_head));
        let asked = self.cursor.resume_from();
        let log = self.cursor.accepted(start, head);
        if log != Log::Same {
            if asked.is_some() {
                tracing::warn!(%head, "the log ends before what this device has seen: starting over");
            }
            // Also what was asked for since the log turned out to be another one: it is about messages of before.
            self.receipts = Receipts::default();
            self.requests.forget_versions();
        }
        if log == Log::Skipped {
            self.link = Link::Useless;
            return;
        }
        self.link = Link::Open;
        let gap = log == Log::Another || asked.is_some_and(|asked| start > asked);
        let session = Session::parse(accept, gap, passage, now - dialed);
        self.say_again();
        self.accepted = Some(session.clone());
        self.announce(Event::Connected(session));
    }

    /// Answered at once (protocol.md §6).
    pub(super) fn pong(&mut self, ping: PingPong, now: Now) {
        self.answer_frame(
            Lane::Control,
            Payload::PingpongMessage(PingPong {
                to: ping.to,
                r#type: Exchange::Response.code(),
                status: PingStatus::Ok.code(),
                request_time: ping.request_time,
                response_time: now.unix_ms,
                rtt: now.unix_ms.saturating_sub(ping.request_time).max(0),
            }),
        );
    }

    /// BIMip-Foundation 5.10: answered each time it comes, reported to the application once.
    pub(super) fn version_update(&mut self, update: VersionUpdate, sequence: Sequence, request_id: i64, now: Now) {
        if update.r#type == Exchange::Response.code() {
            return;
        }
        self.answer_frame(
            Lane::Chat,
            Payload::VersionUpdate(VersionUpdate {
                to: Some(self.identity()),
                r#type: Exchange::Response.code(),
                status: VersionStatus::Updated.code(),
                timestamp: now.unix_ms,
                ..update.clone()
            }),
        );
        let new = if request_id == 0 { self.cursor.tailed(sequence) } else { self.cursor.replied(sequence) };
        let Some(accepted) = Accepted::parse(&update, sequence) else {
            tracing::debug!("a malformed VersionUpdate was ignored");
            return;
        };
        let pending = self.requests.send_named(&update.message_id_local).and_then(|id| self.take_send(id));
        let waited_for = match pending {
            Some(mut send) => {
                let sent = Sent {
                    local_id: send.local_id.clone(),
                    message_id: accepted.message_id,
                    chat_id: accepted.chat_id,
                    version: accepted.version,
                    sequence,
                    timestamp: accepted.timestamp,
                    latency: now.instant - send.since,
                };
                self.done.push(send.local_id.clone());
                answer(send.reply.take(), Ok(sent))
            }
            None => !new,
        };
        match (waited_for, new) {
            (true, _) => {}
            // An entry of the log like others: a later process gets it again unless this one has taken it.
            (false, true) => {
                let taken = Taken { sequence: self.cursor.tail_at(sequence), deliver: None };
                self.emit_entry(Event::Accepted(accepted), taken);
            }
            (false, false) => self.emit(Event::Accepted(accepted)),
        }
    }

    /// 5.9.2: each entry of the log is reported once.
    pub(super) fn chat_message(&mut self, message: ChatMessage, sequence: Sequence, now: Instant) {
        if !self.cursor.tailed(sequence) {
            return;
        }
        let Some(message) = Message::parse(message, sequence, now) else {
            tracing::warn!(%sequence, "an entry of the log is not a message that this version understands");
            return;
        };
        let deliver = (self.settings.auto_deliver && message.author == Author::Receiver).then(|| Delivery {
            message_id: message.message_id,
            chat: message.chat_id,
            version: message.version,
            sender: message.from.clone(),
            sequence,
        });
        self.emit_entry(Event::Message(message), Taken { sequence, deliver });
    }

    /// 5.9.3: the answer to this device's own acknowledgment, or an entry of the log.
    pub(super) fn receipt(
        &mut self,
        receipt: AcknowledgmentResponse,
        sequence: Sequence,
        request_id: i64,
        now: Instant,
    ) {
        if request_id != 0 {
            self.cursor.replied(sequence);
            self.answered(request_id, Payload::AcknowledgmentResponse(receipt), now);
            return;
        }
        if !self.cursor.tailed(sequence) {
            return;
        }
        match Acknowledged::parse(&receipt, sequence) {
            Some(receipt) => self.emit_entry(Event::Acknowledged(receipt), Taken { sequence, deliver: None }),
            None => tracing::warn!(%sequence, "an entry of the log is not a receipt that this version understands"),
        }
    }

    pub(super) fn answered(&mut self, request_id: i64, mut payload: Payload, now: Instant) -> bool {
        let Some((mut request, sent)) = self.requests.take_request(request_id) else { return false };
        match (&mut payload, request.up_to) {
            (Payload::SubscriberList(list), _) => _ = list.entries.splice(..0, std::mem::take(&mut request.parts)),
            // The device goes on.
            (Payload::Logout(response), _) if response.status != LogoutStatus::Success.code() => self.leaves = false,
            // The server may stop early if there are very many messages (protocol.md §7).
            (Payload::AcknowledgmentResponse(receipt), Some(up_to)) => {
                let left = up_to.after(Version::from_wire(receipt.up_to_version));
                left.into_iter().for_each(|left| self.receipts.hold(left));
            }
            _ => {}
        }
        answer(request.reply, Ok(Answer { payload, elapsed: now - sent }));
        true
    }

    /// Handles an error (protocol.md §15).
    pub(super) fn refused(&mut self, lane: Lane, refusal: Refusal, request_id: i64, now: Instant) {
        let kind = refusal.kind();
        let sign_in = lane == Lane::Control;
        if sign_in && (self.sign_in_put_off(request_id, &refusal, now) || self.sign_in_denied(request_id, &refusal)) {
            return;
        }
        self.sign_in_refused(request_id);
        self.presence.refused(request_id);
        if kind == Some(ErrorCode::Unauthenticated) {
            // The session is over, not the request, which is sent again on the next session.
            self.refusal = Some(refusal);
            return;
        }
        let send = match request_id {
            0 => self.requests.send_named(&refusal.details),
            id => self.requests.has_send(id).then_some(id),
        };
        let later = match kind {
            Some(ErrorCode::TooFast | ErrorCode::Unavailable) => send.is_some() || self.requests.is_lasting(request_id),
            Some(ErrorCode::TimedOut) => send.is_some(),
            _ => false,
        };
        if later {
            self.put_off(send.unwrap_or(request_id), &refusal, now);
            return;
        }
        let Some(mut send) = send.and_then(|id| self.take_send(id)) else {
            if let Some((request, _)) = self.requests.take_request(request_id) {
                // If it was the `Logout`, the device goes on.
                self.leaves &= lane != Lane::Control;
                answer(request.reply, Err(RequestError::Refused(refusal)));
            } else {
                if lane == Lane::Control {
                    self.refusal = Some(refusal.clone());
                }
                self.announce(Event::Refused(Refused { local_id: None, refusal }));
            }
            return;
        };
        self.done.push(send.local_id.clone());
        if !answer(send.reply.take(), Err(SendError::Refused(refusal.clone()))) {
            self.announce(Event::Refused(Refused { local_id: Some(send.local_id.clone()), refusal }));
        }
    }

    /// Removes a message that is answered.
    fn take_send(&mut self, id: i64) -> Option<PendingSend> {
        let send = self.requests.take_send(id)?;
        let window = &mut self.lanes[send.lane.index()].window;
        *window = window.map(|window| window + 1).filter(|window| *window < OUTBOX_MESSAGES_MAX);
        Some(send)
    }

    /// The server put this off, so it is sent again later. The lane waits so that the order is kept. Behind a message,
    /// other messages wait, also until those in flight are answered, so that they follow in the outbox's order. Behind
    /// a request, everything on the lane waits.
    pub(super) fn put_off(&mut self, id: i64, refusal: &Refusal, now: Instant) {
        let is_send = self.requests.has_send(id);
        let Some((lane, before)) = self.requests.put_off(id) else { return };
        let wait = refusal.wait().unwrap_or_else(|| {
            let bound = BACKOFF_MIN.saturating_mul(2 << before.min(20)).min(BACKOFF_MAX);
            bound / 2 + self.jitter.up_to(bound / 2)
        });
        let until = now + wait.min(BACKOFF_MAX);
        let out = &mut self.lanes[lane.index()];
        let held = if is_send { &mut out.sends_after } else { &mut out.hold };
        *held = Some(held.map_or(until, |held| held.max(until)));
        if is_send {
            out.settling.get_or_insert(now + REQUEST_WITHIN);
            out.window = Some(1);
        }
    }
}
