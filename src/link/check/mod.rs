//! The self-check: measures with its own probes, which know nothing of the link's implementation, whether the link
//! behaves as configured.

mod measure;
mod probe;

use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::{Conditions, Error, Network, Plan, Profile, Way};
use measure::Stream;
use probe::{Ends, PROBE_BYTES, Train};

/// IP bytes of the packets that saturate the line.
const LOAD_BYTES: usize = 1_400;
/// Load offered to a line without a rate, in bit/s; more than it must carry.
const UNSHAPED_OFFER: f64 = 150e6;
/// What a line without a rate must carry, bit/s.
const UNSHAPED_LEAST: f64 = 100e6;
/// Rates above this are not checked: the check says so and fails. Two cores cannot offer much more.
const RATE_MAX: u64 = 300_000_000;
/// Number of probes that measure delay and jitter.
const SPARSE_PROBES: usize = 400;
/// How many milliseconds later than configured the median packet may arrive. None may arrive earlier.
const LATE_MS: f64 = 1.0;

/// The configured and the measured figures.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One figure per row.
    pub rows: Vec<Row>,
    /// Number of probes per direction that measured loss.
    pub probes: usize,
    /// Whether the link's thread had real-time priority ([`Network::is_real_time`]).
    pub real_time: bool,
}

/// One figure, of one direction or of both.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The direction; `None` for both together.
    pub way: Option<Way>,
    /// What was measured, such as `delay`.
    pub what: &'static str,
    /// Its unit, such as `ms`.
    pub unit: &'static str,
    /// The configured value.
    pub asked: f64,
    /// The measured value.
    pub measured: f64,
    /// The smallest and largest acceptable value. Where the value is random: 4 standard deviations either way for this
    /// number of probes.
    pub allowed: (f64, f64),
    /// Whether the measured value is acceptable.
    pub holds: bool,
}

impl Report {
    /// Whether all figures are acceptable.
    pub fn holds(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.holds)
    }
}

/// Makes a network with this profile, sends `probes` probes each way, and then more than the lines carry. It takes half
/// a minute at most for the named profiles and 20,000 probes.
///
/// # Errors
/// The errors of [`Network::start`], and errors in sending probes. A figure that does not hold is not an error; the
/// report shows it.
pub fn check(profile: &Profile, seed: u64, probes: usize) -> Result<Report, Error> {
    let net = Network::start(Plan { wifi: *profile, lte: *profile, seed })?;
    let ends = Ends::meet(&net)?;
    let mut rows = Vec::new();
    let both = |train: fn(&Conditions, usize) -> Train, probes| {
        let send = |way| ends.send(&net, way, train(conditions(profile, way), probes));
        thread::scope(|scope| {
            let up = scope.spawn(|| send(Way::Up));
            let down = send(Way::Down);
            let up = up.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, Error>([(Way::Up, up?), (Way::Down, down?)])
        })
    };
    for (way, stream) in both(sparse, SPARSE_PROBES)? {
        times(&mut Rows { way: Some(way), rows: &mut rows }, conditions(profile, way), &stream);
    }
    for (way, stream) in both(dense, probes)? {
        chances(&mut Rows { way: Some(way), rows: &mut rows }, conditions(profile, way), &stream);
    }
    for way in Way::BOTH {
        let conditions = conditions(profile, way);
        let train = load(conditions);
        let stream = ends.send(&net, way, train)?;
        line(&mut Rows { way: Some(way), rows: &mut rows }, conditions, train, &stream);
    }
    let missed = net.missed()? as f64;
    Rows { way: None, rows: &mut rows }.exact("missed at devices and sockets", "packets", 0.0, missed);
    rows.sort_by_key(|row| row.way.map_or(2, |way| u8::from(way == Way::Down)));
    Ok(Report { rows, probes, real_time: net.is_real_time() })
}

fn conditions(profile: &Profile, way: Way) -> &Conditions {
    match way {
        Way::Up => &profile.up,
        Way::Down => &profile.down,
    }
}

/// Probes so far apart that none waits for another, so that jitter can move each freely.
fn sparse(conditions: &Conditions, count: usize) -> Train {
    let spacing = 2 * conditions.jitter + Duration::from_millis(3);
    Train { count, spacing: spacing.max(2 * time_on_line(conditions, PROBE_BYTES)), bytes: PROBE_BYTES }
}

