//! The interface that the ledger needs of an engine: ordered key spaces, consistent views, atomic commits.

use smallvec::SmallVec;

use super::{Disk, Size, StoreError};

/// The ordered key spaces; [`super::record`] describes the rows in each.
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

    /// The name on disk, independent of the variant's name: renaming a variant must not lose its rows.
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

/// A range of keys from `from` (inclusive) to `to` (exclusive); empty unless `from` is below `to`.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) from: Key,
    pub(crate) to: Key,
}

#[cfg(test)]
impl Span {
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.from.as_slice() <= key && key < self.to.as_slice()
    }
}

/// The order in which the rows of a span are returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Ascending,
    Descending,
}

/// The engine's own type for keys and values, so that a row is passed to the engine without a copy.
pub(crate) use ::fjall::Slice;

/// A key under construction or in a lookup. Nearly all fit in place, without an allocation.
pub(crate) type Key = SmallVec<[u8; 64]>;

/// A key and its value.
pub(crate) type Row = (Slice, Slice);

/// A consistent state between two commits: it shows no later commit, and no commit in part.
pub(crate) trait View: Send {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, StoreError>;

    /// The first `limit` rows of the span in the given order.
    fn range(&self, space: Space, span: &Span, order: Order, limit: usize) -> Result<Vec<Row>, StoreError>;

    /// Bytes of rows that were written since the engine was opened, which grows behind the view's back. The engine keeps in memory
    /// what is written while a view exists. Zero for an engine without files.
    fn written(&self) -> u64 {
        0
    }
}

/// The writes of one commit: `None` deletes the row. No key appears twice.
pub(crate) type Batch = Vec<(Space, Slice, Option<Slice>)>;

/// An engine. One thread commits, any number of threads read.
pub(crate) trait Kv: Send + Sync + 'static {
    fn view(&self) -> Box<dyn View>;

    /// Applies the batch as a whole or not at all. Once the call returns, it survives a power loss; no view shows it
    /// before. After an error it is unknown whether the batch was written: the engine is not written to again, and no
    /// view shows the batch until the engine is opened again.
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;

    /// The size on disk. May wait for a commit in progress.
    fn size(&self) -> Result<Size, StoreError>;

    /// The file system that the commits go to; `None`: there is none, or the system does not tell.
    fn disk(&self) -> Option<Disk>;

    /// Has files deleted, soon and in the background, that the engine no longer needs and would keep until more is written.
    fn make_room(&self) {}
}
