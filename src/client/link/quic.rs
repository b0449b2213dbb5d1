//! A QUIC connection as a link: one stream per lane.

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Sleep, sleep};

use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};

use super::{Link, needed, wanted};
use crate::client::error::CloseReason;
use crate::client::limits::{CLOSE_FOLLOWS_WITHIN, FRAMES_PER_TURN, LANE_QUEUE_BYTES, READ_CHUNK_BYTES};
use crate::client::silence::Quiet;
use crate::client::transport::Transport;
use crate::wire::{CloseCode, DEVICE_FRAME_BYTES_MAX, FrameDecoder, Lane};

type OpenStream = Pin<Box<dyn Future<Output = Result<(SendStream, RecvStream), ConnectionError>> + Send>>;
type Arriving = Pin<Box<dyn Future<Output = ()> + Send>>;

enum Stream {
    Closed,
    Opening(OpenStream),
    Open { send: SendStream, recv: RecvStream, ended: bool },
}

struct LaneIo {
    stream: Stream,
    outgoing: VecDeque<Bytes>,
    outgoing_bytes: usize,
    decoder: FrameDecoder,
}

/// A QUIC connection whose lanes are opened when needed.
pub(crate) struct QuicLink {
    connection: Connection,
    /// Resolves when the connection is gone, with the reason, independent of any lane.
    closed: Pin<Box<dyn Future<Output = ConnectionError> + Send>>,
    gone: Option<CloseReason>,
    /// The server has ended the control lane. Until this time it must close the connection and say why.
    ending: Option<Pin<Box<Sleep>>>,
    lanes: [LaneIo; 4],
    /// Lanes that were ended, until the server has received all of their data.
    finishing: Option<Vec<Arriving>>,
}

impl QuicLink {
    /// Takes a connection and opens these lanes, control first.
    pub(crate) fn new(connection: Connection, lanes: &[Lane]) -> QuicLink {
        let closed = |_| LaneIo {
            stream: Stream::Closed,
            outgoing: VecDeque::new(),
            outgoing_bytes: 0,
            decoder: FrameDecoder::new(DEVICE_FRAME_BYTES_MAX),
        };
        let watched = connection.clone();
        let mut link = QuicLink {
            connection,
            closed: Box::pin(async move { watched.closed().await }),
            gone: None,
            ending: None,
            lanes: std::array::from_fn(closed),
            finishing: None,
        };
        wanted(lanes).for_each(|lane| link.open(lane));
        link
    }

    /// The reason if the connection has ended, or if the server has ended the control lane and not closed in time.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Option<CloseReason> {
        if self.gone.is_none()
            && let Poll::Ready(error) = self.closed.as_mut().poll(cx)
        {
            self.gone = Some(proved(&self.connection, error));
        }
        if self.gone.is_some() {
            return self.gone.clone();
        }
        let Stream::Open { ended: true, .. } = self.lanes[Lane::Control.index()].stream else { return None };
        let ending = self.ending.get_or_insert_with(|| Box::pin(sleep(CLOSE_FOLLOWS_WITHIN)));
        let waited = ending.as_mut().poll(cx).is_ready();
        waited.then(|| CloseReason::Protocol("the control lane was ended".into()))
    }

    fn open(&mut self, lane: Lane) {
        let connection = self.connection.clone();
        let io = &mut self.lanes[lane.index()];
        io.stream = Stream::Opening(Box::pin(async move { connection.open_bi().await }));
        // The server does not see a stream until a byte is written on it, and the first byte names the lane
        // (protocol.md §1).
        io.push(Bytes::copy_from_slice(&[lane.byte()]));
    }
}

impl Link for QuicLink {
    fn transport(&self) -> Transport {
        Transport::Quic
    }

    fn has_room(&self, lane: Lane) -> bool {
        self.lanes[lane.index()].outgoing_bytes < LANE_QUEUE_BYTES
    }

