//! What a path does to packets: conditions of each direction, and the named profiles with their figures.

use std::time::Duration;

use serde::Serialize;

use super::Error;

/// What one direction of a path does to packets, whatever they carry.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Conditions {
    /// From the end of sending to arrival: one way.
    pub delay: Duration,
    /// Each packet's delay differs from `delay` by up to this, either way, all differences alike likely. A packet never
    /// overtakes an earlier one by it. At most `delay`.
    pub jitter: Duration,
    /// Packets that later ones overtake.
    pub reordering: Option<Reordering>,
    /// What is lost on the way, after it had its place on the line.
    pub loss: Loss,
    /// The line's rate and what waits for it; without, sending takes no time and nothing waits.
    pub rate: Option<Rate>,
    /// Share of packets that arrive twice, 0 to 1.
    pub duplication: f64,
}

/// Packets that are held up, so that others overtake them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reordering {
    /// Share of packets, 0 to 1.
    pub share: f64,
    /// How much longer than the others they take.
    pub by: Duration,
}

/// How packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// None are.
    None,
    /// Each with this probability, 0 to 1, whatever happened to others.
    Random(f64),
    /// In bursts (Gilbert–Elliott): a good state that loses nothing and a bad one that loses all, changed between at
    /// each packet.
    Bursty {
        /// Share of packets, 0 to 1.
        mean: f64,
        /// Mean number of consecutive packets lost, at least 1.
        burst: f64,
    },
}

/// A line with a queue before it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// Of IP packets, headers included.
    pub bits_per_second: u64,
    /// Bytes of IP packets that may wait for the line or be on it; a packet that does not fit is dropped (drop-tail). An
    /// idle line always takes one.
    pub queue_bytes: u64,
}

/// Both directions of a path.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Profile {
    /// From the phone.
    pub up: Conditions,
    /// To the phone.
    pub down: Conditions,
}

impl Conditions {
    /// Nothing but a delay.
    pub const fn delayed(delay: Duration) -> Conditions {
        Conditions { delay, jitter: Duration::ZERO, reordering: None, loss: Loss::None, rate: None, duplication: 0.0 }
    }

    fn check(&self) -> Result<(), Error> {
        let share = |share: f64| (0.0..=1.0).contains(&share);
        let refused = |what| Err(Error::Profile(what));
        if self.jitter > self.delay {
            return refused("the jitter is larger than the delay");
        }
        if !share(self.duplication) || self.reordering.is_some_and(|reordering| !share(reordering.share)) {
            return refused("a share of packets is between 0 and 1");
        }
        if self.rate.is_some_and(|rate| rate.bits_per_second == 0) {
            return refused("a rate of 0 carries nothing; black the path out instead");
        }
        match self.loss {
            Loss::Random(probability) if !share(probability) => refused("a loss is between 0 and 1"),
            // From the good state to the bad one with more than certainty: as bursty and as lossy it cannot be.
            Loss::Bursty { mean, burst }
                if !share(mean) || burst.is_nan() || burst < 1.0 || mean > burst / (burst + 1.0) =>
            {
                refused("bursts last at least 1 packet, and a loss in bursts of n is at most n / (n + 1)")
            }
            _ => Ok(()),
        }
    }
}

impl Loss {
    /// Share of packets lost in the long run, 0 to 1.
    pub fn mean(&self) -> f64 {
        match *self {
            Loss::None => 0.0,
            Loss::Random(probability) => probability,
            Loss::Bursty { mean, .. } => mean,
        }
    }
}

impl Profile {
    /// The same in both directions.
    pub const fn both(conditions: Conditions) -> Profile {
        Profile { up: conditions, down: conditions }
    }

    const fn lossy(loss: Loss) -> Profile {
        let mut conditions = Conditions::delayed(Duration::from_millis(20));
        conditions.loss = loss;
        Profile::both(conditions)
    }

    /// The named profile.
    pub fn named(name: &str) -> Option<Profile> {
        PROFILES.iter().find(|(known, ..)| *known == name).map(|(.., profile)| *profile)
    }

    /// Whether there can be such a path.
    ///
    /// # Errors
    /// [`Error::Profile`], which says what contradicts itself.
    pub fn check(&self) -> Result<(), Error> {
        self.up.check()?;
        self.down.check()
    }

