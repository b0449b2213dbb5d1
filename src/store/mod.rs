//! The durable state: every user's log, chats, acknowledgments, contacts, blocks, revocations and cursors.
//!
//! [`Store`] is the interface that sessions use, in the terms of the protocol. It exposes no type of an engine, so that
//! a second implementation over PostgreSQL can be added beside [`Embedded`]. A call that changes something returns once
//! the change is durable, unless its documentation says otherwise. The current time is passed in as an argument.

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
mod marker;
mod memory;
mod queue;
mod read;
mod readers;
mod record;
mod reserve;
mod retention;
mod rotation;
mod seal;
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

// The parts of an embedded store, for tests that drive them one step at a time.
#[cfg(test)]
pub(crate) use {
    key::all as all_rows,
    kv::{Key, Kv, Order, Space},
    ledger::{Ledger, Op, Outcome},
    read::{history as read_history, log as read_log},
    retention::Pass,
};

pub use archive::{ArchiveError, Archived, archive, claim, restore, verify};
pub use audit::Audited;
pub use embedded::{Commit, Embedded, OnCommit, OnTrimmed, Options};
pub(crate) use figures::Counted;
pub use figures::{Figures, Lookups, Size};
pub use inbox::{Answer, Inbox, Promise, Unplaced, Write};
pub use ledger::Reply;
pub use memory::{Fault, Memory};
pub use reserve::Disk;
pub use types::{
    AcceptOutcome, Accepted, Access, AckTarget, Acknowledged, Acknowledgment, Bearer, Change, Contact, ContactsPage,
    Content, DeviceState, EntryBody, HistoryMessage, HistoryQuery, LogBounds, LogEntry, Message, NewMessage, Relation,
    Retention, Revocation, RevocationTarget, Trimmed,
};

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::wire::{ChatId, DeviceId, Eid, MessageId, Sequence};

/// Why a store call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The sender has already used this `message_id_local` for another message (409).
    #[error("this message_id_local was used for another message")]
    Conflict,
    /// No such message (404).
    #[error("no such message")]
    NoSuchMessage,
    /// The caller is not the message's recipient (403).
    #[error("only the recipient acknowledges a message")]
    NotRecipient,
    /// The recipient has blocked the sender (403). The user who blocks may still write to the blocked one.
    #[error("not allowed to write to this user")]
    Blocked,
    /// The device's token is revoked (401).
    #[error("the token was revoked")]
    Revoked,
    /// The user already has the maximum number of devices (403).
    #[error("the user has too many devices")]
    TooManyDevices,
    /// The user already has the maximum number of individually revoked devices (403).
    #[error("too many of the user's devices are revoked: revoke all of the user's tokens")]
    TooManyRevoked,
    /// The list is full (answered with status FAILED).
    #[error("the list is full")]
    ListFull,
    /// Too many messages of the chat wait for their release, or an earlier message of the sender was refused for now (429).
    #[error("an earlier message has to come first")]
    ChatFull,
    /// The writer's queue is full, or too many messages wait for their release (503).
    #[error("the store is overloaded")]
    Overloaded,
    /// The disk has come to its reserve, so no new messages are taken (503).
    #[error("the disk is nearly full")]
    DiskFull,
    /// The store is closed or closing (503).
    #[error("the store is closed")]
    Closed,
    /// The engine failed, or a row is corrupt (503). After a failed commit the writer accepts nothing more until the
    /// server is restarted.
    #[error("storage failed: {0}")]
    Engine(String),
}

/// Creates a directory and its missing parents, accessible to this process's user alone. An existing directory stays as
/// it is.
///
/// # Errors
/// The operating system's error if a directory cannot be created.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Receives every log entry that became durable, in log order, before the caller of the write is answered.
///
/// The methods run on the store's writer thread (at start-up, on the thread that opens the store). They must not block.
pub trait LogObserver: Send + Sync + 'static {
    /// `entry` was appended to `user`'s log.
    fn appended(&self, user: &Eid, entry: &Arc<LogEntry>);

    /// Every entry and change of a commit has been reported and its callers are answered: the observer may now wake
    /// sessions.
    fn announced(&self) {}

    /// A change that sessions must act on has become durable.
    fn changed(&self, change: &Change) {
        let _ = change;
    }
}

