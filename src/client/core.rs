//! One device as a state machine: frames, commands and time go in; frames, events and answers come out. It has no
//! sockets, clock or randomness of its own. The task around it supplies them, and so can a simulation.

mod families;
mod lane;
mod log;
mod own_presence;
mod sign_in;

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::backoff::Jitter;
use super::cursor::Cursor;
use super::error::{CloseReason, Refusal, RequestError, SendError};
use super::event::{Event, Refused, Session};
use super::limits::{
    ACCEPT_WITHIN, AHEAD_BYTES_MAX, EVENTS_HELD_MAX, EVENTS_MAX, MOVED_FRAMES, MOVED_PADDING_BYTES, UNREAD_WITHIN,
};
use super::outbox::{Backlog, Draft};
use super::payloads::{acknowledgment, acknowledgment_up_to, ping};
use super::receipts::{Delivery, Receipts, UpTo};
use super::requests::{RequestReply, Requests, SendReply, answer};
use super::transport::Transport;
use crate::wire::proto::{AwarenessNotification, SessionOpen};
use crate::wire::{
    AckStatus, DeviceId, Eid, ErrorCode, Exchange, Identity, Lane, LocalId, MessageScheme, Payload, Sequence,
    encode_frame, envelope, lane_of, open_envelope, payload_name,
};

use lane::LaneOut;
use own_presence::OwnPresence;
use sign_in::SignIn;

/// A device's identity and options.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) eid: Eid,
    pub(crate) device: DeviceId,
    /// `SessionOpen.client`.
    pub(crate) client: String,
    pub(crate) pipelined: bool,
    pub(crate) auto_deliver: bool,
    pub(crate) auto_sync: bool,
    /// Whether each connection opens chat, where the server tails the log.
    pub(crate) tails: bool,
}

/// The monotonic clock and the wall clock, read at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    pub(crate) unix_ms: i64,
}

/// How a connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passage {
    pub(crate) transport: Transport,
    /// Whether `SessionOpen` travels in the connection's first flight (0-RTT).
    pub(crate) early: bool,
}

/// An event on its way to the application, and what to do once the application took it.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) event: Event,
    pub(crate) taken: Option<Taken>,
}

/// A log entry that the application took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) sequence: Sequence,
    /// The message whose delivery has to be acknowledged, if any.
    pub(crate) deliver: Option<Delivery>,
}

#[derive(Debug)]
enum Link {
    Down,
    /// `SessionOpen` is on its way, followed by everything else without waiting for the answer (protocol.md §5).
    Opening {
        passage: Passage,
        dialed: Instant,
        until: Instant,
    },
    Open,
    /// The session skips entries of the log. Nothing more is sent or taken on it; another one has to be opened.
    Useless,
}

/// The state of one device.
#[derive(Debug)]
pub(crate) struct Core {
    settings: Settings,
    link: Link,
    /// Whether chat is open on this connection.
    tails: bool,
    lanes: [LaneOut; 4],
    requests: Requests,
    receipts: Receipts,
    cursor: Cursor,
    events: VecDeque<Outgoing>,
    /// Bytes read since the application last had taken all events.
    ahead: usize,
    /// With `ahead` at its bound: since when the application has taken no event.
    idle_since: Option<Instant>,
    /// That lasted too long: calls whose answer lies behind events fail until all events are taken.
    unread: bool,
    /// Messages that the outbox can remove.
    done: Vec<LocalId>,
    /// An accepted session that the task has not reported yet.
    accepted: Option<Session>,
    /// The server's last error about the session as a whole: the reason of the close that follows.
    refusal: Option<Refusal>,
    /// How the server has broken the protocol on this connection; nothing more is taken on it.
    broken: Option<String>,
    /// This connection has carried a `Logout`.
    leaves: bool,
    sign_in: SignIn,
    renew_at: Option<Instant>,
    presence: OwnPresence,
    jitter: Jitter,
}

