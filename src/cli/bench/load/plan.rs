//! Who writes to whom and when: everything that is decided before a run begins.

use std::time::{Duration, Instant};

use crate::random::Random;
use crate::wire::Eid;

/// Subscribers of one user, who may see its presence.
const PRESENCE_CONTACTS: usize = 10;

/// Prefix of the users' names of a run that starts now: a run against a used server must not meet messages of an earlier
/// run.
pub(in crate::cli::bench) fn run_name() -> String {
    format!("load-{}", crate::clock::Now::system().unix_ms)
}

/// The name of a run's user.
pub(in crate::cli::bench) fn user_name(run: &str, user: usize) -> String {
    format!("{run}-{user}")
}

/// A run's settings.
pub(in crate::cli::bench) struct Plan {
    /// Prefix of the users' names; unique to the run.
    pub(in crate::cli::bench) name: String,
    pub(in crate::cli::bench) users: usize,
    pub(in crate::cli::bench) contacts: Contacts,
    /// Devices of each user; the first one sends.
    pub(in crate::cli::bench) devices: usize,
    /// Messages a second over all users; 0 for as fast as possible.
    pub(in crate::cli::bench) rate: f64,
    /// Messages of a sender in flight, if there is no rate.
    pub(in crate::cli::bench) in_flight: usize,
    /// Bytes of text.
    pub(in crate::cli::bench) size: usize,
    /// Recipients acknowledge, and a message counts once its sender has the receipt.
    pub(in crate::cli::bench) receipts: bool,
    /// Senders answer each VersionUpdate instead of pipelining.
    pub(in crate::cli::bench) answering: bool,
    /// If true, messages that the server refuses or does not take in time are counted and not repeated; if false, they
    /// are failures.
    pub(in crate::cli::bench) sheds: bool,
    /// Keep each delivery with its time.
    pub(in crate::cli::bench) keeps_timeline: bool,
    pub(in crate::cli::bench) cuts: Option<Cuts>,
    pub(in crate::cli::bench) presence: Option<Presence>,
}

/// Devices that disconnect and come back.
#[derive(Clone, Copy)]
pub(in crate::cli::bench) struct Cuts {
    /// Share of all devices.
    pub(in crate::cli::bench) share: f64,
    /// Interval for each of these devices.
    pub(in crate::cli::bench) every: Duration,
}

/// Users who change their presence, while all watch their contacts.
#[derive(Clone, Copy)]
pub(in crate::cli::bench) struct Presence {
    /// Share of all users.
    pub(in crate::cli::bench) share: f64,
    pub(in crate::cli::bench) every: Duration,
}

/// The times of a run.
#[derive(Clone, Copy)]
pub(in crate::cli::bench) struct Clock {
    pub(in crate::cli::bench) start: Instant,
    pub(in crate::cli::bench) measure_from: Instant,
    pub(in crate::cli::bench) until: Instant,
}

impl Clock {
    /// A clock whose run starts now.
    pub(in crate::cli::bench) fn begin(warm_up: Duration, measured: Duration) -> Clock {
        let start = Instant::now();
        Clock { start, measure_from: start + warm_up, until: start + warm_up + measured }
    }

    pub(super) fn microseconds(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_micros() as u64
    }

    pub(in crate::cli::bench) fn at(&self, microseconds: u64) -> Instant {
        self.start + Duration::from_micros(microseconds)
    }
}

/// Who writes to whom.
pub(in crate::cli::bench) enum Contacts {
    /// Each user 2n writes to user 2n + 1.
    Pairs,
    /// Everybody writes to everybody; the k-th user gets a share of the messages in proportion to 1 / k^exponent. Holds
    /// the cumulative shares, of which the last is 1.
    Zipf(Vec<f64>),
}

impl Contacts {
    pub(in crate::cli::bench) fn zipf(users: usize, exponent: f64) -> Contacts {
        let weights = (1..=users).map(|rank| (rank as f64).powf(-exponent));
        let mut sums: Vec<f64> =
            weights.scan(0.0, |sum, weight| Some(std::mem::replace(sum, *sum + weight) + weight)).collect();
        let total = sums.last().copied().unwrap_or(1.0);
        sums.iter_mut().for_each(|sum| *sum /= total);
        Contacts::Zipf(sums)
    }

    /// The next recipient of `user`; `None` if this user only reads.
    fn next(&self, user: usize, random: &mut Random) -> Option<usize> {
        match self {
            Contacts::Pairs => user.is_multiple_of(2).then_some(user + 1),
            Contacts::Zipf(sums) => loop {
                let drawn = random.share();
                let recipient = sums.partition_point(|sum| *sum <= drawn).min(sums.len() - 1);
                if recipient != user {
                    return Some(recipient);
                }
            },
        }
    }
}

