//! The wait before the next attempt: exponential backoff with full jitter. Pure; randomness comes from a seed.

use std::time::Duration;

use crate::random::Random;

/// Random waits. Not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Jitter(Random);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Jitter {
        Jitter(Random::new(seed))
    }

    /// A uniformly random duration from zero to `bound`.
    pub(crate) fn up_to(&mut self, bound: Duration) -> Duration {
        bound.mul_f64(self.0.share())
    }
}

/// Exponential backoff with full jitter, between two bounds.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max, attempts: 0 }
    }

    /// Number of failures since the last success.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Counts a failure and returns the wait before the next attempt.
    pub(crate) fn failed(&mut self, jitter: &mut Jitter) -> Duration {
        let bound = self.bound();
        self.attempts = self.attempts.saturating_add(1);
        jitter.up_to(bound)
    }

    fn bound(&self) -> Duration {
        // 2^20 times `min` is beyond `max` for all bounds in use.
        self.min.saturating_mul(1 << self.attempts.min(20)).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_are_spread_and_start_over_after_a_success() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(30));
        let mut jitter = Jitter::new(1);
        let mut backoff = Backoff::new(min, max);
        for attempt in 0..40 {
            let bound = min.saturating_mul(1 << attempt.min(20)).min(max);
            assert_eq!(backoff.bound(), bound);
            assert!(backoff.failed(&mut jitter) <= bound);
        }
        assert_eq!(backoff.attempts(), 40);
        backoff.reset();
        assert_eq!(backoff.bound(), min);

        let waits: Vec<_> = (0..1000).map(|_| jitter.up_to(max)).collect();
        let low = waits.iter().filter(|wait| **wait < max / 2).count();
        assert!((400..600).contains(&low), "{low} of 1000 in the lower half");
    }
}
