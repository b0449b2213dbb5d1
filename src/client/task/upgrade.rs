//! Returns from TCP to QUIC, which is better where it works. The new connection is tried beside the one in use.

use std::net::IpAddr;
use std::time::Instant;

use super::{Task, Work};
use crate::client::device::State;
use crate::client::dial::Dialed;
use crate::client::error::CloseReason;
use crate::client::limits::{QUIC_RETRY_MAX, RENEW_RETRY, STABLE_AFTER};

/// Whether and when to return to QUIC.
pub(super) enum Upgrade {
    /// Nothing to do: QUIC is in use or not allowed.
    Off,
    At(Instant, Option<IpAddr>),
    Dialing(Work<Result<Dialed, CloseReason>>, Option<IpAddr>),
}

impl Task {
    pub(super) fn start_upgrade(&mut self, now: Instant) {
        if let Upgrade::At(at, network) = self.upgrade
            && at <= now
        {
            let work = Box::pin(self.dialer.clone().dial_quic(self.bind, network));
            self.upgrade = Upgrade::Dialing(work, network);
        }
    }

    pub(super) fn upgraded(&mut self, upgraded: Result<Dialed, CloseReason>) {
        let Upgrade::Dialing(_, network) = std::mem::replace(&mut self.upgrade, Upgrade::Off) else { return };
        match upgraded {
            Ok(dialed) => {
                tracing::debug!("QUIC gets through again");
                self.give_up_session();
                // The age of the session before is no success of this connection, whose session is yet to be accepted.
                if self.accepted_at.take().is_some_and(|at| at.elapsed() >= STABLE_AFTER) {
                    self.backoff.reset();
                }
                self.renewing = None;
                self.link_up(dialed);
                // The session before is over: requests fail until the server has accepted the new one.
                self.state.send_replace(State::Connecting);
            }
            Err(reason) => {
                let (now, retry) =
                    (Instant::now(), network.and_then(|network| self.dialer.networks().retry_at(network)));
                let at = match retry {
                    Some(at) if at > now => at,
                    // There was no attempt, for want of a token or an address.
                    Some(_) => now + RENEW_RETRY,
                    None => now + QUIC_RETRY_MAX,
                };
                tracing::debug!(%reason, "QUIC still does not get through");
                self.upgrade = Upgrade::At(at, network);
            }
        }
    }
}
