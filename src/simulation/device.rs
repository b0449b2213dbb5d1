//! A model of a client: what a real one remembers, sends and checks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use prost::Message as _;

use crate::limits::FRAME_BYTES_MAX;
use crate::wire::proto::{
    AcknowledgmentRequest, AcknowledgmentResponse, ChatMessage, HistoryPage, HistoryRequest, SessionAccept,
    SessionOpen, SyncAck, TextPayloadRequest, VersionUpdate,
};
use crate::wire::{ChatId, DeviceId, Eid, ErrorCode, Lane, MessageScheme, Payload};

use super::Violation;
use super::chronicle::{seen_acknowledged, seen_copy, seen_update};
use super::server::{LinkId, token};

/// A message in the outbox. It is kept until the end, so that it can be sent again even after its answer.
pub(super) struct Outgoing {
    pub(super) local: String,
    pub(super) to: Eid,
    pub(super) text: String,
    /// So old that the server may have forgotten it: it is not sent again, and no answer is expected.
    pub(super) given_up: bool,
    /// How often it was sent.
    pub(super) sends: usize,
    /// The VersionUpdate that answered it, in words, and its sequence.
    pub(super) answer: Option<(String, i64)>,
}

/// A message that the device knows of.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) chat: String,
    pub(super) version: i64,
    pub(super) mine: bool,
    sequence: i64,
    /// 0, 2 delivered or 3 read.
    pub(super) status: i32,
}

pub(super) struct Device {
    pub(super) user: Eid,
    pub(super) id: DeviceId,
    pub(super) link: Option<LinkId>,
    pub(super) accepted: bool,
    asked: Option<i64>,
    /// Newest sequence processed; an entry that is not above it is a repeat.
    pub(super) highest: i64,
    /// The same as it would survive a restart of the phone. Only this is acknowledged to the server.
    pub(super) saved: i64,
    /// Newest sequence on this connection.
    newest: i64,
    /// Every entry that was seen, by sequence.
    pub(super) seen: BTreeMap<i64, String>,
    /// The server said that the log begins after this sequence.
    pub(super) told_start: i64,
    pub(super) outbox: Vec<Outgoing>,
    /// VersionUpdates to answer.
    pub(super) unanswered: VecDeque<VersionUpdate>,
    pub(super) known: BTreeMap<String, Known>,
    /// What the device was told about its own acknowledgments, which must stay true.
    pub(super) confirmed: Vec<AcknowledgmentResponse>,
    /// The acknowledgments requested in this connection: status by request id.
    acks: BTreeMap<i64, i32>,
    /// The history page that it waits for, and what it knew when it asked.
    pub(super) history: Option<(i64, ChatId, BTreeMap<String, Known>)>,
    /// Local ids that it has reused for other content.
    misused: BTreeSet<String>,
    requests: i64,
}

/// What a frame from the server leads to.
pub(super) enum Effect {
    Nothing,
    /// A page, for the world to compare with what happened.
    Page(HistoryPage),
    /// The server's log begins later than the device asked for.
    Starts(i64),
    Failed,
}

