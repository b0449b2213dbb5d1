//! The control socket: requests of the operator on this machine to a running server, over a Unix socket in the data directory
//! that only the server's own user can open.
//!
//! A connection carries one request, a line of JSON, and its answer, another line. The answer to a backup is followed by the
//! archive, up to the end of the stream.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::readiness::Readiness;
use super::reload::Reload;
use crate::clock::Now;
use crate::limits::{
    BACKUP_WITHIN, CONTROL_CHUNK_BYTES, CONTROL_CHUNKS_MAX, CONTROL_CONNECTIONS_MAX, CONTROL_REQUEST_BYTES_MAX,
    CONTROL_WITHIN,
};
use crate::observe;
use crate::session::Services;
use crate::store::Embedded;

/// A request of the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Report the server's state.
    Status,
    /// Log what this filter lets through from now on; without a filter: report the one in use.
    Log {
        /// As in `log.level`.
        filter: Option<String>,
    },
    /// Read the certificate and the token keys again.
    Reload,
    /// Send a backup of the store.
    Backup,
}

/// The answer to a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done.
    Done,
    /// Certificate and token keys are what the files hold; why clients will refuse the certificate all the same, if they will.
    Reloaded(Vec<String>),
    /// The server's state.
    Status(Status),
    /// The filter that is in use.
    Log(String),
    /// The archive follows.
    Archive,
    /// It was not done, and why.
    Refused(String),
}

/// The state of a server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The server's version.
    pub version: String,
    /// The id of its process.
    pub pid: u32,
    /// How long it has been running, in seconds.
    pub uptime_seconds: u64,
    /// Devices that are connected.
    pub connected: usize,
    /// Why it takes no traffic, as `/readyz` says; absent: it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// Whether it is a development server.
    #[serde(default)]
    pub dev: bool,
    /// The UDP address where it listens for devices.
    pub quic: String,
    /// The TCP address where it serves metrics.
    #[serde(default)]
    pub metrics: String,
    /// The filter of its log, if this process logs.
    pub log: Option<String>,
}

/// The path of the socket in a data directory.
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// Answers requests.
pub(super) struct Control {
    pub(super) services: Arc<Services>,
    pub(super) store: Arc<Embedded>,
    pub(super) reload: Arc<Reload>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) dev: bool,
    pub(super) quic: String,
    pub(super) metrics: String,
    pub(super) began: Instant,
    /// The server is draining.
    pub(super) stop: CancellationToken,
    /// The server has drained and closed its store.
    pub(super) ended: CancellationToken,
    /// One backup at a time, because each keeps a reader busy.
    pub(super) backups: Semaphore,
}

/// An open socket; its file is removed when this is dropped.
pub(super) struct Listening {
    listener: UnixListener,
    path: PathBuf,
    /// The file's number, to tell it from that of a server that runs later.
    number: u64,
    /// The user that created the socket, and may use it.
    owner: u32,
}

