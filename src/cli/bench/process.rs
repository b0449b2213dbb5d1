//! The server under test: its process, its usage, and how to start one if none was named.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use super::child::Tied;
use super::connection::Transport;
use crate::auth::dev::DevFiles;
use crate::cli::Usage as WrongUsage;
use crate::cli::control::ask;
use crate::config::Config;
use crate::server::control::{Answer, Request};

/// Selects the server to measure.
#[derive(clap::Args)]
#[command(next_help_heading = "The server")]
pub(super) struct SubjectFlags {
    /// A running server; without it one is started
    #[arg(long, value_name = "ADDR:PORT")]
    server: Option<SocketAddr>,
    /// The server's data directory, for its development certificate and token key
    #[arg(long, value_name = "DIR", requires = "server")]
    data_dir: Option<PathBuf>,
    /// Certificate authority of the server, instead of the data directory's
    #[arg(long, value_name = "FILE", requires = "server")]
    ca: Option<PathBuf>,
    /// Private key to sign tokens with, instead of the data directory's
    #[arg(long, value_name = "FILE", requires = "server")]
    token_key: Option<PathBuf>,
    /// The name in the server's certificate
    #[arg(long, value_name = "NAME", requires = "server", default_value = "localhost")]
    server_name: String,
    /// The server's process id, for CPU and memory
    #[arg(long, requires = "server")]
    pid: Option<u32>,
    /// Transport of the devices
    #[arg(long, value_enum, default_value_t = Transport::Quic)]
    transport: Transport,
}

/// A server to measure, and its process id if it is known.
pub(super) struct Subject {
    pub(super) server: SocketAddr,
    pub(super) ca: PathBuf,
    pub(super) token_key: PathBuf,
    pub(super) server_name: String,
    pub(super) transport: Transport,
    pub(super) pid: Option<u32>,
    /// Its data directory, if that is known.
    data_dir: Option<PathBuf>,
    /// A server that was started for this; it ends with the subject, and its data are deleted.
    own: Option<(Running, Settings, tempfile::TempDir)>,
}

/// Settings for a server that is started here.
#[derive(Clone, Copy, Default)]
pub(super) struct Settings {
    /// Keep the default limits on users and addresses. Without them, the server's own capacity is measured.
    pub(super) limited: bool,
    /// Entries that the retention keeps of one user's log; `None` for the default.
    pub(super) entries_per_user: Option<u64>,
}

impl SubjectFlags {
    /// Whether the server is started here.
    pub(super) fn is_own(&self) -> bool {
        self.server.is_none()
    }

    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// The server that was named, or a new process of this program. Its data directory is temporary, in the working
    /// directory, because on an in-memory file system the disk would seem too fast.
    pub(super) fn find(&self) -> anyhow::Result<Subject> {
        self.find_or_start(Settings::default())
    }

    /// As [`SubjectFlags::find`], with settings for a server that is started.
    pub(super) fn find_or_start(&self, settings: Settings) -> anyhow::Result<Subject> {
        let Some(server) = self.server else {
            return Subject::start(own_folder()?, settings, self.transport);
        };
        let files = self.data_dir.as_deref().map(DevFiles::in_data_dir);
        let needs = WrongUsage("--server needs --data-dir with development files, or --ca and --token-key");
        Ok(Subject {
            server,
            ca: self.ca.clone().or_else(|| Some(files.as_ref()?.ca.clone())).ok_or(needs)?,
            token_key: self.token_key.clone().or_else(|| Some(files.as_ref()?.token_key.clone())).ok_or(needs)?,
            server_name: self.server_name.clone(),
            transport: self.transport,
            pid: self.pid,
            data_dir: self.data_dir.clone(),
            own: None,
        })
    }
}

/// A temporary folder in the working directory.
pub(super) fn own_folder() -> anyhow::Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("bimip-bench-").tempdir_in(".")?)
}

