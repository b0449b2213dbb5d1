//! One lane of a device, over either transport. Outgoing frames are queued, so that writing never blocks reading.

use std::collections::VecDeque;

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;

use super::FRAME_BYTES_MAX;
use crate::wire::{FrameDecoder, Lane, MessageScheme, open_envelope};

/// Frames written at a time.
const BATCH_MAX: usize = 64;

/// The sending half of a lane.
pub(in crate::cli::bench) struct Writer {
    queue: VecDeque<Bytes>,
    way: WayOut,
}

enum WayOut {
    Quic(SendStream),
    /// Sends to the task that writes the shared stream: whole frames, each after its lane's byte.
    Tcp(Lane, mpsc::Sender<Bytes>),
}

impl Writer {
    pub(super) fn quic(send: SendStream) -> Writer {
        Writer { queue: VecDeque::new(), way: WayOut::Quic(send) }
    }

    pub(super) fn tcp(lane: Lane, frames: mpsc::Sender<Bytes>) -> Writer {
        Writer { queue: VecDeque::new(), way: WayOut::Tcp(lane, frames) }
    }

    /// Queues a frame for [`Writer::advance`].
    pub(in crate::cli::bench) fn queue(&mut self, frame: Bytes) {
        self.queue.push_back(frame);
    }

    /// Number of queued frames.
    pub(in crate::cli::bench) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Waits until the connection accepts data, then writes as much of the queue as it accepts. Cancel safe.
    pub(in crate::cli::bench) async fn advance(&mut self) -> anyhow::Result<()> {
        match &mut self.way {
            WayOut::Quic(send) => {
                let frames = self.queue.make_contiguous();
                let batch = frames.len().min(BATCH_MAX);
                let written = send.write_chunks(&mut frames[..batch]).await?;
                self.queue.drain(..written.chunks);
            }
            WayOut::Tcp(lane, frames) => {
                let place = frames.reserve().await.context("the connection ended")?;
                let batch = self.queue.len().min(BATCH_MAX);
                let mut out = BytesMut::with_capacity(self.queue.iter().take(batch).map(|frame| 1 + frame.len()).sum());
                for frame in self.queue.drain(..batch) {
                    out.put_u8(lane.byte());
                    out.extend_from_slice(&frame);
                }
                place.send(out.freeze());
            }
        }
        Ok(())
    }

    /// Writes the whole queue.
    pub(in crate::cli::bench) async fn flush(&mut self) -> anyhow::Result<()> {
        while !self.queue.is_empty() {
            self.advance().await?;
        }
        Ok(())
    }

    /// Writes the queue and then one more frame.
    pub(in crate::cli::bench) async fn send(&mut self, frame: Bytes) -> anyhow::Result<()> {
        self.queue(frame);
        self.flush().await
    }
}

/// The receiving half of a lane.
pub(in crate::cli::bench) struct Reader(WayIn);

enum WayIn {
    Quic(RecvStream, FrameDecoder),
    Tcp(mpsc::Receiver<Bytes>),
}

impl Reader {
    pub(super) fn quic(recv: RecvStream) -> Reader {
        Reader(WayIn::Quic(recv, FrameDecoder::new(FRAME_BYTES_MAX)))
    }

    pub(super) fn tcp(frames: mpsc::Receiver<Bytes>) -> Reader {
        Reader(WayIn::Tcp(frames))
    }

    /// Receives the next envelope. Cancel safe.
    pub(in crate::cli::bench) async fn next(&mut self) -> anyhow::Result<MessageScheme> {
        loop {
            if let Some(scheme) = self.ready()? {
                return Ok(scheme);
            }
            match &mut self.0 {
                WayIn::Quic(recv, decoder) => {
                    let chunk = recv.read_chunk(64 * 1024, true).await?.context("the server ended the lane")?;
                    decoder.feed(chunk.bytes);
                }
                WayIn::Tcp(frames) => return open(&frames.recv().await.context("the server ended the connection")?),
            }
        }
    }

    /// The next envelope, if it has arrived already.
    pub(in crate::cli::bench) fn ready(&mut self) -> anyhow::Result<Option<MessageScheme>> {
        let frame = match &mut self.0 {
            WayIn::Quic(_, decoder) => decoder.next_frame()?,
            WayIn::Tcp(frames) => frames.try_recv().ok(),
        };
        frame.map(|frame| open(&frame)).transpose()
    }
}

fn open(frame: &Bytes) -> anyhow::Result<MessageScheme> {
    open_envelope(frame).map_err(|(error, _)| error.into())
}
