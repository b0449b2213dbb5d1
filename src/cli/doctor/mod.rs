//! `bimip doctor`: finds what is wrong with this machine or this server, and says what to do about it.

pub(super) mod files;
pub(super) mod finding;
mod machine;
pub(super) mod network;

use std::convert::identity;
use std::path::PathBuf;

use serde::Serialize;

use super::control::ask;
use super::options::ConfigFile;
use super::{Failure, Usage};
use crate::auth::dev::DevFiles;
use crate::config::Config;
use crate::server::control::{Answer, Request, Status};
use finding::{Finding, Report};

/// Check what keeps a server from serving well, and say what to change
#[derive(clap::Args)]
#[command(
    after_help = "Run it as the user that the server runs as: root may write where that one may not.\nExits 1 if a check \
                  says FAIL; WARN alone exits 0. Changes nothing, but for files in the data directory and the folder for \
                  traces, or above them if they are missing, that are gone again."
)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// Data directory of the server [data_dir of --config, else bimip-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The server is a development server: it makes missing certificates and keys when it starts
    #[arg(long)]
    dev: bool,
    /// Also make a handshake with this server, as a client does
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// PEM file with the authority that issued its certificate [client.ca, else the data directory's certs/ca.pem]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Check only that server, not this machine
    #[arg(long, requires = "server")]
    remote: bool,
    /// Print one JSON object per check
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Flags {
    data_dir: Option<PathBuf>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dev: bool,
    client: ClientFlags,
}

#[derive(Serialize)]
struct ClientFlags {
    server: Option<String>,
    ca: Option<PathBuf>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let asked = self.server.clone();
        let client = ClientFlags { server: self.server, ca: self.ca };
        let mut config = self.file.load(Flags { data_dir: self.data_dir, dev: self.dev, client })?;
        let name = asked.as_deref().map(host).transpose()?;
        let mut report = Report::new(self.json);
        if !self.remote {
            let answers = files::answers(&config, &mut report)?;
            let running = if answers { running(&config)? } else { None };
            // It runs with what it made itself.
            config.dev |= running.as_ref().is_some_and(|status| status.dev);
            report.add(running.as_ref().map(ready))?;
            files::credentials(&config, name.as_slice(), identity, &mut report)?;
            if answers {
                report.add([files::data(&config, identity)])?;
                report.add(files::space(&config))?;
                report.add(files::disk(&config))?;
                report.add([machine::clock(&config)])?;
            }
            report.add(files::traces(&config))?;
            report.add(machine::all(&config, running.as_ref().map(|status| status.pid)))?;
            let ports = network::ports(&config, running.as_ref());
            // The running server may have been started with flags that this command was not given.
            report.add(
                ports.into_iter().map(|finding| if running.is_some() { finding.at_most_warn() } else { finding }),
            )?;
            let serving = running.and_then(|status| status.quic.parse().ok());
            report.add([network::udp(config.listen, serving)])?;
        }
        if let (Some(server), Some(name)) = (asked, name) {
            let ca = config.client.ca.clone().unwrap_or_else(|| DevFiles::in_data_dir(&config.data_dir).ca);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            report.add(runtime.block_on(network::server(&server, &name, &ca)))?;
        }
        report.end()
    }
}

/// Whether the running server takes traffic.
fn ready(status: &Status) -> Finding {
    match &status.not_ready {
        None => Finding::ok("ready", "the running server takes messages".to_owned()),
        Some(reason) => Finding::fail(
            "ready",
            format!("the running server does not take messages: {reason}"),
            "if it is draining, it was told to stop: start it again. If the store failed, mend the disk and restart the server: \
             its log and /readyz say more",
        ),
    }
}

/// The status of the server that runs on the data directory, if there is one.
pub(super) fn running(config: &Config) -> Result<Option<Status>, Failure> {
    match ask(config, &Request::Status)? {
        Some((Answer::Status(status), _)) => Ok(Some(status)),
        _ => Ok(None),
    }
}

/// The host of `host:port`; an IPv6 address without its brackets.
fn host(server: &str) -> Result<String, Usage> {
    let host = server.rsplit_once(':').map(|(host, _)| host).unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() { Err(Usage("--server must be host:port")) } else { Ok(host.to_owned()) }
}