impl Listening {
    /// Opens the socket, and replaces one that a process left behind which is gone. The store's lock ensures that no other
    /// process runs on the data directory.
    pub(super) fn open(data_dir: &Path) -> io::Result<Listening> {
        let path = socket(data_dir);
        if std::fs::symlink_metadata(&path).is_ok_and(|there| there.file_type().is_socket()) {
            std::fs::remove_file(&path)?;
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let file = std::fs::metadata(&path)?;
        Ok(Listening { listener, path, number: file.ino(), owner: file.uid() })
    }

    /// Answers requests until the server has ended: while it drains, too, so that the operator is told of it.
    pub(super) async fn serve(self, control: Arc<Control>) {
        let places = Arc::new(Semaphore::new(CONTROL_CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = control.ended.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(crate::limits::ACCEPT_RETRY).await;
                continue;
            };
            // The file's mode already ensures this, on systems that respect it.
            let uid = stream.peer_cred().map(|peer| peer.uid());
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            if !uid.is_ok_and(|uid| uid == self.owner || uid == 0) {
                continue;
            }
            let control = control.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = control.ended.cancelled() => {}
                    served = control.answer(stream) => {
                        if let Err(error) = served {
                            tracing::debug!(%error, "a request over the control socket was cut off");
                        }
                    }
                }
                drop(place);
            });
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // A server that was started once the store was closed has its own socket there.
        if std::fs::metadata(&self.path).is_ok_and(|there| there.ino() == self.number) {
            // If this fails, a later server removes it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Control {
    async fn answer(&self, stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut line = Vec::new();
        let mut read = BufReader::new(read.take(CONTROL_REQUEST_BYTES_MAX));
        within(CONTROL_WITHIN, read.read_until(b'\n', &mut line)).await?;
        let answer = match serde_json::from_slice(&line) {
            Ok(Request::Backup) if self.stop.is_cancelled() => draining(),
            Ok(Request::Backup) => {
                // A client that takes the backup slowly must not hold up the shutdown.
                let sent = tokio::select! {
                    () = self.stop.cancelled() => Err(io::Error::other("the server is draining")),
                    sent = within(BACKUP_WITHIN, self.backup(&mut write)) => sent,
                };
                if let Err(error) = sent {
                    tracing::error!(%error, "a backup was cut off");
                }
                return Ok(());
            }
            Ok(Request::Status) => Answer::Status(self.status().await),
            Ok(Request::Log { filter: None }) => match observe::log_filter() {
                Some(filter) => Answer::Log(filter),
                None => Answer::Refused("nothing is logged by this process".to_owned()),
            },
            Ok(Request::Log { filter: Some(filter) }) => {
                // One of the two filters may let this line through.
                let told = tracing::enabled!(tracing::Level::INFO);
                match observe::set_log(&filter, || tracing::info!(filter, "what is logged has changed")) {
                    Ok(()) => {
                        if !told {
                            tracing::info!(filter, "what is logged has changed");
                        }
                        Answer::Done
                    }
                    Err(reason) => Answer::Refused(reason),
                }
            }
            Ok(Request::Reload) => match self.reload.clone().in_background(true).await {
                Ok(_) if self.stop.is_cancelled() => draining(),
                Ok(faults) => Answer::Reloaded(faults),
                Err(reason) => Answer::Refused(reason),
            },
            Err(error) => Answer::Refused(format!("not a request: {error}")),
        };
        say(&mut write, &answer).await
    }

    async fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.began.elapsed().as_secs(),
            connected: self.services.hub.connected(),
            not_ready: self.readiness.check().await.err(),
            dev: self.dev,
            quic: self.quic.clone(),
            metrics: self.metrics.clone(),
            log: observe::log_filter(),
        }
    }

    /// The archive is read as fast as the client takes it; a client that stops taking it ends the backup.
    async fn backup(&self, write: &mut (impl AsyncWriteExt + Unpin)) -> io::Result<()> {
        let Ok(_turn) = self.backups.try_acquire() else {
            return say(write, &Answer::Refused("another backup is under way".to_owned())).await;
        };
        say(write, &Answer::Archive).await?;
        let began = Instant::now();
        let (sender, mut chunks) = mpsc::channel::<Bytes>(CONTROL_CHUNKS_MAX);
        let taker = &mut *write;
        // This future owns the receiving end: when it gives up, reading the store ends, too.
        let writing = async move {
            while let Some(chunk) = chunks.recv().await {
                within(CONTROL_WITHIN, taker.write_all(&chunk)).await?;
            }
            io::Result::Ok(())
        };
        let out = io::BufWriter::with_capacity(CONTROL_CHUNK_BYTES, Chunks(sender));
        let (archived, written) = tokio::join!(self.store.archive(Now::system().unix_ms, out), writing);
        // The client's error comes first: once the client is gone, the other one only follows from it.
        written?;
        let archived = archived.map_err(io::Error::other)?;
        within(CONTROL_WITHIN, write.flush()).await?;
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!(rows = archived.rows, bytes = archived.bytes, seconds, "backup");
        Ok(())
    }
}

fn draining() -> Answer {
    Answer::Refused("it is draining, and ends soon".to_owned())
}

async fn say(write: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    within(CONTROL_WITHIN, write.write_all(&line)).await
}

async fn within<T>(time: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(time, step).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Passes chunks from the thread that reads the store to the task that writes to the socket.
struct Chunks(mpsc::Sender<Bytes>);

impl io::Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Bytes::copy_from_slice(bytes)).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_takes_longer_than_it_may_is_cut_off() {
        let cut_off = within(Duration::ZERO, std::future::pending::<io::Result<()>>()).await;
        assert_eq!(cut_off.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
