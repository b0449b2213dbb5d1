//! `bimip bench neighbours`: how a device that does not read, and bursts of media metadata, affect others.

use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;

use super::backlog::{refusal, refused, talk};
use super::bounds;
use super::connection::{Device, Reader, Target, Writer, media, text};
use super::process::SubjectFlags;
use super::report::{histogram, percentiles, record};
use crate::cli::{Failure, say};
use crate::wire::proto::PingPong;
use crate::wire::{Eid, Lane, Payload, encode_frame, envelope};

/// Text size of the writer to the device that does not read: large enough to fill all buffers on the way.
const FLOOD_TEXT_BYTES: usize = 8 * 1024;
/// Media messages sent at a time.
const ALBUM: usize = 100;
/// Pause between two albums, for a person in a hurry.
const ALBUM_EVERY: Duration = Duration::from_millis(500);

/// How a device that does not read, and bursts of media messages, affect others
#[derive(clap::Args)]
pub(super) struct Args {
    /// Seconds for each measurement
    #[arg(long = "for", default_value_t = 5, value_name = "SECONDS", value_parser = bounds::seconds())]
    seconds: u64,
    #[command(flatten)]
    subject: SubjectFlags,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let subject = self.subject.find()?;
        let target = Target::new(&subject)?;
        let time = Duration::from_secs(self.seconds);
        let run = crate::clock::Now::system().unix_ms;
        let pair =
            (target.device(&format!("one-{run}"), true).await?, target.device(&format!("other-{run}"), true).await?);
        let (pair, quiet) = talk(pair, time).await?;
        say(&format!("others alone                    {}", percentiles(&quiet)))?;

        // The baseline is the same flood to a device that reads; without it, the comparison would show the cost of the
        // writing.
        let reads = target.device(&format!("reads-{run}"), true).await?;
        let to = reads.eid.clone();
        let reading = tokio::spawn(read_all(reads));
        let writer = target.device(&format!("writer-{run}"), true).await?;
        let (mut writer, pair) = tokio::try_join!(flood(writer, &to, time), talk(pair, time))?;
        say(&format!("beside a device that reads      {}", percentiles(&pair.1)))?;
        reading.abort();

        let stuck = target.device(&format!("stuck-{run}"), true).await?;
        let to = stuck.eid.clone();
        let before = subject.usage();
        let (written, pair) = tokio::try_join!(flood(writer, &to, time), talk(pair.0, time))?;
        writer = written;
        let after = subject.usage();
        say(&format!("beside one that does not        {}", percentiles(&pair.1)))?;
        if let Some((before, after)) = before.zip(after) {
            let grown = after.resident_bytes.saturating_sub(before.resident_bytes) as f64 / 1024.0 / 1024.0;
            say(&format!("the server grew by {grown:.1} MiB meanwhile (store caches included)"))?;
        }
        drop(stuck);

        let pings = |device: Device| ping(device, time);
        let (mut device, alone) = pings(target.device(&format!("pings-{run}"), true).await?).await?;
        say(&format!("pings alone                     {}", percentiles(&alone)))?;
        // The media messages' VersionUpdates come on this device's chat lane; the server would stop reading if they
        // were not read.
        let mut updates = tokio::spawn(read_lane(device.chat.take()));
        let (mut lane, mut answers) = device.open(Lane::Media).await?;
        let to = Eid::parse(&format!("album-{run}@localhost"))?;
        // First albums with pauses, as a phone sends them; then as fast as the server accepts them.
        let (mut device, mut pair) = (device, pair.0);
        for (name, pause) in [("albums", ALBUM_EVERY), ("flat out", Duration::ZERO)] {
            let from = device.eid.clone();
            let sending = async {
                tokio::select! {
                    sent = albums(&mut lane, &from, &to, pause, time) => sent,
                    ended = &mut updates => ended?.map(|()| 0),
                    refused = refusal(&mut answers) => Err(refused),
                }
            };
            let (sent, pinged, talked) = tokio::try_join!(sending, pings(device), talk(pair, time))?;
            say(&format!("media, {name}: {:.0} a second", sent as f64 / self.seconds as f64))?;
            say(&format!("  its sender's pings            {}", percentiles(&pinged.1)))?;
            say(&format!("  others' chat                  {}", percentiles(&talked.1)))?;
            (device, pair) = (pinged.0, talked.0);
        }
        updates.abort();
        drop(writer);
        Ok(())
    }
}

/// Sends an album every `pause`; returns the number of media messages.
async fn albums(lane: &mut Writer, from: &Eid, to: &Eid, pause: Duration, time: Duration) -> anyhow::Result<u64> {
    let run = crate::clock::Now::system().unix_ms;
    let until = Instant::now() + time;
    let mut n = 0u64;
    while Instant::now() < until {
        for _ in 0..ALBUM {
            n += 1;
            lane.queue(media(from, to, &format!("{run}-{n}")));
        }
        lane.flush().await?;
        tokio::time::sleep(pause).await;
    }
    Ok(n)
}

/// Sends long texts to a user, each as soon as the one before is accepted.
async fn flood(mut writer: Device, to: &Eid, time: Duration) -> anyhow::Result<Device> {
    let from = writer.eid.clone();
    let run = crate::clock::Now::system().unix_ms;
    let (lane, answers) = writer.chat.as_mut().context("the chat lane")?;
    let content = "x".repeat(FLOOD_TEXT_BYTES);
    let (until, mut n) = (Instant::now() + time, 0u64);
    while Instant::now() < until {
        n += 1;
        lane.send(text(&from, to, &format!("{run}-{n}"), &content)).await?;
        loop {
            match answers.next().await?.payload {
                Some(Payload::VersionUpdate(_)) => break,
                Some(Payload::ErrorMessage(error)) => return Err(refused(&error)),
                _ => {}
            }
        }
    }
    Ok(writer)
}

async fn read_all(mut device: Device) -> anyhow::Result<()> {
    read_lane(device.chat.take()).await
}

async fn read_lane(lane: Option<(Writer, Reader)>) -> anyhow::Result<()> {
    let (_open, mut frames) = lane.context("the lane")?;
    Err(refusal(&mut frames).await)
}

/// Pings ten times a second and records the round trips.
async fn ping(mut device: Device, time: Duration) -> anyhow::Result<(Device, Histogram<u64>)> {
    let mut latencies = histogram();
    let (until, mut tick) = (Instant::now() + time, tokio::time::interval(Duration::from_millis(100)));
    while Instant::now() < until {
        tick.tick().await;
        let ping =
            PingPong { r#type: 1, status: 1, request_time: crate::clock::Now::system().unix_ms, ..PingPong::default() };
        let began = Instant::now();
        device.control.0.send(encode_frame(&envelope(Payload::PingpongMessage(ping)))).await?;
        while !matches!(device.control.1.next().await?.payload, Some(Payload::PingpongMessage(pong)) if pong.r#type == 2)
        {
        }
        record(&mut latencies, began.elapsed());
    }
    Ok((device, latencies))
}
