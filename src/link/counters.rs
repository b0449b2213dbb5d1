//! What the link counts, per path, direction and protocol.

use std::ops::{Add, AddAssign, Sub};
use std::time::Instant;

use serde::Serialize;

use super::packet::Protocol;

/// One of the phone's two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// The path that the phone starts on.
    Wifi,
    /// The other path.
    Lte,
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// From the phone to the server.
    Up,
    /// From the server to the phone.
    Down,
}

/// A number of packets, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    #[allow(missing_docs)]
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

/// What happened to packets. `offered + doubled` is the sum of all other fields and [`Tally::in_flight`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Sent into the link: what a data plan would count for the sender.
    pub offered: Count,
    /// Delivered at the other end of the link.
    pub delivered: Count,
    /// Lost at random on the way (single losses or bursts).
    pub lost: Count,
    /// Dropped because the line's queue was full.
    pub queue_full: Count,
    /// Lost in a blackout, or on the dead side of a handover.
    pub blacked_out: Count,
    /// UDP dropped while UDP was blocked.
    pub blocked: Count,
    /// Dropped by the NAT: from the server to a mapping that is gone, from the phone with the address of its other
    /// path, or because all mappings are taken.
    pub unmapped: Count,
    /// Lost to the link's own bounds, or because a device did not accept it. Anything but 0 invalidates a measurement.
    pub overrun: Count,
    /// Second copies of duplicated packets.
    pub doubled: Count,
}

/// All tallies at one instant. The difference of two is what happened in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// When they were read.
    #[serde(skip)]
    pub at: Instant,
    /// By path, direction and protocol.
    tallies: [[[Tally; 2]; 2]; 2],
    /// Packets that are not TCP or UDP over IPv4, or that are not between phone and server: not carried.
    pub not_carried: Count,
}

impl Path {
    /// Both paths.
    pub const BOTH: [Path; 2] = [Path::Wifi, Path::Lte];

    /// The name of the phone's device for this path.
    pub fn name(self) -> &'static str {
        match self {
            Path::Wifi => "wifi",
            Path::Lte => "lte",
        }
    }

    /// The other path.
    pub fn other(self) -> Path {
        match self {
            Path::Wifi => Path::Lte,
            Path::Lte => Path::Wifi,
        }
    }

    pub(super) fn index(self) -> usize {
        usize::from(self == Path::Lte)
    }
}

impl Way {
    /// Both directions.
    pub const BOTH: [Way; 2] = [Way::Up, Way::Down];

    /// The direction in one word.
    pub fn name(self) -> &'static str {
        match self {
            Way::Up => "up",
            Way::Down => "down",
        }
    }
}

impl Protocol {
    /// Both protocols.
    pub const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
}

impl Counters {
    pub(super) fn new(at: Instant) -> Counters {
        Counters { at, tallies: Default::default(), not_carried: Count::default() }
    }

    /// The tally of one protocol in one direction of one path.
    pub fn of(&self, path: Path, way: Way, protocol: Protocol) -> Tally {
        self.tallies[path.index()][usize::from(way == Way::Down)][usize::from(protocol == Protocol::Udp)]
    }

    pub(super) fn of_mut(&mut self, path: Path, way: Way, protocol: Protocol) -> &mut Tally {
        &mut self.tallies[path.index()][usize::from(way == Way::Down)][usize::from(protocol == Protocol::Udp)]
    }

    /// The tally of a protocol over all paths and directions.
    pub fn protocol(&self, protocol: Protocol) -> Tally {
        self.sum(|_, _, of| of == protocol)
    }

    /// The tally of a direction over both protocols and all paths.
    pub fn way(&self, way: Way) -> Tally {
        self.sum(|_, of, _| of == way)
    }

    /// The tally of a path over both protocols and directions.
    pub fn path(&self, path: Path) -> Tally {
        self.sum(|of, _, _| of == path)
    }

    /// The tally of everything.
    pub fn total(&self) -> Tally {
        self.sum(|_, _, _| true)
    }

