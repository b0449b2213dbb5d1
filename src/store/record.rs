//! The records on disk, one type for each space. They are protobuf messages, so that fields can be added later.
//!
//! | space | key | record |
//! |---|---|---|
//! | messages | message id | [`MessageRecord`] |
//! | chats | chat, version | [`ChatRecord`] |
//! | locals | sender, 0, `message_id_local` | [`LocalRecord`] |
//! | logs | user, 0, sequence of the last entry | [`LogRecord`]: at most [`LOG_ROW_ENTRIES_MAX`](crate::limits::LOG_ROW_ENTRIES_MAX) entries of one commit |
//! | pending | message id | [`PendingRecord`]: an accepted message that is not released |
//! | devices | user, 0, device | [`DeviceRecord`] |
//! | floors | `l`, user or `c`, chat | [`FloorRecord`]: highest number that trimming removed; it must not be used again |
//! | marks | chat, reader | [`MarkRecord`]: where the next bulk acknowledgment starts |
//! | contacts | owner, 0, subscriber | [`ContactRecord`] |
//! | owners | subscriber, 0, owner | [`OwnerRecord`]: only where neither has blocked the other |
//! | revocations | kind, target | [`RevocationRecord`] |
//! | probe | `p` | [`ProbeRecord`]: written to check that the store accepts writes |
//!
//! Chat and message ids are 16 bytes, numbers in keys 8 bytes big-endian, eids and devices plain text.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::kv::{Key, Space, View};
use super::types::{
    AckTarget, Acknowledged, Contact, Content, EntryBody, LogEntry, Message, NewMessage, Revocation, RevocationTarget,
};
use super::{StoreError, key};
use crate::wire::{AckStatus, ChatId, DeviceId, Eid, LocalId, MediaType, MessageId, Sequence, Version};

/// The number of the rows' format, in each store and in each archive; a version refuses what has a greater one. Raise it with a
/// change after which an earlier version would misread rows or take a part of them for all, and not for fields that it may pass over.
pub(crate) const FORMAT: u32 = 1;

/// Why a row cannot be interpreted.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Corrupt(pub(crate) &'static str);

/// A record type and the space of its rows.
pub(crate) trait Record: prost::Message + Default {
    const SPACE: Space;
}

/// The error for a row that cannot be interpreted, with its space and key for the operator.
pub(crate) fn corrupt(space: Space, key: &[u8], why: impl std::fmt::Display) -> StoreError {
    StoreError::Engine(format!("corrupt row in {} at {}: {why}", space.name(), key.escape_ascii()))
}

/// Decodes a row's value.
pub(crate) fn decode<R: Record>(key: &[u8], value: &[u8]) -> Result<R, StoreError> {
    R::decode(value).map_err(|error| corrupt(R::SPACE, key, error))
}

/// Reads one row.
pub(crate) fn read<R: Record>(view: &dyn View, key: &[u8]) -> Result<Option<R>, StoreError> {
    view.get(R::SPACE, key)?.map(|value| decode(key, &value)).transpose()
}

