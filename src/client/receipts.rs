//! Automatic acknowledgments that found no place among the requests: one for each chat, up to its newest message.

use std::collections::HashMap;

use super::limits::HELD_CHATS_MAX;
use crate::wire::{ChatId, Eid, MessageId, Sequence, Version};

/// A message that the application took, and whose sender is to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) message_id: MessageId,
    pub(crate) chat: ChatId,
    pub(crate) version: Version,
    pub(crate) sender: Eid,
    pub(crate) sequence: Sequence,
}

/// What is to be acknowledged of a chat in one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpTo {
    /// The newest message; those before it in its chat were taken before it (profile 8).
    pub(crate) newest: Delivery,
    /// Where the oldest one that it may be about stands in the log.
    pub(crate) oldest: Sequence,
    /// When it was taken, in Unix milliseconds.
    pub(crate) at: i64,
    /// How far an answer said that it came, where it did not come all the way.
    pub(crate) covered: Version,
}

/// At most [`HELD_CHATS_MAX`] of them.
#[derive(Debug, Default)]
pub(crate) struct Receipts {
    held: HashMap<ChatId, UpTo>,
}

impl UpTo {
    pub(crate) fn new(newest: Delivery, at: i64) -> UpTo {
        UpTo { oldest: newest.sequence, newest, at, covered: Version::ZERO }
    }

    /// What is left to ask for after an answer that came so far: nothing after the end, or where it has not moved.
    pub(crate) fn after(self, covered: Version) -> Option<UpTo> {
        (self.covered < covered && covered < self.newest.version).then_some(UpTo { covered, ..self })
    }
}

impl Receipts {
    /// Room for another chat?
    pub(crate) fn has_room(&self) -> bool {
        self.held.len() < HELD_CHATS_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes one in; of a chat the newest stays.
    pub(crate) fn hold(&mut self, receipt: UpTo) {
        let held = self.held.entry(receipt.newest.chat).or_insert_with(|| receipt.clone());
        let oldest = held.oldest.min(receipt.oldest);
        if held.newest.version < receipt.newest.version {
            *held = receipt;
        }
        held.oldest = oldest;
    }

    /// Where the oldest message stands in the log that one of them is about.
    pub(crate) fn oldest(&self) -> Option<Sequence> {
        self.held.values().map(|held| held.oldest).min()
    }

    /// The one that waits for the oldest entry of the log: an acknowledgment also says that what lies before it is safe.
    pub(crate) fn take(&mut self) -> Option<UpTo> {
        let chat = self.held.values().min_by_key(|held| held.newest.sequence)?.newest.chat;
        self.held.remove(&chat)
    }
}
