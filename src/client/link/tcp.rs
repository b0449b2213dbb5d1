//! A TLS connection over TCP as a link: the lanes share one byte stream, and a lane byte precedes each frame
//! (protocol.md §1).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use super::{Link, needed, wanted};
use crate::client::error::CloseReason;
use crate::client::limits::{FRAMES_PER_TURN, LANE_QUEUE_BYTES, TCP_CHUNK_BYTES};
use crate::client::silence::Quiet;
use crate::client::transport::Transport;
use crate::wire::{CloseCode, DEVICE_FRAME_BYTES_MAX, Lane, LaneFrameDecoder, Payload, open_envelope};

/// The TLS stream that a TCP attempt results in.
pub(crate) type TcpStream = TlsStream<tokio::net::TcpStream>;

/// One device's TCP connection.
pub(crate) struct TcpLink {
    stream: TcpStream,
    decoder: LaneFrameDecoder,
    /// The next frame, while its lane is not read; everything behind it waits too.
    held: Option<(Lane, Bytes)>,
    opened: [bool; 4],
    queues: [VecDeque<Bytes>; 4],
    queued: [usize; 4],
    /// Bytes taken from the queues that the stream has yet to accept.
    out: BytesMut,
    unflushed: bool,
    /// The server's last error: over TCP it carries the close code (protocol.md §1).
    last_word: Option<CloseReason>,
    gone: Option<CloseReason>,
    arrivals: u64,
    heard: Instant,
}

impl TcpLink {
    /// Takes a connection and opens these lanes, control first.
    pub(crate) fn new(stream: TcpStream, lanes: &[Lane]) -> TcpLink {
        let mut link = TcpLink {
            stream,
            decoder: LaneFrameDecoder::new(DEVICE_FRAME_BYTES_MAX),
            held: None,
            opened: [false; 4],
            queues: Default::default(),
            queued: [0; 4],
            out: BytesMut::new(),
            unflushed: false,
            last_word: None,
            gone: None,
            arrivals: 0,
            heard: Instant::now(),
        };
        wanted(lanes).for_each(|lane| link.open(lane));
        link
    }

    /// Opens a lane, if that was not done.
    fn open(&mut self, lane: Lane) {
        if !std::mem::replace(&mut self.opened[lane.index()], true) {
            // An empty frame only opens a lane (protocol.md §1).
            self.out.put_slice(&[lane.byte(), 0]);
        }
    }

    /// Moves frames into the write buffer, those of the most urgent lane first.
    fn gather(&mut self) {
        for lane in Lane::BY_PRIORITY {
            while self.out.len() < TCP_CHUNK_BYTES
                && let Some(frame) = self.queues[lane.index()].pop_front()
            {
                self.queued[lane.index()] -= frame.len();
                self.out.put_u8(lane.byte());
                self.out.extend_from_slice(&frame);
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.out.is_empty() {
                self.gather();
            }
            if self.out.is_empty() {
                break;
            }
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
            self.unflushed = true;
        }
        // An idle device keeps no buffer.
        self.out = BytesMut::new();
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads until there is no more data, the turn is full, or the next frame belongs to a lane that is not read.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        reading: &dyn Fn(Lane) -> bool,
        frames: &mut Vec<(Lane, Bytes)>,
    ) -> Poll<CloseReason> {
        loop {
            while frames.len() < FRAMES_PER_TURN {
                let (lane, frame) = match self.held.take() {
                    Some((lane, frame)) => {
                        if reading(lane) {
                            // The device was not reading until now, so silence counts from here.
                            self.heard = Instant::now();
                        }
                        (lane, frame)
                    }
                    None => match self.next_frame() {
                        Ok(Some(frame)) => frame,
                        Ok(None) => break,
                        Err(broken) => return Poll::Ready(broken),
                    },
                };
                if !reading(lane) {
                    self.held = Some((lane, frame));
                    break;
                }
                frames.push((lane, frame));
            }
            if self.held.is_some() || frames.len() >= FRAMES_PER_TURN {
                return Poll::Pending;
            }
            let mut chunk = [0; TCP_CHUNK_BYTES];
            let mut read = ReadBuf::new(&mut chunk);
            let cut = |error: io::Error| CloseReason::Network(format!("the connection was cut: {error}"));
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read)) {
                Ok(()) if read.filled().is_empty() => {
                    let ended = || CloseReason::Network("the server ended the connection".into());
                    return Poll::Ready(self.last_word.take().unwrap_or_else(ended));
                }
                Ok(()) => {
                    (self.heard, self.arrivals) = (Instant::now(), self.arrivals + 1);
                    self.decoder.feed(read.filled());
                }
                Err(error) => return Poll::Ready(self.last_word.take().unwrap_or_else(|| cut(error))),
            }
        }
    }

    /// The next frame that is not about the connection itself.
    fn next_frame(&mut self) -> Result<Option<(Lane, Bytes)>, CloseReason> {
        loop {
            let (byte, frame) = match self.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(None),
                Err((_, error)) => return Err(CloseReason::Protocol(error.to_string())),
            };
            let Some(lane) = Lane::from_byte(byte) else {
                return Err(CloseReason::Protocol(format!("a frame of lane {byte}, which there is not")));
            };
            match (lane == Lane::Control).then(|| close_word(&frame)).flatten() {
                Some(word) => self.last_word = Some(word),
                None if frame.is_empty() => {}
                None => return Ok(Some((lane, frame))),
            }
        }
    }
}

