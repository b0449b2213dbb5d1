//! TLS 1.3 over TCP, for networks that drop UDP: the same lanes, each frame prefixed by its lane's byte (protocol.md §1).
//!
//! In one byte stream lanes delay each other. To keep the delay small, frames are sent by priority and little is handed to the
//! kernel ahead of time. What the kernel holds for a connection is bounded like QUIC's windows.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::QuicConfig;
use crate::limits::{ACCEPT_RETRY, CLOSE_LINGER, READ_CHUNK_BYTES, TCP_EMPTY_FRAMES_MAX, TCP_WRITE_BYTES};
use crate::observe::{CloseReason, TransportKind};
use crate::session::{LaneSet, Link, LinkEvent, PathStats, Services, drive};
use crate::store::Store;
use crate::wire::{
    ALPN, CloseCode, ErrorMessage, Lane, LaneFrameDecoder, Payload, TLS_RECORD_BYTES, encode_frame, envelope,
};

use super::Tickets;
use super::crowd::{Admitted, Crowd};
use super::tcp_info;

const UNKNOWN_LANE: LinkEvent = LinkEvent::Violation("unknown lane");

/// The configuration that connections are accepted with: `tls` with tickets of its own, so that a client that resumes a session
/// of an earlier certificate does a full handshake.
pub fn server_config(mut tls: rustls::ServerConfig, tickets: Arc<Tickets>) -> Arc<rustls::ServerConfig> {
    tls.session_storage = tickets;
    tls.max_fragment_size = Some(TLS_RECORD_BYTES);
    Arc::new(tls)
}

/// Accepts connections until `stop`; a task of `tasks` serves each. The newest value of `tls` is used, which must offer the
/// protocol's ALPN and only TLS 1.3. Those bounds of `config` apply that do not concern packets.
pub async fn serve(
    (listener, tls): (TcpListener, watch::Receiver<Arc<rustls::ServerConfig>>),
    config: QuicConfig,
    crowd: Arc<Crowd>,
    (services, store): (Arc<Services>, Arc<dyn Store>),
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely the process is out of file descriptors; some will be given back.
                tracing::warn!(%error, "TCP accept failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Admitted { connection, handshake: shaking, socket } =
            match crowd.admit(TransportKind::Tcp, remote, Instant::now()) {
                Ok(admitted) => admitted,
                Err(refusal) => {
                    refusal.count(&services.metrics);
                    continue;
                }
            };
        if let Err(error) = prepare(&stream, &config) {
            tracing::debug!(%remote, %error, "a TCP connection was gone before its handshake");
            continue;
        }
        let (acceptor, stop) = (TlsAcceptor::from(tls.borrow().clone()), stop.clone());
        let (services, store) = (services.clone(), store.clone());
        let within = crowd.handshake_within();
        tasks.spawn(async move {
            let began = Instant::now();
            let shaken = tokio::select! {
                shaken = handshake(&acceptor, stream) => shaken,
                () = sleep(within) => Some(Err(io::ErrorKind::TimedOut.into())),
                () = shaking.evicted() => {
                    services.metrics.handshakes_evicted.increment(1);
                    None
                }
                // A client whose handshake is almost complete is still told why the server closes; a shutdown does not wait for
                // others.
                () = async { stop.cancelled().await; sleep(CLOSE_LINGER).await } => None,
            };
            drop(shaking);
            match shaken {
                None => {}
                Some(Ok(stream)) => {
                    services.metrics.handshake[TransportKind::Tcp].record(began.elapsed());
                    let settings = &services.settings;
                    let link = TcpLink::new(stream, remote, settings.frame_bytes_max, settings.idle_timeout);
                    drive(link, services, store).await;
                }
                Some(Err(error)) => {
                    tracing::debug!(%remote, %error, "TLS handshake failed");
                    services.metrics.handshakes_failed[TransportKind::Tcp].increment(1);
                }
            }
            drop((connection, socket));
        });
    }
}

/// Sets the options of the connection's socket.
fn prepare(stream: &TcpStream, config: &QuicConfig) -> io::Result<()> {
    // Frames are gathered before they are written; waiting for more would only delay them.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    // Otherwise the kernel would grow both buffers to megabytes: one for a device that does not read, one for a device that
    // outruns the server.
    socket.set_send_buffer_size(config.send_window as usize)?;
    socket.set_recv_buffer_size(config.connection_receive_window as usize)?;
    // What the path does not take yet stays in this process, where an urgent frame can still overtake it.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_notsent_lowat(TCP_WRITE_BYTES as u32)?;
    Ok(())
}

