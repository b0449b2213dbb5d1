//! What must survive: every user's log, chats, acknowledgments, contacts, blocks, revocations and cursors.
//!
//! [`Store`] says what the families need, in their words; no engine's type leaks through it, so that a second
//! implementation over PostgreSQL can stand beside [`Embedded`]. A call that changes something returns once the change
//! is durable, unless it says otherwise. Time comes in as an argument.

mod archive;
mod audit;
mod background;
mod embedded;
mod figures;
#[cfg(target_os = "linux")]
mod files;
mod fjall;
mod inbox;
mod key;
mod kv;
mod ledger;
mod memory;
mod queue;
mod read;
mod record;
mod retention;
mod rotation;
#[cfg(target_os = "linux")]
mod shrink;
mod torn;
mod types;
mod writer;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod soak;
#[cfg(test)]
pub(crate) mod testing;

// The parts of an embedded store, for who drives them a step at a time.
#[cfg(test)]
pub(crate) use {
    key::all as all_rows,
    kv::{Key, Kv, Order, Space},
    ledger::{Ledger, Op, Outcome},
    read::{history as read_history, log as read_log},
    retention::Pass,
};

pub use archive::{ArchiveError, Archived, archive, restore, verify};
pub use audit::Audited;
pub use embedded::{Commit, Embedded, OnCommit, Options};
pub(crate) use figures::Counted;
pub use figures::{Figures, Lookups, Size};
pub use inbox::{Answer, Inbox, Promise, Unplaced, Write};
pub use ledger::Reply;
pub use memory::{Fault, Memory};
pub use types::{
    AcceptOutcome, Accepted, Access, AckTarget, Acknowledged, Acknowledgment, Change, Contact, Content, DeviceState,
    EntryBody, HistoryMessage, HistoryQuery, LogBounds, LogEntry, Message, NewMessage, Relation, Retention, Revocation,
    RevocationTarget, Trimmed,
};

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::wire::{ChatId, DeviceId, Eid, MessageId, Sequence};

/// Why the store did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The sender used this `message_id_local` for something else (409).
    #[error("this message_id_local was used for another message")]
    Conflict,
    /// No such message (404).
    #[error("no such message")]
    NoSuchMessage,
    /// The caller is not the message's recipient (403).
    #[error("only the recipient acknowledges a message")]
    NotRecipient,
    /// The recipient has blocked the sender (403). Who blocks may still write.
    #[error("not allowed to write to this user")]
    Blocked,
    /// The user has as many devices as it may (403).
    #[error("the user has too many devices")]
    TooManyDevices,
    /// More of the user's devices are revoked than are remembered one by one (403).
    #[error("too many of the user's devices are revoked: revoke all of the user's tokens")]
    TooManyRevoked,
    /// The list is full (403).
    #[error("the list is full")]
    ListFull,
    /// More waits than the writer takes (503).
    #[error("the store is overloaded")]
    Overloaded,
    /// The store is shutting down (503).
    #[error("the store is closed")]
    Closed,
    /// The engine failed (503). The writer takes nothing more until the server is restarted.
    #[error("storage failed: {0}")]
    Engine(String),
}

/// Makes a folder, and those that it lies in, for this process's user alone; one that is there stays as it is.
///
/// # Errors
/// As the system gives them.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Told of every entry that became durable, in order, by the store's writer before the caller is answered.
///
/// Called on the writer's thread: it must not block.
pub trait LogObserver: Send + Sync + 'static {
    /// `entry` was appended to `user`'s log.
    fn appended(&self, user: &Eid, entry: &Arc<LogEntry>);

    /// All of a commit was told, and its callers are answered: the time to wake others.
    fn announced(&self) {}

    /// Something changed that sessions have to follow.
    fn changed(&self, change: &Change) {
        let _ = change;
    }
}

