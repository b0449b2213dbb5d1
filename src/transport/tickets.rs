//! What the server remembers of TLS sessions, so that a phone that returns sends its first request in its first packet.
//!
//! A ticket is the name of an entry here, and is good for one connection: it is taken out when it is used. A first
//! flight that somebody recorded and sends again therefore finds nothing, and none of its early data is looked at; the
//! same after a restart, or at another node, which know no tickets of this one (RFC 8446, 8.1). docs/security.md has the
//! whole argument.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use rustls::server::StoresServerSessions;

use crate::limits::TICKETS_MAX;

/// The sessions, those that were not used for longest forgotten first.
pub struct Tickets {
    sessions: Mutex<LruCache<Vec<u8>, Vec<u8>>>,
    unknown: Box<dyn Fn() + Send + Sync>,
}

impl Tickets {
    /// None yet; `unknown` is told of each ticket that was presented and is not, or no longer, here.
    pub fn new(unknown: impl Fn() + Send + Sync + 'static) -> Tickets {
        Tickets { sessions: Mutex::new(LruCache::unbounded()), unknown: Box::new(unknown) }
    }

    fn sessions(&self) -> MutexGuard<'_, LruCache<Vec<u8>, Vec<u8>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not what is in it: that is secret.
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl StoresServerSessions for Tickets {
    fn put(&self, ticket: Vec<u8>, session: Vec<u8>) -> bool {
        let mut sessions = self.sessions();
        sessions.push(ticket, session);
        if sessions.len() > TICKETS_MAX {
            sessions.pop_lru();
        }
        true
    }

    fn get(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.sessions().get(ticket).cloned()
    }

    fn take(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let session = self.sessions().pop(ticket);
        if session.is_none() {
            (self.unknown)();
        }
        session
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_ticket_is_good_once_and_the_oldest_make_room() {
        let unknown = Arc::new(AtomicUsize::new(0));
        let counted = unknown.clone();
        let tickets = Tickets::new(move || _ = counted.fetch_add(1, Ordering::Relaxed));
        let name = |number: usize| number.to_le_bytes().to_vec();
        for number in 0..=TICKETS_MAX {
            assert!(tickets.put(name(number), vec![1]));
        }
        assert_eq!(tickets.take(&name(1)), Some(vec![1]));
        assert_eq!(unknown.load(Ordering::Relaxed), 0);
        assert_eq!(tickets.take(&name(1)), None);
        assert_eq!(tickets.take(&name(0)), None);
        assert_eq!(unknown.load(Ordering::Relaxed), 2);
        assert!(tickets.sessions().len() <= TICKETS_MAX);
    }
}
