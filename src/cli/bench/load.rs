//! `bimip bench load`: pairs of devices, of which one sends texts to the other, at a given rate or as fast as it goes.
//!
//! With a rate, latency counts from the time at which a message was due, whether or not the generator was late (no
//! coordinated omission). Every message is checked to arrive once and in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::connection::{Device, Target, write};
use super::process::{SubjectFlags, Usage};
use super::report::{histogram, json, percentiles, record};
use crate::cli::{Failure, say};
use crate::wire::proto::{AcknowledgmentRequest, VersionUpdate, chat_message};
use crate::wire::{Eid, Payload, encode_frame, envelope};

/// Frames gathered before they are written.
const BATCH_MAX: usize = 64;
/// How long the last messages may take once sending has stopped.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);

/// Texts between pairs of devices: rate, latency, CPU
#[derive(clap::Args)]
pub(super) struct Args {
    /// Pairs of devices; one of each sends
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// Messages a second over all pairs; 0: as fast as it goes, with --in-flight
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Messages of a pair on their way at once, where there is no rate
    #[arg(long, default_value_t = 16)]
    in_flight: usize,
    /// Bytes of text
    #[arg(long, default_value_t = 150)]
    size: usize,
    /// The recipient acknowledges each, and a message counts once its sender has the receipt
    #[arg(long)]
    receipts: bool,
    /// The senders answer each VersionUpdate instead of pipelining
    #[arg(long)]
    answering: bool,
    /// Seconds to measure
    #[arg(long = "for", default_value_t = 10, value_name = "SECONDS")]
    seconds: u64,
    /// Seconds before that
    #[arg(long, default_value_t = 2, value_name = "SECONDS")]
    warm_up: u64,
    #[command(flatten)]
    subject: SubjectFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What all pairs share.
struct Plan {
    start: Instant,
    measure_from: Instant,
    until: Instant,
    /// Between two messages of one pair; `None`: as fast as it goes.
    every: Option<Duration>,
    in_flight: usize,
    size: usize,
    receipts: bool,
    answering: bool,
    delivered: AtomicU64,
}

/// One pair's figures.
struct Tally {
    sent: u64,
    accepted: Histogram<u64>,
    delivered: Histogram<u64>,
    receipted: Histogram<u64>,
}

/// When each message of a pair was due; the index is in its text.
struct Log {
    due: std::sync::Mutex<Vec<Instant>>,
    places: Semaphore,
}

impl Log {
    fn due(&self, index: usize) -> anyhow::Result<Instant> {
        let due = self.due.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        due.get(index).copied().context("a message that was never sent")
    }
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let subject = self.subject.find()?;
        let target = Target::new(subject.server, &subject.data_dir)?;
        // A run against a server that has seen others must not meet their messages.
        let run = crate::clock::Now::system().unix_ms;
        let mut pairs = Vec::with_capacity(self.pairs);
        for n in 0..self.pairs {
            let sender = target.device(&format!("sender-{run}-{n}"), !self.answering).await?;
            let receiver = target.device(&format!("receiver-{run}-{n}"), true).await?;
            pairs.push((sender, receiver));
        }
        let start = Instant::now();
        let measure_from = start + Duration::from_secs(self.warm_up);
        let rate = self.rate as f64 / self.pairs as f64;
        let plan = Arc::new(Plan {
            start,
            measure_from,
            until: measure_from + Duration::from_secs(self.seconds),
            every: (self.rate > 0).then(|| Duration::from_secs_f64(1.0 / rate)),
            in_flight: self.in_flight,
            size: self.size,
            receipts: self.receipts,
            answering: self.answering,
            delivered: AtomicU64::new(0),
        });
        let mut running = JoinSet::new();
        for (n, (sender, receiver)) in pairs.into_iter().enumerate() {
            // Pairs are spread over the interval, or all would send at once.
            let offset = plan.every.map_or(Duration::ZERO, |every| every.mul_f64(n as f64 / self.pairs as f64));
            running.spawn(pair(plan.clone(), sender, receiver, offset));
        }
        let usage = || subject.pid.and_then(Usage::of);
        tokio::time::sleep_until(plan.measure_from.into()).await;
        let (before, count_before) = (usage(), plan.delivered.load(Ordering::Relaxed));
        tokio::time::sleep_until(plan.until.into()).await;
        let (after, count_after) = (usage(), plan.delivered.load(Ordering::Relaxed));
        let mut total = Tally { sent: 0, accepted: histogram(), delivered: histogram(), receipted: histogram() };
        while let Some(tally) = running.join_next().await {
            let tally = tally??;
            total.sent += tally.sent;
            total.accepted.add(&tally.accepted)?;
            total.delivered.add(&tally.delivered)?;
            total.receipted.add(&tally.receipted)?;
        }
        let measured = count_after - count_before;
        let cpu = before.zip(after).map(|(before, after)| after.cpu_seconds - before.cpu_seconds);
        self.report(measured, cpu, after, &total)?;
        Ok(())
    }

