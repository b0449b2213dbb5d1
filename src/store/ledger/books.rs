//! The ledger's state in memory: where logs and chats end, the newest messages, and the messages that wait for their
//! release.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use lru::LruCache;

use super::txn::Txn;
use crate::limits;
use crate::store::figures::Tally;
use crate::store::kv::{Order, Space, View};
use crate::store::record::{self, ChatRecord, corrupt};
use crate::store::reserve::Reserve;
use crate::store::types::{EntryBody, LogBounds, LogEntry, Message};
use crate::store::{StoreError, key};
use crate::wire::{ChatId, DeviceId, Eid, MessageId, Sequence, Version};

/// Estimated memory of a message besides its content, including its row, in bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 500;

pub(super) struct Books {
    pub(super) unreleased: Unreleased,
    /// Moved cursors that are not written yet. At most [`limits::CURSORS_UNWRITTEN_MAX`] and those of one commit.
    pub(super) cursors: HashMap<(Eid, DeviceId), Sequence>,
    pub(super) lists: LruCache<Eid, ListLength>,
    pub(super) tally: Arc<Tally>,
    /// As the disk was when the commit began.
    pub(super) reserve: Reserve,
    logs: LruCache<Eid, LogBounds>,
    chats: LruCache<ChatId, ChatEnd>,
    messages: Newest,
}

/// The newest version of a chat, and its two users.
#[derive(Clone, Debug)]
pub(super) struct ChatEnd {
    pub(super) version: Version,
    /// The lower eid first.
    pub(super) parties: (Eid, Eid),
}

/// A message with its mutable row.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) message: Arc<Message>,
    pub(super) row: ChatRecord,
}

/// The number of users in a list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ListLength {
    pub(super) subscribed: usize,
    pub(super) blocked: usize,
}

impl Books {
    pub(super) fn new(ends: usize) -> Books {
        let cache = |entries| NonZeroUsize::new(entries).unwrap_or(NonZeroUsize::MIN);
        Books {
            unreleased: Unreleased::default(),
            cursors: HashMap::new(),
            lists: LruCache::new(cache(ends.min(limits::STORE_LISTS_CACHED))),
            tally: Arc::default(),
            reserve: Reserve::default(),
            logs: LruCache::new(cache(ends)),
            chats: LruCache::new(cache(ends)),
            messages: Newest::new(),
        }
    }

    /// Clears the caches that can be read again, as a failed operation may have changed them.
    pub(super) fn forget_ends(&mut self) {
        self.lists.clear();
        self.logs.clear();
        self.chats.clear();
        self.messages = Newest::new();
    }

    /// Caches an accepted message: it is about to be released and acknowledged.
    pub(super) fn keep(&mut self, message: Arc<Message>, row: ChatRecord) {
        self.messages.push(Stored { message, row });
    }

    /// Removes a deleted message from the cache.
    pub(super) fn forget_message(&mut self, id: MessageId) {
        self.messages.remove(id);
    }

    /// Reads a message and its row in the chat.
    pub(super) fn stored(&self, view: &dyn View, id: MessageId) -> Result<Option<Stored>, StoreError> {
        let known = self.messages.get(id);
        self.tally.messages.count(known.is_some());
        if let Some(known) = known {
            return Ok(Some(known.clone()));
        }
        let Some(message) = record::message(view, id)?.map(Arc::new) else { return Ok(None) };
        let row_key = key::chat(message.chat, message.version);
        match record::read::<ChatRecord>(view, &row_key)? {
            Some(row) => Ok(Some(Stored { message, row })),
            None => Err(corrupt(Space::Chats, &row_key, "its message is there, and it is not")),
        }
    }

    /// Writes the changed row of a message, and updates the cache.
    pub(super) fn put_row(&mut self, txn: &mut Txn, row_key: &[u8], row: &ChatRecord) -> Result<(), StoreError> {
        let id = row.message().map_err(|why| corrupt(Space::Chats, row_key, why))?;
        txn.put(row_key, row);
        self.messages.update(id, row);
        Ok(())
    }

    /// The bounds of `user`'s log.
    pub(super) fn log(&mut self, txn: &Txn, user: &Eid) -> Result<LogBounds, StoreError> {
        let known = self.logs.get(user);
        self.tally.log_ends.count(known.is_some());
        if let Some(bounds) = known {
            return Ok(*bounds);
        }
        let trimmed = record::log_floor(txn, user)?;
        let head = match txn.newest_entry(user) {
            Some(appended) => appended,
            None => match txn.range(Space::Logs, &key::entries(user, trimmed), Order::Descending, 1)?.first() {
                Some((key, _)) => key::sequence_of(key).map_err(|why| corrupt(Space::Logs, key, why))?,
                None => trimmed,
            },
        };
        let bounds = LogBounds { trimmed, head };
        self.logs.put(user.clone(), bounds);
        Ok(bounds)
    }

