//! The network between phone and server: routes packets, and applies blackouts, UDP blocking and the NATs. It takes
//! packets and the time, and returns packets; it does no I/O.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::chance::Chance;
use super::counters::{Counters, Path, Tally, Way};
use super::nat::Nat;
use super::packet::{Packet, Protocol};
use super::pipe::{Offered, Pipe};
use super::profile::Profile;
use crate::random::Random;

/// The addresses of phone, server and NATs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) server: Ipv4Addr,
    /// The phone's address on each path.
    pub(super) phone: [Ipv4Addr; 2],
    /// The address at which the server sees the phone on each path.
    pub(super) public: [Ipv4Addr; 2],
}

#[derive(Debug)]
pub(super) struct Router {
    addresses: Addresses,
    paths: [Route; 2],
    active: Path,
    udp_blocked: bool,
    counters: Counters,
}

/// One path.
#[derive(Debug)]
struct Route {
    up: Pipe<Packet>,
    down: Pipe<Packet>,
    nat: Nat,
    dark: Dark,
}

/// Whether the phone's radio is dead.
#[derive(Debug, Clone, Copy)]
enum Dark {
    No,
    Yes,
    Until(Instant),
}

/// Where a packet that crossed the link leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Server,
    Phone(Path),
}

impl Router {
    /// Each direction gets its own random generator, so that traffic in one does not change the outcome in another.
    pub(super) fn new(addresses: Addresses, profiles: [Profile; 2], seed: u64, now: Instant) -> Router {
        let mut random = Random::new(seed);
        let paths = [0, 1].map(|index| Route {
            up: Pipe::new(profiles[index].up, Chance::new(random.fork())),
            down: Pipe::new(profiles[index].down, Chance::new(random.fork())),
            nat: Nat::new(addresses.public[index], random.fork()),
            dark: Dark::No,
        });
        Router { addresses, paths, active: Path::Wifi, udp_blocked: false, counters: Counters::new(now) }
    }

    pub(super) fn set_profile(&mut self, path: Path, profile: Profile) {
        let route = &mut self.paths[path.index()];
        route.up.set(profile.up);
        route.down.set(profile.down);
    }

    /// Turns the phone's radio on that path off or on. Uplink packets are lost when they are offered. Downlink packets
    /// are lost at the time they would arrive, so those that arrive before the blackout begins are still delivered.
    pub(super) fn black_out(&mut self, path: Path, dark: bool) {
        self.paths[path.index()].dark = if dark { Dark::Yes } else { Dark::No };
    }

    pub(super) fn block_udp(&mut self, blocked: bool) {
        self.udp_blocked = blocked;
    }

    pub(super) fn rebind_nat(&mut self, path: Path) {
        self.paths[path.index()].nat.rebind();
    }

    /// Kills the path in use now and makes `to` usable after the gap; returns when that will be.
    pub(super) fn hand_over(&mut self, to: Path, gap: Duration, now: Instant) -> Instant {
        let works_at = now + gap;
        self.paths[self.active.index()].dark = Dark::Yes;
        self.paths[to.index()].dark = Dark::Until(works_at);
        self.active = to;
        works_at
    }

    pub(super) fn counters(&self, now: Instant) -> Counters {
        let mut counters = self.counters;
        counters.at = now;
        counters
    }

    /// Takes a packet that the phone sent through a device.
    pub(super) fn phone_sends(&mut self, path: Path, bytes: &[u8], now: Instant) {
        let Some(packet) = Packet::parse(bytes).filter(|packet| *packet.destination.ip() == self.addresses.server)
        else {
            return self.counters.not_carried.one(bytes.len());
        };
        self.offer(path, Way::Up, packet, now);
    }

    /// Takes a packet that the server sent; its destination, a public address, selects the path.
    pub(super) fn server_sends(&mut self, bytes: &[u8], now: Instant) {
        let packet = Packet::parse(bytes);
        let to = |packet: &Packet| {
            Path::BOTH.into_iter().find(|path| self.addresses.public[path.index()] == *packet.destination.ip())
        };
        let Some((path, packet)) = packet.and_then(|packet| Some((to(&packet)?, packet))) else {
            return self.counters.not_carried.one(bytes.len());
        };
        self.offer(path, Way::Down, packet, now);
    }

    fn offer(&mut self, path: Path, way: Way, mut packet: Packet, now: Instant) {
        let bytes = packet.bytes().len();
        let route = &mut self.paths[path.index()];
        let tally = self.counters.of_mut(path, way, packet.protocol);
        tally.offered.one(bytes);
        if self.udp_blocked && packet.protocol == Protocol::Udp {
            return tally.blocked.one(bytes);
        }
        match way {
            Way::Up if *packet.source.ip() != self.addresses.phone[path.index()] => return tally.unmapped.one(bytes),
            Way::Up if route.dark.is(now) => return tally.blacked_out.one(bytes),
            Way::Up => {}
            // The NAT is at the network's end of the radio link, so a packet without a mapping never reaches the radio.
            Way::Down => match route.nat.inward(packet.protocol, packet.destination.port()) {
                Some(inside) => packet.set_destination(inside),
                None => return tally.unmapped.one(bytes),
            },
        }
        let pipe = match way {
            Way::Up => &mut route.up,
            Way::Down => &mut route.down,
        };
        match pipe.offer(now, bytes, packet) {
            Offered::Taken => {}
            Offered::Doubled => tally.doubled.one(bytes),
            Offered::Lost => tally.lost.one(bytes),
            Offered::QueueFull => tally.queue_full.one(bytes),
            Offered::TooMuch => tally.overrun.one(bytes),
        }
    }

