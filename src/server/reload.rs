//! Applies a renewed certificate and changed token keys without dropping a session.
//!
//! The contents of the files are read every few seconds instead of watching for events: certificates are renewed by renaming
//! files, by swapping symbolic links (Kubernetes) and over network file systems, and only reading notices all of these. The
//! files are a few kilobytes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::Endpoint;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::auth::{self, ChainFacts, Credentials, dev::DevFiles};
use crate::clock::Now;
use crate::config::Config;
use crate::limits::{KEY_FILE_BYTES_MAX, RELOAD_POLL, RELOAD_WITHIN};
use crate::observe::ReloadResult;
use crate::session::Services;
use crate::transport::{Tickets, quic, tls_tcp};

/// The configurations that new connections are accepted with, and what renews them.
pub(super) struct Reload {
    config: Config,
    services: Arc<Services>,
    endpoint: Endpoint,
    quic: watch::Sender<Arc<quinn::ServerConfig>>,
    tcp: watch::Sender<Arc<rustls::ServerConfig>>,
    /// Held while files are read, which may take forever on a network file system: one reload at a time.
    state: Arc<tokio::sync::Mutex<State>>,
    /// Whether the endpoint takes no more new connections. Locked only while the endpoint's configuration is exchanged.
    closed: Mutex<bool>,
}

struct State {
    /// Digest of all files when they were last applied or refused.
    seen: [u8; 32],
    /// Whether these were refused.
    refused: bool,
    chain: Vec<CertificateDer<'static>>,
    /// The tickets of both transports.
    tickets: [Arc<Tickets>; 2],
}

impl Reload {
    /// `chain` is the certificate chain in use, and `seen` the digest of all files from before it was read.
    pub(super) fn new(
        config: Config,
        services: Arc<Services>,
        endpoint: Endpoint,
        (quic, quic_tickets): (quinn::ServerConfig, Arc<Tickets>),
        tls: rustls::ServerConfig,
        seen: [u8; 32],
        chain: Vec<CertificateDer<'static>>,
    ) -> Reload {
        judge(&services, &chain);
        services.metrics.reload_pending.set(0.0);
        let tcp_tickets = uncounted_tickets(config.quic.max_connections);
        let tcp = watch::Sender::new(tls_tcp::server_config(tls, tcp_tickets.clone()));
        let quic = watch::Sender::new(Arc::new(quic));
        let tickets = [quic_tickets, tcp_tickets];
        let state = Arc::new(tokio::sync::Mutex::new(State { seen, refused: false, chain, tickets }));
        Reload { config, services, endpoint, quic, tcp, state, closed: Mutex::new(false) }
    }

    /// The configuration that QUIC accepts connections with.
    pub(super) fn quic(&self) -> watch::Receiver<Arc<quinn::ServerConfig>> {
        self.quic.subscribe()
    }

    /// The configuration that TCP accepts connections with.
    pub(super) fn tcp(&self) -> watch::Receiver<Arc<rustls::ServerConfig>> {
        self.tcp.subscribe()
    }