/// Probes that fill half of the line, close enough for some to overtake one that is held up.
fn dense(conditions: &Conditions, count: usize) -> Train {
    let spacing = Duration::from_micros(250).max(2 * time_on_line(conditions, PROBE_BYTES));
    let overtaking = conditions.reordering.map_or(spacing, |reordering| reordering.by / 4);
    Train { count, spacing: spacing.min(overtaking), bytes: PROBE_BYTES }
}

/// One and a half times the line's rate, until its queue is full and a while longer.
fn load(conditions: &Conditions) -> Train {
    let (rate, queue) = conditions.rate.map_or((UNSHAPED_OFFER / 1.5, 0.0), |rate| {
        (rate.bits_per_second.min(RATE_MAX) as f64, rate.queue_bytes as f64 * 8.0)
    });
    let offered = 1.5 * rate / (LOAD_BYTES as f64 * 8.0);
    let seconds = (3.0 * queue / rate + 1.0).max(600.0 / offered);
    Train { count: (seconds * offered) as usize, spacing: Duration::from_secs_f64(1.0 / offered), bytes: LOAD_BYTES }
}

fn time_on_line(conditions: &Conditions, bytes: usize) -> Duration {
    let seconds = |rate: super::Rate| bytes as f64 * 8.0 / rate.bits_per_second as f64;
    conditions.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(seconds(rate)))
}

fn times(rows: &mut Rows<'_>, conditions: &Conditions, stream: &Stream) {
    let delays = stream.delays_ms();
    let on_time: Vec<_> = match conditions.reordering {
        // Packets that were held up are the slowest; they say nothing about the delay of the others.
        Some(reordering) => {
            let held_up = reordering.by.as_secs_f64() * 500.0 + conditions.jitter.as_secs_f64() * 1000.0;
            let limit = conditions.delay.as_secs_f64() * 1000.0 + held_up;
            delays.into_iter().filter(|delay| *delay < limit).collect()
        }
        None => delays,
    };
    let asked = (conditions.delay + time_on_line(conditions, PROBE_BYTES)).as_secs_f64() * 1000.0;
    let jitter = conditions.jitter.as_secs_f64() * 1000.0;
    // A quantile q of n values uniform over 2 j has the standard deviation 2 j √(q (1 - q) / n).
    let deviation = |q: f64| 2.0 * jitter * (q * (1.0 - q) / on_time.len() as f64).sqrt();
    let early = 4.0 * deviation(0.5);
    rows.within("delay", "ms", asked, measure::quantile(&on_time, 0.5), (asked - early, asked + early + LATE_MS));
    // Half of all values lie within half of the jitter, so the middle half spans the jitter.
    let spread = measure::quantile(&on_time, 0.75) - measure::quantile(&on_time, 0.25);
    let wide = 4.0 * 2.0 * deviation(0.25);
    rows.within("jitter ±", "ms", jitter, spread, ((jitter - wide).max(0.0), jitter + wide + LATE_MS));
}

fn chances(rows: &mut Rows<'_>, conditions: &Conditions, stream: &Stream) {
    let sent = stream.sent.len();
    let asked = conditions.loss.mean();
    let wide = 4.0 * measure::loss_deviation(conditions.loss, sent);
    let lost = stream.lost();
    let share = lost.iter().filter(|lost| **lost).count() as f64 / sent as f64;
    rows.percent("loss", asked, share, wide);
    if asked > 0.0 && asked < 1.0 {
        let bursts = measure::bursts(&lost);
        let (mean, deviation) = measure::burst_of(conditions.loss);
        let measured = bursts.iter().sum::<usize>() as f64 / bursts.len() as f64;
        let wide = 4.0 * deviation / (bursts.len() as f64).sqrt();
        rows.within("burst", "packets", mean, measured, ((mean - wide).max(1.0), mean + wide));
    }
    let arrived = sent as f64 * (1.0 - share);
    let binomial = |share: f64| 4.0 * (share * (1.0 - share) / arrived).sqrt();
    let asked = conditions.reordering.map_or(0.0, |reordering| reordering.share);
    rows.percent("reordering", asked, stream.overtaken() as f64 / arrived, binomial(asked));
    let asked = conditions.duplication;
    rows.percent("duplication", asked, stream.doubled() as f64 / arrived, binomial(asked));
    rows.exact("unaccounted", "packets", 0.0, stream.unaccounted());
}

