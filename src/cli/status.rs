//! `bimip status`: prints the state of the server on this machine.

use super::control::Running;
use super::{Failure, say};
use crate::server::control::{Answer, Request};

/// Print the state of the server that runs on a data directory
#[derive(clap::Args)]
#[command(after_help = "Exits 1 if the server is not ready, as while its store has failed.")]
pub(super) struct Args {
    #[command(flatten)]
    running: Running,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Answer::Status(status) = self.running.ask(&Request::Status)? else {
            return Err(anyhow::anyhow!("the server answered something else").into());
        };
        match self.json {
            true => say(&serde_json::to_string(&status)?)?,
            false => say(&format!(
                "bimip {}, process {}, for {} s: {} connected at {}; logs {}",
                status.version,
                status.pid,
                status.uptime_seconds,
                status.connected,
                status.quic,
                status.log.as_deref().unwrap_or("nothing")
            ))?,
        }
        match status.not_ready {
            Some(reason) => Err(anyhow::anyhow!("the server is not ready: {reason}").into()),
            None => Ok(()),
        }
    }
}
