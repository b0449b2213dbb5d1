//! Counts connections and handshakes, in all and by address, and says who is admitted: one address cannot take all places.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::observe::{LimitKind, Metrics, TransportKind};
use crate::session::network_of;

/// The connections over both transports, and each transport's handshakes under way.
pub struct Crowd {
    connections: Arc<Places>,
    handshakes: [Arc<Places>; 2],
}

/// Why a connection is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The server is full, or the transport or the address has enough handshakes under way.
    Load,
    /// The address has enough connections.
    Address,
}

/// A connection's places, each until it is dropped. A phone that moves keeps the places of its first address.
pub(super) struct Admitted {
    pub(super) connection: Place,
    pub(super) handshake: Place,
}

impl Crowd {
    /// At most `connections` at once, of which one address has `per_address` (zero: no limit), and `handshakes` over each
    /// transport.
    pub fn new(per_address: usize, connections: usize, handshakes: usize) -> Crowd {
        // An address can begin handshakes without end and finish none: over TCP it need not prove itself by a packet first, and
        // over QUIC a real one proves itself as often as it is asked to. So one address gets half of the places.
        let shaking = || Places::new(handshakes.div_ceil(2), handshakes);
        Crowd { connections: Places::new(per_address, connections), handshakes: [shaking(), shaking()] }
    }

    /// The current number of connections, and the limit.
    pub fn connections(&self) -> (usize, usize) {
        (self.connections.counts().total, self.connections.total)
    }

    /// The number of a transport's handshakes under way, and the limit.
    pub fn handshakes(&self, transport: TransportKind) -> (usize, usize) {
        let handshakes = &self.handshakes[transport as usize];
        (handshakes.counts().total, handshakes.total)
    }

    /// Counts a connection and its handshake if there is room for both.
    pub(super) fn admit(&self, transport: TransportKind, address: SocketAddr) -> Result<Admitted, Refusal> {
        let network = network_of(address.ip());
        let handshake = self.handshakes[transport as usize].take(network).map_err(|_| Refusal::Load)?;
        let connection = self.connections.take(network)?;
        Ok(Admitted { connection, handshake })
    }
}

impl Refusal {
    pub(super) fn count(&self, metrics: &Metrics) {
        match self {
            Refusal::Load => metrics.handshakes_refused.increment(1),
            Refusal::Address => metrics.rate_limited[LimitKind::Connections].increment(1),
        }
    }
}

/// So many places in all, and for each address.
struct Places {
    /// Zero: no limit.
    per_address: usize,
    total: usize,
    counts: Mutex<Counts>,
}

/// Holds at most as many addresses as there are places.
#[derive(Default)]
struct Counts {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Places {
    fn new(per_address: usize, total: usize) -> Arc<Places> {
        Arc::new(Places { per_address, total, counts: Mutex::default() })
    }

    fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, Refusal> {
        let mut counts = self.counts();
        let Counts { total, by_address } = &mut *counts;
        if *total >= self.total {
            return Err(Refusal::Load);
        }
        let taken = by_address.get(&address).copied().unwrap_or_default();
        if self.per_address > 0 && taken >= self.per_address {
            return Err(Refusal::Address);
        }
        by_address.insert(address, taken + 1);
        *total += 1;
        Ok(Place { places: self.clone(), address })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.counts();
        counts.total -= 1;
        if let Some(count) = counts.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 1);
    const OTHER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)), 1);

    fn refusal(crowd: &Crowd, address: SocketAddr) -> Option<Refusal> {
        crowd.admit(TransportKind::Quic, address).err()
    }

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let crowd = Crowd::new(2, 3, 100);
        let _first = crowd.admit(TransportKind::Quic, ONE).unwrap();
        let second = crowd.admit(TransportKind::Tcp, ONE).unwrap();
        assert_eq!((refusal(&crowd, ONE), refusal(&crowd, OTHER)), (Some(Refusal::Address), None));
        let third = crowd.admit(TransportKind::Quic, OTHER).unwrap();
        assert_eq!((refusal(&crowd, OTHER), crowd.connections()), (Some(Refusal::Load), (3, 3)));
        drop(third);
        assert_eq!((refusal(&crowd, ONE), refusal(&crowd, OTHER)), (Some(Refusal::Address), None));
        drop(second);
        assert_eq!(refusal(&crowd, ONE), None);
        assert_eq!(refusal(&Crowd::new(0, 1, 1), ONE), None);
    }

    #[test]
    fn an_address_has_half_of_a_transports_handshakes_and_who_is_refused_has_none() {
        let crowd = Crowd::new(1, 100, 2);
        let Admitted { connection, handshake } = crowd.admit(TransportKind::Quic, ONE).unwrap();
        drop(connection);
        assert_eq!(refusal(&crowd, ONE), Some(Refusal::Load));
        assert_eq!((crowd.handshakes(TransportKind::Quic), crowd.handshakes(TransportKind::Tcp)), ((1, 2), (0, 2)));
        let other = crowd.admit(TransportKind::Quic, OTHER).unwrap();
        assert_eq!(crowd.handshakes(TransportKind::Quic), (2, 2));
        drop((handshake, other.handshake));
        assert_eq!(refusal(&crowd, OTHER), Some(Refusal::Address));
        assert_eq!((crowd.handshakes(TransportKind::Quic), crowd.connections()), ((0, 2), (1, 100)));
    }
}
