//! One direction of one path: decides when each packet arrives, or why it does not. The caller provides time and
//! randomness.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::chance::Chance;
use super::limits::FLIGHT_BYTES_MAX;
use super::profile::{Conditions, Rate};

/// Packets on their way. The pipe does not look into them.
#[derive(Debug)]
pub(super) struct Pipe<P> {
    conditions: Conditions,
    chance: Chance,
    /// When the line will have sent everything accepted so far.
    line_free: Option<Instant>,
    /// The latest arrival of a packet that was not held up; later packets arrive no earlier.
    latest: Option<Instant>,
    flight: BinaryHeap<Reverse<Flying<P>>>,
    flight_bytes: usize,
    taken: u64,
}

/// The outcome of offering a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offered {
    Taken,
    /// The packet will arrive twice.
    Doubled,
    /// The packet is lost at random on the way.
    Lost,
    /// The line's queue was full.
    QueueFull,
    /// More bytes were on the way than the pipe keeps ([`FLIGHT_BYTES_MAX`]).
    TooMuch,
}

#[derive(Debug)]
struct Flying<P> {
    due: Instant,
    /// Orders packets that are due at the same time.
    number: u64,
    bytes: usize,
    packet: P,
}

impl<P: Clone> Pipe<P> {
    pub(super) fn new(conditions: Conditions, chance: Chance) -> Pipe<P> {
        let flight = BinaryHeap::new();
        Pipe { conditions, chance, line_free: None, latest: None, flight, flight_bytes: 0, taken: 0 }
    }

    /// Applies to packets offered from now on; those on their way keep their arrival times.
    pub(super) fn set(&mut self, conditions: Conditions) {
        self.conditions = conditions;
    }

    /// Accepts or drops a packet of `bytes` bytes.
    pub(super) fn offer(&mut self, now: Instant, bytes: usize, packet: P) -> Offered {
        let fate = self.chance.fate(&self.conditions);
        let mut sent = now;
        if let Some(rate) = self.conditions.rate {
            let begins = self.line_free.map_or(now, |free| free.max(now));
            let waiting = bytes_in(rate, begins - now);
            if waiting > 0 && waiting + bytes as u64 > rate.queue_bytes {
                return Offered::QueueFull;
            }
            sent = begins + time_of(rate, bytes);
            self.line_free = Some(sent);
        }
        if fate.lost {
            return Offered::Lost;
        }
        let freely = sent + self.conditions.delay.saturating_sub(self.conditions.jitter) + fate.jitter;
        let in_order = self.latest.map_or(freely, |latest| latest.max(freely));
        let due = match self.conditions.reordering {
            Some(reordering) if fate.held_up => in_order + reordering.by,
            _ => {
                self.latest = Some(in_order);
                in_order
            }
        };
        let copies = 1 + usize::from(fate.doubled);
        if self.flight_bytes + copies * bytes > FLIGHT_BYTES_MAX {
            return Offered::TooMuch;
        }
        if fate.doubled {
            self.fly(due, bytes, packet.clone());
        }
        self.fly(due, bytes, packet);
        if fate.doubled { Offered::Doubled } else { Offered::Taken }
    }

    fn fly(&mut self, due: Instant, bytes: usize, packet: P) {
        self.taken += 1;
        self.flight_bytes += bytes;
        self.flight.push(Reverse(Flying { due, number: self.taken, bytes, packet }));
    }

    /// When the next packet arrives.
    pub(super) fn due(&self) -> Option<Instant> {
        self.flight.peek().map(|Reverse(next)| next.due)
    }

    /// Removes and returns the next packet that has arrived by now.
    pub(super) fn arrived(&mut self, now: Instant) -> Option<P> {
        if self.due()? > now {
            return None;
        }
        let Reverse(next) = self.flight.pop()?;
        self.flight_bytes -= next.bytes;
        Some(next.packet)
    }
}