fn line(rows: &mut Rows<'_>, conditions: &Conditions, train: Train, stream: &Stream) {
    const MEGABIT: f64 = 1e6;
    let kilobytes = |bits: f64| bits / 8e3;
    // The line was never idle: what it accepted, divided by the time from the first packet's sending to the end of the
    // last.
    let taken = stream.tally.offered.packets - stream.tally.queue_full.packets;
    let busy = stream.span() - conditions.delay.as_secs_f64();
    let bits = (LOAD_BYTES * 8) as f64;
    let measured = taken as f64 * bits / busy;
    match conditions.rate {
        None => rows.within(
            "throughput",
            "Mbit/s",
            UNSHAPED_LEAST / MEGABIT,
            measured / MEGABIT,
            (UNSHAPED_LEAST / MEGABIT, f64::INFINITY),
        ),
        Some(rate) => {
            let (asked, queue) = (rate.bits_per_second as f64, rate.queue_bytes as f64 * 8.0);
            rows.within(
                "rate",
                "Mbit/s",
                asked / MEGABIT,
                measured / MEGABIT,
                (0.97 * asked / MEGABIT, 1.03 * asked / MEGABIT),
            );
            // Each packet accepted at a full queue waited for all of the queue, itself included.
            let filled = 3.0 * queue / asked;
            let waited =
                measure::quantile(&stream.delays_ms_after(filled), 0.5) / 1000.0 - conditions.delay.as_secs_f64();
            let blurred = asked * (conditions.jitter.as_secs_f64() + LATE_MS / 1000.0);
            rows.within(
                "queue",
                "kB",
                kilobytes(queue),
                kilobytes(waited * asked),
                (kilobytes(queue - 2.0 * bits - blurred), kilobytes(queue.max(bits) + blurred)),
            );
            let sending = stream.sending();
            let dropped = (train.count as f64 - (queue + asked * sending) / bits).max(0.0);
            let wide = 3.0 + 0.02 * train.count as f64;
            let full = stream.tally.queue_full.packets as f64;
            rows.within(
                "dropped at a full queue",
                "packets",
                dropped,
                full,
                ((dropped - wide).max(1.0), dropped + wide),
            );
        }
    }
    rows.exact("unaccounted under load", "packets", 0.0, stream.unaccounted());
}

/// Collects and judges the rows of one direction.
struct Rows<'a> {
    way: Option<Way>,
    rows: &'a mut Vec<Row>,
}

