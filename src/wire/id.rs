//! Identifiers and numbers, parsed where data enters (protocol.md §4).

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::proto::Identity;

/// Longest user identifier, in bytes (protocol.md §4).
const EID_BYTES_MAX: usize = 254;
/// Longest device identifier, in bytes (protocol.md §4).
const DEVICE_ID_BYTES_MAX: usize = 64;
/// Longest `message_id_local`, in bytes (protocol.md §4).
const LOCAL_ID_BYTES_MAX: usize = 64;

/// Why an identifier was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The required field is absent or empty.
    #[error("an identity is missing")]
    Missing,
    /// Not `local@domain` of 3 to 254 bytes without white space and control characters.
    #[error("an eid is local@domain, 3 to 254 bytes, without white space or control characters")]
    Eid,
    /// Not a device id: 1 to 64 of `A-Z a-z 0-9 . _ -`.
    #[error("a connection_resource_id is 1 to 64 of A-Z a-z 0-9 . _ -")]
    Device,
    /// Not a client's message id: 1 to 64 bytes.
    #[error("a message_id_local is 1 to 64 bytes")]
    Local,
    /// Not a hyphenated UUID.
    #[error("a message_id is a UUID")]
    Message,
    /// Not a chat id: 32 hexadecimal digits.
    #[error("a chat_id is 32 hexadecimal digits")]
    Chat,
}

/// A user's identifier: `local@domain`, with ASCII letters in lower case (protocol.md §4). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Eid(Arc<str>);

impl Eid {
    /// Parses an eid and puts its ASCII letters into lower case.
    ///
    /// # Errors
    /// [`IdError::Missing`] for an empty text, [`IdError::Eid`] if it is not `local@domain` of 3 to 254 bytes without
    /// white space and control characters.
    pub fn parse(text: &str) -> Result<Eid, IdError> {
        if text.is_empty() {
            return Err(IdError::Missing);
        }
        if text.len() < 3 || text.len() > EID_BYTES_MAX {
            return Err(IdError::Eid);
        }
        let (local, domain) = text.split_once('@').ok_or(IdError::Eid)?;
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_graphic() && b != b'@');
        let clean = |part: &str| part.chars().all(|c| c != '@' && !c.is_whitespace() && !c.is_control());
        if [local, domain].into_iter().any(|part| part.is_empty() || !(plain(part) || clean(part))) {
            return Err(IdError::Eid);
        }
        let is_lower = !text.bytes().any(|b| b.is_ascii_uppercase());
        Ok(Eid(if is_lower { text.into() } else { text.to_ascii_lowercase().into() }))
    }

    /// The user named in a wire identity.
    ///
    /// # Errors
    /// [`IdError::Missing`] if the identity is absent or its eid is empty, [`IdError::Eid`] if its eid is malformed.
    pub fn from_identity(identity: Option<&Identity>) -> Result<Eid, IdError> {
        Eid::parse(&identity.ok_or(IdError::Missing)?.eid)
    }

    /// The eid, with ASCII letters in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the `@`.
    pub fn domain(&self) -> &str {
        self.0.split_once('@').map_or("", |(_, domain)| domain)
    }

    /// The wire identity of the user, without a device.
    pub fn identity(&self) -> Identity {
        Identity { eid: self.0.to_string(), connection_resource_id: String::new() }
    }

    /// The wire identity of one device of the user.
    pub fn device_identity(&self, device: &DeviceId) -> Identity {
        Identity { eid: self.0.to_string(), connection_resource_id: device.as_str().to_owned() }
    }
}

/// The id of one device of a user: `connection_resource_id`, 1 to 64 of `A-Z a-z 0-9 . _ -` (protocol.md §4). Cheap to
/// clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    /// Parses a device id.
    ///
    /// # Errors
    /// [`IdError::Device`] if it is not 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub fn parse(text: &str) -> Result<DeviceId, IdError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > DEVICE_ID_BYTES_MAX || !text.bytes().all(legal) {
            return Err(IdError::Device);
        }
        Ok(DeviceId(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The sender's id of a message, 1 to 64 bytes, unique for the sending user over all devices (protocol.md §4). Cheap to
/// clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalId(Arc<str>);

impl LocalId {
    /// Parses a local id.
    ///
    /// # Errors
    /// [`IdError::Local`] if it is not 1 to 64 bytes.
    pub fn parse(text: &str) -> Result<LocalId, IdError> {
        if text.is_empty() || text.len() > LOCAL_ID_BYTES_MAX {
            return Err(IdError::Local);
        }
        Ok(LocalId(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The chat of two users. It is derived from their eids alone, is the same for both, and does not reveal them
/// (protocol.md §4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChatId([u8; 16]);

impl ChatId {
    /// The chat of two users, in either order: the first 16 bytes of
    /// `SHA-256("bimip chat v1" 0x00 lower 0x00 higher)`, the eids in byte order.
    pub fn between(one: &Eid, other: &Eid) -> ChatId {
        let (low, high) = if one <= other { (one, other) } else { (other, one) };
        let mut hash = Sha256::new();
        hash.update(b"bimip chat v1\0");
        hash.update(low.as_str());
        hash.update(b"\0");
        hash.update(high.as_str());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize()[..16]);
        ChatId(id)
    }

    /// Parses the 32 hexadecimal digits of the wire form.
    ///
    /// # Errors
    /// [`IdError::Chat`] if it is not exactly that.
    pub fn parse(text: &str) -> Result<ChatId, IdError> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(IdError::Chat);
        }
        u128::from_str_radix(text, 16).map(|number| ChatId(number.to_be_bytes())).map_err(|_| IdError::Chat)
    }

    /// The raw bytes, as the store keeps them.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Makes the id from its raw bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> ChatId {
        ChatId(bytes)
    }
}

impl fmt::Display for ChatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).simple().fmt(f)
    }
}

