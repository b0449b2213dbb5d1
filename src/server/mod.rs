//! The composition root: turns a configuration into a running server, and stops it gracefully.

pub mod control;
mod figures;
mod http;
mod readiness;
mod reload;
mod retention;
mod status;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::Endpoint;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{self, AuthError, Credentials};
use crate::clock::Now;
use crate::config::{Config, QuicConfig};
use crate::hub::Hub;
use crate::hub::presence::Timing;
use crate::limits::{DRAIN_WITHIN, PORT_TRIES};
use crate::observe::Metrics;
use crate::session::{Flood, Services, Settings};
use crate::store::{Embedded, Options, Store, StoreError, make_folder};
use crate::transport::quic::{self, QuicError};
use crate::transport::quic_lb::Issuer;
use crate::transport::{Crowd, tls_tcp};
use crate::wire::CloseCode;

use control::{Control, Listening};
use figures::Figures;
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
        }
        let credentials = Credentials::from_config(&config)?;
        own_data_dir(&config)?;
        let tls = auth::server_tls(&credentials)?;
        let metrics = Arc::new(Metrics::new());
        let hub = Arc::new(Hub::new(timing(&config)));
        let embedded = open_store(&config, &metrics, &hub).await?;
        let store: Arc<dyn Store> = embedded.clone();
        let revoked = store.revocations(Now::system().unix_ms).await;
        hub.recall(
            &revoked
                .map_err(|source| StartError::Store { directory: store_dir(&config).display().to_string(), source })?,
        );
        let presence = hub.presence().clone();
        let services = Arc::new(Services {
            hub,
            flood: Flood::new(config.limits),
            verifier: credentials.verifier,
            metrics: metrics.clone(),
            settings: settings(&config),
            random: Box::new(fill_random),
        });

        let quic_config = quic::server_config(&config.quic, tls.clone(), &metrics)?;
        let (endpoint, tcp) = bind(&config, &quic_config).await?;
        let chain = credentials.chain;
        let reload = Reload::new(config.clone(), services.clone(), endpoint.clone(), quic_config, tls, chain);
        let reload = Arc::new(reload);
        let accept_with = accept_with(&config.quic, reload.quic(), &metrics)?;
        let quic_address =
            endpoint.local_addr().map_err(|source| QuicError::Bind { address: config.listen, source })?;
        let tcp_address = tcp.as_ref().and_then(|listener| listener.local_addr().ok());
        let address = config.metrics_listen;
        let unbound = |source| StartError::Metrics { address, source };
        let http = TcpListener::bind(address).await.map_err(unbound)?;
        let metrics_address = http.local_addr().map_err(unbound)?;

        let (sessions, stop) = (TaskTracker::new(), CancellationToken::new());
        let handshakes_max = config.quic.handshakes_max;
        let crowd = Crowd::new(config.limits.connections_per_address, config.quic.max_connections);
        let shared = (services.clone(), store.clone());
        let (tasks, stopping) = (sessions.clone(), stop.clone());
        let accepting = quic::serve(
            endpoint.clone(),
            config.quic.clone(),
            accept_with,
            crowd.clone(),
            shared.clone(),
            tasks,
            stopping,
        );
        let accepting = tokio::spawn(accepting);
        let mut listeners = vec![("QUIC", accepting.abort_handle())];
        let retained = (store.clone(), metrics.clone());
        let mut background = vec![
            accepting,
            tokio::spawn(retention::run(config.retention, retained.0, retained.1, fill_random, stop.clone())),
            tokio::spawn(presence.run()),
            tokio::spawn(reload.clone().watch(stop.clone())),
        ];
        if let Some(listener) = tcp {
            let (tasks, stopping) = (sessions.clone(), stop.clone());
            let listener = (listener, reload.tcp());
            let accepting = tls_tcp::serve(listener, config.quic, crowd.clone(), shared, tasks, stopping);
            background.push(tokio::spawn(accepting));
            listeners.extend(background.last().map(|task| ("TCP", task.abort_handle())));
        }
        let readiness = Arc::new(Readiness::new(store.clone(), metrics.clone(), stop.clone(), listeners));
        match Listening::open(&config.data_dir) {
            Ok(listening) => {
                let (services, reload, stop) = (services.clone(), reload.clone(), stop.clone());
                let control = Control {
                    services,
                    store: embedded,
                    reload,
                    readiness: readiness.clone(),
                    dev: config.dev,
                    quic: quic_address.to_string(),
                    metrics: metrics_address.to_string(),
                    began: Instant::now(),
                    stop,
                    backups: Semaphore::new(1),
                };
                background.push(tokio::spawn(listening.serve(Arc::new(control))));
            }
            // Devices are served all the same. The usual reason is a path of more than 107 bytes.
            Err(error) => {
                let socket = control::socket(&config.data_dir);
                tracing::warn!(socket = %socket.display(), %error, "no control socket: no backup and no other log level");
            }
        }
        let pages = Arc::new(http::Pages {
            readiness,
            status: Status::new(&config.server_name),
            figures: Figures {
                services: services.clone(),
                store: store.clone(),
                crowd,
                data_dir: config.data_dir,
                handshakes_max,
                gathered: Mutex::default(),
            },
            metrics,
        });
        background.push(tokio::spawn(http::keep(pages.clone())));
        background.push(tokio::spawn(http::serve(http, pages)));
        tracing::info!(quic = %quic_address, tcp = %tcp_address.map_or_else(|| "off".to_owned(), |address| address.to_string()), metrics = %metrics_address, "listening");
        Ok(Server {
            quic_address,
            tcp_address,
            metrics_address,
            services,
            store,
            endpoint,
            reload,
            sessions,
            stop,
            background,
        })
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
        self.stop_background();
    }
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
        let traces = crate::transport::qlog::Traces::in_folder(folder, move |result| metrics.traced(result))
            .map_err(|error| failed(error.to_string()))?;
        Ok(crate::transport::qlog::accept_with(server, config.clone(), traces)?)
    }
}

