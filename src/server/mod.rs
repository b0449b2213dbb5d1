//! The composition root: turns a configuration into a running server, and stops it gracefully.

pub mod control;
mod figures;
mod http;
mod listeners;
mod readiness;
mod reload;
mod retention;
mod status;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::Endpoint;
use rustix::process::{Resource, getrlimit};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{self, AuthError, Credentials, dev};
use crate::config::{Config, QuicConfig};
use crate::hub::Hub;
use crate::hub::presence::Timing;
use crate::limits::{DESCRIPTORS_RESERVED, DRAIN_WITHIN, HANDSHAKE_WITHIN};
use crate::observe::Metrics;
use crate::session::{Flood, Services, Settings};
use crate::store::{Embedded, Options, Store, StoreError, make_folder};
use crate::transport::quic::{self, QuicError};
use crate::transport::{Crowd, CrowdLimits, tls_tcp};
use crate::wire::CloseCode;

use control::{Control, Listening};
use figures::Figures;
use listeners::Listeners;
use readiness::Readiness;
use reload::Reload;
use status::Status;

/// Why a server does not start. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Keys or certificates are missing or cannot be used.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The certificate and key cannot be used together.
    #[error("the certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The data directory does not exist and cannot be created.
    #[error("cannot make the data directory {directory}: {source}; make it for the user that the server runs as")]
    DataDir {
        /// The data directory.
        directory: String,
        /// Why.
        source: std::io::Error,
    },
    /// The store does not open.
    #[error("cannot open the store in {directory}: {source}")]
    Store {
        /// The data directory.
        directory: String,
        /// Why.
        source: StoreError,
    },
    /// The folder for traces cannot be used.
    #[error("quic.qlog_dir {folder}: {reason}")]
    Qlog {
        /// The folder.
        folder: String,
        /// Why.
        reason: String,
    },
    /// The QUIC endpoint does not open.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// The TCP listener does not open.
    #[error("cannot listen on TCP {address}: {source} (tcp.enabled = false does without)")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The metrics listener does not open.
    #[error("cannot listen on TCP {address} for metrics: {source}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// A running server. Stop it with [`Server::shutdown`]; dropping it stops it at once.
pub struct Server {
    /// The address where QUIC listens.
    pub quic_address: SocketAddr,
    /// The address where TLS over TCP listens, if it is enabled: the same port number.
    pub tcp_address: Option<SocketAddr>,
    /// The address of the metrics listener.
    pub metrics_address: SocketAddr,
    services: Arc<Services>,
    store: Arc<dyn Store>,
    endpoint: Endpoint,
    reload: Arc<Reload>,
    sessions: TaskTracker,
    stop: CancellationToken,
    /// Cancelled once everything is over, also what tells of the draining.
    ended: CancellationToken,
    background: Vec<JoinHandle<()>>,
}

impl Server {
    /// Opens the store, recovers what a crash left, and listens.
    ///
    /// # Errors
    /// [`StartError`] if keys, certificates, the data directory, the store or the folder for traces cannot be used, or an
    /// address cannot be bound.
    pub async fn start(config: Config) -> Result<Server, StartError> {
        // Development creates its keys in the data directory. Otherwise a server that cannot start leaves nothing behind.
        if config.dev {
            own_data_dir(&config)?;
            dev::ensure(&config.data_dir, &config.dev_names)?;
        }
        // Computed before the files are read, so that one that is replaced during the start is noticed after it.
        let seen = reload::digest(&config);
        let credentials = Credentials::from_config(&config)?;
        own_data_dir(&config)?;
        let tls = auth::server_tls(&credentials)?;
        let metrics = Arc::new(Metrics::new());
        let hub = Arc::new(Hub::new(timing(&config)));
        let embedded = open_store(&config, &metrics, &hub).await?;
        let services = Arc::new(Services {
            hub,
            flood: Flood::new(config.limits),
            verifier: credentials.verifier,
            metrics,
            settings: settings(&config),
            random: Box::new(fill_random),
        });

        let tickets = quic::tickets(config.quic.max_connections, &services.metrics);
        let quic_config = quic::server_config(&config.quic, tls.clone(), tickets.clone())?;
        let Listeners { quic: (endpoint, quic_address), tcp, metrics: (pages, metrics_address) } =
            Listeners::bind(&config, &quic_config).await?;
        let (tcp, tcp_address) = tcp.unzip();
        let chain = credentials.chain;
        let quic = (quic_config, tickets);
        let reload = Reload::new(config.clone(), services.clone(), endpoint.clone(), quic, tls, seen, chain);
        let accept_with = accept_with(&config.quic, reload.quic(), &services.metrics)?;
        let mut server = Server {
            quic_address,
            tcp_address,
            metrics_address,
            store: embedded.clone(),
            services,
            endpoint,
            reload: Arc::new(reload),
            sessions: TaskTracker::new(),
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
            background: Vec::new(),
        };
        let crowd = Arc::new(Crowd::new(&CrowdLimits {
            connections: config.quic.max_connections,
            per_address: config.limits.connections_per_address,
            sockets: sockets_max(config.quic.max_connections),
            handshakes: config.quic.handshakes_max,
            handshake_within: HANDSHAKE_WITHIN,
        }));
        let accepting = server.accept_devices(&config.quic, accept_with, tcp, &crowd);
        let (store, metrics) = (server.store.clone(), server.services.metrics.clone());
        let readiness = Arc::new(Readiness::new(store.clone(), metrics.clone(), server.stop.clone(), accepting));
        server.run(retention::run(config.retention.clone(), store, metrics, fill_random, server.stop.clone()));
        server.run(server.services.hub.presence().clone().run());
        server.run(server.reload.clone().watch(server.stop.clone()));
        server.take_commands(&config, embedded, readiness.clone());
        server.serve_pages(&config, pages, readiness, crowd);
        let tcp = tcp_address.map_or_else(|| "off".to_owned(), |address| address.to_string());
        tracing::info!(quic = %quic_address, %tcp, metrics = %metrics_address, "listening");
        Ok(server)
    }

