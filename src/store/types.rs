//! The values that go into a store and come out of it, independent of any engine.

use std::time::Instant;

use crate::wire::{AckStatus, ChatId, DeviceId, Eid, LocalId, MediaType, MessageId, Sequence, Version};

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// BIMip-Foundation 5.9.1, `TextPayloadRequest.content`.
    Text(String),
    /// 5.9.1, `MediaPayloadRequest` with its address resolved.
    Media {
        /// 1 image, 2 audio, 3 video, 4 file.
        kind: MediaType,
        /// Absolute https address.
        url: String,
        /// May be empty.
        caption: String,
        /// May be empty.
        thumbnail_url: String,
        /// Size of the media file, not of the metadata.
        size_bytes: i64,
    },
}

impl Content {
    /// Length in bytes of all texts and addresses in it.
    pub fn bytes(&self) -> usize {
        match self {
            Content::Text(text) => text.len(),
            Content::Media { url, caption, thumbnail_url, .. } => url.len() + caption.len() + thumbnail_url.len(),
        }
    }
}

/// A validated request to send a message.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// The sender.
    pub sender: Eid,
    /// The sending device.
    pub device: DeviceId,
    /// The recipient; never the sender.
    pub recipient: Eid,
    /// The sender's `message_id_local`.
    pub local_id: LocalId,
    /// The content.
    pub content: Content,
    /// The sender's clock, Unix milliseconds.
    pub created_at: i64,
    /// The server's clock, Unix milliseconds.
    pub received_at: i64,
    /// The same moment on the monotonic clock, for latency metrics. It is not stored.
    pub received: Instant,
    /// Randomness for the message id.
    pub entropy: [u8; 10],
}

/// An accepted message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Globally unique id.
    pub id: MessageId,
    /// The chat.
    pub chat: ChatId,
    /// Position in the chat.
    pub version: Version,
    /// The sender.
    pub sender: Eid,
    /// The sending device.
    pub device: DeviceId,
    /// The recipient.
    pub recipient: Eid,
    /// The sender's `message_id_local`.
    pub local_id: LocalId,
    /// The content.
    pub content: Content,
    /// The sender's clock, Unix milliseconds.
    pub created_at: i64,
    /// The server's clock, Unix milliseconds.
    pub received_at: i64,
}

/// What an accept call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptOutcome {
    /// Accepted now, and released in the same commit.
    Released,
    /// Accepted now; waits for [`super::Store::release`].
    Waiting,
    /// The message had been accepted before; nothing changed.
    Known,
}

/// The result of an accept call.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The message as stored.
    pub message: std::sync::Arc<Message>,
    /// Sequence of its VersionUpdate in the sender's log.
    pub sequence: Sequence,
    /// What the call did.
    pub outcome: AcceptOutcome,
}

/// Which messages an acknowledgment is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckTarget {
    /// One message.
    Message(MessageId),
    /// All of the peer's messages in the chat up to and including this version.
    UpTo(ChatId, Version),
}

/// A validated acknowledgment.
#[derive(Clone, Debug)]
pub struct Acknowledgment {
    /// The user who acknowledges.
    pub reader: Eid,
    /// The acknowledging device.
    pub device: DeviceId,
    /// The acknowledged messages.
    pub target: AckTarget,
    /// [`AckStatus::Delivered`] or [`AckStatus::Read`].
    pub status: AckStatus,
    /// When, Unix milliseconds by the device's clock.
    pub at: i64,
    /// When the server received it, Unix milliseconds.
    pub received_at: i64,
}

/// The acknowledgment state of a message, or of all messages up to a version, as stored. It is also the body of an
/// entry in both users' logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The user who acknowledged.
    pub reader: Eid,
    /// The sender of the messages.
    pub sender: Eid,
    /// The acknowledged messages.
    pub target: AckTarget,
    /// The chat.
    pub chat: ChatId,
    /// The stored state: at least the requested one.
    pub status: AckStatus,
    /// When that state was reached, Unix milliseconds.
    pub at: i64,
    /// Whether this call changed anything.
    pub changed: bool,
}

/// One entry of a user's log.
#[derive(Debug)]
pub struct LogEntry {
    /// Position in the log.
    pub sequence: Sequence,
    /// The user's device that caused the entry. It sees another form of the entry, or nothing.
    pub origin: Option<DeviceId>,
    /// When the server received the content, Unix milliseconds. The retention uses it as the entry's age, whatever a
    /// device's clock says.
    pub at: i64,
    /// The content.
    pub body: EntryBody,
    /// When this process received the message of a `Received` entry, for latency metrics; `None` if it was read from disk,
    /// and for other entries.
    pub received: Option<Instant>,
    /// When this process committed the entry; `None` if it was read from disk.
    pub committed: Option<Instant>,
    /// The encoded frame, shared by all devices that see the same form of the entry; encoded once.
    pub frame: std::sync::OnceLock<bytes::Bytes>,
}

impl LogEntry {
    /// Bytes of content of the entry's message; zero for an acknowledgment.
    pub fn content_bytes(&self) -> usize {
        match &self.body {
            EntryBody::Received(message)
            | EntryBody::Accepted(message)
            | EntryBody::Copy(message)
            | EntryBody::Sent(message) => message.content.bytes(),
            EntryBody::Acknowledged(_) => 0,
        }
    }
}

