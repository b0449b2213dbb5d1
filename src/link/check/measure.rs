//! What can be computed from a train of probes, without I/O.

use std::time::Instant;

use super::super::{Loss, Tally};

/// A completed train of probes.
#[derive(Debug)]
pub(super) struct Stream {
    /// When each probe was sent.
    pub(super) sent: Vec<Instant>,
    /// Number and time of each probe that arrived, in the order of arrival.
    pub(super) arrived: Vec<(usize, Instant)>,
    /// What the link itself counted meanwhile.
    pub(super) tally: Tally,
}

impl Stream {
    /// The one-way delay of each probe that arrived, in milliseconds.
    pub(super) fn delays_ms(&self) -> Vec<f64> {
        self.delays_ms_after(0.0)
    }

    /// The delays of the probes sent `seconds` or more after the first one, in milliseconds.
    pub(super) fn delays_ms_after(&self, seconds: f64) -> Vec<f64> {
        let sent = self.arrived.iter().map(|(number, at)| (self.sent[*number], *at));
        let late_enough = |sent: Instant| (sent - self.sent[0]).as_secs_f64() >= seconds;
        let delay = |(sent, at): (Instant, Instant)| (at - sent).as_secs_f64() * 1000.0;
        sent.filter(|(sent, _)| late_enough(*sent)).map(delay).collect()
    }

    /// For each probe sent, whether it was lost.
    pub(super) fn lost(&self) -> Vec<bool> {
        let mut lost = vec![true; self.sent.len()];
        for (number, _) in &self.arrived {
            lost[*number] = false;
        }
        lost
    }

    /// How many probes arrived after one that was sent later. Second copies do not count.
    pub(super) fn overtaken(&self) -> usize {
        let (mut seen, mut latest, mut overtaken) = (vec![false; self.sent.len()], 0, 0);
        for (number, _) in &self.arrived {
            overtaken += usize::from(!seen[*number] && *number < latest);
            seen[*number] = true;
            latest = latest.max(*number);
        }
        overtaken
    }

    /// How many arrivals were not the first copy of a probe.
    pub(super) fn doubled(&self) -> usize {
        let distinct = self.lost().iter().filter(|lost| !**lost).count();
        self.arrived.len() - distinct
    }

    /// Packets for which the probes and the link's counters disagree: sent but not offered, delivered but not received,
    /// received but not delivered, or somebody else's. Those with no place in a check (blocked, overrun, …) are added.
    pub(super) fn unaccounted(&self) -> f64 {
        let tally = &self.tally;
        let offered = self.sent.len().abs_diff(tally.offered.packets as usize);
        let delivered = self.arrived.len().abs_diff(tally.delivered.packets as usize);
        let other = tally.blacked_out + tally.blocked + tally.unmapped + tally.overrun + tally.in_flight();
        (offered + delivered) as f64 + other.packets as f64
    }

    /// Seconds from the first probe's sending to the last arrival.
    pub(super) fn span(&self) -> f64 {
        let ends = self.sent.first().zip(self.arrived.last());
        ends.map_or(f64::NAN, |(first, (_, last))| (*last - *first).as_secs_f64())
    }

    /// Seconds from the first probe's sending to the last one's.
    pub(super) fn sending(&self) -> f64 {
        self.sent.first().zip(self.sent.last()).map_or(f64::NAN, |(first, last)| (*last - *first).as_secs_f64())
    }
}

/// The value below which this share of the values lies; NaN if there are none.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = ((sorted.len().saturating_sub(1)) as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// Lengths of the runs of consecutive losses.
pub(super) fn bursts(lost: &[bool]) -> Vec<usize> {
    lost.split(|lost| !lost).map(<[bool]>::len).filter(|length| *length > 0).collect()
}

/// Standard deviation of the share of losses among `packets` packets.
pub(super) fn loss_deviation(loss: Loss, packets: usize) -> f64 {
    let mean = loss.mean();
    let alike = match loss {
        // In a burst, neighbours are lost together, so n packets say less than n independent ones. For a Markov chain
        // with two states the variance grows by (1 + λ) / (1 - λ), where λ = 1 - enter - leave.
        Loss::Bursty { mean, burst } if mean < 1.0 => {
            let lambda = 1.0 - 1.0 / burst - mean / (1.0 - mean) / burst;
            (1.0 + lambda) / (1.0 - lambda)
        }
        _ => 1.0,
    };
    (mean * (1.0 - mean) / packets as f64 * alike).sqrt()
}

