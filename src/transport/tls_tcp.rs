//! TLS 1.3 over TCP, for networks that drop UDP: the same lanes, each frame prefixed by its lane's byte (profile 2).
//!
//! One byte stream cannot keep lanes from delaying each other; what can be done is done: frames leave by priority, and
//! little is handed to the kernel ahead of time.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::limits::{ACCEPT_RETRY, HANDSHAKE_WITHIN, HANDSHAKES_MAX, READ_CHUNK_BYTES, TCP_WRITE_BYTES};
use crate::observe::{CloseReason, LimitKind, TransportKind};
use crate::session::{LaneSet, Link, LinkEvent, PathStats, Services, drive};
use crate::store::Store;
use crate::wire::{ALPN, CloseCode, ErrorMessage, Lane, LaneFrameDecoder, Payload, encode_frame, envelope};

use super::BY_PRIORITY;
use super::crowd::Crowd;

/// Accepts connections until `stop`, each served by a task of `tasks`. `tls`, of which the newest counts, must offer the protocol's ALPN and TLS 1.3
/// alone.
pub async fn serve(
    listener: TcpListener,
    tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    crowd: Arc<Crowd>,
    (services, store): (Arc<Services>, Arc<dyn Store>),
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let handshakes = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: some will be given back.
                tracing::warn!(%error, "TCP accept failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        if handshakes.load(Ordering::Relaxed) >= HANDSHAKES_MAX || !crowd.has_room() {
            services.metrics.handshakes_refused.increment(1);
            continue;
        }
        if !crowd.admits(remote) {
            services.metrics.rate_limited(LimitKind::Connections);
            continue;
        }
        let place = crowd.clone().enter(remote);
        let acceptor = TlsAcceptor::from(tls.borrow().clone());
        let handshakes = handshakes.clone();
        let (services, store) = (services.clone(), store.clone());
        handshakes.fetch_add(1, Ordering::Relaxed);
        tasks.spawn(async move {
            let began = Instant::now();
            let shaken = timeout(HANDSHAKE_WITHIN, handshake(&acceptor, stream)).await;
            handshakes.fetch_sub(1, Ordering::Relaxed);
            match shaken {
                Ok(Ok(stream)) => {
                    services.metrics.handshake(TransportKind::Tcp, began.elapsed());
                    let link = TcpLink::new(stream, remote, &services);
                    drive(link, services, store).await;
                }
                Ok(Err(error)) => tracing::debug!(%remote, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%remote, "TLS handshake took too long"),
            }
            drop(place);
        });
    }
}

async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    // Frames are gathered before they are written; waiting for more would only delay them.
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    match stream.get_ref().1.alpn_protocol() {
        Some(ALPN) => Ok(stream),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no bimip/1 in ALPN")),
    }
}

/// One device's TCP connection.
pub struct TcpLink {
    stream: TlsStream<TcpStream>,
    remote: SocketAddr,
    decoder: LaneFrameDecoder,
    /// The next frame, while its lane is not wanted; everything behind it waits too.
    held: Option<(Lane, Bytes)>,
    lanes: LaneSet,
    queues: [VecDeque<Bytes>; 4],
    queued: [usize; 4],
    /// Says with which code the connection closes, after everything else and whether or not control was opened.
    last: Option<Bytes>,
    /// Taken from the queues, on its way into the stream.
    out: BytesMut,
    unflushed: bool,
    bytes_in: u64,
    bytes_out: u64,
    closed: Option<CloseReason>,
    heard: Instant,
    idle_timeout: Duration,
    idle: Pin<Box<Sleep>>,
}

impl TcpLink {
    fn new(stream: TlsStream<TcpStream>, remote: SocketAddr, services: &Services) -> TcpLink {
        let (heard, idle_timeout) = (Instant::now(), services.settings.idle_timeout);
        TcpLink {
            stream,
            remote,
            decoder: LaneFrameDecoder::new(services.settings.frame_bytes_max),
            held: None,
            lanes: LaneSet::NONE,
            queues: Default::default(),
            queued: [0; 4],
            last: None,
            out: BytesMut::new(),
            unflushed: false,
            bytes_in: 0,
            bytes_out: 0,
            closed: None,
            heard,
            idle_timeout,
            idle: Box::pin(sleep_until((heard + idle_timeout).into())),
        }
    }

