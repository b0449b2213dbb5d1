//! What an application hears of: messages, receipts, presence and the connection, parsed from the wire.

use std::time::Instant;

use super::core::Passage;
use super::error::{CloseReason, Refusal};
use super::transport::Transport;
use crate::wire::proto::{
    AcknowledgmentResponse, AwarenessNotification, ChatMessage, SessionAccept, VersionUpdate, chat_message,
};
use crate::wire::{AckStatus, Author, ChatId, DeviceId, Eid, LocalId, MediaType, MessageId, Sequence, Version};

/// One thing that happened, in the order in which it did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A session was accepted.
    Connected(Session),
    /// The connection is gone; the device comes back by itself unless its state is `Closed`.
    Disconnected(CloseReason),
    /// A message of a peer, or of another device of the same user. Each comes once.
    Message(Message),
    /// The server has numbered a message of this device that nobody waits for: sent before a restart, or its
    /// [`super::Ticket`] was dropped.
    Accepted(Accepted),
    /// Somebody has received or read.
    Acknowledged(Acknowledged),
    /// The server refused something that nobody waits for.
    Refused(Refused),
    /// The presence of a contact, as on the wire (5.2).
    Presence(AwarenessNotification),
}

/// An accepted session (profile 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The server's name for it.
    pub session_id: String,
    /// The server's own name.
    pub server: String,
    /// The server's clock, Unix milliseconds.
    pub server_time: i64,
    /// Newest entry of the user's log.
    pub log_head: Sequence,
    /// The tail starts after it.
    pub resume_from: Sequence,
    /// Entries between what this device asked for and `resume_from` are gone: they were older than the server keeps, or
    /// the log is another one. `HistoryRequest` may still have their messages.
    pub gap: bool,
    /// When the token runs out, Unix milliseconds; 0 if the server did not say.
    pub token_expires_at: i64,
    /// What carries it.
    pub transport: Transport,
    /// `SessionOpen` and what waited went out in the connection's first flight (0-RTT).
    pub early: bool,
    /// From the first packet to the acceptance: what a person waits for.
    pub connected_in: std::time::Duration,
}

/// What a message carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// 1 byte to 16 KiB.
    Text(String),
    /// Metadata of a media message; its bytes are elsewhere.
    Media(Media),
}

/// Metadata of a media message (5.9.1, profile 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media {
    /// Picture, sound, film or file.
    pub kind: MediaType,
    /// Outgoing: an https address, or an id that the server resolves. Incoming: the address.
    pub url: String,
    /// May be empty.
    pub caption: String,
    /// May be empty.
    pub thumbnail_url: String,
    /// Of the media file.
    pub size_bytes: i64,
}

/// A message as this device's user sees it (5.9.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Position in the user's log: ascending, each once.
    pub sequence: Sequence,
    /// Whose copy it is: `Receiver`, or `Sender` when another device of the same user sent it.
    pub author: Author,
    /// The server's name for it.
    pub message_id: MessageId,
    /// The sender's name for it, where the server passes it on.
    pub local_id: Option<LocalId>,
    /// The conversation.
    pub chat_id: ChatId,
    /// Position in it.
    pub version: Version,
    /// Who sent it.
    pub from: Eid,
    /// On which device, where the server says.
    pub from_device: Option<DeviceId>,
    /// Who receives it.
    pub to: Eid,
    /// What it says.
    pub content: Content,
    /// How far it got.
    pub acknowledgment: AckStatus,
    /// The sender's clock, Unix milliseconds.
    pub created_at: i64,
    /// The server's clock, Unix milliseconds.
    pub server_received_at: i64,
    /// When it came here.
    pub received: Instant,
}

impl Message {
    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            Content::Media(_) => None,
        }
    }
}

/// The server's numbering of a message of this device (5.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Position in the user's log.
    pub sequence: Sequence,
    /// The device's own name for the message.
    pub local_id: LocalId,
    /// The server's name for it.
    pub message_id: MessageId,
    /// The conversation.
    pub chat_id: ChatId,
    /// Position in it.
    pub version: Version,
    /// The server's clock, Unix milliseconds.
    pub timestamp: i64,
}

