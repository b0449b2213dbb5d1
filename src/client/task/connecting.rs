//! Makes connections, takes leave of them, and decides what follows.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::upgrade::Upgrade;
use super::{Dialing, Outlived, Phase, Task};
use crate::client::core::Passage;
use crate::client::device::State;
use crate::client::dial::{Attempt, Carrier, Dialed, Early};
use crate::client::error::CloseReason;
use crate::client::event::Event;
use crate::client::limits::{ABUSE_WAIT, ADDRESSES_MAX, DRAIN_JITTER, EARLY_LINGERS, REFUSALS_MAX, STABLE_AFTER};
use crate::client::link::{Link, QuicLink, TcpLink};
use crate::client::transport::Transport;
use crate::wire::CloseCode;

impl Task {
    pub(super) fn dial(&mut self) {
        let attempt = Attempt {
            endpoint: self.endpoint.take(),
            bind: self.bind,
            number: self.backoff.attempts(),
            hinted: std::mem::take(&mut self.hinted),
            refused: self.refused.clone(),
        };
        // A chosen port may still be in use by the previous socket; from now on the system chooses one.
        self.bind = self.bind.map(|bind| SocketAddr::new(bind.ip(), 0));
        let (sender, early) = mpsc::channel(ADDRESSES_MAX);
        let work = Box::pin(self.dialer.clone().dial(attempt, sender));
        self.phase = Phase::Dialing(Dialing { work, early, link: None });
        self.state.send_replace(State::Connecting);
    }

    /// A connection accepts 0-RTT data: everything that waits is sent in its first flight (protocol.md §1, 0-RTT).
    pub(super) fn link_early(&mut self, early: Early) {
        let Phase::Dialing(dialing) = &mut self.phase else { return };
        let link: Box<dyn Link> = Box::new(QuicLink::new(early.connection, &self.lanes));
        if dialing.link.replace(link).is_some() {
            self.give_up_session();
        }
        self.frames.clear();
        let passage = Passage { transport: Transport::Quic, early: true };
        self.core.link_up(early.token, passage, early.started, Instant::now());
    }

    /// The attempt succeeded.
    pub(super) fn dialed(&mut self, dialed: Dialed) {
        let Phase::Dialing(dialing) = &mut self.phase else { return };
        let mut link = dialing.link.take();
        self.network = dialed.network;
        let taken = matches!(dialed.carrier, Carrier::Quic { early: true, .. });
        // A session that was accepted on the early connection stays in use, even if TCP connected at almost the same
        // time.
        if let Some(link) = link.take_if(|_| taken || self.core.is_open()) {
            if let Carrier::Quic { endpoint, .. } = dialed.carrier {
                self.endpoint = Some(endpoint);
            }
            self.phase = Phase::Linked(link);
            self.silence.reset();
            return;
        }
        if link.is_some() {
            // Either QUIC's handshake refused the early data, which is then gone, or TCP was faster than that
            // handshake.
            if matches!(dialed.carrier, Carrier::Tcp(_)) {
                self.open_lost = Some(Instant::now());
            }
            self.core.link_down();
            self.frames.clear();
        }
        self.link_up(dialed);
    }

    pub(super) fn link_up(&mut self, dialed: Dialed) {
        let Dialed { carrier, token, started, network } = dialed;
        self.network = network;
        self.upgrade = Upgrade::Off;
        let link: Box<dyn Link> = match carrier {
            Carrier::Quic { endpoint, connection, .. } => {
                self.endpoint = Some(endpoint);
                Box::new(QuicLink::new(connection, &self.lanes))
            }
            Carrier::Tcp(stream) => {
                let retry = network.and_then(|network| self.dialer.networks().retry_at(network));
                if let Some(at) = retry.filter(|_| self.dialer.transports.allow(Transport::Quic)) {
                    self.upgrade = Upgrade::At(at, network);
                }
                Box::new(TcpLink::new(*stream, &self.lanes))
            }
        };
        let passage = Passage { transport: link.transport(), early: false };
        self.phase = Phase::Linked(link);
        self.silence.reset();
        self.idle.reset();
        self.core.link_up(token, passage, started, Instant::now());
    }

    pub(super) fn dial_failed(&mut self, reason: CloseReason) {
        let age = match &mut self.phase {
            Phase::Dialing(Dialing { link: Some(_), .. }) => {
                self.refined(reason.clone());
                self.part(&reason)
            }
            _ => None,
        };
        self.retry(reason, age);
    }

    pub(super) fn link_lost(&mut self, reason: CloseReason) {
        let reason = self.refined(reason);
        if matches!(&self.phase, Phase::Linked(link) if link.timed_out()) {
            // This socket itself may be on a dead path.
            self.endpoint = None;
        }
        let answered = self.core.has_no_session() || self.core.is_useless();
        if !answered {
            self.judge_quic(&reason);
        }
        let age = self.part(&reason);
        match &mut self.phase {
            // The attempt goes on, perhaps over TCP.
            Phase::Dialing(_) if !answered => {}
            _ => self.retry(reason, age),
        }
    }

