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

/// Checks everything that a start needs. If one fails, a server would not serve. What keeps none from starting is at most a warning:
/// on a full disk a server lets retention free some, and with a certificate that has run out it serves whoever is connected, and takes
/// up the renewed one by itself. `space` looks for free space; `None` if the
/// data directory does not answer.
fn check(
    config: &Config,
    running: Option<&Status>,
    space: Option<impl FnOnce(&Config) -> Option<Finding>>,
    report: &mut Report,
) -> std::io::Result<()> {
    files::credentials(config, &[], Finding::at_most_warn, report)?;
    if let Some(space) = space {
        report.add([files::data(config, Finding::at_most_warn)])?;
        report.add(space(config).map(Finding::at_most_warn))?;
    }
    report.add(files::traces(config))?;
    report.add(network::ports(config, running))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Grade;
    use crate::store::Disk;

    #[test]
    fn a_certificate_that_clients_refuse_keeps_no_server_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        let made = crate::auth::dev::ensure(folder.path(), &[]).unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
        let key = rcgen::KeyPair::generate().unwrap();
        let old = params.self_signed(&key).unwrap();
        std::fs::write(&made.key, key.serialize_pem()).unwrap();
        // What follows has not issued it.
        std::fs::write(&made.certificate, old.pem() + &std::fs::read_to_string(&made.ca).unwrap()).unwrap();
        let any = ([127, 0, 0, 1], 0).into();
        let mut config = Config { listen: any, metrics_listen: any, ..Config::default() };
        config.data_dir = folder.path().to_owned();
        (config.tls.certificate, config.tls.key) = (Some(made.certificate), Some(made.key.clone()));
        config.auth.keys = vec![made.token_public];
        let certificate = |report: &Report| {
            let findings = report.findings.iter().filter(|finding| finding.check == "certificate");
            findings.map(|finding| (finding.grade, finding.found.clone())).collect::<Vec<_>>()
        };
        let mut report = Report::new(true);
        check(&config, None, None::<fn(&Config) -> Option<Finding>>, &mut report).unwrap();
        let found = certificate(&report);
        assert!(found.iter().all(|(grade, _)| *grade == Grade::Warn), "{found:?}");
        for fault in ["it ran out", "it is for no name", "the chain is not in order"] {
            assert!(found.iter().any(|(_, found)| found.starts_with(fault)), "{fault}: {found:?}");
        }
        report.end().unwrap();

        std::fs::write(&made.key, "no key").unwrap();
        let mut report = Report::new(true);
        check(&config, None, None::<fn(&Config) -> Option<Finding>>, &mut report).unwrap();
        assert!(certificate(&report).iter().any(|(grade, _)| *grade == Grade::Fail), "with this none starts");
    }

    #[test]
    fn a_nearly_full_disk_keeps_no_server_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        let any = ([127, 0, 0, 1], 0).into();
        let data_dir = folder.path().to_owned();
        let config = Config { data_dir, dev: true, listen: any, metrics_listen: any, ..Config::default() };
        let mut report = Report::new(true);
        let nearly_full = Disk { free: 1024 * 1024, size: 1 << 40 };
        check(&config, None, Some(|_: &_| Some(files::room(nearly_full))), &mut report).unwrap();
        let room = report.findings.iter().find(|finding| finding.found == "1 MiB free").unwrap();
        assert!(room.grade == Grade::Warn && room.advice.is_some());
        report.end().unwrap();
        assert_eq!(files::room(nearly_full).grade, Grade::Fail, "to doctor it is one");
    }
}
