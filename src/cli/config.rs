//! `bimip config`: prints the configuration in effect.

use super::options::{ConfigFile, ServerFlags};
use super::{Failure, say};

/// Check the configuration, and print the one in effect as TOML
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    flags: ServerFlags,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.file.load(self.flags)?;
        say(config.to_toml().trim_end())?;
        Ok(())
    }
}
