//! Options of a device, and its start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::{mpsc, watch};

use super::backoff::Jitter;
use super::core::{Core, Now, Settings};
use super::device::{Device, State, unix_ms};
use super::dial::{Dialer, host};
use super::error::BuildError;
use super::inbox::{Events, Inbox};
use super::limits::{COMMANDS_MAX, IDLE_TIMEOUT, KEEP_ALIVE, QUIC_RETRY_MIN, SILENCE_MAX};
use super::networks::Networks;
use super::outbox::{MemoryOutbox, Outbox};
use super::task::Task;
use super::tickets::Tickets;
use super::tls::{quic_config, tcp_config};
use super::token::TokenSource;
use super::transport::Transports;
use crate::wire::{DeviceId, Eid, Lane, Sequence};

/// Options of a [`Device`]: server, identity, token and trusted certificates are needed, the rest has defaults.
#[must_use]
pub struct Builder {
    server: Option<String>,
    server_name: Option<String>,
    roots: Option<Roots>,
    identity: Option<(Eid, DeviceId)>,
    tokens: Option<Arc<dyn TokenSource>>,
    outbox: Box<dyn Outbox>,
    client: String,
    pipelined: bool,
    resume_from: Option<Sequence>,
    lanes: Vec<Lane>,
    transports: Transports,
    retry_quic_after: Duration,
    bind: Option<SocketAddr>,
    auto_deliver: bool,
    auto_sync: bool,
    keep_alive: Option<Duration>,
    idle_timeout: Duration,
    silence: Duration,
    #[cfg(feature = "qlog")]
    qlog: Option<super::dial::TraceSink>,
}

enum Roots {
    Store(RootCertStore),
    Pem(PathBuf),
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            server: None,
            server_name: None,
            roots: None,
            identity: None,
            tokens: None,
            outbox: Box::new(MemoryOutbox),
            client: concat!("bimip/", env!("CARGO_PKG_VERSION")).to_owned(),
            pipelined: true,
            resume_from: None,
            lanes: vec![Lane::Control, Lane::Chat, Lane::Presence],
            transports: Transports::default(),
            retry_quic_after: QUIC_RETRY_MIN,
            bind: None,
            auto_deliver: false,
            auto_sync: true,
            keep_alive: Some(KEEP_ALIVE),
            idle_timeout: IDLE_TIMEOUT,
            silence: SILENCE_MAX,
            #[cfg(feature = "qlog")]
            qlog: None,
        }
    }
}

impl Builder {
    /// `host:port`; an IPv6 address in brackets.
    pub fn server(mut self, server: impl Into<String>) -> Builder {
        self.server = Some(server.into());
        self
    }

    /// The name that the server's certificate must be for, where it is not the host.
    pub fn server_name(mut self, name: impl Into<String>) -> Builder {
        self.server_name = Some(name.into());
        self
    }

    /// The certificates that are trusted to vouch for the server. None are built in.
    pub fn roots(mut self, roots: RootCertStore) -> Builder {
        self.roots = Some(Roots::Store(roots));
        self
    }

    /// The same from a PEM file.
    pub fn roots_pem(mut self, path: impl AsRef<Path>) -> Builder {
        self.roots = Some(Roots::Pem(path.as_ref().to_owned()));
        self
    }

    /// Who this is. A device's id is its own: another device that uses it takes its place.
    pub fn identity(mut self, eid: Eid, device: DeviceId) -> Builder {
        self.identity = Some((eid, device));
        self
    }

    /// Where the token comes from: a `String`, or an async closure that fetches one.
    pub fn token(mut self, source: impl TokenSource) -> Builder {
        self.tokens = Some(Arc::new(source));
        self
    }

    /// Keeps unanswered messages beyond the process, as [`super::FileOutbox`] does. The default keeps them in memory.
    pub fn outbox(mut self, outbox: Box<dyn Outbox>) -> Builder {
        self.outbox = outbox;
        self
    }

    /// Name and version of the application, for the server's operator.
    pub fn client(mut self, name: impl Into<String>) -> Builder {
        self.client = name.into();
        self
    }

    /// Whether the server may deliver messages of this device before it has answered their version (profile 7). Default:
    /// yes, which saves a round trip.
    pub fn pipelined(mut self, pipelined: bool) -> Builder {
        self.pipelined = pipelined;
        self
    }

    /// Deliver what follows this entry; absent: what follows the outbox's cursor, or else the one that the server keeps
    /// for this device.
    pub fn resume_from(mut self, sequence: Option<Sequence>) -> Builder {
        self.resume_from = sequence;
        self
    }

    /// Lanes to open with the connection; others are opened when they are needed. Control always is. The server pushes
    /// a family only on an open lane. Default: all but media.
    pub fn lanes(mut self, lanes: &[Lane]) -> Builder {
        self.lanes = lanes.to_vec();
        self
    }

    /// What may carry the connection. Default: QUIC, and TLS over TCP where that does not get through.
    pub fn transports(mut self, transports: Transports) -> Builder {
        self.transports = transports;
        self
    }

    /// Where QUIC did not get through and TCP did, QUIC is tried again after this, and moved back to when it answers; each
    /// failure doubles the wait, up to an hour.
    pub fn retry_quic_after(mut self, wait: Duration) -> Builder {
        self.retry_quic_after = wait;
        self
    }

    /// The local address to start from. Connections after the first keep its IP, with any port, until
    /// [`Device::network_changed`] or [`Device::rebind`]. Default: any.
    pub fn bind(mut self, address: SocketAddr) -> Builder {
        self.bind = Some(address);
        self
    }