    /// Runs a task until the server ends.
    fn run(&mut self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let task = tokio::spawn(task);
        let handle = task.abort_handle();
        self.background.push(task);
        handle
    }

    /// Accepts connections. Returns the tasks that do, by transport.
    fn accept_devices(
        &mut self,
        config: &QuicConfig,
        accept_with: quic::AcceptWith,
        tcp: Option<TcpListener>,
        crowd: &Arc<Crowd>,
    ) -> Vec<(&'static str, AbortHandle)> {
        let shared = (self.services.clone(), self.store.clone());
        let (sessions, stop) = (self.sessions.clone(), self.stop.clone());
        let accepting = quic::serve(
            self.endpoint.clone(),
            config.clone(),
            accept_with,
            crowd.clone(),
            shared.clone(),
            sessions.clone(),
            stop.clone(),
        );
        let mut tasks = vec![("QUIC", self.run(accepting))];
        if let Some(listener) = tcp {
            let listener = (listener, self.reload.tcp());
            let accepting = tls_tcp::serve(listener, config.clone(), crowd.clone(), shared, sessions, stop);
            tasks.push(("TCP", self.run(accepting)));
        }
        tasks
    }

    /// Opens the control socket. Without it devices are served all the same; the usual reason is a path of more than 107
    /// bytes.
    fn take_commands(&mut self, config: &Config, store: Arc<Embedded>, readiness: Arc<Readiness>) {
        let listening = match Listening::open(&config.data_dir) {
            Ok(listening) => listening,
            Err(error) => {
                let socket = control::socket(&config.data_dir);
                tracing::warn!(socket = %socket.display(), %error, "no control socket: no backup and no other log level");
                return;
            }
        };
        let control = Control {
            services: self.services.clone(),
            store,
            reload: self.reload.clone(),
            readiness,
            dev: config.dev,
            quic: self.quic_address.to_string(),
            metrics: self.metrics_address.to_string(),
            began: Instant::now(),
            stop: self.stop.clone(),
            ended: self.ended.clone(),
            backups: Semaphore::new(1),
        };
        self.run(listening.serve(Arc::new(control)));
    }

    /// Serves metrics, health checks and the status page.
    fn serve_pages(&mut self, config: &Config, listener: TcpListener, readiness: Arc<Readiness>, crowd: Arc<Crowd>) {
        let pages = Arc::new(http::Pages {
            readiness,
            status: Status::new(&config.server_name),
            figures: Figures {
                services: self.services.clone(),
                store: self.store.clone(),
                crowd,
                data_dir: config.data_dir.clone(),
                gathered: Mutex::default(),
            },
            metrics: self.services.metrics.clone(),
        });
        self.run(http::keep(pages.clone()));
        self.run(http::serve(listener, pages));
    }

    /// Applies the certificate and the token keys that the configured files hold now to new connections and sign-ins; sessions
    /// continue. Returns `false` if something is wrong in the files (then everything stays as it was, and the log says why), or
    /// if they are not read within [`RELOAD_WITHIN`](crate::limits::RELOAD_WITHIN).
    pub async fn reload(&self) -> bool {
        self.reload.clone().in_background(true).await.is_ok()
    }

    /// Drains: accepts no new sessions, lets those under way finish and tells them to reconnect elsewhere, and makes everything
    /// durable. It waits up to [`DRAIN_WITHIN`] for the sessions, up to as long each for the endpoint's close and for the
    /// sessions that this cuts off, and then for the store's last commit.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        self.reload.close();
        tracing::info!(sessions = self.services.hub.connected(), "draining");
        self.services.hub.drain();
        self.sessions.close();
        if tokio::time::timeout(DRAIN_WITHIN, self.sessions.wait()).await.is_err() {
            tracing::warn!(sessions = self.sessions.len(), "sessions cut off at the end of draining");
        }
        let code = CloseCode::Draining;
        self.endpoint.close(code.code().unsigned_abs().into(), code.name().as_bytes());
        let _ = tokio::time::timeout(DRAIN_WITHIN, self.endpoint.wait_idle()).await;
        let _ = tokio::time::timeout(DRAIN_WITHIN, self.sessions.wait()).await;
        self.store.close().await;
        self.stop_background();
    }

    fn stop_background(&mut self) {
        self.background.drain(..).for_each(|task| task.abort());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.ended.cancel();
        self.stop_background();
    }
}

