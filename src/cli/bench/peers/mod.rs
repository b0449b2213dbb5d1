//! `bimip bench peers`: compares this server with others that do the same job, and with relays that only move bytes.
//!
//! The job: a text to the recipient, and the recipient's receipt back to the sender, or the text alone. All subjects do it on the same
//! machine in one run, each in its own process, so that every figure can be given as a ratio.

mod answering;
mod disk;
mod format;
mod job;
mod relay;
mod subject;

pub(super) use relay::Args as RelayArgs;

use std::time::Duration;

use serde_json::json;

use self::job::{Figures, Plan};
use self::subject::{Kind, Subject};
use crate::cli::bench::bounds;
use crate::cli::{Failure, Usage, say};

/// Compare this server with a bare QUIC relay, a bare TLS relay and mosquitto
///
/// The server is measured over QUIC, and over TLS on TCP, which mosquitto uses. mosquitto is included if it is
/// installed (Debian: `apt-get install mosquitto`), with QoS 1 over TLS and without storage. The bare relays parse
/// nothing and store nothing; their messages are as long as BIMip's frames. "QUIC, synced" and "TLS, synced" append everything to a file and sync it before they pass
/// it on: the least that a durable server does. "QUIC, frames" also speaks BIMip's frames, without sessions, checks or
/// lookups: the least that a durable server of this protocol does. bimip has each text on disk before it acknowledges it.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Pairs of devices; one device of each pair sends
    #[arg(long, default_value_t = 100, value_parser = bounds::devices())]
    pairs: usize,
    /// Texts of a pair in flight, if there is no rate
    #[arg(long, default_value_t = 16, value_parser = bounds::at_once())]
    in_flight: usize,
    /// Texts a second over all pairs; 0 for as fast as possible
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1000, 5000], value_parser = bounds::rate())]
    rates: Vec<u64>,
    /// Texts alone, without receipts, at the given rates (other than 0)
    #[arg(long)]
    one_way: bool,
    /// Bytes of text
    #[arg(long, default_value_t = 150, value_parser = bounds::text_bytes())]
    size: usize,
    /// Seconds of each measurement
    #[arg(long = "for", default_value_t = 10, value_name = "SECONDS", value_parser = bounds::seconds())]
    seconds: u64,
    /// Seconds of warm-up before that
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = bounds::seconds_or_none())]
    warm_up: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        if self.one_way && self.rates.contains(&0) {
            return Err(Usage("--one-way needs --rates other than 0").into());
        }
        let folder = tempfile::Builder::new().prefix("bimip-peers-").tempdir_in(".").map_err(anyhow::Error::from)?;
        let synced = disk::synced_writes(folder.path())?;
        if !self.json {
            say(&format!(
                "disk: {:.0} appends of 4 KiB a second, each fdatasynced, {:.0} µs of CPU each",
                synced.per_second, synced.cpu_us
            ))?;
        }
        let mut rows = Vec::new();
        for &rate in &self.rates {
            let asked = if rate == 0 { "as fast as it goes".to_owned() } else { format!("{rate} texts a second") };
            if !self.json {
                let counted = if self.one_way { "delivered" } else { "delivered and receipted" };
                say(&format!("\n{} pairs, {asked}: {counted}", self.pairs))?;
                say(&format!(
                    "  {:<13}{:>10}{:>12}{:>10}{:>10}{:>10}{:>10}",
                    "", "texts/s", "CPU µs each", "p50 ms", "p99 ms", "rate ×", "CPU ×"
                ))?;
            }
            let mut first: Option<Figures> = None;
            for kind in Kind::ALL {
                let Some(figures) = self.measure(kind, rate, folder.path()).await? else {
                    if !self.json {
                        say(&format!("  {:<13}not installed", kind.name()))?;
                    }
                    continue;
                };
                let base = *first.get_or_insert(figures);
                if self.json {
                    rows.push(json!({ "subject": kind.name(), "rate": rate, "figures": figures.json() }));
                } else {
                    say(&line(kind, &figures, &base))?;
                }
            }
        }
        if self.json {
            let all = json!({ "pairs": self.pairs, "in_flight": self.in_flight, "size": self.size,
                "seconds": self.seconds, "synced_writes": synced, "rows": rows });
            say(&all.to_string())?;
        }
        Ok(())
    }

    async fn measure(&self, kind: Kind, rate: u64, folder: &std::path::Path) -> Result<Option<Figures>, Failure> {
        let transport = match kind {
            Kind::Bimip => Some("quic"),
            Kind::BimipTcp => Some("tcp"),
            _ => None,
        };
        if let Some(transport) = transport {
            return Ok(Some(subject::load(transport, !self.one_way, &self.load_flags(rate)).await?));
        }
        let Some(subject) = Subject::start(kind, folder)? else { return Ok(None) };
        let plan = Plan {
            pairs: self.pairs,
            rate,
            in_flight: self.in_flight,
            receipts: !self.one_way,
            size: self.size,
            warm_up: Duration::from_secs(self.warm_up),
            measured: Duration::from_secs(self.seconds),
        };
        Ok(Some(job::run(&subject, plan).await?))
    }

    fn load_flags(&self, rate: u64) -> Vec<String> {
        let flags = [
            ("--pairs", self.pairs as u64),
            ("--rate", rate),
            ("--in-flight", self.in_flight as u64),
            ("--size", self.size as u64),
            ("--for", self.seconds),
            ("--warm-up", self.warm_up),
        ];
        flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.to_string()]).collect()
    }
}

fn line(kind: Kind, figures: &Figures, base: &Figures) -> String {
    let Figures { per_second, cpu_us, p50_us, p99_us } = figures;
    format!(
        "  {:<13}{per_second:>10.0}{cpu_us:>12.1}{:>10.2}{:>10.2}{:>10.2}{:>10.2}",
        kind.name(),
        *p50_us as f64 / 1000.0,
        *p99_us as f64 / 1000.0,
        per_second / base.per_second,
        cpu_us / base.cpu_us
    )
}
