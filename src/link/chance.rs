//! What becomes of each packet by chance: the same seed and the same number of packets, the same fates.

use std::time::Duration;

use super::profile::{Conditions, Loss};
use crate::random::Random;

/// What chance has in store for one packet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fate {
    pub(super) lost: bool,
    /// From nothing to twice the jitter: what to add to the delay less the jitter.
    pub(super) jitter: Duration,
    pub(super) held_up: bool,
    pub(super) doubled: bool,
}

/// Chance of one direction.
#[derive(Debug)]
pub(super) struct Chance {
    random: Random,
    /// In the bad state of Gilbert–Elliott.
    bad: bool,
}

impl Chance {
    pub(super) fn new(random: Random) -> Chance {
        Chance { random, bad: false }
    }

    /// The next packet's. It takes the same number of draws whatever the conditions are, so that a change of one of
    /// them, or of the time at which packets come, leaves the others' fates as they would have been.
    pub(super) fn fate(&mut self, conditions: &Conditions) -> Fate {
        let [loss, jitter, reordering, duplication] = std::array::from_fn(|_| self.random.share());
        let lost = match conditions.loss {
            Loss::None => false,
            Loss::Random(probability) => loss < probability,
            Loss::Bursty { mean, burst } => {
                // With r to leave the bad state and p to enter it the bursts last 1 / r packets and p / (p + r) of all
                // are lost.
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

    // Bounds are about ten standard deviations wide, and the seeds are fixed.

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
        // They have nothing to do with each other.
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