    /// 40 ms there and back, and nothing else.
    pub const CLEAN: Profile = Profile::lossy(Loss::None);
    /// The same with 1 % lost, in each direction.
    pub const LOSS_1: Profile = Profile::lossy(Loss::Random(0.01));
    /// With 2 %.
    pub const LOSS_2: Profile = Profile::lossy(Loss::Random(0.02));
    /// With 5 %.
    pub const LOSS_5: Profile = Profile::lossy(Loss::Random(0.05));
    /// With 3 % lost in bursts of 5 packets in the mean.
    pub const BURSTY_3: Profile = Profile::lossy(Loss::Bursty { mean: 0.03, burst: 5.0 });
    /// 150 ms there and back, 1.5 Mbit/s each way behind 200 ms of queue, 2 % lost.
    pub const THIRD_GENERATION: Profile = {
        let mut conditions = Conditions::delayed(Duration::from_millis(75));
        conditions.loss = Loss::Random(0.02);
        conditions.rate = Some(Rate { bits_per_second: 1_500_000, queue_bytes: 37_500 });
        Profile::both(conditions)
    };
    /// A good Wi-Fi: 20 ms there and back, ± 1 ms each way, 50 Mbit/s behind 50 ms of queue.
    pub const WIFI: Profile = {
        let mut conditions = Conditions::delayed(Duration::from_millis(10));
        conditions.jitter = Duration::from_millis(1);
        conditions.rate = Some(Rate { bits_per_second: 50_000_000, queue_bytes: 312_500 });
        Profile::both(conditions)
    };
    /// A good LTE: 50 ms there and back, ± 3 ms each way, 10 Mbit/s up and 30 down behind 100 ms of queue.
    pub const LTE: Profile = {
        let mut conditions = Conditions::delayed(Duration::from_millis(25));
        conditions.jitter = Duration::from_millis(3);
        let (mut up, mut down) = (conditions, conditions);
        up.rate = Some(Rate { bits_per_second: 10_000_000, queue_bytes: 125_000 });
        down.rate = Some(Rate { bits_per_second: 30_000_000, queue_bytes: 375_000 });
        Profile { up, down }
    };
}

/// Every named profile: its name, what it is in words, its figures. **Loss is per direction**, as a radio loses either
/// way: with 2 % a question and its answer both come through in 96 % of all cases. Delays in words are there and back.
pub const PROFILES: [(&str, &str, Profile); 8] = [
    ("clean", "40 ms", Profile::CLEAN),
    ("loss1", "40 ms, 1 % lost", Profile::LOSS_1),
    ("loss2", "40 ms, 2 % lost", Profile::LOSS_2),
    ("loss5", "40 ms, 5 % lost", Profile::LOSS_5),
    ("bursty3", "40 ms, 3 % lost in bursts of 5", Profile::BURSTY_3),
    ("3g", "150 ms, 1.5 Mbit/s behind 200 ms of queue, 2 % lost", Profile::THIRD_GENERATION),
    ("wifi", "20 ms ± 2, 50 Mbit/s behind 50 ms of queue", Profile::WIFI),
    ("lte", "50 ms ± 6, 10 Mbit/s up and 30 down behind 100 ms of queue", Profile::LTE),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_profile_can_be() {
        for (name, _, profile) in PROFILES {
            profile.check().unwrap();
            assert_eq!(Profile::named(name), Some(profile));
        }
        assert_eq!(Profile::named("5g"), None);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let mut wrong = [Conditions::delayed(Duration::from_millis(10)); 7];
        wrong[0].jitter = Duration::from_millis(11);
        wrong[1].loss = Loss::Random(1.01);
        wrong[2].loss = Loss::Random(f64::NAN);
        wrong[3].loss = Loss::Bursty { mean: 0.6, burst: 1.0 };
        wrong[4].loss = Loss::Bursty { mean: 0.1, burst: f64::NAN };
        wrong[5].rate = Some(Rate { bits_per_second: 0, queue_bytes: 1 });
        wrong[6].reordering = Some(Reordering { share: -0.1, by: Duration::ZERO });
        for conditions in wrong {
            let up = Profile { up: conditions, ..Profile::CLEAN };
            let down = Profile { down: conditions, ..Profile::CLEAN };
            assert!(up.check().is_err() && down.check().is_err(), "{conditions:?}");
        }
    }
}
