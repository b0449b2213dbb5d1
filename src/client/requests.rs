//! The requests and messages that have no answer yet, in the order in which the application made them.
//!
//! A frame is encoded once, with its `request_id`. Every connection sends the same bytes again, in the same order,
//! until the answer arrives. This makes reconnects safe: the server recognises a repeated message by its
//! `message_id_local`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::error::{CloseReason, RequestError, SendError};
use super::limits::{
    LIST_BYTES_MAX, LIST_ENTRIES_MAX, OUTBOX_BYTES_MAX, OUTBOX_MESSAGES_MAX, REQUEST_WITHIN, REQUESTS_MAX,
    REQUESTS_RESERVED,
};
use super::outbox::Draft;
use super::receipts::UpTo;
use crate::wire::proto::Subscriber;
use crate::wire::{
    ChatId, DeviceId, Eid, Lane, LocalId, MessageId, Payload, Sequence, Version, encode_frame, envelope,
};

/// A message that the server has stored and numbered. It survives a crash of the server (protocol.md §7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The sender's id of the message.
    pub local_id: LocalId,
    /// The server's id of the message.
    pub message_id: MessageId,
    /// The chat.
    pub chat_id: ChatId,
    /// Position in the chat.
    pub version: Version,
    /// Position in the user's log.
    pub sequence: Sequence,
    /// When the server accepted it, in Unix milliseconds.
    pub timestamp: i64,
    /// Time from the call to the answer, including any wait for a connection.
    pub latency: Duration,
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) payload: Payload,
    /// Time from sending the request to its answer.
    pub(crate) elapsed: Duration,
}

pub(crate) type SendReply = oneshot::Sender<Result<Sent, SendError>>;
pub(crate) type RequestReply = oneshot::Sender<Result<Answer, RequestError>>;

/// A message that is not answered yet.
#[derive(Debug)]
pub(crate) struct PendingSend {
    pub(crate) local_id: LocalId,
    /// `None` for a message of an earlier process: no caller waits for it.
    pub(crate) reply: Option<SendReply>,
    pub(crate) since: Instant,
    frame: Bytes,
    pub(crate) lane: Lane,
    /// How often the server put it off.
    put_off: u32,
}

impl Drop for PendingSend {
    /// The task ended without a word (it panicked, or its runtime is gone): the message was taken all the same.
    fn drop(&mut self) {
        let reason = if std::thread::panicking() { CloseReason::Panicked } else { CloseReason::Local };
        answer(self.reply.take(), Err(SendError::Unanswered(reason)));
    }
}

/// Any other request that is not answered yet.
#[derive(Debug)]
pub(crate) struct PendingRequest {
    /// `None` for an automatic acknowledgment: no caller waits for it.
    pub(crate) reply: Option<RequestReply>,
    /// Whether it is repeated after a reconnect.
    pub(crate) lasting: bool,
    /// The messages that an automatic acknowledgment of several covers.
    pub(crate) up_to: Option<UpTo>,
    /// Log position of the oldest message that an automatic acknowledgment covers.
    delivers: Option<Sequence>,
    /// Whether it acknowledges all messages up to a version. A server that was restored from a backup gives out versions
    /// again: there it would acknowledge messages that this device has not seen, and they would be skipped.
    by_version: bool,
    /// Entries of a list whose last frame has not arrived, and the bytes of their frames.
    pub(crate) parts: Vec<Subscriber>,
    parts_bytes: usize,
    sent: Option<Instant>,
    frame: Bytes,
    lane: Lane,
    put_off: u32,
}

/// Everything unanswered, by `request_id`. The ids ascend in the order of the requests.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    sends: BTreeMap<i64, PendingSend>,
    requests: BTreeMap<i64, PendingRequest>,
    by_local_id: HashMap<LocalId, i64>,
    /// By lane: ids not yet given to this connection, or to be given again.
    unsent: [BTreeSet<i64>; 4],
    /// By lane: number of messages that were given to this connection and are not answered.
    on_the_way: [usize; 4],
    send_bytes: usize,
    last_id: i64,
    /// The earliest time at which a request may expire.
    expiry: Option<Instant>,
}

