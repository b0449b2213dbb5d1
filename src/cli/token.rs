//! `bimip token`: signs a token with the development key.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use serde::Serialize;

use super::options::ConfigFile;
use super::{Failure, Usage, say};
use crate::auth::dev::DevFiles;
use crate::auth::{Grant, Signer};
use crate::wire::{DeviceId, Eid};

/// Sign a token with the development key, and print it
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// Data directory in which `bimip serve --dev` made the key [bimip-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// User of the token, local@domain [client.as]
    #[arg(long, value_name = "EID")]
    eid: Option<Eid>,
    /// The only device that may use the token [client.device, else any]
    #[arg(long, value_name = "ID")]
    device: Option<DeviceId>,
    /// Lifetime: a number and s, m, h or d [24h]
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// Scopes, separated by spaces: admin may revoke any user's tokens
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
}

#[derive(Serialize)]
struct Flags {
    data_dir: Option<PathBuf>,
    client: ClientFlags,
    token: TokenFlags,
}

#[derive(Serialize)]
struct ClientFlags {
    #[serde(rename = "as")]
    as_eid: Option<String>,
    device: Option<String>,
}

#[derive(Serialize)]
struct TokenFlags {
    ttl: Option<String>,
    scope: Option<String>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.file.load(Flags {
            data_dir: self.data_dir,
            client: ClientFlags {
                as_eid: self.eid.map(|eid| eid.to_string()),
                device: self.device.map(|device| device.to_string()),
            },
            token: TokenFlags { ttl: self.ttl, scope: self.scope },
        })?;
        let Some(eid) = &config.client.as_eid else {
            return Err(Usage("no user: give --eid local@domain").into());
        };
        let key = DevFiles::in_data_dir(&config.data_dir).token_key;
        if !key.exists() {
            return Err(Failure::new(
                anyhow!("no token key {}", key.display()),
                format!("bimip serve --dev --data-dir {} makes one", config.data_dir.display()),
            ));
        }
        let grant = Grant {
            eid: Eid::parse(eid)?,
            device: config.client.device.as_deref().map(DeviceId::parse).transpose()?,
            ttl: config.token.ttl()?,
            scope: config.token.scope,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        say(&Signer::from_pem_file(&key)?.sign(&grant, i64::try_from(now)?)?)?;
        Ok(())
    }
}