impl Core {
    pub(crate) fn new(settings: Settings, backlog: Backlog, jitter: Jitter, now: Now) -> Core {
        let mut core = Core {
            settings,
            link: Link::Down,
            tails: false,
            lanes: Default::default(),
            requests: Requests::default(),
            receipts: Receipts::default(),
            cursor: Cursor::starting_at(backlog.cursor),
            events: VecDeque::new(),
            ahead: 0,
            idle_since: None,
            unread: false,
            done: Vec::new(),
            accepted: None,
            refusal: None,
            broken: None,
            leaves: false,
            sign_in: SignIn::default(),
            renew_at: None,
            presence: OwnPresence::default(),
            jitter,
        };
        for draft in &backlog.drafts {
            if let Err(error) = draft.check(&core.settings.eid) {
                // An earlier version may have stored it. The server would close each session over a frame that it takes
                // for abuse.
                core.forget_invalid(draft, &error);
                continue;
            }
            core.requests.send(draft, &core.settings.eid, &core.settings.device, None, now.instant);
        }
        core
    }

    fn forget_invalid(&mut self, draft: &Draft, error: &SendError) {
        let (code, local_id) = (ErrorCode::Malformed.code(), draft.local_id.clone());
        let refusal = Refusal { code, message: error.to_string(), route: String::new(), details: local_id.to_string() };
        self.done.push(local_id.clone());
        self.announce(Event::Refused(Refused { local_id: Some(local_id), refusal }));
    }

    // --- Commands ---------------------------------------------------------------------------------------------------

    /// Checks that the outbox may take a message; called before the outbox stores it.
    pub(crate) fn admit(&self, draft: &Draft) -> Result<(), SendError> {
        draft.check(&self.settings.eid)?;
        self.requests.admit(&draft.local_id)
    }

    /// Sends an admitted message, now or once there is a connection.
    pub(crate) fn send(&mut self, draft: &Draft, reply: SendReply, at: Instant) {
        self.requests.send(draft, &self.settings.eid, &self.settings.device, Some(reply), at);
        if self.unread {
            self.requests.release_unread();
        }
    }

    /// Makes a request. One that is not `lasting` is made only on an open session.
    pub(crate) fn request(&mut self, payload: Payload, lasting: bool, reply: RequestReply) {
        let connected = matches!(self.link, Link::Open);
        // The answers to these belong to the device: it makes them itself.
        let is_own = matches!(
            payload,
            Payload::SessionOpen(_) | Payload::TextPayloadRequest(_) | Payload::MediaPayloadRequest(_)
        );
        if !self.requests.has_reserved_room() {
            self.requests.forget_abandoned();
        }
        match lane_of(&payload).filter(|_| !is_own) {
            None => drop(answer(Some(reply), Err(RequestError::Unexpected))),
            Some(_) if !lasting && !connected => drop(answer(Some(reply), Err(RequestError::NotConnected))),
            Some(_) if !self.requests.has_reserved_room() => drop(answer(Some(reply), Err(RequestError::Busy))),
            Some(lane) if self.unread && lane != Lane::Control => drop(answer(Some(reply), Err(RequestError::Unread))),
            Some(lane) => {
                self.leaves |= matches!(payload, Payload::Logout(_));
                self.requests.request(lane, payload, lasting, Some(reply));
            }
        }
    }

    /// Sends the user's presence: to everybody, now or once there is a connection; to one user, now or not at all.
    pub(crate) fn tell(&mut self, presence: AwarenessNotification, now: Now) -> Result<(), RequestError> {
        if presence.to.is_none() {
            self.presence.set(presence, now);
            return Ok(());
        }
        match self.link {
            Link::Down => Err(RequestError::NotConnected),
            _ if !self.lanes[Lane::Presence.index()].has_room() => Err(RequestError::Busy),
            _ => {
                self.put(Lane::Presence, Payload::AwarenessNotification(presence));
                Ok(())
            }
        }
    }

    /// Whether [`Core::taken`] may be called: the acknowledgment that it may make needs a place.
    pub(crate) fn can_take(&self) -> bool {
        !self.settings.auto_deliver || self.requests.has_room() || self.receipts.has_room()
    }

    /// The application took an event.
    pub(crate) fn taken(&mut self, taken: Taken, now: Now) {
        // A message of another log comes again, if the server still has it.
        let of_this_log = self.cursor.taken(taken.sequence);
        if let Some(delivery) = taken.deliver.filter(|_| of_this_log) {
            if self.receipts.is_empty() && self.requests.has_room() {
                let Delivery { message_id, sender, .. } = &delivery;
                let request = acknowledgment(self.identity(), *message_id, sender, AckStatus::Delivered, now.unix_ms);
                self.requests.acknowledge(request, delivery.sequence, None);
            } else {
                self.receipts.hold(UpTo::new(delivery, now.unix_ms));
            }
            self.cursor.covered(taken.sequence);
        }
    }

