//! The load generator's device: one signed-in QUIC connection with its control and chat lanes, as thin as can be, so
//! that what is measured is the server.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::wire::proto::{MediaPayloadRequest, SessionOpen, SubscriberAddRequest, TextPayloadRequest};
use crate::wire::{
    ALPN, DeviceId, Eid, FrameDecoder, Lane, MessageScheme, Payload, encode_frame, encode_lane_frame, envelope,
    open_envelope,
};

/// Frames over this are the server's fault.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// How to reach the server and sign in there.
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) server: SocketAddr,
    signer: crate::auth::Signer,
}

impl Target {
    /// One UDP socket for all devices; tokens by the development key of `data_dir`.
    pub(super) fn new(server: SocketAddr, data_dir: &Path) -> anyhow::Result<Target> {
        let files = crate::auth::dev::DevFiles::in_data_dir(data_dir);
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(&files.ca).with_context(|| format!("reading {}", files.ca.display()))?;
        roots.add(ca)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(20)));
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        config.transport_config(Arc::new(transport));
        let mut endpoint = Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into())?;
        endpoint.set_default_client_config(config);
        let signer = crate::auth::Signer::from_pem_file(&files.token_key)?;
        Ok(Target { endpoint, server, signer })
    }

    /// Signs in with a token that nobody signed, and waits to be closed.
    pub(super) async fn refused(&self, name: &str) -> anyhow::Result<()> {
        let (eid, id) = (Eid::parse(&format!("{name}@localhost"))?, DeviceId::parse("bench")?);
        let open = SessionOpen {
            identity: Some(eid.device_identity(&id)),
            // Well-formed, so that its signature is really looked at.
            token: forged(&self.token(&eid)?),
            ..SessionOpen::default()
        };
        let connection = self.endpoint.connect(self.server, "localhost")?.await?;
        let (mut send, _recv) = connection.open_bi().await?;
        send.write_all(&encode_lane_frame(Lane::Control, &envelope(Payload::SessionOpen(open)))).await?;
        connection.closed().await;
        Ok(())
    }

    fn token(&self, eid: &Eid) -> anyhow::Result<String> {
        let grant =
            crate::auth::Grant { eid: eid.clone(), device: None, ttl: Duration::from_secs(24 * 3600), scope: None };
        Ok(self.signer.sign(&grant, crate::clock::Now::system().unix_ms / 1000)?)
    }

    /// Connects, opens control and chat, and signs in.
    pub(super) async fn device(&self, name: &str, pipelined: bool) -> anyhow::Result<Device> {
        let (eid, id) = (Eid::parse(&format!("{name}@localhost"))?, DeviceId::parse("bench")?);
        let open = SessionOpen {
            identity: Some(eid.device_identity(&id)),
            token: self.token(&eid)?,
            client: "bimip-bench".to_owned(),
            pipelined,
            ..SessionOpen::default()
        };
        let connection = self.endpoint.connect(self.server, "localhost")?.await?;
        let (mut send, recv) = connection.open_bi().await?;
        send.write_all(&encode_lane_frame(Lane::Control, &envelope(Payload::SessionOpen(open)))).await?;
        let mut control = Reader::new(recv);
        match control.next().await?.payload {
            Some(Payload::SessionAccept(_)) => {}
            other => bail!("{name} was not signed in: {other:?}"),
        }
        let mut device = Device { eid, connection, control: (send, control), chat: None };
        device.chat = Some(device.open(Lane::Chat).await?);
        Ok(device)
    }
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

/// A signed-in device.
pub(super) struct Device {
    pub(super) eid: Eid,
    pub(super) connection: Connection,
    pub(super) control: (SendStream, Reader),
    /// Taken by whoever drives the chat lane.
    pub(super) chat: Option<(SendStream, Reader)>,
}

