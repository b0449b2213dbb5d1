//! Presence: who sees the state of whom, and who has to be notified (BIMip-Foundation 4.1; protocol.md §12). In memory
//! only, without the disk.
//!
//! A watch is one session's presence lane. It is registered with every owner whom its user may see, so that a change
//! costs one mark for each connected watch, and no lookup of lists. A watch queues only *whose* state it has to look
//! at, each owner once. A slow lane, or an owner whose state flaps, therefore accumulates nothing: only the newest
//! state is sent.

mod board;
#[cfg(test)]
mod sim;
mod state;
mod tally;
mod timing;
mod watch;

pub use board::Presence;
pub use state::{Location, Shown, Update};
pub use tally::Tally;
pub use timing::Timing;
pub use watch::{Told, Watch, WatchPlace};
