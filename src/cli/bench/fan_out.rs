//! `bimip bench fan-out`: an owner's presence changes, and all subscribers are notified.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::bounds;
use super::connection::Target;
use super::process::SubjectFlags;
use super::report::{histogram, percentiles, record};
use crate::cli::{Failure, say};
use crate::limits::{PRESENCE_INTERVAL, PRESENCE_TOLD_PER_SECOND};
use crate::wire::proto::{AwarenessNotification, SubscriberAddRequest};
use crate::wire::{AwarenessStatus, Eid, Lane, Payload, encode_frame, envelope};

/// Concurrent sign-ins.
const CONCURRENT: usize = 64;
/// Timeout for one change to reach all subscribers.
const WITHIN: Duration = Duration::from_secs(30);
/// Time to spare after the server's interval and before the next change.
const SPARE: Duration = Duration::from_millis(100);

/// Presence changes of one user, sent to many subscribers
#[derive(clap::Args)]
pub(super) struct Args {
    /// Connected subscribers, who may see the owner
    #[arg(long, default_value_t = 5_000, value_parser = bounds::devices())]
    subscribers: usize,
    /// Changes to measure, one after the other
    #[arg(long, default_value_t = 10, value_parser = bounds::count())]
    changes: usize,
    #[command(flatten)]
    subject: SubjectFlags,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let subject = self.subject.find()?;
        let target = Target::new(&subject)?;
        let run = crate::clock::Now::system().unix_ms;
        let name = |n: usize| format!("fan-{run}-{n}");
        let mut owner = target.device(&format!("star-{run}"), true).await?;
        for n in 0..self.subscribers {
            let add = SubscriberAddRequest {
                owner: Some(owner.eid.identity()),
                subscriber: Some(Eid::parse(&format!("{}@localhost", name(n)))?.identity()),
                ..SubscriberAddRequest::default()
            };
            owner.control.0.send(encode_frame(&envelope(Payload::SubscriberAddRequest(add)))).await?;
        }
        for _ in 0..self.subscribers {
            match owner.control.1.next().await?.payload {
                Some(Payload::SubscriberAddResponse(added)) if added.status == 1 => {}
                other => return Err(anyhow::anyhow!("a subscriber was not added: {other:?}").into()),
            }
        }
        say(&format!("{} subscribers added", self.subscribers))?;

        let (told, mut tellings) = mpsc::channel::<(i32, Instant)>(1024);
        let mut joining = stream::iter((0..self.subscribers).map(|n| {
            let (target, name) = (&target, name(n));
            async move {
                let device = target.device(&name, true).await?;
                let (lane, reader) = device.open(Lane::Presence).await?;
                anyhow::Ok((device, lane, reader))
            }
        }))
        .buffer_unordered(CONCURRENT);
        while let Some(joined) = joining.next().await {
            let (device, lane, mut reader) = joined?;
            let told = told.clone();
            tokio::spawn(async move {
                let _open = (device, lane);
                while let Ok(scheme) = reader.next().await {
                    if let Some(Payload::AwarenessNotification(notification)) = scheme.payload
                        && told.send((notification.status, Instant::now())).await.is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(joining);
        // The snapshot: each subscriber sees the owner online.
        let mut quiet = Quiet::new(self.subscribers);
        for _ in 0..self.subscribers {
            let (_, at) = tokio::time::timeout(WITHIN, tellings.recv()).await?.context("a snapshot")?;
            quiet.told(at);
        }
        say("everybody is connected and has seen the owner")?;

        let (mut lane, _answers) = owner.open(Lane::Presence).await?;
        let usage = || subject.usage();
        let (before, began) = (usage(), Instant::now());
        let mut latencies = histogram();
        let mut spent = Duration::ZERO;
        for change in 0..self.changes {
            let status = if change % 2 == 0 { AwarenessStatus::Away } else { AwarenessStatus::Online };
            let notification = AwarenessNotification {
                from: Some(owner.eid.identity()),
                status: status.code(),
                ..AwarenessNotification::default()
            };
            tokio::time::sleep_until(quiet.until().into()).await;
            let said = Instant::now();
            lane.send(encode_frame(&envelope(Payload::AwarenessNotification(notification)))).await?;
            for _ in 0..self.subscribers {
                let (seen, at) = tokio::time::timeout(WITHIN, tellings.recv()).await?.context("a notification")?;
                if seen != status.code() {
                    return Err(anyhow::anyhow!("status {seen} was told where {} was said", status.code()).into());
                }
                record(&mut latencies, at.duration_since(said));
                quiet.told(at);
            }
            spent += said.elapsed();
        }
        let total = (self.changes * self.subscribers) as f64;
        say(&format!("{:.0} notifications a second while they go out", total / spent.as_secs_f64()))?;
        say(&format!("each told after  {}", percentiles(&latencies)))?;
        if let Some((before, after)) = before.zip(usage()) {
            let cpu = (after.cpu_seconds - before.cpu_seconds) * 1e6 / total;
            say(&format!("server {cpu:.1} µs of CPU a notification, over {:.1} s", began.elapsed().as_secs_f64()))?;
        }
        if tellings.try_recv().is_ok() {
            return Err(anyhow::Error::msg("somebody was told more often than the owner changed").into());
        }
        Ok(())
    }
}

/// When the server may tell everybody of a change at once.
struct Quiet {
    last_told: Instant,
    /// For so long after a change a server holds the next one back: that is a setting and not a cost, so it is not measured.
    interval: Duration,
}

impl Quiet {
    fn new(subscribers: usize) -> Quiet {
        let of_all = Duration::from_secs_f64(subscribers as f64 / f64::from(PRESENCE_TOLD_PER_SECOND));
        Quiet { last_told: Instant::now(), interval: PRESENCE_INTERVAL.max(of_all) }
    }

    /// Somebody was told, maybe after others who were told later: each says so over its own task.
    fn told(&mut self, at: Instant) {
        self.last_told = self.last_told.max(at);
    }

    fn until(&self) -> Instant {
        self.last_told + self.interval + SPARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_waits_until_the_interval_of_the_subscriber_who_was_told_last_is_over() {
        for (subscribers, interval) in [(10, PRESENCE_INTERVAL), (5_000, Duration::from_millis(2_500))] {
            let mut quiet = Quiet::new(subscribers);
            let told = [4, 9, 2].map(|seconds| Instant::now() + Duration::from_secs(seconds));
            told.iter().for_each(|at| quiet.told(*at));
            assert!(told.iter().all(|at| quiet.until() > *at + interval));
        }
    }
}