macro_rules! records {
    ($($(#[$doc:meta])* $space:ident $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty => [$($prost:tt)*]),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, prost::Message)]
        pub(crate) struct $name { $($(#[$field_doc])* #[prost($($prost)*)] pub(crate) $field: $type),* }

        impl Record for $name {
            const SPACE: Space = Space::$space;
        }
    )*};
}

records! {
    /// The immutable part of a message.
    Messages MessageRecord {
        chat: Vec<u8> => [bytes = "vec", tag = "1"],
        version: u64 => [uint64, tag = "2"],
        sender: String => [string, tag = "3"],
        device: String => [string, tag = "4"],
        recipient: String => [string, tag = "5"],
        local_id: String => [string, tag = "6"],
        created_at: i64 => [int64, tag = "7"],
        received_at: i64 => [int64, tag = "8"],
        /// Exactly one of `text` and `media` is set.
        text: Option<String> => [string, optional, tag = "9"],
        media: Option<MediaRecord> => [message, optional, tag = "10"],
    }

    /// The mutable part of a message, keyed by chat and version.
    Chats ChatRecord {
        message: Vec<u8> => [bytes = "vec", tag = "1"],
        /// Whether the sender's eid is the higher of the chat's two, so that the row alone tells who may acknowledge
        /// the message.
        from_high: bool => [bool, tag = "2"],
        sender_sequence: u64 => [uint64, tag = "3"],
        /// Zero: not released yet.
        recipient_sequence: u64 => [uint64, tag = "4"],
        /// [`AckStatus`] code; zero: unread.
        status: i32 => [int32, tag = "5"],
        delivered_at: i64 => [int64, tag = "6"],
        read_at: i64 => [int64, tag = "7"],
        /// Sequence of its copy in the sender's log; zero: the entry of its VersionUpdate is the copy, too, or there is
        /// no copy yet.
        copy_sequence: u64 => [uint64, tag = "8"],
    }

    /// The message for which a sender has used this `message_id_local`, with a digest of its content.
    Locals LocalRecord {
        message: Vec<u8> => [bytes = "vec", tag = "1"],
        digest: Vec<u8> => [bytes = "vec", tag = "2"],
        sender_sequence: u64 => [uint64, tag = "3"],
    }

    /// One row of a user's log: its last entry, and those before it in `earlier`.
    Logs LogRecord {
        /// 1 received, 2 accepted, 3 copy, 4 sent, 5 acknowledged.
        kind: u32 => [uint32, tag = "1"],
        message: Vec<u8> => [bytes = "vec", tag = "2"],
        acknowledged: Option<AcknowledgedRecord> => [message, optional, tag = "3"],
        /// Empty: none of the user's devices.
        origin: String => [string, tag = "4"],
        /// When the server received it (Unix milliseconds), for the retention.
        at: i64 => [int64, tag = "5"],
        /// Earlier entries in the same row, oldest first; their own `earlier` is empty.
        earlier: Vec<LogRecord> => [message, repeated, tag = "6"],
    }

    /// The place of a message that waits for its release, so that start-up need not read the message.
    Pending PendingRecord {
        chat: Vec<u8> => [bytes = "vec", tag = "1"],
        version: u64 => [uint64, tag = "2"],
    }

    /// A registered device.
    Devices DeviceRecord {
        cursor: u64 => [uint64, tag = "1"],
    }

    /// The highest number that trimming has removed.
    Floors FloorRecord {
        last: u64 => [uint64, tag = "1"],
    }

    /// The versions up to which every message for the reader is at least in that state.
    Marks MarkRecord {
        delivered: u64 => [uint64, tag = "1"],
        read: u64 => [uint64, tag = "2"],
    }

    /// An entry of the owner's contact list.
    Contacts ContactRecord {
        subscribed: bool => [bool, tag = "1"],
        nickname: String => [string, tag = "2"],
        group: String => [string, tag = "3"],
        resource_id: String => [string, tag = "4"],
        share_location: bool => [bool, tag = "5"],
        blocked: bool => [bool, tag = "6"],
        added_at: i64 => [int64, tag = "7"],
    }

    /// What the subscriber may see of the owner.
    Owners OwnerRecord {
        share_location: bool => [bool, tag = "1"],
    }

    /// What is revoked: a token (by digest), a device, or a user. Unused fields are empty.
    Revocations RevocationRecord {
        token: Vec<u8> => [bytes = "vec", tag = "1"],
        user: String => [string, tag = "2"],
        device: String => [string, tag = "3"],
        issued_until: i64 => [int64, tag = "4"],
        expires_at: i64 => [int64, tag = "5"],
    }

    /// Empty: only the success of the write matters.
    Probe ProbeRecord {}
}

/// The content of a media message.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MediaRecord {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    url: String,
    #[prost(string, tag = "3")]
    caption: String,
    #[prost(string, tag = "4")]
    thumbnail_url: String,
    #[prost(int64, tag = "5")]
    size_bytes: i64,
}

/// An acknowledgment. It is stored in full, because its message may have been trimmed. An empty `reader` or `sender` is
/// the user whose log holds the record; the chat is the one between the two.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AcknowledgedRecord {
    #[prost(string, tag = "1")]
    reader: String,
    #[prost(string, tag = "2")]
    sender: String,
    /// Empty for a bulk acknowledgment up to a version.
    #[prost(bytes = "vec", tag = "4")]
    message: Vec<u8>,
    #[prost(uint64, tag = "5")]
    up_to: u64,
    #[prost(int32, tag = "6")]
    status: i32,
    #[prost(int64, tag = "7")]
    at: i64,
}

pub(crate) fn message_id(bytes: &[u8]) -> Result<MessageId, Corrupt> {
    bytes.try_into().map(MessageId::from_bytes).map_err(|_| Corrupt("not a message id"))
}

fn chat_id(bytes: &[u8]) -> Result<ChatId, Corrupt> {
    bytes.try_into().map(ChatId::from_bytes).map_err(|_| Corrupt("not a chat id"))
}

fn eid(text: &str) -> Result<Eid, Corrupt> {
    Eid::parse(text).map_err(|_| Corrupt("not an eid"))
}

fn device_id(text: &str) -> Result<DeviceId, Corrupt> {
    DeviceId::parse(text).map_err(|_| Corrupt("not a device"))
}

impl From<&Message> for MessageRecord {
    fn from(message: &Message) -> MessageRecord {
        let (text, media) = match &message.content {
            Content::Text(text) => (Some(text.clone()), None),
            Content::Media { kind, url, caption, thumbnail_url, size_bytes } => {
                let media = MediaRecord {
                    kind: kind.code(),
                    url: url.clone(),
                    caption: caption.clone(),
                    thumbnail_url: thumbnail_url.clone(),
                    size_bytes: *size_bytes,
                };
                (None, Some(media))
            }
        };
        MessageRecord {
            chat: message.chat.as_bytes().to_vec(),
            version: message.version.get(),
            sender: message.sender.to_string(),
            device: message.device.to_string(),
            recipient: message.recipient.to_string(),
            local_id: message.local_id.to_string(),
            created_at: message.created_at,
            received_at: message.received_at,
            text,
            media,
        }
    }
}

impl MessageRecord {
    pub(crate) fn into_message(self, id: MessageId) -> Result<Message, Corrupt> {
        let content = match (self.text, self.media) {
            (Some(text), None) => Content::Text(text),
            (None, Some(media)) => Content::Media {
                kind: MediaType::from_code(media.kind).ok_or(Corrupt("not a media type"))?,
                url: media.url,
                caption: media.caption,
                thumbnail_url: media.thumbnail_url,
                size_bytes: media.size_bytes,
            },
            _ => return Err(Corrupt("neither text nor media")),
        };
        Ok(Message {
            id,
            chat: chat_id(&self.chat)?,
            version: Version::from(self.version),
            sender: eid(&self.sender)?,
            device: device_id(&self.device)?,
            recipient: eid(&self.recipient)?,
            local_id: LocalId::parse(&self.local_id).map_err(|_| Corrupt("not a message_id_local"))?,
            content,
            created_at: self.created_at,
            received_at: self.received_at,
        })
    }
}

/// Reads a message.
pub(crate) fn message(view: &dyn View, id: MessageId) -> Result<Option<Message>, StoreError> {
    let key = id.as_bytes();
    let Some(record) = read::<MessageRecord>(view, key)? else { return Ok(None) };
    record.into_message(id).map(Some).map_err(|why| corrupt(Space::Messages, key, why))
}

/// Reads a message that another row refers to.
pub(crate) fn message_named(view: &dyn View, id: MessageId) -> Result<Arc<Message>, StoreError> {
    match message(view, id)? {
        Some(message) => Ok(Arc::new(message)),
        None => Err(corrupt(Space::Messages, id.as_bytes(), "a row speaks of it, and it is not there")),
    }
}

impl ChatRecord {
    pub(crate) fn message(&self) -> Result<MessageId, Corrupt> {
        message_id(&self.message)
    }

    pub(crate) fn released(&self) -> bool {
        self.recipient_sequence != 0
    }

    /// The acknowledgment state and its time (Unix milliseconds); `None`: not acknowledged.
    pub(crate) fn acknowledged(&self) -> Result<Option<(AckStatus, i64)>, Corrupt> {
        match self.status {
            0 => Ok(None),
            code => match AckStatus::from_code(code) {
                Some(AckStatus::Delivered) => Ok(Some((AckStatus::Delivered, self.delivered_at))),
                Some(AckStatus::Read) => Ok(Some((AckStatus::Read, self.read_at))),
                _ => Err(Corrupt("not an acknowledgment")),
            },
        }
    }

    /// The time (Unix milliseconds) at which it reached a state that it is in or past.
    pub(crate) fn reached(&self, status: AckStatus) -> i64 {
        if status == AckStatus::Read { self.read_at } else { self.delivered_at }
    }

    /// Moves the state forward; `false` if it was already there or further.
    pub(crate) fn advance(&mut self, status: AckStatus, at: i64) -> bool {
        #[cfg(test)]
        if crate::planted::is(crate::planted::Bug::AcknowledgmentBackwards) && self.status != status.code() {
            self.status = 0;
        }
        let states = [AckStatus::Delivered, AckStatus::Read];
        if self.status >= status.code() || !states.contains(&status) {
            return false;
        }
        if self.status == 0 {
            self.delivered_at = at;
        }
        if status == AckStatus::Read {
            self.read_at = at;
        }
        self.status = status.code();
        true
    }
}

impl LocalRecord {
    pub(crate) fn message(&self) -> Result<MessageId, Corrupt> {
        message_id(&self.message)
    }
}

/// Distinguishes a repeated message from a different one: the first 16 bytes of a SHA-256 over the recipient and the
/// content. Clocks, device and `message_id_local` are left out.
pub(crate) fn digest(message: &NewMessage) -> [u8; 16] {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    field(message.recipient.as_str().as_bytes());
    match &message.content {
        Content::Text(text) => {
            field(b"text");
            field(text.as_bytes());
        }
        Content::Media { kind, url, caption, thumbnail_url, size_bytes } => {
            field(b"media");
            field(&kind.code().to_be_bytes());
            for text in [url, caption, thumbnail_url] {
                field(text.as_bytes());
            }
            field(&size_bytes.to_be_bytes());
        }
    }
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash.finalize()[..16]);
    digest
}

impl PendingRecord {
    pub(crate) fn place(&self) -> Result<(ChatId, Version), Corrupt> {
        Ok((chat_id(&self.chat)?, Version::from(self.version)))
    }
}

impl LogRecord {
    fn new(user: &Eid, entry: &LogEntry) -> LogRecord {
        let (kind, message, acknowledged) = match &entry.body {
            EntryBody::Received(message) => (1, Some(message.id), None),
            EntryBody::Accepted(message) => (2, Some(message.id), None),
            EntryBody::Copy(message) => (3, Some(message.id), None),
            EntryBody::Sent(message) => (4, Some(message.id), None),
            EntryBody::Acknowledged(acknowledged) => (5, None, Some(AcknowledgedRecord::new(user, acknowledged))),
        };
        LogRecord {
            kind,
            message: message.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
            acknowledged,
            origin: entry.origin.as_ref().map(DeviceId::to_string).unwrap_or_default(),
            at: entry.at,
            earlier: Vec::new(),
        }
    }

    /// The key and record of a row with consecutive entries of `user`'s log; `None` if there are no entries.
    pub(crate) fn row(user: &Eid, entries: &[&LogEntry]) -> Option<(Key, LogRecord)> {
        let (last, earlier) = entries.split_last()?;
        let earlier = earlier.iter().map(|entry| LogRecord::new(user, entry)).collect();
        Some((super::key::log(user, last.sequence), LogRecord { earlier, ..LogRecord::new(user, last) }))
    }

    /// The entries of the row at `key`, oldest first.
    pub(crate) fn entries(mut self, key: &[u8]) -> Result<impl Iterator<Item = (Sequence, LogRecord)>, StoreError> {
        let earlier = std::mem::take(&mut self.earlier);
        let wrong = |why| corrupt(Space::Logs, key, why);
        let last = super::key::sequence_of(key).map_err(wrong)?.get();
        let first =
            last.checked_sub(earlier.len() as u64).ok_or_else(|| wrong(Corrupt("more entries than numbers")))?;
        Ok((first..=last).map(Sequence::from).zip(earlier.into_iter().chain([self]).collect::<Vec<_>>()))
    }

    /// The entry at `sequence` in the row at `key`; its message is read from `view`.
    pub(crate) fn into_entry(self, view: &dyn View, key: &[u8], sequence: Sequence) -> Result<LogEntry, StoreError> {
        let wrong = |why| corrupt(Space::Logs, key, why);
        let message = || message_named(view, message_id(&self.message).map_err(wrong)?);
        let body = match (self.kind, self.acknowledged) {
            (1, _) => EntryBody::Received(message()?),
            (2, _) => EntryBody::Accepted(message()?),
            (3, _) => EntryBody::Copy(message()?),
            (4, _) => EntryBody::Sent(message()?),
            (5, Some(record)) => {
                let user = super::key::user_of(key).map_err(wrong)?;
                EntryBody::Acknowledged(record.into_acknowledged(user).map_err(wrong)?)
            }
            _ => return Err(wrong(Corrupt("not a kind of entry"))),
        };
        let origin = match self.origin.as_str() {
            "" => None,
            text => Some(device_id(text).map_err(wrong)?),
        };
        Ok(entry(sequence, origin, self.at, body))
    }
}

/// The newest entry of a user's log that trimming has removed, zero if none. The rows up to there are not to be looked for:
/// the engine walks over each deleted one.
pub(crate) fn log_floor(view: &dyn View, user: &Eid) -> Result<Sequence, StoreError> {
    floor(view, &key::log_floor(user)).map(Sequence::from)
}

/// The newest version of a chat that trimming has removed, zero if none; see [`log_floor`].
pub(crate) fn chat_floor(view: &dyn View, chat: ChatId) -> Result<Version, StoreError> {
    floor(view, &key::chat_floor(chat)).map(Version::from)
}

fn floor(view: &dyn View, key: &[u8]) -> Result<u64, StoreError> {
    Ok(read::<FloorRecord>(view, key)?.map_or(0, |floor| floor.last))
}

/// A new entry that is neither committed nor encoded yet.
pub(crate) fn entry(sequence: Sequence, origin: Option<DeviceId>, at: i64, body: EntryBody) -> LogEntry {
    LogEntry { sequence, origin, at, body, received: None, committed: None, frame: std::sync::OnceLock::new() }
}

impl AcknowledgedRecord {
    fn new(user: &Eid, acknowledged: &Acknowledged) -> AcknowledgedRecord {
        let (message, up_to) = match &acknowledged.target {
            AckTarget::Message(id) => (id.as_bytes().to_vec(), 0),
            AckTarget::UpTo(_, version) => (Vec::new(), version.get()),
        };
        let other = |party: &Eid| if party == user { String::new() } else { party.to_string() };
        AcknowledgedRecord {
            reader: other(&acknowledged.reader),
            sender: other(&acknowledged.sender),
            message,
            up_to,
            status: acknowledged.status.code(),
            at: acknowledged.at,
        }
    }

    /// The acknowledgment in the log of `user`.
    fn into_acknowledged(self, user: Eid) -> Result<Acknowledged, Corrupt> {
        let party = |text: &str| if text.is_empty() { Ok(user.clone()) } else { eid(text) };
        let (reader, sender) = (party(&self.reader)?, party(&self.sender)?);
        let chat = ChatId::between(&reader, &sender);
        let target = match self.message.as_slice() {
            [] => AckTarget::UpTo(chat, Version::from(self.up_to)),
            bytes => AckTarget::Message(message_id(bytes)?),
        };
        Ok(Acknowledged {
            reader,
            sender,
            target,
            chat,
            status: AckStatus::from_code(self.status).ok_or(Corrupt("not an acknowledgment"))?,
            at: self.at,
            changed: true,
        })
    }
}

impl ContactRecord {
    pub(crate) fn into_contact(self, subscriber: Eid) -> Contact {
        Contact {
            subscriber,
            subscribed: self.subscribed,
            nickname: self.nickname,
            group: self.group,
            resource_id: self.resource_id,
            share_location: self.share_location,
            blocked: self.blocked,
            added_at: self.added_at,
        }
    }
}

impl From<&Revocation> for RevocationRecord {
    fn from(revocation: &Revocation) -> RevocationRecord {
        let (token, user, device) = match &revocation.target {
            RevocationTarget::Token(user, digest) => (digest.to_vec(), user.to_string(), String::new()),
            RevocationTarget::Device(user, device) => (Vec::new(), user.to_string(), device.to_string()),
            RevocationTarget::User(user) => (Vec::new(), user.to_string(), String::new()),
        };
        let (issued_until, expires_at) = (revocation.issued_until, revocation.expires_at);
        RevocationRecord { token, user, device, issued_until, expires_at }
    }
}

impl TryFrom<RevocationRecord> for Revocation {
    type Error = Corrupt;

    fn try_from(record: RevocationRecord) -> Result<Revocation, Corrupt> {
        let target = match (record.token.as_slice(), record.user.as_str(), record.device.as_str()) {
            ([], user, "") => RevocationTarget::User(eid(user)?),
            ([], user, device) => RevocationTarget::Device(eid(user)?, device_id(device)?),
            (token, user, _) => {
                let digest = token.try_into().map_err(|_| Corrupt("not a token's digest"))?;
                RevocationTarget::Token(eid(user)?, digest)
            }
        };
        Ok(Revocation { target, issued_until: record.issued_until, expires_at: record.expires_at })
    }
}
