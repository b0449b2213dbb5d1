//! A connection in memory: frames pass between device and session without a transport.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bimip::observe::TransportKind;
use bimip::session::{LaneSet, Link, LinkEvent, PathStats};
use bimip::wire::{CloseCode, Lane};
use bytes::Bytes;

/// The device's end.
#[derive(Clone, Default)]
pub(super) struct Device(Arc<Mutex<Wire>>);

#[derive(Default)]
struct Wire {
    up: VecDeque<LinkEvent>,
    down: VecDeque<Bytes>,
    /// Wakers of the session, and of the device that waits for frames.
    session: Option<Waker>,
    device: Option<Waker>,
}

impl Device {
    /// The server's end.
    pub(super) fn link(&self) -> MemoryLink {
        MemoryLink(self.clone())
    }

    pub(super) fn open(&self, lane: Lane) {
        self.put(LinkEvent::Opened(lane));
    }

    /// Sends a frame that includes its length prefix.
    pub(super) fn send(&self, lane: Lane, frame: &Bytes) {
        let mut decoder = bimip::wire::FrameDecoder::new(bimip::limits::FRAME_BYTES_MAX);
        decoder.feed(frame.clone());
        let frame = decoder.next_frame().expect("a frame").expect("a whole one");
        self.put(LinkEvent::Frame(lane, frame));
    }

    /// Waits until `count` frames have arrived, and removes them.
    pub(super) async fn take(&self, count: usize) {
        std::future::poll_fn(|cx| {
            let mut wire = self.wire();
            if wire.down.len() < count {
                wire.device = Some(cx.waker().clone());
                return Poll::Pending;
            }
            wire.down.drain(..count);
            Poll::Ready(())
        })
        .await;
    }

    fn put(&self, event: LinkEvent) {
        let waker = {
            let mut wire = self.wire();
            wire.up.push_back(event);
            wire.session.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    fn wire(&self) -> std::sync::MutexGuard<'_, Wire> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct MemoryLink(Device);

impl Link for MemoryLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Quic
    }

    fn remote(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 1).into()
    }

    fn path(&self) -> PathStats {
        PathStats::default()
    }

    fn poll_event(&mut self, cx: &mut Context<'_>, wanted: LaneSet) -> Poll<LinkEvent> {
        let mut wire = self.0.wire();
        let is_wanted = match wire.up.front() {
            Some(LinkEvent::Frame(lane, _)) => wanted.contains(*lane),
            Some(_) => true,
            None => false,
        };
        match is_wanted.then(|| wire.up.pop_front()).flatten() {
            Some(event) => Poll::Ready(event),
            None => {
                wire.session = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn push(&mut self, _: Lane, frame: Bytes) {
        self.0.wire().down.push_back(frame);
    }

    fn queued(&self, _: Lane) -> usize {
        0
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<()> {
        let waker = self.0.wire().device.take();
        waker.into_iter().for_each(Waker::wake);
        Poll::Ready(())
    }

    fn announce(&mut self, _: CloseCode, _: &str) {}

    fn poll_drained(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn close(&mut self, code: CloseCode, reason: &str) {
        panic!("the session closed with {code:?}: {reason}");
    }
}
