//! Options that several commands share, and how they become the configuration's topmost layer.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::config::{Config, ConfigError};

/// Where the file is; in every command.
#[derive(clap::Args)]
pub(super) struct ConfigFile {
    /// TOML file with the configuration
    #[arg(long = "config", value_name = "FILE", env = "BIMIP_CONFIG")]
    path: Option<PathBuf>,
}

impl ConfigFile {
    /// The configuration with `flags` on top.
    pub(super) fn load(&self, flags: impl Serialize) -> Result<Config, ConfigError> {
        Config::load(self.path.as_deref(), flags)
    }
}

/// What the server's command line can set; serializes to the keys of [`Config`].
#[derive(clap::Args, Serialize)]
pub(super) struct ServerFlags {
    /// Folder for messages, and in development for certificates and keys [bimip-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address for devices; port 0 takes a free one [0.0.0.0:4433]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Address for metrics and health checks [127.0.0.1:9464]
    #[arg(long, value_name = "ADDR:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Domains whose users live here, separated by commas [any]
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',')]
    domains: Option<Vec<String>>,
    /// Development: make the certificates and the token key that are missing in the data directory
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dev: bool,
    #[command(flatten)]
    quic: QuicFlags,
}

/// Those of `[quic]`.
#[derive(clap::Args, Serialize)]
struct QuicFlags {
    /// Folder for a qlog trace of each QUIC connection [none are written]
    #[arg(long = "qlog", value_name = "DIR")]
    qlog_dir: Option<PathBuf>,
}
