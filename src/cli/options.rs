//! Options that several commands share; they become the top layer of the configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::config::{Config, ConfigError};

/// The option for the configuration file, in every command.
#[derive(clap::Args)]
pub(super) struct ConfigFile {
    /// TOML file with the configuration
    #[arg(long = "config", value_name = "FILE", env = "BIMIP_CONFIG")]
    path: Option<PathBuf>,
}

impl ConfigFile {
    /// Loads the configuration with `flags` as its top layer.
    pub(super) fn load(&self, flags: impl Serialize) -> Result<Config, ConfigError> {
        Config::load(self.path.as_deref(), flags)
    }
}

/// The server settings on the command line; serialized with the keys of [`Config`].
#[derive(clap::Args, Serialize)]
pub(super) struct ServerFlags {
    /// Folder for messages, and in development for certificates and keys [bimip-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address for devices; port 0 picks a free one [0.0.0.0:4433]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Address for metrics and health checks [127.0.0.1:9464]
    #[arg(long, value_name = "ADDR:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Domains whose users this server has, separated by commas [any]
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',')]
    domains: Option<Vec<String>>,
    /// Development: make missing certificates and a missing token key in the data directory
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dev: bool,
    #[command(flatten)]
    quic: QuicFlags,
}

/// Settings of `[quic]`.
#[derive(clap::Args, Serialize)]
struct QuicFlags {
    /// Folder for a qlog trace of each QUIC connection [no traces]
    #[arg(long = "qlog", value_name = "DIR")]
    qlog_dir: Option<PathBuf>,
}
