//! `bimip block`: blocks or unblocks somebody. A blocked user can neither write to this user nor see their presence.

use serde_json::json;

use super::once::Once;
use super::{Failure, say};
use crate::wire::{Eid, Lane};

/// Stop somebody from writing to you and from seeing your presence
#[derive(clap::Args)]
pub(super) struct Args {
    /// User to block, local@domain
    eid: Eid,
    /// Unblock instead
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    once: Once,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Args { eid, undo, once } = self;
        let json = once.json;
        once.ask("cli-block", &[Lane::Control], async |device| match undo {
            true => device.unblock(&eid).await,
            false => device.block(&eid).await,
        })?;
        let what = if undo { "unblocked" } else { "blocked" };
        say(&match json {
            true => json!({ "event": what, "eid": eid.as_str() }).to_string(),
            false => format!("{what} {eid}"),
        })?;
        Ok(())
    }
}
