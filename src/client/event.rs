//! What an application receives: messages, receipts, presence and changes of the connection, parsed from the wire.

use std::time::Instant;

use super::core::Passage;
use super::error::{CloseReason, Refusal, SendError};
use super::requests::Sent;
use super::transport::Transport;
use crate::wire::proto::{
    AcknowledgmentResponse, AwarenessNotification, ChatMessage, SessionAccept, VersionUpdate, chat_message,
};
use crate::wire::{AckStatus, Author, ChatId, DeviceId, Eid, LocalId, MediaType, MessageId, Sequence, Version};

/// Something that happened. Events come in the order in which it happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A session was accepted.
    Connected(Session),
    /// The session ended. The device reconnects by itself unless its state is [`Closed`](super::State::Closed).
    Disconnected(CloseReason),
    /// A message from a peer, or a copy of one that this user sent from another device. Each comes once.
    Message(Message),
    /// The server has accepted a message of this device for which no call waits any more: one that was sent before a
    /// restart, whose [`super::Ticket`] or future was dropped, or whose call ended with an error that leaves the
    /// message in the outbox.
    Accepted(Accepted),
    /// A message was delivered or read: one of this user's by its recipient, or one that this user acknowledged on
    /// another device.
    Acknowledged(Acknowledged),
    /// The server refused something for which no call waits.
    Refused(Refused),
    /// A message was not sent, and no call waits for it any more: its [`super::Ticket`] or future was dropped, and the
    /// outbox failed or had no room, say. The message is not in the outbox and is not sent later either.
    NotSent(NotSent),
    /// The presence of a contact, or a change made on another device of this user, as on the wire (BIMip-Foundation
    /// 5.2; protocol.md §12).
    Presence(AwarenessNotification),
}

/// An accepted session (protocol.md §5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The server's id of the session; it also appears in the server's log.
    pub session_id: String,
    /// The server's name.
    pub server: String,
    /// The server's clock at acceptance, in Unix milliseconds.
    pub server_time: i64,
    /// Newest entry of the user's log; zero if the log is empty.
    pub log_head: Sequence,
    /// Entries after this one are delivered.
    pub resume_from: Sequence,
    /// Entries between the position that this device asked for and `resume_from` are missing, as they were older than
    /// what the server keeps; [`super::Device::history`] may still have the messages. Or the server lost its data, or
    /// was restored from a backup: then sequences and versions are given out again, a position that the application keeps
    /// itself means nothing any more, and messages may come a second time, under the same `message_id`.
    pub gap: bool,
    /// When the token expires, in Unix milliseconds; 0 if the server did not say. The device renews it before that.
    pub token_expires_at: i64,
    /// The transport of the connection.
    pub transport: Transport,
    /// Whether `SessionOpen`, and the messages that waited, were sent in the connection's first flight (0-RTT).
    pub early: bool,
    /// Time from the start of the attempt, when the token was at hand, to the acceptance. Includes the look-up of the
    /// name.
    pub connected_in: std::time::Duration,
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A text of 1 byte to 16 KiB of UTF-8.
    Text(String),
    /// Metadata of a media message. The file itself is stored elsewhere.
    Media(Media),
}

/// Metadata of a media message (5.9.1; protocol.md §7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media {
    /// The kind of file.
    pub kind: MediaType,
    /// Outgoing: an `https` address of at most 2,048 bytes, or an id from which the server builds the address.
    /// Incoming: the address.
    pub url: String,
    /// At most 1 KiB of UTF-8; may be empty.
    pub caption: String,
    /// An `https` address of at most 2,048 bytes; may be empty.
    pub thumbnail_url: String,
    /// Size of the media file in bytes: 0 to 4 GiB.
    pub size_bytes: i64,
}

/// A message as this device's user sees it (5.9.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Position in the user's log. Sequences ascend, and each comes once, unless the server starts another log (see
    /// [`Session::gap`]). Zero in a [`super::Page`] of history.
    pub sequence: Sequence,
    /// Whose copy this is: `Receiver`, or `Sender` if another device of this user sent the message.
    pub author: Author,
    /// The server's id of the message.
    pub message_id: MessageId,
    /// The sender's id of the message, if the server passes it on.
    pub local_id: Option<LocalId>,
    /// The chat.
    pub chat_id: ChatId,
    /// Position in the chat.
    pub version: Version,
    /// The sender.
    pub from: Eid,
    /// The sender's device, if the server says it.
    pub from_device: Option<DeviceId>,
    /// The recipient.
    pub to: Eid,
    /// The content.
    pub content: Content,
    /// The state at the time of sending (`Unread` or `Sent`), or the current state in a [`super::Page`] of history.
    pub acknowledgment: AckStatus,
    /// When the sender wrote it, by the sender's clock, in Unix milliseconds.
    pub created_at: i64,
    /// When the server accepted it, in Unix milliseconds.
    pub server_received_at: i64,
    /// When this device received it.
    pub received: Instant,
}

impl Event {
    /// What is told of a message whose answer is this error and for which no call waits; nothing if it stays in the outbox.
    pub(crate) fn of_unsent(local_id: LocalId, error: SendError) -> Option<Event> {
        match error {
            SendError::Unread | SendError::Unanswered(_) => None,
            SendError::Refused(refusal) => Some(Event::Refused(Refused { local_id: Some(local_id), refusal })),
            error => Some(Event::NotSent(NotSent { local_id, error })),
        }
    }
}

impl Message {
    /// The text; `None` for a media message.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            Content::Media(_) => None,
        }
    }
}

/// The server's acceptance of a message of this device (5.10; protocol.md §7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Position in the user's log.
    pub sequence: Sequence,
    /// The device's id of the message.
    pub local_id: LocalId,
    /// The server's id of the message.
    pub message_id: MessageId,
    /// The chat.
    pub chat_id: ChatId,
    /// Position in the chat.
    pub version: Version,
    /// When the server accepted it, in Unix milliseconds.
    pub timestamp: i64,
}

impl From<Sent> for Accepted {
    fn from(sent: Sent) -> Accepted {
        let Sent { local_id, message_id, chat_id, version, sequence, timestamp, latency: _ } = sent;
        Accepted { sequence, local_id, message_id, chat_id, version, timestamp }
    }
}

/// A receipt: messages were delivered or read (5.9.3; protocol.md §7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Position in the user's log; zero in a direct reply.
    pub sequence: Sequence,
    /// The user who acknowledged.
    pub by: Eid,
    /// The user who sent the messages.
    pub sender: Eid,
    /// The messages that were acknowledged.
    pub target: AckTarget,
    /// The state that the server now stores.
    pub status: AckStatus,
    /// When that state was reached, in Unix milliseconds.
    pub timestamp: i64,
}

/// Which messages an acknowledgment is about (protocol.md §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AckTarget {
    /// One message.
    Message(MessageId),
    /// Every message of the chat up to and including this version.
    UpTo(ChatId, Version),
}

/// A refusal for which no call waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The message that was refused; `None` if the refusal is not about a message. A message that was refused has left
    /// the outbox.
    pub local_id: Option<LocalId>,
    /// The server's error.
    pub refusal: Refusal,
}

/// A message that was not sent and for which no call waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSent {
    /// The message's local id.
    pub local_id: LocalId,
    /// Why. [`SendError::Duplicate`]: this one was not sent, and the other message with this id still waits.
    pub error: SendError,
}

impl Message {
    /// Parses the wire form; `None` if it is not a valid message.
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
    /// Parses the wire form; `None` if it is not a valid VersionUpdate.
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
    /// Parses the wire form; `None` if it is not a valid receipt.
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
    /// Converts the wire form.
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