impl Requests {
    /// Checks that there is room for another message, and that its local id is free.
    pub(crate) fn admit(&self, local_id: &LocalId) -> Result<(), SendError> {
        if self.by_local_id.contains_key(local_id) {
            return Err(SendError::Duplicate(local_id.clone()));
        }
        if self.sends.len() >= OUTBOX_MESSAGES_MAX || self.send_bytes >= OUTBOX_BYTES_MAX {
            return Err(SendError::OutboxFull);
        }
        Ok(())
    }

    /// Adds a message that was admitted.
    pub(crate) fn send(&mut self, draft: &Draft, own: &Eid, device: &DeviceId, reply: Option<SendReply>, at: Instant) {
        let (lane, payload) = draft.payload(own, device);
        let (id, frame) = self.enter(lane, payload);
        self.send_bytes += frame.len();
        self.by_local_id.insert(draft.local_id.clone(), id);
        self.sends
            .insert(id, PendingSend { local_id: draft.local_id.clone(), reply, since: at, frame, lane, put_off: 0 });
    }

    /// Whether there is room for another request.
    pub(crate) fn has_room(&self) -> bool {
        self.requests.len() < REQUESTS_MAX
    }

    /// Whether there is room for a request of the application's own.
    pub(crate) fn has_reserved_room(&self) -> bool {
        self.requests.len() < REQUESTS_MAX + REQUESTS_RESERVED
    }

    /// Gives back the places of requests that have not been sent and whose callers no longer wait.
    pub(crate) fn forget_abandoned(&mut self) {
        let unsent = &mut self.unsent;
        self.requests.retain(|id, request| {
            let kept = request.sent.is_some() || !request.reply.as_ref().is_some_and(oneshot::Sender::is_closed);
            if !kept {
                unsent[request.lane.index()].remove(id);
            }
            kept
        });
    }

    /// Adds a request.
    pub(crate) fn request(&mut self, lane: Lane, payload: Payload, lasting: bool, reply: Option<RequestReply>) {
        self.pend(lane, payload, lasting, reply, None);
    }

    /// Adds an automatic acknowledgment: of one message, or of all up to one.
    pub(crate) fn acknowledge(&mut self, payload: Payload, oldest: Sequence, up_to: Option<UpTo>) {
        self.pend(Lane::Chat, payload, true, None, Some((oldest, up_to)));
    }

    /// Log position of the oldest message whose automatic acknowledgment is not answered.
    pub(crate) fn unacknowledged(&self) -> Option<Sequence> {
        self.requests.values().filter_map(|request| request.delivers).min()
    }

    /// The next frame for a lane. Messages are included only if `sends` is true, and acknowledgments of all up to a version
    /// only if the session is `open`, so that it is known which log the server has.
    pub(crate) fn next_frame(&mut self, lane: Lane, sends: bool, open: bool, now: Instant) -> Option<Bytes> {
        let unsent = &mut self.unsent[lane.index()];
        let goes = |request: &PendingRequest| open || !request.by_version;
        let id = match sends {
            true => unsent.iter().find(|id| self.requests.get(id).is_none_or(goes)).copied()?,
            false => {
                self.requests.iter().find(|(id, request)| unsent.contains(id) && goes(request)).map(|(id, _)| *id)?
            }
        };
        unsent.remove(&id);
        if let Some(send) = self.sends.get(&id) {
            self.on_the_way[lane.index()] += 1;
            return Some(send.frame.clone());
        }
        let request = self.requests.get_mut(&id)?;
        request.sent = Some(now);
        self.expiry.get_or_insert(now + REQUEST_WITHIN);
        Some(request.frame.clone())
    }

    pub(crate) fn has_unsent(&self, lane: Lane) -> bool {
        !self.unsent[lane.index()].is_empty()
    }

