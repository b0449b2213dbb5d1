//! An engine that keeps everything in memory and crashes on demand: for simulations and tests.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::kv::{Batch, Kv, Order, Row, Slice, Space, Span, View};
use super::{Disk, Size, StoreError};

type Spaces = [BTreeMap<Slice, Slice>; Space::COUNT];

/// What a commit that fails on demand leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Before,
    /// The whole batch: only the answer is lost. The batch becomes visible once the engine is opened again.
    After,
}

/// The rows of an embedded store that lives in memory. Clones share the rows, so that a store opened over one clone can
/// be crashed and opened again.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    rows: Arc<Spaces>,
    /// The commit that [`Fault::After`] has left: no view shows it before the next crash.
    unseen: Option<Batch>,
    /// Number of commits until one fails, and how it fails.
    fault: Option<(usize, Fault)>,
    failed: bool,
    commits: usize,
    disk: Option<Disk>,
}

impl Memory {
    /// An engine without any rows.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Lets the next `commits` commits succeed and fails all later ones, until [`Memory::crash`]. `fault` says what the
    /// first failed commit leaves behind.
    pub fn fail_after(&self, commits: usize, fault: Fault) {
        self.state().fault = Some((commits, fault));
    }

    /// Says how much space is left, as if the rows were on this disk; `None`, as at first: they are on none.
    pub fn set_disk(&self, disk: Option<Disk>) {
        self.state().disk = disk;
    }

    /// Cancels a planned failure that has not happened yet.
    #[cfg(test)]
    pub(crate) fn heal(&self) {
        self.state().fault = None;
    }

    /// Simulates the end of the process, after which the engine is opened again. Clears faults.
    pub fn crash(&self) {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(batch) = state.unseen.take() {
            write(Arc::make_mut(&mut state.rows), batch);
        }
        state.fault = None;
        state.failed = false;
    }

    /// Number of commits that took effect.
    pub fn commits(&self) -> usize {
        self.state().commits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock can be used: nothing panics half-way through a change while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(spaces: &mut Spaces, batch: Batch) {
    for (space, key, value) in batch {
        let rows = &mut spaces[space.index()];
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
}

impl Kv for Memory {
    fn view(&self) -> Box<dyn View> {
        Box::new(Frozen(self.state().rows.clone()))
    }

    fn size(&self) -> Result<Size, StoreError> {
        Ok(Size::default())
    }

    fn disk(&self) -> Option<Disk> {
        self.state().disk
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut state = self.state();
        let state = &mut *state;
        if state.failed {
            return Err(StoreError::Engine("failed before".into()));
        }
        let fault = match &mut state.fault {
            Some((0, fault)) => Some(*fault),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        state.failed = fault.is_some();
        if fault != Some(Fault::Before) {
            state.commits += 1;
        }
        match fault {
            Some(Fault::Before) => Err(StoreError::Engine("told to fail before".into())),
            Some(Fault::After) => {
                state.unseen = Some(batch);
                Err(StoreError::Engine("told to fail after".into()))
            }
            None => {
                // Copies the rows only while a view holds them.
                write(Arc::make_mut(&mut state.rows), batch);
                Ok(())
            }
        }
    }
}

struct Frozen(Arc<Spaces>);

impl View for Frozen {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        Ok(self.0[space.index()].get(key).cloned())
    }

    fn range(&self, space: Space, span: &Span, order: Order, limit: usize) -> Result<Vec<Row>, StoreError> {
        if span.from >= span.to {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Included(span.from.as_slice()), Bound::Excluded(span.to.as_slice()));
        let rows = self.0[space.index()].range::<[u8], _>(bounds).map(|(key, value)| (key.clone(), value.clone()));
        Ok(match order {
            Order::Ascending => rows.take(limit).collect(),
            Order::Descending => rows.rev().take(limit).collect(),
        })
    }
}