    /// When the next packet arrives at either end.
    pub(super) fn due(&self) -> Option<Instant> {
        self.paths.iter().flat_map(|route| [route.up.due(), route.down.due()]).flatten().min()
    }

    /// Passes every packet that has arrived by now to `out`, which returns whether the device accepted it.
    pub(super) fn deliver(&mut self, now: Instant, mut out: impl FnMut(Exit, &[u8]) -> bool) {
        for path in Path::BOTH {
            let route = &mut self.paths[path.index()];
            while let Some(mut packet) = route.up.arrived(now) {
                let tally = self.counters.of_mut(path, Way::Up, packet.protocol);
                match route.nat.outward(packet.protocol, packet.source) {
                    Some(public) => {
                        packet.set_source(public);
                        tally.end(&packet, out(Exit::Server, packet.bytes()));
                    }
                    None => tally.unmapped.one(packet.bytes().len()),
                }
            }
            while let Some(packet) = route.down.arrived(now) {
                let tally = self.counters.of_mut(path, Way::Down, packet.protocol);
                if route.dark.is(now) {
                    tally.blacked_out.one(packet.bytes().len());
                } else {
                    tally.end(&packet, out(Exit::Phone(path), packet.bytes()));
                }
            }
        }
    }
}

impl Dark {
    fn is(self, now: Instant) -> bool {
        match self {
            Dark::No => false,
            Dark::Yes => true,
            Dark::Until(end) => now < end,
        }
    }
}

impl Tally {
    fn end(&mut self, packet: &Packet, was_taken: bool) {
        let count = if was_taken { &mut self.delivered } else { &mut self.overrun };
        count.one(packet.bytes().len());
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use super::super::testing::packet;
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const ADDRESSES: Addresses = Addresses {
        server: Ipv4Addr::new(10, 0, 0, 1),
        phone: [Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 2, 0, 1)],
        public: [Ipv4Addr::new(10, 1, 0, 9), Ipv4Addr::new(10, 2, 0, 9)],
    };
    const SERVER: SocketAddrV4 = SocketAddrV4::new(ADDRESSES.server, 443);

    /// A router and its clock.
    struct Net {
        router: Router,
        now: Instant,
    }

    impl Net {
        fn new() -> Net {
            let now = Instant::now();
            Net { router: Router::new(ADDRESSES, [Profile::CLEAN; 2], 1, now), now }
        }

        fn phone_sends(&mut self, path: Path, protocol: Protocol) {
            let from = SocketAddrV4::new(ADDRESSES.phone[path.index()], 5_000);
            self.router.phone_sends(path, &packet(protocol, from, SERVER, b"up"), self.now);
        }

        fn server_sends(&mut self, protocol: Protocol, to: SocketAddrV4) {
            self.router.server_sends(&packet(protocol, SERVER, to, b"down"), self.now);
        }

        /// Advances the clock and returns what comes out of the router.
        fn pass(&mut self, time: Duration) -> Vec<(Exit, Packet)> {
            self.now += time;
            let mut all = Vec::new();
            self.router.deliver(self.now, |exit, bytes| {
                all.push((exit, Packet::parse(bytes).unwrap()));
                true
            });
            all
        }

        /// The address and port at which the server sees the phone; sends one packet to find out.
        fn public(&mut self, path: Path, protocol: Protocol) -> SocketAddrV4 {
            self.phone_sends(path, protocol);
            let out = self.pass(20 * MS);
            assert_eq!((out.len(), out[0].0), (1, Exit::Server));
            out[0].1.source
        }

        fn tally(&self, path: Path, way: Way, protocol: Protocol) -> Tally {
            self.router.counters(self.now).of(path, way, protocol)
        }
    }

    const UDP: Protocol = Protocol::Udp;

    #[test]
    fn a_question_and_its_answer_find_their_ways_on_either_path() {
        let mut net = Net::new();
        for (path, protocol) in Path::BOTH.into_iter().flat_map(|path| Protocol::BOTH.map(|of| (path, of))) {
            let public = net.public(path, protocol);
            assert_eq!(*public.ip(), ADDRESSES.public[path.index()]);
            net.server_sends(protocol, public);
            assert!(net.pass(19 * MS).is_empty());
            let out = net.pass(MS);
            assert_eq!((out.len(), out[0].0), (1, Exit::Phone(path)));
            assert_eq!(out[0].1.destination, SocketAddrV4::new(ADDRESSES.phone[path.index()], 5_000));
            assert_eq!(out[0].1.source, SERVER);
            for way in Way::BOTH {
                let tally = net.tally(path, way, protocol);
                assert_eq!((tally.offered.packets, tally.delivered), (1, tally.offered));
            }
        }
    }

