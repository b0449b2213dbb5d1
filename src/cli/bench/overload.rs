//! `bimip bench overload`: sends more messages than the server can handle, and measures pairs that send few.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;

use super::bounds::{self, number};
use super::connection::Target;
use super::load::{Clock, Contacts, Fleet, Plan, Tally};
use super::process::{Settings, SubjectFlags, Usage};
use super::progress::Progress;
use super::report::{histogram, json, percentiles, record};
use crate::cli::{Failure, Usage as WrongUsage, say};
use crate::wire::CloseCode;

/// Pairs that measure the maximum; below, the messages that each has in flight.
const MAXIMUM_PAIRS: usize = 20;
const MAXIMUM_IN_FLIGHT: usize = 64;
const MAXIMUM_WARM_UP: Duration = Duration::from_secs(1);
const MAXIMUM_FOR: Duration = Duration::from_secs(5);
/// Warm-up before the pairs beside are measured alone.
const WARM_UP: Duration = Duration::from_secs(1);
/// Interval between two readings of the server's memory.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The server has recovered when p95 is at most this multiple of p95 before the flood.
const RECOVERED_WITHIN: f64 = 2.0;

/// Twice the load that the server can handle, beside pairs that send few messages
///
/// Pairs within their limits are measured alone, then while others send at a rate above the maximum, then afterwards.
/// Refused messages are counted; every acknowledged message must arrive.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Messages a second that the server can handle [default: measured first, on a server of its own]
    #[arg(long, value_name = "RATE", value_parser = bounds::some_rate())]
    maximum: Option<u64>,
    /// Rate of the flood, as a multiple of that
    #[arg(long, default_value_t = 2.0, value_name = "TIMES", value_parser = |text: &str| number(text, 0.1, 100.0))]
    times: f64,
    /// Pairs that send the flood
    #[arg(long, default_value_t = 20, value_name = "PAIRS", value_parser = bounds::devices())]
    flooders: usize,
    /// Pairs beside it, within their limits
    #[arg(long, default_value_t = 20, value_parser = bounds::devices())]
    pairs: usize,
    /// Messages a second of each pair beside
    #[arg(long, default_value_t = 5.0, value_name = "RATE", value_parser = |text: &str| number(text, 0.1, 10_000.0))]
    pair_rate: f64,
    /// Start the server without limits on users, so that only its own capacity limits the flood
    #[arg(long, conflicts_with = "server")]
    unlimited: bool,
    /// Seconds before the flood
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = bounds::seconds())]
    before: u64,
    /// Seconds of the flood
    #[arg(long = "for", default_value_t = 20, value_name = "SECONDS", value_parser = bounds::seconds())]
    seconds: u64,
    /// Seconds after the flood
    #[arg(long, default_value_t = 15, value_name = "SECONDS", value_parser = bounds::seconds())]
    after: u64,
    #[command(flatten)]
    subject: SubjectFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The result of a run.
struct Outcome {
    maximum: f64,
    flood: Tally,
    /// Messages a second of the flood that arrived while it lasted.
    flood_delivered: f64,
    /// Time from the end of the flood until its last message had arrived.
    drained: Duration,
    beside: Tally,
    /// Latencies of the pairs beside: before, during and after the flood.
    phases: [Histogram<u64>; 3],
    /// Time from the end of the flood to the first second in which latencies are as before.
    recovered: Option<Duration>,
    before: Option<Usage>,
    most_resident: u64,
}

impl Args {
    fn plan(&self, name: &str, pairs: usize, rate: f64) -> Plan {
        Plan {
            name: format!("{name}-{}", crate::clock::Now::system().unix_ms),
            users: 2 * pairs,
            contacts: Contacts::Pairs,
            devices: 1,
            rate,
            in_flight: MAXIMUM_IN_FLIGHT,
            size: 150,
            receipts: false,
            answering: false,
            sheds: rate > 0.0,
            keeps_timeline: false,
            cuts: None,
            presence: None,
        }
    }

    pub(super) async fn run(self) -> Result<(), Failure> {
        let named = !self.subject.is_own();
        let progress = Progress::new(self.json);
        let maximum = match self.maximum {
            Some(maximum) => maximum as f64,
            None if named => return Err(WrongUsage("a server that was named needs its --maximum too").into()),
            None => {
                progress.note("measuring the maximum");
                self.measure_maximum().await?
            }
        };
        let outcome = self.overload(maximum, &progress).await?;
        drop(progress);
        self.tell(&outcome)
    }