/// `None`: the peer left without a word, as a balancer does that only looks whether the port is open.
async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream) -> Option<io::Result<TlsStream<TcpStream>>> {
    if !stream.peek(&mut [0]).await.is_ok_and(|bytes| bytes > 0) {
        return None;
    }
    Some(acceptor.accept(stream).await.and_then(|stream| match stream.get_ref().1.alpn_protocol() {
        Some(ALPN) => Ok(stream),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no bimip/1 in ALPN")),
    }))
}

/// One device's TCP connection.
pub struct TcpLink {
    stream: TlsStream<TcpStream>,
    remote: SocketAddr,
    decoder: LaneFrameDecoder,
    /// The next frame, while its lane is not wanted; everything behind it waits too.
    held: Option<(Lane, Bytes)>,
    lanes: LaneSet,
    /// Empty frames of lanes that were open.
    empty: u32,
    queues: [VecDeque<Bytes>; 4],
    queued: [usize; 4],
    /// The frame with the close code. It is sent after everything else, even if control was not opened.
    last: Option<Bytes>,
    /// Bytes taken from the queues and not yet written to the stream.
    out: BytesMut,
    unflushed: bool,
    bytes_in: u64,
    bytes_out: u64,
    /// TLS and this side of the stream were ended.
    ended: bool,
    /// A write has failed: nothing is written any more. What arrived before is still read.
    broken: bool,
    closed: Option<CloseReason>,
    heard: Instant,
    idle_timeout: Duration,
    idle: Pin<Box<Sleep>>,
}

impl TcpLink {
    /// Handles a failed write. The driver polled for events earlier in this turn, so wake the task to read what is left and
    /// to report the close.
    fn broken(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.broken = true;
        cx.waker().wake_by_ref();
        Poll::Ready(())
    }

    fn new(
        stream: TlsStream<TcpStream>,
        remote: SocketAddr,
        frame_bytes_max: usize,
        idle_timeout: Duration,
    ) -> TcpLink {
        let heard = Instant::now();
        TcpLink {
            stream,
            remote,
            decoder: LaneFrameDecoder::new(frame_bytes_max),
            held: None,
            lanes: LaneSet::NONE,
            empty: 0,
            queues: Default::default(),
            queued: [0; 4],
            last: None,
            out: BytesMut::new(),
            unflushed: false,
            bytes_in: 0,
            bytes_out: 0,
            ended: false,
            broken: false,
            closed: None,
            heard,
            idle_timeout,
            idle: Box::pin(sleep_until((heard + idle_timeout).into())),
        }
    }

