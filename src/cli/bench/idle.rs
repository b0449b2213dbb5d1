//! `bimip bench idle`: the cost of signed-in devices that do nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;

use super::bounds;
use super::connection::{Device, Target, answer_pings};
use super::process::{SubjectFlags, Usage};
use crate::cli::{Failure, Usage as WrongUsage, say};
use crate::wire::Lane;

/// Concurrent sign-ins.
const CONCURRENT: usize = 64;

/// Memory and CPU of idle sessions
#[derive(clap::Args)]
pub(super) struct Args {
    /// Sessions to open
    #[arg(long, default_value_t = 1000, value_parser = bounds::devices())]
    sessions: usize,
    /// Contacts of each user: it adds that many others as subscribers, and opens its presence lane
    #[arg(long, default_value_t = 0, value_parser = bounds::count_or_none())]
    contacts: usize,
    /// Sign-ins with a bad token afterwards, to compare their cost
    #[arg(long, default_value_t = 0, value_parser = bounds::count_or_none())]
    refused: usize,
    /// Seconds to measure the idle sessions
    #[arg(long = "for", default_value_t = 10, value_name = "SECONDS", value_parser = bounds::seconds())]
    seconds: u64,
    #[command(flatten)]
    subject: SubjectFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The cost of the sessions for the server.
struct Cost {
    sign_in_cpu_us: f64,
    bytes: f64,
    cpu_share: f64,
    /// The server's usage at the end.
    after: Usage,
}

impl Args {
    /// Adds to each user's list the `contacts` users that follow.
    async fn befriend(&self, target: &Target) -> anyhow::Result<()> {
        if self.contacts == 0 {
            return Ok(());
        }
        let admitting = stream::iter((0..self.sessions).map(|n| async move {
            let friends = (1..=self.contacts).map(|step| format!("idle-{}", (n + step) % self.sessions));
            let mut device = target.device(&format!("idle-{n}"), true).await?;
            device.admit(friends).await
        }));
        let mut admitting = admitting.buffer_unordered(CONCURRENT);
        while let Some(admitted) = admitting.next().await {
            admitted?;
        }
        Ok(())
    }

    pub(super) async fn run(self) -> Result<(), Failure> {
        if self.contacts >= self.sessions {
            return Err(WrongUsage("--contacts must be less than --sessions: nobody is a contact of their own").into());
        }
        let subject = self.subject.find()?;
        let target = Target::new(&subject)?;
        // Exclude what the server allocates once, for its first session.
        let first = target.device("first", true).await?;
        self.befriend(&target).await?;
        let pings = Arc::new(AtomicU64::new(0));
        let before = subject.usage();
        let began = std::time::Instant::now();
        let names = (0..self.sessions).map(|n| format!("idle-{n}"));
        let mut opening = stream::iter(names.map(|name| {
            let target = &target;
            async move {
                let device = target.device(&name, true).await?;
                let presence = if self.contacts > 0 { Some(device.open(Lane::Presence).await?) } else { None };
                anyhow::Ok((device, presence))
            }
        }))
        .buffer_unordered(CONCURRENT);
        let mut devices = Vec::with_capacity(self.sessions);
        while let Some(device) = opening.next().await {
            let (device, presence) = device?;
            let pings = pings.clone();
            devices.push(tokio::spawn(async move {
                let Device { control, connection: _connected, chat: _chat, .. } = device;
                let reading = async {
                    match presence {
                        Some((_open, mut lane)) => loop {
                            lane.next().await?;
                        },
                        None => std::future::pending::<anyhow::Result<()>>().await,
                    }
                };
                tokio::select! {
                    ended = answer_pings(control, || _ = pings.fetch_add(1, Ordering::Relaxed)) => ended,
                    ended = reading => ended,
                }
            }));
        }
        drop(opening);
        let signing_in = began.elapsed();
        let signed_in = subject.usage();
        tokio::time::sleep(Duration::from_secs(self.seconds)).await;
        let after = subject.usage();
        let lost = devices.iter().filter(|device| device.is_finished()).count();
        // There are no figures if the server's process is not known.
        let cost = before.zip(signed_in).zip(after).map(|((before, signed_in), after)| Cost {
            sign_in_cpu_us: (signed_in.cpu_seconds - before.cpu_seconds) * 1e6 / self.sessions as f64,
            bytes: after.resident_bytes.saturating_sub(before.resident_bytes) as f64 / self.sessions as f64,
            cpu_share: (after.cpu_seconds - signed_in.cpu_seconds) / self.seconds as f64,
            after,
        });
        let per_second = self.sessions as f64 / signing_in.as_secs_f64();
        let pings = pings.load(Ordering::Relaxed);
        drop(first);
        let before = subject.usage();
        for _ in 0..self.refused {
            target.refused("stranger").await?;
        }
        let refused_cpu = before.zip(subject.usage()).filter(|_| self.refused > 0);
        let refused_cpu_us =
            refused_cpu.map(|(before, after)| (after.cpu_seconds - before.cpu_seconds) * 1e6 / self.refused as f64);
        if self.json {
            let figures = serde_json::json!({
                "sessions": self.sessions, "lost": lost, "sign_ins_per_second": per_second,
                "sign_in_cpu_us": cost.as_ref().map(|cost| cost.sign_in_cpu_us),
                "bytes_per_session": cost.as_ref().map(|cost| cost.bytes),
                "idle_cpu_share": cost.as_ref().map(|cost| cost.cpu_share),
                "seconds": self.seconds, "pings_answered": pings,
                "server_resident_bytes": cost.as_ref().map(|cost| cost.after.resident_bytes),
                "server_descriptors": cost.as_ref().map(|cost| cost.after.descriptors),
                "refused": self.refused, "refused_cpu_us": refused_cpu_us,
            });
            say(&figures.to_string())?;
        } else {
            say(&format!("{} sessions signed in at {per_second:.0}/s", self.sessions))?;
            if let Some(cost) = cost {
                say(&format!("a sign-in takes the server {:.0} µs of CPU", cost.sign_in_cpu_us))?;
                say(&format!(
                    "it grew by {:.1} KiB for each, and takes {:.2} % of a core for all of them",
                    cost.bytes / 1024.0,
                    cost.cpu_share * 100.0
                ))?;
                say(&format!(
                    "it has {:.0} MiB and {} file descriptors",
                    cost.after.resident_bytes as f64 / 1024.0 / 1024.0,
                    cost.after.descriptors
                ))?;
            }
            say(&format!("{pings} pings answered in {} s, {lost} lost", self.seconds))?;
            if self.refused > 0 {
                let each = refused_cpu_us.map(|us| format!(", {us:.0} µs of CPU each"));
                say(&format!("{} refused sign-ins{}", self.refused, each.unwrap_or_default()))?;
            }
        }
        if lost > 0 {
            return Err(anyhow::anyhow!("{lost} idle sessions were lost").into());
        }
        Ok(())
    }
}
