//! `bimip config`: prints the configuration in effect, or checks the files and ports that it names.

use super::doctor::finding::{Finding, Report};
use super::doctor::{files, network, running};
use super::options::{ConfigFile, ServerFlags};
use super::{Failure, say};
use crate::config::Config;
use crate::server::control::Status;

/// Print the configuration in effect as TOML, or check whether a server could start with it (--check)
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    flags: ServerFlags,
    /// Instead of printing it, check whether a server could start with it: certificate, keys, data directory, folder
    /// for traces and ports; exits 1 if not
    #[arg(long)]
    check: bool,
    /// With --check: print one JSON object per check
    #[arg(long, requires = "check")]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.file.load(self.flags)?;
        if !self.check {
            return Ok(say(config.to_toml().trim_end())?);
        }
        let mut report = Report::new(self.json);
        let answers = files::answers(&config, &mut report)?;
        let running = if answers { running(&config)? } else { None };
        check(&config, running.as_ref(), answers.then_some(files::space), &mut report)?;
        report.end()
    }
}

/// Checks everything that a start needs. If one fails, a server would not serve. `space` looks for free space; `None` if the
/// data directory does not answer.
fn check(
    config: &Config,
    running: Option<&Status>,
    space: Option<impl FnOnce(&Config) -> Option<Finding>>,
    report: &mut Report,
) -> std::io::Result<()> {
    files::credentials(config, &[], report)?;
    if let Some(space) = space {
        report.add([files::data(config)])?;
        // At most a warning: a server with little room starts and lets retention free some; refusing to start would free
        // none.
        report.add(space(config).map(Finding::at_most_warn))?;
    }
    report.add(files::traces(config))?;
    report.add(network::ports(config, running))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Grade;

    #[test]
    fn a_nearly_full_disk_keeps_no_server_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        let any = ([127, 0, 0, 1], 0).into();
        let data_dir = folder.path().to_owned();
        let config = Config { data_dir, dev: true, listen: any, metrics_listen: any, ..Config::default() };
        let mut report = Report::new(true);
        check(&config, None, Some(|_: &_| Some(files::room(1024 * 1024))), &mut report).unwrap();
        let room = report.findings.iter().find(|finding| finding.found == "1 MiB free").unwrap();
        assert!(room.grade == Grade::Warn && room.advice.is_some());
        report.end().unwrap();
        assert_eq!(files::room(1024 * 1024).grade, Grade::Fail, "to doctor it is one");
    }
}
