//! `bimip reload`: makes a running server read its certificate and token keys again, and reports whether it uses them.

use super::control::Running;
use super::{Failure, say};
use crate::server::control::Request;

/// Make the running server read its certificate and token keys again; fails if it keeps the former ones
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    running: Running,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        self.running.ask(&Request::Reload)?;
        Ok(say("certificate and token keys are what the files hold now; sessions go on")?)
    }
}
