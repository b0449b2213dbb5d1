//! The job of all subjects: texts in one direction and receipts, if asked for, in the other, checked to arrive once and in
//! order.
//!
//! With a rate, latency counts from the time at which a text was due until its sender has the receipt; without receipts,
//! until its recipient has the text.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use hdrhistogram::Histogram;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::format::Format;
use super::relay::Duplex;
use super::subject::{ALPN, Kind, Subject};
use crate::cli::bench::alarm::Alarm;
use crate::cli::bench::connection::endpoint;
use crate::cli::bench::load::{run_name, user_name};
use crate::cli::bench::process::Usage;
use crate::cli::bench::report::{histogram, record};

/// Timeout for the last receipts once sending has stopped.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) pairs: usize,
    /// Texts a second over all pairs; 0 for as fast as possible.
    pub(super) rate: u64,
    pub(super) in_flight: usize,
    /// Whether recipients answer with receipts, and latency counts until then.
    pub(super) receipts: bool,
    pub(super) size: usize,
    pub(super) warm_up: Duration,
    pub(super) measured: Duration,
}

#[derive(Clone, Copy)]
pub(super) struct Figures {
    pub(super) per_second: f64,
    /// The subject's CPU time for one text and its receipt.
    pub(super) cpu_us: f64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
}

impl Figures {
    pub(super) fn json(&self) -> serde_json::Value {
        let Figures { per_second, cpu_us, p50_us, p99_us } = self;
        serde_json::json!({ "per_second": per_second, "cpu_us": cpu_us, "p50_us": p50_us, "p99_us": p99_us })
    }
}

/// One end of a pair, after the greeting.
struct End {
    stream: Box<dyn Duplex>,
    format: Format,
    input: BytesMut,
    /// Keeps a QUIC connection open.
    _connection: Option<quinn::Connection>,
}

struct Clock {
    measure_from: Instant,
    until: Instant,
    done: AtomicU64,
}

/// What both ends of a pair share.
struct Pair {
    clock: Arc<Clock>,
    /// When its first text is due, and how long after each the next one; `None` if it sends as fast as possible.
    schedule: Option<(Instant, Duration)>,
    /// Texts that have come to the recipient.
    arrived: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
}

impl Pair {
    fn new(plan: &Plan, number: usize, start: Instant, clock: Arc<Clock>) -> Pair {
        let every = (plan.rate > 0).then(|| Duration::from_secs_f64(plan.pairs as f64 / plan.rate as f64));
        // Spread the pairs over the interval, so that they do not send at the same time.
        let schedule = every.map(|every| (start + every.mul_f64(number as f64 / plan.pairs as f64), every));
        Pair { clock, schedule, arrived: AtomicU64::new(0), latencies: Mutex::new(histogram()) }
    }

    fn due(&self, index: u64) -> Option<Instant> {
        self.schedule.map(|(first, every)| first + every.mul_f64(index as f64))
    }

    /// Counts a text as done that was due at this time.
    fn count_done(&self, due: Instant) {
        self.clock.done.fetch_add(1, Ordering::Relaxed);
        if due >= self.clock.measure_from {
            record(&mut self.latencies(), due.elapsed());
        }
    }

