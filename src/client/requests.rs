//! What this device asked for and has no answer to yet, in the order in which it asked.
//!
//! A frame is encoded once, its `request_id` within; every link sends the same bytes again, in the same order, until
//! the answer comes. That is what makes a reconnect invisible: the server knows a message by its `message_id_local`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::error::{RequestError, SendError};
use super::limits::{
    LIST_ENTRIES_MAX, OUTBOX_BYTES_MAX, OUTBOX_MESSAGES_MAX, REQUEST_WITHIN, REQUESTS_MAX, REQUESTS_RESERVED,
};
use super::outbox::Draft;
use super::receipts::UpTo;
use crate::wire::proto::Subscriber;
use crate::wire::{
    ChatId, DeviceId, Eid, Lane, LocalId, MessageId, Payload, Sequence, Version, encode_frame, envelope,
};

/// A message that the server has: durable there, and numbered (profile 10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The device's own name for it.
    pub local_id: LocalId,
    /// The server's name for it.
    pub message_id: MessageId,
    /// The conversation.
    pub chat_id: ChatId,
    /// Position in it.
    pub version: Version,
    /// Position in the user's log.
    pub sequence: Sequence,
    /// From the call to the answer.
    pub latency: Duration,
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) payload: Payload,
    /// From the request's leaving to this.
    pub(crate) elapsed: Duration,
}

pub(crate) type SendReply = oneshot::Sender<Result<Sent, SendError>>;
pub(crate) type RequestReply = oneshot::Sender<Result<Answer, RequestError>>;

/// A message on its way.
#[derive(Debug)]
pub(crate) struct PendingSend {
    pub(crate) local_id: LocalId,
    /// Nobody waits for what comes from an earlier process.
    pub(crate) reply: Option<SendReply>,
    pub(crate) since: Instant,
    frame: Bytes,
    pub(crate) lane: Lane,
    /// How often the server put it off.
    put_off: u32,
}

/// Anything else on its way.
#[derive(Debug)]
pub(crate) struct PendingRequest {
    /// Nobody waits for an automatic acknowledgment.
    pub(crate) reply: Option<RequestReply>,
    /// Still wanted after a reconnect.
    pub(crate) lasting: bool,
    /// What an automatic acknowledgment is about that stands for several.
    pub(crate) up_to: Option<UpTo>,
    /// Where the oldest message stands in the log that an automatic acknowledgment is about.
    delivers: Option<Sequence>,
    /// Entries of a list whose last frame has not come.
    pub(crate) parts: Vec<Subscriber>,
    sent: Option<Instant>,
    frame: Bytes,
    lane: Lane,
    put_off: u32,
}

/// Everything unanswered. A key is the `request_id`, ascending in the order of asking.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    sends: BTreeMap<i64, PendingSend>,
    requests: BTreeMap<i64, PendingRequest>,
    by_local_id: HashMap<LocalId, i64>,
    /// By lane: not given to this link yet, or to be given once more.
    unsent: [BTreeSet<i64>; 4],
    /// By lane: messages that were given to this link, and have no answer.
    on_the_way: [usize; 4],
    send_bytes: usize,
    last_id: i64,
    /// No request expires before.
    expiry: Option<Instant>,
}

impl Requests {
    /// Room for another message?
    pub(crate) fn admit(&self, local_id: &LocalId) -> Result<(), SendError> {
        if self.by_local_id.contains_key(local_id) {
            return Err(SendError::Duplicate(local_id.clone()));
        }
        if self.sends.len() >= OUTBOX_MESSAGES_MAX || self.send_bytes >= OUTBOX_BYTES_MAX {
            return Err(SendError::OutboxFull);
        }
        Ok(())
    }

    /// Takes a message that was admitted.
    pub(crate) fn send(&mut self, draft: &Draft, own: &Eid, device: &DeviceId, reply: Option<SendReply>, at: Instant) {
        let (lane, payload) = draft.payload(own, device);
        let (id, frame) = self.enter(lane, payload);
        self.send_bytes += frame.len();
        self.by_local_id.insert(draft.local_id.clone(), id);
        self.sends
            .insert(id, PendingSend { local_id: draft.local_id.clone(), reply, since: at, frame, lane, put_off: 0 });
    }

    /// Room for another request?
    pub(crate) fn has_room(&self) -> bool {
        self.requests.len() < REQUESTS_MAX
    }

    /// Room for one of the application's own?
    pub(crate) fn has_reserved_room(&self) -> bool {
        self.requests.len() < REQUESTS_MAX + REQUESTS_RESERVED
    }

