//! What was counted on the way, per path, direction and protocol.

use std::ops::{Add, AddAssign, Sub};
use std::time::Instant;

use serde::Serialize;

use super::packet::Protocol;

/// One of the phone's two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// The one that the phone begins with.
    Wifi,
    /// The other.
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

/// Packets, and their bytes with the IP header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    #[allow(missing_docs)]
    pub packets: u64,
    /// IP headers included.
    pub bytes: u64,
}

/// What became of packets. `offered + doubled` is the sum of all others and [`Tally::in_flight`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Sent into the link: what a data plan counts for the sender.
    pub offered: Count,
    /// Came out of the link.
    pub delivered: Count,
    /// Lost by chance on the way (random or bursty).
    pub lost: Count,
    /// Dropped because the line's queue was full.
    pub queue_full: Count,
    /// Lost in a black-out, or on the dead side of a handover.
    pub blacked_out: Count,
    /// UDP dropped because UDP was blocked.
    pub blocked: Count,
    /// Had no place in the NAT: from the server to a mapping that is gone, from the phone with an address of its other
    /// path, or all mappings are taken.
    pub unmapped: Count,
    /// Lost to the link's own bounds or to a device that did not take it. Anything but 0 spoils a measurement.
    pub overrun: Count,
    /// Second copies that chance made.
    pub doubled: Count,
}

/// All tallies at one instant. The difference of two is what happened between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// When they were read.
    #[serde(skip)]
    pub at: Instant,
    /// By path, direction and protocol.
    tallies: [[[Tally; 2]; 2]; 2],
    /// What is neither TCP nor UDP over IPv4, or goes neither to the server nor to the phone: not carried.
    pub not_carried: Count,
}

impl Path {
    /// Both.
    pub const BOTH: [Path; 2] = [Path::Wifi, Path::Lte];

    /// As the phone's device is called.
    pub fn name(self) -> &'static str {
        match self {
            Path::Wifi => "wifi",
            Path::Lte => "lte",
        }
    }

    /// The one that it is not.
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
    /// Both.
    pub const BOTH: [Way; 2] = [Way::Up, Way::Down];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Way::Up => "up",
            Way::Down => "down",
        }
    }
}

impl Protocol {
    /// Both.
    pub const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
}

impl Counters {
    pub(super) fn new(at: Instant) -> Counters {
        Counters { at, tallies: Default::default(), not_carried: Count::default() }
    }

    /// Of one protocol in one direction of one path.
    pub fn of(&self, path: Path, way: Way, protocol: Protocol) -> Tally {
        self.tallies[path.index()][usize::from(way == Way::Down)][usize::from(protocol == Protocol::Udp)]
    }

    pub(super) fn of_mut(&mut self, path: Path, way: Way, protocol: Protocol) -> &mut Tally {
        &mut self.tallies[path.index()][usize::from(way == Way::Down)][usize::from(protocol == Protocol::Udp)]
    }

    /// Of all paths and directions.
    pub fn protocol(&self, protocol: Protocol) -> Tally {
        self.sum(|_, _, of| of == protocol)
    }

    /// Of both protocols in one direction of all paths.
    pub fn way(&self, way: Way) -> Tally {
        self.sum(|_, of, _| of == way)
    }

    /// Of both protocols and directions of one path.
    pub fn path(&self, path: Path) -> Tally {
        self.sum(|of, _, _| of == path)
    }

    /// Of everything.
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
    /// On their way when this was counted. Of a difference of two tallies: how many more than at its beginning, which
    /// must not be fewer.
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

    /// The same of each field of both.
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

/// Of a later count and an earlier one; what would be negative is 0.
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

/// What was counted from the second to the first; `at` is the first's.
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
