//! One signed-in device: what each frame means, as a state machine without I/O.
//!
//! The inputs are events of the link, finished store calls, notices of the hub, and the time; the outputs are frames to send,
//! store calls to run, and the close. [`drive`] connects the state machine to a [`Link`] and a store. Each family of requests
//! has its own file: `chat`, `media`, `history`, `presence`, `contacts`, `control` (pings), `leave` (revocation and logout).
//! `sign_in` opens the session, `tail` delivers the user's log, and `drain` ends the session when the server shuts down.

mod call;
mod calls;
mod chat;
mod contacts;
mod control;
mod drain;
mod driver;
mod fault;
mod flood;
mod history;
mod leave;
mod link;
mod media;
mod order;
mod path;
mod presence;
mod render;
mod sign_in;
mod tail;
#[cfg(test)]
pub(crate) mod testing;

pub use crate::clock::Now;
pub use call::{Asked, Call, Done, ListChange, Origin, Purpose};
pub use driver::drive;
pub use flood::{Flood, network_of};
pub use link::{LaneSet, Link, LinkEvent, PathStats};

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::auth::{Claims, Verifier};
use crate::hub::{Hub, Membership, Notice, Signal, Visit};
use crate::limits::{SESSION_CALLS_MAX, SESSION_CALLS_RESERVED, SESSION_HISTORY_CALLS_MAX, SESSION_UNRELEASED_MAX};
use crate::observe::{Direction, LimitKind, Metrics, OpenResult, TransportKind};
use crate::store::Write;
use crate::wire::{
    self, CloseCode, DeviceId, Eid, ErrorCode, Lane, MessageScheme, Payload, Sequence, encode_frame, lane_of,
    open_envelope, payload_name,
};

use chat::{Chat, echo};
use contacts::Listing;
use control::Pings;
use fault::Fault;
use flood::Meter;
use order::{PutOff, Why, sent_name};
use presence::Watching;
use sign_in::Opening;
use tail::Tail;

/// What sessions need from the server; all of them share it.
pub struct Services {
    /// The users that are connected, and what connects their sessions.
    pub hub: Arc<Hub>,
    /// Rate limits.
    pub flood: Flood,
    /// Checks tokens.
    pub verifier: Verifier,
    /// The server's metrics.
    pub metrics: Arc<Metrics>,
    /// The operator's configuration.
    pub settings: Settings,
    /// Source of randomness; a seeded one makes a simulation repeatable.
    pub random: Random,
}

/// Fills a buffer with random bytes.
pub type Random = Box<dyn Fn(&mut [u8]) + Send + Sync>;

/// The part of the operator's configuration that sessions need.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server's name, sent to clients.
    pub server_name: String,
    /// Domains that are served; empty: all.
    pub domains: Vec<String>,
    /// Base address that media ids are appended to; `None`: only full addresses are accepted.
    pub media_base: Option<String>,
    /// How long a new connection may take to send `SessionOpen`.
    pub open_within: Duration,
    /// How long a message waits for its sender's answer to the VersionUpdate before it is released anyway.
    pub release_within: Duration,
    /// Time without a frame from the client after which the server pings it.
    pub ping_interval: Duration,
    /// Longest frame, in bytes.
    pub frame_bytes_max: usize,
    /// The transport's idle timeout, sent to clients.
    pub idle_timeout: Duration,
}

impl Settings {
    /// Whether this server serves the user's domain.
    pub fn serves(&self, user: &Eid) -> bool {
        self.domains.is_empty() || self.domains.iter().any(|domain| domain.eq_ignore_ascii_case(user.domain()))
    }
}