/// Time to send so many bytes, rounded up to a nanosecond.
fn time_of(rate: Rate, bytes: usize) -> Duration {
    let nanoseconds = (bytes as u128 * 8 * 1_000_000_000).div_ceil(u128::from(rate.bits_per_second));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// Bytes that the line sends in that time, rounded up.
fn bytes_in(rate: Rate, time: Duration) -> u64 {
    let bits = (time.as_nanos() * u128::from(rate.bits_per_second)).div_ceil(1_000_000_000);
    u64::try_from(bits.div_ceil(8)).unwrap_or(u64::MAX)
}

impl<P> PartialEq for Flying<P> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<P> Eq for Flying<P> {}

impl<P> PartialOrd for Flying<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> Ord for Flying<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

#[cfg(test)]
mod tests {
    use super::super::profile::{Loss, Reordering};
    use super::*;
    use crate::random::Random;

    const MS: Duration = Duration::from_millis(1);

    fn pipe(conditions: Conditions) -> (Pipe<usize>, Instant) {
        (Pipe::new(conditions, Chance::new(Random::new(1))), Instant::now())
    }

    /// Everything that arrives, with the time since `begin`.
    fn arrivals(pipe: &mut Pipe<usize>, begin: Instant) -> Vec<(usize, Duration)> {
        let mut all = Vec::new();
        while let Some(due) = pipe.due() {
            assert_eq!(pipe.arrived(due - Duration::from_nanos(1)), None, "nothing arrives early");
            all.push((pipe.arrived(due).unwrap(), due - begin));
        }
        assert_eq!(pipe.flight_bytes, 0);
        all
    }

    #[test]
    fn a_packet_arrives_after_the_delay() {
        let (mut pipe, begin) = pipe(Conditions::delayed(20 * MS));
        for n in 0..3 {
            assert_eq!(pipe.offer(begin + n as u32 * MS, 100, n), Offered::Taken);
        }
        assert_eq!(arrivals(&mut pipe, begin), [(0, 20 * MS), (1, 21 * MS), (2, 22 * MS)]);
    }

    #[test]
    fn the_line_sends_one_after_the_other_and_a_full_queue_drops_the_newest() {
        // One byte per microsecond; the queue holds three packets of 1,000 bytes.
        let rate = Some(Rate { bits_per_second: 8_000_000, queue_bytes: 3_000 });
        let (mut pipe, begin) = pipe(Conditions { rate, ..Conditions::delayed(20 * MS) });
        let offered: Vec<_> = (0..5).map(|n| pipe.offer(begin, 1_000, n)).collect();
        let (taken, full) = (Offered::Taken, Offered::QueueFull);
        assert_eq!(offered, [taken, taken, taken, full, full]);
        // Space for half a packet is not enough; space for a whole one is.
        assert_eq!(pipe.offer(begin + MS / 2, 1_000, 5), full);
        assert_eq!(pipe.offer(begin + MS, 1_000, 6), taken);
        assert_eq!(arrivals(&mut pipe, begin), [(0, 21 * MS), (1, 22 * MS), (2, 23 * MS), (6, 24 * MS)]);
        // An idle line accepts a packet larger than its queue and starts to send it on arrival.
        assert_eq!(pipe.offer(begin + 10 * MS, 9_000, 7), taken);
        assert_eq!(arrivals(&mut pipe, begin), [(7, 39 * MS)]);
    }

    #[test]
    fn what_is_lost_on_the_way_has_taken_its_time_on_the_line() {
        let rate = Some(Rate { bits_per_second: 8_000_000, queue_bytes: 9_000 });
        let mut conditions = Conditions { rate, loss: Loss::Random(1.0), ..Conditions::delayed(20 * MS) };
        let (mut pipe, begin) = pipe(conditions);
        assert_eq!(pipe.offer(begin, 1_000, 0), Offered::Lost);
        conditions.loss = Loss::None;
        pipe.set(conditions);
        assert_eq!(pipe.offer(begin, 1_000, 1), Offered::Taken);
        assert_eq!(arrivals(&mut pipe, begin), [(1, 22 * MS)]);
    }

    #[test]
    fn jitter_changes_times_within_its_bounds_but_not_the_order() {
        // Close together, where packets wait for each other, and far apart.
        for spacing in [MS, 40 * MS] {
            let (mut pipe, begin) = pipe(Conditions { jitter: 15 * MS, ..Conditions::delayed(20 * MS) });
            for n in 0..1_000 {
                pipe.offer(begin + n as u32 * spacing, 100, n);
            }
            let all = arrivals(&mut pipe, begin);
            assert!(all.iter().map(|(n, _)| *n).eq(0..1_000));
            let delays: Vec<_> = all.iter().map(|(n, at)| *at - *n as u32 * spacing).collect();
            assert!(delays.iter().all(|delay| (5 * MS..35 * MS).contains(delay)));
            let range = *delays.iter().max().unwrap() - *delays.iter().min().unwrap();
            assert!(range > if spacing == MS { 10 * MS } else { 28 * MS }, "{range:?}");
        }
    }

    #[test]
    fn a_packet_is_overtaken_only_where_that_is_asked_for() {
        let reordering = Some(Reordering { share: 0.25, by: 5 * MS });
        let (mut pipe, begin) = pipe(Conditions { reordering, ..Conditions::delayed(20 * MS) });
        for n in 0..1_000 {
            pipe.offer(begin + n as u32 * MS, 100, n);
        }
        let all = arrivals(&mut pipe, begin);
        let late = all.iter().filter(|(n, at)| *at - *n as u32 * MS == 25 * MS).count();
        assert!((150..350).contains(&late), "{late}");
        assert_eq!(all.iter().filter(|(n, at)| *at - *n as u32 * MS == 20 * MS).count(), 1_000 - late);
    }

    #[test]
    fn a_doubled_packet_arrives_twice() {
        let (mut pipe, begin) = pipe(Conditions { duplication: 1.0, ..Conditions::delayed(20 * MS) });
        assert_eq!(pipe.offer(begin, 100, 1), Offered::Doubled);
        assert_eq!(arrivals(&mut pipe, begin), [(1, 20 * MS), (1, 20 * MS)]);
    }

    #[test]
    fn what_is_on_its_way_is_bounded() {
        let (mut pipe, begin) = pipe(Conditions::delayed(20 * MS));
        let fits = FLIGHT_BYTES_MAX / 1_000_000;
        assert!((0..fits).all(|n| pipe.offer(begin, 1_000_000, n) == Offered::Taken));
        assert_eq!(pipe.offer(begin, 1_000_000, fits), Offered::TooMuch);
        assert_eq!(arrivals(&mut pipe, begin).len(), fits);
        assert_eq!(pipe.offer(begin + 20 * MS, 1_000_000, fits), Offered::Taken);
    }
}
