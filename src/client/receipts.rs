//! Automatic acknowledgments for which there was no place among the requests: one per chat, up to its newest message.

use std::collections::HashMap;

use super::limits::HELD_CHATS_MAX;
use crate::wire::{ChatId, Eid, MessageId, Sequence, Version};

/// A message that the application took and whose delivery is to be acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) message_id: MessageId,
    pub(crate) chat: ChatId,
    pub(crate) version: Version,
    pub(crate) sender: Eid,
    pub(crate) sequence: Sequence,
}

/// The messages of a chat that one request acknowledges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpTo {
    /// The newest message. The application took all earlier ones of its chat before it, as the log is in order
    /// (protocol.md §9).
    pub(crate) newest: Delivery,
    /// Log position of the oldest message that this may cover.
    pub(crate) oldest: Sequence,
    /// When the newest was taken, in Unix milliseconds.
    pub(crate) at: i64,
    /// Version up to which the server has acknowledged so far, if it stopped early.
    pub(crate) covered: Version,
}

/// The acknowledgments that wait, for at most [`HELD_CHATS_MAX`] chats.
#[derive(Debug, Default)]
pub(crate) struct Receipts {
    held: HashMap<ChatId, UpTo>,
}

impl UpTo {
    pub(crate) fn new(newest: Delivery, at: i64) -> UpTo {
        UpTo { oldest: newest.sequence, newest, at, covered: Version::ZERO }
    }

    /// What is left to request after an answer that covered this version: nothing at the end, or if there was no
    /// progress.
    pub(crate) fn after(self, covered: Version) -> Option<UpTo> {
        (self.covered < covered && covered < self.newest.version).then_some(UpTo { covered, ..self })
    }
}

impl Receipts {
    /// Whether there is room for another chat.
    pub(crate) fn has_room(&self) -> bool {
        self.held.len() < HELD_CHATS_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Adds an acknowledgment; the newest of a chat replaces the older one.
    pub(crate) fn hold(&mut self, receipt: UpTo) {
        let held = self.held.entry(receipt.newest.chat).or_insert_with(|| receipt.clone());
        let oldest = held.oldest.min(receipt.oldest);
        if held.newest.version < receipt.newest.version {
            *held = receipt;
        }
        held.oldest = oldest;
    }

    /// Log position of the oldest message that any of them covers.
    pub(crate) fn oldest(&self) -> Option<Sequence> {
        self.held.values().map(|held| held.oldest).min()
    }

    /// Takes the acknowledgment with the lowest log position first, because an acknowledgment also marks everything
    /// before it as safe.
    pub(crate) fn take(&mut self) -> Option<UpTo> {
        let chat = self.held.values().min_by_key(|held| held.newest.sequence)?.newest.chat;
        self.held.remove(&chat)
    }
}
