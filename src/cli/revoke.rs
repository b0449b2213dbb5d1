//! `bimip revoke`: makes the server refuse one token, all of a device or all of a user.

use std::path::PathBuf;

use anyhow::anyhow;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::json;

use super::once::Once;
use super::{Failure, say};
use crate::client::{RequestError, Revoke};
use crate::wire::{DeviceId, Eid, Lane};

/// Refuse tokens from now on, and close the sessions that were opened with them
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    what: What,
    /// User whose tokens to revoke; for another user, sign in with the scope admin [the token's user, else the user who signs in]
    #[arg(long, value_name = "EID")]
    user: Option<Eid>,
    #[command(flatten)]
    once: Once,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Revoke the token in this file; the token to sign in with is --token-file
    #[arg(long = "token", value_name = "FILE")]
    token: Option<PathBuf>,
    /// Revoke every token issued for this device until now; the device to sign in as is --device
    #[arg(long, value_name = "ID")]
    of_device: Option<DeviceId>,
    /// Revoke every token of the user issued until now
    #[arg(long)]
    all: bool,
}

/// The user that a token names, unchecked.
fn user_of(token: &str) -> Option<Eid> {
    let payload = token.split('.').nth(1)?;
    let claims: serde_json::Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    let name = claims.get("eid").or_else(|| claims.get("sub"))?.as_str()?;
    Eid::parse(name).ok()
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Args { what, user, once } = self;
        let json = once.json;
        let (revoke, kind, words) = match what {
            What { token: Some(path), .. } => {
                let token = std::fs::read_to_string(&path)
                    .map_err(|error| anyhow!("cannot read the token in {}: {error}", path.display()))?;
                (Revoke::Token(token.trim().to_owned()), "token", format!("the token in {}", path.display()))
            }
            What { of_device: Some(device), .. } => {
                let words = format!("every token of device {device} until now");
                (Revoke::Device(device), "device", words)
            }
            _ => (Revoke::All, "all", "every token until now".to_owned()),
        };
        // Whose token it is, it says itself; the server checks it.
        let user = user.or_else(|| match &revoke {
            Revoke::Token(token) => user_of(token),
            _ => None,
        });
        let device = match &revoke {
            Revoke::Device(device) => Some(device.to_string()),
            _ => None,
        };
        let eid = once.ask("cli-revoke", &[Lane::Control], async |own| {
            let eid = user.unwrap_or_else(|| own.eid().clone());
            let is_token = matches!(revoke, Revoke::Token(_));
            match own.revoke_of(&eid, revoke).await {
                Err(RequestError::Failed(why)) if why.is_empty() && is_token => Err(RequestError::Failed(format!(
                    "it is not a token of {eid} that a key of this server has signed; --all revokes all of a user's"
                ))),
                done => done.map(|()| eid),
            }
        })?;
        say(&match json {
            true => json!({ "event": "revoked", "eid": eid.as_str(), "what": kind, "device": device }).to_string(),
            false => format!("revoked for {eid}: {words}"),
        })?;
        Ok(())
    }
}