    /// Whether a message counts as delivered, and is acknowledged so, once the application took its event. Default: no. An
    /// acknowledgment also tells the server that everything before it is safe here, so this needs [`Builder::auto_sync`].
    pub fn auto_deliver(mut self, auto_deliver: bool) -> Builder {
        self.auto_deliver = auto_deliver;
        self
    }

    /// Whether entries count as safe, and are not delivered again to a later process, once the application took their
    /// events. Default: yes. Switch it off to call [`Device::sync`] when they are stored, and
    /// [`Device::acknowledge`] not before.
    pub fn auto_sync(mut self, auto_sync: bool) -> Builder {
        self.auto_sync = auto_sync;
        self
    }

    /// Silence after which a packet keeps the path's NAT bindings alive; `None`: never.
    pub fn keep_alive(mut self, interval: Option<Duration>) -> Builder {
        self.keep_alive = interval;
        self
    }

    /// Silence after which the connection is given up. The server has its own; the shorter one holds.
    pub fn idle_timeout(mut self, timeout: Duration) -> Builder {
        self.idle_timeout = timeout;
        self
    }

    /// Silence after which it is given up while an answer is owed.
    pub fn silence(mut self, silence: Duration) -> Builder {
        self.silence = silence;
        self
    }

    /// Writes a trace of each connection in qlog's JSON-SEQ; `sink` gives the writer of each, or `None` for no trace. It is
    /// written to from the connection's task: it must not block for long.
    #[cfg(feature = "qlog")]
    pub fn qlog(
        mut self,
        sink: impl Fn() -> Option<Box<dyn std::io::Write + Send + Sync>> + Send + Sync + 'static,
    ) -> Builder {
        self.qlog = Some(Box::new(sink));
        self
    }

    /// Starts the device: from here on it connects, and comes back, by itself.
    ///
    /// # Errors
    /// See [`BuildError`]. Nothing of the network is an error here: [`Device::connected`] and the state tell.
    pub fn connect(mut self) -> Result<(Device, Events), BuildError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| BuildError::Missing("a tokio runtime"))?;
        let server = self.server.ok_or(BuildError::Missing("server"))?;
        let (eid, device) = self.identity.ok_or(BuildError::Missing("identity"))?;
        let tokens = self.tokens.ok_or(BuildError::Missing("token"))?;
        let roots = self.roots.ok_or(BuildError::Missing("roots"))?.read()?;
        let host = host(&server).ok_or_else(|| BuildError::Server(server.clone()))?;
        let server_name = self.server_name.unwrap_or_else(|| host.to_owned());
        let tickets = Arc::new(Tickets::default());
        let tcp = Arc::new(tcp_config(roots.clone())?);
        let quic = quic_config(roots, tickets.clone(), self.keep_alive, self.idle_timeout)?;

        if self.auto_deliver && !self.auto_sync {
            return Err(BuildError::Contradiction(
                "auto_deliver tells the server that what the application took is safe, which auto_sync(false) leaves to \
                 Device::sync: acknowledge with Device::acknowledge instead",
            ));
        }

        let mut entropy = [0; 32];
        getrandom::fill(&mut entropy).map_err(|error| BuildError::Random(error.to_string()))?;
        let (name, seeds) = entropy.split_at(16);
        let number = |bytes: &[u8]| bytes.iter().fold(0u128, |number, byte| (number << 8) | u128::from(*byte));
        let seed = |bytes: &[u8]| number(bytes) as u64;

        let mut backlog = self.outbox.load(&eid).map_err(BuildError::Outbox)?;
        backlog.cursor = self.resume_from.or(backlog.cursor);
        let settings = Settings {
            eid: eid.clone(),
            device: device.clone(),
            client: self.client,
            pipelined: self.pipelined,
            auto_deliver: self.auto_deliver,
            auto_sync: self.auto_sync,
        };
        let now = Now { instant: std::time::Instant::now(), unix_ms: unix_ms() };
        let core = Core::new(settings, backlog, Jitter::new(seed(&seeds[..8])), now);

        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (state_sender, state) = watch::channel(State::Connecting);
        let (inbox, events) = Inbox::new();
        let dialer = Arc::new(Dialer {
            server,
            server_name,
            transports: self.transports,
            quic,
            tickets,
            tcp,
            tokens,
            networks: Mutex::new(Networks::new(self.retry_quic_after)),
            reached: Mutex::default(),
            #[cfg(feature = "qlog")]
            qlog: self.qlog.map(|sink| super::dial::Traced {
                sink,
                keep_alive: self.keep_alive,
                idle_timeout: self.idle_timeout,
            }),
        });
        let task = Task::new(core, dialer, self.outbox, inbox, receiver, state_sender)
            .lanes(self.lanes)
            .bind(self.bind)
            .silence(self.silence)
            .idle_timeout(self.idle_timeout)
            .jitter(Jitter::new(seed(&seeds[8..])));
        runtime.spawn(task.run());
        Ok((Device::new(commands, state, eid, device, number(name)), events))
    }
}

impl Roots {
    fn read(self) -> Result<RootCertStore, BuildError> {
        let path = match self {
            Roots::Store(store) => return Ok(store),
            Roots::Pem(path) => path,
        };
        let failed = |reason: String| BuildError::Roots { path: path.display().to_string(), reason };
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&path).map_err(|error| failed(error.to_string()))? {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            store.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
        if store.is_empty() {
            return Err(failed("it holds no certificate".into()));
        }
        Ok(store)
    }
}
