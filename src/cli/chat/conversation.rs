//! One conversation: its messages by version, those not yet accepted, and the progress of each.

use std::collections::{BTreeMap, HashMap};

use super::super::limits::CHAT_MESSAGES_MAX;
use crate::client::{AckTarget, Content, Message};
use crate::wire::{AckStatus, Author, Eid, LocalId, MessageId, Version};

/// How far a message got. It only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// An own message that the server has not answered yet, or that waits for the next connection.
    Waiting,
    /// The server has the message.
    Sent,
    Delivered,
    Read,
    /// The server refused the message.
    Refused,
}

/// A message as the screen shows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) own: bool,
    pub(super) content: Content,
    /// Unix milliseconds.
    pub(super) at: i64,
    pub(super) progress: Progress,
    id: Option<MessageId>,
}

/// A conversation with one peer.
pub(super) struct Conversation {
    pub(super) peer: Eid,
    pub(super) nickname: String,
    entries: BTreeMap<Version, Entry>,
    /// Own messages without a version yet, or refused, in the order in which they were written.
    unnumbered: Vec<(LocalId, Entry)>,
    /// Receipts for own messages whose version is not known yet. Cleared when no own message is waiting.
    early: HashMap<MessageId, Progress>,
    /// Own messages up to these versions were delivered, or read.
    reached: [(Progress, Version); 2],
    /// Received messages up to here were read, on any device.
    read_up_to: Version,
    /// As far as is known, the server has nothing older.
    pub(super) complete: bool,
    /// Something happened in it, so its newest page of history is to be fetched, also while it is not open.
    pub(super) wanted: bool,
    /// The newest page of history has arrived.
    pub(super) fetched: bool,
    /// A page of history was requested.
    pub(super) loading: bool,
    /// A page was refused in this connection.
    pub(super) failed: bool,
    /// Lines between the bottom and what is shown.
    pub(super) scroll: usize,
    /// Time of the last activity, in Unix milliseconds.
    pub(super) active: i64,
}

impl Conversation {
    pub(super) fn new(peer: Eid) -> Conversation {
        Conversation {
            peer,
            nickname: String::new(),
            entries: BTreeMap::new(),
            unnumbered: Vec::new(),
            early: HashMap::new(),
            reached: [(Progress::Delivered, Version::ZERO), (Progress::Read, Version::ZERO)],
            read_up_to: Version::ZERO,
            complete: false,
            wanted: false,
            fetched: false,
            loading: false,
            failed: false,
            scroll: 0,
            active: 0,
        }
    }

    /// The name shown for this conversation.
    pub(super) fn name(&self) -> &str {
        if self.nickname.is_empty() { self.peer.as_str() } else { &self.nickname }
    }

    /// Adds a copy from the log or from a page of history.
    pub(super) fn message(&mut self, message: Message) {
        let own = message.author == Author::Sender;
        let progress = match message.acknowledgment {
            AckStatus::Delivered => Progress::Delivered,
            AckStatus::Read => Progress::Read,
            AckStatus::Sent | AckStatus::Unread => Progress::Sent,
        };
        if own {
            // It was sent over an earlier connection, and its answer was lost.
            self.unnumbered.retain(|(local_id, _)| Some(local_id) != message.local_id.as_ref());
        } else if progress == Progress::Read {
            self.read_up_to = self.read_up_to.max(message.version);
        }
        let Message { version, content, message_id, server_received_at, .. } = message;
        self.active = self.active.max(server_received_at);
        let entry = Entry { own, content, at: server_received_at, progress, id: Some(message_id) };
        self.insert(version, entry);
    }

    /// Adds a page of history, requested for messages older than the floor.
    pub(super) fn page(&mut self, messages: Vec<Message>, complete: bool) {
        let before = self.floor();
        for message in messages {
            self.message(message);
        }
        self.loading = false;
        self.fetched = true;
        // A page with nothing older is the last one, even if it does not say so: the same request would bring it again.
        if complete || self.floor() == before {
            self.complete = true;
            // Messages below a gap that the server cannot fill are not shown.
            self.entries = self.entries.split_off(&self.floor().unwrap_or(Version::ZERO));
        }
    }

    /// Adds an own message that was handed to the device.
    pub(super) fn compose(&mut self, local_id: LocalId, content: Content, at: i64) {
        self.active = self.active.max(at);
        self.scroll = 0;
        self.unnumbered.push((local_id, Entry { own: true, content, at, progress: Progress::Waiting, id: None }));
    }