    /// Decodes the next bytes, if they have arrived: returns an event, or stores a frame in `held`.
    fn decode(&mut self) -> Option<LinkEvent> {
        while self.held.is_none() {
            let (byte, frame) = match self.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    let unknown = self.decoder.next_lane().is_some_and(|byte| Lane::from_byte(byte).is_none());
                    return unknown.then_some(UNKNOWN_LANE);
                }
                Err((byte, _)) => {
                    // Any first frame opens its lane, so the refusal goes there.
                    let lane = Lane::from_byte(byte).unwrap_or(Lane::Control);
                    self.lanes = self.lanes.with(lane);
                    return Some(LinkEvent::Oversized(lane));
                }
            };
            let Some(lane) = Lane::from_byte(byte) else { return Some(UNKNOWN_LANE) };
            let opened = !self.lanes.contains(lane);
            self.lanes = self.lanes.with(lane);
            // An empty frame only opens a lane.
            if !frame.is_empty() {
                self.held = Some((lane, frame));
            } else if !opened {
                self.empty += 1;
                if self.empty > TCP_EMPTY_FRAMES_MAX {
                    return Some(LinkEvent::Violation("too many empty frames"));
                }
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

    /// Whether the peer has been silent for too long: over TCP nothing else would notice that it is gone.
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

    /// Moves frames into the write buffer, the most urgent lane's first.
    fn gather(&mut self) {
        for lane in Lane::BY_PRIORITY.map(Lane::index) {
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
        let kernel = tcp_info::path(self.stream.get_ref().0);
        PathStats { bytes_in: self.bytes_in, bytes_out: self.bytes_out, ..kernel }
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
                // There is no peer to take what the kernel still holds; the kernel would try for minutes.
                let _ = self.stream.get_ref().0.set_zero_linger();
                return Poll::Ready(self.close_with(CloseReason::TimedOut));
            }
            if self.held.is_some() {
                // The driver may want its lane later.
                return if self.broken { Poll::Ready(LinkEvent::Closed(CloseReason::Reset)) } else { Poll::Pending };
            }
            let mut chunk = [0; READ_CHUNK_BYTES];
            let mut read = ReadBuf::new(&mut chunk);
            match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
                Poll::Pending if self.broken => return Poll::Ready(self.close_with(CloseReason::Reset)),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if read.filled().is_empty() => {
                    return Poll::Ready(self.close_with(CloseReason::ClosedByPeer));
                }
                Poll::Ready(Ok(())) => {
                    self.heard = Instant::now();
                    self.bytes_in += read.filled().len() as u64;
                    self.decoder.feed(read.filled());
                }
                Poll::Ready(Err(_)) => return Poll::Ready(self.close_with(CloseReason::Reset)),
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
        if self.closed.is_some() || self.broken {
            // Nobody gets it, and a lane that it fills would not be read.
            (self.queues, self.queued) = Default::default();
            return Poll::Ready(());
        }
        loop {
            if self.out.is_empty() {
                // Gathers only once the kernel has taken the bytes before: frames that are still queued can be overtaken.
                if self.unflushed && ready!(Pin::new(&mut self.stream).poll_flush(cx)).is_err() {
                    return self.broken(cx);
                }
                self.unflushed = false;
                self.gather();
            }
            if self.out.is_empty() {
                // An idle device holds no buffer.
                self.out = BytesMut::new();
                return Poll::Ready(());
            }
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out)) {
                Ok(written) if written > 0 => {
                    self.out.advance(written);
                    self.bytes_out += written as u64;
                    self.unflushed = true;
                }
                _ => return self.broken(cx),
            }
        }
    }

    fn announce(&mut self, code: CloseCode, reason: &str) {
        let error = ErrorMessage { code: code.tcp_error_code(), message: reason.to_owned(), ..ErrorMessage::default() };
        self.last = Some(encode_frame(&envelope(Payload::ErrorMessage(error))));
    }

    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_flush(cx));
        if self.closed.is_some() || self.broken {
            return Poll::Ready(());
        }
        if !self.ended {
            // Ends the stream with a TLS close, so that the peer knows that nothing was cut off.
            let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
            self.ended = true;
        }
        // Closing a socket that has unread bytes resets the connection, and the reset may overtake the last frames. So what
        // still arrives is read and dropped until the peer has ended its side: then it has read everything.
        loop {
            let mut chunk = [0; READ_CHUNK_BYTES];
            let mut read = ReadBuf::new(&mut chunk);
            let more = ready!(Pin::new(self.stream.get_mut().0).poll_read(cx, &mut read));
            if more.is_err() || read.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }

    fn close(&mut self, code: CloseCode, _reason: &str) {
        // The socket itself closes when the link is dropped.
        self.closed = Some(code.into());
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::limits::{CONNECTION_RECEIVE_WINDOW, SEND_WINDOW};
    use crate::session::testing::House;
    use crate::transport::testing::{PATIENCE, hasty_crowd, tls, until_nobody_is_there};

    fn ends() -> (TlsAcceptor, TlsConnector) {
        let (server, client) = tls();
        (TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client)))
    }

    /// The server's socket, and the device's.
    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, socket)
    }

    /// The server's side of a connection, and the device's.
    async fn pair(idle_timeout: Duration) -> (TcpLink, tokio_rustls::client::TlsStream<TcpStream>) {
        let ((acceptor, connector), (accepted, socket)) = (ends(), sockets().await);
        let remote = accepted.peer_addr().unwrap();
        prepare(&accepted, &QuicConfig::default()).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let (accepted, connected) = tokio::join!(handshake(&acceptor, accepted), connector.connect(name, socket));
        (TcpLink::new(accepted.unwrap().unwrap(), remote, 1024, idle_timeout), connected.unwrap())
    }

    #[tokio::test]
    async fn who_leaves_without_a_word_has_failed_no_handshake_and_who_says_something_else_has() {
        let (acceptor, _) = ends();
        let (accepted, device) = sockets().await;
        drop(device);
        assert!(handshake(&acceptor, accepted).await.is_none());
        let (accepted, mut device) = sockets().await;
        device.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(handshake(&acceptor, accepted).await.is_some_and(|shaken| shaken.is_err()));
    }

    async fn event(link: &mut TcpLink) -> LinkEvent {
        let every = Lane::ALL.into_iter().fold(LaneSet::NONE, LaneSet::with);
        poll_fn(|cx| link.poll_event(cx, every)).await
    }

    #[tokio::test]
    async fn who_connects_and_says_nothing_is_cut_off_and_its_places_are_free() {
        let (house, crowd, stop) = (House::new(|_, _| ()), hasty_crowd(), CancellationToken::new());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_newest, tls) = watch::channel(Arc::new(tls().0));
        let (services, tasks) = ((house.services.clone(), house.store.clone()), TaskTracker::new());
        let (config, places) = (QuicConfig::default(), crowd.clone());
        let serving = tokio::spawn(serve((listener, tls), config, places, services, tasks, stop.clone()));
        let mut silent = TcpStream::connect(address).await.unwrap();
        let end = tokio::time::timeout(PATIENCE, silent.read(&mut [0])).await.expect("it is cut off");
        assert!(matches!(end, Ok(0)), "{end:?}");
        until_nobody_is_there(&crowd, TransportKind::Tcp).await;
        assert_eq!(crowd.sockets().0, 0);
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_device_that_stalls_within_a_frame_is_given_up_and_the_kernel_keeps_nothing_for_it() {
        let (mut link, mut device) = pair(Duration::from_millis(50)).await;
        device.write_all(&[Lane::Chat.byte(), 0, Lane::Chat.byte(), 100, 1, 2, 3]).await.unwrap();
        assert!(matches!(event(&mut link).await, LinkEvent::Opened(Lane::Chat)));
        assert!(matches!(event(&mut link).await, LinkEvent::Closed(CloseReason::TimedOut)));
        drop(link);
        let end = device.read(&mut [0]).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn frames_leave_by_priority_and_the_close_code_last() {
        let (mut link, mut device) = pair(Duration::from_secs(60)).await;
        device.write_all(&[3, 0, 1, 0, 2, 0, 0, 0]).await.unwrap();
        for lane in [Lane::Media, Lane::Presence, Lane::Chat, Lane::Control] {
            assert!(matches!(event(&mut link).await, LinkEvent::Opened(opened) if opened == lane));
        }
        link.announce(CloseCode::Draining, "");
        for lane in [Lane::Media, Lane::Presence, Lane::Chat, Lane::Control] {
            link.push(lane, Bytes::from_static(&[0]));
        }
        assert_eq!(Lane::ALL.map(|lane| link.queued(lane)), [1; 4]);
        let drained = tokio::spawn(async move {
            poll_fn(|cx| link.poll_drained(cx)).await;
            link
        });
        let mut said = Vec::new();
        device.read_to_end(&mut said).await.unwrap();
        assert_eq!(said[..8], [0, 0, 2, 0, 1, 0, 3, 0]);
        assert_eq!(said[8], Lane::Control.byte());
        assert!(said.len() > 10);
        // The device has read everything, and then ends its side.
        device.shutdown().await.unwrap();
        drained.await.unwrap();
    }

    #[tokio::test]
    async fn the_kernel_holds_no_more_of_a_connection_than_quic_would() {
        let (link, _device) = pair(Duration::from_secs(60)).await;
        let socket = SockRef::from(link.stream.get_ref().0);
        // Linux includes its own bookkeeping, and doubles the size that it is given.
        assert!(socket.send_buffer_size().unwrap() <= 2 * SEND_WINDOW as usize);
        assert!(socket.recv_buffer_size().unwrap() <= 2 * CONNECTION_RECEIVE_WINDOW as usize);
        #[cfg(any(target_os = "linux", target_os = "android"))]
        assert_eq!(socket.tcp_notsent_lowat().unwrap() as usize, TCP_WRITE_BYTES);
    }
}