    /// Moves held acknowledgments into places that have become free.
    fn acknowledge_held(&mut self) {
        while self.requests.has_room()
            && let Some(held) = self.receipts.take()
        {
            let Delivery { chat, version, sender, .. } = &held.newest;
            let request =
                acknowledgment_up_to(self.identity(), (*chat, *version), sender, AckStatus::Delivered, held.at);
            self.requests.acknowledge(request, held.oldest, Some(held));
        }
    }

    /// Asks the server for a sign of life; any packet is one. Also used while `SessionOpen` is unanswered: a new packet
    /// detects a lost one, or finds another path, sooner than QUIC's own repetition.
    pub(crate) fn probe(&mut self, now: Now) {
        self.answer_frame(Lane::Control, Payload::PingpongMessage(ping(now.unix_ms)));
    }

    /// The device is on another path. It sends large frames first: until the server has validated the path, it may send
    /// only three times what it received (RFC 9000, 8.1), and both its challenge and messages have to fit into that.
    pub(crate) fn moved(&mut self, now: Now) {
        for _ in 0..MOVED_FRAMES {
            let ping = envelope(Payload::PingpongMessage(ping(now.unix_ms)));
            let padded = MessageScheme { padding: Bytes::from_static(&[0; MOVED_PADDING_BYTES]), ..ping };
            self.lanes[Lane::Control.index()].push(encode_frame(&padded));
        }
    }

    // --- The link ---------------------------------------------------------------------------------------------------

    /// There is a connection. `SessionOpen` goes first, followed by everything unanswered, in order, without waiting
    /// for the answer (protocol.md §5).
    pub(crate) fn link_up(&mut self, token: String, passage: Passage, dialed: Instant, now: Instant) {
        self.refusal = None;
        self.leaves = false;
        self.sign_in_anew(token);
        self.presence.again();
        self.tails = self.settings.tails;
        self.link = Link::Opening { passage, dialed, until: now + ACCEPT_WITHIN };
    }

    /// The connection is gone.
    pub(crate) fn link_down(&mut self) {
        self.link = Link::Down;
        self.lanes = Default::default();
        self.renew_at = None;
        self.broken = None;
        self.requests.link_down();
    }

