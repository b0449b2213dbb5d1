//! Shared by the commands that talk to the server on this machine over its control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;

use anyhow::anyhow;
use serde::Serialize;

use super::Failure;
use super::limits::{CONTROL_ANSWER_BYTES_MAX, CONTROL_ANSWER_WITHIN};
use super::options::ConfigFile;
use crate::config::{Config, ConfigError};
use crate::server::control::{Answer, Request, socket};

/// Selects the server.
#[derive(clap::Args)]
pub(super) struct Running {
    #[command(flatten)]
    file: ConfigFile,
    /// Data directory of the server [data_dir of --config, else bimip-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Serialize)]
struct Flags {
    data_dir: Option<PathBuf>,
}

impl Running {
    pub(super) fn config(&self) -> Result<Config, ConfigError> {
        self.file.load(Flags { data_dir: self.data_dir.clone() })
    }

    /// Sends a request and returns the answer.
    pub(super) fn ask(&self, request: &Request) -> Result<Answer, Failure> {
        let config = self.config()?;
        match ask(&config, request)? {
            Some((answer, _)) => Ok(answer),
            None if SocketAddr::from_pathname(socket(&config.data_dir)).is_err() => Err(Failure::new(
                anyhow!(
                    "a server on {} cannot be asked: the path is too long for its socket",
                    config.data_dir.display()
                ),
                "move it to a data_dir of a shorter path, or give one that leads there, as a symbolic link",
            )),
            None => Err(Failure::new(
                anyhow!("no server runs on {}", config.data_dir.display()),
                "give the --data-dir or --config that it was started with",
            )),
        }
    }
}

/// Errors of connecting when no server listens.
const NOBODY: [io::ErrorKind; 3] =
    [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused, io::ErrorKind::InvalidInput];

/// Sends a request; returns the answer and a reader for what follows it. `None` if no server runs on the data
/// directory.
pub(super) fn ask(config: &Config, request: &Request) -> Result<Option<(Answer, impl Read)>, Failure> {
    let path = socket(&config.data_dir);
    let failed = |error: io::Error| anyhow!("the server at {}: {error}", path.display());
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        // An invalid path is one too long for a socket; a server there has no control socket.
        Err(error) if NOBODY.contains(&error.kind()) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Failure::new(failed(error), "run this as the user that the server runs as, or as root"));
        }
        Err(error) => return Err(failed(error).into()),
    };
    stream.set_read_timeout(Some(CONTROL_ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(CONTROL_ANSWER_WITHIN))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    let mut stream = BufReader::new(stream);
    let mut answer = String::new();
    stream.by_ref().take(CONTROL_ANSWER_BYTES_MAX).read_line(&mut answer).map_err(failed)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Refused(reason)) => Err(anyhow!("refused by the server: {reason}").into()),
        Ok(answer) => Ok(Some((answer, stream))),
        Err(_) if answer.is_empty() => {
            let busy = anyhow!("the server at {} did not answer", path.display());
            Err(Failure::new(busy, "it answers a few requests at once, and only its own user and root: try again"))
        }
        Err(error) => Err(anyhow!("the server at {} answered something else: {error}", path.display()).into()),
    }
}
