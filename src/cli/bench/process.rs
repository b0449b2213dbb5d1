//! The server under test: its process, what it costs, and one of our own where none was named.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// Which server to measure.
#[derive(clap::Args)]
pub(super) struct SubjectFlags {
    /// A running server; without it one is started
    #[arg(long, value_name = "ADDR:PORT", requires = "data_dir")]
    server: Option<SocketAddr>,
    /// Its data directory, for its development key
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Its process, for CPU and memory
    #[arg(long)]
    pid: Option<u32>,
}

/// A server to measure, and its process if that can be seen.
pub(super) struct Subject {
    pub(super) server: SocketAddr,
    pub(super) data_dir: PathBuf,
    pub(super) pid: Option<u32>,
    /// Ended and deleted with the subject.
    _own: Option<(Running, tempfile::TempDir)>,
}

impl SubjectFlags {
    /// The server that was named, or a process of this program with a temporary directory beside the working one: a
    /// temporary file system in memory would make the disk look too good.
    pub(super) fn find(&self) -> anyhow::Result<Subject> {
        if let Some(server) = self.server {
            let data_dir = self.data_dir.clone();
            let data_dir = data_dir.context("--server needs --data-dir, whose development key signs the tokens")?;
            return Ok(Subject { server, data_dir, pid: self.pid, _own: None });
        }
        let folder = tempfile::Builder::new().prefix("bimip-bench-").tempdir_in(".")?;
        let running = Running::start(folder.path())?;
        Ok(Subject {
            server: running.server,
            data_dir: folder.path().to_owned(),
            pid: Some(running.child.id()),
            _own: Some((running, folder)),
        })
    }
}

struct Running {
    child: Child,
    server: SocketAddr,
}

impl Running {
    fn start(data_dir: &Path) -> anyhow::Result<Running> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--dev", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            // What is measured is the server at its limit, not its limits on one user or address.
            .envs(
                ["FRAMES", "MESSAGES", "AWARENESS", "SIGN_INS"]
                    .map(|limit| (format!("BIMIP_LIMITS__{limit}__PER_SECOND"), "0")),
            )
            .env("BIMIP_LIMITS__CONNECTIONS_PER_ADDRESS", "0")
            .env("BIMIP_LOG__LEVEL", "warn")
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("the server's output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("quic="));
        let Some(address) = address else { bail!("the server did not start: {line:?}") };
        Ok(Running { server: address.parse()?, child })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It is a measurement's own server; nobody misses what it stored.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
}

impl Usage {
    /// From `/proc`; `None` where that cannot be read.
    pub(super) fn of(pid: u32) -> Option<Usage> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name, which may hold anything, ends at the last parenthesis.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: u64 = resident.split_whitespace().next()?.parse().ok()?;
        // USER_HZ is 100 on every Linux that anybody runs.
        Some(Usage { cpu_seconds: ticks as f64 / 100.0, resident_bytes: kibibytes * 1024 })
    }
}