    /// The server's last error about the session, before it closed.
    pub(crate) fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusal.take()
    }

    /// The next frame for a lane of the connection.
    pub(crate) fn next_frame(&mut self, lane: Lane, now: Now) -> Option<Bytes> {
        if matches!(self.link, Link::Down | Link::Useless) {
            return None;
        }
        let frame = self.frame_for(lane, now)?;
        if matches!(lane, Lane::Chat | Lane::Media) {
            self.opens_chat();
        }
        Some(frame)
    }

    fn frame_for(&mut self, lane: Lane, now: Now) -> Option<Bytes> {
        match lane {
            Lane::Presence if self.presence.is_due() => return self.presence.take(now),
            Lane::Chat => self.acknowledge_held(),
            _ => {}
        }
        let out = &mut self.lanes[lane.index()];
        if let Some(frame) = out.pop() {
            return Some(frame);
        }
        if out.hold.is_some_and(|until| until > now.instant) {
            return None;
        }
        let sends = out.sends(self.requests.sends_on_the_way(lane), now.instant);
        self.requests.next_frame(lane, sends, matches!(self.link, Link::Open), now.instant)
    }

    /// Which lanes to read. Before the session is accepted, and while the application has untaken events in this queue:
    /// only control, so that the server keeps the rest and pings are answered. The exception is while an answer is owed: it
    /// may lie behind messages, so reading continues up to a bound. There, waiting calls fail ([`Core::tick`]). The answers to
    /// the device's own acknowledgments count, too: while they are not read, the application cannot take further events.
    pub(crate) fn reading(&self, lane: Lane) -> bool {
        match lane {
            Lane::Control => !matches!(self.link, Link::Down),
            _ => {
                let ahead = self.requests.owed() && !self.is_far_ahead();
                matches!(self.link, Link::Open) && (self.events.is_empty() || ahead)
            }
        }
    }

    /// Handles a frame from the server.
    pub(crate) fn frame(&mut self, lane: Lane, frame: &[u8], now: Now) {
        if self.is_useless() || self.broken.is_some() {
            return;
        }
        if !self.events.is_empty() {
            self.ahead += frame.len() + size_of::<Outgoing>();
        }
        let MessageScheme { payload, sequence, request_id, .. } = match open_envelope(frame) {
            Ok(scheme) => scheme,
            Err((error, _)) => {
                tracing::debug!(lane = lane.name(), %error, "a frame of the server was ignored");
                return;
            }
        };
        let sequence = Sequence::from_wire(sequence);
        match payload {
            // Control is always read, so there it could fill the memory; and an entry of the log must not be skipped.
            Some(payload) if lane_of(&payload).is_some_and(|own| own != lane) => {
                self.broken = Some(format!("{} on the lane {}", payload_name(&payload), lane.name()));
            }
            Some(Payload::SessionAccept(accept)) => self.session_accept(accept, request_id, now.instant),
            Some(Payload::PingpongMessage(ping)) if ping.r#type == Exchange::Request.code() => self.pong(ping, now),
            Some(Payload::VersionUpdate(update)) => self.version_update(update, sequence, request_id, now),
            Some(Payload::ChatMessage(message)) => self.chat_message(message, sequence, now.instant),
            Some(Payload::AcknowledgmentResponse(receipt)) => self.receipt(receipt, sequence, request_id, now.instant),
            Some(Payload::AwarenessNotification(presence)) => {
                if Eid::from_identity(presence.from.as_ref()).is_ok_and(|from| from == self.settings.eid) {
                    self.presence.heard(presence.status);
                }
                self.emit(Event::Presence(presence));
            }
            Some(Payload::AwarenessResponse(own)) if self.presence.answered(request_id, own.status) => {}
            Some(Payload::ErrorMessage(error)) => self.refused(lane, error.into(), request_id, now.instant),
            Some(Payload::SubscriberList(list)) if list.more => {
                self.requests.part(request_id, list.entries, frame.len());
            }
            Some(payload) => {
                let name = payload_name(&payload);
                if !self.answered(request_id, payload, now.instant) {
                    tracing::debug!(lane = lane.name(), payload = name, "an answer that nobody waits for was ignored");
                }
            }
            // `open_envelope` returns an error for this.
            None => {}
        }
    }

    // --- Time and output --------------------------------------------------------------------------------------------

    /// When [`Core::tick`] has something to do.
    pub(crate) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let opening = match self.link {
            Link::Opening { until, .. } => Some(until),
            _ => None,
        };
        let held = Lane::ALL
            .into_iter()
            .filter(|lane| self.requests.has_unsent(*lane))
            .map(|lane| &self.lanes[lane.index()])
            .flat_map(|out| [out.hold, out.sends_after, out.settling])
            .flatten()
            .min();
        let unread = (self.is_far_ahead() && !self.unread).then(|| self.idle_since.unwrap_or(now) + UNREAD_WITHIN);
        [self.sync_due(now), self.keep_due(now), opening, held, unread, self.requests.expiry()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the read-ahead has reached its bound: only control is read until the application has taken its events.
    fn is_far_ahead(&self) -> bool {
        self.ahead >= AHEAD_BYTES_MAX
    }

    /// Does what is due. Returns an error if the connection has to be closed.
    pub(crate) fn tick(&mut self, now: Instant) -> Result<(), CloseReason> {
        if self.is_far_ahead() && *self.idle_since.get_or_insert(now) + UNREAD_WITHIN <= now {
            self.unread = true;
            self.requests.release_unread();
        }
        self.requests.expire(now);
        for lane in Lane::ALL {
            let out = &mut self.lanes[lane.index()];
            out.hold = out.hold.filter(|until| *until > now);
            out.sends_after = out.sends_after.filter(|after| *after > now);
            out.settle(self.requests.sends_on_the_way(lane), now);
        }
        if matches!(self.link, Link::Opening { .. })
            && let Some(reason) = self.no_session()
        {
            return Err(reason);
        }
        if let Some(broken) = &self.broken {
            return Err(CloseReason::Protocol(broken.clone()));
        }
        match self.link {
            Link::Opening { until, .. } if until <= now => {
                Err(CloseReason::Network("the server did not answer SessionOpen".into()))
            }
            Link::Useless => Err(CloseReason::Network("the server has lost entries that this device has seen".into())),
            _ => Ok(()),
        }
    }

    /// When the token has to be renewed.
    pub(crate) fn renew_at(&self) -> Option<Instant> {
        self.renew_at
    }

    /// The next event, in order.
    pub(crate) fn next_event(&mut self) -> Option<Outgoing> {
        let event = self.events.pop_front()?;
        self.idle_since = None;
        if self.events.is_empty() {
            (self.ahead, self.unread) = (0, false);
            // A backlog that was read ahead may have taken far more.
            self.events.shrink_to(EVENTS_MAX);
        }
        Some(event)
    }

    /// Messages that the outbox can remove.
    pub(crate) fn take_done(&mut self) -> Vec<LocalId> {
        std::mem::take(&mut self.done)
    }

    /// A session that was accepted since the last call.
    pub(crate) fn take_accepted(&mut self) -> Option<Session> {
        self.accepted.take()
    }

    /// Whether the session is accepted.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.link, Link::Open)
    }

    /// Whether the session has to be replaced by another one, because it skips entries of the log.
    pub(crate) fn is_useless(&self) -> bool {
        matches!(self.link, Link::Useless)
    }

    /// Whether the application has signed out, or left, on the last connection.
    pub(crate) fn leaves(&self) -> bool {
        self.leaves
    }

    /// Whether the server owes an answer, so that silence means that something is wrong.
    pub(crate) fn owed(&self) -> bool {
        matches!(self.link, Link::Opening { .. }) || (matches!(self.link, Link::Open) && self.requests.owed())
    }

    /// Whether everything was answered. Presence is not waited for without a session.
    pub(crate) fn is_settled(&self) -> bool {
        let asked = self.requests.is_empty() && self.receipts.is_empty();
        asked && !(self.presence.is_unsettled() && matches!(self.link, Link::Open))
    }

    /// The device stops: all waiting calls fail with the reason.
    pub(crate) fn release_waiters(&mut self, reason: &CloseReason) {
        self.requests.release_waiters(&SendError::Unanswered(reason.clone()), &RequestError::Closed(reason.clone()));
    }

    /// Queues an event about the connection. Such events arise whether or not the application reads; at the bound the
    /// oldest is dropped, a gap in the log last.
    pub(crate) fn announce(&mut self, event: Event) {
        if self.events.len() >= EVENTS_HELD_MAX {
            let is_gap = |held: &Outgoing| matches!(&held.event, Event::Connected(session) if session.gap);
            let is_news = |held: &Outgoing| match &held.event {
                Event::Connected(session) => !session.gap,
                Event::Disconnected(_) | Event::Presence(_) => true,
                Event::Refused(refused) => refused.local_id.is_none(),
                _ => false,
            };
            let oldest = self.events.iter().position(is_news).or_else(|| self.events.iter().position(is_gap));
            if let Some(dropped) = oldest.and_then(|oldest| self.events.remove(oldest)) {
                tracing::debug!(event = ?dropped.event, "an event was dropped: the application takes none");
            }
        }
        self.events.push_back(Outgoing { event, taken: None });
    }

    // --- Internals --------------------------------------------------------------------------------------------------

    fn emit(&mut self, event: Event) {
        self.events.push_back(Outgoing { event, taken: None });
    }

    fn emit_entry(&mut self, event: Event, taken: Taken) {
        self.cursor.handed_out();
        self.events.push_back(Outgoing { event, taken: Some(taken) });
    }

    fn put(&mut self, lane: Lane, payload: Payload) {
        self.lanes[lane.index()].push(encode_frame(&envelope(payload)));
    }

    /// Queues a frame that the server can do without; dropped at the bound.
    fn answer_frame(&mut self, lane: Lane, payload: Payload) {
        if self.lanes[lane.index()].has_room() {
            self.put(lane, payload);
        }
    }

    fn session_open(&self, token: String) -> SessionOpen {
        SessionOpen {
            identity: Some(self.identity()),
            token,
            resume_from: self.cursor.resume_from().map(Sequence::wire),
            client: self.settings.client.clone(),
            pipelined: self.settings.pipelined,
        }
    }

    fn identity(&self) -> Identity {
        self.settings.eid.device_identity(&self.settings.device)
    }
}

#[cfg(test)]
mod tests;