    /// Number of messages that were given to this connection and are not answered.
    pub(crate) fn sends_on_the_way(&self, lane: Lane) -> usize {
        self.on_the_way[lane.index()]
    }

    /// The `request_id` of the message with this `message_id_local`.
    pub(crate) fn send_named(&self, local_id: &str) -> Option<i64> {
        self.by_local_id.get(&LocalId::parse(local_id).ok()?).copied()
    }

    /// Whether this id belongs to a message.
    pub(crate) fn has_send(&self, request_id: i64) -> bool {
        self.sends.contains_key(&request_id)
    }

    /// Removes a message that is answered.
    pub(crate) fn take_send(&mut self, request_id: i64) -> Option<PendingSend> {
        let send = self.sends.remove(&request_id)?;
        self.by_local_id.remove(&send.local_id);
        self.send_bytes -= send.frame.len();
        if !self.unsent[send.lane.index()].remove(&request_id) {
            self.on_the_way[send.lane.index()] -= 1;
        }
        Some(send)
    }

    /// Removes the request that an answer belongs to. Also returns when the request was sent.
    pub(crate) fn take_request(&mut self, request_id: i64) -> Option<(PendingRequest, Instant)> {
        // A request that was not sent on this connection cannot have an answer.
        let sent = self.requests.get(&request_id)?.sent?;
        let request = self.requests.remove(&request_id)?;
        self.unsent[request.lane.index()].remove(&request_id);
        Some((request, sent))
    }

    /// Adds a list's frame that is not its last. A list over the bound is invalid, and its caller gets an error.
    pub(crate) fn part(&mut self, request_id: i64, entries: Vec<Subscriber>, bytes: usize) {
        let Some(request) = self.requests.get_mut(&request_id).filter(|request| request.sent.is_some()) else { return };
        request.parts_bytes += bytes;
        if request.parts.len() + entries.len() <= LIST_ENTRIES_MAX && request.parts_bytes <= LIST_BYTES_MAX {
            request.parts.extend(entries);
        } else if let Some((request, _)) = self.take_request(request_id) {
            answer(request.reply, Err(RequestError::Unexpected));
        }
    }

    /// Whether the request is repeated after the server put it off.
    pub(crate) fn is_lasting(&self, request_id: i64) -> bool {
        self.requests.get(&request_id).is_some_and(|request| request.lasting)
    }

    /// The server put this off: it is sent again later. Returns its lane and how often that happened before.
    pub(crate) fn put_off(&mut self, id: i64) -> Option<(Lane, u32)> {
        let (lane, count) = match self.sends.get_mut(&id) {
            Some(send) => (send.lane, &mut send.put_off),
            None => {
                let request = self.requests.get_mut(&id)?;
                request.sent = None;
                (request.lane, &mut request.put_off)
            }
        };
        let before = *count;
        *count = before.saturating_add(1);
        if self.unsent[lane.index()].insert(id) && self.sends.contains_key(&id) {
            self.on_the_way[lane.index()] -= 1;
        }
        Some((lane, before))
    }

    /// The connection is gone. Requests that are not worth repeating fail; everything else is sent again, in order, on
    /// the next connection.
    pub(crate) fn link_down(&mut self) {
        self.requests.retain(|_, request| {
            let wanted = request.lasting && !request.reply.as_ref().is_some_and(oneshot::Sender::is_closed);
            if !wanted {
                answer(request.reply.take(), Err(RequestError::NotConnected));
            }
            wanted
        });
        (self.unsent, self.on_the_way) = Default::default();
        for (id, send) in &self.sends {
            self.unsent[send.lane.index()].insert(*id);
        }
        for (id, request) in &mut self.requests {
            request.sent = None;
            (request.parts, request.parts_bytes) = Default::default();
            self.unsent[request.lane.index()].insert(*id);
        }
        self.expiry = None;
    }

