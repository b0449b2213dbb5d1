//! A relay that only passes bytes on, over QUIC or TLS on TCP: shows what the transport alone costs.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use quinn::crypto::rustls::QuicServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, copy_bidirectional};

use super::subject::ALPN;
use crate::cli::bench::connection::endpoint;
use crate::cli::{Failure, say};

/// A bare relay, for `bimip bench peers`
#[derive(clap::Args)]
pub(in crate::cli::bench) struct Args {
    /// Folder with its certificate and key
    #[arg(long, value_name = "DIR")]
    certs: PathBuf,
    /// TLS over TCP instead of QUIC
    #[arg(long)]
    tcp: bool,
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
        if self.tcp {
            let listener = tokio::net::TcpListener::bind(any).await?;
            say(&format!("address={}", listener.local_addr()?))?;
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let (acceptor, waiting) = (acceptor.clone(), waiting.clone());
                tokio::spawn(async move { pass_on(acceptor.accept(stream).await?, waiting).await });
            }
        }
        let tls = QuicServerConfig::try_from(tls).map_err(anyhow::Error::from)?;
        let endpoint = endpoint(any, Some(quinn::ServerConfig::with_crypto(Arc::new(tls))))?;
        say(&format!("address={}", endpoint.local_addr()?))?;
        while let Some(incoming) = endpoint.accept().await {
            let waiting = waiting.clone();
            tokio::spawn(async move {
                let (send, recv) = incoming.await?.accept_bi().await?;
                pass_on(tokio::io::join(recv, send), waiting).await
            });
        }
        Ok(())
    }
}

/// Connects the second end of a pair with the first.
async fn pass_on(mut end: impl Duplex + 'static, waiting: Waiting) -> anyhow::Result<()> {
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
    copy_bidirectional(&mut end, &mut other).await?;
    Ok(())
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