    /// What the next bytes mean, if they are there: an event, or a frame to hold.
    fn decode(&mut self) -> Option<LinkEvent> {
        while self.held.is_none() {
            let (byte, frame) = match self.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return None,
                Err((byte, _)) => return Some(LinkEvent::Oversized(Lane::from_byte(byte).unwrap_or(Lane::Control))),
            };
            let Some(lane) = Lane::from_byte(byte) else { return Some(LinkEvent::Violation("unknown lane")) };
            let opened = !self.lanes.contains(lane);
            self.lanes = self.lanes.with(lane);
            // An empty frame opens a lane, and says nothing else.
            if !frame.is_empty() {
                self.held = Some((lane, frame));
            }
            if opened {
                return Some(LinkEvent::Opened(lane));
            }
        }
        None
    }

    fn close_with(&mut self, reason: CloseReason) -> LinkEvent {
        self.closed = Some(reason);
        LinkEvent::Closed(reason)
    }

    /// Silence for too long: over TCP nobody else would notice that the peer is gone.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> bool {
        while self.idle.as_mut().poll(cx).is_ready() {
            let due = self.heard + self.idle_timeout;
            if due <= Instant::now() {
                return true;
            }
            self.idle.as_mut().reset(due.into());
        }
        false
    }

    /// Moves frames into the stream's hands, the most urgent lane's first.
    fn gather(&mut self) {
        for lane in BY_PRIORITY.map(Lane::index) {
            while self.out.len() < TCP_WRITE_BYTES
                && let Some(frame) = self.queues[lane].pop_front()
            {
                self.queued[lane] -= frame.len();
                self.out.put_u8(Lane::ALL[lane].byte());
                self.out.extend_from_slice(&frame);
            }
        }
        if self.queued == [0; 4]
            && let Some(frame) = self.last.take()
        {
            self.out.put_u8(Lane::Control.byte());
            self.out.extend_from_slice(&frame);
        }
    }
}

impl Link for TcpLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Tcp
    }

    fn remote(&self) -> SocketAddr {
        self.remote
    }

    fn path(&self) -> PathStats {
        PathStats { bytes_in: self.bytes_in, bytes_out: self.bytes_out, ..PathStats::default() }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>, wanted: LaneSet) -> Poll<LinkEvent> {
        if let Some(reason) = self.closed {
            return Poll::Ready(LinkEvent::Closed(reason));
        }
        loop {
            if let Some(event) = self.decode() {
                return Poll::Ready(event);
            }
            if let Some((lane, frame)) = self.held.take_if(|(lane, _)| wanted.contains(*lane)) {
                return Poll::Ready(LinkEvent::Frame(lane, frame));
            }
            if self.poll_idle(cx) {
                return Poll::Ready(self.close_with(CloseReason::TimedOut));
            }
            if self.held.is_some() {
                return Poll::Pending;
            }
            let mut chunk = [0; READ_CHUNK_BYTES];
            let mut read = ReadBuf::new(&mut chunk);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read)) {
                Ok(()) if read.filled().is_empty() => return Poll::Ready(self.close_with(CloseReason::ClosedByPeer)),
                Ok(()) => {
                    self.heard = Instant::now();
                    self.bytes_in += read.filled().len() as u64;
                    self.decoder.feed(read.filled());
                }
                Err(_) => return Poll::Ready(self.close_with(CloseReason::Reset)),
            }
        }
    }

    fn push(&mut self, lane: Lane, frame: Bytes) {
        if self.lanes.contains(lane) {
            self.queued[lane.index()] += frame.len();
            self.queues[lane.index()].push_back(frame);
        }
    }

    fn queued(&self, lane: Lane) -> usize {
        self.queued[lane.index()]
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.closed.is_some() {
            return Poll::Ready(());
        }
        loop {
            if self.out.is_empty() {
                self.gather();
            }
            if self.out.is_empty() {
                break;
            }
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out)) {
                Ok(written) if written > 0 => {
                    self.out.advance(written);
                    self.bytes_out += written as u64;
                    self.unflushed = true;
                }
                _ => {
                    self.closed = Some(CloseReason::Reset);
                    return Poll::Ready(());
                }
            }
        }
        // An idle device holds no buffer.
        self.out = BytesMut::new();
        if self.unflushed {
            let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
            self.unflushed = false;
            if flushed.is_err() {
                self.closed = Some(CloseReason::Reset);
            }
        }
        Poll::Ready(())
    }

    fn announce(&mut self, code: CloseCode, reason: &str) {
        let error = ErrorMessage { code: code.tcp_error_code(), message: reason.to_owned(), ..ErrorMessage::default() };
        self.last = Some(encode_frame(&envelope(Payload::ErrorMessage(error))));
    }

    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_flush(cx));
        if self.closed.is_none() {
            // Ends the stream with a TLS close, so that the peer knows that nothing was cut off.
            let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        }
        Poll::Ready(())
    }

    fn close(&mut self, code: CloseCode, _reason: &str) {
        // The socket itself closes when the link is dropped.
        self.closed = Some(code.into());
    }
}