    fn sum(&self, counts: impl Fn(Path, Way, Protocol) -> bool) -> Tally {
        let mut sum = Tally::default();
        for path in Path::BOTH {
            for way in Way::BOTH {
                for protocol in Protocol::BOTH.into_iter().filter(|protocol| counts(path, way, *protocol)) {
                    sum += self.of(path, way, protocol);
                }
            }
        }
        sum
    }
}

impl Tally {
    /// Packets on the way when this was counted. For a difference of two tallies: how many more there are at its end
    /// than at its start; if there are fewer, it is wrong, as differences stop at 0.
    pub fn in_flight(&self) -> Count {
        let ended =
            [self.delivered, self.lost, self.queue_full, self.blacked_out, self.blocked, self.unmapped, self.overrun];
        ended.into_iter().fold(self.offered + self.doubled, |left, ended| left - ended)
    }

    fn fields(&mut self) -> [&mut Count; 9] {
        [
            &mut self.offered,
            &mut self.delivered,
            &mut self.lost,
            &mut self.queue_full,
            &mut self.blacked_out,
            &mut self.blocked,
            &mut self.unmapped,
            &mut self.overrun,
            &mut self.doubled,
        ]
    }

    /// Combines each field of both tallies.
    fn with(mut self, mut other: Tally, of: impl Fn(Count, Count) -> Count) -> Tally {
        for (field, other) in self.fields().into_iter().zip(other.fields()) {
            *field = of(*field, *other);
        }
        self
    }
}

impl Count {
    pub(super) fn one(&mut self, bytes: usize) {
        *self += Count { packets: 1, bytes: bytes as u64 };
    }
}

impl Add for Count {
    type Output = Count;

    fn add(self, other: Count) -> Count {
        Count { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        *self = *self + other;
    }
}

/// A later count minus an earlier one; a negative result becomes 0.
impl Sub for Count {
    type Output = Count;

    fn sub(self, other: Count) -> Count {
        let packets = self.packets.saturating_sub(other.packets);
        Count { packets, bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

impl Add for Tally {
    type Output = Tally;

    fn add(self, other: Tally) -> Tally {
        self.with(other, Add::add)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        *self = *self + other;
    }
}

impl Sub for Tally {
    type Output = Tally;

    fn sub(self, other: Tally) -> Tally {
        self.with(other, Sub::sub)
    }
}

/// What was counted between `other` and `self`; `at` is that of `self`.
impl Sub for Counters {
    type Output = Counters;

    fn sub(mut self, other: Counters) -> Counters {
        for path in Path::BOTH {
            for way in Way::BOTH {
                for protocol in Protocol::BOTH {
                    *self.of_mut(path, way, protocol) = self.of(path, way, protocol) - other.of(path, way, protocol);
                }
            }
        }
        self.not_carried = self.not_carried - other.not_carried;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_what_happened_between() {
        let begin = Instant::now();
        let mut before = Counters::new(begin);
        before.of_mut(Path::Wifi, Way::Up, Protocol::Udp).offered.one(100);
        let mut after = before;
        for (path, way, protocol, bytes) in [
            (Path::Wifi, Way::Up, Protocol::Udp, 10),
            (Path::Lte, Way::Up, Protocol::Tcp, 200),
            (Path::Lte, Way::Down, Protocol::Udp, 3_000),
        ] {
            after.of_mut(path, way, protocol).offered.one(bytes);
        }
        after.of_mut(Path::Lte, Way::Down, Protocol::Udp).lost.one(3_000);
        let between = after - before;
        let offered = |tally: Tally| (tally.offered.packets, tally.offered.bytes);
        assert_eq!(offered(between.of(Path::Wifi, Way::Up, Protocol::Udp)), (1, 10));
        assert_eq!(offered(between.path(Path::Lte)), (2, 3_200));
        assert_eq!(offered(between.protocol(Protocol::Udp)), (2, 3_010));
        assert_eq!(offered(between.way(Way::Up)), (2, 210));
        assert_eq!(offered(between.total()), (3, 3_210));
        assert_eq!(between.total().in_flight(), Count { packets: 2, bytes: 210 });
    }
}
