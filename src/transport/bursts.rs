//! A UDP socket that bounds how many packets quinn passes to one system call.
//!
//! As soon as a connection sends two packets together, quinn gives it a buffer for as many packets as its socket takes at once,
//! ten, and keeps the buffer for the connection's life: 14.5 KiB even if the session is idle ever after.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::limits::PACKETS_AT_ONCE;

#[derive(Debug)]
pub(super) struct ShortBursts(Arc<dyn AsyncUdpSocket>);

impl ShortBursts {
    pub(super) fn over(socket: Arc<dyn AsyncUdpSocket>) -> Arc<ShortBursts> {
        Arc::new(ShortBursts(socket))
    }
}

impl AsyncUdpSocket for ShortBursts {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, buffers, metas)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments().min(PACKETS_AT_ONCE)
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}
