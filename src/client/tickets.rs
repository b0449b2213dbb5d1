//! TLS session tickets of a device's server: each lets one connection begin with 0-RTT data.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

use super::limits::{TICKETS_MAX, TICKETS_SPARED};

/// Tickets of one server; the newest is used first.
///
/// An attempt consumes its ticket whether or not it reaches the server. The many attempts of a long outage must not
/// consume all of them, or the attempt that succeeds has none left. So attempts that are unlikely to succeed leave
/// some.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    state: Mutex<State>,
    sparing: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    group: Option<NamedGroup>,
    tickets: VecDeque<Tls13ClientSessionValue>,
}

impl Tickets {
    /// Sets whether attempts from now on leave [`TICKETS_SPARED`] tickets for more promising ones.
    pub(crate) fn spare(&self, sparing: bool) {
        self.sparing.store(sparing, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.state().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.state().group
    }

    // The protocol uses TLS 1.3 only (protocol.md §1).
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut state = self.state();
        if state.tickets.len() >= TICKETS_MAX {
            state.tickets.pop_front();
        }
        state.tickets.push_back(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut state = self.state();
        if self.sparing.load(Ordering::Relaxed) && state.tickets.len() <= TICKETS_SPARED {
            return None;
        }
        state.tickets.pop_back()
    }
}