/// The durable state. Calls may run concurrently. Writes of one user that do not wait for each other take effect in the
/// order in which they were first polled.
///
/// Failures common to all calls: [`StoreError::Closed`] once the store is closing, and [`StoreError::Engine`] if the
/// engine fails or a row is corrupt. A write also fails with [`StoreError::Overloaded`] if the writer's queue has no
/// place for it in time. Of one user's reads, [`STORE_READS_PER_USER_MAX`](crate::limits::STORE_READS_PER_USER_MAX) run
/// at once.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    // --- Chat (protocol.md §7; history §10) ---

    /// Accepts a message: assigns its version, makes it durable, and appends its VersionUpdate to the sender's log.
    ///
    /// A repeat with the same sender, `message_id_local` and content returns the message accepted before and changes
    /// nothing. With `release` set, the message is released in the same commit, unless an earlier message of the chat
    /// still waits for its release.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the sender used the `message_id_local` for another message; [`StoreError::Blocked`]
    /// if the recipient has blocked the sender; [`StoreError::ChatFull`] if too many messages of the chat wait for their
    /// release, [`StoreError::Overloaded`] also if too many of all do; [`StoreError::DiskFull`] if the disk has come to its
    /// reserve; and the common failures.
    async fn accept(&self, message: NewMessage, release: bool) -> Result<Accepted, StoreError>;

    /// Releases an accepted message of `sender` to the recipient and the sender's other devices. Within a chat,
    /// messages are released in version order: a message whose predecessor still waits is released right after it.
    /// Releasing again does nothing.
    ///
    /// # Errors
    /// The common failures only.
    async fn release(&self, sender: &Eid, message: MessageId) -> Result<(), StoreError>;

    /// Moves the acknowledgment state of one message, or of all messages up to a version, forward. If that changed
    /// anything, appends the new state to both users' logs. Also moves the acknowledging device's cursor up to the
    /// message.
    ///
    /// # Errors
    /// [`StoreError::NoSuchMessage`] if there is no such released message; [`StoreError::NotRecipient`] if the message
    /// was not sent to the reader; and the common failures.
    async fn acknowledge(&self, acknowledgment: Acknowledgment) -> Result<Acknowledged, StoreError>;

    /// Submits a write without waiting for it; its outcome goes to the promise's inbox, also if the store is closed.
    /// One user's writes take effect in the order in which they were submitted.
    ///
    /// # Errors
    /// Returns the write and the promise if the queue has no free place now. [`Store::submit_later`] waits for one.
    fn submit(&self, write: Write, promise: Promise) -> Result<(), Unplaced>;

    /// Submits a write as [`Store::submit`] does, once the queue has a free place.
    ///
    /// # Errors
    /// Returns the write and the promise if no place became free in time.
    async fn submit_later(&self, write: Write, promise: Promise) -> Result<(), Unplaced>;

    /// A page of one chat, oldest message first.
    ///
    /// # Errors
    /// The common failures only.
    async fn history(&self, query: HistoryQuery) -> Result<Vec<HistoryMessage>, StoreError>;

    // --- Log and devices (protocol.md §9) ---

    /// The entries of `user`'s log that follow `after`, at most `limit`, in order. An empty result means that `after`
    /// is the head or beyond, or that everything after it has been trimmed.
    ///
    /// # Errors
    /// The common failures only.
    async fn read_log(&self, user: &Eid, after: Sequence, limit: usize) -> Result<Vec<Arc<LogEntry>>, StoreError>;

    /// Registers the device if it is new. Returns its cursor and the bounds of its user's log.
    ///
    /// # Errors
    /// [`StoreError::Revoked`] if its token is revoked: a sign-in that races with the revocation must not register the device
    /// again that the revocation has forgotten. [`StoreError::TooManyDevices`] if the device is new
    /// and the user already has the maximum number. And the common failures.
    async fn open_device(&self, user: &Eid, device: &DeviceId, bearer: Bearer) -> Result<DeviceState, StoreError>;

    /// Moves the device's cursor forward, never back. The call does not wait: a crash within
    /// [`CURSOR_WRITTEN_WITHIN`](crate::limits::CURSOR_WRITTEN_WITHIN) or a full queue may lose the move, and then the
    /// entries behind it are delivered once more. A later [`Store::open_device`] sees a move that found a place.
    fn advance_cursor(&self, user: &Eid, device: &DeviceId, sequence: Sequence);

    // --- Contacts and blocks (protocol.md §11) ---

    /// Adds a subscriber to the owner's list or changes its entry. Returns `true` if it was in the list before.
    ///
    /// # Errors
    /// [`StoreError::ListFull`] if the subscriber is new and the list is full; and the common failures.
    async fn put_contact(&self, owner: &Eid, contact: Contact) -> Result<bool, StoreError>;

    /// Removes a subscriber from the owner's list. Returns `true` if it was in the list.
    ///
    /// # Errors
    /// The common failures only.
    async fn remove_contact(&self, owner: &Eid, subscriber: &Eid) -> Result<bool, StoreError>;

    /// Blocks or unblocks a user. Returns `true` if that changed anything.
    ///
    /// # Errors
    /// [`StoreError::ListFull`] if the list of blocks is full; and the common failures.
    async fn set_block(&self, owner: &Eid, subscriber: &Eid, blocked: bool) -> Result<bool, StoreError>;

    /// A page of the owner's list, ordered by eid: those behind `after`, one at least and otherwise as many as fill
    /// `bytes`. It includes blocked users that are not subscribers.
    ///
    /// # Errors
    /// The common failures only.
    async fn contacts(&self, owner: &Eid, after: Option<&Eid>, bytes: usize) -> Result<ContactsPage, StoreError>;

    /// The users that have `subscriber` in their lists, and what it may see of each. Left out are users where either of
    /// the two has blocked the other.
    ///
    /// # Errors
    /// The common failures only.
    async fn owners_of(&self, subscriber: &Eid) -> Result<Vec<(Eid, Access)>, StoreError>;

    /// What `other` may see of `owner`, and whether either has blocked the other. The read is one of `asker`'s, who is
    /// either of the two.
    ///
    /// # Errors
    /// The common failures only.
    async fn relation(&self, asker: &Eid, owner: &Eid, other: &Eid) -> Result<Relation, StoreError>;

    // --- Revocations (protocol.md §13) ---

    /// Records a revocation and, if a device of the same user is named, forgets that device and its cursor, in one commit.
    ///
    /// # Errors
    /// [`StoreError::TooManyRevoked`] if the target is a device that is not revoked yet and the user already has the maximum
    /// number of revoked devices; and the common failures.
    async fn revoke(&self, revocation: Revocation, forget: Option<DeviceId>) -> Result<(), StoreError>;

    /// All revocations. The server reads them once, at start-up; [`Store::trim`] deletes them
    /// [`REVOCATIONS_KEPT`](crate::limits::REVOCATIONS_KEPT) after they have expired.
    ///
    /// # Errors
    /// The common failures only.
    async fn revocations(&self) -> Result<Vec<Revocation>, StoreError>;

    // --- Retention, state and shutdown ---

    /// Deletes what the retention does not keep; `now_ms` is Unix milliseconds. Works in small steps with pauses, so
    /// that other operations can run in between; the next call finishes a pass that was interrupted. Sequences and
    /// versions are never used again. Messages that wait for their release stay, and so do messages whose
    /// `message_id_local` must still be remembered. A log, message or revocation that cannot be read is passed over. While
    /// the queue has no place, it waits.
    ///
    /// # Errors
    /// [`StoreError::Closed`] and [`StoreError::Engine`] only.
    async fn trim(&self, retention: Retention, now_ms: i64) -> Result<Trimmed, StoreError>;

    /// The chat's newest version, zero if it has none.
    ///
    /// # Errors
    /// The common failures only.
    async fn chat_version(&self, chat: ChatId) -> Result<crate::wire::Version, StoreError>;

    /// Checks that the store accepts writes: succeeds once one test write is durable.
    ///
    /// # Errors
    /// The common failures only.
    async fn check(&self) -> Result<(), StoreError>;

    /// Queue lengths and cache hit counts.
    fn figures(&self) -> Figures;

    /// The engine's size on disk. May wait for the disk, and for other readers to finish.
    ///
    /// # Errors
    /// The common failures only.
    async fn size(&self) -> Result<Size, StoreError>;

    /// Commits what is queued and the moved cursors, and stops. Later reads and writes fail.
    async fn close(&self);
}
