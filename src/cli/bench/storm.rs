//! `bimip bench storm`: a whole fleet signs in at the same moment, as after a restart of the server or an outage.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::connection::Target;
use super::process::{SubjectFlags, Usage};
use super::report::{histogram, json, percentiles, record};
use crate::cli::{Failure, say};

/// Before a device that was not served tries again, longer by as much each time, spread by its number.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// A fleet signs in all at once, is cut off, and comes back all at once
#[derive(clap::Args)]
pub(super) struct Args {
    /// Devices
    #[arg(long, default_value_t = 5_000)]
    devices: usize,
    /// Times that all of them come
    #[arg(long, default_value_t = 2)]
    waves: usize,
    /// Seconds within which each has to be served
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    within: u64,
    #[command(flatten)]
    subject: SubjectFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let subject = self.subject.find()?;
        let target = Arc::new(Target::new(subject.server, &subject.data_dir)?);
        let run = crate::clock::Now::system().unix_ms;
        let usage = || subject.pid.and_then(Usage::of);
        for wave in 1..=self.waves {
            let (before, began) = (usage(), Instant::now());
            let deadline = began + Duration::from_secs(self.within);
            let failures = Arc::new(AtomicU64::new(0));
            let mut dialing = JoinSet::new();
            for n in 0..self.devices {
                let (target, failures) = (target.clone(), failures.clone());
                dialing.spawn(async move {
                    let name = format!("storm-{run}-{n}");
                    for attempt in 1u32.. {
                        match target.device(&name, true).await {
                            Ok(device) => return Ok((device, Instant::now())),
                            Err(error) if Instant::now() > deadline => return Err(error.context(name)),
                            Err(_) => failures.fetch_add(1, Ordering::Relaxed),
                        };
                        let spread = 1.0 + (n % 64) as f64 / 64.0;
                        tokio::time::sleep((AGAIN_AFTER * attempt).mul_f64(spread)).await;
                    }
                    unreachable!("attempts end with the deadline")
                });
            }
            let (mut served, mut devices) = (histogram(), Vec::with_capacity(self.devices));
            while let Some(dialed) = dialing.join_next().await {
                let (device, at) = dialed.map_err(anyhow::Error::from)??;
                record(&mut served, at.duration_since(began));
                devices.push(device);
            }
            let took = began.elapsed().as_secs_f64();
            let cpu = before.zip(usage()).map(|(before, after)| after.cpu_seconds - before.cpu_seconds);
            let cpu_us = cpu.map(|seconds| seconds * 1e6 / self.devices as f64);
            let failures = failures.load(Ordering::Relaxed);
            if self.json {
                let figures = serde_json::json!({
                    "wave": wave, "devices": self.devices, "seconds": took, "tries_again": failures,
                    "server_cpu_us_per_sign_in": cpu_us, "served": json(&served),
                });
                say(&figures.to_string())?;
            } else {
                say(&format!("wave {wave}: all {} served after {took:.2} s, {failures} tries again", self.devices))?;
                say(&format!("  each served after  {}", percentiles(&served)))?;
                if let Some(cpu_us) = cpu_us {
                    say(&format!("  server {cpu_us:.0} µs of CPU a sign-in"))?;
                }
            }
            for device in devices {
                device.connection.close(0u8.into(), b"storm");
            }
        }
        Ok(())
    }
}