/// Connections over TCP, each of which is a file descriptor: as many as the system allows beside those that the server needs
/// itself. A store that finds none left fails until a restart.
fn sockets_max(connections: usize) -> usize {
    let open_files = getrlimit(Resource::Nofile).current.and_then(|max| usize::try_from(max).ok());
    let Some(open_files) = open_files else { return connections };
    let sockets = open_files.saturating_sub(DESCRIPTORS_RESERVED).max(open_files / 4);
    if sockets < connections {
        tracing::info!(open_files, sockets, "the limit of open files bounds connections over TCP");
    }
    sockets.min(connections)
}

/// Gives each connection its own trace, if that is configured.
fn accept_with(
    config: &QuicConfig,
    server: watch::Receiver<Arc<quinn::ServerConfig>>,
    metrics: &Arc<Metrics>,
) -> Result<quic::AcceptWith, StartError> {
    let Some(folder) = &config.qlog_dir else { return Ok(Arc::new(|_| None)) };
    let failed = |reason: String| StartError::Qlog { folder: folder.display().to_string(), reason };
    #[cfg(not(feature = "qlog"))]
    {
        let _ = (server, metrics);
        Err(failed("this bimip was built without the feature qlog".to_owned()))
    }
    #[cfg(feature = "qlog")]
    {
        let metrics = metrics.clone();
        let traces =
            crate::transport::qlog::Traces::in_folder(folder, move |result| metrics.traces[result].increment(1))
                .map_err(|error| failed(error.to_string()))?;
        Ok(crate::transport::qlog::accept_with(server, config.clone(), traces)?)
    }
}

fn store_dir(config: &Config) -> PathBuf {
    config.data_dir.join("store")
}

/// Opens the store, and tells the hub what is revoked. Opening replays the journal, which can take a while, so it runs on a
/// blocking thread.
async fn open_store(config: &Config, metrics: &Arc<Metrics>, hub: &Arc<Hub>) -> Result<Arc<Embedded>, StartError> {
    let directory = store_dir(config);
    let (commits, retention) = (metrics.clone(), metrics.clone());
    let options = Options {
        cache_bytes: config.store.cache_bytes,
        on_commit: Box::new(move |commit| {
            commits.commit.record(commit.took);
            if commit.operations > 0 {
                commits.commit_operations.record(commit.operations as f64);
            }
            if commit.messages > 0 {
                commits.commit_messages.record(commit.messages as f64);
            }
        }),
        on_trimmed: Box::new(move |trimmed| {
            retention.trimmed_entries.increment(trimmed.entries);
            retention.trimmed_messages.increment(trimmed.messages);
        }),
        ..Options::default()
    };
    let observer = hub.clone();
    let shown = directory.display().to_string();
    let opened = tokio::task::spawn_blocking(move || Embedded::open(&directory, options, observer)).await;
    let opened = opened.unwrap_or_else(|error| Err(StoreError::Engine(error.to_string())));
    let failed = |source| StartError::Store { directory: shown.clone(), source };
    let store = opened.map_err(failed)?;
    hub.recall(&store.revocations().await.map_err(failed)?);
    Ok(Arc::new(store))
}

fn own_data_dir(config: &Config) -> Result<(), StartError> {
    make_folder(&config.data_dir)
        .map_err(|source| StartError::DataDir { directory: config.data_dir.display().to_string(), source })
}

fn settings(config: &Config) -> Settings {
    Settings {
        server_name: config.server_name.clone(),
        domains: config.domains.clone(),
        media_base: config.media.cdn_base.clone(),
        open_within: Duration::from_millis(config.session.open_within_ms),
        release_within: Duration::from_millis(config.session.release_within_ms),
        ping_interval: Duration::from_millis(config.session.ping_interval_ms),
        frame_bytes_max: config.session.max_frame_bytes,
        idle_timeout: Duration::from_millis(config.quic.idle_timeout_ms),
    }
}

fn timing(config: &Config) -> Timing {
    Timing {
        offline_grace: Duration::from_millis(config.presence.offline_grace_ms),
        interval: Duration::from_millis(config.presence.interval_ms),
        location_kept: Duration::from_millis(config.presence.location_kept_ms),
    }
}

fn fill_random(bytes: &mut [u8]) {
    // The generator is seeded by the kernel, and needs no system call for each id. It fails only if the kernel gives no
    // randomness; ids must not repeat, so the server cannot continue then.
    aws_lc_rs::rand::fill(bytes).expect("the operating system gives randomness");
}