    fn latencies(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects all pairs and does the job.
pub(super) async fn run(subject: &Subject, plan: Plan) -> anyhow::Result<Figures> {
    let dial = Dial::new(subject)?;
    let mut ends = Vec::with_capacity(plan.pairs);
    let run = run_name();
    for pair in 0..plan.pairs {
        // As `bimip bench load` names them: names are a large part of a frame.
        let [sender, receiver] = [2 * pair, 2 * pair + 1].map(|user| user_name(&run, user));
        let receiving = dial.end(pair as u32, (&receiver, &sender), plan.size).await?;
        ends.push((dial.end(pair as u32, (&sender, &receiver), plan.size).await?, receiving));
    }
    let start = Instant::now();
    let (measure_from, until) = (start + plan.warm_up, start + plan.warm_up + plan.measured);
    let clock = Arc::new(Clock { measure_from, until, done: AtomicU64::new(0) });
    let (mut pairs, mut senders, mut receivers) = (Vec::with_capacity(plan.pairs), JoinSet::new(), JoinSet::new());
    for (number, (sender, receiver)) in ends.into_iter().enumerate() {
        let pair = Arc::new(Pair::new(&plan, number, start, clock.clone()));
        senders.spawn(send(sender, plan, pair.clone()));
        receivers.spawn(receive(receiver, plan, pair.clone()));
        pairs.push(pair);
    }
    let look = || (Usage::of(subject.pid()).unwrap_or_default().cpu_seconds, clock.done.load(Ordering::Relaxed));
    tokio::time::sleep_until(measure_from.into()).await;
    let (cpu_before, done_before) = look();
    tokio::time::sleep_until(until.into()).await;
    let (cpu, done) = look();
    let mut done_with = Vec::new();
    while !senders.is_empty() {
        tokio::select! {
            Some(sent) = senders.join_next() => {
                // Keep the sender connected: without it, its recipient would be disconnected, which is an error before
                // the end.
                done_with.push(sent??);
            }
            Some(ended) = receivers.join_next() => ended??,
        }
    }
    let done = (done - done_before) as f64;
    let mut latencies = histogram();
    for pair in pairs {
        latencies.add(&*pair.latencies())?;
    }
    Ok(Figures {
        per_second: done / plan.measured.as_secs_f64(),
        cpu_us: (cpu - cpu_before) * 1e6 / done.max(1.0),
        p50_us: latencies.value_at_quantile(0.5),
        p99_us: latencies.value_at_quantile(0.99),
    })
}

async fn send(mut end: End, plan: Plan, pair: Arc<Pair>) -> anyhow::Result<End> {
    let until = pair.clock.until;
    let (mut due, mut receipts, mut out) = (Vec::new(), 0, BytesMut::new());
    let mut alarm = if pair.schedule.is_some() { Alarm::fine(until)? } else { Alarm::coarse(until) };
    loop {
        let now = Instant::now();
        let over = now >= until;
        let next = |index: usize, receipts: usize| match pair.due(index as u64) {
            // What was due is sent, however late.
            Some(at) => (at <= now && at < until).then_some(at),
            None if over => None,
            None => (index - receipts < plan.in_flight).then_some(now),
        };
        while let Some(at) = next(due.len(), receipts) {
            end.format.text(&mut out, due.len() as u64);
            due.push(at);
        }
        end.stream.write_all_buf(&mut out).await?;
        end.stream.flush().await?;
        if over && plan.receipts && receipts == due.len() {
            return Ok(end);
        }
        if over && !plan.receipts {
            while pair.arrived.load(Ordering::Relaxed) < due.len() as u64 {
                ensure!(until.elapsed() < SETTLE_WITHIN, "texts are missing after {:?}", pair.arrived);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            return Ok(end);
        }
        let wake = match pair.due(due.len() as u64) {
            _ if over => until + SETTLE_WITHIN,
            Some(at) => at.min(until),
            None => until,
        };
        alarm.set(wake)?;
        tokio::select! {
            read = end.stream.read_buf(&mut end.input) => ensure!(read? > 0, "the sender was disconnected"),
            rung = alarm.rung() => {
                rung?;
                if over {
                    bail!("receipts are missing after {receipts} of {}", due.len());
                }
            }
        }
        while let Some(index) = end.format.next(&mut end.input, &mut out)? {
            ensure!(index == receipts as u64, "receipt {index} came where {receipts} was due");
            let Some(&at) = due.get(receipts) else { bail!("a receipt of what was never sent") };
            receipts += 1;
            pair.count_done(at);
        }
    }
}

/// Takes the texts, and answers each with a receipt if receipts are asked for, until the run ends.
async fn receive(mut end: End, plan: Plan, pair: Arc<Pair>) -> anyhow::Result<()> {
    let (mut out, mut next) = (BytesMut::new(), 0);
    loop {
        ensure!(end.stream.read_buf(&mut end.input).await? > 0, "a recipient was disconnected");
        while let Some(index) = end.format.next(&mut end.input, &mut out)? {
            ensure!(index == next, "text {index} came where {next} was due");
            next += 1;
            if plan.receipts {
                end.format.receipt(&mut out, index);
            } else {
                pair.count_done(pair.due(index).context("texts alone have no rate")?);
            }
        }
        pair.arrived.store(next, Ordering::Relaxed);
        end.stream.write_all_buf(&mut out).await?;
        end.stream.flush().await?;
    }
}

/// Connects to the subject.
struct Dial<'a> {
    subject: &'a Subject,
    tls: Arc<rustls::ClientConfig>,
    endpoint: quinn::Endpoint,
}

impl<'a> Dial<'a> {
    fn new(subject: &'a Subject) -> anyhow::Result<Dial<'a>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(subject.certificate.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        if subject.kind != Kind::Mosquitto {
            tls.alpn_protocols = vec![ALPN.to_vec()];
        }
        let mut endpoint = endpoint((std::net::Ipv4Addr::UNSPECIFIED, 0).into(), None)?;
        let quic = QuicClientConfig::try_from(tls.clone())?;
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(quic)));
        Ok(Dial { subject, tls: Arc::new(tls), endpoint })
    }

    /// Connects the end `name` of a pair, which talks to `other` in texts of `size` bytes and their receipts.
    async fn end(&self, pair: u32, (name, other): (&str, &str), size: usize) -> anyhow::Result<End> {
        let quic = matches!(self.subject.kind, Kind::QuicRelay | Kind::SyncedRelay | Kind::AnsweringRelay);
        let (stream, connection): (Box<dyn Duplex>, _) = if quic {
            let connection = self.endpoint.connect(self.subject.address, "localhost")?.await?;
            let (send, recv) = connection.open_bi().await?;
            (Box::new(tokio::io::join(recv, send)), Some(connection))
        } else {
            let tcp = tokio::net::TcpStream::connect(self.subject.address).await?;
            tcp.set_nodelay(true)?;
            let connector = tokio_rustls::TlsConnector::from(self.tls.clone());
            (Box::new(connector.connect("localhost".try_into()?, tcp).await?), None)
        };
        let format = match self.subject.kind {
            Kind::Mosquitto => Format::mqtt(other, size),
            Kind::AnsweringRelay => Format::bimip(name, other, size)?,
            _ => Format::bare(name, other, size)?,
        };
        let mut end = End { stream, format, input: BytesMut::new(), _connection: connection };
        end.stream.write_all(&end.format.greeting(pair, name)).await?;
        end.stream.flush().await?;
        while !end.format.greeted(&mut end.input)? {
            ensure!(end.stream.read_buf(&mut end.input).await? > 0, "the broker closed the connection");
        }
        Ok(end)
    }
}
