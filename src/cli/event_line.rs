//! One line per event: a JSON object for programs, or words for people.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::client::{
    Accepted, AckTarget, Acknowledged, CloseReason, Content, Event, Media, Message, NotSent, Refusal, Refused, Session,
};
use crate::wire::proto::AwarenessNotification;
use crate::wire::{Author, AwarenessStatus, Sequence};

/// An event and the time at which it came.
pub(super) struct Line<'a> {
    pub(super) event: &'a Event,
    /// When the event came, in Unix milliseconds.
    pub(super) at: i64,
    /// The log's head when the session began. Older messages waited for this device; newer ones were delivered live.
    pub(super) head: Sequence,
}

impl Line<'_> {
    /// The event as one JSON object, without a line break.
    pub(super) fn json(&self) -> String {
        let (name, mut fields) = match self.event {
            Event::Connected(session) => ("connected", connected(session)),
            Event::Disconnected(reason) => ("disconnected", disconnected(reason)),
            Event::Message(message) => ("message", self.message(message)),
            Event::Accepted(accepted) => ("accepted", self::accepted(accepted)),
            Event::Acknowledged(receipt) => ("acknowledged", acknowledged(receipt)),
            Event::Refused(refused) => ("refused", self::refused(refused)),
            Event::NotSent(NotSent { local_id, error }) => {
                ("not_sent", json!({ "message_id_local": local_id.as_str(), "reason": error.to_string() }))
            }
            Event::Presence(presence) => ("presence", self::presence(presence)),
        };
        let mut object = Map::new();
        object.insert("event".to_owned(), name.into());
        object.insert("at".to_owned(), self.at.into());
        if let Value::Object(fields) = &mut fields {
            object.append(fields);
        }
        // JSON itself escapes only the older control characters, and a terminal obeys the others, too.
        escaped(&Value::Object(object).to_string())
    }

    /// The event in words.
    pub(super) fn words(&self) -> String {
        let (what, rest) = match self.event {
            Event::Connected(session) => {
                let ms = ms(session.connected_in);
                let log = format!("log from #{} to #{}", session.resume_from.next(), session.log_head);
                let log = if session.resume_from < session.log_head { log } else { "nothing new".to_owned() };
                ("connected", format!("to {} in {ms} ms, session {}, {log}", session.server, session.session_id))
            }
            Event::Disconnected(reason) => ("disconnected", reason.to_string()),
            Event::Message(message) => ("message", self.message_words(message)),
            Event::Accepted(accepted) => {
                let Accepted { sequence, version, local_id, .. } = accepted;
                ("accepted", format!("#{sequence} v{version} {local_id}"))
            }
            Event::Acknowledged(receipt) => {
                let target = match receipt.target {
                    AckTarget::Message(id) => id.to_string(),
                    AckTarget::UpTo(_, version) => format!("everything up to v{version}"),
                };
                ("acknowledged", format!("#{} {} by {}: {target}", receipt.sequence, receipt.status.name(), receipt.by))
            }
            Event::Refused(refused) => ("refused", refused.refusal.to_string()),
            Event::NotSent(NotSent { local_id, error }) => ("not sent", format!("{local_id}: {error}")),
            Event::Presence(presence) => ("presence", format!("{} is {}", who(presence), status(presence))),
        };
        format!("{} {what:<12} {rest}", clock(self.at, true))
    }

    fn message_words(&self, message: &Message) -> String {
        let Message { sequence, version, from, to, .. } = message;
        let other = if message.author == Author::Receiver { format!("from {from}") } else { format!("to {to}") };
        let says = match &message.content {
            Content::Text(text) => format!("{text:?}"),
            Content::Media(media) => visible(&media_words(media)),
        };
        let took = self.at.saturating_sub(message.server_received_at);
        let took = match self.is_live(message) {
            true => format!("{took} ms from the server, {} ms in all", self.at.saturating_sub(message.created_at)),
            false => format!("waited {:.1} s", took as f64 / 1e3),
        };
        format!("#{sequence} v{version} {other}: {says} ({took})")
    }

    fn message(&self, message: &Message) -> Value {
        let mut fields = json!({
            "sequence": message.sequence.get(),
            "version": message.version.get(),
            "message_id": message.message_id.to_string(),
            "message_id_local": message.local_id.as_ref().map(ToString::to_string),
            "chat_id": message.chat_id.to_string(),
            "author": message.author.as_str(),
            "from": message.from.as_str(),
            "from_device": message.from_device.as_ref().map(ToString::to_string),
            "to": message.to.as_str(),
            "acknowledgment": message.acknowledgment.name(),
            "created_at": message.created_at,
            "server_received_at": message.server_received_at,
            // False if the message waited for this device before it connected.
            "live": self.is_live(message),
            "delivery_ms": self.at.saturating_sub(message.server_received_at),
            "end_to_end_ms": self.at.saturating_sub(message.created_at),
        });
        match &message.content {
            Content::Text(text) => fields["text"] = text.as_str().into(),
            Content::Media(media) => {
                fields["media"] = json!({
                    "type": media.kind.name(),
                    "url": media.url,
                    "caption": media.caption,
                    "thumbnail_url": media.thumbnail_url,
                    "size_bytes": media.size_bytes,
                });
            }
        }
        fields
    }

    fn is_live(&self, message: &Message) -> bool {
        message.sequence > self.head
    }
}

