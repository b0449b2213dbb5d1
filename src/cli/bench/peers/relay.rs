//! A relay that only passes bytes on, over QUIC or TLS on TCP: shows what the transport alone costs. With a log, it
//! has them on disk before: shows what transport and disk cost together.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use quinn::crypto::rustls::QuicServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::sync::{mpsc, oneshot};

use super::answering;
use super::subject::ALPN;
use crate::cli::bench::connection::endpoint;
use crate::cli::{Failure, say};

/// As much as `copy_bidirectional` reads at once.
const READ_BYTES: usize = 8 * 1024;
/// Reads that may wait for the log. An end has one, so there are more places than ends; if not, ends wait for a place.
const APPENDS_MAX: usize = 4096;

/// A bare relay, for `bimip bench peers`
#[derive(clap::Args)]
pub(in crate::cli::bench) struct Args {
    /// Folder with its certificate and key
    #[arg(long, value_name = "DIR")]
    certs: PathBuf,
    /// TLS over TCP instead of QUIC
    #[arg(long)]
    tcp: bool,
    /// File to which it appends all bytes, and syncs them, before it passes them on
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Speaks the protocol instead of passing bytes on
    #[arg(long, requires = "log", conflicts_with = "tcp")]
    answering: bool,
}

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What the relay does with what arrives.
#[derive(Clone)]
enum Way {
    Bare,
    Synced(Log),
    Answering(Log),
}

/// Ends whose partner has not connected yet.
type Waiting = Arc<Mutex<HashMap<u32, Box<dyn Duplex>>>>;

impl Args {
    pub(in crate::cli::bench) async fn run(self) -> Result<(), Failure> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let tls = server_tls(&self.certs)?;
        let waiting = Waiting::default();
        let way = match self.log.as_deref().map(Log::open).transpose()? {
            None => Way::Bare,
            Some(log) if self.answering => Way::Answering(log),
            Some(log) => Way::Synced(log),
        };
        if self.tcp {
            let listener = tokio::net::TcpListener::bind(any).await?;
            say(&format!("address={}", listener.local_addr()?))?;
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let (acceptor, waiting, way) = (acceptor.clone(), waiting.clone(), way.clone());
                tokio::spawn(async move { pass_on(acceptor.accept(stream).await?, waiting, way).await });
            }
        }
        let tls = QuicServerConfig::try_from(tls).map_err(anyhow::Error::from)?;
        let endpoint = endpoint(any, Some(quinn::ServerConfig::with_crypto(Arc::new(tls))))?;
        say(&format!("address={}", endpoint.local_addr()?))?;
        while let Some(incoming) = endpoint.accept().await {
            let (waiting, way) = (waiting.clone(), way.clone());
            tokio::spawn(async move {
                let (send, recv) = incoming.await?.accept_bi().await?;
                pass_on(tokio::io::join(recv, send), waiting, way).await
            });
        }
        Ok(())
    }
}

/// Connects the second end of a pair with the first.
async fn pass_on(mut end: impl Duplex + 'static, waiting: Waiting, way: Way) -> anyhow::Result<()> {
    let pair = end.read_u32().await?;
    let mut other = {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.remove(&pair) {
            Some(other) => other,
            None => {
                waiting.insert(pair, Box::new(end));
                return Ok(());
            }
        }
    };
    match way {
        Way::Bare => _ = copy_bidirectional(&mut end, &mut other).await?,
        Way::Synced(log) => {
            let ((from_end, to_end), (from_other, to_other)) = (tokio::io::split(end), tokio::io::split(other));
            tokio::try_join!(pass_on_synced(from_end, to_other, &log), pass_on_synced(from_other, to_end, &log))?;
        }
        Way::Answering(log) => answering::pass_on(end, other, &log).await?,
    }
    Ok(())
}

async fn pass_on_synced(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    log: &Log,
) -> anyhow::Result<()> {
    let mut input = BytesMut::new();
    while let Some(bytes) = read(&mut from, &mut input).await? {
        log.append(bytes.clone()).await?;
        to.write_all(&bytes).await?;
        to.flush().await?;
    }
    Ok(())
}

/// What has arrived by now; `None` at the end. Cancel safe.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin), into: &mut BytesMut) -> std::io::Result<Option<Bytes>> {
    into.reserve(READ_BYTES);
    let read = from.read_buf(into).await?;
    Ok((read > 0).then(|| into.split().freeze()))
}

/// Bytes to append, and whom to tell once they are on disk.
type Append = (Bytes, oneshot::Sender<()>);

/// The thread that appends to the log. What waits for it meanwhile is synced together.
#[derive(Clone)]
pub(super) struct Log(mpsc::Sender<Append>);

impl Log {
    fn open(path: &Path) -> anyhow::Result<Log> {
        let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let (appends, mut waiting) = mpsc::channel::<Append>(APPENDS_MAX);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            let (mut together, mut told) = (Vec::new(), Vec::new());
            while let Some(first) = waiting.blocking_recv() {
                let mut next = Some(first);
                while let Some((bytes, tell)) = next {
                    together.extend_from_slice(&bytes);
                    told.push(tell);
                    next = waiting.try_recv().ok();
                }
                if let Err(error) = file.write_all(&together).and_then(|()| file.sync_data()) {
                    // Whoever waits finds its sender gone, so the measurement fails.
                    return eprintln!("the relay's log: {error}");
                }
                together.clear();
                told.drain(..).for_each(|tell| _ = tell.send(()));
            }
        })?;
        Ok(Log(appends))
    }

    /// Returns once the bytes are on disk.
    pub(super) async fn append(&self, bytes: Bytes) -> anyhow::Result<()> {
        let (tell, told) = oneshot::channel();
        self.0.send((bytes, tell)).await.context("the log has ended")?;
        told.await.context("the log has ended")
    }
}

fn server_tls(certs: &Path) -> anyhow::Result<rustls::ServerConfig> {
    let certificate = CertificateDer::from_pem_file(certs.join("cert.pem")).context("the relay's certificate")?;
    let key = PrivateKeyDer::from_pem_file(certs.join("key.pem")).context("the relay's key")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    Ok(tls)
}