impl Subject {
    /// Starts a server on this data directory, which is removed with it.
    pub(super) fn start(
        folder: tempfile::TempDir,
        settings: Settings,
        transport: Transport,
    ) -> anyhow::Result<Subject> {
        let running = Running::start(folder.path(), (Ipv4Addr::LOCALHOST, 0).into(), settings)?;
        let files = DevFiles::in_data_dir(folder.path());
        Ok(Subject {
            server: running.server,
            ca: files.ca,
            token_key: files.token_key,
            server_name: "localhost".to_owned(),
            transport,
            pid: Some(running.process.id()),
            data_dir: Some(folder.path().to_owned()),
            own: Some((running, settings, folder)),
        })
    }

    /// Kills the own server and starts it again with the same address and data; returns when it was gone.
    pub(super) fn restart(&mut self) -> anyhow::Result<Instant> {
        self.restart_after(|_| Ok(()))
    }

    /// As [`Subject::restart`]; in between something is done to its data directory. Returns when the start began.
    pub(super) fn restart_after(&mut self, act: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<Instant> {
        let (running, settings, folder) = self.own.as_mut().context("only a server of one's own is restarted")?;
        running.process.end();
        act(folder.path())?;
        let began = Instant::now();
        *running = Running::start(folder.path(), self.server, *settings)?;
        self.pid = Some(running.process.id());
        Ok(began)
    }

    /// Kills the own server; returns its data directory.
    pub(super) fn end(mut self) -> anyhow::Result<tempfile::TempDir> {
        let (_running, _, folder) = self.own.take().context("only a server of one's own is ended")?;
        Ok(folder)
    }

    /// What the server's process has used so far, if its process id is known.
    pub(super) fn usage(&self) -> Option<Usage> {
        self.pid.and_then(Usage::of)
    }

    /// How many devices are connected, if the server can be asked.
    pub(super) fn connected(&self) -> Option<usize> {
        let config = Config { data_dir: self.data_dir.clone()?, ..Config::default() };
        match ask(&config, &Request::Status) {
            Ok(Some((Answer::Status(status), _))) => Some(status.connected),
            _ => None,
        }
    }
}

struct Running {
    /// It was started for a measurement; its data are not needed.
    process: Tied,
    server: SocketAddr,
}

impl Running {
    fn start(data_dir: &Path, listen: SocketAddr, settings: Settings) -> anyhow::Result<Running> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--dev", "--metrics-listen", "127.0.0.1:0", "--listen", &listen.to_string()]);
        command.arg("--data-dir").arg(data_dir);
        if !settings.limited {
            // Measure the server's capacity, not its limits on a user or an address.
            let limits = ["FRAMES", "MESSAGES", "AWARENESS", "SIGN_INS"];
            command.envs(limits.map(|limit| (format!("BIMIP_LIMITS__{limit}__PER_SECOND"), "0")));
            command.env("BIMIP_LIMITS__CONNECTIONS_PER_ADDRESS", "0");
        }
        if let Some(entries) = settings.entries_per_user {
            command.env("BIMIP_RETENTION__ENTRIES_PER_USER", entries.to_string());
        }
        let mut process = Tied::start(command.env("BIMIP_LOG__LEVEL", "warn").stdout(Stdio::piped()))?;
        let output = process.take_output().context("the server's output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("quic="));
        let Some(address) = address else { bail!("the server did not start: {line:?}") };
        Ok(Running { server: address.parse()?, process })
    }
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    /// Open file descriptors.
    pub(super) descriptors: u64,
}

impl Usage {
    /// Reads `/proc`; `None` where that cannot be read.
    pub(super) fn of(pid: u32) -> Option<Usage> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name may contain anything; it ends at the last parenthesis.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: u64 = resident.split_whitespace().next()?.parse().ok()?;
        // USER_HZ is 100 on all common Linux systems.
        Some(Usage {
            cpu_seconds: ticks as f64 / 100.0,
            resident_bytes: kibibytes * 1024,
            // The descriptors of another user's process are not visible.
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |open| open.count() as u64),
        })
    }
}