    async fn measure_maximum(&self) -> anyhow::Result<f64> {
        let subject = self.subject.find()?;
        let target = Arc::new(Target::new(&subject)?);
        let fleet = Fleet::sign_in(self.plan("maximum", MAXIMUM_PAIRS, 0.0), target).await?;
        let running = fleet.start(Clock::begin(MAXIMUM_WARM_UP, MAXIMUM_FOR))?;
        let course = running.course.clone();
        let count = async {
            tokio::time::sleep_until(course.clock.measure_from.into()).await;
            let before = course.done.load(Ordering::Relaxed);
            tokio::time::sleep_until(course.clock.until.into()).await;
            Ok(course.done.load(Ordering::Relaxed) - before)
        };
        let (_, messages) = tokio::try_join!(running.join(), count)?;
        Ok(messages as f64 / MAXIMUM_FOR.as_secs_f64())
    }

    async fn overload(&self, maximum: f64, progress: &Progress) -> anyhow::Result<Outcome> {
        let settings = Settings { limited: !self.unlimited, ..Settings::default() };
        let subject = self.subject.find_or_start(settings)?;
        let target = Arc::new(Target::new(&subject)?);
        let (flooders, pairs) = (self.flooders, self.pairs);
        let mut beside = self.plan("beside", pairs, pairs as f64 * self.pair_rate);
        beside.keeps_timeline = true;
        let beside = Fleet::sign_in(beside, target.clone()).await?;
        let flood = Fleet::sign_in(self.plan("flood", flooders, maximum * self.times), target.clone()).await?;
        let seconds = Duration::from_secs;
        let whole = seconds(self.before) + seconds(self.seconds) + seconds(self.after);
        let before = subject.usage();
        let beside = beside.start(Clock::begin(WARM_UP, whole))?;
        let clock = beside.course.clock;
        let flood_from = clock.measure_from + seconds(self.before);
        let flood_until = flood_from + seconds(self.seconds);

        let flooding = async {
            tokio::time::sleep_until(flood_from.into()).await;
            let running = flood.start(Clock::begin(Duration::ZERO, seconds(self.seconds)))?;
            let course = running.course.clone();
            let count = async {
                tokio::time::sleep_until(course.clock.until.into()).await;
                Ok(course.done.load(Ordering::Relaxed))
            };
            let (tally, delivered) = tokio::try_join!(running.join(), count)?;
            anyhow::Ok((tally, delivered, flood_until.elapsed()))
        };
        let looking = async {
            let mut most = 0;
            while Instant::now() < clock.until {
                most = most.max(subject.usage().map_or(0, |usage| usage.resident_bytes));
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(most)
        };
        let all = async { tokio::try_join!(beside.join(), flooding, looking) };
        let phase = || match Instant::now() {
            now if now < flood_from => "before".to_owned(),
            now if now < flood_until => "the flood".to_owned(),
            _ => "after".to_owned(),
        };
        let (beside, (flood, delivered, drained), most_resident) = tokio::select! {
            all = all => all?,
            () = progress.run((clock.start, clock.until), phase) => unreachable!("progress is shown until it is dropped"),
        };
        target.device("after-the-flood", true).await.context("nobody can sign in any more")?;

        let mut phases = [histogram(), histogram(), histogram()];
        for (due, latency) in &beside.timeline {
            let due = clock.at(*due);
            let phase = usize::from(due >= flood_from) + usize::from(due >= flood_until);
            record(&mut phases[phase], Duration::from_micros(*latency));
        }
        let quiet = Duration::from_micros(phases[0].value_at_quantile(0.95)).mul_f64(RECOVERED_WITHIN);
        let recovered =
            (0..self.after).map(|second| (second, flood_until + seconds(second))).find_map(|(second, from)| {
                let mut within = histogram();
                let due_then =
                    beside.timeline.iter().filter(|(due, _)| (from..from + seconds(1)).contains(&clock.at(*due)));
                due_then.for_each(|(_, latency)| record(&mut within, Duration::from_micros(*latency)));
                let as_before = within.value_at_quantile(0.95) <= quiet.as_micros() as u64;
                (!within.is_empty() && as_before).then(|| seconds(second))
            });
        Ok(Outcome {
            maximum,
            flood_delivered: delivered as f64 / self.seconds as f64,
            flood,
            drained,
            beside,
            phases,
            recovered,
            before,
            most_resident,
        })
    }

    fn tell(&self, outcome: &Outcome) -> Result<(), Failure> {
        let Outcome { maximum, flood, flood_delivered, drained, beside, phases, recovered, .. } = outcome;
        let due = flood.sent + flood.held_back;
        let per_second = due as f64 / self.seconds as f64;
        let grown = outcome.before.map(|before| outcome.most_resident.saturating_sub(before.resident_bytes));
        if self.json {
            let codes = |counts: &std::collections::BTreeMap<i32, u64>| serde_json::json!(counts);
            let lost = |tally: &Tally| {
                let named = tally.lost.iter().map(|(code, count)| (close_name(*code), serde_json::json!(count)));
                serde_json::Value::Object(named.collect())
            };
            let figures = serde_json::json!({
                "maximum": maximum, "asked": maximum * self.times, "unlimited": self.unlimited, "seconds": self.seconds,
                "flood": { "due": due, "sent": flood.sent, "held_back": flood.held_back, "acknowledged": flood.acknowledged,
                    "refused": codes(&flood.refused), "uncertain": flood.uncertain, "cut_off": lost(flood),
                    "delivered_per_second": flood_delivered, "drained_after_s": drained.as_secs_f64() },
                "beside": { "sent": beside.sent, "acknowledged": beside.acknowledged, "refused": codes(&beside.refused),
                    "cut_off": lost(beside), "before": json(&phases[0]), "during": json(&phases[1]), "after": json(&phases[2]),
                    "recovered_after_s": recovered.map(|after| after.as_secs_f64()) },
                "server_grew_bytes": grown, "acknowledged_and_lost": 0,
            });
            return Ok(say(&figures.to_string())?);
        }
        let limits = if self.unlimited { "no limits on users" } else { "the default limits on users" };
        say(&format!(
            "maximum {maximum:.0} messages a second; {} pairs sent {per_second:.0}; {limits}",
            self.flooders
        ))?;
        say(&format!("  written       {:>10}  of {due} that were due; the connections took no more", flood.sent))?;
        say(&format!("  acknowledged  {:>10}  all of them arrived, once and in order", flood.acknowledged))?;
        for (code, count) in &flood.refused {
            say(&format!("  refused {code}   {count:>10}"))?;
        }
        for (code, count) in &flood.lost {
            say(&format!("  cut off       {count:>10}  times, with {}", close_name(*code)))?;
        }
        say(&format!("  no answer     {:>10}  when the connection ended, or within 30 s", flood.uncertain))?;
        say(&format!(
            "  delivered     {flood_delivered:>10.0}  a second; the last one {:.1} s after the flood",
            drained.as_secs_f64()
        ))?;
        say(&format!("{} pairs beside, {} messages a second each", self.pairs, self.pair_rate))?;
        for (name, latencies) in ["before", "during", "after"].iter().zip(phases) {
            say(&format!("  {name:<8}  {}", percentiles(latencies)))?;
        }
        let refused: u64 = beside.refused.values().sum();
        let cut: u64 = beside.lost.values().sum();
        say(&format!(
            "  {} of {} acknowledged, {refused} refused, {cut} times cut off",
            beside.acknowledged, beside.sent
        ))?;
        say(&match recovered {
            Some(after) => {
                format!("  as before (p95 within {RECOVERED_WITHIN} ×) from second {} after the flood", after.as_secs())
            }
            None => format!("  NOT as before within {} s after the flood", self.after),
        })?;
        if let Some(grown) = grown {
            say(&format!("the server is up, and grew by {:.0} MiB at most", grown as f64 / 1024.0 / 1024.0))?;
        }
        Ok(())
    }
}

/// The protocol's name of a close code.
fn close_name(code: Option<u64>) -> String {
    let Some(code) = code else { return "no code".to_owned() };
    CloseCode::from_quic(code).map_or_else(|| code.to_string(), |known| known.name().to_owned())
}