impl Plan {
    pub(super) fn user(&self, user: usize) -> String {
        user_name(&self.name, user)
    }

    pub(super) fn eid(&self, user: usize) -> anyhow::Result<Eid> {
        Ok(Eid::parse(&format!("{}@localhost", self.user(user)))?)
    }

    pub(super) fn sends(&self, user: usize) -> bool {
        !matches!(self.contacts, Contacts::Pairs) || user.is_multiple_of(2)
    }

    pub(in crate::cli::bench) fn senders(&self) -> usize {
        match self.contacts {
            Contacts::Pairs => self.users / 2,
            Contacts::Zipf(_) => self.users,
        }
    }

    /// The users who may see this user's presence.
    pub(super) fn watchers(&self, user: usize) -> Vec<usize> {
        match self.contacts {
            Contacts::Pairs => vec![user ^ 1],
            Contacts::Zipf(_) => {
                let steps = 1..=PRESENCE_CONTACTS.min(self.users - 1);
                steps.map(|step| (user + step) % self.users).collect()
            }
        }
    }

    /// The schedule of a user's messages; `None` if it does not send.
    pub(super) fn schedule(&self, user: usize) -> Option<Schedule> {
        if !self.sends(user) {
            return None;
        }
        let every = (self.rate > 0.0).then(|| Duration::from_secs_f64(self.senders() as f64 / self.rate));
        // Spread the senders over the interval, so that they do not send at the same time.
        let offset = every.map_or(Duration::ZERO, |every| every.mul_f64(user as f64 / self.users as f64));
        Some(Schedule { user, every, offset, drawn: 0, random: Random::new(user as u64) })
    }

    /// When a device disconnects first, counted from the start of the measurement; `None` if it never does.
    pub(super) fn first_cut(&self, user: usize, device: usize) -> Option<Duration> {
        let cuts = self.cuts?;
        let mut random = Random::new(((user as u64) << 8) + device as u64 + 1);
        let chosen = random.share() < cuts.share;
        chosen.then(|| cuts.every.mul_f64(random.share()))
    }

    /// When a user changes its presence first, counted from the start; `None` if it never does.
    pub(super) fn first_change(&self, user: usize) -> Option<Duration> {
        let presence = self.presence?;
        let mut random = Random::new((user as u64) << 20);
        let chosen = random.share() < presence.share;
        chosen.then(|| presence.every.mul_f64(random.share()))
    }
}

/// The messages of one user.
pub(super) struct Schedule {
    user: usize,
    every: Option<Duration>,
    offset: Duration,
    drawn: u64,
    random: Random,
}

impl Schedule {
    /// When the next message is due; `None` if it is sent as soon as there is a permit.
    pub(super) fn due(&self, start: Instant) -> Option<Instant> {
        self.every.map(|every| start + self.offset + every.mul_f64(self.drawn as f64))
    }

    /// Draws the next recipient.
    pub(super) fn draw(&mut self, contacts: &Contacts) -> usize {
        self.drawn += 1;
        // Only a user that sends has a schedule, so there is a recipient.
        contacts.next(self.user, &mut self.random).unwrap_or(self.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_popular_get_more_as_zipf_says_and_nobody_writes_to_themselves() {
        let (users, drawn) = (10, 100_000);
        let contacts = Contacts::zipf(users, 1.0);
        let mut random = Random::new(7);
        let mut counts = vec![0; users];
        for _ in 0..drawn {
            let recipient = contacts.next(9, &mut random).unwrap();
            counts[recipient] += 1;
        }
        assert_eq!(counts[9], 0);
        // The first user gets twice as many as the second, within a few standard deviations.
        let ratio = f64::from(counts[0]) / f64::from(counts[1]);
        assert!((1.9..2.1).contains(&ratio), "{ratio}");
        assert!(counts.windows(2).all(|two| two[0] > two[1]), "{counts:?}");
    }

    #[test]
    fn without_an_exponent_all_are_alike() {
        let Contacts::Zipf(sums) = Contacts::zipf(4, 0.0) else { panic!("zipf") };
        assert_eq!(sums, [0.25, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn of_a_pair_one_sends() {
        let random = &mut Random::new(1);
        assert_eq!(Contacts::Pairs.next(4, random), Some(5));
        assert_eq!(Contacts::Pairs.next(5, random), None);
    }
}
