//! The keys of the rows in each space, and the key ranges that a read covers.
//!
//! A user's keys begin with the eid and a zero byte, which no eid contains. Numbers are big-endian, so that keys sort
//! by number.

use super::kv::{Key, Span};
use super::record::Corrupt;
use super::types::RevocationTarget;
use crate::wire::{ChatId, DeviceId, Eid, LocalId, MessageId, Sequence, Version};

/// The key of the only row in its space.
pub(crate) const PROBE: &[u8] = b"p";

/// Terminates the eid in a key.
const END: u8 = 0;

fn joined(parts: &[&[u8]]) -> Key {
    let mut key = Key::new();
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

/// A key of `user` that ends with `rest`.
fn under(user: &Eid, rest: &[u8]) -> Key {
    joined(&[user.as_str().as_bytes(), &[END], rest])
}

/// All keys of one user in a space.
pub(crate) fn all_of(user: &Eid) -> Span {
    let mut to = under(user, &[]);
    if let Some(end) = to.last_mut() {
        *end = END + 1;
    }
    Span { from: under(user, &[]), to }
}

/// All keys of a space: no key begins with this many bytes of the highest value.
pub(crate) fn all() -> Span {
    Span { from: Key::new(), to: Key::from_slice(&[u8::MAX; 32]) }
}

/// The part of the span after `key`.
pub(crate) fn following(span: Span, key: &[u8]) -> Span {
    let mut from = Key::from_slice(key);
    from.push(0);
    Span { from, to: span.to }
}

pub(crate) fn message(id: MessageId) -> Key {
    Key::from_slice(id.as_bytes())
}

pub(crate) fn chat(chat: ChatId, version: Version) -> Key {
    joined(&[chat.as_bytes(), &version.get().to_be_bytes()])
}

/// The rows of a chat with versions above `after` and below `before`.
pub(crate) fn versions(chat_id: ChatId, after: Version, before: Option<Version>) -> Span {
    let mut from = chat(chat_id, after);
    from.push(0);
    let to = match before {
        Some(version) => chat(chat_id, version),
        None => {
            let mut to = chat(chat_id, Version::from(u64::MAX));
            to.push(0);
            to
        }
    };
    Span { from, to }
}

pub(crate) fn version_of(key: &[u8]) -> Result<Version, Corrupt> {
    number_of(key).map(Version::from)
}

pub(crate) fn local(sender: &Eid, local_id: &LocalId) -> Key {
    under(sender, local_id.as_str().as_bytes())
}

/// The key of the row whose last entry is `last`.
pub(crate) fn log(user: &Eid, last: Sequence) -> Key {
    under(user, &last.get().to_be_bytes())
}

/// The user of a row, in a space where keys begin with one.
pub(crate) fn user_of(key: &[u8]) -> Result<Eid, Corrupt> {
    key.split(|byte| *byte == END)
        .next()
        .and_then(|user| std::str::from_utf8(user).ok())
        .and_then(|text| Eid::parse(text).ok())
        .ok_or(Corrupt("not a user"))
}

/// The rows that hold a log's entries after `after`; the first row may also hold earlier ones.
pub(crate) fn entries(user: &Eid, after: Sequence) -> Span {
    following(all_of(user), &log(user, after))
}

pub(crate) fn sequence_of(key: &[u8]) -> Result<Sequence, Corrupt> {
    number_of(key).map(Sequence::from)
}

pub(crate) fn device(user: &Eid, device: &DeviceId) -> Key {
    under(user, device.as_str().as_bytes())
}

pub(crate) fn log_floor(user: &Eid) -> Key {
    joined(&[b"l", user.as_str().as_bytes()])
}

pub(crate) fn chat_floor(chat: ChatId) -> Key {
    joined(&[b"c", chat.as_bytes()])
}

pub(crate) fn mark(chat: ChatId, reader: &Eid) -> Key {
    joined(&[chat.as_bytes(), reader.as_str().as_bytes()])
}

/// In [`super::kv::Space::Contacts`] `of` is the owner and `with` the subscriber, in [`super::kv::Space::Owners`] the
/// other way round.
pub(crate) fn pair(of: &Eid, with: &Eid) -> Key {
    under(of, with.as_str().as_bytes())
}

/// The second user of a [`pair`].
pub(crate) fn other_of(of: &Eid, key: &[u8]) -> Result<Eid, Corrupt> {
    key.get(of.as_str().len() + 1..)
        .and_then(|rest| std::str::from_utf8(rest).ok())
        .and_then(|text| Eid::parse(text).ok())
        .ok_or(Corrupt("not a user"))
}

pub(crate) fn revocation(target: &RevocationTarget) -> Key {
    match target {
        RevocationTarget::Token(_, digest) => joined(&[&[1], digest]),
        RevocationTarget::Device(user, id) => joined(&[&[2], &device(user, id)]),
        RevocationTarget::User(user) => joined(&[&[3], user.as_str().as_bytes()]),
    }
}

/// The rows of a user's revoked devices.
pub(crate) fn revoked_devices(user: &Eid) -> Span {
    let Span { from, to } = all_of(user);
    Span { from: joined(&[&[2], &from]), to: joined(&[&[2], &to]) }
}

fn number_of(key: &[u8]) -> Result<u64, Corrupt> {
    key.last_chunk().map(|bytes| u64::from_be_bytes(*bytes)).ok_or(Corrupt("a key too short"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eid(text: &str) -> Eid {
        Eid::parse(text).unwrap()
    }

    #[test]
    fn rows_of_one_user_lie_apart_from_those_of_another_whose_name_goes_on() {
        let (short, long) = (eid("a@b"), eid("a@bc"));
        let span = all_of(&short);
        let inside = |key: Key| span.contains(&key);
        assert!(inside(log(&short, Sequence::from(u64::MAX))));
        assert!(inside(log(&short, Sequence::ZERO)));
        assert!(!inside(log(&long, Sequence::from(1))));
    }

    #[test]
    fn numbers_sort_and_come_back() {
        let alice = eid("alice@x");
        assert!(log(&alice, Sequence::from(255)) < log(&alice, Sequence::from(256)));
        assert_eq!(sequence_of(&log(&alice, Sequence::from(77))).unwrap(), Sequence::from(77));
        assert_eq!(other_of(&alice, &pair(&alice, &eid("bob@x"))).unwrap(), eid("bob@x"));
        assert!(sequence_of(b"short").is_err());
        assert!(other_of(&alice, b"").is_err());
    }

    #[test]
    fn a_span_of_versions_excludes_both_ends() {
        let id = ChatId::between(&eid("a@x"), &eid("b@x"));
        let span = versions(id, Version::from(2), Some(Version::from(5)));
        let inside = |number: u64| span.contains(&chat(id, Version::from(number)));
        assert_eq!((1..=6).filter(|v| inside(*v)).collect::<Vec<_>>(), [3, 4]);
    }
}
