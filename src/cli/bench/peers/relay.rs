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

use super::subject::ALPN;
use crate::cli::bench::connection::endpoint;
use crate::cli::{Failure, say};

/// As much as `copy_bidirectional` reads at once.
const READ_BYTES: usize = 8 * 1024;
/// Reads that may wait for the log: more than there are ends.
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
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Ends whose partner has not connected yet.
type Waiting = Arc<Mutex<HashMap<u32, Box<dyn Duplex>>>>;

impl Args {
    pub(in crate::cli::bench) async fn run(self) -> Result<(), Failure> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let tls = server_tls(&self.certs)?;
        let waiting = Waiting::default();
        let log = self.log.as_deref().map(Log::open).transpose()?;
        if self.tcp {
            let listener = tokio::net::TcpListener::bind(any).await?;
            say(&format!("address={}", listener.local_addr()?))?;
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let (acceptor, waiting, log) = (acceptor.clone(), waiting.clone(), log.clone());
                tokio::spawn(async move { pass_on(acceptor.accept(stream).await?, waiting, log).await });
            }
        }
        let tls = QuicServerConfig::try_from(tls).map_err(anyhow::Error::from)?;
        let endpoint = endpoint(any, Some(quinn::ServerConfig::with_crypto(Arc::new(tls))))?;
        say(&format!("address={}", endpoint.local_addr()?))?;
        while let Some(incoming) = endpoint.accept().await {
            let (waiting, log) = (waiting.clone(), log.clone());
            tokio::spawn(async move {
                let (send, recv) = incoming.await?.accept_bi().await?;
                pass_on(tokio::io::join(recv, send), waiting, log).await
            });
        }
        Ok(())
    }
}

/// Connects the second end of a pair with the first.
async fn pass_on(mut end: impl Duplex + 'static, waiting: Waiting, log: Option<Log>) -> anyhow::Result<()> {
    let pair = end.read_u32().await?;
    let other = {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.remove(&pair) {
            Some(other) => other,
            None => {
                waiting.insert(pair, Box::new(end));
                return Ok(());
            }
        }
    };
    let mut other = other;
    let Some(log) = log else {
        copy_bidirectional(&mut end, &mut other).await?;
        return Ok(());
    };
    let ((from_end, to_end), (from_other, to_other)) = (tokio::io::split(end), tokio::io::split(other));
    tokio::try_join!(log.pass_on(from_end, to_other), log.pass_on(from_other, to_end))?;
    Ok(())
}

/// Bytes to append, and whom to tell once they are on disk.
type Append = (Bytes, oneshot::Sender<()>);

/// The thread that appends to the log. What waits for it meanwhile is synced together.
#[derive(Clone)]
struct Log(mpsc::Sender<Append>);

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

    async fn pass_on(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> anyhow::Result<()> {
        let mut input = BytesMut::new();
        loop {
            input.reserve(READ_BYTES);
            if from.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            let bytes = input.split().freeze();
            let (tell, told) = oneshot::channel();
            self.0.send((bytes.clone(), tell)).await.context("the log has ended")?;
            told.await.context("the log has ended")?;
            to.write_all(&bytes).await?;
            to.flush().await?;
        }
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
