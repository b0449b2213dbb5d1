//! What truly happened: every entry of every log, recorded as soon as it is durable, whatever is trimmed later.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::store::{AckTarget, Acknowledged, Content, EntryBody, Kv, LogEntry, Memory, Message, read_log};
use crate::wire::proto::chat_message::Payload as Body;
use crate::wire::proto::{AcknowledgmentResponse, ChatMessage, VersionUpdate};
use crate::wire::{DeviceId, Eid, Sequence};

use super::Violation;

#[derive(Default)]
pub(super) struct Chronicle {
    pub(super) logs: BTreeMap<Eid, BTreeMap<u64, Arc<LogEntry>>>,
    /// Messages that are in their recipient's log, by the text of their id.
    pub(super) released: BTreeMap<String, Arc<Message>>,
}

impl Chronicle {
    pub(super) fn append(&mut self, user: &Eid, entry: &Arc<LogEntry>) -> Result<(), Violation> {
        let log = self.logs.entry(user.clone()).or_default();
        let (sequence, head) = (entry.sequence.get(), log.last_key_value().map_or(0, |(head, _)| *head));
        if sequence <= head {
            return Err(format!("{user}: sequence {sequence} was used before, the log had come to {head}"));
        }
        if let EntryBody::Received(message) = &entry.body
            && self.released.insert(message.id.to_string(), message.clone()).is_some()
        {
            return Err(format!("{user}: {} is in the recipient's log twice", message.id));
        }
        log.insert(sequence, entry.clone());
        Ok(())
    }

    /// After a restart: records what was durable although the hub was not told of it.
    pub(super) fn catch_up(&mut self, memory: &Memory, users: &[Eid]) -> Result<(), Violation> {
        let view = memory.view();
        for user in users {
            let head = self.logs.get(user).and_then(|log| log.last_key_value()).map_or(0, |(head, _)| *head);
            for entry in
                read_log(&*view, user, Sequence::from(head), usize::MAX, usize::MAX).map_err(|e| e.to_string())?
            {
                self.append(user, &entry)?;
            }
        }
        Ok(())
    }
}

/// What a device should see of an entry, as text: the table at [`EntryBody`], written a second time.
pub(super) fn shown(entry: &LogEntry, device: &DeviceId) -> Option<String> {
    let own = entry.origin.as_ref() == Some(device);
    match (&entry.body, own) {
        (EntryBody::Received(message), _) => Some(copy(message, "receiver", 1)),
        (EntryBody::Accepted(message) | EntryBody::Sent(message), true) => Some(update(message)),
        (EntryBody::Copy(message) | EntryBody::Sent(message), false) => Some(copy(message, "sender", 4)),
        (EntryBody::Acknowledged(state), false) => Some(acknowledged(state)),
        _ => None,
    }
}

fn copy(m: &Message, author: &str, state: i32) -> String {
    let Content::Text(text) = &m.content else { panic!("nobody sends media") };
    let (head, len) = (head(text), text.len());
    format!("{} {}>{} v{} {} {author} {state} {head} {len}", m.id, m.sender, m.recipient, m.version, m.local_id)
}

pub(super) fn seen_copy(m: &ChatMessage) -> String {
    let Some(Body::Text(text)) = &m.payload else { return "no text".into() };
    let (from, to) = (eid(m.from.as_ref()), m.to.iter().map(|to| eid(Some(to))).collect::<String>());
    let (head, len) = (head(text), text.len());
    let (id, local) = (&m.message_id, &m.message_id_local);
    format!("{id} {from}>{to} v{} {local} {} {} {head} {len}", m.version, m.author, m.acknowledgment)
}

/// The first bytes of a text, in which texts differ.
fn head(text: &str) -> &str {
    &text[..text.len().min(8)]
}

fn update(m: &Message) -> String {
    format!("update {} {} v{} {}", m.id, m.local_id, m.version, m.chat)
}

pub(super) fn seen_update(u: &VersionUpdate) -> String {
    format!("update {} {} v{} {}", u.message_id, u.message_id_local, u.version, u.chat_id)
}

fn acknowledged(a: &Acknowledged) -> String {
    let (id, up_to) = match &a.target {
        AckTarget::Message(id) => (id.to_string(), 0),
        AckTarget::UpTo(_, version) => (String::new(), version.get()),
    };
    format!("ack {} by {} of {} at {} {id}/{up_to} {}", a.status.code(), a.reader, a.sender, a.at, a.chat)
}

pub(super) fn seen_acknowledged(a: &AcknowledgmentResponse) -> String {
    let (from, to) = (eid(a.from.as_ref()), eid(a.to.as_ref()));
    let (status, at, up_to) = (a.status, a.timestamp, a.up_to_version);
    format!("ack {status} by {from} of {to} at {at} {}/{up_to} {}", a.message_id, a.chat_id)
}

fn eid(identity: Option<&crate::wire::Identity>) -> &str {
    identity.map_or("nobody", |identity| &identity.eid)
}

/// An entry in full as text, to compare what is stored with what was recorded.
pub(super) fn told(entry: &LogEntry) -> String {
    let origin = entry.origin.as_ref().map_or("none", |device| device.as_str());
    let body = match &entry.body {
        EntryBody::Received(m) => format!("received {}", copy(m, "", 0)),
        EntryBody::Accepted(m) => format!("accepted {}", copy(m, "", 0)),
        EntryBody::Copy(m) => format!("copy {}", copy(m, "", 0)),
        EntryBody::Sent(m) => format!("sent {}", copy(m, "", 0)),
        EntryBody::Acknowledged(state) => acknowledged(state),
    };
    format!("{} {body} {origin}", entry.sequence)
}
