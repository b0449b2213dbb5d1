//! `bimip bench storm`: many devices sign in at the same moment, as after an outage or a restart of the server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::bounds;
use super::connection::{Device, Target};
use super::process::{Subject, SubjectFlags};
use super::report::{histogram, json, percentiles, record};
use crate::cli::{Failure, say};
use crate::client::limits::SILENCE_MAX;

/// Pause before a failed device tries again. It grows by as much with each attempt and varies with the device's number.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How long to wait for the sessions of a wave to end. One whose close was lost on the way lasts until the server's idle timeout.
const ENDED_WITHIN: Duration = Duration::from_secs(5);
/// How often to look whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Many devices sign in at once, disconnect, and come back at once
#[derive(clap::Args)]
pub(super) struct Args {
    /// Number of devices
    #[arg(long, default_value_t = 5_000, value_parser = bounds::devices())]
    devices: usize,
    /// How often all devices sign in
    #[arg(long, default_value_t = 2, value_parser = bounds::count())]
    waves: usize,
    /// Seconds within which each device must be signed in
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = bounds::seconds())]
    within: u64,
    /// Kill the server before each further wave, and start it again
    #[arg(long, conflicts_with = "server")]
    restart: bool,
    #[command(flatten)]
    subject: SubjectFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut subject = self.subject.find()?;
        let target = Arc::new(Target::new(&subject)?);
        let run = crate::clock::Now::system().unix_ms;
        let mut connected: Vec<Device> = Vec::new();
        let others = subject.connected();
        for wave in 1..=self.waves {
            let restarted = self.restart && wave > 1;
            // The time counts from when the server was gone.
            let gone = if restarted { Some(subject.restart()?) } else { None };
            connected.drain(..).for_each(|device| device.connection.close());
            // A sign-in's CPU includes neither the end of the sessions before nor the server's start.
            let is_clear = wave == 1 || restarted || have_ended(&subject, others).await;
            let before = subject.usage().filter(|_| is_clear);
            let began = gone.unwrap_or_else(Instant::now);
            let deadline = began + Duration::from_secs(self.within);
            let failures = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
            let mut dialing = JoinSet::new();
            for n in 0..self.devices {
                let (target, failures) = (target.clone(), failures.clone());
                dialing.spawn(async move {
                    let name = format!("storm-{run}-{n}");
                    for attempt in 1u32.. {
                        // The client library's timeout for a silent server, which is longer than a server's for a
                        // handshake.
                        let tried = tokio::time::timeout(SILENCE_MAX, target.device(&name, true)).await;
                        match tried.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {SILENCE_MAX:?}"))) {
                            Ok(device) => return Ok((device, Instant::now())),
                            Err(error) if Instant::now() > deadline => return Err(error.context(name)),
                            Err(error) => {
                                let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                                *failures.entry(format!("{error:#}")).or_default() += 1;
                            }
                        }
                        let spread = 1.0 + (n % 64) as f64 / 64.0;
                        tokio::time::sleep((AGAIN_AFTER * attempt).mul_f64(spread)).await;
                    }
                    unreachable!("attempts end with the deadline")
                });
            }
            let mut served = histogram();
            while let Some(dialed) = dialing.join_next().await {
                let (device, at) = dialed.map_err(anyhow::Error::from)??;
                record(&mut served, at.duration_since(began));
                connected.push(device);
            }
            let took = began.elapsed().as_secs_f64();
            let cpu = before.zip(subject.usage()).map(|(before, after)| after.cpu_seconds - before.cpu_seconds);
            let cpu_us = cpu.map(|seconds| seconds * 1e6 / self.devices as f64);
            let failures = std::mem::take(&mut *failures.lock().unwrap_or_else(PoisonError::into_inner));
            let again: u64 = failures.values().sum();
            if self.json {
                let figures = serde_json::json!({
                    "wave": wave, "restarted": restarted, "devices": self.devices, "seconds": took,
                    "tries_again": again, "failures": failures,
                    "server_cpu_us_per_sign_in": cpu_us, "served": json(&served),
                });
                say(&figures.to_string())?;
            } else {
                say(&format!("wave {wave}: all {} served after {took:.2} s, {again} tries again", self.devices))?;
                for (reason, count) in &failures {
                    say(&format!("  {count:>6} tries: {reason}"))?;
                }
                say(&format!("  each served after  {}", percentiles(&served)))?;
                if let Some(cpu_us) = cpu_us {
                    say(&format!("  server {cpu_us:.0} µs of CPU a sign-in"))?;
                }
            }
        }
        Ok(())
    }
}

/// Waits until the server has no sessions but these of others; false if it does not say how many it has.
async fn have_ended(subject: &Subject, others: Option<usize>) -> bool {
    let until = Instant::now() + ENDED_WITHIN;
    while let Some((connected, others)) = subject.connected().zip(others) {
        if connected <= others || Instant::now() >= until {
            return true;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    false
}
