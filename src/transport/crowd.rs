//! How many connections each address has, so that one cannot take all places.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::session::network_of;

/// Connections by address; as many entries as there are connections at most.
pub struct Crowd {
    /// Zero: no limit.
    per_address: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

impl Crowd {
    /// `per_address` zero: no limit.
    pub fn new(per_address: usize) -> Arc<Crowd> {
        Arc::new(Crowd { per_address, counts: Mutex::default() })
    }

    /// Whether the address may have another one.
    pub(super) fn admits(&self, address: SocketAddr) -> bool {
        self.per_address == 0
            || self.counts().get(&network_of(address.ip())).is_none_or(|count| *count < self.per_address)
    }

    /// Counts a connection until the place is dropped. A phone that moves keeps the place it came with.
    pub(super) fn enter(self: Arc<Self>, address: SocketAddr) -> Place {
        let address = network_of(address.ip());
        *self.counts().entry(address).or_default() += 1;
        Place { crowd: self, address }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
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
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let crowd = Crowd::new(2);
        let (one, other): (SocketAddr, SocketAddr) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:1".parse().unwrap());
        let _first = crowd.clone().enter(one);
        let second = crowd.clone().enter(one);
        assert!(!crowd.admits(one) && crowd.admits(other));
        drop(second);
        assert!(crowd.admits(one));
        assert!(Crowd::new(0).admits(one));
    }
}
