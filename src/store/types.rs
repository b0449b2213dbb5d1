//! What goes into a store and comes out of it, free of any engine.

use std::time::Instant;

use crate::wire::{AckStatus, ChatId, DeviceId, Eid, LocalId, MediaType, MessageId, Sequence, Version};

/// What a message carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// 5.9.1 `TextPayloadRequest.content`.
    Text(String),
    /// 5.9.1 `MediaPayloadRequest`, its address resolved.
    Media {
        /// 1 image, 2 audio, 3 video, 4 file.
        kind: MediaType,
        /// Absolute https address.
        url: String,
        /// May be empty.
        caption: String,
        /// May be empty.
        thumbnail_url: String,
        /// Of the media file, not of the metadata.
        size_bytes: i64,
    },
}

impl Content {
    /// Bytes of everything in it.
    pub fn bytes(&self) -> usize {
        match self {
            Content::Text(text) => text.len(),
            Content::Media { url, caption, thumbnail_url, .. } => url.len() + caption.len() + thumbnail_url.len(),
        }
    }
}

/// A checked request to send.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// Who sends.
    pub sender: Eid,
    /// From which device.
    pub device: DeviceId,
    /// Who receives; never the sender.
    pub recipient: Eid,
    /// The sender's own name for it.
    pub local_id: LocalId,
    /// What it says.
    pub content: Content,
    /// The sender's clock, Unix milliseconds.
    pub created_at: i64,
    /// The server's clock, Unix milliseconds.
    pub received_at: i64,
    /// Randomness for the message id.
    pub entropy: [u8; 10],
}

/// An accepted message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Global name.
    pub id: MessageId,
    /// The conversation.
    pub chat: ChatId,
    /// Position in it.
    pub version: Version,
    /// Who sent it.
    pub sender: Eid,
    /// From which device.
    pub device: DeviceId,
    /// Who receives it.
    pub recipient: Eid,
    /// The sender's own name for it.
    pub local_id: LocalId,
    /// What it says.
    pub content: Content,
    /// The sender's clock, Unix milliseconds.
    pub created_at: i64,
    /// The server's clock, Unix milliseconds.
    pub received_at: i64,
}

/// Whether an accept did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptOutcome {
    /// Accepted now, and released in the same commit.
    Released,
    /// Accepted now; waits for [`super::Store::release`].
    Waiting,
    /// It had been accepted before; nothing changed.
    Known,
}

/// What came of an accept.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// As stored.
    pub message: std::sync::Arc<Message>,
    /// Where its VersionUpdate stands in the sender's log.
    pub sequence: Sequence,
    /// Whether anything was done.
    pub outcome: AcceptOutcome,
}

/// Which messages an acknowledgment is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckTarget {
    /// One.
    Message(MessageId),
    /// All of the peer's messages in the chat up to and with this version.
    UpTo(ChatId, Version),
}

/// A checked acknowledgment.
#[derive(Clone, Debug)]
pub struct Acknowledgment {
    /// Who acknowledges.
    pub reader: Eid,
    /// On which device.
    pub device: DeviceId,
    /// About what.
    pub target: AckTarget,
    /// [`AckStatus::Delivered`] or [`AckStatus::Read`].
    pub status: AckStatus,
    /// When, Unix milliseconds; by the device's clock.
    pub at: i64,
    /// When the server had it, Unix milliseconds.
    pub received_at: i64,
}

/// The state of a message, or of all up to a version, as stored. Also an entry of both users' logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Who acknowledged.
    pub reader: Eid,
    /// Who sent the message.
    pub sender: Eid,
    /// About what.
    pub target: AckTarget,
    /// The conversation.
    pub chat: ChatId,
    /// Now stored: at least what was asked for.
    pub status: AckStatus,
    /// When that state was reached, Unix milliseconds.
    pub at: i64,
    /// Whether this call changed anything.
    pub changed: bool,
}

/// One entry of a user's log.
#[derive(Debug)]
pub struct LogEntry {
    /// Its position.
    pub sequence: Sequence,
    /// The user's device that caused it; it sees another form of the entry, or none.
    pub origin: Option<DeviceId>,
    /// When the server had what it says, Unix milliseconds: its age, whatever a device's clock says.
    pub at: i64,
    /// What it says.
    pub body: EntryBody,
    /// When it was committed, if by this process and just now: for latency metrics.
    pub committed: Option<Instant>,
    /// The frame that all devices which see the same form share, encoded once.
    pub frame: std::sync::OnceLock<bytes::Bytes>,
}