impl Device {
    pub(super) fn new(user: Eid, id: DeviceId) -> Device {
        Device {
            user,
            id,
            link: None,
            accepted: false,
            asked: None,
            highest: 0,
            saved: 0,
            newest: 0,
            seen: BTreeMap::new(),
            told_start: 0,
            outbox: Vec::new(),
            unanswered: VecDeque::new(),
            known: BTreeMap::new(),
            confirmed: Vec::new(),
            acks: BTreeMap::new(),
            history: None,
            misused: BTreeSet::new(),
            requests: 0,
        }
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.user, self.id)
    }

    pub(super) fn request(&mut self) -> i64 {
        self.requests += 1;
        self.requests
    }

    // --- What it sends ---

    pub(super) fn open(&mut self, link: LinkId, resume: bool, pipelined: bool) -> Payload {
        (self.link, self.accepted, self.newest, self.history) = (Some(link), false, 0, None);
        self.unanswered.clear();
        self.acks.clear();
        self.asked = resume.then_some(self.highest);
        Payload::SessionOpen(SessionOpen {
            identity: Some(self.user.device_identity(&self.id)),
            token: token(&self.user, &self.id),
            resume_from: self.asked,
            client: "simulated".into(),
            pipelined,
        })
    }

    pub(super) fn offline(&mut self) {
        (self.link, self.accepted) = (None, false);
    }

    /// The phone restarts and forgets what was not saved. The outbox is saved as it is written.
    pub(super) fn forget_unsaved(&mut self) {
        self.highest = self.saved;
        self.seen.split_off(&(self.saved + 1));
        self.known.retain(|_, known| known.sequence <= self.saved);
    }

    pub(super) fn text(&mut self, index: usize, other_content: bool) -> Payload {
        let out = &mut self.outbox[index];
        out.sends += 1;
        Payload::TextPayloadRequest(TextPayloadRequest {
            from: Some(self.user.identity()),
            to: vec![out.to.identity()],
            content: if other_content { format!("other {}", out.text) } else { out.text.clone() },
            message_id_local: out.local.clone(),
            ..TextPayloadRequest::default()
        })
    }

    /// Reuses a name for other content: only once the message is answered, so that the refusal is certain.
    pub(super) fn misuse(&mut self, index: usize) -> Payload {
        self.misused.insert(self.outbox[index].local.clone());
        self.text(index, true)
    }

    pub(super) fn answer(update: VersionUpdate) -> Payload {
        Payload::VersionUpdate(VersionUpdate { r#type: 2, status: 2, ..update })
    }

    /// With `bulk`, acknowledges all messages up to its version.
    pub(super) fn acknowledge(&mut self, id: &str, status: i32, bulk: bool, at: i64) -> (Payload, i64) {
        self.saved = self.highest;
        let request = self.request();
        self.acks.insert(request, status);
        let known = &self.known[id];
        let mut payload = AcknowledgmentRequest {
            from: Some(self.user.identity()),
            to: Some(self.user.identity()),
            status,
            timestamp: at,
            ..AcknowledgmentRequest::default()
        };
        if bulk {
            (payload.chat_id, payload.up_to_version) = (known.chat.clone(), known.version);
        } else {
            payload.message_id = id.to_owned();
        }
        (Payload::AcknowledgmentRequest(payload), request)
    }

    pub(super) fn sync(&mut self) -> Payload {
        self.saved = self.highest;
        Payload::SyncAck(SyncAck { sequence: self.saved })
    }

    pub(super) fn ask_history(&mut self, peer: &Eid, before: i64, after: i64, limit: i32) -> (Payload, i64) {
        let request = self.request();
        let chat = ChatId::between(&self.user, peer);
        self.history = Some((request, chat, self.known.clone()));
        let (before_version, after_version) = (before, after);
        let asked = HistoryRequest { peer: Some(peer.identity()), before_version, after_version, limit };
        (Payload::HistoryRequest(asked), request)
    }

    // --- What it gets ---

    pub(super) fn frame(&mut self, lane: Lane, frame: &Bytes) -> Result<Effect, Violation> {
        let scheme = MessageScheme::decode_length_delimited(&frame[..]).map_err(|error| error.to_string())?;
        if scheme.encoded_len() > FRAME_BYTES_MAX {
            return Err(format!("{} got a frame of {} bytes on {lane:?}", self.name(), scheme.encoded_len()));
        }
        let (sequence, request) = (scheme.sequence, scheme.request_id);
        match scheme.payload {
            Some(Payload::SessionAccept(accept)) => self.signed_in(&accept),
            Some(Payload::VersionUpdate(update)) => self.numbered(update, sequence),
            Some(Payload::ChatMessage(message)) => self.message(&message, sequence),
            Some(Payload::AcknowledgmentResponse(state)) if sequence == 0 => self.confirmed(state, request),
            Some(Payload::AcknowledgmentResponse(state)) => {
                if self.entry(sequence, seen_acknowledged(&state))? {
                    self.learn(&state);
                }
                Ok(Effect::Nothing)
            }
            Some(Payload::HistoryPage(page)) => self.page(page, request),
            Some(Payload::PingpongMessage(_)) => Ok(Effect::Nothing),
            Some(Payload::ErrorMessage(error)) => {
                let misused = self.misused.contains(&error.details);
                match ErrorCode::from_code(error.code) {
                    Some(ErrorCode::Conflict) if misused => Ok(Effect::Nothing),
                    // The disk failed for this message, or for an earlier one that must be sent again first.
                    Some(ErrorCode::Unavailable | ErrorCode::TooFast) => Ok(Effect::Failed),
                    // The SessionOpen arrived too late.
                    Some(ErrorCode::Unauthenticated) if !self.accepted => Ok(Effect::Failed),
                    Some(ErrorCode::NotFound) if self.acks.contains_key(&request) => Ok(Effect::Failed),
                    _ => Err(format!("{} got {error:?}", self.name())),
                }
            }
            other => Err(format!("{} got {other:?}", self.name())),
        }
    }

    fn signed_in(&mut self, accept: &SessionAccept) -> Result<Effect, Violation> {
        self.accepted = true;
        let start = accept.resume_from;
        if accept.log_head < start || self.asked.is_some_and(|asked| start < asked) {
            return Err(format!("{} asked for {:?}, got {accept:?}", self.name(), self.asked));
        }
        // Without resume_from the stored cursor decides, which is never past what the device has saved.
        Ok(if start > self.asked.unwrap_or(self.saved) { Effect::Starts(start) } else { Effect::Nothing })
    }

    /// Whether the entry is new. A repeated entry must be the same as before.
    fn entry(&mut self, sequence: i64, shown: String) -> Result<bool, Violation> {
        if sequence <= self.newest {
            return Err(format!("{} got entry {sequence} after {}: {shown}", self.name(), self.newest));
        }
        self.newest = sequence;
        if sequence > self.highest {
            self.highest = sequence;
            self.seen.insert(sequence, shown);
            return Ok(true);
        }
        match self.seen.get(&sequence) {
            Some(before) if *before == shown => Ok(false),
            before => Err(format!("{}: entry {sequence} was {before:?} and is {shown}", self.name())),
        }
    }

    fn numbered(&mut self, update: VersionUpdate, sequence: i64) -> Result<Effect, Violation> {
        let words = seen_update(&update);
        let name = self.name();
        let Some(index) = self.outbox.iter().position(|out| out.local == update.message_id_local) else {
            return Err(format!("{name} never sent what {words} numbers"));
        };
        // The answer to a repeated request repeats an entry that was already seen.
        let again = sequence <= self.highest && self.outbox[index].sends > 1;
        if !again {
            self.entry(sequence, words.clone())?;
        }
        let out = &mut self.outbox[index];
        match &out.answer {
            Some(before) if *before != (words.clone(), sequence) => {
                return Err(format!("{name}: {before:?} before, now {words} at {sequence}"));
            }
            _ => out.answer = Some((words, sequence)),
        }
        let known = Known { chat: update.chat_id.clone(), version: update.version, mine: true, sequence, status: 0 };
        self.known.entry(update.message_id.clone()).or_insert(known);
        self.unanswered.push_back(update);
        Ok(Effect::Nothing)
    }

    fn message(&mut self, message: &ChatMessage, sequence: i64) -> Result<Effect, Violation> {
        let (from, to) = (message.from.as_ref(), message.to.first());
        let mine = from.is_some_and(|from| from.eid == self.user.as_str());
        if !mine && to.is_none_or(|to| to.eid != self.user.as_str()) {
            return Err(format!("{} got somebody else's {message:?}", self.name()));
        }
        if self.entry(sequence, seen_copy(message))? {
            let known = Known { chat: message.chat_id.clone(), version: message.version, mine, sequence, status: 0 };
            self.known.entry(message.message_id.clone()).or_insert(known);
        }
        Ok(Effect::Nothing)
    }

    fn confirmed(&mut self, state: AcknowledgmentResponse, request: i64) -> Result<Effect, Violation> {
        if self.acks.remove(&request).is_none_or(|asked| state.status < asked) {
            return Err(format!("{} did not ask for {state:?}", self.name()));
        }
        self.learn(&state);
        self.confirmed.push(state);
        Ok(Effect::Nothing)
    }

    fn learn(&mut self, state: &AcknowledgmentResponse) {
        let mine = state.from.as_ref().is_some_and(|reader| reader.eid != self.user.as_str());
        if let Some(known) = self.known.get_mut(&state.message_id) {
            known.status = known.status.max(state.status);
        }
        if state.message_id.is_empty() {
            let covered = |known: &&mut Known| {
                known.chat == state.chat_id && known.mine == mine && known.version <= state.up_to_version
            };
            self.known.values_mut().filter(covered).for_each(|known| known.status = known.status.max(state.status));
        }
    }

    fn page(&mut self, page: HistoryPage, request: i64) -> Result<Effect, Violation> {
        let name = self.name();
        let Some((_, chat, knew)) = self.history.take_if(|(asked, ..)| *asked == request) else {
            return Err(format!("{name} did not ask for page {request}"));
        };
        if page.chat_id != chat.to_string() || page.messages.iter().any(|message| message.chat_id != page.chat_id) {
            return Err(format!("{name} got another chat's page"));
        }
        if !page.messages.is_sorted_by(|one, other| one.version < other.version) {
            return Err(format!("{name} got a page out of order"));
        }
        for message in &page.messages {
            let status = if matches!(message.acknowledgment, 2 | 3) { message.acknowledgment } else { 0 };
            if knew.get(&message.message_id).is_some_and(|known| known.status > status) {
                return Err(format!("{name} knew more of {} than its history: {status}", message.message_id));
            }
        }
        Ok(Effect::Page(page))
    }
}