/// The durable state. All calls may run at once; calls of one caller that do not wait for each other take effect in
/// the order in which they were first polled.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    // --- Chat (profile 7) ---

    /// Accepts a message: numbers it, makes it durable, and enters its VersionUpdate into the sender's log.
    ///
    /// The same sender and `message_id_local` again returns what was accepted then, changing nothing. With `release`
    /// set the message is released in the same commit, unless an earlier one of the chat still waits.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::Blocked`], and the store's own.
    async fn accept(&self, message: NewMessage, release: bool) -> Result<Accepted, StoreError>;

    /// Releases an accepted message of `sender` to the recipient and the sender's other devices. Within a chat messages are
    /// released in the order of their versions: one whose predecessor still waits is released right after it.
    /// Releasing again does nothing.
    async fn release(&self, sender: &Eid, message: MessageId) -> Result<(), StoreError>;

    /// Moves the state of one message, or of all up to a version, forward; enters it into both users' logs if that
    /// changed anything, and moves the acknowledging device's cursor up to the message.
    ///
    /// # Errors
    /// [`StoreError::NoSuchMessage`], [`StoreError::NotRecipient`], and the store's own.
    async fn acknowledge(&self, acknowledgment: Acknowledgment) -> Result<Acknowledged, StoreError>;

    /// Asks for a write and does not wait: who has the promise is told what came of it. Writes of one caller take effect in the
    /// order in which they were asked for.
    ///
    /// # Errors
    /// What was given: there is no place for it now. [`Store::submit_later`] waits for one.
    fn submit(&self, write: Write, promise: Promise) -> Result<(), Unplaced>;

    /// The same, once there is a place.
    ///
    /// # Errors
    /// What was given: there was none for too long.
    async fn submit_later(&self, write: Write, promise: Promise) -> Result<(), Unplaced>;

    /// A page of one chat, oldest first.
    async fn history(&self, query: HistoryQuery) -> Result<Vec<HistoryMessage>, StoreError>;

    // --- Log (profile 8) ---

    /// Entries of `user`'s log that follow `after`, at most `limit`, in order. Empty: `after` is the head, or what
    /// followed has been trimmed.
    async fn read_log(&self, user: &Eid, after: Sequence, limit: usize) -> Result<Vec<Arc<LogEntry>>, StoreError>;

    /// Registers the device if it is new, and says where it and its log stand.
    ///
    /// # Errors
    /// [`StoreError::TooManyDevices`] for a new one beyond the bound, and the store's own.
    async fn open_device(&self, user: &Eid, device: &DeviceId) -> Result<DeviceState, StoreError>;

    /// Moves the device's cursor forward, never back. Not waited for and not synced: what a crash forgets is
    /// delivered once more. [`Store::open_device`] sees it at once.
    fn advance_cursor(&self, user: &Eid, device: &DeviceId, sequence: Sequence);

    // --- Contacts and blocks (profile 6) ---

    /// Adds or changes an entry of the owner's list; `true` if it was there before.
    ///
    /// # Errors
    /// [`StoreError::ListFull`], and the store's own.
    async fn put_contact(&self, owner: &Eid, contact: Contact) -> Result<bool, StoreError>;

    /// Removes an entry; `true` if it was there.
    async fn remove_contact(&self, owner: &Eid, subscriber: &Eid) -> Result<bool, StoreError>;

    /// Blocks or unblocks; `true` if that changed anything.
    async fn set_block(&self, owner: &Eid, subscriber: &Eid, blocked: bool) -> Result<bool, StoreError>;

    /// The owner's list, blocked users that are no subscribers included, ordered by eid.
    async fn contacts(&self, owner: &Eid) -> Result<Vec<Contact>, StoreError>;

    /// The users in whose lists `subscriber` stands, unblocked either way, and what it may see of them.
    async fn owners_of(&self, subscriber: &Eid) -> Result<Vec<(Eid, Access)>, StoreError>;

    /// How `other` stands to `owner`.
    async fn relation(&self, owner: &Eid, other: &Eid) -> Result<Relation, StoreError>;

    // --- Revocations (profile 6) ---

    /// Records a revocation, and forgets a device of the same user with its cursor, both or neither.
    ///
    /// # Errors
    /// [`StoreError::TooManyRevoked`] for a device that is not revoked yet, and the store's own.
    async fn revoke(&self, revocation: Revocation, forget: Option<DeviceId>) -> Result<(), StoreError>;

    /// All revocations that still refuse something at `now_ms` (Unix milliseconds): read once at start-up.
    /// [`Store::trim`] deletes the others.
    async fn revocations(&self, now_ms: i64) -> Result<Vec<Revocation>, StoreError>;

    // --- Life ---

    /// Deletes what the retention does not keep, in steps that leave the store to others in between; `now_ms` is Unix
    /// milliseconds. What is cut off is done by the next call. Numbers are never used again; messages that wait for
    /// their release stay, and so does a message whose `message_id_local` has to be remembered.
    async fn trim(&self, retention: Retention, now_ms: i64) -> Result<Trimmed, StoreError>;

    /// The chat's newest version, zero if it has none.
    async fn chat_version(&self, chat: ChatId) -> Result<crate::wire::Version, StoreError>;

    /// Succeeds if the store takes writes: it has just made one durable.
    async fn check(&self) -> Result<(), StoreError>;

    /// What waits, and what was found in memory.
    fn figures(&self) -> Figures;

    /// What the engine takes. May wait for the disk, and behind other readers.
    async fn size(&self) -> Result<Size, StoreError>;

    /// Commits what waits, writes out what was not synced, and stops. Later calls are refused.
    async fn close(&self);
}
