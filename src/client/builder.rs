//! Options of a device, and the start of its task.

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

/// Options of a [`Device`].
///
/// Required: [`server`](Builder::server), [`identity`](Builder::identity), [`token`](Builder::token), and the trusted
/// certificates ([`roots`](Builder::roots) or [`roots_pem`](Builder::roots_pem)). Every other option has a default.
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
    /// The server's address as `host:port`, an IPv6 address in brackets. Required; the port must not be 0.
    pub fn server(mut self, server: impl Into<String>) -> Builder {
        self.server = Some(server.into());
        self
    }

    /// The name for which the server's certificate must be valid. Default: the host of [`Builder::server`].
    pub fn server_name(mut self, name: impl Into<String>) -> Builder {
        self.server_name = Some(name.into());
        self
    }

    /// The root certificates that are trusted to sign the server's certificate. Required, here or with
    /// [`Builder::roots_pem`]: none are built in.
    pub fn roots(mut self, roots: RootCertStore) -> Builder {
        self.roots = Some(Roots::Store(roots));
        self
    }

    /// Like [`Builder::roots`], read from a PEM file. The file is read once, by [`Builder::connect`].
    pub fn roots_pem(mut self, path: impl AsRef<Path>) -> Builder {
        self.roots = Some(Roots::Pem(path.as_ref().to_owned()));
        self
    }

    /// The user and the device. Required. Each device of a user needs its own device id: if another device signs in
    /// with the same id, the server closes this one's session with REPLACED. Keep the id across starts of the
    /// application: the server allows 16 devices per user and counts each id until it signs out ([`Device::sign_out`]).
    pub fn identity(mut self, eid: Eid, device: DeviceId) -> Builder {
        self.identity = Some((eid, device));
        self
    }

    /// The source of the token: a `String`, or an async closure that fetches a token. Required. See [`TokenSource`].
    pub fn token(mut self, source: impl TokenSource) -> Builder {
        self.tokens = Some(Arc::new(source));
        self
    }

    /// Where unanswered messages and the position in the log are kept. Default: [`MemoryOutbox`], which keeps nothing
    /// beyond the process. [`super::FileOutbox`] keeps them in a file.
    pub fn outbox(mut self, outbox: Box<dyn Outbox>) -> Builder {
        self.outbox = outbox;
        self
    }

    /// Name and version of the application, for the log of the server's operator. The server keeps 64 characters.
    /// Default: `bimip/` and this crate's version.
    pub fn client(mut self, name: impl Into<String>) -> Builder {
        self.client = name.into();
        self
    }

    /// Whether the server may deliver this device's messages without waiting for the device to answer their
    /// VersionUpdate (protocol.md §7). Default: `true`, which saves a round trip. With `false`, delivery waits for that
    /// answer, for at most 1 s.
    pub fn pipelined(mut self, pipelined: bool) -> Builder {
        self.pipelined = pipelined;
        self
    }

    /// The log position after which delivery starts. Default (`None`): the position in the outbox or, if that has none,
    /// the one that the server keeps for this device. `Some(Sequence::ZERO)` asks for the whole log that the server
    /// still has.
    pub fn resume_from(mut self, sequence: Option<Sequence>) -> Builder {
        self.resume_from = sequence;
        self
    }

    /// The lanes that are opened with the connection. The control lane always is; the others are otherwise opened when
    /// first needed. The server sends events of a family only on its open lane: messages, receipts and VersionUpdates
    /// on chat, presence on presence. Default: control, chat and presence.
    ///
    /// Without chat the device receives no messages until it sends something on that lane or media. It does not open chat to
    /// say what is safe ([`Builder::auto_sync`], [`Device::sync`]): the server is told once chat is open.
    pub fn lanes(mut self, lanes: &[Lane]) -> Builder {
        self.lanes = lanes.to_vec();
        self
    }

    /// The transports that may be used. Default: [`Transports::Auto`], which is QUIC, and TLS over TCP where QUIC does
    /// not get through.
    pub fn transports(mut self, transports: Transports) -> Builder {
        self.transports = transports;
        self
    }

    /// How long to wait before trying QUIC again in a network where only TCP got through. The device returns to QUIC if
    /// that succeeds; each failure doubles the wait, up to 1 hour. Default: 30 s.
    pub fn retry_quic_after(mut self, wait: Duration) -> Builder {
        self.retry_quic_after = wait;
        self
    }

    /// The local address of the first connection. Later connections use the same IP address with any port, until
    /// [`Device::network_changed`] or [`Device::rebind`] is called. TCP uses the IP address only. Default: any address.
    pub fn bind(mut self, address: SocketAddr) -> Builder {
        self.bind = Some(address);
        self
    }

    /// Whether the device acknowledges a message as delivered once the application has taken its event. Default:
    /// `false`.
    ///
    /// Such an acknowledgment also tells the server that all earlier entries are safe on this device. It therefore
    /// needs [`Builder::auto_sync`]; without that, [`Builder::connect`] fails.
    pub fn auto_deliver(mut self, auto_deliver: bool) -> Builder {
        self.auto_deliver = auto_deliver;
        self
    }

    /// Whether an entry counts as safe on this device once the application has taken its event. A later process does
    /// not receive safe entries again. Default: `true`.
    ///
    /// Switch it off in an application that stores what it receives: store the entry first, then call [`Device::sync`].
    /// Call [`Device::acknowledge`] and [`Device::acknowledge_up_to`] only after storing, too: the server then counts the
    /// entry, and all before it, as safe, whether or not the application has taken them. Where the outbox keeps the position
    /// ([`super::FileOutbox`]), that one counts.
    ///
    /// ```no_run
    /// # use bimip::client::{Builder, Event, Message};
    /// # fn store(_: &Message) {}
    /// # async fn example(builder: Builder) -> Result<(), Box<dyn std::error::Error>> {
    /// let (device, mut events) = builder.auto_sync(false).connect()?;
    /// while let Some(event) = events.next().await {
    ///     if let Event::Message(message) = event {
    ///         store(&message); // must be durable before the next line
    ///         device.sync(message.sequence).await?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn auto_sync(mut self, auto_sync: bool) -> Builder {
        self.auto_sync = auto_sync;
        self
    }

    /// Time without traffic after which QUIC sends a packet to keep the NAT bindings on the path alive; `None`: never.
    /// It does not apply to TCP. Default: 15 s.
    pub fn keep_alive(mut self, interval: Option<Duration>) -> Builder {
        self.keep_alive = interval;
        self
    }

    /// Time without any packet from the server after which the connection is given up. Over QUIC, the shorter of this
    /// and the server's own timeout applies, counted from the first packet that had no answer, such as a keep-alive. Over
    /// TCP, the device sends a ping after two thirds of it. Default: 60 s.
    pub fn idle_timeout(mut self, timeout: Duration) -> Builder {
        self.idle_timeout = timeout;
        self
    }

    /// Time without any packet from the server after which the connection is given up while an answer is owed. During
    /// it the device sends up to fifteen small pings and moves to another socket once. Default: 12 s.
    pub fn silence(mut self, silence: Duration) -> Builder {
        self.silence = silence;
        self
    }

    /// Writes a trace of each QUIC connection in qlog's JSON-SEQ format. `sink` returns a writer for each connection,
    /// or `None` for no trace. The connection's task writes to it, so the writer must not block for long.
    #[cfg(feature = "qlog")]
    pub fn qlog(
        mut self,
        sink: impl Fn() -> Option<Box<dyn std::io::Write + Send + Sync>> + Send + Sync + 'static,
    ) -> Builder {
        self.qlog = Some(Box::new(sink));
        self
    }

    /// Starts the device: from here on it connects, and reconnects, by itself. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// - [`BuildError::Missing`] if a required option is not set, or there is no tokio runtime.
    /// - [`BuildError::Server`] if the server is not `host:port`.
    /// - [`BuildError::Roots`] if the trusted certificates cannot be read.
    /// - [`BuildError::Tls`] if TLS or QUIC rejects the settings, such as an idle timeout beyond QUIC's range.
    /// - [`BuildError::Contradiction`] for [`auto_deliver`](Builder::auto_deliver) without
    ///   [`auto_sync`](Builder::auto_sync).
    /// - [`BuildError::Random`] if the system has no randomness.
    /// - [`BuildError::Outbox`] if the outbox cannot be read or belongs to another user.
    ///
    /// Network failures are not errors here: see [`Device::connected`] and [`Device::state`].
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
            tails: self.lanes.contains(&Lane::Chat),
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
        let task = Task::new(core, dialer, self.outbox, inbox.clone(), receiver, state_sender)
            .lanes(self.lanes)
            .bind(self.bind)
            .silence(self.silence)
            .idle_timeout(self.idle_timeout, self.keep_alive)
            .jitter(Jitter::new(seed(&seeds[8..])));
        runtime.spawn(task.run());
        Ok((Device::new(commands, state, eid, device, number(name), inbox), events))
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
