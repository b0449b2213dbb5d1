//! `bimip restore`: makes a store from a backup in a data directory that has none.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::Context;

use super::control::Running;
use super::{Failure, owner, say};
use crate::store;

/// Make a store from a backup, in a data directory that has none, and check that all rows fit together
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    running: Running,
    /// File that `bimip backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.running.config()?;
        owner::not_as_root_in(&config.data_dir)?;
        let file = File::open(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let dir = config.data_dir.join("store");
        let (_, found) = store::restore(&mut BufReader::new(file), &dir)?;
        say(&format!(
            "{}: {} messages, {} of them not released yet, in the logs of {} users; everything fits together",
            dir.display(),
            found.messages,
            found.unreleased,
            found.users
        ))?;
        Ok(())
    }
}
