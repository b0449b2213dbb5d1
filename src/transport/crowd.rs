//! Counts connections and handshakes, in all and by address, and says who is admitted: one address cannot take all places.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::observe::{LimitKind, Metrics, RefusedFor, TransportKind};
use crate::session::network_of;

/// The connections over both transports, and each transport's handshakes under way.
pub struct Crowd {
    connections: Arc<Places>,
    sockets: Arc<Places>,
    handshakes: [Arc<Places>; 2],
    handshake_within: Duration,
}

/// How many at once, and for how long.
pub struct CrowdLimits {
    /// Connections over both transports.
    pub connections: usize,
    /// Those of one address; zero: no limit.
    pub per_address: usize,
    /// Connections over TCP.
    pub sockets: usize,
    /// Handshakes under way over each transport.
    pub handshakes: usize,
    /// How long each of these may take.
    pub handshake_within: Duration,
}

/// Why a connection is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The server is full.
    Load,
    /// The address has enough of the handshakes under way.
    Handshakes,
    /// The address has enough connections.
    Address,
}

/// A connection's places, each until it is dropped. A phone that moves keeps the places of its first address.
pub(super) struct Admitted {
    pub(super) connection: Place,
    pub(super) handshake: Place,
    /// Over TCP.
    pub(super) socket: Option<Place>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new(limits: &CrowdLimits) -> Crowd {
        // An address can begin handshakes without end and finish none: over TCP it need not prove itself by a packet first, and
        // over QUIC a real one proves itself as often as it is asked to.
        let shaking = || Places::new(Share::OfFree, limits.handshakes);
        let share = if limits.per_address == 0 { Share::All } else { Share::AtMost(limits.per_address) };
        Crowd {
            connections: Places::new(share, limits.connections),
            sockets: Places::new(Share::All, limits.sockets),
            handshakes: [shaking(), shaking()],
            handshake_within: limits.handshake_within,
        }
    }

    /// The current number of connections, and the limit.
    pub fn connections(&self) -> (usize, usize) {
        (self.connections.counts().total, self.connections.total)
    }

    /// The current number of connections over TCP, and the limit.
    pub fn sockets(&self) -> (usize, usize) {
        (self.sockets.counts().total, self.sockets.total)
    }

    /// The number of a transport's handshakes under way, and the limit.
    pub fn handshakes(&self, transport: TransportKind) -> (usize, usize) {
        let handshakes = &self.handshakes[transport as usize];
        (handshakes.counts().total, handshakes.total)
    }

    /// How long a handshake may take.
    pub(super) fn handshake_within(&self) -> Duration {
        self.handshake_within
    }

    /// Counts a connection and its handshake if there is room for both.
    pub(super) fn admit(&self, transport: TransportKind, address: SocketAddr) -> Result<Admitted, Refusal> {
        let network = network_of(address.ip());
        let handshake = self.handshakes[transport as usize].take(network).map_err(|refusal| match refusal {
            Refusal::Address => Refusal::Handshakes,
            refusal => refusal,
        })?;
        let connection = self.connections.take(network)?;
        let socket = (transport == TransportKind::Tcp).then(|| self.sockets.take(network)).transpose()?;
        Ok(Admitted { connection, handshake, socket })
    }
}

impl Refusal {
    pub(super) fn count(&self, metrics: &Metrics) {
        match self {
            Refusal::Load => metrics.handshakes_refused[RefusedFor::Load].increment(1),
            Refusal::Handshakes => metrics.handshakes_refused[RefusedFor::Address].increment(1),
            Refusal::Address => metrics.rate_limited[LimitKind::Connections].increment(1),
        }
    }
}

/// So many places in all, and for each address.
struct Places {
    share: Share,
    total: usize,
    counts: Mutex<Counts>,
}

/// How many places one address may take.
enum Share {
    All,
    AtMost(usize),
    /// As many as it leaves free: half of them if it is alone, a third beside another that takes what it gets. However many take
    /// all they get, a newcomer finds a place.
    OfFree,
}

/// Holds at most as many addresses as there are places.
#[derive(Default)]
struct Counts {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Places {
    fn new(share: Share, total: usize) -> Arc<Places> {
        Arc::new(Places { share, total, counts: Mutex::default() })
    }

    fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, Refusal> {
        let mut counts = self.counts();
        let Counts { total, by_address } = &mut *counts;
        if *total >= self.total {
            return Err(Refusal::Load);
        }
        let taken = by_address.get(&address).copied().unwrap_or_default();
        let enough = match self.share {
            Share::All => false,
            Share::AtMost(most) => taken >= most,
            Share::OfFree => taken >= self.total - *total,
        };
        if enough {
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
    use crate::limits::HANDSHAKE_WITHIN;

    const ONE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 1);
    const OTHER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)), 1);

    fn refusal(crowd: &Crowd, address: SocketAddr) -> Option<Refusal> {
        crowd.admit(TransportKind::Quic, address).err()
    }

    fn crowd(per_address: usize, connections: usize, handshakes: usize) -> Crowd {
        Crowd::new(&CrowdLimits {
            connections,
            per_address,
            sockets: 1,
            handshakes,
            handshake_within: HANDSHAKE_WITHIN,
        })
    }

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let few = crowd(2, 3, 100);
        let _first = few.admit(TransportKind::Quic, ONE).unwrap();
        let second = few.admit(TransportKind::Tcp, ONE).unwrap();
        assert_eq!((refusal(&few, ONE), refusal(&few, OTHER)), (Some(Refusal::Address), None));
        let third = few.admit(TransportKind::Quic, OTHER).unwrap();
        assert_eq!((refusal(&few, OTHER), few.connections()), (Some(Refusal::Load), (3, 3)));
        drop(third);
        assert_eq!((refusal(&few, ONE), refusal(&few, OTHER)), (Some(Refusal::Address), None));
        drop(second);
        assert_eq!(refusal(&few, ONE), None);
        assert_eq!(refusal(&crowd(0, 1, 1), ONE), None);
    }

    #[test]
    fn tcp_has_no_more_than_its_sockets_and_quic_needs_none() {
        let crowd = crowd(0, 100, 100);
        let first = crowd.admit(TransportKind::Tcp, ONE).unwrap();
        let refused = crowd.admit(TransportKind::Tcp, OTHER).err();
        assert_eq!((refused, refusal(&crowd, OTHER), crowd.sockets()), (Some(Refusal::Load), None, (1, 1)));
        assert_eq!(crowd.connections().0, 1, "who is refused has no place");
        drop(first);
        assert!(crowd.admit(TransportKind::Tcp, OTHER).is_ok());
    }

    #[test]
    fn an_address_has_half_of_a_transports_handshakes_and_who_is_refused_has_none() {
        let crowd = crowd(1, 100, 2);
        let Admitted { connection, handshake, .. } = crowd.admit(TransportKind::Quic, ONE).unwrap();
        drop(connection);
        assert_eq!(refusal(&crowd, ONE), Some(Refusal::Handshakes));
        assert_eq!((crowd.handshakes(TransportKind::Quic), crowd.handshakes(TransportKind::Tcp)), ((1, 2), (0, 2)));
        let other = crowd.admit(TransportKind::Quic, OTHER).unwrap();
        assert_eq!(crowd.handshakes(TransportKind::Quic), (2, 2));
        assert_eq!(refusal(&crowd, SocketAddr::from(([192, 0, 2, 3], 1))), Some(Refusal::Load));
        drop((handshake, other.handshake));
        assert_eq!(refusal(&crowd, OTHER), Some(Refusal::Address));
        assert_eq!((crowd.handshakes(TransportKind::Quic), crowd.connections()), ((0, 2), (1, 100)));
    }

    #[test]
    fn a_few_addresses_that_take_all_handshakes_they_get_leave_places_for_others() {
        let crowd = Crowd::new(&CrowdLimits {
            connections: 10_000,
            per_address: 0,
            sockets: 10_000,
            handshakes: 512,
            handshake_within: HANDSHAKE_WITHIN,
        });
        let address = |number: u8| SocketAddr::from(([192, 0, 2, number], 1));
        let mut taken = Vec::new();
        for attacker in 1..=5 {
            while let Ok(admitted) = crowd.admit(TransportKind::Tcp, address(attacker)) {
                taken.push(admitted);
                assert!(taken.len() < 512);
            }
        }
        assert_eq!(taken.len(), 256 + 128 + 64 + 32 + 16);
        assert_eq!(refusal(&crowd, address(200)), None);
    }

    #[test]
    fn an_ipv6_network_has_the_places_of_one_address() {
        let crowd = crowd(2, 100, 100);
        let host = |network: u16, host: u16| SocketAddr::from(([0x2001, 0xdb8, 1, network, 0, 0, 0, host], 1));
        let _first = crowd.admit(TransportKind::Quic, host(2, 1)).unwrap();
        let _second = crowd.admit(TransportKind::Quic, host(2, 2)).unwrap();
        assert_eq!(refusal(&crowd, host(2, 3)), Some(Refusal::Address));
        assert_eq!(refusal(&crowd, host(3, 1)), None);
    }
}
