//! Counts connections and handshakes, in all and by address, and says who is admitted: one address cannot take all places.

mod handshakes;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::observe::{LimitKind, Metrics, RefusedFor, TransportKind};
use crate::session::network_of;

pub(super) use handshakes::Handshake;
use handshakes::Handshakes;

/// The connections over both transports, and each transport's handshakes under way.
pub struct Crowd {
    connections: Arc<Places>,
    sockets: Arc<Places>,
    handshakes: [Arc<Handshakes>; 2],
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
    /// The network has its share of the handshakes, or of the connections over TCP.
    Share,
    /// The address has enough connections.
    Address,
}

/// A connection's places, each until it is dropped. A phone that moves keeps the places of its first address.
pub(super) struct Admitted {
    pub(super) connection: Place,
    pub(super) handshake: Handshake,
    /// Over TCP.
    pub(super) socket: Option<Place>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new(limits: &CrowdLimits) -> Crowd {
        // Who sets no limit may have all clients behind one address.
        let (share, of_sockets) = if limits.per_address == 0 {
            (Share::All, Share::All)
        } else {
            (Share::AtMost(limits.per_address), Share::OfFree)
        };
        let handshakes = || Handshakes::new(limits.handshakes);
        Crowd {
            connections: Places::new(share, limits.connections),
            sockets: Places::new(of_sockets, limits.sockets),
            handshakes: [handshakes(), handshakes()],
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
        self.handshakes[transport as usize].counts()
    }

    /// How long a handshake may take.
    pub(super) fn handshake_within(&self) -> Duration {
        self.handshake_within
    }

    /// Counts a connection and its handshake if there is room for both. The handshake may have the place of another one.
    pub(super) fn admit(
        &self,
        transport: TransportKind,
        address: SocketAddr,
        now: Instant,
    ) -> Result<Admitted, Refusal> {
        let network = network_of(address.ip());
        let connection = self.connections.take(network)?;
        let socket = || {
            self.sockets.take(site_of(network)).map_err(|refusal| match refusal {
                Refusal::Address => Refusal::Share,
                refusal => refusal,
            })
        };
        let socket = (transport == TransportKind::Tcp).then(socket).transpose()?;
        let handshake = self.handshakes[transport as usize].begin(network, now)?;
        Ok(Admitted { connection, handshake, socket })
    }
}

/// What one household or company has of the addresses at most: for IPv6 a /48 (RFC 6177), for IPv4 the address.
fn site_of(network: IpAddr) -> IpAddr {
    match network {
        IpAddr::V4(_) => network,
        IpAddr::V6(network) => {
            let [a, b, c, ..] = network.segments();
            Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into()
        }
    }
}

impl Refusal {
    pub(super) fn count(&self, metrics: &Metrics) {
        match self {
            Refusal::Load => metrics.handshakes_refused[RefusedFor::Load].increment(1),
            Refusal::Share => metrics.handshakes_refused[RefusedFor::Address].increment(1),
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
    /// As many as it leaves free: half of them if it is alone, and half of the rest beside another that has half.
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
    use std::sync::LazyLock;

    use super::*;
    use crate::limits::HANDSHAKE_WITHIN;

    static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);

    const ONE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 1);
    const OTHER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)), 1);

    fn refusal(crowd: &Crowd, address: SocketAddr) -> Option<Refusal> {
        admit(crowd, TransportKind::Quic, address).err()
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

    fn admit(crowd: &Crowd, transport: TransportKind, address: SocketAddr) -> Result<Admitted, Refusal> {
        crowd.admit(transport, address, *NOW)
    }

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let few = crowd(2, 3, 100);
        let _first = admit(&few, TransportKind::Quic, ONE).unwrap();
        let second = admit(&few, TransportKind::Tcp, ONE).unwrap();
        assert_eq!((refusal(&few, ONE), refusal(&few, OTHER)), (Some(Refusal::Address), None));
        let third = admit(&few, TransportKind::Quic, OTHER).unwrap();
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
        let first = admit(&crowd, TransportKind::Tcp, ONE).unwrap();
        let refused = admit(&crowd, TransportKind::Tcp, OTHER).err();
        assert_eq!((refused, refusal(&crowd, OTHER), crowd.sockets()), (Some(Refusal::Load), None, (1, 1)));
        assert_eq!(crowd.connections().0, 1, "who is refused has no place");
        drop(first);
        assert!(admit(&crowd, TransportKind::Tcp, OTHER).is_ok());
    }

    #[test]
    fn one_address_or_household_does_not_take_all_sockets() {
        let addresses =
            |count: u16, address: fn(u16) -> IpAddr| (0..count).map(move |n| SocketAddr::new(address(n), 1));
        let one_address = addresses(8, |_| ONE.ip());
        let one_household = addresses(8, |n| Ipv6Addr::new(0x2001, 0xdb8, 1, n, 0, 0, 0, 1).into());
        for attackers in [one_address.collect::<Vec<_>>(), one_household.collect()] {
            let crowd = Crowd::new(&CrowdLimits {
                connections: 100,
                per_address: 100,
                sockets: 8,
                handshakes: 100,
                handshake_within: HANDSHAKE_WITHIN,
            });
            let tried = attackers.into_iter().map(|attacker| admit(&crowd, TransportKind::Tcp, attacker));
            let tried: Vec<_> = tried.collect();
            assert_eq!(tried.iter().flatten().count(), 4);
            assert_eq!((crowd.connections().0, crowd.handshakes(TransportKind::Tcp).0), (4, 4));
            assert!(tried[4..].iter().all(|tried| matches!(tried, Err(Refusal::Share))));
            assert!(admit(&crowd, TransportKind::Tcp, OTHER).is_ok());
        }
    }

    #[test]
    fn each_transport_has_handshakes_of_its_own_and_who_is_refused_has_none() {
        let crowd = crowd(1, 100, 2);
        let Admitted { connection, handshake, .. } = admit(&crowd, TransportKind::Quic, ONE).unwrap();
        assert_eq!(refusal(&crowd, ONE), Some(Refusal::Address));
        assert_eq!((crowd.handshakes(TransportKind::Quic), crowd.handshakes(TransportKind::Tcp)), ((1, 2), (0, 2)));
        drop(connection);
        let second = admit(&crowd, TransportKind::Quic, ONE).unwrap().handshake;
        assert_eq!((refusal(&crowd, ONE), crowd.connections().0), (Some(Refusal::Share), 0));
        drop((handshake, second));
        assert_eq!((refusal(&crowd, ONE), crowd.handshakes(TransportKind::Quic)), (None, (0, 2)));
    }

    #[test]
    fn an_ipv6_network_has_the_places_of_one_address() {
        let crowd = crowd(2, 100, 100);
        let host = |network: u16, host: u16| SocketAddr::from(([0x2001, 0xdb8, 1, network, 0, 0, 0, host], 1));
        let _first = admit(&crowd, TransportKind::Quic, host(2, 1)).unwrap();
        let _second = admit(&crowd, TransportKind::Quic, host(2, 2)).unwrap();
        assert_eq!(refusal(&crowd, host(2, 3)), Some(Refusal::Address));
        assert_eq!(refusal(&crowd, host(3, 1)), None);
    }
}
