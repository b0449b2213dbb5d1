//! `bimip bench settings`: the effect of keep-alives, idle timeouts and windows on a phone, over the emulated network.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::time::timeout;

use super::pool;
use super::trial::{Carrier, Stage, connected, eid};
use crate::cli::{Failure, say};
use crate::client::{Content, Device, Event, Events};
use crate::config::QuicConfig;
use crate::link::{self, Counters, Path, Plan, Profile, Protocol, Way};

/// Measure keep-alives, idle timeouts and windows on an emulated mobile network
///
/// `keep-alive`: a phone is silent behind a NAT that forgets its mappings; then somebody writes to it. `tunnel`: the
/// same in a tunnel; afterwards the application is told of it or not. `knock`: the phone itself has something to send
/// in the tunnel. `window`: a backlog comes in, or an outbox goes out. Needs root or equivalent rights, as `compare`
/// does, and exits with 77 where no network can be made.
#[derive(clap::Args)]
pub(in crate::cli::bench) struct Args {
    /// Measurements to run
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',', default_values_t = What::ALL)]
    what: Vec<What>,
    /// Trials of each row, each with its own random seed
    #[arg(long, default_value_t = 3, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// How long the phone is silent behind the NAT
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(30..=3600))]
    silence: u64,
    /// Concurrent trials, where little happens; windows are measured one at a time
    #[arg(long, default_value_t = 12, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=64))]
    at_once: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    KeepAlive,
    Tunnel,
    Knock,
    Window,
}

/// Longer than any recovery after a tunnel takes.
const ARRIVES_WITHIN: Duration = Duration::from_secs(180);
/// How often the NAT checks whether the phone was silent long enough.
const NAT_LOOK: Duration = Duration::from_millis(50);
/// By how much the ends of tunnels differ from seed to seed.
const KNOCK_PHASE: Duration = Duration::from_millis(190);
/// Time after sign-in until all traffic that follows it has ended.
const SETTLED: Duration = Duration::from_secs(3);

/// One row of a table: a setting under a condition.
#[derive(Clone, Copy, Debug)]
enum Row {
    KeepAlive { every: Option<u64>, nat: u64 },
    Tunnel { idle: u64, length: u64, told: bool },
    Knock { length: u64 },
    Window { kib: u32, path: &'static str, up: bool },
}

/// The result of one trial of a row.
struct Found {
    /// Until the message had arrived, or the last of them.
    after: Duration,
    /// Sessions that the phone began meanwhile.
    sessions: usize,
    /// Packets in both directions while nothing was said; `bytes` are theirs.
    packets: u64,
    bytes: u64,
    /// How long nothing was said.
    quiet: Duration,
}

impl Args {
    pub(in crate::cli::bench) fn run(self) -> Result<(), Failure> {
        link::available()?;
        for what in &self.what {
            let rows = what.rows();
            let at_once = if *what == What::Window { 1 } else { self.at_once };
            let found = self.work(&rows, at_once)?;
            say(&what.table(&rows, &found))?;
        }
        Ok(())
    }

    /// Runs all trials and returns their results by row.
    fn work(&self, rows: &[Row], at_once: u8) -> anyhow::Result<Vec<Vec<Found>>> {
        let jobs = (1..=self.seeds).flat_map(|seed| (0..rows.len()).map(move |index| (index, seed)));
        let done = pool::run(jobs, at_once, pool::APART, |(index, seed)| {
            let trial = rows[*index].trial(*seed, Duration::from_secs(self.silence));
            trial.with_context(|| format!("{:?}, seed {seed}", rows[*index]))
        })?;
        let mut found: Vec<Vec<Found>> = rows.iter().map(|_| Vec::new()).collect();
        for ((index, _), trial) in done {
            found[index].push(trial);
        }
        Ok(found)
    }
}

impl What {
    const ALL: [What; 4] = [What::KeepAlive, What::Tunnel, What::Knock, What::Window];