/// The kinds of log entry, and what each device sees of one (protocol.md §9):
///
/// | kind | in whose log | its origin device | the user's other devices |
/// |---|---|---|---|
/// | `Received` | recipient | (none) | ChatMessage, author receiver |
/// | `Accepted` | sender | VersionUpdate | nothing |
/// | `Copy` | sender | nothing | ChatMessage, author sender |
/// | `Sent` | sender | VersionUpdate | ChatMessage, author sender |
/// | `Acknowledged` | both | nothing: it had a direct reply | AcknowledgmentResponse |
#[derive(Clone, Debug)]
pub enum EntryBody {
    /// A message for this user was released.
    Received(std::sync::Arc<Message>),
    /// A message of this user was accepted and waits for its release.
    Accepted(std::sync::Arc<Message>),
    /// A message of this user was released.
    Copy(std::sync::Arc<Message>),
    /// A message of this user was accepted and released in one commit.
    Sent(std::sync::Arc<Message>),
    /// An acknowledgment of one or more of a chat's messages.
    Acknowledged(Acknowledged),
}

/// Where a log begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogBounds {
    /// All entries up to and including this one have been trimmed; zero: none.
    pub trimmed: Sequence,
    /// The newest entry; zero: the log is empty.
    pub head: Sequence,
}

/// What is kept of the logs; older entries are trimmed. An entry that shares a row with one to be kept stays, so
/// somewhat more is kept than asked for, never less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Entries older than this are trimmed, Unix milliseconds.
    pub older_than_ms: i64,
    /// Number of the newest entries of each user's log to keep, as far as they are not too old.
    pub entries_max_per_user: u64,
}

/// What a retention pass has deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Number of log entries.
    pub entries: u64,
    /// Number of messages that no log referred to any more.
    pub messages: u64,
    /// Number of logs, messages and revocations that were passed over because they cannot be read.
    pub unreadable: u64,
}

/// A device's cursor, with the bounds of its user's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// All entries up to and including this one are safe on the device; zero: none, as for a new device.
    pub cursor: Sequence,
    /// The bounds of the user's log.
    pub log: LogBounds,
}

/// Selects a page of a chat (protocol.md §10).
#[derive(Clone, Debug)]
pub struct HistoryQuery {
    /// The user who asks.
    pub reader: Eid,
    /// The other party.
    pub peer: Eid,
    /// Only messages with a lower version; `None`: no bound.
    pub before: Option<Version>,
    /// Only messages with a higher version; `None`: no bound. If only `after` is given, the page holds the oldest of
    /// them, otherwise the newest.
    pub after: Option<Version>,
    /// Maximum number of messages.
    pub limit: usize,
    /// No more messages are read once the page holds at least two and more than this many bytes of content.
    pub bytes_max: usize,
}

/// A message with its current acknowledgment, as its reader sees it.
#[derive(Clone, Debug)]
pub struct HistoryMessage {
    /// The message.
    pub message: std::sync::Arc<Message>,
    /// The acknowledgment and its time (Unix milliseconds); `None`: not acknowledged yet.
    pub acknowledged: Option<(AckStatus, i64)>,
}

/// An entry of a user's contact list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// The listed user.
    pub subscriber: Eid,
    /// Whether the user may see the owner's presence; `false` for a user that is only blocked.
    pub subscribed: bool,
    /// The owner's nickname for the user.
    pub nickname: String,
    /// The group in which the owner lists the user.
    pub group: String,
    /// The `subscriber_resource_id` that the owner gave or the server assigned.
    pub resource_id: String,
    /// Whether the user sees the owner's location.
    pub share_location: bool,
    /// Whether the owner has blocked the user.
    pub blocked: bool,
    /// When the subscriber was added, Unix milliseconds; zero if only blocked.
    pub added_at: i64,
}

/// A part of a user's list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContactsPage {
    /// Ordered by eid.
    pub contacts: Vec<Contact>,
    /// Whether there are others behind these.
    pub more: bool,
}

/// What a subscriber may see of an owner who has it in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Whether the location is visible, too.
    pub share_location: bool,
}

/// The relation of another user to an owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relation {
    /// What the other user may see of the owner; `None`: nothing.
    pub access: Option<Access>,
    /// Whether either has blocked the other.
    pub blocked: bool,
}

/// A change that sessions must act on at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The new access of `subscriber` to `owner`.
    Access {
        /// The user who is seen.
        owner: Eid,
        /// The user who sees.
        subscriber: Eid,
        /// `None`: `subscriber` no longer sees anything.
        access: Option<Access>,
    },
    /// The first user has blocked the second. Unlike their access, this tells also of users who list nobody.
    Blocked(Eid, Eid),
    /// Tokens are refused from now on.
    Revoked(Revocation),
    /// A revocation is no longer kept, because another one refuses as much, or no token that it could refuse is valid.
    Lapsed(RevocationTarget),
}

/// What revocations look at in the token of a sign-in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bearer {
    /// The token's fingerprint, as in [`RevocationTarget::Token`].
    pub fingerprint: [u8; 32],
    /// When it was issued, Unix seconds; zero if it does not say so.
    pub issued_at: i64,
}

/// What a revocation refuses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RevocationTarget {
    /// One token of a user, by its fingerprint.
    Token(Eid, [u8; 32]),
    /// Every token used on one device that was issued up to a given second.
    Device(Eid, DeviceId),
    /// Every token of a user that was issued up to a given second.
    User(Eid),
}

impl RevocationTarget {
    /// The user whose tokens it refuses.
    pub fn user(&self) -> &Eid {
        let (RevocationTarget::Token(user, _) | RevocationTarget::Device(user, _) | RevocationTarget::User(user)) =
            self;
        user
    }
}

/// A recorded revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The refused token, device or user.
    pub target: RevocationTarget,
    /// Tokens issued at or before this time (Unix seconds) are refused; not used for a single token.
    pub issued_until: i64,
    /// When all tokens that it could refuse have expired, Unix milliseconds.
    pub expires_at: i64,
}