    /// The server has another log: what acknowledges all messages up to a version is not sent any more.
    pub(crate) fn forget_versions(&mut self) {
        let unsent = &mut self.unsent;
        self.requests.retain(|id, request| {
            if request.by_version {
                unsent[request.lane.index()].remove(id);
                answer(request.reply.take(), Err(RequestError::NotConnected));
            }
            !request.by_version
        });
    }

    /// Fails all waiting calls. Messages stay in the outbox.
    pub(crate) fn release_waiters(&mut self, send_error: &SendError, request_error: &RequestError) {
        for send in self.sends.values_mut() {
            answer(send.reply.take(), Err(send_error.clone()));
        }
        self.requests.retain(|_, request| match request.reply.take() {
            Some(reply) => {
                answer(Some(reply), Err(request_error.clone()));
                false
            }
            None => true,
        });
        self.link_down();
    }

    /// When [`Requests::expire`] has to be called.
    pub(crate) fn expiry(&self) -> Option<Instant> {
        self.expiry
    }

    /// Fails calls whose answers will not be read, except on the control lane, which is always read. Messages stay in
    /// the outbox.
    pub(crate) fn release_unread(&mut self) {
        for send in self.sends.values_mut() {
            answer(send.reply.take(), Err(SendError::Unread));
        }
        let unsent = &mut self.unsent;
        self.requests.retain(|id, request| match request.reply.take_if(|_| request.lane != Lane::Control) {
            Some(reply) => {
                answer(Some(reply), Err(RequestError::Unread));
                unsent[request.lane.index()].remove(id);
                false
            }
            None => true,
        });
    }

    /// Fails requests whose answer is overdue. The device's own acknowledgments are sent again instead, as no caller
    /// would repeat them.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.expiry.is_none_or(|expiry| expiry > now) {
            return;
        }
        let unsent = &mut self.unsent;
        self.requests.retain(|id, request| {
            if request.sent.is_none_or(|sent| sent + REQUEST_WITHIN > now) {
                return true;
            }
            answer(request.reply.take(), Err(RequestError::TimedOut));
            request.sent = None;
            request.delivers.is_some() && unsent[request.lane.index()].insert(*id)
        });
        self.expiry = self.requests.values().filter_map(|request| request.sent).min().map(|sent| sent + REQUEST_WITHIN);
    }

    /// Whether the server owes an answer to something that was sent on this connection.
    pub(crate) fn owed(&self) -> bool {
        let unsent: usize = self.unsent.iter().map(BTreeSet::len).sum();
        self.sends.len() + self.requests.len() > unsent
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sends.is_empty() && self.requests.is_empty()
    }

    fn pend(
        &mut self,
        lane: Lane,
        payload: Payload,
        lasting: bool,
        reply: Option<RequestReply>,
        delivers: Option<(Sequence, Option<UpTo>)>,
    ) {
        let by_version = matches!(&payload, Payload::AcknowledgmentRequest(ack) if ack.up_to_version != 0);
        let (id, frame) = self.enter(lane, payload);
        let (delivers, up_to) = delivers.unzip();
        let (up_to, parts, parts_bytes) = (up_to.flatten(), Vec::new(), 0);
        let (sent, put_off) = (None, 0);
        let request = PendingRequest {
            reply,
            lasting,
            up_to,
            delivers,
            by_version,
            parts,
            parts_bytes,
            sent,
            frame,
            lane,
            put_off,
        };
        self.requests.insert(id, request);
    }

    fn enter(&mut self, lane: Lane, payload: Payload) -> (i64, Bytes) {
        self.last_id += 1;
        let mut scheme = envelope(payload);
        scheme.request_id = self.last_id;
        self.unsent[lane.index()].insert(self.last_id);
        (self.last_id, encode_frame(&scheme))
    }
}

/// Answers a waiting caller. Returns whether there was one that still waited.
pub(crate) fn answer<T>(reply: Option<oneshot::Sender<T>>, value: T) -> bool {
    reply.is_some_and(|reply| reply.send(value).is_ok())
}