    /// Checks the files until `stop`.
    pub(super) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RELOAD_POLL) => {}
            }
            // What went wrong was logged and counted.
            let _ = self.clone().in_background(false).await;
        }
    }

    /// Applies what the files hold now; with `asked`, even if nothing seems to have changed. Returns why clients will refuse the
    /// certificate all the same, as far as it tells by itself.
    ///
    /// # Errors
    /// Says what is wrong with the files, or that they are not read within [`RELOAD_WITHIN`]; in the latter case they are applied
    /// all the same once they are read.
    pub(super) async fn in_background(self: Arc<Self>, asked: bool) -> Result<Vec<String>, String> {
        let reload = self.clone();
        let reading = async move {
            let mut state = reload.state.clone().lock_owned().await;
            let reading = tokio::task::spawn_blocking(move || {
                let result = reload.once(&mut state, asked);
                // Also if nothing has changed: the last reading may have been late.
                reload.services.metrics.reload_pending.set(f64::from(u8::from(state.refused)));
                result
            });
            reading.await.unwrap_or_else(|error| Err(error.to_string()))
        };
        timeout(RELOAD_WITHIN, reading).await.unwrap_or_else(|_| {
            self.services.metrics.reloads[ReloadResult::Late].increment(1);
            self.services.metrics.reload_pending.set(1.0);
            let seconds = RELOAD_WITHIN.as_secs();
            tracing::error!(seconds, "certificate and token keys are still being read: does their file system hang?");
            Err(format!(
                "the files are still being read after {seconds} s, as on a file system that hangs: everything is as it was until then"
            ))
        })
    }

    fn once(&self, state: &mut State, asked: bool) -> Result<Vec<String>, String> {
        // Computed before the files are read, so that a change in between is noticed the next time.
        let seen = digest(&self.config);
        if *self.closed() || !asked && seen == state.seen {
            return Ok(Vec::new());
        }
        state.seen = seen;
        let taken = self.take_up(state);
        state.refused = taken.is_err();
        match taken {
            Ok(certificate) => {
                self.services.metrics.reloads[ReloadResult::Done].increment(1);
                let certificate = if certificate { "new" } else { "same" };
                tracing::info!(certificate, token_keys = self.services.verifier.keys(), "reloaded");
                Ok(judge(&self.services, &state.chain))
            }
            Err(error) => {
                self.services.metrics.reloads[ReloadResult::Refused].increment(1);
                tracing::error!(%error, "nothing was reloaded: certificate and token keys stay as they were");
                Err(format!("everything stays as it was: {error}"))
            }
        }
    }

    /// Applies everything or, with an error, nothing. Returns whether the certificate has changed.
    fn take_up(&self, state: &mut State) -> Result<bool, StartError> {
        let credentials = Credentials::from_config(&self.config)?;
        let changed = credentials.chain != state.chain;
        if changed {
            // A new configuration, which remembers nothing from the old certificate's time: a client does not check the
            // certificate when it resumes a session, so no earlier session may be resumed.
            let tls = auth::server_tls(&credentials)?;
            let connections = self.config.quic.max_connections;
            let tickets = [quic::tickets(connections, &self.services.metrics), uncounted_tickets(connections)];
            let quic = quic::with_tls(&self.quic.borrow(), tls.clone(), tickets[0].clone())?;
            let closed = self.closed();
            if *closed {
                return Ok(false);
            }
            self.endpoint.set_server_config(Some(quic.clone()));
            drop(closed);
            self.quic.send_replace(Arc::new(quic));
            self.tcp.send_replace(tls_tcp::server_config(tls, tickets[1].clone()));
            // Connections of before may stay for weeks, and would keep all that their certificate had.
            state.tickets.iter().for_each(|tickets| tickets.clear());
            state.tickets = tickets;
            state.chain = credentials.chain;
        }
        self.services.verifier.replace(credentials.verifier);
        Ok(changed)
    }

    /// Stops accepting connections, whatever the files say. Does not wait for a reload that is under way.
    pub(super) fn close(&self) {
        let mut closed = self.closed();
        *closed = true;
        self.endpoint.set_server_config(None);
    }

    fn closed(&self) -> MutexGuard<'_, bool> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// TCP has no early data, so tickets that are not known say nothing.
fn uncounted_tickets(connections: usize) -> Arc<Tickets> {
    Arc::new(Tickets::new(connections, || ()))
}

/// Notes until when the certificate in use is valid, with those of its chain, and logs why clients will refuse it.
fn judge(services: &Services, chain: &[CertificateDer<'_>]) -> Vec<String> {
    let faults = match ChainFacts::read(chain) {
        Ok(facts) => {
            services.metrics.certificate_expires.set(facts.not_after as f64);
            facts.faults(Now::system().unix_ms / 1000)
        }
        Err(fault) => vec![fault],
    };
    let tell = |fault: auth::ChainFault| {
        tracing::warn!(%fault, advice = fault.advice(), "clients will refuse the certificate");
        format!("{fault}: {}", fault.advice())
    };
    faults.into_iter().map(tell).collect()
}

/// A digest of everything that is read from files. A file that cannot be read counts as empty; the error is reported when the
/// files are applied.
pub(super) fn digest(config: &Config) -> [u8; 32] {
    let mut digest = Sha256::new();
    for path in files(config) {
        let content = read(&path).unwrap_or_default();
        digest.update((content.len() as u64).to_le_bytes());
        digest.update(&content);
    }
    digest.finalize().into()
}

fn files(config: &Config) -> Vec<PathBuf> {
    let dev = config.dev.then(|| DevFiles::in_data_dir(&config.data_dir));
    let dev = dev.map(|files| [files.certificate, files.key, files.token_public]);
    let named = [&config.tls.certificate, &config.tls.key, &config.auth.jwks, &config.auth.hs256_secret_file];
    let named = named.into_iter().flatten().chain(&config.auth.keys).cloned();
    named.chain(dev.into_iter().flatten()).collect()
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(KEY_FILE_BYTES_MAX).read_to_end(&mut content)?;
    Ok(content)
}