/// What a session asks its driver to do.
#[derive(Debug)]
pub enum Output {
    /// Send a frame on a lane.
    Send(Lane, Bytes),
    /// Run a store call and pass its result to [`Session::done`].
    Call(Call),
    /// The same for accepting, releasing or acknowledging a message. Writes reach the store in order.
    Write(Asked, Write),
    /// Move the device's stored cursor; there is no result.
    Synced(Eid, DeviceId, Sequence),
    /// Deliver the frames sent so far, then close. Frames that follow are not sent.
    Close(CloseCode, &'static str),
}

/// The state machine of one connection.
pub struct Session {
    services: Arc<Services>,
    transport: TransportKind,
    /// The peer's address at the start of the connection.
    address: IpAddr,
    /// How often the peer was refused because it was too fast; each request within its narrower rates takes one off.
    strikes: u32,
    signal: Arc<Signal>,
    phase: Phase,
    lanes: LaneSet,
    /// The server shuts down. Until this time the session waits for room on its lanes for the answers that it owes.
    draining: Option<Instant>,
    /// The peer's handshake is not complete.
    early: bool,
    /// [`Output::Close`] was already queued.
    closing: bool,
    /// The link is closed: nobody reads what the session sends.
    unread: bool,
    /// Round-trip time of the peer's path when it was last sampled; zero before that, and if the transport does not report it.
    round_trip: Duration,
    /// Store calls under way, except releases.
    calls: usize,
    /// Releases under way. They do not count with the other calls, or those of a slow sender, which all become due together,
    /// would shut its lanes. [`SESSION_UNRELEASED_MAX`] bounds them, and the calls that accepted further messages.
    releases: usize,
    /// Whether the log has a line about a call of this session that the store's engine failed. A store that has failed fails all,
    /// and one line for each would fill the disk.
    complained: bool,
    out: VecDeque<Output>,
}

enum Phase {
    /// No SessionOpen yet.
    Waiting {
        until: Instant,
        /// A sign-in rate, the address's or the user's, refused the SessionOpen, which may come again. Until then everything else
        /// counts as sent behind the refused one, and is dropped on every lane (protocol.md §5).
        put_off: bool,
        /// Lets a shutdown reach the session.
        _visit: Visit,
    },
    /// The token is valid; the store is being asked for the device's state.
    Opening(Box<Opening>),
    /// Signed in.
    Open(Box<Open>),
    /// Refused, or disconnected.
    Closed,
}

/// A signed-in device.
struct Open {
    user: Eid,
    device: DeviceId,
    session_id: String,
    /// When the session signed in, for the log line at its end.
    since: Instant,
    expires: Instant,
    membership: Membership,
    chat: Chat,
    tail: Tail,
    pings: Pings,
    watching: Option<Watching>,
    claims: Claims,
    meter: Meter,
    /// A message that was refused for now, and is to be sent again before others are accepted.
    put_off: Option<Box<PutOff>>,
    /// The user's subscriber list that is being told.
    listing: Option<Box<Listing>>,
    /// Number of history requests under way.
    paging: usize,
    /// Number of revocations and sign-outs under way. Their answers are sent before a close that they may cause.
    revoking: u32,
    /// The session's token was revoked while some were under way. The session then accepts no more frames; otherwise it could
    /// stay open for as long as it keeps requesting revocations.
    revoked: bool,
}

impl Session {
    /// A session whose peer has not said anything yet.
    pub fn new(services: Arc<Services>, transport: TransportKind, address: IpAddr, now: Now) -> Session {
        let until = now.at + services.settings.open_within;
        let signal = Arc::new(Signal::default());
        let phase = Phase::Waiting { until, put_off: false, _visit: services.hub.visit(signal.clone()) };
        Session {
            services,
            transport,
            address,
            strikes: 0,
            signal,
            phase,
            lanes: LaneSet::NONE,
            draining: None,
            early: false,
            closing: false,
            unread: false,
            round_trip: Duration::ZERO,
            calls: 0,
            releases: 0,
            complained: false,
            out: VecDeque::new(),
        }
    }

    /// The mailbox through which other tasks wake the session.
    pub fn signal(&self) -> &Arc<Signal> {
        &self.signal
    }

    /// The next output, if there is one.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// Frees memory that only a busy session needs, when there is nothing to do.
    pub fn rest(&mut self) {
        if self.out.is_empty() {
            self.out = VecDeque::new();
        }
        if let Phase::Open(open) = &mut self.phase {
            open.pings.rest();
        }
    }