/// The text with what is not seen, or changes how the rest is, escaped; quotes stay as they are.
fn visible(text: &str) -> String {
    let shown = |c: char| if matches!(c, '"' | '\'' | '\\') { c.to_string() } else { c.escape_debug().to_string() };
    text.chars().map(shown).collect()
}

/// The text with its control characters as JSON escapes them.
fn escaped(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars().map(|c| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() }).collect()
}

/// For example `[image] caption address`.
pub(super) fn media_words(media: &Media) -> String {
    let Media { kind, url, caption, .. } = media;
    let parts = [format!("[{}]", kind.name()), caption.clone(), url.clone()];
    parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// Milliseconds, with microsecond resolution.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// The local time of day.
pub(super) fn clock(unix_ms: i64, exact: bool) -> String {
    let time = jiff::Timestamp::from_millisecond(unix_ms).unwrap_or_default();
    let local = time.to_zoned(jiff::tz::TimeZone::system());
    local.strftime(if exact { "%H:%M:%S%.3f" } else { "%H:%M" }).to_string()
}

/// The name of a contact's status.
pub(super) fn status(presence: &AwarenessNotification) -> &'static str {
    AwarenessStatus::from_code(presence.status).unwrap_or(AwarenessStatus::Unknown).name()
}

fn who(presence: &AwarenessNotification) -> &str {
    presence.from.as_ref().map_or("", |from| from.eid.as_str())
}

fn connected(session: &Session) -> Value {
    json!({
        "session_id": session.session_id,
        "server": session.server,
        "log_head": session.log_head.get(),
        "resume_from": session.resume_from.get(),
        "gap": session.gap,
        "connected_ms": ms(session.connected_in),
    })
}

fn disconnected(reason: &CloseReason) -> Value {
    let code = match reason {
        CloseReason::Server { code, .. } => Some(code.name()),
        _ => None,
    };
    json!({ "code": code, "reason": reason.to_string() })
}

fn accepted(accepted: &Accepted) -> Value {
    json!({
        "sequence": accepted.sequence.get(),
        "version": accepted.version.get(),
        "message_id": accepted.message_id.to_string(),
        "message_id_local": accepted.local_id.as_str(),
        "chat_id": accepted.chat_id.to_string(),
        "timestamp": accepted.timestamp,
    })
}

fn acknowledged(receipt: &Acknowledged) -> Value {
    let mut fields = json!({
        "sequence": receipt.sequence.get(),
        "by": receipt.by.as_str(),
        "sender": receipt.sender.as_str(),
        "status": receipt.status.name(),
        "timestamp": receipt.timestamp,
    });
    match receipt.target {
        AckTarget::Message(id) => fields["message_id"] = id.to_string().into(),
        AckTarget::UpTo(chat, version) => {
            fields["chat_id"] = chat.to_string().into();
            fields["up_to_version"] = version.get().into();
        }
    }
    fields
}

fn refused(refused: &Refused) -> Value {
    let Refusal { code, message, route, details } = &refused.refusal;
    let local_id = refused.local_id.as_ref().map(ToString::to_string);
    json!({ "message_id_local": local_id, "code": code, "message": message, "route": route, "details": details })
}

fn presence(presence: &AwarenessNotification) -> Value {
    json!({
        "from": who(presence),
        "status": status(presence),
        "last_seen": presence.last_seen,
        "latitude": presence.latitude,
        "longitude": presence.longitude,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{AckStatus, ChatId, Eid, MediaType, MessageId, Version};

    fn message(content: Content, created_at: i64) -> Event {
        let (from, to) = (Eid::parse("mallory@x").unwrap(), Eid::parse("bob@x").unwrap());
        Event::Message(Message {
            sequence: Sequence::from(7),
            chat_id: ChatId::between(&from, &to),
            message_id: MessageId::from_bytes([7; 16]),
            local_id: None,
            version: Version::from(9),
            author: Author::Receiver,
            from,
            from_device: None,
            to,
            content,
            acknowledgment: AckStatus::Sent,
            created_at,
            server_received_at: 1_000,
            received: std::time::Instant::now(),
        })
    }

    #[test]
    fn whatever_somebody_writes_is_one_line_without_control_characters() {
        let evil = "x\n12:00 message #9 from boss@x: \"pay\"\r\u{1b}[2J\u{9b}2J\u{7f}\u{202e}";
        let media = Media {
            kind: MediaType::Image,
            url: "https://x/cat".to_owned(),
            caption: evil.to_owned(),
            thumbnail_url: String::new(),
            size_bytes: 1,
        };
        for content in [Content::Text(evil.to_owned()), Content::Media(media)] {
            // A sender may also claim any time.
            for created_at in [i64::MIN, i64::MAX] {
                let event = message(content.clone(), created_at);
                let line = Line { event: &event, at: 1_005, head: Sequence::ZERO };
                let (words, json) = (line.words(), line.json());
                assert!(!words.contains(|c: char| c.is_control() || c == '\u{202e}'), "{words:?}");
                assert!(!json.contains(char::is_control), "{json:?}");
                let read: Value = serde_json::from_str(&json).unwrap();
                assert!(read["text"] == evil || read["media"]["caption"] == evil, "{json}");
                assert!(words.contains("boss@x") && json.contains("boss@x"), "{words} {json}");
            }
        }
    }
}
