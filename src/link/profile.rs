//! What a path does to packets: the conditions of each direction, and the named profiles with their figures.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::Error;

/// What one direction of a path does to packets. It applies to all protocols alike.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Conditions {
    /// One-way delay, from the end of sending to arrival.
    #[serde(rename = "delay_ms", serialize_with = "in_milliseconds")]
    pub delay: Duration,
    /// Each packet's delay differs from `delay` by up to this, either way, uniformly distributed; at most `delay`.
    /// Jitter does not reorder: a packet that would overtake another waits for it, so dense traffic is slower on
    /// average.
    #[serde(rename = "jitter_ms", serialize_with = "in_milliseconds")]
    pub jitter: Duration,
    /// Packets that are held up, so that later ones overtake them.
    pub reordering: Option<Reordering>,
    /// Loss on the way. A lost packet has already used its time on the line.
    pub loss: Loss,
    /// The line's rate and queue. With `None`, sending takes no time and nothing queues.
    pub rate: Option<Rate>,
    /// Share of packets that are duplicated, 0 to 1.
    pub duplication: f64,
}

/// Packets that are held up, so that others overtake them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reordering {
    /// Share of packets held up, 0 to 1.
    pub share: f64,
    /// Extra delay of a packet that is held up.
    #[serde(rename = "by_ms", serialize_with = "in_milliseconds")]
    pub by: Duration,
}

/// How packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// No packet is lost.
    None,
    /// Each packet is lost with this probability, 0 to 1, independently of others.
    Random(f64),
    /// Losses come in bursts (Gilbert–Elliott): a good state loses nothing, a bad state loses everything, and each
    /// packet may change the state.
    Bursty {
        /// Share of packets lost in the long run, 0 to 1.
        mean: f64,
        /// Mean number of consecutive packets lost, at least 1.
        burst: f64,
    },
}

/// A line with a queue in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// Rate for IP packets, headers included.
    pub bits_per_second: u64,
    /// Bytes of IP packets that may wait for the line or be on it. A packet that does not fit is dropped (drop-tail);
    /// an idle line accepts a packet of any size.
    pub queue_bytes: u64,
}

/// Both directions of a path.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Profile {
    /// Conditions from phone to server.
    pub up: Conditions,
    /// Conditions from server to phone.
    pub down: Conditions,
}

impl Conditions {
    /// Conditions with a delay and nothing else.
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
            // A higher loss at this burst length would need a probability above 1 of entering the bad state.
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
    /// A profile with the same conditions in both directions.
    pub const fn both(conditions: Conditions) -> Profile {
        Profile { up: conditions, down: conditions }
    }

    const fn lossy(loss: Loss) -> Profile {
        let mut conditions = Conditions::delayed(Duration::from_millis(20));
        conditions.loss = loss;
        Profile::both(conditions)
    }

    /// Looks up a named profile.
    pub fn named(name: &str) -> Option<Profile> {
        PROFILES.iter().find(|(known, ..)| *known == name).map(|(.., profile)| *profile)
    }

    /// Checks that the profile's figures do not contradict each other.
    ///
    /// # Errors
    /// [`Error::Profile`], which says what is wrong.
    pub fn check(&self) -> Result<(), Error> {
        self.up.check()?;
        self.down.check()
    }

    /// A round trip of 40 ms, and nothing else.
    pub const CLEAN: Profile = Profile::lossy(Loss::None);
    /// As [`Profile::CLEAN`], with 1 % loss in each direction.
    pub const LOSS_1: Profile = Profile::lossy(Loss::Random(0.01));
    /// As [`Profile::CLEAN`], with 2 % loss in each direction.
    pub const LOSS_2: Profile = Profile::lossy(Loss::Random(0.02));
    /// As [`Profile::CLEAN`], with 5 % loss in each direction.
    pub const LOSS_5: Profile = Profile::lossy(Loss::Random(0.05));
    /// As [`Profile::CLEAN`], with 3 % loss in each direction, in bursts of 5 packets on average.
    pub const BURSTY_3: Profile = Profile::lossy(Loss::Bursty { mean: 0.03, burst: 5.0 });
    /// A round trip of 150 ms, 1.5 Mbit/s each way with a queue of 200 ms, 2 % loss in each direction.
    pub const THIRD_GENERATION: Profile = {
        let mut conditions = Conditions::delayed(Duration::from_millis(75));
        conditions.loss = Loss::Random(0.02);
        conditions.rate = Some(Rate { bits_per_second: 1_500_000, queue_bytes: 37_500 });
        Profile::both(conditions)
    };
    /// Good Wi-Fi: a round trip of 20 ms, ± 1 ms each way, 50 Mbit/s with a queue of 50 ms.
    pub const WIFI: Profile = {
        let mut conditions = Conditions::delayed(Duration::from_millis(10));
        conditions.jitter = Duration::from_millis(1);
        conditions.rate = Some(Rate { bits_per_second: 50_000_000, queue_bytes: 312_500 });
        Profile::both(conditions)
    };
    /// Good LTE: a round trip of 50 ms, ± 3 ms each way, 10 Mbit/s up and 30 down with a queue of 100 ms.
    pub const LTE: Profile = {
        let mut conditions = Conditions::delayed(Duration::from_millis(25));
        conditions.jitter = Duration::from_millis(3);
        let (mut up, mut down) = (conditions, conditions);
        up.rate = Some(Rate { bits_per_second: 10_000_000, queue_bytes: 125_000 });
        down.rate = Some(Rate { bits_per_second: 30_000_000, queue_bytes: 375_000 });
        Profile { up, down }
    };
}

/// Every named profile: its name, a description, its figures. **Loss is per direction**, as radio loses packets either
/// way: with 2 % a request and its response both arrive in 96 % of all cases. Descriptions give round-trip delays.
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

fn in_milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1000.0)
}

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