/// Mean and standard deviation of a burst's length, in packets.
pub(super) fn burst_of(loss: Loss) -> (f64, f64) {
    // A burst continues with the same probability whatever its length (geometric distribution).
    let goes_on = match loss {
        Loss::Bursty { burst, .. } => 1.0 - 1.0 / burst,
        other => other.mean(),
    };
    (1.0 / (1.0 - goes_on), goes_on.sqrt() / (1.0 - goes_on))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::chance::Chance;
    use super::super::super::{Conditions, Count};
    use super::*;
    use crate::random::Random;

    /// Probes sent a millisecond apart; `arrived` holds number and milliseconds after the start.
    fn stream(sent: usize, arrived: &[(usize, u64)]) -> Stream {
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        let count = |packets: usize| Count { packets: packets as u64, bytes: 36 * packets as u64 };
        Stream {
            sent: (0..sent as u64).map(after).collect(),
            arrived: arrived.iter().map(|(number, ms)| (*number, after(*ms))).collect(),
            tally: Tally { offered: count(sent), delivered: count(arrived.len()), ..Tally::default() },
        }
    }

    #[test]
    fn a_stream_tells_delays_losses_copies_and_who_was_overtaken() {
        let stream = stream(6, &[(0, 20), (2, 22), (3, 23), (3, 23), (1, 26), (1, 27)]);
        assert_eq!(stream.delays_ms(), [20.0, 20.0, 20.0, 20.0, 25.0, 26.0]);
        assert_eq!(stream.delays_ms_after(0.002), [20.0; 3]);
        assert_eq!(stream.lost(), [false, false, false, false, true, true]);
        assert_eq!((stream.overtaken(), stream.doubled()), (1, 2));
        assert_eq!((stream.span(), stream.sending()), (0.027, 0.005));
    }

    #[test]
    fn a_packet_that_nobody_counted_is_seen() {
        let lost = |packets| Count { packets, bytes: 36 * packets };
        let mut stream = stream(3, &[(0, 20), (1, 21)]);
        assert_eq!(stream.unaccounted(), 1.0, "one was sent, did not arrive and was not lost");
        stream.tally.lost = lost(1);
        assert_eq!(stream.unaccounted(), 0.0);
        stream.tally.delivered = lost(3);
        assert!(stream.unaccounted() > 0.0, "one was delivered and did not arrive");
    }

    #[test]
    fn nothing_measured_is_no_number() {
        let stream = stream(3, &[]);
        assert!(stream.span().is_nan() && quantile(&stream.delays_ms(), 0.5).is_nan());
        assert_eq!(bursts(&stream.lost()), [3]);
    }

    #[test]
    fn quantiles_and_bursts_are_those_of_the_values() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 1.0), 3.0);
        assert_eq!(bursts(&[true, false, false, true, true, true, false]), [1, 3]);
    }

    #[test]
    fn deviations_are_what_many_seeds_show() {
        const PACKETS: usize = 5_000;
        for loss in [Loss::Random(0.05), Loss::Bursty { mean: 0.03, burst: 5.0 }] {
            let conditions = Conditions { loss, ..Conditions::delayed(Duration::from_millis(20)) };
            let (mut shares, mut lengths) = (Vec::new(), Vec::new());
            for seed in 0..200 {
                let mut chance = Chance::new(Random::new(seed));
                let lost: Vec<_> = (0..PACKETS).map(|_| chance.fate(&conditions).lost).collect();
                shares.push(lost.iter().filter(|lost| **lost).count() as f64 / PACKETS as f64);
                lengths.extend(bursts(&lost).into_iter().map(|length| length as f64));
            }
            let about = |measured: f64, expected: f64| (measured / expected - 1.0).abs() < 0.25;
            let (_, deviation) = moments(&shares);
            assert!(about(deviation, loss_deviation(loss, PACKETS)), "{deviation} for {loss:?}");
            let (mean, deviation) = moments(&lengths);
            let expected = burst_of(loss);
            assert!(about(mean, expected.0) && about(deviation, expected.1), "{mean} ± {deviation} for {loss:?}");
        }
    }

    fn moments(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    }
}