/// A receipt (5.9.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Position in the user's log; zero for a direct reply.
    pub sequence: Sequence,
    /// Who acknowledged.
    pub by: Eid,
    /// Who had sent the message.
    pub sender: Eid,
    /// Of which messages.
    pub target: AckTarget,
    /// The state that is now stored.
    pub status: AckStatus,
    /// When it was reached, Unix milliseconds.
    pub timestamp: i64,
}

/// Which messages an acknowledgment is about (profile 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AckTarget {
    /// One.
    Message(MessageId),
    /// Every message of the chat up to and with this version.
    UpTo(ChatId, Version),
}

/// A refusal that nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The message that it is about, if it is about one.
    pub local_id: Option<LocalId>,
    /// What the server says.
    pub refusal: Refusal,
}

impl Message {
    /// From the wire; `None` if it is not a message of the protocol.
    pub(crate) fn parse(message: ChatMessage, sequence: Sequence, received: Instant) -> Option<Message> {
        let author = [Author::Sender, Author::Receiver].into_iter().find(|author| author.as_str() == message.author)?;
        let content = match message.payload? {
            chat_message::Payload::Text(text) => Content::Text(text),
            chat_message::Payload::MediaUrl(url) => {
                let media = message.media.unwrap_or_default();
                Content::Media(Media {
                    kind: MediaType::from_code(media.r#type).unwrap_or(MediaType::File),
                    url,
                    caption: media.caption,
                    thumbnail_url: media.thumbnail_url,
                    size_bytes: media.size_bytes,
                })
            }
        };
        Some(Message {
            sequence,
            author,
            message_id: MessageId::parse(&message.message_id).ok()?,
            local_id: LocalId::parse(&message.message_id_local).ok(),
            chat_id: ChatId::parse(&message.chat_id).ok()?,
            version: Version::from_wire(message.version),
            from: Eid::from_identity(message.from.as_ref()).ok()?,
            from_device: message.from.and_then(|from| DeviceId::parse(&from.connection_resource_id).ok()),
            to: Eid::from_identity(message.to.first()).ok()?,
            content,
            acknowledgment: AckStatus::from_code(message.acknowledgment)?,
            created_at: message.created_at,
            server_received_at: message.server_received_at,
            received,
        })
    }
}

impl Accepted {
    /// From the wire; `None` if it is not a numbering.
    pub(crate) fn parse(update: &VersionUpdate, sequence: Sequence) -> Option<Accepted> {
        Some(Accepted {
            sequence,
            local_id: LocalId::parse(&update.message_id_local).ok()?,
            message_id: MessageId::parse(&update.message_id).ok()?,
            chat_id: ChatId::parse(&update.chat_id).ok()?,
            version: Version::from_wire(update.version),
            timestamp: update.timestamp,
        })
    }
}

impl Acknowledged {
    /// From the wire; `None` if it is not a receipt.
    pub(crate) fn parse(receipt: &AcknowledgmentResponse, sequence: Sequence) -> Option<Acknowledged> {
        let target = if receipt.message_id.is_empty() {
            AckTarget::UpTo(ChatId::parse(&receipt.chat_id).ok()?, Version::from_wire(receipt.up_to_version))
        } else {
            AckTarget::Message(MessageId::parse(&receipt.message_id).ok()?)
        };
        Some(Acknowledged {
            sequence,
            by: Eid::from_identity(receipt.from.as_ref()).ok()?,
            sender: Eid::from_identity(receipt.to.as_ref()).ok()?,
            target,
            status: AckStatus::from_code(receipt.status)?,
            timestamp: receipt.timestamp,
        })
    }
}

impl Session {
    /// From the wire.
    pub(crate) fn parse(
        accept: SessionAccept,
        gap: bool,
        passage: Passage,
        connected_in: std::time::Duration,
    ) -> Session {
        Session {
            session_id: accept.session_id,
            server: accept.server,
            server_time: accept.server_time,
            log_head: Sequence::from_wire(accept.log_head),
            resume_from: Sequence::from_wire(accept.resume_from),
            gap,
            transport: passage.transport,
            early: passage.early,
            token_expires_at: accept.token_expires_at,
            connected_in,
        }
    }
}
