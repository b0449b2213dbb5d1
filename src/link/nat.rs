//! The NAT of one path, as a carrier's: endpoint-independent mapping and filtering (RFC 4787), and no timeout of its
//! own.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::limits::{NAT_MAPPINGS_MAX, NAT_PORTS};
use super::packet::Protocol;
use crate::random::Random;

#[derive(Debug)]
pub(super) struct Nat {
    public: Ipv4Addr,
    outward: HashMap<(Protocol, SocketAddrV4), u16>,
    inward: HashMap<(Protocol, u16), SocketAddrV4>,
    /// The first candidate for the next mapping. All ports are used once before one is reused.
    next_port: u16,
}

impl Nat {
    /// A NAT whose public address is `public`.
    pub(super) fn new(public: Ipv4Addr, mut random: Random) -> Nat {
        let span = u64::from(NAT_PORTS.1 - NAT_PORTS.0) + 1;
        let next_port = NAT_PORTS.0 + (random.number() % span) as u16;
        Nat { public, outward: HashMap::new(), inward: HashMap::new(), next_port }
    }

    /// The public address and port of a sender: its existing mapping, or a new one. `None` if all mappings are taken.
    pub(super) fn outward(&mut self, protocol: Protocol, inside: SocketAddrV4) -> Option<SocketAddrV4> {
        if let Some(port) = self.outward.get(&(protocol, inside)) {
            return Some(SocketAddrV4::new(self.public, *port));
        }
        if self.outward.len() >= NAT_MAPPINGS_MAX {
            return None;
        }
        // There are fewer mappings than ports, so one is free.
        while self.inward.contains_key(&(protocol, self.next_port)) {
            self.advance();
        }
        let port = self.next_port;
        self.advance();
        self.outward.insert((protocol, inside), port);
        self.inward.insert((protocol, port), inside);
        Some(SocketAddrV4::new(self.public, port))
    }

    /// The inside address and port that a public port maps to, if there is a mapping.
    pub(super) fn inward(&self, protocol: Protocol, port: u16) -> Option<SocketAddrV4> {
        self.inward.get(&(protocol, port)).copied()
    }

    /// Drops all mappings, as a NAT does after an idle timeout or a restart: later packets get other ports.
    pub(super) fn rebind(&mut self) {
        self.outward.clear();
        self.inward.clear();
    }

    fn advance(&mut self) {
        self.next_port = if self.next_port >= NAT_PORTS.1 { NAT_PORTS.0 } else { self.next_port + 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn nat() -> Nat {
        Nat::new(PUBLIC, Random::new(1))
    }

    fn inside(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 9, 9, 9), port)
    }

    #[test]
    fn a_sender_keeps_its_mapping_and_others_have_others() {
        let mut nat = nat();
        let first = nat.outward(Protocol::Udp, inside(1)).unwrap();
        let second = nat.outward(Protocol::Udp, inside(2)).unwrap();
        assert_ne!(first, second);
        assert_eq!(nat.outward(Protocol::Udp, inside(1)), Some(first));
        assert_eq!((*first.ip(), nat.inward(Protocol::Udp, first.port())), (PUBLIC, Some(inside(1))));
        assert_eq!(nat.inward(Protocol::Tcp, first.port()), None, "a port of UDP is none of TCP");
        let tcp = nat.outward(Protocol::Tcp, inside(1)).unwrap();
        assert_eq!(nat.inward(Protocol::Tcp, tcp.port()), Some(inside(1)));
    }

    #[test]
    fn after_rebinding_old_mappings_lead_nowhere_and_new_ones_have_new_ports() {
        let mut nat = nat();
        let mut seen = vec![];
        for _ in 0..100 {
            let now = nat.outward(Protocol::Udp, inside(1)).unwrap();
            assert!(!seen.contains(&now));
            nat.rebind();
            assert_eq!(nat.inward(Protocol::Udp, now.port()), None);
            seen.push(now);
        }
    }

    #[test]
    fn mappings_are_bounded_and_ports_stay_in_their_range() {
        let mut nat = nat();
        for port in 0..NAT_MAPPINGS_MAX as u16 {
            let public = nat.outward(Protocol::Tcp, inside(port)).unwrap();
            assert!((NAT_PORTS.0..=NAT_PORTS.1).contains(&public.port()));
        }
        assert_eq!(nat.inward.len(), NAT_MAPPINGS_MAX, "no two share a port");
        assert_eq!(nat.outward(Protocol::Tcp, inside(u16::MAX)), None);
        assert!(nat.outward(Protocol::Tcp, inside(0)).is_some(), "who has one keeps it");
    }
}
