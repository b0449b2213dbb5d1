//! The subjects of the comparison, each in a child process that ends with its subject.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::job::Figures;
use crate::cli::bench::child::Tied;

/// The relays' ALPN.
pub(super) const ALPN: &[u8] = b"bare";
/// How long mosquitto may take to listen.
const START_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    QuicRelay,
    /// The relay that has everything on disk before it passes it on.
    SyncedRelay,
    /// The relay that also speaks the protocol.
    AnsweringRelay,
    TlsRelay,
    SyncedTlsRelay,
    Mosquitto,
    Bimip,
    /// bimip over TLS on TCP, as mosquitto uses.
    BimipTcp,
}

impl Kind {
    pub(super) const ALL: [Kind; 8] = [
        Kind::QuicRelay,
        Kind::SyncedRelay,
        Kind::AnsweringRelay,
        Kind::TlsRelay,
        Kind::SyncedTlsRelay,
        Kind::Mosquitto,
        Kind::Bimip,
        Kind::BimipTcp,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::QuicRelay => "bare QUIC",
            Kind::SyncedRelay => "QUIC, synced",
            Kind::AnsweringRelay => "QUIC, frames",
            Kind::TlsRelay => "bare TLS",
            Kind::SyncedTlsRelay => "TLS, synced",
            Kind::Mosquitto => "mosquitto",
            Kind::Bimip => "bimip",
            Kind::BimipTcp => "bimip, TCP",
        }
    }
}

pub(super) struct Subject {
    pub(super) kind: Kind,
    pub(super) address: SocketAddr,
    pub(super) certificate: rcgen::Certificate,
    /// It holds no data worth keeping.
    process: Tied,
}

impl Subject {
    /// Starts the subject with a new certificate in `folder`; `None` if it is not installed.
    pub(super) fn start(kind: Kind, folder: &Path) -> anyhow::Result<Option<Subject>> {
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        std::fs::write(folder.join("cert.pem"), signed.cert.pem())?;
        std::fs::write(folder.join("key.pem"), signed.signing_key.serialize_pem())?;
        let started = match kind {
            Kind::Mosquitto => mosquitto(folder)?,
            Kind::Bimip | Kind::BimipTcp => bail!("bimip is measured by its own load generator"),
            _ => Some(relay(kind, folder)?),
        };
        Ok(started.map(|(process, address)| Subject { kind, address, certificate: signed.cert, process }))
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }
}

fn relay(kind: Kind, folder: &Path) -> anyhow::Result<(Tied, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "relay", "--certs"]).arg(folder).stdout(Stdio::piped());
    if matches!(kind, Kind::TlsRelay | Kind::SyncedTlsRelay) {
        command.arg("--tcp");
    }
    if matches!(kind, Kind::SyncedRelay | Kind::SyncedTlsRelay | Kind::AnsweringRelay) {
        command.arg("--log").arg(folder.join("relay.log"));
    }
    if kind == Kind::AnsweringRelay {
        command.arg("--answering");
    }
    let mut process = Tied::start(&mut command)?;
    let output = process.take_output().context("the relay's output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let address = line.trim().strip_prefix("address=").context("the relay did not start")?.parse()?;
    Ok((process, address))
}

/// Starts mosquitto with TLS, without persistence, and without limits that this job could reach.
fn mosquitto(folder: &Path) -> anyhow::Result<Option<(Tied, SocketAddr)>> {
    // The port was free a moment ago; nothing else here asks for ports meanwhile.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let file = |name: &str| folder.join(name).canonicalize();
    let log = folder.canonicalize()?.join("mosquitto.log");
    let config = format!(
        "listener {} 127.0.0.1\ncertfile {}\nkeyfile {}\nallow_anonymous true\npersistence false\nset_tcp_nodelay \
         true\nmax_inflight_messages 0\nmax_queued_messages 0\nlog_type error\nlog_dest file {}\nuser root\n",
        address.port(),
        file("cert.pem")?.display(),
        file("key.pem")?.display(),
        log.display()
    );
    let path = folder.join("mosquitto.conf");
    std::fs::write(&path, config)?;
    // On Debian it is in /usr/sbin, which may not be in a user's PATH.
    let search = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("mosquitto");
    let started = Tied::start(command.arg("-c").arg(&path).env("PATH", search).stderr(Stdio::null()));
    let mut process = match started {
        Ok(process) => process,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("starting mosquitto"),
    };
    let until = Instant::now() + START_WITHIN;
    while TcpStream::connect(address).is_err() {
        if process.has_ended()? || Instant::now() > until {
            bail!("mosquitto does not listen on {address}: {}", std::fs::read_to_string(&log).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Some((process, address)))
}

/// Does the same job with `bimip bench load`, which starts its own server.
pub(super) async fn load(transport: &str, receipts: bool, flags: &[String]) -> anyhow::Result<Figures> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["bench", "load", "--json", "--transport", transport])
        .args(receipts.then_some("--receipts"))
        .args(flags)
        .stdout(Stdio::piped());
    let mut process = Tied::start_measurement(&mut command)?;
    let mut output = process.take_output().context("the output of bimip bench load")?;
    // Read beside, so that a signal meanwhile ends the process.
    let told = tokio::task::spawn_blocking(move || {
        let mut told = Vec::new();
        output.read_to_end(&mut told).map(|_| told)
    });
    let told = told.await??;
    if !process.succeeds()? {
        bail!("bimip bench load failed");
    }
    let figures: serde_json::Value = serde_json::from_slice(&told)?;
    let number = |value: &serde_json::Value| value.as_f64().context("a figure of bimip bench load");
    let latency = &figures[if receipts { "receipted" } else { "delivered" }];
    Ok(Figures {
        per_second: number(&figures["messages_per_second"])?,
        cpu_us: number(&figures["server_cpu_us_per_message"])?,
        p50_us: number(&latency["p50_us"])? as u64,
        p99_us: number(&latency["p99_us"])? as u64,
    })
}
