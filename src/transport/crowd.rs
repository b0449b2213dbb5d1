//! Counts the connections of each address, so that one address cannot take all places.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::observe::TransportKind;
use crate::session::network_of;

/// Connections over both transports, in all and by address.
pub struct Crowd {
    /// Zero: no limit.
    per_address: usize,
    total: usize,
    counts: Mutex<Counts>,
    handshakes: [AtomicUsize; 2],
}

/// Holds at most as many addresses as there are connections.
#[derive(Default)]
struct Counts {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Crowd {
    /// At most `total` connections in all, and `per_address` of one address (zero: no limit).
    pub fn new(per_address: usize, total: usize) -> Arc<Crowd> {
        Arc::new(Crowd { per_address, total, counts: Mutex::default(), handshakes: Default::default() })
    }

    /// The current number of connections, and the limit.
    pub fn connections(&self) -> (usize, usize) {
        (self.counts().total, self.total)
    }

    /// The number of a transport's handshakes under way.
    pub fn handshakes(&self, transport: TransportKind) -> usize {
        self.handshakes[transport as usize].load(Ordering::Relaxed)
    }

    /// Counts a handshake until the returned guard is dropped.
    pub(super) fn shake(self: Arc<Self>, transport: TransportKind) -> Shaking {
        self.handshakes[transport as usize].fetch_add(1, Ordering::Relaxed);
        Shaking { crowd: self, transport }
    }

    /// Whether there is room for another connection in all.
    pub(super) fn has_room(&self) -> bool {
        self.counts().total < self.total
    }

    /// Whether the address may have another connection.
    pub(super) fn admits(&self, address: SocketAddr) -> bool {
        let network = network_of(address.ip());
        self.per_address == 0 || self.counts().by_address.get(&network).is_none_or(|count| *count < self.per_address)
    }

    /// Counts a connection until the returned place is dropped. A phone that moves keeps the place of its first address.
    pub(super) fn enter(self: Arc<Self>, address: SocketAddr) -> Place {
        let address = network_of(address.ip());
        {
            let mut counts = self.counts();
            counts.total += 1;
            *counts.by_address.entry(address).or_default() += 1;
        }
        Place { crowd: self, address }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Place {
    crowd: Arc<Crowd>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts();
        counts.total -= 1;
        if let Some(count) = counts.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

pub(super) struct Shaking {
    crowd: Arc<Crowd>,
    transport: TransportKind,
}

impl Drop for Shaking {
    fn drop(&mut self) {
        self.crowd.handshakes[self.transport as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let crowd = Crowd::new(2, 3);
        let (one, other): (SocketAddr, SocketAddr) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:1".parse().unwrap());
        let _first = crowd.clone().enter(one);
        let second = crowd.clone().enter(one);
        assert!(!crowd.admits(one) && crowd.admits(other));
        let _third = crowd.clone().enter(other);
        assert!(!crowd.has_room());
        drop(second);
        assert!(crowd.has_room());
        assert!(crowd.admits(one));
        assert!(Crowd::new(0, 1).admits(one));
    }
}