    /// Records that `user`'s log was trimmed up to and including `up_to`.
    pub(super) fn has_trimmed(&mut self, user: &Eid, up_to: Sequence) {
        if let Some(bounds) = self.logs.get_mut(user) {
            bounds.trimmed = up_to;
        }
    }

    /// Forgets the end of a chat that has no message any more.
    pub(super) fn forget_chat(&mut self, chat: ChatId) {
        self.chats.pop(&chat);
    }

    /// Appends an entry to `user`'s log. `at` is when the server received its content, Unix milliseconds.
    pub(super) fn append(
        &mut self,
        txn: &mut Txn,
        user: &Eid,
        origin: Option<DeviceId>,
        at: i64,
        body: EntryBody,
    ) -> Result<Sequence, StoreError> {
        self.append_entry(txn, user, |head| record::entry(head, origin, at, body))
    }

    /// Appends a released message to its recipient's log. `received` is when this process received it.
    pub(super) fn append_received(
        &mut self,
        txn: &mut Txn,
        message: &Arc<Message>,
        received: Option<Instant>,
    ) -> Result<Sequence, StoreError> {
        let body = EntryBody::Received(message.clone());
        self.append_entry(txn, &message.recipient, |head| LogEntry {
            received,
            ..record::entry(head, None, message.received_at, body)
        })
    }

    fn append_entry(
        &mut self,
        txn: &mut Txn,
        user: &Eid,
        entry: impl FnOnce(Sequence) -> LogEntry,
    ) -> Result<Sequence, StoreError> {
        let head = self.log(txn, user)?.head.next();
        txn.append(user.clone(), entry(head));
        // The log's end was just looked up. If the cache does not hold it any more, it is read again, from the
        // transaction.
        if let Some(bounds) = self.logs.peek_mut(user) {
            bounds.head = head;
        }
        Ok(head)
    }

    /// The newest version of a chat between `one` and `other`.
    pub(super) fn version(
        &mut self,
        view: &dyn View,
        chat: ChatId,
        one: &Eid,
        other: &Eid,
    ) -> Result<Version, StoreError> {
        let known = self.chats.get(&chat);
        self.tally.chat_ends.count(known.is_some());
        if let Some(end) = known {
            return Ok(end.version);
        }
        let version = chat_version(view, chat)?;
        let parties = if one <= other { (one.clone(), other.clone()) } else { (other.clone(), one.clone()) };
        self.chats.put(chat, ChatEnd { version, parties });
        Ok(version)
    }

    /// Records that `version` is the newest of the chat.
    pub(super) fn advance_chat(&mut self, chat: ChatId, version: Version) {
        if let Some(end) = self.chats.get_mut(&chat) {
            end.version = version;
        }
    }

    /// The end of a chat of which only the id is known; `None` if it has no message.
    pub(super) fn chat(&mut self, view: &dyn View, chat: ChatId) -> Result<Option<ChatEnd>, StoreError> {
        let known = self.chats.get(&chat);
        self.tally.chat_ends.count(known.is_some());
        if let Some(end) = known {
            return Ok(Some(end.clone()));
        }
        let span = key::versions(chat, record::chat_floor(view, chat)?, None);
        let newest = view.range(Space::Chats, &span, Order::Descending, 1)?;
        let Some((key, value)) = newest.first() else { return Ok(None) };
        let wrong = |why| corrupt(Space::Chats, key, why);
        let id = record::decode::<ChatRecord>(key, value)?.message().map_err(wrong)?;
        let message = record::message_named(view, id)?;
        let (one, other) = (message.sender.clone(), message.recipient.clone());
        let end = ChatEnd {
            version: key::version_of(key).map_err(wrong)?,
            parties: if one <= other { (one, other) } else { (other, one) },
        };
        self.chats.put(chat, end.clone());
        Ok(Some(end))
    }
}

/// The newest version of a chat: that of its newest row, or its floor if trimming has deleted that row.
pub(crate) fn chat_version(view: &dyn View, chat: ChatId) -> Result<Version, StoreError> {
    let floor = record::chat_floor(view, chat)?;
    match view.range(Space::Chats, &key::versions(chat, floor, None), Order::Descending, 1)?.first() {
        Some((key, _)) => key::version_of(key).map_err(|why| corrupt(Space::Chats, key, why)),
        None => Ok(floor),
    }
}

/// The newest messages, at most [`limits::STORE_NEWEST_BYTES`] of them. Nearly every release and acknowledgment is
/// about one of them, and reading it would cost the writer more than the change itself.
struct Newest {
    /// In order of age: a lookup does not change the order.
    messages: LruCache<MessageId, Stored>,
    bytes: usize,
}

impl Newest {
    fn new() -> Newest {
        Newest { messages: LruCache::unbounded(), bytes: 0 }
    }