/// The close code that a control frame carries, if it is the last frame of a connection (protocol.md §1).
fn close_word(frame: &[u8]) -> Option<CloseReason> {
    let Some(Payload::ErrorMessage(error)) = open_envelope(frame).ok()?.payload else { return None };
    let code = CloseCode::from_tcp(error.code)?;
    Some(CloseReason::Server { code, reason: error.message })
}

impl Link for TcpLink {
    fn transport(&self) -> Transport {
        Transport::Tcp
    }

    fn has_room(&self, lane: Lane) -> bool {
        self.queued[lane.index()] < LANE_QUEUE_BYTES
    }

    fn queue(&mut self, lane: Lane, frame: Bytes) {
        needed(lane).for_each(|lane| self.open(lane));
        self.queued[lane.index()] += frame.len();
        self.queues[lane.index()].push_back(frame);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reading: &dyn Fn(Lane) -> bool,
        frames: &mut Vec<(Lane, Bytes)>,
    ) -> Poll<Result<(), CloseReason>> {
        if let Some(gone) = &self.gone {
            return Poll::Ready(Err(gone.clone()));
        }
        let full = |queued: &[usize; 4]| queued.map(|bytes| bytes >= LANE_QUEUE_BYTES);
        let before = full(&self.queued);
        // A failed write says less than what the server may have sent before; reading finds the end as well.
        let broken = matches!(self.poll_write(cx), Poll::Ready(Err(_)));
        let room = full(&self.queued) != before;
        match self.poll_read(cx, reading, frames) {
            Poll::Ready(reason) => self.gone = Some(reason),
            Poll::Pending if broken && self.held.is_none() && frames.is_empty() => {
                let cut = || CloseReason::Network("the connection was cut".into());
                self.gone = Some(self.last_word.take().unwrap_or_else(cut));
            }
            Poll::Pending => {}
        }
        match &self.gone {
            // Frames that arrived before the end are handled first.
            _ if !frames.is_empty() => Poll::Ready(Ok(())),
            Some(gone) => Poll::Ready(Err(gone.clone())),
            None if room => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }

    fn rtt(&self) -> Option<Duration> {
        None
    }

    fn arrivals(&self) -> u64 {
        self.arrivals
    }

    fn quiet(&self) -> Option<Quiet> {
        Some(Quiet { since: self.heard, held: self.held.is_some() })
    }

    fn sent(&self) -> u64 {
        0
    }

    fn remote(&self) -> Option<SocketAddr> {
        None
    }

    fn timed_out(&self) -> bool {
        false
    }

    fn close(&mut self, _code: CloseCode, _reason: &str) {
        // TCP has no close code; the socket closes when the link is dropped.
        self.gone = Some(CloseReason::Local);
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.gone.is_none() && ready!(self.poll_write(cx)).is_ok() {
            // Ends the stream with a TLS close, so that the server knows that nothing was cut off.
            let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        }
        Poll::Ready(())
    }
}