    /// Takes a request.
    pub(crate) fn request(&mut self, lane: Lane, payload: Payload, lasting: bool, reply: Option<RequestReply>) {
        self.pend(lane, payload, lasting, reply, None);
    }

    /// Takes an automatic acknowledgment: of one message, or of all up to one.
    pub(crate) fn acknowledge(&mut self, payload: Payload, oldest: Sequence, up_to: Option<UpTo>) {
        self.pend(Lane::Chat, payload, true, None, Some((oldest, up_to)));
    }

    /// Where the oldest message stands in the log whose automatic acknowledgment is not answered.
    pub(crate) fn unacknowledged(&self) -> Option<Sequence> {
        self.requests.values().filter_map(|request| request.delivers).min()
    }

    /// The next frame to go out on a lane, a message's only if that of `sends` may.
    pub(crate) fn next_frame(&mut self, lane: Lane, sends: bool, now: Instant) -> Option<Bytes> {
        let unsent = &mut self.unsent[lane.index()];
        let id = match sends {
            true => unsent.pop_first()?,
            false => self.requests.keys().find_map(|id| unsent.take(id))?,
        };
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

    /// Messages that the server has from this link and has not answered.
    pub(crate) fn sends_on_the_way(&self, lane: Lane) -> usize {
        self.on_the_way[lane.index()]
    }

    /// The `request_id` of the message with this `message_id_local`.
    pub(crate) fn send_named(&self, local_id: &str) -> Option<i64> {
        self.by_local_id.get(&LocalId::parse(local_id).ok()?).copied()
    }

    /// Whether it is a message's.
    pub(crate) fn has_send(&self, request_id: i64) -> bool {
        self.sends.contains_key(&request_id)
    }

    /// A message that is answered.
    pub(crate) fn take_send(&mut self, request_id: i64) -> Option<PendingSend> {
        let send = self.sends.remove(&request_id)?;
        self.by_local_id.remove(&send.local_id);
        self.send_bytes -= send.frame.len();
        if !self.unsent[send.lane.index()].remove(&request_id) {
            self.on_the_way[send.lane.index()] -= 1;
        }
        Some(send)
    }

    /// The request that an answer is about; it is answered with this.
    pub(crate) fn take_request(&mut self, request_id: i64) -> Option<(PendingRequest, Instant)> {
        // An answer to what was not sent on this link is none.
        let sent = self.requests.get(&request_id)?.sent?;
        let request = self.requests.remove(&request_id)?;
        self.unsent[request.lane.index()].remove(&request_id);
        Some((request, sent))
    }

    /// A frame of a list that goes on in the next. One that goes on for too long is none: its waiter is told.
    pub(crate) fn part(&mut self, request_id: i64, entries: Vec<Subscriber>) {
        let Some(request) = self.requests.get_mut(&request_id).filter(|request| request.sent.is_some()) else { return };
        if request.parts.len() + entries.len() <= LIST_ENTRIES_MAX {
            request.parts.extend(entries);
        } else if let Some((request, _)) = self.take_request(request_id) {
            answer(request.reply, Err(RequestError::Unexpected));
        }
    }

    /// Whether an error is about a request that outlives a put-off.
    pub(crate) fn is_lasting(&self, request_id: i64) -> bool {
        self.requests.get(&request_id).is_some_and(|request| request.lasting)
    }

    /// The server asks for it again later. Its lane, and how often that happened before.
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

    /// The link is gone. What makes no sense later is answered so; the rest goes out again, in order, on the next one.
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
            request.parts.clear();
            self.unsent[request.lane.index()].insert(*id);
        }
        self.expiry = None;
    }

    /// Nobody shall wait any longer. Messages keep their place.
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

    /// Tells those who wait for answers that will not be read, control's aside. Messages keep their place.
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

    /// Tells the waiters of requests that the server owes for too long. The device's own acknowledgments go out again, as
    /// nobody else would repeat them.
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

    /// Whether the server owes an answer to something that was sent on this link.
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
        let (id, frame) = self.enter(lane, payload);
        let (delivers, up_to) = delivers.unzip();
        let (up_to, parts) = (up_to.flatten(), Vec::new());
        let request = PendingRequest { reply, lasting, up_to, delivers, parts, sent: None, frame, lane, put_off: 0 };
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

/// Tells a waiter, if there is one that still listens. Whether there was.
pub(crate) fn answer<T>(reply: Option<oneshot::Sender<T>>, value: T) -> bool {
    reply.is_some_and(|reply| reply.send(value).is_ok())
}