    /// The lanes whose frames the session accepts now. Before sign-in that is control only, or all lanes in order to drop their
    /// frames. At the bounds on store calls and unanswered sends, lanes whose frames would exceed them are left out.
    pub fn wanted(&self) -> LaneSet {
        match &self.phase {
            _ if self.draining.is_some() || self.closing => LaneSet::NONE,
            Phase::Waiting { put_off: true, .. } => Lane::ALL.into_iter().fold(LaneSet::NONE, LaneSet::with),
            Phase::Waiting { .. } => LaneSet::NONE.with(Lane::Control),
            Phase::Opening(_) | Phase::Closed => LaneSet::NONE,
            Phase::Open(open) if open.revoked => LaneSet::NONE,
            Phase::Open(open) => {
                let mut wanted = LaneSet::NONE;
                if self.calls >= SESSION_CALLS_MAX + SESSION_CALLS_RESERVED {
                    return wanted;
                }
                // One list at a time: it may fill the queue. Not early: a first flight may come late, and must undo nothing.
                if open.listing.is_none() && !self.early {
                    wanted = wanted.with(Lane::Control);
                }
                if open.watching.as_ref().is_some_and(Watching::is_read) && !self.early {
                    wanted = wanted.with(Lane::Presence);
                }
                // Without the chat lane nothing is answered, and they are refused instead.
                let answered = open.chat.unanswered() < SESSION_UNRELEASED_MAX || !self.lanes.contains(Lane::Chat);
                if self.calls < SESSION_CALLS_MAX && answered {
                    wanted = wanted.with(Lane::Media);
                    if open.paging < SESSION_HISTORY_CALLS_MAX {
                        wanted = wanted.with(Lane::Chat);
                    }
                }
                wanted
            }
        }
    }