    fn queue(&mut self, lane: Lane, frame: Bytes) {
        for lane in needed(lane) {
            if matches!(self.lanes[lane.index()].stream, Stream::Closed) {
                self.open(lane);
            }
        }
        self.lanes[lane.index()].push(frame);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reading: &dyn Fn(Lane) -> bool,
        frames: &mut Vec<(Lane, Bytes)>,
    ) -> Poll<Result<(), CloseReason>> {
        let mut room = false;
        let mut end = None;
        for lane in Lane::BY_PRIORITY {
            let io = &mut self.lanes[lane.index()];
            let was_full = io.outgoing_bytes >= LANE_QUEUE_BYTES;
            if let Poll::Ready(Err(reason)) = io.poll_write(lane, cx) {
                end.get_or_insert(reason);
            }
            room |= was_full && io.outgoing_bytes < LANE_QUEUE_BYTES;
        }
        for lane in Lane::BY_PRIORITY.into_iter().filter(|lane| reading(*lane)) {
            if let Poll::Ready(Err(reason)) = self.lanes[lane.index()].poll_read(lane, cx, frames) {
                end.get_or_insert(reason);
            }
        }
        if end.is_none() {
            end = self.poll_end(cx);
        } else if let Some(error) = self.connection.close_reason() {
            // A lane tells it first, and without knowing how far the handshake is.
            end = Some(proved(&self.connection, error));
        }
        match end {
            // Frames that arrived before the end are handled first, as they may say why. The next call finds the end
            // again.
            _ if !frames.is_empty() => Poll::Ready(Ok(())),
            Some(reason) => Poll::Ready(Err(reason)),
            None if room => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }

    fn rtt(&self) -> Option<Duration> {
        Some(self.connection.rtt())
    }

    fn arrivals(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    fn quiet(&self) -> Option<Quiet> {
        None
    }

    fn sent(&self) -> u64 {
        self.connection.stats().udp_tx.datagrams
    }

    fn remote(&self) -> Option<SocketAddr> {
        Some(self.connection.remote_address())
    }

    fn timed_out(&self) -> bool {
        self.connection.close_reason() == Some(ConnectionError::TimedOut)
    }

    fn close(&mut self, code: CloseCode, reason: &str) {
        self.connection.close(VarInt::from_u32(code.code().unsigned_abs()), reason.as_bytes());
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let finishing = match &mut self.finishing {
            Some(finishing) => finishing,
            None => {
                for lane in Lane::BY_PRIORITY {
                    let io = &mut self.lanes[lane.index()];
                    if !io.outgoing.is_empty() && ready!(io.poll_write(lane, cx)).is_err() {
                        return Poll::Ready(());
                    }
                }
                let mut arriving = Vec::new();
                for io in &mut self.lanes {
                    if let Stream::Open { send, .. } = &mut io.stream
                        && send.finish().is_ok()
                    {
                        let stopped = send.stopped();
                        // The server stopped the stream or the connection is lost: nothing more can be done.
                        arriving.push(Box::pin(async move { _ = stopped.await }) as Arriving);
                    }
                }
                self.finishing.insert(arriving)
            }
        };
        finishing.retain_mut(|lane| lane.as_mut().poll(cx).is_pending());
        if finishing.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl LaneIo {
    fn push(&mut self, frame: Bytes) {
        self.outgoing_bytes += frame.len();
        self.outgoing.push_back(frame);
    }

    fn poll_write(&mut self, lane: Lane, cx: &mut Context<'_>) -> Poll<Result<(), CloseReason>> {
        if let Stream::Opening(opening) = &mut self.stream {
            let opened = ready!(opening.as_mut().poll(cx));
            // Whatever it is, it must not be polled again.
            self.stream = Stream::Closed;
            let (send, recv) = opened.map_err(close_reason)?;
            // Fails only for a finished stream.
            let _ = send.set_priority(lane.priority());
            self.stream = Stream::Open { send, recv, ended: false };
        }
        let Stream::Open { send, .. } = &mut self.stream else { return Poll::Pending };
        while !self.outgoing.is_empty() {
            let written = {
                let write = pin!(send.write_chunks(self.outgoing.make_contiguous()));
                match ready!(write.poll(cx)) {
                    // The handshake continues without the early data. Its end tells the dialer, and everything is sent
                    // again.
                    Err(WriteError::ZeroRttRejected) => return Poll::Pending,
                    written => written.map_err(write_error)?,
                }
            };
            self.outgoing.drain(..written.chunks);
            self.outgoing_bytes -= written.bytes;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(
        &mut self,
        lane: Lane,
        cx: &mut Context<'_>,
        frames: &mut Vec<(Lane, Bytes)>,
    ) -> Poll<Result<(), CloseReason>> {
        let Stream::Open { recv, ended, .. } = &mut self.stream else { return Poll::Pending };
        loop {
            while frames.len() < FRAMES_PER_TURN {
                match self.decoder.next_frame() {
                    Ok(Some(frame)) => frames.push((lane, frame)),
                    Ok(None) => break,
                    Err(error) => return Poll::Ready(Err(CloseReason::Protocol(error.to_string()))),
                }
            }
            if *ended || frames.len() >= FRAMES_PER_TURN {
                return Poll::Pending;
            }
            let chunk = {
                let read = pin!(recv.read_chunk(READ_CHUNK_BYTES, true));
                match ready!(read.poll(cx)) {
                    Err(ReadError::ZeroRttRejected) => return Poll::Pending,
                    read => read.map_err(read_error)?,
                }
            };
            match chunk {
                Some(chunk) => self.decoder.feed(chunk.bytes),
                // On the control lane the close follows and says why.
                None => *ended = true,
            }
        }
    }
}

fn write_error(error: WriteError) -> CloseReason {
    match error {
        WriteError::ConnectionLost(error) => close_reason(error),
        other => CloseReason::Protocol(format!("a lane was stopped: {other}")),
    }
}

fn read_error(error: ReadError) -> CloseReason {
    match error {
        ReadError::ConnectionLost(error) => close_reason(error),
        other => CloseReason::Protocol(format!("a lane was reset: {other}")),
    }
}

/// Why a connection ended or was not made.
fn close_reason(error: ConnectionError) -> CloseReason {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            match CloseCode::from_quic(close.error_code.into_inner()) {
                Some(code) => CloseReason::Server { code, reason },
                None => CloseReason::Protocol(format!("close code {}", close.error_code)),
            }
        }
        ConnectionError::LocallyClosed => CloseReason::Local,
        // RFC 9001, 4.8: 0x100 plus the TLS alert.
        ConnectionError::TransportError(error) if (0x100..0x200).contains(&u64::from(error.code)) => {
            CloseReason::Tls(error.reason.clone())
        }
        other => CloseReason::Network(other.to_string()),
    }
}

/// Why a connection ended, as far as it is proved. Until the server has confirmed the handshake, everybody on the way can write a
/// close in its name, and quinn also takes one with an application's code there, which a server never sends (RFC 9000, 10.2.3).
pub(crate) fn proved(connection: &Connection, error: ConnectionError) -> CloseReason {
    match error {
        ConnectionError::ApplicationClosed(_) if connection.stats().frame_rx.handshake_done == 0 => unproved(error),
        error => close_reason(error),
    }
}

/// Why a handshake failed: see [`proved`].
pub(crate) fn unproved(error: ConnectionError) -> CloseReason {
    match error {
        ConnectionError::ApplicationClosed(_) => CloseReason::Network("closed before the handshake was over".into()),
        error => close_reason(error),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;
    use crate::wire::ALPN;

    /// Each server has its own tickets and rejects early data sent with another's.
    fn server(made: &rcgen::CertifiedKey<rcgen::KeyPair>) -> quinn::ServerConfig {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.max_early_data_size = u32::MAX;
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
    }

    fn client(made: &rcgen::CertifiedKey<rcgen::KeyPair>) -> quinn::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.enable_early_data = true;
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
    }

    #[tokio::test]
    async fn a_lane_that_is_opened_when_all_is_over_does_not_keep_what_came_before_from_being_read() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let serving = quinn::Endpoint::server(server(&made), any).unwrap();
        let mut dialing = quinn::Endpoint::client(any).unwrap();
        dialing.set_default_client_config(client(&made));
        let dialed = async { dialing.connect(serving.local_addr().unwrap(), "localhost").unwrap().await.unwrap() };
        let accepted = async { serving.accept().await.unwrap().await.unwrap() };
        let (connection, accepted) = tokio::join!(dialed, accepted);
        let mut link = QuicLink::new(connection.clone(), &[Lane::Control]);
        let mut frames = Vec::new();
        assert!(poll_fn(|cx| Poll::Ready(link.poll(cx, &|_| true, &mut frames))).await.is_pending());
        let (mut lane, _) = accepted.accept_bi().await.unwrap();
        lane.write_all(&[1, 0]).await.unwrap();
        lane.finish().unwrap();
        lane.stopped().await.unwrap();
        accepted.close(VarInt::from_u32(CloseCode::Draining.code().unsigned_abs()), b"");
        connection.closed().await;
        link.queue(Lane::Media, Bytes::from_static(&[1, 0]));
        poll_fn(|cx| link.poll(cx, &|_| true, &mut frames)).await.unwrap();
        assert_eq!(frames.drain(..).map(|(lane, _)| lane).collect::<Vec<_>>(), [Lane::Control]);
        let end = poll_fn(|cx| link.poll(cx, &|_| true, &mut frames)).await;
        assert!(matches!(end, Err(CloseReason::Server { code: CloseCode::Draining, .. })), "{end:?}");
    }

    #[tokio::test]
    async fn a_link_whose_early_data_is_not_taken_leaves_the_connection_to_its_dialer() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let serving = quinn::Endpoint::server(server(&made), any).unwrap();
        let mut dialing = quinn::Endpoint::client(any).unwrap();
        dialing.set_default_client_config(client(&made));
        let accept = async || serving.accept().await.unwrap().await.unwrap();
        let dial = || dialing.connect(serving.local_addr().unwrap(), "localhost").unwrap();

        let (first, accepted) = tokio::join!(dial(), accept());
        // Data that the server sends once connected arrives after its ticket.
        accepted.open_uni().await.unwrap().write_all(b"x").await.unwrap();
        first.unwrap().accept_uni().await.unwrap();

        serving.set_server_config(Some(server(&made)));
        let Ok((connection, taken)) = dial().into_0rtt() else { panic!("it has a ticket") };
        let mut link = QuicLink::new(connection.clone(), &[Lane::Control]);
        let mut frames = Vec::new();
        let mut poll =
            async |link: &mut QuicLink| poll_fn(|cx| Poll::Ready(link.poll(cx, &|_| true, &mut frames))).await;
        assert!(poll(&mut link).await.is_pending());
        let (taken, _accepted) = tokio::join!(taken, accept());
        assert!(!taken);
        assert!(poll(&mut link).await.is_pending(), "it is no error of the connection");
        assert!(connection.close_reason().is_none());
    }
}
