//! Moves a connection to another path, when the network has changed or the path in use is silent.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::{Outlived, Phase, Task, now};
use crate::client::core::Now;
use crate::client::dial::{own_address, unspecified};
use crate::client::error::CloseReason;
use crate::client::silence::Heard;
use crate::client::transport::Transport;

impl Task {
    /// Checks for silence: soon while an answer is owed.
    pub(super) fn listen(&mut self, now: Now) {
        let Phase::Linked(link) = &self.phase else { return };
        let quiet = link.quiet();
        let owed = self.core.owed() && !quiet.is_some_and(|quiet| quiet.held);
        let mut heard = self.silence.look(owed, now.instant, || link.arrivals());
        if let (Heard::Life, Some(quiet)) = (&heard, quiet) {
            heard = self.idle.look(quiet, now.instant);
        }
        match heard {
            Heard::Life => {}
            Heard::Knock => self.core.probe(now),
            Heard::Move => {
                self.core.probe(now);
                if link.transport() == Transport::Quic
                    && let Err(error) = self.rebind_socket(None)
                {
                    tracing::debug!(%error, "cannot open another socket for a silent path");
                }
            }
            Heard::Dead => {
                // This socket itself may be on a dead path.
                self.endpoint = None;
                self.link_lost(CloseReason::Network("the server went silent".into()));
            }
        }
        self.write(now);
    }

    /// The network under the device has changed. A QUIC connection moves with its socket; a TCP connection is replaced.
    /// A QUIC connection that has been silent for a while does not move either, because a new one delivers everything
    /// that waits in its first flight.
    pub(super) fn rebind(&mut self, to: Option<SocketAddr>) -> io::Result<Option<SocketAddr>> {
        let now = now();
        if to.is_none() {
            // The address it was bound to may no longer exist.
            self.bind = None;
        }
        self.dialer.forget_reached();
        match &self.phase {
            Phase::Linked(link)
                if link.transport() == Transport::Quic && !self.silence.is_in_doubt(link.arrivals()) =>
            {
                let (rtt, arrivals, remote) = (link.rtt(), link.arrivals(), link.remote());
                let local = self.rebind_socket(to)?;
                self.enter(remote.and_then(|server| own_address(server, to)), arrivals);
                self.core.moved(now);
                self.silence.moved(now.instant, rtt, arrivals);
                Ok(local)
            }
            Phase::Linked(_) | Phase::Dialing(_) | Phase::Waiting(_) => {
                self.part(&CloseReason::Network("the device has moved to another network".into()));
                self.bind = to;
                self.endpoint = None;
                self.hinted = true;
                self.backoff.reset();
                self.dial();
                Ok(None)
            }
            Phase::Stopped(_) => {
                self.bind = to;
                self.endpoint = None;
                Ok(None)
            }
        }
    }

    /// The connection is in this network from now on. Of the one before, it is known whether it lasted there; of the new one its
    /// first seconds say nothing. `arrivals` is the count before the move.
    fn enter(&mut self, network: Option<IpAddr>, arrivals: u64) {
        if network == self.network {
            return;
        }
        if let (Outlived::With { arrivals: before, .. }, Some(left)) = (self.outlived, self.network)
            && arrivals > before
        {
            self.dialer.networks().quic_worked(left);
        }
        (self.network, self.outlived) = (network.or(self.network), Outlived::Asleep);
    }

    /// Moves the UDP socket, and with it the connection.
    fn rebind_socket(&mut self, to: Option<SocketAddr>) -> io::Result<Option<SocketAddr>> {
        let Some(endpoint) = &self.endpoint else { return Ok(None) };
        let local = endpoint.local_addr()?;
        let bind = to.or(self.bind).unwrap_or_else(|| unspecified(local));
        if bind.is_ipv6() != local.is_ipv6() {
            return Err(io::Error::other("the connection is of the other IP family"));
        }
        endpoint.rebind(UdpSocket::bind(bind)?)?;
        if to.is_some() {
            self.bind = to.map(|to| SocketAddr::new(to.ip(), 0));
        }
        endpoint.local_addr().map(Some)
    }
}