impl LogEntry {
    /// Bytes of the message in it, if there is one.
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

/// The kinds of entry. What each device sees of one (profile 7 and 8):
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
    /// A message for this user.
    Received(std::sync::Arc<Message>),
    /// A message of this user was accepted and waits for its release.
    Accepted(std::sync::Arc<Message>),
    /// A message of this user was released.
    Copy(std::sync::Arc<Message>),
    /// A message of this user was accepted and released in one commit.
    Sent(std::sync::Arc<Message>),
    /// An acknowledgment of one of the chat's messages.
    Acknowledged(Acknowledged),
}

/// Where a log begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogBounds {
    /// Everything up to and with this has been trimmed; zero: nothing.
    pub trimmed: Sequence,
    /// The newest entry; zero: none yet.
    pub head: Sequence,
}

/// What is kept of the logs; what lies further back goes, but for entries that share their row with one that stays: some
/// more than asked for, never fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Entries from before this are trimmed, Unix milliseconds.
    pub older_than_ms: i64,
    /// So many of the newest entries of each user's log are kept, if they are not too old.
    pub entries_max_per_user: u64,
}

/// What a pass of the retention has deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Entries of logs.
    pub entries: u64,
    /// Messages that no log referred to any more.
    pub messages: u64,
}

/// Where a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Everything up to and with this is safe on the device; zero: nothing, as for a new one.
    pub cursor: Sequence,
    /// Of the user's log.
    pub log: LogBounds,
}

/// Which page of a chat (profile 8).
#[derive(Clone, Debug)]
pub struct HistoryQuery {
    /// Who asks.
    pub reader: Eid,
    /// The other party.
    pub peer: Eid,
    /// Only messages with a lower version; `None`: no bound.
    pub before: Option<Version>,
    /// Only messages with a higher version; given alone, the page is the oldest of them, else the newest.
    pub after: Option<Version>,
    /// How many at most.
    pub limit: usize,
    /// Bytes of content beyond which no more messages are read: the page holds at least two then, and more than so much.
    pub bytes_max: usize,
}

/// A message with its current state, as its reader sees it.
#[derive(Clone, Debug)]
pub struct HistoryMessage {
    /// The message.
    pub message: std::sync::Arc<Message>,
    /// Where its acknowledgment stands; `None`: not acknowledged yet.
    pub acknowledged: Option<(AckStatus, i64)>,
}

/// An entry of a user's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// Who.
    pub subscriber: Eid,
    /// May see the owner; `false` for a user that is only blocked.
    pub subscribed: bool,
    /// The owner's name for it.
    pub nickname: String,
    /// The owner's group for it.
    pub group: String,
    /// Echoed or assigned.
    pub resource_id: String,
    /// Whether it sees the owner's location.
    pub share_location: bool,
    /// Whether the owner has blocked it.
    pub blocked: bool,
    /// Unix milliseconds.
    pub added_at: i64,
}

/// What a subscriber may see of an owner who admitted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The location too.
    pub share_location: bool,
}

/// How one user stands to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relation {
    /// What the other may see of the owner; `None`: nothing.
    pub access: Option<Access>,
    /// One of them has blocked the other.
    pub blocked: bool,
}

/// A change that others have to act on at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What `subscriber` may see of `owner` is now this.
    Access {
        /// Who is seen.
        owner: Eid,
        /// Who sees.
        subscriber: Eid,
        /// `None`: nothing any more.
        access: Option<Access>,
    },
    /// Tokens are refused from now on.
    Revoked(Revocation),
}

/// What a revocation refuses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RevocationTarget {
    /// One token of a user, by its fingerprint.
    Token(Eid, [u8; 32]),
    /// Every token of one device issued up to a second.
    Device(Eid, DeviceId),
    /// Every token of a user issued up to a second.
    User(Eid),
}

impl RevocationTarget {
    /// Whose tokens it refuses.
    pub fn user(&self) -> &Eid {
        let (RevocationTarget::Token(user, _) | RevocationTarget::Device(user, _) | RevocationTarget::User(user)) =
            self;
        user
    }
}

/// A recorded revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// What it refuses.
    pub target: RevocationTarget,
    /// Tokens issued at or before this second (Unix) are refused; not used for a single token.
    pub issued_until: i64,
    /// When nothing is left that it could refuse, Unix milliseconds.
    pub expires_at: i64,
}