    #[test]
    fn rebinding_shows_the_phone_from_another_port_and_cuts_the_old_one_off() {
        let mut net = Net::new();
        let old = net.public(Path::Wifi, UDP);
        net.server_sends(UDP, old);
        net.router.rebind_nat(Path::Wifi);
        net.server_sends(UDP, old);
        assert_eq!(net.pass(20 * MS).len(), 1, "what had passed the NAT arrives");
        assert_eq!(net.tally(Path::Wifi, Way::Down, UDP).unmapped.packets, 1);
        let new = net.public(Path::Wifi, UDP);
        assert!(new.ip() == old.ip() && new.port() != old.port());
        net.server_sends(UDP, old);
        net.server_sends(UDP, new);
        assert_eq!(net.pass(20 * MS).len(), 1);
    }

    #[test]
    fn a_black_out_loses_what_the_radio_would_have_carried_meanwhile() {
        let mut net = Net::new();
        let public = net.public(Path::Wifi, UDP);
        net.phone_sends(Path::Wifi, UDP);
        net.server_sends(UDP, public);
        net.router.black_out(Path::Wifi, true);
        net.phone_sends(Path::Wifi, UDP);
        let out = net.pass(20 * MS);
        assert_eq!((out.len(), out[0].0), (1, Exit::Server), "what was past the radio arrives");
        net.server_sends(UDP, public);
        net.router.black_out(Path::Wifi, false);
        assert_eq!(net.pass(20 * MS).len(), 1, "what comes to the radio after the end arrives");
        assert_eq!(net.tally(Path::Wifi, Way::Up, UDP).blacked_out.packets, 1);
        assert_eq!(net.tally(Path::Wifi, Way::Down, UDP).blacked_out.packets, 1);
    }

    #[test]
    fn a_block_of_udp_leaves_tcp_alone() {
        let mut net = Net::new();
        let public = net.public(Path::Wifi, UDP);
        net.router.block_udp(true);
        net.phone_sends(Path::Wifi, UDP);
        net.server_sends(UDP, public);
        net.phone_sends(Path::Wifi, Protocol::Tcp);
        assert_eq!(net.pass(20 * MS).len(), 1);
        assert_eq!(net.router.counters(net.now).protocol(UDP).blocked.packets, 2);
        net.router.block_udp(false);
        assert_eq!(net.public(Path::Wifi, UDP), public, "the NAT has not forgotten");
    }

    #[test]
    fn a_handover_ends_one_path_and_begins_the_other_after_the_gap() {
        let mut net = Net::new();
        net.public(Path::Wifi, UDP);
        let works_at = net.router.hand_over(Path::Lte, 50 * MS, net.now);
        assert_eq!(works_at, net.now + 50 * MS);
        net.phone_sends(Path::Wifi, UDP);
        net.phone_sends(Path::Lte, UDP);
        assert!(net.pass(50 * MS).is_empty());
        assert_eq!(*net.public(Path::Lte, UDP).ip(), ADDRESSES.public[1]);
        net.phone_sends(Path::Wifi, UDP);
        assert!(net.pass(50 * MS).is_empty());
        net.router.hand_over(Path::Wifi, Duration::ZERO, net.now);
        assert_eq!(*net.public(Path::Wifi, UDP).ip(), ADDRESSES.public[0]);
        assert_eq!(net.tally(Path::Wifi, Way::Up, UDP).blacked_out.packets, 2);
        assert_eq!(net.tally(Path::Lte, Way::Up, UDP).blacked_out.packets, 1);
    }

    #[test]
    fn what_has_no_business_on_a_path_is_counted_and_not_carried() {
        let mut net = Net::new();
        let wifi = SocketAddrV4::new(ADDRESSES.phone[0], 5_000);
        net.router.phone_sends(Path::Lte, &packet(UDP, wifi, SERVER, b""), net.now);
        assert_eq!(net.tally(Path::Lte, Way::Up, UDP).unmapped.packets, 1);
        net.server_sends(UDP, SocketAddrV4::new(ADDRESSES.public[0], 5_000));
        assert_eq!(net.tally(Path::Wifi, Way::Down, UDP).unmapped.packets, 1);
        net.server_sends(UDP, "10.7.7.7:1".parse().unwrap());
        net.router.phone_sends(Path::Wifi, &packet(UDP, wifi, "10.7.7.7:1".parse().unwrap(), b""), net.now);
        net.router.phone_sends(Path::Wifi, &[0x60; 60], net.now);
        assert_eq!(net.router.counters(net.now).not_carried.packets, 3);
        assert!(net.pass(20 * MS).is_empty());
        assert_eq!(net.router.counters(net.now).total().in_flight().packets, 0);
    }
}
