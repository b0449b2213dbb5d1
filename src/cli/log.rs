//! `bimip log`: shows or changes the log filter of a running server.

use super::control::Running;
use super::{Failure, say};
use crate::server::control::{Answer, Request};

/// Show or change the log filter of the running server; a change lasts until it stops
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    running: Running,
    /// A level (error, warn, info, debug, trace), or levels per module, as in info,bimip::session=debug
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.running.ask(&Request::Log { filter: self.filter })? {
            Answer::Log(filter) => Ok(say(&filter)?),
            _ => Ok(say("changed, until the server ends")?),
        }
    }
}
