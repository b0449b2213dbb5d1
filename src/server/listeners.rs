//! The sockets of a server.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::Endpoint;
use tokio::net::TcpListener;

use super::{StartError, fill_random};
use crate::auth;
use crate::config::Config;
use crate::limits::PORT_TRIES;
use crate::transport::quic::{self, QuicError};
use crate::transport::quic_lb::Issuer;

/// The bound sockets and their addresses.
pub(super) struct Listeners {
    pub(super) quic: (Endpoint, SocketAddr),
    /// On QUIC's port number; `None` if TCP is switched off.
    pub(super) tcp: Option<(TcpListener, SocketAddr)>,
    pub(super) metrics: (TcpListener, SocketAddr),
}

impl Listeners {
    pub(super) async fn bind(config: &Config, quic: &quinn::ServerConfig) -> Result<Listeners, StartError> {
        let (quic, tcp) = for_devices(config, quic).await?;
        let address = config.metrics_listen;
        let metrics = TcpListener::bind(address).await.and_then(with_address);
        Ok(Listeners { quic, tcp, metrics: metrics.map_err(|source| StartError::Metrics { address, source })? })
    }
}

type ForDevices = ((Endpoint, SocketAddr), Option<(TcpListener, SocketAddr)>);

/// Binds UDP and, unless it is switched off, TCP on the same port number. If any port will do, finds one that is free for both.
async fn for_devices(config: &Config, quic: &quinn::ServerConfig) -> Result<ForDevices, StartError> {
    let reset_key = auth::reset_key(&config.data_dir)?;
    let lb = &config.quic.lb;
    let lb_key = lb.key_file.as_deref().map(auth::lb_key).transpose()?;
    let ids = match Issuer::from_config(lb, lb_key.as_ref(), fill_random) {
        Ok(None) => Issuer::unbalanced(&reset_key, fill_random),
        Ok(Some(ids)) => Ok(ids),
        Err(error) => Err(error),
    };
    let ids = Arc::new(ids.map_err(|error| QuicError::Settings(error.to_string()))?);
    let mut tries = PORT_TRIES;
    loop {
        tries -= 1;
        let endpoint = quic::bind(config.listen, quic.clone(), &reset_key, ids.clone())?;
        let address = endpoint.local_addr().map_err(|source| QuicError::Bind { address: config.listen, source })?;
        let endpoint = (endpoint, address);
        if !config.tcp.enabled {
            return Ok((endpoint, None));
        }
        let mut address = config.listen;
        address.set_port(endpoint.1.port());
        match TcpListener::bind(address).await.and_then(with_address) {
            Ok(listener) => return Ok((endpoint, Some(listener))),
            Err(_) if config.listen.port() == 0 && tries > 0 => {}
            Err(source) => return Err(StartError::Tcp { address, source }),
        }
    }
}

fn with_address(listener: TcpListener) -> std::io::Result<(TcpListener, SocketAddr)> {
    let address = listener.local_addr()?;
    Ok((listener, address))
}
