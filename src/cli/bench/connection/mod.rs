//! The load generator's device: one signed-in connection with its control and chat lanes, as thin as possible, so that
//! the measurement shows the server.

mod frames;
mod lane;
mod tcp;

pub(super) use frames::{answer, media, numbered_text, receipt, text};
pub(super) use lane::{Reader, Writer};

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

use super::process::Subject;
use crate::transport::quic::roomy_socket;
use crate::wire::proto::{ErrorMessage, PingPong, SessionAccept, SessionOpen, SubscriberAddRequest};
use crate::wire::{ALPN, DeviceId, Eid, Lane, Payload, encode_frame, envelope};

/// A longer frame is an error of the other side.
pub(super) const FRAME_BYTES_MAX: usize = 64 * 1024;

/// How long after its lanes the server may take to close the connection.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// The transport of the devices' connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Transport {
    /// QUIC, a stream for each lane
    Quic,
    /// TLS on TCP, one stream for all lanes
    Tcp,
}

/// How to reach the server and sign in.
pub(super) struct Target {
    endpoint: Endpoint,
    pub(super) server: SocketAddr,
    name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
    transport: Transport,
    signer: crate::auth::Signer,
}

/// Who signs in, and with which options.
pub(super) struct SignIn<'a> {
    /// The local part of `name@localhost`.
    pub(super) name: &'a str,
    pub(super) device: &'a str,
    pub(super) pipelined: bool,
    /// Log entries after this sequence are delivered; with `None`, those after the stored cursor.
    pub(super) resume_from: Option<i64>,
}

impl Target {
    /// Opens one UDP socket, which all QUIC devices share.
    pub(super) fn new(subject: &Subject) -> anyhow::Result<Target> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(&subject.ca);
        roots.add(ca.with_context(|| format!("reading {}", subject.ca.display()))?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(20)));
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls.clone())?));
        config.transport_config(Arc::new(transport));
        let mut endpoint = endpoint((Ipv4Addr::UNSPECIFIED, 0).into(), None)?;
        endpoint.set_default_client_config(config);
        Ok(Target {
            endpoint,
            server: subject.server,
            name: ServerName::try_from(subject.server_name.clone())?,
            tls: Arc::new(tls),
            transport: subject.transport,
            signer: crate::auth::Signer::from_pem_file(&subject.token_key)?,
        })
    }

    /// Tries to sign in with a forged token and waits until the server closes the connection.
    pub(super) async fn refused(&self, name: &str) -> anyhow::Result<()> {
        let who = SignIn { name, device: "bench", pipelined: true, resume_from: None };
        let (_, mut open) = self.session_open(&who)?;
        // Well-formed, so that the server does verify its signature.
        open.token = forged(&open.token);
        let connection = self.dial().await?;
        let (mut control, mut answers) = connection.open(Lane::Control).await?;
        control.send(encode_frame(&envelope(Payload::SessionOpen(open)))).await?;
        while let Ok(scheme) = answers.next().await {
            if let Some(Payload::SessionAccept(_)) = scheme.payload {
                bail!("a forged token was accepted");
            }
        }
        Ok(())
    }

    /// Connects, opens control and chat, and signs in as the user's only device.
    pub(super) async fn device(&self, name: &str, pipelined: bool) -> anyhow::Result<Device> {
        self.sign_in(SignIn { name, device: "bench", pipelined, resume_from: None }).await
    }

    /// Connects, opens control and chat, and signs in.
    pub(super) async fn sign_in(&self, who: SignIn<'_>) -> anyhow::Result<Device> {
        let (eid, open) = self.session_open(&who)?;
        let connection = self.dial().await?;
        let (mut send, mut control) = connection.open(Lane::Control).await?;
        send.send(encode_frame(&envelope(Payload::SessionOpen(open)))).await?;
        let accept = match control.next().await?.payload {
            Some(Payload::SessionAccept(accept)) => accept,
            Some(Payload::ErrorMessage(ErrorMessage { code, message, details, .. })) => {
                bail!("not signed in: {code} {message} {details}")
            }
            other => bail!("not signed in: {other:?}"),
        };
        let chat = Some(connection.open(Lane::Chat).await?);
        Ok(Device { eid, accept, connection, control: (send, control), chat })
    }

    fn session_open(&self, who: &SignIn<'_>) -> anyhow::Result<(Eid, SessionOpen)> {
        let (eid, id) = (Eid::parse(&format!("{}@localhost", who.name))?, DeviceId::parse(who.device)?);
        let ttl = Duration::from_secs(24 * 3600);
        let grant = crate::auth::Grant { eid: eid.clone(), device: None, ttl, scope: None };
        let open = SessionOpen {
            identity: Some(eid.device_identity(&id)),
            token: self.signer.sign(&grant, crate::clock::Now::system().unix_ms / 1000)?,
            client: "bimip-bench".to_owned(),
            pipelined: who.pipelined,
            resume_from: who.resume_from,
        };
        Ok((eid, open))
    }

    async fn dial(&self) -> anyhow::Result<Connection> {
        Ok(match self.transport {
            Transport::Quic => {
                Connection::Quic(self.endpoint.connect(self.server, self.name.to_str().as_ref())?.await?)
            }
            Transport::Tcp => {
                Connection::Tcp(tcp::Connection::dial(self.server, self.name.clone(), self.tls.clone()).await?)
            }
        })
    }
}

