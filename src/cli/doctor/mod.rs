//! `bimip doctor`: what is wrong with this machine or this server, and what to do about it.

pub(super) mod files;
pub(super) mod finding;
mod machine;
pub(super) mod network;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::control::ask;
use super::options::ConfigFile;
use super::{Failure, Usage};
use crate::auth::dev::DevFiles;
use crate::config::Config;
use crate::server::control::{Answer, Request};

/// Look for what keeps a server from serving well, and say what to change
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// The server's folder [bimip-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Also make a handshake with this server, as its clients do
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// PEM file with the authority that vouches for it [client.ca, else the data directory's certs/ca.pem]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Look at that server alone, and not at this machine
    #[arg(long, requires = "server")]
    remote: bool,
    /// Print JSON, one object for each check
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Flags {
    data_dir: Option<PathBuf>,
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
        let config = self
            .file
            .load(Flags { data_dir: self.data_dir, client: ClientFlags { server: self.server, ca: self.ca } })?;
        let name = asked.as_deref().map(host).transpose()?;
        let mut findings = Vec::new();
        if !self.remote {
            let running = running(&config)?;
            findings.extend(files::credentials(&config, name.as_slice()));
            findings.extend(files::data(&config));
            findings.extend(files::disk(&config));
            findings.extend(machine::all(&config));
            findings.extend(network::ports(&config, running.is_some()));
            findings.push(network::udp(running.unwrap_or(config.listen), running.is_some()));
        }
        if let (Some(server), Some(name)) = (asked, name) {
            let ca = config.client.ca.clone().unwrap_or_else(|| DevFiles::in_data_dir(&config.data_dir).ca);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            findings.extend(runtime.block_on(network::server(&server, &name, &ca)));
        }
        finding::report(&findings, self.json)
    }
}

/// Where the server that runs on the data directory listens, if one does.
pub(super) fn running(config: &Config) -> Result<Option<SocketAddr>, Failure> {
    match ask(config, &Request::Status)? {
        Some((Answer::Status(status), _)) => Ok(status.quic.parse().ok()),
        _ => Ok(None),
    }
}

/// The host of `host:port`, an IPv6 address without its brackets.
fn host(server: &str) -> Result<String, Usage> {
    let host = server.rsplit_once(':').map(|(host, _)| host).unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() { Err(Usage("--server must be host:port")) } else { Ok(host.to_owned()) }
}