    /// Learns from the end of a connection whether QUIC works in this network: its handshake alone says little.
    fn judge_quic(&mut self, reason: &CloseReason) {
        let now = Instant::now();
        self.grow_old(now);
        let (Phase::Linked(link), Some(network)) = (&self.phase, self.network) else { return };
        if link.transport() != Transport::Quic {
            return;
        }
        let mut networks = self.dialer.networks();
        if !matches!(reason, CloseReason::Network(_)) {
            if self.accepted_at.is_some() {
                networks.quic_worked(network);
            }
            return;
        }
        let arrivals = link.arrivals();
        // Whoever only listens and owes nothing asks by QUIC's keep-alives alone, and not while its process is frozen.
        let kept_alive = match self.outlived {
            Outlived::With { sent, .. } => link.sent() > sent,
            Outlived::NotYet | Outlived::Asleep => true,
        };
        if !(self.silence.was_in_vain(arrivals) || link.timed_out() && self.keeps_alive && kept_alive) {
            // Nobody asked, or the server was heard and has trouble of its own: nothing is known of the network.
            return;
        }
        match self.outlived {
            _ if self.accepted_at.is_none() => networks.quic_was_silent(network, now),
            Outlived::With { arrivals: before, .. } if arrivals > before => networks.quic_worked(network),
            Outlived::With { .. } | Outlived::NotYet => networks.quic_was_cut(network, now),
            Outlived::Asleep => {}
        }
    }

    /// When the session is old enough to count as one that lasts, if that is still to come.
    pub(super) fn old_at(&self) -> Option<Instant> {
        let accepted_at = self.accepted_at.filter(|_| self.outlived == Outlived::NotYet)?;
        matches!(self.phase, Phase::Linked(_)).then_some(accepted_at + STABLE_AFTER)
    }

    /// Notes what has arrived when the session is that old.
    pub(super) fn grow_old(&mut self, now: Instant) {
        let Phase::Linked(link) = &self.phase else { return };
        let Some(at) = self.old_at().filter(|at| *at <= now) else { return };
        self.outlived = match now < at + STABLE_AFTER {
            true => Outlived::With { arrivals: link.arrivals(), sent: link.sent() },
            false => Outlived::Asleep,
        };
    }

    /// The error before the close says more than the close itself.
    pub(super) fn refined(&mut self, mut reason: CloseReason) -> CloseReason {
        if let (CloseReason::Server { reason, .. }, Some(refusal)) = (&mut reason, self.core.take_refusal()) {
            *reason = match refusal.details.as_str() {
                "" => refusal.message,
                details => format!("{} ({details})", refusal.message),
            };
        }
        reason
    }

    /// Closes and drops the link. Returns how long its session lasted, if it had one.
    pub(super) fn part(&mut self, reason: &CloseReason) -> Option<Duration> {
        let link = match &mut self.phase {
            Phase::Dialing(dialing) => dialing.link.take(),
            Phase::Linked(_) => match std::mem::replace(&mut self.phase, Phase::Stopped(reason.clone())) {
                Phase::Linked(link) => Some(link),
                _ => None,
            },
            _ => None,
        };
        let mut link = link?;
        match reason {
            CloseReason::Protocol(broken) => link.close(CloseCode::ProtocolViolation, broken),
            _ => link.close(CloseCode::Goodbye, ""),
        }
        self.give_up_session();
        self.renewing = None;
        self.upgrade = Upgrade::Off;
        if std::mem::take(&mut self.connected) {
            self.core.announce(Event::Disconnected(reason.clone()));
        }
        self.accepted_at.take().map(|at| at.elapsed())
    }

    /// The session of the link is over, whether it was accepted or not.
    pub(super) fn give_up_session(&mut self) {
        if !self.core.is_open() && !self.core.is_useless() {
            self.open_lost = Some(Instant::now());
        }
        self.core.link_down();
        self.frames.clear();
    }

    /// Decides what follows after a connection ended for this reason. `age` is how long its session lasted; `None` if
    /// it was not accepted.
    pub(super) fn retry(&mut self, reason: CloseReason, age: Option<Duration>) {
        tracing::debug!(%reason, attempts = self.backoff.attempts(), "not connected");
        let lost = self.open_lost.take_if(|_| reason.is_replaced());
        if reason.is_final(self.core.leaves()) && lost.is_none_or(|at| at.elapsed() >= EARLY_LINGERS) {
            return self.stop(reason);
        }
        if reason.wants_new_token() {
            self.refusals += 1;
            if let Some(token) = self.core.take_refused_token() {
                self.dialer.tokens.refused(&token);
                self.refused = Some((token, reason.clone()));
            }
            if self.refusals >= REFUSALS_MAX {
                return self.stop(reason);
            }
        }
        let draining = matches!(reason, CloseReason::Server { code: CloseCode::Draining, .. });
        if age.is_some_and(|age| reason.was_success(age)) {
            self.backoff.reset();
        }
        let first = self.backoff.attempts() == 0;
        let mut retry_in = self.backoff.failed(&mut self.jitter);
        if draining && first {
            retry_in = self.jitter.up_to(DRAIN_JITTER);
        }
        if matches!(reason, CloseReason::Server { code: CloseCode::Abuse, .. }) {
            retry_in = ABUSE_WAIT + self.jitter.up_to(ABUSE_WAIT);
        }
        // Added to the random wait, not instead of it: the server tells all devices the same time.
        retry_in += self.core.take_put_off().unwrap_or_default();
        self.phase = Phase::Waiting(Instant::now() + retry_in);
        self.state.send_replace(State::Waiting { retry_in, reason });
    }

    /// Stops: only the application can decide whether to connect again.
    pub(super) fn stop(&mut self, reason: CloseReason) {
        self.core.release_waiters(&reason);
        self.state.send_replace(State::Closed(reason.clone()));
        self.phase = Phase::Stopped(reason);
    }
}