    fn push(&mut self, stored: Stored) {
        self.bytes += weight(&stored.message);
        if let Some(same) = self.messages.put(stored.message.id, stored) {
            self.bytes -= weight(&same.message);
        }
        while self.bytes > limits::STORE_NEWEST_BYTES
            && let Some((_, oldest)) = self.messages.pop_lru()
        {
            self.bytes -= weight(&oldest.message);
        }
    }

    fn remove(&mut self, id: MessageId) {
        if let Some(stored) = self.messages.pop(&id) {
            self.bytes -= weight(&stored.message);
        }
    }

    fn update(&mut self, id: MessageId, row: &ChatRecord) {
        if let Some(stored) = self.messages.peek_mut(&id) {
            stored.row = row.clone();
        }
    }

    fn get(&self, id: MessageId) -> Option<&Stored> {
        self.messages.peek(&id)
    }
}

/// Estimated memory of a cached message in bytes: its content, ids, row, and place in the cache.
fn weight(message: &Message) -> usize {
    message.content.bytes() + MESSAGE_OVERHEAD_BYTES
}

/// The messages that are accepted and not released. In each chat these are the newest ones, without a gap, because
/// releases follow the order of versions.
#[derive(Default)]
pub(super) struct Unreleased {
    chats: HashMap<ChatId, BTreeMap<Version, Waiting>>,
    places: HashMap<MessageId, (ChatId, Version)>,
}

pub(super) struct Waiting {
    pub(super) id: MessageId,
    /// When this process received it; `None`: before the start.
    pub(super) received: Option<Instant>,
    /// Whether its release was requested; then it only waits for earlier messages of the chat.
    pub(super) ready: bool,
}

/// A message that may be released now.
pub(super) struct Ready {
    pub(super) chat: ChatId,
    pub(super) version: Version,
    pub(super) id: MessageId,
    pub(super) received: Option<Instant>,
}

impl Unreleased {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn insert(&mut self, chat: ChatId, version: Version, waiting: Waiting) {
        self.places.insert(waiting.id, (chat, version));
        self.chats.entry(chat).or_default().insert(version, waiting);
    }

    /// Fails if no further message of the chat may wait.
    pub(super) fn check_room(&self, chat: ChatId) -> Result<(), StoreError> {
        if self.len() >= limits::STORE_UNRELEASED_MAX {
            return Err(StoreError::Overloaded);
        }
        match self.chats.get(&chat) {
            Some(waiting) if waiting.len() >= limits::STORE_UNRELEASED_CHAT_MAX => Err(StoreError::ChatFull),
            _ => Ok(()),
        }
    }

    pub(super) fn waits_in(&self, chat: ChatId) -> bool {
        self.chats.contains_key(&chat)
    }

    pub(super) fn contains(&self, id: MessageId) -> bool {
        self.places.contains_key(&id)
    }

    /// The version up to which all messages of a chat are released; `newest` is the chat's newest version.
    pub(super) fn released(&self, chat: ChatId, newest: Version) -> Version {
        let first = self.chats.get(&chat).and_then(|waiting| waiting.first_key_value());
        first.map_or(newest, |(version, _)| Version::from(version.get().saturating_sub(1)))
    }

    /// Marks `id` as ready, and returns the messages that may be released now: none while an earlier one of the chat
    /// waits, otherwise `id` and the ready ones directly behind it. They stay until [`Unreleased::remove`] is called
    /// for each.
    pub(super) fn make_ready(&mut self, id: MessageId) -> Vec<Ready> {
        let Some((chat, version)) = self.places.get(&id).copied() else { return Vec::new() };
        let Some(waiting) = self.chats.get_mut(&chat) else { return Vec::new() };
        if let Some(message) = waiting.get_mut(&version) {
            message.ready = true;
        }
        let ready = waiting.iter().take_while(|(_, message)| message.ready);
        ready.map(|(&version, &Waiting { id, received, .. })| Ready { chat, version, id, received }).collect()
    }

    pub(super) fn remove(&mut self, id: MessageId) {
        let Some((chat, version)) = self.places.remove(&id) else { return };
        if let Some(waiting) = self.chats.get_mut(&chat) {
            waiting.remove(&version);
            if waiting.is_empty() {
                self.chats.remove(&chat);
            }
        }
    }

    /// Marks all messages of a chat as ready: the next release in it releases them, too.
    pub(super) fn make_all_ready(&mut self, chat: ChatId) {
        self.chats.get_mut(&chat).into_iter().flat_map(BTreeMap::values_mut).for_each(|message| message.ready = true);
    }

    /// All messages, chat by chat; those of one chat in version order.
    pub(super) fn in_order(&self) -> Vec<(ChatId, MessageId)> {
        let mut chats: Vec<_> = self.chats.iter().collect();
        chats.sort_unstable_by_key(|(chat, _)| **chat);
        chats.into_iter().flat_map(|(chat, waiting)| waiting.values().map(|message| (*chat, message.id))).collect()
    }
}
