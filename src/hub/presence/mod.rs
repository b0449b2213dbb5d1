//! Presence: who sees what of whom, and who has to be told (4.1, profile 5). In memory only; no disk on its path.
//!
//! A watch is one session's presence lane. It stands with every owner whom its user may see, so that a change costs one
//! mark for each watch that is connected, and no look-up of lists. What is queued for a watch is only *whose* state it
//! has to look at, once for each owner: a slow lane, or an owner who flaps, leaves nothing behind but the newest state.

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
