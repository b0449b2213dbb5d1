//! `bimip bench backlog`: a device returns to messages that waited for it, while others keep talking.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use hdrhistogram::Histogram;
use tokio::time::timeout;

use super::bounds;
use super::connection::{Device, Reader, Target, text};
use super::process::SubjectFlags;
use super::report::{histogram, percentiles, record};
use crate::cli::{Failure, say};
use crate::wire::proto::ErrorMessage;
use crate::wire::{Eid, MessageScheme, Payload};

/// Texts that the sender has in flight while the backlog is made.
const IN_FLIGHT: usize = 256;
/// How long others are measured alone first.
const QUIET: Duration = Duration::from_secs(2);
/// A text that has not arrived by then is lost.
const ARRIVES_WITHIN: Duration = Duration::from_secs(30);

/// A device returns to a backlog: how fast it gets the messages, and what others notice
#[derive(clap::Args)]
pub(super) struct Args {
    /// Messages in the backlog
    #[arg(long, default_value_t = 10_000, value_parser = bounds::count())]
    messages: usize,
    /// How often the device returns to the whole backlog; others are measured for as long as that takes
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    returns: u32,
    /// Bytes of text
    #[arg(long, default_value_t = 150, value_parser = bounds::text_bytes())]
    size: usize,
    #[command(flatten)]
    subject: SubjectFlags,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let subject = self.subject.find()?;
        let target = Target::new(&subject)?;
        let run = crate::clock::Now::system().unix_ms;
        let receiver = format!("returning-{run}");
        let to = Eid::parse(&format!("{receiver}@localhost"))?;
        let mut sender = target.device(&format!("writer-{run}"), true).await?;

        // The backlog's rate is compared with the live rate of the same pair in the same run.
        let mut live = target.device(&receiver, true).await?;
        let began = Instant::now();
        tokio::try_join!(send(&mut sender, &to, self.messages, self.size), receive(&mut live, 0, self.messages))?;
        let live_rate = self.messages as f64 / began.elapsed().as_secs_f64();
        live.connection.close();
        drop(live);

        send(&mut sender, &to, self.messages, self.size).await?;
        let bystanders =
            (target.device(&format!("one-{run}"), true).await?, target.device(&format!("other-{run}"), true).await?);
        let (bystanders, quiet) = talk(bystanders, QUIET).await?;

        let returned = async {
            let began = Instant::now();
            for _ in 0..self.returns {
                // The stored cursor is still at the log's start, so all messages are delivered, those received live
                // first.
                let mut device = target.device(&receiver, true).await?;
                receive(&mut device, 0, 2 * self.messages).await?;
                device.connection.close();
            }
            anyhow::Ok(began.elapsed())
        };
        let (_, busy, took) = talk_during(bystanders, returned).await?;
        let rate = f64::from(self.returns) * 2.0 * self.messages as f64 / took.as_secs_f64();
        say(&format!("live      {live_rate:.0} messages a second, one pair"))?;
        say(&format!(
            "backlog   {rate:.0} messages a second in {} returns, sign-ins included: {:.0} % of live",
            self.returns,
            rate / live_rate * 100.0
        ))?;
        say(&format!("others before  {}  of {}", percentiles(&quiet), quiet.len()))?;
        say(&format!("others during  {}  of {}", percentiles(&busy), busy.len()))?;
        Ok(())
    }
}

/// Sends texts and waits until the server has accepted all of them.
async fn send(sender: &mut Device, to: &Eid, count: usize, size: usize) -> anyhow::Result<()> {
    let from = sender.eid.clone();
    let run = crate::clock::Now::system().unix_ms;
    let (lane, answers) = sender.chat.as_mut().context("the chat lane")?;
    let (mut sent, mut accepted) = (0, 0);
    while accepted < count {
        while sent < count && sent - accepted < IN_FLIGHT {
            lane.queue(text(&from, to, &format!("{run}-{sent}"), &"x".repeat(size)));
            sent += 1;
        }
        lane.flush().await?;
        let mut answer = Some(answers.next().await?);
        while let Some(scheme) = answer.take() {
            match scheme.payload {
                Some(Payload::VersionUpdate(_)) => accepted += 1,
                Some(Payload::ErrorMessage(error)) => return Err(refused(&error)),
                _ => {}
            }
            answer = answers.ready()?;
        }
    }
    Ok(())
}

/// Receives messages and checks that their versions have no gap.
async fn receive(device: &mut Device, after: i64, count: usize) -> anyhow::Result<()> {
    let (_, messages) = device.chat.as_mut().context("the chat lane")?;
    let mut version = after;
    while version < after + count as i64 {
        if let Some(Payload::ChatMessage(chat)) = messages.next().await?.payload {
            version += 1;
            if chat.version != version {
                bail!("version {} came where {version} was due", chat.version);
            }
        }
    }
    Ok(())
}

/// Two devices exchange one text at a time for the given time; returns the latencies.
pub(super) async fn talk(pair: (Device, Device), time: Duration) -> anyhow::Result<((Device, Device), Histogram<u64>)> {
    let (pair, latencies, ()) = talk_during(pair, async {
        tokio::time::sleep(time).await;
        Ok(())
    })
    .await?;
    Ok((pair, latencies))
}

/// As [`talk`], for as long as other work takes; returns its result, too.
async fn talk_during<T>(
    pair: (Device, Device),
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<((Device, Device), Histogram<u64>, T)> {
    let done = AtomicBool::new(false);
    let work = async {
        let result = work.await;
        done.store(true, Ordering::Relaxed);
        result
    };
    let ((pair, latencies), result) = tokio::try_join!(talk_until(pair, &done), work)?;
    Ok((pair, latencies, result))
}

async fn talk_until(
    (mut one, mut other): (Device, Device),
    done: &AtomicBool,
) -> anyhow::Result<((Device, Device), Histogram<u64>)> {
    let mut latencies = histogram();
    let run = crate::clock::Now::system().unix_ms;
    let mut n = 0u64;
    while !done.load(Ordering::Relaxed) {
        n += 1;
        let frame = text(&one.eid, &other.eid, &format!("{run}-{n}"), "one at a time");
        let began = Instant::now();
        let (writer, answers) = one.chat.as_mut().context("the chat lane")?;
        writer.send(frame).await?;
        let arriving = next_message(&mut other.chat.as_mut().context("the chat lane")?.1);
        let arrived = timeout(ARRIVES_WITHIN, async {
            tokio::select! {
                biased;
                arrived = arriving => arrived,
                refused = refusal(answers) => Err(refused),
            }
        });
        arrived.await.context("a text neither arrived nor was refused")??;
        record(&mut latencies, began.elapsed());
        // Read the answers for accepted messages, so that they do not pile up.
        while answers.ready()?.is_some() {}
        std::mem::swap(&mut one, &mut other);
    }
    Ok(((one, other), latencies))
}

async fn next_message(reader: &mut Reader) -> anyhow::Result<()> {
    while !matches!(reader.next().await?.payload, Some(Payload::ChatMessage(_))) {}
    Ok(())
}

/// Reads a lane until something is refused on it, and says why; or why it cannot be read any more.
pub(super) async fn refusal(answers: &mut Reader) -> anyhow::Error {
    loop {
        match answers.next().await {
            Ok(MessageScheme { payload: Some(Payload::ErrorMessage(error)), .. }) => return refused(&error),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

/// A measurement of what is refused would be none.
pub(super) fn refused(error: &ErrorMessage) -> anyhow::Error {
    anyhow!("refused: {} {}", error.code, error.message)
}
