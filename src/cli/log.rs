//! `bimip log`: what a running server logs.

use super::control::Running;
use super::{Failure, say};
use crate::server::control::{Answer, Request};

/// Show or change what the running server logs, until it ends
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    running: Running,
    /// A level (error, warn, info, debug, trace), or levels by module, as in info,bimip::session=debug
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