impl fmt::Debug for ChatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The server's id of a message, globally unique: a UUIDv7 (protocol.md §4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId([u8; 16]);

impl MessageId {
    /// Makes a new id from the time of acceptance, in Unix milliseconds, and ten random bytes.
    pub fn new(unix_ms: i64, entropy: [u8; 10]) -> MessageId {
        let millis = u64::try_from(unix_ms).unwrap_or(0);
        MessageId(*uuid::Builder::from_unix_timestamp_millis(millis, &entropy).as_uuid().as_bytes())
    }

    /// Parses the wire form, a hyphenated UUID.
    ///
    /// # Errors
    /// [`IdError::Message`] if it is not one.
    pub fn parse(text: &str) -> Result<MessageId, IdError> {
        if text.len() != 36 {
            return Err(IdError::Message);
        }
        uuid::Uuid::try_parse(text).map(|id| MessageId(*id.as_bytes())).map_err(|_| IdError::Message)
    }

    /// The time of acceptance given to [`MessageId::new`], in Unix milliseconds.
    pub fn unix_ms(&self) -> i64 {
        self.0[..6].iter().fold(0, |millis, byte| millis << 8 | i64::from(*byte))
    }

    /// The raw bytes, as the store keeps them. They sort by time of acceptance.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Makes the id from its raw bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> MessageId {
        MessageId(bytes)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! text_id {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                $name::parse(text)
            }
        }
    )*};
}
text_id!(Eid, DeviceId, LocalId);

macro_rules! counting {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u64);

        impl $name {
            /// Zero: before the first.
            pub const ZERO: $name = $name(0);

            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The next number.
            pub const fn next(self) -> $name {
                $name(self.0 + 1)
            }

            /// The wire form; limited to `i64::MAX`.
            pub fn wire(self) -> i64 {
                i64::try_from(self.0).unwrap_or(i64::MAX)
            }

            /// From the wire form; a negative number becomes zero.
            pub fn from_wire(number: i64) -> $name {
                $name(u64::try_from(number).unwrap_or(0))
            }
        }

        impl From<u64> for $name {
            fn from(number: u64) -> $name {
                $name(number)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
counting!(
    /// Position of an entry in a user's log: 1, 2, 3 … (protocol.md §9).
    Sequence,
    /// Position of a message in a chat: 1, 2, 3 … without a gap (protocol.md §4).
    Version
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eids_are_checked_and_lowered() {
        assert_eq!(Eid::parse("Alice@LocalHost").unwrap().as_str(), "alice@localhost");
        assert_eq!(Eid::parse("Jürgen@Köln").unwrap().as_str(), "jürgen@köln");
        assert_eq!(Eid::parse("").unwrap_err(), IdError::Missing);
        let long = format!("{}@b", "a".repeat(253));
        for bad in ["a@", "@b", "ab", "a@b@c", "a b@c", "a\u{7}@c", "a\u{a0}@c", &long] {
            assert_eq!(Eid::parse(bad).unwrap_err(), IdError::Eid, "{bad:?}");
        }
        assert_eq!(Eid::parse(&format!("{}@b", "a".repeat(252))).unwrap().as_str().len(), 254);
    }

    #[test]
    fn device_ids_are_checked() {
        assert!(DeviceId::parse("Phone-1._x").is_ok());
        for bad in ["", "a b", "ä", &"x".repeat(65)] {
            assert_eq!(DeviceId::parse(bad).unwrap_err(), IdError::Device);
        }
    }

    #[test]
    fn a_chat_is_the_same_from_both_sides() {
        let (alice, bob) = (Eid::parse("alice@x").unwrap(), Eid::parse("bob@x").unwrap());
        let chat = ChatId::between(&alice, &bob);
        assert_eq!(chat, ChatId::between(&bob, &alice));
        let (alice, bob) = (Eid::parse("Alice@example.org").unwrap(), Eid::parse("bob@EXAMPLE.org").unwrap());
        for (one, other) in [(&alice, &bob), (&bob, &alice)] {
            // The example in protocol.md §4. Chats in stores and on devices have such names.
            assert_eq!(ChatId::between(one, other).to_string(), "9ca8280031c89e6d5ff6c8a394b04ae6");
        }
        assert_eq!(ChatId::parse(&chat.to_string()).unwrap(), chat);
        assert!(ChatId::parse("+0000000000000000000000000000001").is_err());
        let plain = "00ff0a000000000000000000000000b1";
        assert_eq!(ChatId::parse(plain).unwrap().to_string(), plain);
    }

    #[test]
    fn message_ids_are_uuid_version_7_and_sort_by_time() {
        let id = MessageId::new(1_700_000_000_000, [7; 10]);
        let text = id.to_string();
        assert_eq!(text.as_bytes()[14], b'7');
        assert_eq!(MessageId::parse(&text).unwrap(), id);
        assert!(id < MessageId::new(1_700_000_000_001, [0; 10]));
        assert!(MessageId::parse("no").is_err());
    }
}