    fn report(&self, measured: u64, cpu: Option<f64>, usage: Option<Usage>, total: &Tally) -> anyhow::Result<()> {
        let per_second = measured as f64 / self.seconds as f64;
        let cpu_us = cpu.map(|seconds| seconds * 1e6 / measured.max(1) as f64);
        if self.json {
            let figures = serde_json::json!({
                "pairs": self.pairs, "rate": self.rate, "in_flight": self.in_flight, "size": self.size,
                "receipts": self.receipts, "answering": self.answering, "seconds": self.seconds,
                "messages": measured, "messages_per_second": per_second, "sent_in_all": total.sent,
                "server_cpu_us_per_message": cpu_us, "server_resident_bytes": usage.map(|usage| usage.resident_bytes),
                "accepted": json(&total.accepted), "delivered": json(&total.delivered), "receipted": json(&total.receipted),
            });
            return Ok(say(&figures.to_string())?);
        }
        let done = if self.receipts { "delivered and receipted" } else { "delivered" };
        say(&format!("{} pairs: {per_second:.0} durable messages a second {done}", self.pairs))?;
        say(&format!("accepted   {}", percentiles(&total.accepted)))?;
        say(&format!("delivered  {}", percentiles(&total.delivered)))?;
        if self.receipts {
            say(&format!("receipted  {}", percentiles(&total.receipted)))?;
        }
        if let Some(cpu_us) = cpu_us {
            say(&format!("server     {cpu_us:.1} µs of CPU a message"))?;
        }
        say(&format!("all {} messages arrived once and in order", total.sent))?;
        Ok(())
    }
}