    /// The server accepted the message, if it is one of this conversation, and gave it a version.
    pub(super) fn sent(&mut self, local_id: &LocalId, version: Version, message_id: MessageId) {
        let Some(index) = self.unnumbered.iter().position(|(known, _)| known == local_id) else { return };
        let (_, entry) = self.unnumbered.remove(index);
        let progress = self.early.remove(&message_id).unwrap_or(Progress::Sent);
        self.insert(version, Entry { id: Some(message_id), progress, ..entry });
        if self.unnumbered.is_empty() {
            self.early.clear();
        }
    }

    /// The message, if it is one of this conversation, will not be sent.
    pub(super) fn refused(&mut self, local_id: &LocalId) {
        if let Some((_, entry)) = self.unnumbered.iter_mut().find(|(known, _)| known == local_id) {
            entry.progress = Progress::Refused;
        }
    }

    /// The peer received or read own messages.
    pub(super) fn reached(&mut self, target: AckTarget, progress: Progress) {
        match target {
            AckTarget::Message(id) => match self.entries.values_mut().rev().find(|entry| entry.id == Some(id)) {
                Some(entry) => entry.progress = entry.progress.max(progress),
                None if !self.unnumbered.is_empty() => {
                    let early = self.early.entry(id).or_insert(progress);
                    *early = (*early).max(progress);
                }
                // Older than what is shown: history will have its state.
                None => {}
            },
            AckTarget::UpTo(_, version) => {
                for (known, up_to) in &mut self.reached {
                    if *known <= progress {
                        *up_to = (*up_to).max(version);
                    }
                }
                for (_, entry) in self.entries.range_mut(..=version).filter(|(_, entry)| entry.own) {
                    entry.progress = entry.progress.max(progress);
                }
            }
        }
    }

    /// Received messages were read, here or on another device.
    pub(super) fn read(&mut self, target: AckTarget) {
        let version = match target {
            AckTarget::UpTo(_, version) => Some(version),
            AckTarget::Message(id) => {
                self.entries.iter().rev().find(|(_, entry)| entry.id == Some(id)).map(|(version, _)| *version)
            }
        };
        self.read_up_to = self.read_up_to.max(version.unwrap_or(Version::ZERO));
    }

    /// The newest received message if it is unread; marks it as read.
    pub(super) fn take_unread(&mut self) -> Option<Version> {
        let newest = self.entries.iter().rev().find(|(_, entry)| !entry.own).map(|(version, _)| *version)?;
        let unread = newest > self.read_up_to;
        self.read_up_to = self.read_up_to.max(newest);
        unread.then_some(newest)
    }

    pub(super) fn unread(&self) -> usize {
        self.entries.range(self.read_up_to.next()..).filter(|(_, entry)| !entry.own).count()
    }

    /// Newest received version, to be acknowledged as delivered.
    pub(super) fn newest_received(&self) -> Option<Version> {
        self.entries.iter().rev().find(|(_, entry)| !entry.own).map(|(version, _)| *version)
    }

    /// The version at which the newest stretch without a gap begins; what is shown starts there.
    pub(super) fn floor(&self) -> Option<Version> {
        let mut floor = None;
        for version in self.entries.keys().rev() {
            if floor.is_some_and(|floor| version.next() != floor) {
                break;
            }
            floor = Some(*version);
        }
        floor
    }

    /// Whether a page of history may be requested now.
    pub(super) fn may_ask(&self) -> bool {
        !self.loading && !self.failed
    }

    /// Whether the server may have messages older than what is shown.
    pub(super) fn has_older(&self) -> bool {
        match self.floor() {
            Some(floor) => floor > Version::from(1) && !(self.complete && self.is_whole()),
            None => !self.complete,
        }
    }

    /// The messages shown: oldest first, without a gap.
    pub(super) fn shown(&self) -> impl Iterator<Item = &Entry> {
        let floor = self.floor().unwrap_or(Version::ZERO);
        self.entries.range(floor..).map(|(_, entry)| entry).chain(self.unnumbered.iter().map(|(_, entry)| entry))
    }

    fn is_whole(&self) -> bool {
        self.floor() == self.entries.keys().next().copied()
    }

    fn insert(&mut self, version: Version, mut entry: Entry) {
        if entry.own {
            for (progress, up_to) in self.reached {
                if version <= up_to {
                    entry.progress = entry.progress.max(progress);
                }
            }
        }
        if let Some(known) = self.entries.get(&version) {
            entry.progress = entry.progress.max(known.progress);
        }
        self.entries.insert(version, entry);
        if self.entries.len() > CHAT_MESSAGES_MAX && self.scroll == 0 {
            self.entries.pop_first();
            self.complete = false;
        }
    }
}