/// Binds UDP and, unless it is switched off, TCP on the same port number. If any port will do, finds one that is free for both.
async fn bind(config: &Config, quic: &quinn::ServerConfig) -> Result<(Endpoint, Option<TcpListener>), StartError> {
    let reset_key = crate::auth::reset_key(&config.data_dir)?;
    let lb = &config.quic.lb;
    let lb_key = lb.key_file.as_deref().map(crate::auth::lb_key).transpose()?;
    let ids = Issuer::from_config(lb, lb_key.as_ref(), fill_random);
    let ids = ids.map_err(|error| QuicError::Settings(error.to_string()))?.map(Arc::new);
    let mut tries = PORT_TRIES;
    loop {
        tries -= 1;
        let endpoint = quic::bind(config.listen, quic.clone(), &reset_key, ids.clone())?;
        if !config.tcp.enabled {
            return Ok((endpoint, None));
        }
        let unbound = |source| QuicError::Bind { address: config.listen, source };
        let mut address = config.listen;
        address.set_port(endpoint.local_addr().map_err(unbound)?.port());
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok((endpoint, Some(listener))),
            Err(_) if config.listen.port() == 0 && tries > 0 => {}
            Err(source) => return Err(StartError::Tcp { address, source }),
        }
    }
}

fn store_dir(config: &Config) -> PathBuf {
    config.data_dir.join("store")
}

/// Opening replays the journal, which can take a while, so it runs on a blocking thread.
async fn open_store(config: &Config, metrics: &Arc<Metrics>, hub: &Arc<Hub>) -> Result<Arc<Embedded>, StartError> {
    let directory = store_dir(config);
    let commits = metrics.clone();
    let options = Options {
        cache_bytes: config.store.cache_bytes,
        on_commit: Box::new(move |commit| {
            commits.commit.record(commit.took);
            commits.commit_operations.record(commit.operations as f64);
            if commit.messages > 0 {
                commits.commit_messages.record(commit.messages as f64);
            }
        }),
        ..Options::default()
    };
    let observer = hub.clone();
    let shown = directory.display().to_string();
    let opened = tokio::task::spawn_blocking(move || Embedded::open(&directory, options, observer)).await;
    let opened = opened.unwrap_or_else(|error| Err(StoreError::Engine(error.to_string())));
    Ok(Arc::new(opened.map_err(|source| StartError::Store { directory: shown, source })?))
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