/// One UDP socket for many connections. Its buffer is large, because packets that it dropped would be the fault of the
/// measurement.
pub(super) fn endpoint(address: SocketAddr, server: Option<ServerConfig>) -> io::Result<Endpoint> {
    Endpoint::new(EndpointConfig::default(), server, roomy_socket(address)?, Arc::new(TokioRuntime))
}

/// The same token with the first byte of its signature changed.
fn forged(token: &str) -> String {
    match token.rsplit_once('.') {
        Some((signed, signature)) => {
            let other = if signature.starts_with('A') { "B" } else { "A" };
            format!("{signed}.{other}{}", signature.get(1..).unwrap_or_default())
        }
        None => token.to_owned(),
    }
}

/// A connection over either transport.
pub(super) enum Connection {
    Quic(quinn::Connection),
    Tcp(tcp::Connection),
}

impl Connection {
    async fn open(&self, lane: Lane) -> anyhow::Result<(Writer, Reader)> {
        let (mut writer, reader) = match self {
            Connection::Quic(connection) => {
                let (mut send, recv) = connection.open_bi().await?;
                send.write_all(&[lane.byte()]).await?;
                return Ok((Writer::quic(send), Reader::quic(recv)));
            }
            Connection::Tcp(connection) => connection.open(lane)?,
        };
        // An empty frame opens a lane (protocol.md §1). The first frame on control must be the sign-in.
        if lane != Lane::Control {
            writer.send(bytes::Bytes::from_static(&[0])).await?;
        }
        Ok((writer, reader))
    }

    /// Drops the connection: data in flight are lost.
    pub(super) fn close(&self) {
        match self {
            Connection::Quic(connection) => connection.close(0u8.into(), b"done"),
            Connection::Tcp(connection) => connection.close(),
        }
    }

    /// The code with which the server closed the connection, once a lane has ended; `None` if it is not visible.
    pub(super) async fn closed_with(&self) -> Option<u64> {
        let Connection::Quic(connection) = self else { return None };
        // Lanes end before the connection is closed.
        match tokio::time::timeout(CLOSE_WITHIN, connection.closed()).await {
            Ok(quinn::ConnectionError::ApplicationClosed(closed)) => Some(closed.error_code.into_inner()),
            _ => None,
        }
    }
}

/// A signed-in device.
pub(super) struct Device {
    pub(super) eid: Eid,
    /// The server's answer to the sign-in.
    pub(super) accept: SessionAccept,
    pub(super) connection: Connection,
    pub(super) control: (Writer, Reader),
    /// Taken by the code that drives the chat lane.
    pub(super) chat: Option<(Writer, Reader)>,
}

impl Device {
    /// Adds these users of `localhost` as subscribers, who may see this user's presence.
    pub(super) async fn admit(&mut self, names: impl Iterator<Item = String>) -> anyhow::Result<()> {
        let mut asked = 0;
        for name in names {
            let add = SubscriberAddRequest {
                owner: Some(self.eid.identity()),
                subscriber: Some(Eid::parse(&format!("{name}@localhost"))?.identity()),
                ..SubscriberAddRequest::default()
            };
            self.control.0.send(encode_frame(&envelope(Payload::SubscriberAddRequest(add)))).await?;
            asked += 1;
        }
        while asked > 0 {
            match self.control.1.next().await?.payload {
                Some(Payload::SubscriberAddResponse(added)) if added.status != 2 => asked -= 1,
                Some(Payload::PingpongMessage(_)) => {}
                other => bail!("a subscriber was not added: {other:?}"),
            }
        }
        Ok(())
    }

    /// Opens another lane.
    pub(super) async fn open(&self, lane: Lane) -> anyhow::Result<(Writer, Reader)> {
        self.connection.open(lane).await
    }
}

/// Answers the server's pings on a control lane until the connection ends; calls `answered` for each.
pub(super) async fn answer_pings(mut control: (Writer, Reader), answered: impl Fn()) -> anyhow::Result<()> {
    loop {
        if let Some(Payload::PingpongMessage(ping)) = control.1.next().await?.payload
            && ping.r#type == 1
        {
            let pong = PingPong { r#type: 2, status: 2, ..ping };
            control.0.send(encode_frame(&envelope(Payload::PingpongMessage(pong)))).await?;
            answered();
        }
    }
}
