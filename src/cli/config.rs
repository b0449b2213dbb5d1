//! `bimip config`: prints the configuration in effect, or checks what it names.

use super::doctor::finding::report;
use super::doctor::{files, network, running};
use super::options::{ConfigFile, ServerFlags};
use super::{Failure, say};

/// Print the configuration in effect as TOML, or look whether a server could start with it (--check)
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    flags: ServerFlags,
    /// Instead of printing it, look whether a server could start with it: certificate, keys, data directory and ports; exits
    /// 1 if not
    #[arg(long)]
    check: bool,
    /// With --check: print JSON, one object for each check
    #[arg(long, requires = "check")]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.file.load(self.flags)?;
        if !self.check {
            return Ok(say(config.to_toml().trim_end())?);
        }
        let running = running(&config)?.is_some();
        let mut findings = files::credentials(&config, &[]);
        findings.extend(files::data(&config));
        findings.extend(network::ports(&config, running));
        report(&findings, self.json)
    }
}