    /// When [`Session::tick`] has something to do next.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting { until, .. } => Some(*until),
            Phase::Opening(_) | Phase::Closed => None,
            Phase::Open(open) => {
                let due = open.expires.min(open.pings.due(self.services.settings.ping_interval));
                // While calls are under way the session waits for them, whatever the time.
                let draining = self.draining.filter(|_| !self.is_waiting());
                // Nobody reads any more what is pumped, and only that would take what is due from the watch.
                let watching = open.watching.as_ref().filter(|_| !self.unread).and_then(Watching::due);
                let others = [open.chat.release_due(), watching, draining];
                others.into_iter().flatten().chain([due]).min()
            }
        }
    }

    /// Input: an event of the link. Once the session closes, nothing more is taken: who revoked it may have been answered.
    pub fn event(&mut self, event: LinkEvent, now: Now) {
        match event {
            LinkEvent::Frame(..) | LinkEvent::Oversized(_) if self.closing => {}
            LinkEvent::Early => self.early = true,
            LinkEvent::Shaken => self.shaken(),
            LinkEvent::Opened(lane) => {
                self.lanes = self.lanes.with(lane);
                match (lane, &mut self.phase) {
                    (Lane::Chat, Phase::Open(open)) => open.tail.look(),
                    (Lane::Presence, _) => self.watch_if_open(),
                    _ => {}
                }
            }
            LinkEvent::Frame(lane, frame) => self.frame(lane, &frame, now),
            LinkEvent::Oversized(lane) => {
                let limit = self.services.settings.frame_bytes_max;
                let fault =
                    Fault::new(ErrorCode::TooLarge, "the frame is too large").details(format!("at most {limit} bytes"));
                self.refuse(Origin { lane, request_id: 0, payload: "" }, fault);
                self.close(CloseCode::ProtocolViolation, "oversized frame");
            }
            LinkEvent::Violation(what) => self.close(CloseCode::ProtocolViolation, what),
            LinkEvent::Closed(_) => self.phase = Phase::Closed,
        }
    }

    /// Input: a notice of the hub.
    pub fn notice(&mut self, notice: Notice, now: Now) {
        match notice {
            Notice::Close(CloseCode::Revoked) => self.close_revoked(),
            Notice::Close(code) => self.close(code, code.name()),
            Notice::Drain => self.drain(now),
            Notice::Ping(relay) => self.want_ping(Some(relay)),
            Notice::Pong(number, rtt) => self.relayed(number, rtt, now),
        }
    }

    /// Input: statistics of the path, which the driver samples from time to time.
    pub fn seen(&mut self, path: &PathStats) {
        self.round_trip = path.rtt.unwrap_or(self.round_trip);
    }

    /// Input: the user's log has advanced.
    pub fn advanced(&mut self) {
        if let Phase::Open(open) = &mut self.phase {
            open.tail.look();
        }
    }

    /// Input: a store call returned.
    pub fn done(&mut self, done: Done, now: Now) {
        let under_way = if matches!(done, Done::Release(..)) { &mut self.releases } else { &mut self.calls };
        *under_way = under_way.saturating_sub(1);
        if let Some((what, reason)) = done.failure()
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::error!(reason, "{what}");
        }
        match done {
            Done::OpenDevice(state) => self.opened(state, now),
            Done::Accept(origin, local_id, accepted) => self.accepted(origin, &local_id, accepted, now),
            // One that was not released is durable, and is released with the next one of its chat or at the next start.
            Done::Release(..) => {}
            Done::Acknowledge(origin, acknowledged) => self.acknowledged(origin, acknowledged, now),
            Done::History(origin, query, page) => self.history_page(origin, &query, page),
            Done::ReadLog(entries) => self.log_read(entries),
            Done::Owners(owners) => self.owners_read(owners),
            Done::Relation(_, _, _, Purpose::Direct, relation) => self.directed(relation, now),
            Done::Relation(origin, owner, _, Purpose::Ping(device, ping), relation) => match relation {
                Ok(relation) => self.relay_if_allowed(origin, (&owner, device.as_ref()), *ping, &relation, now),
                Err(error) => self.refuse(origin, Fault::from(&error)),
            },
            Done::ChangeList(origin, answer, changed) => self.list_changed(origin, *answer, changed),
            Done::List(origin, page) => self.list_read(origin, page),
            Done::Revoke(origin, target, answer, revoked) => self.revoked(origin, &target, *answer, revoked),
            Done::SignOut(origin, user, device, answer, done) => {
                self.signed_out(origin, (&user, &device), answer, done);
            }
        }
    }

    /// Input: time passed.
    pub fn tick(&mut self, now: Now) {
        match &mut self.phase {
            Phase::Waiting { until, .. } if *until <= now.at => {
                self.services.metrics.opens[(self.transport, OpenResult::Late)].increment(1);
                let fault = Fault::new(ErrorCode::Unauthenticated, "no SessionOpen in time");
                self.refuse(Origin { lane: Lane::Control, request_id: 0, payload: "session_open" }, fault);
                self.close(CloseCode::Unauthenticated, "no SessionOpen in time");
            }
            Phase::Open(open) if open.expires <= now.at => {
                let fault = Fault::new(ErrorCode::Unauthenticated, "token expired");
                self.refuse(Origin { lane: Lane::Control, request_id: 0, payload: "session_open" }, fault);
                self.close(CloseCode::Unauthenticated, "token expired");
            }
            Phase::Open(_) => {
                self.ping_if_due(now);
                self.relay_timeouts(now);
                self.release_overdue(now);
            }
            _ => {}
        }
    }

    /// Sends what the tail, presence, pings and a list have, as far as their lanes have room. `queued` returns the bytes that
    /// a lane still holds. Call it after every other input.
    pub fn pump(&mut self, queued: impl Fn(Lane) -> usize, now: Now) {
        if self.unread {
            return;
        }
        self.pump_tail(queued(Lane::Chat), now);
        self.pump_presence(queued(Lane::Presence), now);
        self.pump_pings(|| queued(Lane::Control), now);
        self.pump_list(queued(Lane::Control));
        self.close_if_drained(now);
    }

    /// Whether the tail, presence or a list stopped for lack of room on a lane that is empty now. `queued` returns the bytes
    /// that a lane still holds. Each looks at its own lane only, so a stuck lane does not affect another. A lane that still
    /// holds bytes wakes the task itself.
    pub fn has_backlog(&self, queued: impl Fn(Lane) -> usize) -> bool {
        let (false, Phase::Open(open)) = (self.unread, &self.phase) else { return false };
        let chat = open.tail.is_held() || open.chat.is_owed(open.tail.position());
        self.lanes.contains(Lane::Chat) && chat && queued(Lane::Chat) == 0
            || open.watching.as_ref().is_some_and(Watching::has_more) && queued(Lane::Presence) == 0
            || open.listing.as_ref().is_some_and(|listing| listing.is_held()) && queued(Lane::Control) == 0
    }

    /// The connection is closed or closing. Returns the writes that release the messages which still wait for this session.
    pub fn end(&mut self) -> Vec<(Asked, Write)> {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Open(mut open) => {
                let release = |message| (Asked::Release(message), Write::Release(open.user.clone(), message));
                open.chat.unreleased().map(release).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether store calls are under way.
    pub fn is_waiting(&self) -> bool {
        self.calls + self.releases > 0
    }

    /// When the session signed in; `None` if it is not signed in.
    pub fn signed_in_since(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Open(open) => Some(open.since),
            _ => None,
        }
    }

    /// Handles a frame that was received on a lane.
    fn frame(&mut self, lane: Lane, frame: &[u8], now: Now) {
        self.services.metrics.frames[(lane, Direction::In)].increment(1);
        #[cfg(test)]
        if lane == Lane::Media && crate::planted::is(crate::planted::Bug::Panic) {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        if let Phase::Open(open) = &mut self.phase {
            open.pings.heard(now);
        }
        let opened = open_envelope(frame);
        if matches!(self.phase, Phase::Waiting { put_off: true, .. })
            && !matches!(&opened, Ok(MessageScheme { payload: Some(Payload::SessionOpen(_)), .. }))
        {
            self.strike();
            return;
        }
        let (scheme, error) = match opened {
            Ok(scheme) => (Some(scheme), None),
            Err((error, scheme)) => (scheme.map(|scheme| *scheme), Some(error)),
        };
        let (request_id, payload) = scheme.map_or((0, None), |scheme| (scheme.request_id, scheme.payload));
        let origin = Origin { lane, request_id, payload: payload.as_ref().map_or("", payload_name) };
        let name = payload.as_ref().and_then(sent_name);
        let least = name.map_or(Duration::ZERO, |_| self.behind_wait());
        if let Err(wait) = self.meter(origin, LimitKind::Frames, |open, _| open.meter.frames.take_or_wait(least)) {
            if let Some(local) = name {
                self.put_off(local, wait, Why::Rate, now);
            }
            return;
        }
        if let Some(error) = error {
            self.refuse(origin, Fault::from(error).details(echo(name.unwrap_or_default())));
            return self.strike_before_sign_in();
        }
        let Some(payload) = payload else { return };
        if lane_of(&payload).is_some_and(|right| right != lane) {
            let local = echo(sent_name(&payload).unwrap_or_default());
            let fault = Fault::new(ErrorCode::WrongLane, "this payload belongs on another lane");
            self.refuse(origin, fault.details(local));
            return self.strike_before_sign_in();
        }
        if !self.meter_payload(origin, &payload, now) {
            return;
        }
        if let Err(fault) = self.dispatch(origin, payload, now) {
            self.refuse(origin, fault);
        }
    }

    fn dispatch(&mut self, origin: Origin, payload: Payload, now: Now) -> Result<(), Fault> {
        match (&mut self.phase, payload) {
            (Phase::Closed | Phase::Opening(_), _) => Ok(()),
            (Phase::Open(open), _) if open.revoked => Ok(()),
            (_, Payload::SessionOpen(open)) => {
                self.session_open(origin, open, now);
                Ok(())
            }
            // Never answered: the peer's answer could be another error, without end.
            (_, Payload::ErrorMessage(_)) => {
                self.strike_before_sign_in();
                Ok(())
            }
            (Phase::Waiting { .. }, _) => {
                self.services.metrics.opens[(self.transport, OpenResult::BadRequest)].increment(1);
                self.refuse(origin, Fault::new(ErrorCode::Unauthenticated, "the first frame is SessionOpen"));
                self.close(CloseCode::Unauthenticated, "not signed in");
                Ok(())
            }
            (Phase::Open(_), payload) => match payload {
                Payload::PingpongMessage(ping) => self.pingpong(origin, ping, now),
                Payload::TextPayloadRequest(text) => self.text_payload(origin, text, now),
                Payload::MediaPayloadRequest(media) => self.media_payload(origin, media, now),
                Payload::VersionUpdate(update) => self.version_update(update),
                Payload::AcknowledgmentRequest(request) => self.acknowledgment(origin, request, now),
                Payload::SyncAck(ack) => self.sync_ack(&ack),
                Payload::HistoryRequest(request) => self.history(origin, &request),
                Payload::AwarenessRequest(request) => self.awareness_request(origin, request, now),
                Payload::AwarenessNotification(notification) => self.awareness_notification(origin, &notification),
                Payload::SubscriberAddRequest(add) => self.subscriber_add(origin, add, now),
                Payload::SubscriberRemove(remove) => self.subscriber_remove(origin, remove, now),
                Payload::SubscriberListRequest(request) => self.subscriber_list(origin, &request),
                Payload::BlockSubscriber(block) => self.block_subscriber(origin, block, now),
                Payload::TokenRevokeRequest(request) => self.token_revoke(origin, request, now),
                Payload::Logout(logout) => self.logout(origin, &logout, now),
                _ => Err(Fault::new(ErrorCode::Unsupported, "this payload is not served")),
            },
        }
    }

    /// Applies the narrower rates of payloads that cost more than a frame.
    fn meter_payload(&mut self, origin: Origin, payload: &Payload, now: Now) -> bool {
        match payload {
            Payload::AwarenessRequest(_) | Payload::AwarenessNotification(_) => {
                self.meter(origin, LimitKind::Awareness, |open, flood| open.meter.awareness(flood).take()).is_ok()
            }
            _ => sent_name(payload).is_none_or(|local| self.meter_send(origin, local, now)),
        }
    }

    /// Counts a frame before sign-in that is refused or ignored. There is no frame rate yet, so this is what bounds them.
    fn strike_before_sign_in(&mut self) {
        if matches!(self.phase, Phase::Waiting { .. }) {
            self.strike();
        }
    }

    /// Answers with an error on the lane of the request (protocol.md §15).
    fn refuse(&mut self, origin: Origin, fault: Fault) {
        self.services.metrics.error(fault.code, origin.payload);
        let message = fault.message.to_owned();
        let error = wire::ErrorMessage {
            code: fault.code.code(),
            details: if fault.details.is_empty() { message.clone() } else { fault.details },
            message,
            route: origin.payload.to_owned(),
        };
        self.send(origin.lane, origin.request_id, Payload::ErrorMessage(error));
    }

    /// Sends a payload that is not from the log. `request_id` is zero if it is not a direct reply.
    fn send(&mut self, lane: Lane, request_id: i64, payload: Payload) {
        let mut scheme = wire::envelope(payload);
        scheme.request_id = request_id;
        self.send_frame(lane, encode_frame(&scheme));
    }

    fn send_frame(&mut self, lane: Lane, frame: Bytes) {
        self.services.metrics.frames[(lane, Direction::Out)].increment(1);
        self.out.push_back(Output::Send(lane, frame));
    }

    fn call(&mut self, call: Call) {
        self.calls += 1;
        self.out.push_back(Output::Call(call));
    }

    fn write(&mut self, asked: Asked, write: Write) {
        self.calls += 1;
        self.out.push_back(Output::Write(asked, write));
    }

    fn close(&mut self, code: CloseCode, reason: &'static str) {
        if !std::mem::replace(&mut self.closing, true) {
            self.out.push_back(Output::Close(code, reason));
        }
    }
}
