//! Bugs on purpose, one at a time, to show that the simulation finds them, or that the server survives them. Tests only: no build has them.

use std::cell::Cell;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// An accepted message is not noted as waiting: a crash before its release loses the release.
    LostRelease,
    /// A repeated message takes a version before it is recognised.
    VersionGap,
    /// DELIVERED after READ is taken.
    AcknowledgmentBackwards,
    /// A tail that has read the store does not look for what came meanwhile.
    LostWakeUp,
    /// A session panics when a frame comes on the media lane.
    Panic,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Whether this one is in the code that this thread runs.
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Puts it there, or takes out what was there.
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