impl Device {
    /// Admits these users of `localhost` to see this one.
    pub(super) async fn admit(mut self, names: impl Iterator<Item = String>) -> anyhow::Result<()> {
        let mut asked = 0;
        for name in names {
            let add = SubscriberAddRequest {
                owner: Some(self.eid.identity()),
                subscriber: Some(Eid::parse(&format!("{name}@localhost"))?.identity()),
                ..SubscriberAddRequest::default()
            };
            self.control.0.write_all(&encode_frame(&envelope(Payload::SubscriberAddRequest(add)))).await?;
            asked += 1;
        }
        while asked > 0 {
            match self.control.1.next().await?.payload {
                Some(Payload::SubscriberAddResponse(added)) if added.status != 2 => asked -= 1,
                other => bail!("a subscriber was not added: {other:?}"),
            }
        }
        Ok(())
    }

    /// Opens a further lane.
    pub(super) async fn open(&self, lane: Lane) -> anyhow::Result<(SendStream, Reader)> {
        let (mut send, recv) = self.connection.open_bi().await?;
        send.write_all(&[lane.byte()]).await?;
        Ok((send, Reader::new(recv)))
    }

    /// Answers the server's pings for as long as the connection lasts.
    pub(super) async fn answer_pings(mut self) -> anyhow::Result<()> {
        loop {
            if let Some(Payload::PingpongMessage(ping)) = self.control.1.next().await?.payload
                && ping.r#type == 1
            {
                let pong = crate::wire::proto::PingPong { r#type: 2, status: 2, ..ping };
                self.control.0.write_all(&encode_frame(&envelope(Payload::PingpongMessage(pong)))).await?;
            }
        }
    }
}

/// Frames of one lane.
pub(super) struct Reader {
    recv: RecvStream,
    decoder: FrameDecoder,
}

impl Reader {
    fn new(recv: RecvStream) -> Reader {
        Reader { recv, decoder: FrameDecoder::new(FRAME_BYTES_MAX) }
    }

    /// The next envelope.
    pub(super) async fn next(&mut self) -> anyhow::Result<MessageScheme> {
        loop {
            if let Some(scheme) = self.ready()? {
                return Ok(scheme);
            }
            let chunk = self.recv.read_chunk(64 * 1024, true).await?.context("the server ended the lane")?;
            self.decoder.feed(chunk.bytes);
        }
    }

    /// The next envelope, if it has arrived already.
    pub(super) fn ready(&mut self) -> anyhow::Result<Option<MessageScheme>> {
        let Some(frame) = self.decoder.next_frame()? else { return Ok(None) };
        open_envelope(&frame).map(Some).map_err(|(error, _)| error.into())
    }
}

/// A text's frame.
pub(super) fn text(from: &Eid, to: &Eid, local_id: &str, content: &str) -> Bytes {
    let text = TextPayloadRequest {
        from: Some(from.identity()),
        to: vec![to.identity()],
        content: content.to_owned(),
        message_id_local: local_id.to_owned(),
        created_at: crate::clock::Now::system().unix_ms,
        ..TextPayloadRequest::default()
    };
    encode_frame(&envelope(Payload::TextPayloadRequest(text)))
}

/// A media message's frame.
pub(super) fn media(from: &Eid, to: &Eid, local_id: &str) -> Bytes {
    let media = MediaPayloadRequest {
        from: Some(from.identity()),
        to: vec![to.identity()],
        message_id_local: local_id.to_owned(),
        r#type: 1,
        caption: "a picture among many".to_owned(),
        cdn_url_id: format!("https://cdn.example/{local_id}.jpg"),
        thumbnail_url: format!("https://cdn.example/{local_id}-small.jpg"),
        media_size_bytes: 2_000_000,
        created_at: crate::clock::Now::system().unix_ms,
        ..MediaPayloadRequest::default()
    };
    encode_frame(&envelope(Payload::MediaPayloadRequest(media)))
}

/// Writes frames that were gathered in one go.
pub(super) async fn write(send: &mut SendStream, frames: &mut Vec<Bytes>) -> anyhow::Result<()> {
    send.write_all_chunks(frames).await?;
    frames.clear();
    Ok(())
}
