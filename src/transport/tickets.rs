//! The TLS sessions that the server remembers, so that a returning phone can send its first request in its first packet.
//!
//! A ticket is the name of an entry here. It is good for one connection: the entry is removed when it is used. A first flight
//! that somebody recorded and replays therefore finds no entry, and its early data is not processed. The same holds after a
//! restart and at another node, which do not know this server's tickets (RFC 8446, 8.1). docs/security.md has the whole
//! argument.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use rustls::server::StoresServerSessions;

use crate::limits::TICKETS_PER_CONNECTION;

/// The remembered sessions; the least recently used are evicted first.
pub struct Tickets {
    most: usize,
    sessions: Mutex<LruCache<Vec<u8>, Vec<u8>>>,
    unknown: Box<dyn Fn() + Send + Sync>,
}

impl Tickets {
    /// Starts empty, with room for a server of so many connections at once. `unknown` is called for each ticket that a client
    /// presents and that is not, or no longer, here.
    pub fn new(connections: usize, unknown: impl Fn() + Send + Sync + 'static) -> Tickets {
        let most = connections.saturating_mul(TICKETS_PER_CONNECTION);
        Tickets { most, sessions: Mutex::new(LruCache::unbounded()), unknown: Box::new(unknown) }
    }

    /// Forgets all of them. Connections keep the configuration that they were accepted with, and its tickets with it.
    pub fn clear(&self) {
        *self.sessions() = LruCache::unbounded();
    }

    fn sessions(&self) -> MutexGuard<'_, LruCache<Vec<u8>, Vec<u8>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The entries are secret.
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl StoresServerSessions for Tickets {
    fn put(&self, ticket: Vec<u8>, session: Vec<u8>) -> bool {
        let mut sessions = self.sessions();
        sessions.push(ticket, session);
        if sessions.len() > self.most {
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
        const CONNECTIONS: usize = 3;
        const MOST: usize = TICKETS_PER_CONNECTION * CONNECTIONS;
        let unknown = Arc::new(AtomicUsize::new(0));
        let counted = unknown.clone();
        let tickets = Tickets::new(CONNECTIONS, move || _ = counted.fetch_add(1, Ordering::Relaxed));
        let name = |number: usize| number.to_le_bytes().to_vec();
        for number in 0..=MOST {
            assert!(tickets.put(name(number), vec![1]));
        }
        assert_eq!(tickets.take(&name(1)), Some(vec![1]));
        assert_eq!(unknown.load(Ordering::Relaxed), 0);
        assert_eq!(tickets.take(&name(1)), None);
        assert_eq!(tickets.take(&name(0)), None);
        assert_eq!(unknown.load(Ordering::Relaxed), 2);
        assert_eq!(tickets.sessions().len(), MOST - 1, "as many as there is room for, but the one that was taken");
        tickets.clear();
        assert_eq!(tickets.take(&name(MOST)), None);
    }
}
