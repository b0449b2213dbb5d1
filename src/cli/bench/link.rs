//! `bimip bench link`: checks that the emulated network behaves as configured, before anything is measured over it.

use std::time::Duration;

use anyhow::Context;

use crate::cli::{Failure, Usage, say};
use crate::link::{self, Conditions, Loss, PROFILES, Profile, Rate, Reordering, Report, Row, Way};

/// Check that the emulated network behaves as configured
///
/// Makes two network namespaces with a link between them, measures the link with probes each way, and compares the
/// results with the profile. Exits with 1 if a figure does not hold, and with 77 where no link can be made: it needs
/// root or equivalent rights, and /dev/net/tun.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Profile to check; without it, and without figures of your own, all profiles one after the other
    #[arg(long, value_name = "NAME", value_parser = PROFILES.map(|(name, ..)| name))]
    profile: Option<String>,
    /// Random seed
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
    /// Probes each way that measure loss
    #[arg(long, default_value_t = 20_000, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    probes: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    own: Own,
}

/// Figures from the command line, for both directions; others come from the profile, or `clean`.
#[derive(clap::Args)]
#[command(next_help_heading = "Figures of your own, for each direction")]
struct Own {
    /// One-way delay
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    delay: Option<Duration>,
    /// Largest deviation from the delay, either way
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    jitter: Option<Duration>,
    /// Packets lost
    #[arg(long, value_name = "PERCENT")]
    loss: Option<f64>,
    /// Mean length of a burst of losses; without it losses are independent of each other
    #[arg(long, value_name = "PACKETS", requires = "loss")]
    burst: Option<f64>,
    /// Packets held up, so that others overtake them
    #[arg(long, value_name = "PERCENT")]
    reordering: Option<f64>,
    /// How long these packets are held up
    #[arg(long, value_name = "MS", value_parser = milliseconds, default_value = "5")]
    reordering_by: Duration,
    /// Packets that are duplicated
    #[arg(long, value_name = "PERCENT")]
    duplication: Option<f64>,
    /// The line's rate; needs a queue
    #[arg(long, value_name = "KBIT/S", requires = "queue")]
    rate: Option<u64>,
    /// Size of the queue in front of the line
    #[arg(long, value_name = "BYTES", requires = "rate")]
    queue: Option<u64>,
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "milliseconds are a number".to_owned())?;
    Duration::try_from_secs_f64(number / 1000.0).map_err(|error| error.to_string())
}

impl Own {
    fn is_any(&self) -> bool {
        let others = self.jitter.is_some() || self.reordering.is_some() || self.duplication.is_some();
        others || self.delay.is_some() || self.loss.is_some() || self.rate.is_some()
    }

    fn change(&self, conditions: &mut Conditions) {
        conditions.delay = self.delay.unwrap_or(conditions.delay);
        conditions.jitter = self.jitter.unwrap_or(conditions.jitter);
        if let Some(loss) = self.loss {
            let mean = loss / 100.0;
            conditions.loss = self.burst.map_or(Loss::Random(mean), |burst| Loss::Bursty { mean, burst });
        }
        if let Some(percent) = self.reordering {
            conditions.reordering = Some(Reordering { share: percent / 100.0, by: self.reordering_by });
        }
        conditions.duplication = self.duplication.map_or(conditions.duplication, |percent| percent / 100.0);
        if let Some((kilobits, queue_bytes)) = self.rate.zip(self.queue) {
            conditions.rate = Some(Rate { bits_per_second: kilobits.saturating_mul(1_000), queue_bytes });
        }
    }
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        link::available()?;
        let mut failed = Vec::new();
        let mut reports = Vec::new();
        for (name, words, profile) in self.profiles()? {
            let report = link::check(&profile, self.seed, self.probes as usize)?;
            if !report.holds() {
                failed.push(name);
            }
            if self.json {
                reports.push(serde_json::json!({
                    "profile": name,
                    "asked": profile,
                    "seed": self.seed,
                    "holds": report.holds(),
                    "report": report,
                }));
            } else {
                print(name, words, self.seed, &report)?;
            }
        }
        if self.json {
            say(&serde_json::to_string_pretty(&reports).context("JSON")?)?;
        }
        if failed.is_empty() {
            return Ok(());
        }
        let reason = anyhow::anyhow!("the link does not do what was asked for: {}", failed.join(", "));
        Err(Failure::new(reason, "on a busy machine it is late; let nothing else run, and try again"))
    }

    fn profiles(&self) -> Result<Vec<(&str, &str, Profile)>, Failure> {
        let named = self.profile.as_deref();
        if !self.own.is_any() {
            return Ok(PROFILES.into_iter().filter(|(name, ..)| named.is_none_or(|asked| asked == *name)).collect());
        }
        let mut profile = named.and_then(Profile::named).unwrap_or(Profile::CLEAN);
        self.own.change(&mut profile.up);
        self.own.change(&mut profile.down);
        if let Err(link::Error::Profile(why)) = profile.check() {
            return Err(Usage(why).into());
        }
        Ok(vec![("own", "as on the command line", profile)])
    }
}

fn print(name: &str, words: &str, seed: u64, report: &Report) -> Result<(), Failure> {
    let thread = if report.real_time { "" } else { ", WITHOUT real-time priority" };
    say(&format!("{name}: {words} (seed {seed}, {} probes each way{thread})", report.probes))?;
    say(&format!("  {:6}{:<28}{:>10}{:>12}{:>24}", "", "figure", "asked", "measured", "allowed"))?;
    for row in &report.rows {
        say(&line(row))?;
    }
    say("")?;
    Ok(())
}

fn line(row: &Row) -> String {
    let Row { way, what, unit, asked, measured, allowed: (least, most), holds } = row;
    let allowed = if most.is_finite() { format!("{least:.2} to {most:.2}") } else { format!("from {least:.2}") };
    let verdict = if *holds { "holds" } else { "DOES NOT HOLD" };
    format!(
        "  {:6}{what:<28}{asked:>10.2}{measured:>12.2}{allowed:>24} {unit:<8}{verdict}",
        way.map_or("both", Way::name)
    )
}
