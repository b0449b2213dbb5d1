//! The random decisions for each packet: the same seed and the same number of packets give the same decisions.

use std::time::Duration;

use super::profile::{Conditions, Loss};
use crate::random::Random;

/// The random decisions for one packet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fate {
    pub(super) lost: bool,
    /// From zero to twice the configured jitter; added to the delay minus the jitter.
    pub(super) jitter: Duration,
    pub(super) held_up: bool,
    pub(super) doubled: bool,
}

/// The random generator of one direction.
#[derive(Debug)]
pub(super) struct Chance {
    random: Random,
    /// Whether the Gilbert–Elliott model is in its bad state.
    bad: bool,
}

impl Chance {
    pub(super) fn new(random: Random) -> Chance {
        Chance { random, bad: false }
    }

    /// Decides for the next packet. It always takes the same number of random draws, so that a change of one condition,
    /// or of the times at which packets come, does not change the decisions about the others.
    pub(super) fn fate(&mut self, conditions: &Conditions) -> Fate {
        let [loss, jitter, reordering, duplication] = std::array::from_fn(|_| self.random.share());
        let lost = match conditions.loss {
            Loss::None => false,
            Loss::Random(probability) => loss < probability,
            Loss::Bursty { mean, burst } => {
                // If r is the probability of leaving the bad state and p that of entering it, bursts last 1 / r packets
                // on average and a share of p / (p + r) is lost.
                let leave = 1.0 / burst;
                let enter = if mean < 1.0 { leave * mean / (1.0 - mean) } else { 1.0 };
                self.bad = if self.bad { loss >= leave } else { loss < enter };
                self.bad
            }
        };
        self.bad &= matches!(conditions.loss, Loss::Bursty { .. });
        Fate {
            lost,
            jitter: conditions.jitter.mul_f64(2.0 * jitter),
            held_up: conditions.reordering.is_some_and(|of| reordering < of.share),
            doubled: duplication < conditions.duplication,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::profile::Reordering;
    use super::*;

    const PACKETS: usize = 400_000;

    fn fates(conditions: Conditions, seed: u64) -> Vec<Fate> {
        let mut chance = Chance::new(Random::new(seed));
        (0..PACKETS).map(|_| chance.fate(&conditions)).collect()
    }

    fn lossy(loss: Loss) -> Conditions {
        Conditions { loss, ..Conditions::delayed(Duration::from_millis(20)) }
    }

    fn share(fates: &[Fate], of: impl Fn(&Fate) -> bool) -> f64 {
        fates.iter().filter(|fate| of(fate)).count() as f64 / fates.len() as f64
    }

    /// Mean number of consecutive losses.
    fn burst(fates: &[Fate]) -> f64 {
        let ends = fates.windows(2).filter(|pair| pair[0].lost && !pair[1].lost).count();
        fates.iter().filter(|fate| fate.lost).count() as f64 / ends as f64
    }

    // The tolerances are about ten standard deviations wide, and the seeds are fixed.

    #[test]
    fn random_loss_is_as_asked_and_remembers_nothing() {
        assert_eq!(share(&fates(lossy(Loss::None), 1), |fate| fate.lost), 0.0);
        assert_eq!(share(&fates(lossy(Loss::Random(1.0)), 1), |fate| fate.lost), 1.0);
        for (seed, asked) in [0.01, 0.02, 0.05, 0.5].into_iter().enumerate() {
            let fates = fates(lossy(Loss::Random(asked)), seed as u64);
            let lost = share(&fates, |fate| fate.lost);
            assert!((lost - asked).abs() < 0.01 * asked.sqrt() + 0.001, "{lost} for {asked}");
            let (burst, expected) = (burst(&fates), 1.0 / (1.0 - asked));
            assert!((burst - expected).abs() < 0.05, "{burst} for {expected}");
        }
    }

    #[test]
    fn bursty_loss_has_the_mean_and_the_bursts_that_were_asked_for() {
        for (seed, (mean, length)) in [(0.03, 5.0), (0.1, 20.0), (0.02, 1.0), (0.5, 3.0)].into_iter().enumerate() {
            let fates = fates(lossy(Loss::Bursty { mean, burst: length }), seed as u64);
            let lost = share(&fates, |fate| fate.lost);
            assert!((lost - mean).abs() < 0.15 * mean, "{lost} for {mean}");
            assert!((burst(&fates) - length).abs() < 0.12 * length, "{} for {length}", burst(&fates));
        }
        let all = fates(lossy(Loss::Bursty { mean: 1.0, burst: f64::INFINITY }), 1);
        assert_eq!(share(&all, |fate| fate.lost), 1.0);
    }

    #[test]
    fn jitter_is_spread_evenly_and_the_rest_is_as_asked() {
        let conditions = Conditions {
            jitter: Duration::from_millis(4),
            reordering: Some(Reordering { share: 0.1, by: Duration::from_millis(5) }),
            duplication: 0.2,
            ..lossy(Loss::Random(0.05))
        };
        let fates = fates(conditions, 7);
        assert!(fates.iter().all(|fate| fate.jitter < Duration::from_millis(8)));
        for part in 1..8 {
            let below = share(&fates, |fate| fate.jitter < Duration::from_millis(part));
            assert!((below - part as f64 / 8.0).abs() < 0.01, "{below} below {part} ms");
        }
        assert!((share(&fates, |fate| fate.held_up) - 0.1).abs() < 0.006);
        assert!((share(&fates, |fate| fate.doubled) - 0.2).abs() < 0.007);
        // The decisions are independent of each other.
        assert!((share(&fates, |fate| fate.held_up && fate.doubled) - 0.02).abs() < 0.003);
        assert!((share(&fates, |fate| fate.lost && fate.doubled) - 0.01).abs() < 0.002);
    }

    #[test]
    fn a_seed_repeats_and_no_condition_shifts_the_fates_of_another() {
        let plain = fates(lossy(Loss::Random(0.05)), 3);
        assert_eq!(plain, fates(lossy(Loss::Random(0.05)), 3));
        assert_ne!(plain, fates(lossy(Loss::Random(0.05)), 4));
        let jittered = Conditions { jitter: Duration::from_millis(9), duplication: 0.5, ..lossy(Loss::Random(0.05)) };
        let lost = |fates: &[Fate]| fates.iter().map(|fate| fate.lost).collect::<Vec<_>>();
        assert_eq!(lost(&plain), lost(&fates(jittered, 3)));
    }
}
