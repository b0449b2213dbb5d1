//! `bimip bench compare`: QUIC against TLS over TCP, with the same server, client and frames over the same emulated
//! network.

mod book;
mod figures;
mod plot;
mod pool;
mod scenario;
pub(super) mod settings;
mod traces;
mod trial;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::json;

use self::figures::Cell;
use self::scenario::{SCENARIOS, Scenario};
use self::trial::{Carrier, Outcome};
use crate::cli::{Failure, say};
use crate::link::{self, PROFILES, Profile};

/// Compare QUIC with TLS over TCP over an emulated mobile network
///
/// A phone and a peer exchange what phones do (pings, presence, 10 texts a second each way with receipts, bursts of
/// media metadata). The same client and server use QUIC and TLS on TCP (cubic and bbr), over lossy and slow paths and
/// through handovers, NATs and tunnels. Writes tables, JSON and plots. Needs root or equivalent rights, and
/// /dev/net/tun; exits with 77 where no link can be made.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Scenarios to run [all]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = SCENARIOS.map(|scenario| scenario.name))]
    scenario: Vec<String>,
    /// Trials of each scenario and transport, each with its own random seed
    #[arg(long, default_value_t = 5, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Length of the measurement in scenarios in which nothing happens to the network
    #[arg(long, default_value_t = 40, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(5..=3600))]
    seconds: u64,
    /// Transports to compare
    #[arg(long, value_enum, value_name = "TRANSPORT", value_delimiter = ',', default_values_t = Carrier::ALL)]
    transport: Vec<Carrier>,
    /// Concurrent trials, each in a network of its own; they are idle most of the time
    #[arg(long, default_value_t = 6, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=64))]
    at_once: u8,
    /// Folder for report.md, report.json and the plots
    #[arg(long, default_value = "compare", value_name = "DIR")]
    out: PathBuf,
    /// Also write QUIC traces of phone and server to this folder, with the phone's pings, in one folder per trial
    #[arg(long, value_name = "DIR")]
    traces: Option<PathBuf>,
}

/// Probes each way that measure loss: enough to find a wrong profile within seconds.
const PROBES: usize = 3_000;

/// Checks that the emulated network behaves as the scenarios require; returns the result in a sentence.
fn check_link(scenarios: &[Scenario]) -> Result<String, Failure> {
    let used = |profile: Profile| scenarios.iter().any(|scenario| [scenario.wifi, scenario.lte].contains(&profile));
    let profiles = PROFILES.into_iter().filter(|(.., profile)| used(*profile));
    let (mut held, mut real_time) = (0, true);
    for (name, _, profile) in profiles {
        let report = link::check(&profile, 1, PROBES)?;
        real_time &= report.real_time;
        let failed: Vec<_> = report.rows.iter().filter(|row| !row.holds).collect();
        if let Some(row) = failed.first() {
            let reason =
                anyhow!("the link is not what {name} asks for: {} {}, not {}", row.what, row.measured, row.asked);
            return Err(Failure::new(reason, "`bimip bench link` says more; let nothing else run, and try again"));
        }
        held += report.rows.len();
        eprintln!("the link is what {name} asks for");
    }
    let priority = if real_time { "with" } else { "WITHOUT" };
    Ok(format!("The link was checked before, {priority} real-time priority: {held} figures of {held} held."))
}

struct Job {
    scenario: Scenario,
    carrier: Carrier,
    seed: u64,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        link::available()?;
        std::fs::create_dir_all(&self.out).with_context(|| format!("creating {}", self.out.display()))?;
        let asked = |scenario: &Scenario| self.scenario.is_empty() || self.scenario.iter().any(|n| n == scenario.name);
        let scenarios: Vec<Scenario> = SCENARIOS.into_iter().filter(asked).collect();
        let mut jobs = Vec::new();
        for scenario in &scenarios {
            for seed in 1..=self.seeds {
                jobs.extend(self.transport.iter().map(|carrier| Job { scenario: *scenario, carrier: *carrier, seed }));
            }
        }
        let checked = check_link(&scenarios)?;
        let done = self.work(jobs)?;
        let mut cells: Vec<Cell> = Vec::new();
        for scenario in scenarios {
            cells.extend(self.transport.iter().map(|carrier| Cell { scenario, carrier: *carrier, trials: Vec::new() }));
        }
        for (job, outcome) in done {
            let cell = cells.iter_mut().find(|c| c.scenario.name == job.scenario.name && c.carrier == job.carrier);
            cell.context("a trial of nothing")?.trials.push(outcome);
        }
        self.report(&cells, &checked)
    }

    fn work(&self, jobs: Vec<Job>) -> anyhow::Result<Vec<(Job, Outcome)>> {
        let (total, done) = (jobs.len(), AtomicUsize::new(0));
        pool::run(jobs, self.at_once, pool::APART, |job| {
            let name = format!("{} over {}, seed {}", job.scenario.name, job.carrier.name(), job.seed);
            let traces = self.traces.as_ref().map(|folder| folder.join(name.replace([' ', ','], "-")));
            let steady = Duration::from_secs(self.seconds);
            let outcome = trial::run(&job.scenario, job.carrier, job.seed, steady, traces.as_deref())
                .with_context(|| name.clone())?;
            if outcome.overrun > 0 {
                eprintln!("SPOILED: the link or a socket was too slow for {} packets in {name}", outcome.overrun);
            }
            eprintln!("{}/{total}: {name}", done.fetch_add(1, Ordering::Relaxed) + 1);
            Ok(outcome)
        })
    }

    fn report(&self, cells: &[Cell], checked: &str) -> Result<(), Failure> {
        let spoiled: usize = cells.iter().map(Cell::spoiled).sum();
        let conditions = format!(
            "{} seeds, {} s of talk where nothing happens, {} trials at once on {} cores; bimip {}{}; Linux {}. QUIC's congestion \
             control is quinn's CUBIC with a window of four packets at least. Median (lowest–highest) of the seeds. A ping \
             without an answer took for ever. {spoiled} trials were spoiled, because the link or a socket was too slow for their packets. \
             {checked}",
            self.seeds,
            self.seconds,
            self.at_once,
            std::thread::available_parallelism().map_or(0, usize::from),
            env!("CARGO_PKG_VERSION"),
            if cfg!(debug_assertions) { ", DEBUG BUILD" } else { "" },
            std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        );
        let text = format!("{conditions}\n\n{}\n{}", figures::markdown(cells), figures::goals(cells));
        say(&text)?;
        let results: Vec<_> = cells.iter().map(Cell::json).collect();
        let json = json!({ "conditions": conditions, "results": results });
        let write = |name: &str, content: String| {
            let path = self.out.join(name);
            std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
        };
        write("report.md", text)?;
        write("report.json", serde_json::to_string_pretty(&json).context("JSON")?)?;
        plot::draw(cells, &self.out)?;
        let wrong: Vec<&str> =
            cells.iter().filter(|cell| cell.wrong() != book::Wrong::default()).map(|c| c.scenario.name).collect();
        if !wrong.is_empty() {
            let reason = anyhow!("messages were lost, doubled or out of order in {}", wrong.join(", "));
            return Err(Failure::new(reason, "report.json has the figures; that is a bug of ours"));
        }
        if spoiled > 0 {
            let reason = anyhow!("{spoiled} trials were spoiled: the link or a socket was too slow for their packets");
            return Err(Failure::new(reason, "run fewer --at-once, and nothing else beside it"));
        }
        Ok(())
    }
}
