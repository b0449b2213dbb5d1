//! The server as a separate process, which a test can kill.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use bimip::limits;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::server::Door;
use super::within_bound;

/// A running `bimip serve --dev`. Its standard error is kept in a file beside its data.
pub struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
    data_dir: PathBuf,
    /// Where the metrics are.
    pub pages: SocketAddr,
    /// How devices get in.
    pub door: Door,
}

impl Process {
    /// Starts it and waits for its ready line. `variables` are set in its environment.
    pub async fn start(data_dir: &Path, variables: &[(&str, &str)]) -> Process {
        let mut program = program(data_dir);
        program.envs(variables.iter().copied());
        Process::run(program, data_dir).await
    }

    /// Starts it as a process that may open so many files. One address may have all connections.
    pub async fn with_open_files(data_dir: &Path, open_files: usize) -> Process {
        let program = program(data_dir);
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("ulimit -n {open_files} && exec \"$0\" \"$@\""));
        shell.arg(program.as_std().get_program()).args(program.as_std().get_args());
        shell.env("BIMIP_LIMITS__CONNECTIONS_PER_ADDRESS", "0");
        Process::run(shell, data_dir).await
    }

    async fn run(mut program: Command, data_dir: &Path) -> Process {
        std::fs::create_dir_all(data_dir).expect("a directory");
        let log = std::fs::File::options().create(true).append(true).open(log_file(data_dir)).expect("a log");
        let mut child =
            program.stdout(Stdio::piped()).stderr(log).kill_on_drop(true).spawn().expect("the program runs");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        within_bound("the ready line", stdout.read_line(&mut line)).await.expect("it is text");
        let address =
            |what| line.split_whitespace().find_map(|word| word.strip_prefix(what)?.parse::<SocketAddr>().ok());
        let (Some(quic), Some(pages)) = (address("quic="), address("metrics=")) else {
            panic!("no ready line: {line:?}\n{}", std::fs::read_to_string(log_file(data_dir)).unwrap_or_default())
        };
        let door = Door::new(data_dir, quic, limits::FRAME_BYTES_MAX);
        Process { child, stdout, data_dir: data_dir.to_owned(), pages, door }
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Sends SIGKILL and waits until the process is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it was running");
    }

    /// Sends a signal.
    #[allow(unsafe_code)]
    pub fn signal(&self, signal: i32) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).expect("it is running");
        // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
    }

    /// Waits for its end, and asserts that it printed nothing but the ready line.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = within_bound("the process to end", self.child.wait()).await.expect("it was started");
        let mut rest = String::new();
        within_bound("the end of standard output", self.stdout.read_line(&mut rest)).await.expect("it is text");
        assert_eq!(rest, "");
        status
    }

    /// The lines that this process, and earlier ones on the same directory, wrote to standard error. An incomplete last line
    /// is left out, so a test that needs a certain line must look for it after the process has ended.
    pub fn log(&self) -> String {
        let mut log = std::fs::read(log_file(&self.data_dir)).expect("a log");
        log.truncate(log.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1));
        String::from_utf8(log).expect("it is text")
    }

    /// Waits until a line with this text is in the log.
    pub async fn logs(&self, text: &str) {
        let logged = async {
            while !self.log().contains(text) {
                tokio::task::yield_now().await;
            }
        };
        within_bound(text, logged).await;
    }
}

/// A command that runs `bimip serve --dev` on free ports.
pub fn program(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bimip"));
    // Variables that configure a server of the developer must not configure this one.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BIMIP_")) {
        command.env_remove(name);
    }
    command
        .args(["serve", "--dev", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir"])
        .arg(data_dir)
        .env("BIMIP_LOG__FORMAT", "human");
    command
}

fn log_file(data_dir: &Path) -> PathBuf {
    data_dir.join("stderr.log")
}