    fn rows(self) -> Vec<Row> {
        let mut rows = Vec::new();
        match self {
            What::KeepAlive => {
                for nat in [20, 30] {
                    let every = [Some(10), Some(15), Some(20), Some(25), Some(30), None];
                    rows.extend(every.map(|every| Row::KeepAlive { every, nat }));
                }
            }
            What::Tunnel => {
                for told in [false, true] {
                    for length in [20, 45, 90] {
                        rows.extend([30, 60, 120].map(|idle| Row::Tunnel { idle, length, told }));
                    }
                }
            }
            What::Knock => rows.extend([1, 2, 3, 4, 6, 8, 10].map(|length| Row::Knock { length })),
            What::Window => {
                for up in [false, true] {
                    for path in ["lte", "3g"] {
                        rows.extend([16, 32, 64, 128, 256, 512].map(|kib| Row::Window { kib, path, up }));
                    }
                }
            }
        }
        rows
    }

    fn table(self, rows: &[Row], found: &[Vec<Found>]) -> String {
        let head = match self {
            What::KeepAlive => {
                "| NAT forgets after, s | keep-alive, s | message after, ms | sessions begun | packets an hour | KiB an hour |\n\
                 |--:|--:|--:|--:|--:|--:|\n"
            }
            What::Tunnel => {
                "| tunnel, s | idle time-out, s | told | message after, ms | sessions begun | packets in the dark |\n\
                 |--:|--:|---|--:|--:|--:|\n"
            }
            What::Knock => {
                "| tunnel, s | message after, ms | sessions begun | packets in the dark |\n|--:|--:|--:|--:|\n"
            }
            What::Window => "| way | path | window, KiB | all after, ms |\n|---|---|--:|--:|\n",
        };
        let mut table = head.to_owned();
        for (row, found) in rows.iter().zip(found) {
            let after = spread(found, |found| found.after.as_secs_f64() * 1000.0);
            let sessions = spread(found, |found| found.sessions as f64);
            let an_hour = |count: f64, found: &Found| count * 3600.0 / found.quiet.as_secs_f64().max(1.0);
            let line = match row {
                Row::KeepAlive { every, nat } => {
                    let every = every.map_or("none".to_owned(), |every| every.to_string());
                    let packets = spread(found, |found| an_hour(found.packets as f64, found));
                    let kib = spread(found, |found| an_hour(found.bytes as f64, found) / 1024.0);
                    format!("| {nat} | {every} | {after} | {sessions} | {packets} | {kib} |\n")
                }
                Row::Tunnel { idle, length, told } => {
                    let told = if *told { "yes" } else { "no" };
                    let packets = spread(found, |found| found.packets as f64);
                    format!("| {length} | {idle} | {told} | {after} | {sessions} | {packets} |\n")
                }
                Row::Knock { length } => {
                    let packets = spread(found, |found| found.packets as f64);
                    format!("| {length} | {after} | {sessions} | {packets} |\n")
                }
                Row::Window { kib, path, up } => {
                    format!("| {} | {path} | {kib} | {after} |\n", if *up { "up" } else { "down" })
                }
            };
            table.push_str(&line);
        }
        table
    }
}

/// The median and the range: `median (lowest–highest)`.
fn spread(found: &[Found], figure: impl Fn(&Found) -> f64) -> String {
    let mut figures: Vec<f64> = found.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (figures.first(), figures.last()) else { return "none".to_owned() };
    let median = figures[figures.len() / 2];
    if (high - low).abs() < 1.0 { format!("{median:.0}") } else { format!("{median:.0} ({low:.0}–{high:.0})") }
}

impl Row {
    fn trial(self, seed: u64, silence: Duration) -> anyhow::Result<Found> {
        match self {
            Row::KeepAlive { every, nat } => {
                keep_alive(every.map(Duration::from_secs), Duration::from_secs(nat), silence, seed)
            }
            Row::Tunnel { idle, length, told } => {
                tunnel(Duration::from_secs(idle), Duration::from_secs(length), told, seed)
            }
            Row::Knock { length } => knock(Duration::from_secs(length), seed),
            Row::Window { kib, path, up } => {
                let (profile, down, outbox) = match path {
                    "lte" => (Profile::LTE, 5_000, 1_000),
                    _ => (Profile::THIRD_GENERATION, 500, 100),
                };
                if up { going_out(profile, kib, outbox, seed) } else { coming_in(profile, kib, down, seed) }
            }
        }
    }
}

fn stage(profile: Profile, seed: u64, quic: QuicConfig) -> anyhow::Result<Stage> {
    Stage::build(Plan { wifi: profile, lte: profile, seed }, Carrier::Quic, quic)
}

fn text(number: usize, bytes: usize) -> Content {
    Content::Text(format!("{number:.<bytes$}"))
}

/// Waits until the device gets the text of this number; returns the number of sessions begun meanwhile.
async fn heard(events: &mut Events, number: usize) -> anyhow::Result<usize> {
    let mut sessions = 0;
    let hearing = async {
        loop {
            match events.next().await.context("the device has ended")? {
                Event::Connected(_) => sessions += 1,
                Event::Message(message) => {
                    let said = message.text().and_then(|text| text.split('.').next()?.parse::<usize>().ok());
                    if said == Some(number) {
                        return anyhow::Ok(());
                    }
                }
                _ => {}
            }
        }
    };
    timeout(ARRIVES_WITHIN, hearing).await.context("no message in time")??;
    Ok(sessions)
}

/// Waits until phone and peer are signed in and idle.
fn rest(stage: &Stage, phone: &Device, events: &mut Events, peer: &Device) -> anyhow::Result<()> {
    stage.phone_side.block_on(connected(phone))?;
    stage.server_side.block_on(connected(peer))?;
    let draft = peer.draft(&eid("phone")?, text(0, 80));
    stage.server_side.block_on(async { peer.submit(draft)?.await })?;
    stage.phone_side.block_on(heard(events, 0))?;
    sleep(SETTLED);
    Ok(())
}

fn counted(before: &Counters, after: &Counters) -> (u64, u64) {
    let wire = *after - *before;
    let (up, down) = (wire.way(Way::Up).offered, wire.way(Way::Down).offered);
    (up.packets + down.packets, up.bytes + down.bytes)
}

fn keep_alive(every: Option<Duration>, nat: Duration, silence: Duration, seed: u64) -> anyhow::Result<Found> {
    let mut stage = stage(Profile::LTE, seed, QuicConfig::default())?;
    let builder = stage.device("phone", "pocket")?.keep_alive(every);
    let (phone, mut events) = stage.phone_side.block_on(async { builder.connect() })?;
    let (peer, _peer_events) = stage.peer()?;
    rest(&stage, &phone, &mut events, &peer)?;
    let control = stage.net.control().clone();
    let over = AtomicBool::new(false);
    let found = std::thread::scope(|scope| {
        // Only packets from the phone refresh a mapping (RFC 4787, REQ-6).
        let forgetting = scope.spawn(|| {
            let (mut sent, mut since, mut forgotten) = (0, Instant::now(), false);
            while !over.load(Ordering::Relaxed) {
                let packets = control.counters()?.of(Path::Wifi, Way::Up, Protocol::Udp).offered.packets;
                if packets != sent {
                    (sent, since, forgotten) = (packets, Instant::now(), false);
                } else if !forgotten && since.elapsed() >= nat {
                    control.rebind_nat(Path::Wifi)?;
                    forgotten = true;
                }
                sleep(NAT_LOOK);
            }
            anyhow::Ok(())
        });
        let found = (|| {
            let before = control.counters()?;
            let began = Instant::now();
            sleep(silence);
            let (packets, bytes) = counted(&before, &control.counters()?);
            let quiet = began.elapsed();
            let said = Instant::now();
            peer.submit(peer.draft(&eid("phone")?, text(1, 80)))?;
            let sessions = stage.phone_side.block_on(heard(&mut events, 1))?;
            anyhow::Ok(Found { after: said.elapsed(), sessions, packets, bytes, quiet })
        })();
        over.store(true, Ordering::Relaxed);
        let forgot = forgetting.join().map_err(|_| anyhow::anyhow!("the NAT has panicked"))?;
        forgot.and(found)
    })?;
    stage.end(&phone);
    Ok(found)
}

fn tunnel(idle: Duration, length: Duration, told: bool, seed: u64) -> anyhow::Result<Found> {
    let mut stage = stage(Profile::LTE, seed, QuicConfig::default())?;
    let builder = stage.device("phone", "pocket")?.idle_timeout(idle);
    let (phone, mut events) = stage.phone_side.block_on(async { builder.connect() })?;
    let (peer, _peer_events) = stage.peer()?;
    rest(&stage, &phone, &mut events, &peer)?;
    let control = stage.net.control().clone();
    let before = control.counters()?;
    control.black_out(Path::Wifi, true)?;
    let dark = Instant::now();
    sleep(Duration::from_secs(1));
    peer.submit(peer.draft(&eid("phone")?, text(1, 80)))?;
    sleep(length.saturating_sub(dark.elapsed()));
    let (packets, bytes) = counted(&before, &control.counters()?);
    let quiet = dark.elapsed();
    let light = control.black_out(Path::Wifi, false)?;
    if told {
        stage.phone_side.block_on(phone.network_changed())?;
    }
    let sessions = stage.phone_side.block_on(heard(&mut events, 1))?;
    let found = Found { after: light.elapsed(), sessions, packets, bytes, quiet };
    stage.end(&phone);
    Ok(found)
}

/// A phone that waits for an answer in the dark knocks (protocol.md §1), because it is not told when the tunnel ends.
fn knock(length: Duration, seed: u64) -> anyhow::Result<Found> {
    let mut stage = stage(Profile::LTE, seed, QuicConfig::default())?;
    let builder = stage.device("phone", "pocket")?;
    let (phone, mut events) = stage.phone_side.block_on(async { builder.connect() })?;
    let (peer, mut peer_events) = stage.peer()?;
    rest(&stage, &phone, &mut events, &peer)?;
    let control = stage.net.control().clone();
    let before = control.counters()?;
    control.black_out(Path::Wifi, true)?;
    phone.submit(phone.draft(&eid("peer")?, text(1, 80)))?;
    // Trials end at different moments between two knocks.
    sleep(length + KNOCK_PHASE * seed as u32);
    let (packets, bytes) = counted(&before, &control.counters()?);
    let light = control.black_out(Path::Wifi, false)?;
    stage.server_side.block_on(heard(&mut peer_events, 1))?;
    let after = light.elapsed();
    let told = std::iter::from_fn(|| events.try_next());
    let sessions = told.filter(|event| matches!(event, Event::Connected(_))).count();
    let found = Found { after, sessions, packets, bytes, quiet: length };
    stage.end(&phone);
    Ok(found)
}

/// Texts that waited for a phone.
fn coming_in(profile: Profile, kib: u32, texts: usize, seed: u64) -> anyhow::Result<Found> {
    let quic = QuicConfig { send_window: kib * 1024, ..QuicConfig::default() };
    let mut stage = stage(profile, seed, quic)?;
    let (peer, _peer_events) = stage.peer()?;
    stage.server_side.block_on(connected(&peer))?;
    let to = eid("phone")?;
    stage.server_side.block_on(async {
        let mut sending = VecDeque::new();
        for number in 1..=texts {
            if sending.len() == 256
                && let Some(oldest) = sending.pop_front()
            {
                oldest.await?;
            }
            sending.push_back(peer.submit(peer.draft(&to, text(number, 400)))?);
        }
        for ticket in sending {
            ticket.await?;
        }
        anyhow::Ok(())
    })?;
    let began = Instant::now();
    let builder = stage.device("phone", "pocket")?;
    let (phone, mut events) = stage.phone_side.block_on(async { builder.connect() })?;
    let sessions = stage.phone_side.block_on(heard(&mut events, texts))?;
    let found = Found { after: began.elapsed(), sessions, packets: 0, bytes: 0, quiet: began.elapsed() };
    stage.end(&phone);
    Ok(found)
}

/// Texts in a phone's full outbox.
fn going_out(profile: Profile, kib: u32, texts: usize, seed: u64) -> anyhow::Result<Found> {
    let quic = QuicConfig {
        stream_receive_window: kib * 1024,
        connection_receive_window: 2 * kib * 1024,
        ..QuicConfig::default()
    };
    let mut stage = stage(profile, seed, quic)?;
    let (peer, mut events) = stage.peer()?;
    stage.server_side.block_on(connected(&peer))?;
    let to = eid("peer")?;
    let began = Instant::now();
    let builder = stage.device("phone", "pocket")?;
    let (phone, _phone_events) = stage.phone_side.block_on(async { builder.connect() })?;
    for number in 1..=texts {
        // The device's command queue is bounded.
        while let Err(error) = phone.submit(phone.draft(&to, text(number, 2_000))) {
            ensure!(began.elapsed() < ARRIVES_WITHIN, "the outbox takes no more: {error}");
            sleep(Duration::from_millis(1));
        }
    }
    stage.server_side.block_on(heard(&mut events, texts))?;
    let found = Found { after: began.elapsed(), sessions: 1, packets: 0, bytes: 0, quiet: began.elapsed() };
    stage.end(&phone);
    Ok(found)
}