async fn pair(plan: Arc<Plan>, mut sender: Device, mut receiver: Device, offset: Duration) -> anyhow::Result<Tally> {
    let log = Arc::new(Log { due: Default::default(), places: Semaphore::new(plan.in_flight) });
    let (mut sending, mut answers) = sender.chat.take().context("the chat lane")?;
    let (mut acknowledging, mut messages) = receiver.chat.take().context("the chat lane")?;
    let (from, to) = (sender.eid.clone(), receiver.eid.clone());
    let connections = (sender.connection.clone(), receiver.connection.clone());
    let pings = [tokio::spawn(sender.answer_pings()), tokio::spawn(receiver.answer_pings())];

    // VersionUpdate answers share the lane with the texts.
    let (updates, mut to_answer) = mpsc::channel::<Bytes>(1024);
    // How many were sent, once that is certain.
    let (sent_all, mut total) = watch::channel(None);
    let writer = tokio::spawn({
        let (plan, log) = (plan.clone(), log.clone());
        let (from, to) = (from.clone(), to.clone());
        async move {
            let mut frames = Vec::new();
            let mut sent = 0;
            loop {
                let due =
                    plan.every.map_or_else(Instant::now, |every| plan.start + offset + every.mul_f64(sent as f64));
                if due >= plan.until || plan.every.is_none() && Instant::now() >= plan.until {
                    break;
                }
                tokio::select! {
                    biased;
                    Some(answer) = to_answer.recv() => frames.push(answer),
                    permit = log.places.acquire(), if plan.every.is_none() => {
                        permit?.forget();
                        frames.push(text(&plan, &log, &from, &to, sent, Instant::now()));
                        sent += 1;
                        // Whatever else has a place goes with it.
                        while frames.len() < BATCH_MAX && let Ok(permit) = log.places.try_acquire() {
                            permit.forget();
                            frames.push(text(&plan, &log, &from, &to, sent, Instant::now()));
                            sent += 1;
                        }
                    }
                    () = tokio::time::sleep_until(due.into()), if plan.every.is_some() => {
                        frames.push(text(&plan, &log, &from, &to, sent, due));
                        sent += 1;
                    }
                }
                while let Ok(answer) = to_answer.try_recv() {
                    frames.push(answer);
                }
                write(&mut sending, &mut frames).await?;
            }
            let _ = sent_all.send(Some(sent));
            // The last answers.
            while let Some(answer) = to_answer.recv().await {
                frames.push(answer);
                write(&mut sending, &mut frames).await?;
            }
            drop(sending);
            anyhow::Ok(sent)
        }
    });
    let receiving = tokio::spawn({
        let (plan, log, from, to) = (plan.clone(), log.clone(), from.clone(), to.clone());
        let mut total = total.clone();
        async move {
            let (mut delivered, mut next, mut frames) = (histogram(), 0usize, Vec::new());
            while *total.borrow() != Some(next) {
                let mut message = tokio::select! {
                    message = messages.next() => Some(message?),
                    _ = total.changed() => continue,
                    () = tokio::time::sleep_until((plan.until + SETTLE_WITHIN).into()) => bail!("messages are missing after {next}"),
                };
                while let Some(scheme) = message.take() {
                    if let Some(Payload::ChatMessage(chat)) = scheme.payload {
                        let Some(chat_message::Payload::Text(text)) = &chat.payload else { bail!("not a text") };
                        let index: usize = text.split(' ').next().unwrap_or("").parse()?;
                        if index != next || chat.version != next as i64 + 1 {
                            bail!("message {index}, version {} came where {next} was due", chat.version);
                        }
                        next += 1;
                        let due = log.due(index)?;
                        if due >= plan.measure_from {
                            record(&mut delivered, due.elapsed());
                        }
                        if plan.receipts {
                            frames.push(receipt(&to, &from, chat.message_id));
                        } else {
                            plan.delivered.fetch_add(1, Ordering::Relaxed);
                            log.places.add_permits(1);
                        }
                    }
                    message = messages.ready()?;
                }
                write(&mut acknowledging, &mut frames).await?;
            }
            anyhow::Ok(delivered)
        }
    });

    let (mut accepted, mut receipted) = (histogram(), histogram());
    let (mut updates_seen, mut receipts_seen) = (0, 0);
    let complete = |updates: usize, receipts: usize, total: Option<usize>| {
        total.is_some_and(|total| updates == total && (!plan.receipts || receipts == total))
    };
    let mut updates = Some(updates);
    while !complete(updates_seen, receipts_seen, *total.borrow()) {
        let scheme = tokio::select! {
            scheme = answers.next() => scheme?,
            _ = total.changed() => continue,
            () = tokio::time::sleep_until((plan.until + SETTLE_WITHIN).into()) => bail!("answers are missing"),
        };
        match scheme.payload {
            Some(Payload::VersionUpdate(update)) => {
                let due = log.due(update.message_id_local.parse()?)?;
                updates_seen += 1;
                if due >= plan.measure_from {
                    record(&mut accepted, due.elapsed());
                }
                if plan.answering
                    && let Some(updates) = &updates
                {
                    updates.send(answer(update)).await?;
                }
            }
            Some(Payload::AcknowledgmentResponse(_)) => {
                let due = log.due(receipts_seen)?;
                receipts_seen += 1;
                if due >= plan.measure_from {
                    record(&mut receipted, due.elapsed());
                }
                plan.delivered.fetch_add(1, Ordering::Relaxed);
                log.places.add_permits(1);
            }
            Some(Payload::ErrorMessage(error)) => bail!("the server refused: {} {}", error.code, error.message),
            _ => {}
        }
    }
    drop(updates.take());
    let sent = writer.await??;
    let delivered = receiving.await??;
    pings.iter().for_each(|ping| ping.abort());
    connections.0.close(0u8.into(), b"done");
    connections.1.close(0u8.into(), b"done");
    Ok(Tally { sent: sent as u64, accepted, delivered, receipted })
}

fn text(plan: &Plan, log: &Log, from: &Eid, to: &Eid, index: usize, due: Instant) -> Bytes {
    let mut content = format!("{index} ");
    content.extend(std::iter::repeat_n('x', plan.size.saturating_sub(content.len())));
    if let Ok(mut log) = log.due.lock() {
        log.push(due);
    }
    super::connection::text(from, to, &index.to_string(), &content)
}

fn receipt(reader: &Eid, sender: &Eid, message_id: String) -> Bytes {
    let receipt = AcknowledgmentRequest {
        from: Some(reader.identity()),
        to: Some(sender.identity()),
        message_id,
        status: 2,
        timestamp: crate::clock::Now::system().unix_ms,
        ..AcknowledgmentRequest::default()
    };
    encode_frame(&envelope(Payload::AcknowledgmentRequest(receipt)))
}

fn answer(update: VersionUpdate) -> Bytes {
    encode_frame(&envelope(Payload::VersionUpdate(VersionUpdate { r#type: 2, status: 2, ..update })))
}
