//! `bimip reload`: makes a running server read its certificate and token keys again, and reports whether it uses them.

use super::control::Running;
use super::{Failure, say};
use crate::server::control::{Answer, Request};

/// Make the running server read its certificate and token keys again; fails if it keeps the former ones
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    running: Running,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let answer = self.running.ask(&Request::Reload)?;
        say("certificate and token keys are what the files hold now; sessions go on")?;
        if let Answer::Reloaded(faults) = answer {
            faults.iter().try_for_each(|fault| say(&format!("clients will refuse the certificate: {fault}")))?;
        }
        Ok(())
    }
}
