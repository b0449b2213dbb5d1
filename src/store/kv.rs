//! The little that the ledger asks of an engine: ordered spaces, consistent views, atomic commits.

use smallvec::SmallVec;

use super::{Size, StoreError};

/// The ordered spaces; what lies in each is in [`super::record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Space {
    Messages,
    Chats,
    Locals,
    Logs,
    Pending,
    Devices,
    Floors,
    Marks,
    Contacts,
    Owners,
    Revocations,
    Probe,
}

impl Space {
    pub(crate) const COUNT: usize = 12;
    pub(crate) const ALL: [Space; Space::COUNT] = [
        Space::Messages,
        Space::Chats,
        Space::Locals,
        Space::Logs,
        Space::Pending,
        Space::Devices,
        Space::Floors,
        Space::Marks,
        Space::Contacts,
        Space::Owners,
        Space::Revocations,
        Space::Probe,
    ];

    /// The name on disk: renaming a variant must not lose its rows.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Space::Messages => "messages",
            Space::Chats => "chats",
            Space::Locals => "locals",
            Space::Logs => "logs",
            Space::Pending => "pending",
            Space::Devices => "devices",
            Space::Floors => "floors",
            Space::Marks => "marks",
            Space::Contacts => "contacts",
            Space::Owners => "owners",
            Space::Revocations => "revocations",
            Space::Probe => "probe",
        }
    }

    /// Position in [`Space::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// Keys from and with `from`, up to and without `to`; empty if they are the wrong way round.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) from: Key,
    pub(crate) to: Key,
}

impl Span {
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.from.as_slice() <= key && key < self.to.as_slice()
    }
}

/// From which end of a span rows are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Ascending,
    Descending,
}

/// What a key or a value is kept in: the engine's own, so that a row goes there as it is.
pub(crate) use ::fjall::Slice;

/// A key being put together or looked for: nearly all need no memory of their own.
pub(crate) type Key = SmallVec<[u8; 64]>;

/// A key and its value.
pub(crate) type Row = (Slice, Slice);

/// A state between two commits: later commits do not show in it, and no commit shows in part.
pub(crate) trait View: Send {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, StoreError>;

    /// The first `limit` rows of the span in that order.
    fn range(&self, space: Space, span: &Span, order: Order, limit: usize) -> Result<Vec<Row>, StoreError>;
}

/// The writes of one commit: `None` deletes. No key comes twice.
pub(crate) type Batch = Vec<(Space, Slice, Option<Slice>)>;

/// An engine. One thread commits, any number reads.
pub(crate) trait Kv: Send + Sync + 'static {
    fn view(&self) -> Box<dyn View>;

    /// Takes effect as a whole or not at all. Durable: survives a power loss from the return on, with every commit
    /// before it; no view shows it earlier. Else a crash may lose it, but never without losing all that followed. After
    /// an error the engine is not used for writing again, as nobody knows what became of the batch; until it is opened
    /// again no view shows that.
    fn commit(&self, batch: Batch, durable: bool) -> Result<(), StoreError>;

    /// What it takes on disk. May wait for a commit under way.
    fn size(&self) -> Result<Size, StoreError>;
}
