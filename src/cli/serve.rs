//! `bimip serve`: the server.

use super::Failure;
use super::options::{ConfigFile, ServerFlags};
use crate::auth::Credentials;
use crate::config::Config;

/// Run the server
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    flags: ServerFlags,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        Ok(run(self.file.load(self.flags)?)?)
    }
}

/// Brings certificate and keys in order, before anything is bound.
fn run(config: Config) -> anyhow::Result<()> {
    Credentials::from_config(&config)?;
    Ok(())
}