impl Rows<'_> {
    /// A value that could not be measured is NaN, which is never acceptable.
    fn within(&mut self, what: &'static str, unit: &'static str, asked: f64, measured: f64, allowed: (f64, f64)) {
        let holds = measured >= allowed.0 && measured <= allowed.1;
        self.rows.push(Row { way: self.way, what, unit, asked, measured, allowed, holds });
    }

    fn percent(&mut self, what: &'static str, asked: f64, measured: f64, wide: f64) {
        let allowed = (100.0 * (asked - wide).max(0.0), 100.0 * (asked + wide).min(1.0));
        self.within(what, "%", 100.0 * asked, 100.0 * measured, allowed);
    }

    fn exact(&mut self, what: &'static str, unit: &'static str, asked: f64, measured: f64) {
        self.within(what, unit, asked, measured, (asked, asked));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::chance::Chance;
    use super::super::pipe::{Offered, Pipe};
    use super::super::{Count, Loss, Rate, Reordering, Tally};
    use super::*;
    use crate::random::Random;

    const MS: Duration = Duration::from_millis(1);

    /// What a train would measure on a pipe, with nothing in between.
    fn run(conditions: &Conditions, train: Train) -> Stream {
        let mut pipe = Pipe::new(*conditions, Chance::new(Random::new(1)));
        let (begin, mut tally) = (Instant::now(), Tally::default());
        let sent: Vec<_> = (0..train.count as u32).map(|number| begin + number * train.spacing).collect();
        let count = |count: &mut Count| count.packets += 1;
        for (number, at) in sent.iter().enumerate() {
            count(&mut tally.offered);
            match pipe.offer(*at, train.bytes, number) {
                Offered::Taken => {}
                Offered::Doubled => count(&mut tally.doubled),
                Offered::Lost => count(&mut tally.lost),
                Offered::QueueFull => count(&mut tally.queue_full),
                Offered::TooMuch => count(&mut tally.overrun),
            }
        }
        let mut arrived = Vec::new();
        while let Some(due) = pipe.due() {
            arrived.extend(pipe.arrived(due).map(|number| (number, due)));
        }
        tally.delivered.packets = arrived.len() as u64;
        Stream { sent, arrived, tally }
    }

    /// The figures that are not acceptable when the pipe has the conditions `made` and the check expects `asked`.
    fn wrong(made: &Conditions, asked: &Conditions) -> Vec<&'static str> {
        let mut all = Vec::new();
        let mut rows = Rows { way: Some(Way::Up), rows: &mut all };
        times(&mut rows, asked, &run(made, sparse(asked, SPARSE_PROBES)));
        chances(&mut rows, asked, &run(made, dense(asked, 20_000)));
        line(&mut rows, asked, load(asked), &run(made, load(asked)));
        all.iter().filter(|row| !row.holds).map(|row| row.what).collect()
    }

    fn eventful() -> Conditions {
        Conditions {
            jitter: 5 * MS,
            loss: Loss::Bursty { mean: 0.04, burst: 6.0 },
            reordering: Some(Reordering { share: 0.02, by: 8 * MS }),
            duplication: 0.01,
            rate: Some(Rate { bits_per_second: 20_000_000, queue_bytes: 100_000 }),
            ..Conditions::delayed(30 * MS)
        }
    }

    #[test]
    fn a_link_that_does_what_was_asked_for_holds() {
        assert_eq!(wrong(&eventful(), &eventful()), [""; 0]);
        for (name, _, profile) in super::super::PROFILES {
            assert_eq!(wrong(&profile.up, &profile.up), [""; 0], "{name}");
            assert_eq!(wrong(&profile.down, &profile.down), [""; 0], "{name}");
        }
    }

    #[test]
    fn a_link_that_does_something_else_is_found_out() {
        let asked = eventful();
        let found = |change: fn(&mut Conditions)| {
            let mut made = asked;
            change(&mut made);
            wrong(&made, &asked)
        };
        assert!(found(|made| made.delay = 32 * MS).contains(&"delay"));
        assert!(found(|made| made.delay = 28 * MS).contains(&"delay"));
        assert!(found(|made| made.jitter = MS).contains(&"jitter ±"));
        assert!(found(|made| made.loss = Loss::Bursty { mean: 0.08, burst: 6.0 }).contains(&"loss"));
        assert!(found(|made| made.loss = Loss::Bursty { mean: 0.04, burst: 12.0 }).contains(&"burst"));
        assert!(found(|made| made.loss = Loss::Random(0.04)).contains(&"burst"));
        assert!(found(|made| made.loss = Loss::None).contains(&"loss"));
        assert!(found(|made| made.reordering = None).contains(&"reordering"));
        assert!(found(|made| made.duplication = 0.02).contains(&"duplication"));
        let rate = |kilobits: u64, queue_bytes| Some(Rate { bits_per_second: kilobits * 1_000, queue_bytes });
        let slow = Conditions { rate: rate(18_000, 100_000), ..asked };
        assert!(wrong(&slow, &asked).contains(&"rate"));
        let long = Conditions { rate: rate(20_000, 150_000), ..asked };
        assert!(wrong(&long, &asked).contains(&"queue"));
        let short = Conditions { rate: rate(20_000, 50_000), ..asked };
        assert!(wrong(&short, &asked).contains(&"queue"));
        let endless = Conditions { rate: None, ..asked };
        assert!(wrong(&endless, &asked).contains(&"dropped at a full queue"));
        let clean = Profile::CLEAN.up;
        let narrow = Conditions { rate: rate(50_000, 100_000), ..clean };
        assert!(wrong(&narrow, &clean).contains(&"throughput"));
        assert!(wrong(&eventful(), &clean).len() > 5);
    }

    #[test]
    fn a_link_that_delivers_nothing_does_not_hold() {
        let dead = Conditions { loss: Loss::Random(1.0), ..Profile::CLEAN.up };
        let wrong = wrong(&dead, &Profile::CLEAN.up);
        assert!(["delay", "loss", "throughput"].iter().all(|what| wrong.contains(what)), "{wrong:?}");
    }
}
