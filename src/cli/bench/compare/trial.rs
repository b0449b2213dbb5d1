//! One trial: its own server, phone and peer over its own emulated network.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::time::{MissedTickBehavior, interval_at, timeout};

use super::book::{Book, Recovery, Stream, Wrong};
use super::scenario::{Event as Happening, Scenario};
use super::traces::Tracing;
use crate::auth::dev::DevFiles;
use crate::auth::{Grant, Signer};
use crate::cli::bench::bounds::SECOND_COPIES_WITHIN;
use crate::client::{Admission, Builder, Content, Device, Event, Events, Media, Transport, Transports};
use crate::clock::Now;
use crate::config::{Config, LimitsConfig, QuicConfig, Rate};
use crate::link::{Network, Path as LinkPath, Plan, Runtime, Way};
use crate::server::Server;
use crate::wire::{Author, AwarenessStatus, DeviceId, Eid, Lane, MediaType};

/// Talk before the measurement starts: covers sign-ins, slow start and the presence of both.
const WARM_UP: Duration = Duration::from_secs(3);
/// Time between two texts of a side; below, between two pings.
const TEXT_EVERY: Duration = Duration::from_millis(100);
const PING_EVERY: Duration = Duration::from_millis(200);
/// Time between two bursts of media metadata; below, messages in a burst.
const MEDIA_EVERY: Duration = Duration::from_secs(5);
const MEDIA_BURST: usize = 10;
const PRESENCE_EVERY: Duration = Duration::from_secs(5);
/// A typical length of a text.
const TEXT_BYTES: usize = 80;
/// Texts in the outbox of a device that starts.
const OUTBOX: usize = 100;
/// A message that has not arrived within this time is lost.
const SETTLED_WITHIN: Duration = Duration::from_secs(45);
const CONNECTED_WITHIN: Duration = Duration::from_secs(30);

/// The transport of the phone's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Carrier {
    Quic,
    TcpCubic,
    TcpBbr,
}

impl Carrier {
    pub(super) const ALL: [Carrier; 3] = [Carrier::Quic, Carrier::TcpCubic, Carrier::TcpBbr];

    pub(super) fn name(self) -> &'static str {
        match self {
            Carrier::Quic => "QUIC",
            Carrier::TcpCubic => "TCP cubic",
            Carrier::TcpBbr => "TCP bbr",
        }
    }

    fn transport(self) -> Transport {
        match self {
            Carrier::Quic => Transport::Quic,
            Carrier::TcpCubic | Carrier::TcpBbr => Transport::Tcp,
        }
    }

    fn kernel_congestion_control(self) -> Option<&'static str> {
        match self {
            Carrier::Quic => None,
            Carrier::TcpCubic => Some("cubic"),
            Carrier::TcpBbr => Some("bbr"),
        }
    }
}

/// The round trip of a ping without an answer: longer than any other.
pub(super) const UNANSWERED: Duration = Duration::MAX;
/// The result of one trial. Its times are seconds since the first event, or since the measurement began.
#[derive(Debug)]
pub(super) struct Outcome {
    /// When each ping was due, and its round trip, or [`UNANSWERED`].
    pub(super) pings: Vec<(f64, Duration)>,
    /// When each text was due, and its latency to the application at the other side.
    pub(super) deliveries: Vec<(f64, Duration)>,
    pub(super) recoveries: Vec<Recovery>,
    pub(super) wrong: Wrong,
    pub(super) sessions: usize,
    pub(super) early: usize,
    pub(super) presence_heard: usize,
    /// Packets of both directions for each message that arrived meanwhile; bytes include IP headers.
    pub(super) packets_per_message: f64,
    pub(super) bytes_per_message: f64,
    /// Share of the offered packets that the link lost.
    pub(super) lost_packets: f64,
    /// Packets that the link itself or a socket was too slow for; anything but 0 invalidates the trial.
    pub(super) overrun: u64,
}

pub(super) struct Stage {
    pub(super) net: Network,
    pub(super) phone_side: Runtime,
    pub(super) server_side: Runtime,
    server: Option<Server>,
    files: DevFiles,
    address: String,
    carrier: Carrier,
    book: Arc<Mutex<Book>>,
    began: Instant,
    traces: Option<Tracing>,
    _data: tempfile::TempDir,
}

/// Runs a trial. `steady` is the length of the measurement if nothing happens to the network, `traces` a folder for
/// QUIC traces.
pub(super) fn run(
    scenario: &Scenario,
    carrier: Carrier,
    seed: u64,
    steady: Duration,
    traces: Option<&Path>,
) -> anyhow::Result<Outcome> {
    let traces = traces.map(Tracing::into).transpose()?;
    let quic = QuicConfig { qlog_dir: traces.as_ref().map(Tracing::of_server), ..QuicConfig::default() };
    let stage = Stage::build(Plan { wifi: scenario.wifi, lte: scenario.lte, seed }, carrier, quic)?;
    let stage = Stage { traces, ..stage };
    if scenario.event == Happening::ColdStart { stage.cold_starts(scenario) } else { stage.talk(scenario, steady) }
}

impl Stage {
    pub(super) fn build(plan: Plan, carrier: Carrier, quic: QuicConfig) -> anyhow::Result<Stage> {
        let net = Network::start(plan)?;
        if let Some(algorithm) = carrier.kernel_congestion_control() {
            net.control().set_congestion_control(algorithm)?;
        }
        let (phone_side, server_side) = (net.phone().runtime(1)?, net.server().runtime(2)?);
        // In the working directory, because commits on an in-memory file system would be too fast.
        let data = tempfile::Builder::new().prefix("bimip-compare-").tempdir_in(".")?;
        let unlimited = Rate::default();
        let config = Config {
            listen: (net.server_address(), 0).into(),
            metrics_listen: ([127, 0, 0, 1], 0).into(),
            data_dir: data.path().to_owned(),
            dev: true,
            limits: LimitsConfig {
                frames: unlimited,
                messages: unlimited,
                awareness: unlimited,
                sign_ins: unlimited,
                connections_per_address: 0,
            },
            quic,
            ..Config::default()
        };
        let server = server_side.block_on(Server::start(config))?;
        Ok(Stage {
            address: server.quic_address.to_string(),
            files: DevFiles::in_data_dir(data.path()),
            server: Some(server),
            net,
            phone_side,
            server_side,
            carrier,
            book: Arc::default(),
            began: Instant::now(),
            traces: None,
            _data: data,
        })
    }

    /// The phone, connected over the emulated network.
    fn phone(&self, device: &str) -> anyhow::Result<(Device, Events)> {
        let mut builder = self.device("phone", device)?.transports(Transports::Only(self.carrier.transport()));
        if let Some(traces) = &self.traces {
            builder = traces.of_phone(builder);
        }
        let started = self.phone_side.block_on(async { builder.connect() });
        Ok(started?)
    }

    /// The phone's peer: in the server's namespace, with no network in between, over QUIC.
    pub(super) fn peer(&self) -> anyhow::Result<(Device, Events)> {
        let builder = self.device("peer", "desk")?;
        Ok(self.server_side.block_on(async { builder.connect() })?)
    }

    pub(super) fn device(&self, name: &str, device: &str) -> anyhow::Result<Builder> {
        let eid = eid(name)?;
        let grant = Grant { eid: eid.clone(), device: None, ttl: Duration::from_secs(3600), scope: None };
        let token = Signer::from_pem_file(&self.files.token_key)?.sign(&grant, Now::system().unix_ms / 1000)?;
        Ok(Device::builder()
            .server(&self.address)
            .server_name("localhost")
            .roots_pem(&self.files.ca)
            .identity(eid, DeviceId::parse(device)?)
            .token(token)
            .lanes(&[Lane::Control, Lane::Chat, Lane::Presence, Lane::Media])
            .auto_deliver(true))
    }

    fn talk(mut self, scenario: &Scenario, steady: Duration) -> anyhow::Result<Outcome> {
        let ((phone, phone_events), (peer, peer_events)) = (self.phone("pocket")?, self.peer()?);
        let (phone_eid, peer_eid) = (eid("phone")?, eid("peer")?);
        self.hear(&self.phone_side, phone_events, Stream::TextDown, Stream::MediaDown);
        self.hear(&self.server_side, peer_events, Stream::TextUp, Stream::MediaUp);
        self.phone_side.block_on(connected(&phone))?;
        self.server_side.block_on(connected(&peer))?;
        self.phone_side.block_on(phone.add_subscriber(&peer_eid, Admission::default()))?;
        self.server_side.block_on(peer.add_subscriber(&phone_eid, Admission::default()))?;

        let mut talking = vec![
            self.phone_side.spawn(texts(phone.clone(), peer_eid.clone(), Stream::TextUp, self.book.clone())),
            self.server_side.spawn(texts(peer.clone(), phone_eid.clone(), Stream::TextDown, self.book.clone())),
            self.phone_side.spawn(media(phone.clone(), peer_eid, Stream::MediaUp, self.book.clone())),
            self.server_side.spawn(media(peer.clone(), phone_eid, Stream::MediaDown, self.book.clone())),
            self.phone_side.spawn(presence(phone.clone())),
            self.server_side.spawn(presence(peer.clone())),
            self.phone_side.spawn(pings(phone.clone(), self.book.clone())),
        ];
        sleep(WARM_UP);
        self.began = Instant::now();
        let before = self.net.control().counters()?;
        let mut events = Vec::new();
        if scenario.event == Happening::Nothing {
            sleep(steady);
        }
        let (repeats, after) = scenario.event.repeats();
        for number in 0..repeats {
            if number == 0 {
                // Keep some of the time before the event, for the timeline.
                sleep(Duration::from_secs(2));
            }
            let times = self.happen(scenario.event, number, &phone)?;
            if scenario.event.counts(number) {
                events.push(times);
            }
            sleep(after);
        }
        let (ended, counted) = (Instant::now(), self.net.control().counters()?);
        talking.drain(..).for_each(|task| task.abort());
        let settled_by = Instant::now() + SETTLED_WITHIN;
        while !self.book().is_complete() && Instant::now() < settled_by {
            sleep(Duration::from_millis(20));
        }
        sleep(SECOND_COPIES_WITHIN);
        let wire = counted - before;
        let recoveries = events.iter().map(|(since, works_at)| self.book().recovery(*since, *works_at));
        let recoveries = recoveries.collect::<Option<Vec<_>>>().context("the talk did not come back")?;
        let zero = events.first().map_or(self.began, |(_, works_at)| *works_at);
        let outcome = self.outcome(recoveries, zero, ended, &wire)?;
        if let Some(traces) = &self.traces {
            traces.keep_pings(&self.book().pings)?;
        }
        self.end(&phone);
        Ok(outcome)
    }

    /// Makes the event happen. Returns from when on messages count, and when the network worked again.
    fn happen(&self, event: Happening, number: u32, phone: &Device) -> anyhow::Result<(Instant, Instant)> {
        let control = self.net.control();
        match event {
            Happening::HandOver { gap, hinted } => {
                let to = if event.counts(number) { LinkPath::Lte } else { LinkPath::Wifi };
                let handover = control.hand_over(to, gap)?;
                let times = (handover.dead_at, handover.works_at);
                handover.wait()?;
                if hinted {
                    self.phone_side.block_on(phone.network_changed())?;
                }
                Ok(times)
            }
            Happening::Rebinding => control.rebind_nat(LinkPath::Wifi).map(|at| (at, at)).map_err(Into::into),
            Happening::Tunnel(length) => {
                let dark_at = control.black_out(LinkPath::Wifi, true)?;
                sleep(length);
                let works_at = control.black_out(LinkPath::Wifi, false)?;
                self.phone_side.block_on(phone.network_changed())?;
                Ok((dark_at, works_at))
            }
            Happening::Nothing | Happening::ColdStart => unreachable!("they do not happen while the phone talks"),
        }
    }

    fn cold_starts(mut self, scenario: &Scenario) -> anyhow::Result<Outcome> {
        let (peer, peer_events) = self.peer()?;
        self.hear(&self.server_side, peer_events, Stream::TextUp, Stream::MediaUp);
        self.server_side.block_on(connected(&peer))?;
        self.began = Instant::now();
        let before = self.net.control().counters()?;
        let to = eid("peer")?;
        let mut recoveries = Vec::new();
        let mut phones = Vec::new();
        for number in 0..scenario.event.repeats().0 {
            let (phone, events) = self.phone(&format!("pocket-{number}"))?;
            let starts = Instant::now();
            for _ in 0..OUTBOX {
                say(&phone, &to, Stream::TextUp, &self.book, starts);
            }
            self.hear(&self.phone_side, events, Stream::TextDown, Stream::MediaDown);
            let settled_by = Instant::now() + SETTLED_WITHIN;
            while !self.book().is_complete() && Instant::now() < settled_by {
                sleep(Duration::from_millis(1));
            }
            let arrived = self.book().deliveries(starts, Instant::now());
            ensure!(!arrived.is_empty(), "nothing of the outbox arrived");
            let times = || arrived.iter().map(|(_, took)| *took);
            let first = times().min().unwrap_or_default();
            recoveries.push(Recovery { first, both: first, caught_up: times().max().unwrap_or_default() });
            phones.push(phone);
        }
        let (ended, counted) = (Instant::now(), self.net.control().counters()?);
        sleep(SECOND_COPIES_WITHIN);
        let wire = counted - before;
        let outcome = self.outcome(recoveries, self.began, ended, &wire)?;
        for phone in &phones {
            self.phone_side.block_on(phone.close());
        }
        Ok(outcome)
    }

    fn outcome(
        &self,
        recoveries: Vec<Recovery>,
        zero: Instant,
        ended: Instant,
        wire: &crate::link::Counters,
    ) -> anyhow::Result<Outcome> {
        let book = self.book();
        let seconds = |at: Instant| {
            if at >= zero { (at - zero).as_secs_f64() } else { -(zero - at).as_secs_f64() }
        };
        let timed = |(due, took): (Instant, Duration)| (seconds(due), took);
        let total = wire.total();
        let (up, down) = (wire.way(Way::Up), wire.way(Way::Down));
        let messages = book.arrivals(self.began, ended).max(1) as f64;
        Ok(Outcome {
            pings: book.pings.iter().filter(|(due, _)| (self.began..ended).contains(due)).copied().map(timed).collect(),
            deliveries: book.deliveries(self.began, ended).into_iter().map(timed).collect(),
            recoveries,
            wrong: book.wrong(),
            sessions: book.sessions,
            early: book.early,
            presence_heard: book.presence_heard,
            packets_per_message: (up.offered + down.offered).packets as f64 / messages,
            bytes_per_message: (up.offered + down.offered).bytes as f64 / messages,
            lost_packets: total.lost.packets as f64 / (total.offered.packets.max(1)) as f64,
            overrun: total.overrun.packets + self.net.missed()?,
        })
    }

    pub(super) fn end(&mut self, phone: &Device) {
        self.phone_side.block_on(phone.close());
        if let Some(server) = self.server.take() {
            self.server_side.block_on(server.shutdown());
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        locked(&self.book)
    }

    /// Records the events of one side.
    fn hear(&self, side: &Runtime, mut events: Events, text: Stream, media: Stream) {
        let book = self.book.clone();
        let is_phone = text == Stream::TextDown;
        side.spawn(async move {
            while let Some(event) = events.next().await {
                let mut book = locked(&book);
                match event {
                    // Skip copies of what the user's own devices have sent.
                    Event::Message(message) if message.author == Author::Receiver => {
                        let (stream, words) = match &message.content {
                            Content::Text(words) => (text, words),
                            Content::Media(about) => (media, &about.caption),
                        };
                        let number = words.split(' ').next().and_then(|number| number.parse().ok());
                        book.arrive(stream, number.unwrap_or(usize::MAX), message.received);
                    }
                    Event::Presence(_) if is_phone => book.presence_heard += 1,
                    Event::Connected(session) if is_phone => {
                        book.sessions += 1;
                        book.early += usize::from(session.early);
                    }
                    _ => {}
                }
            }
        });
    }
}

pub(super) fn eid(name: &str) -> anyhow::Result<Eid> {
    Ok(Eid::parse(&format!("{name}@localhost"))?)
}

fn locked(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) async fn connected(device: &Device) -> anyhow::Result<()> {
    let session = timeout(CONNECTED_WITHIN, device.connected()).await.context("no session in time")?;
    session.map(drop).map_err(|reason| anyhow::anyhow!("no session: {reason}"))
}

/// Acts at each beat. Missed beats are made up for, as people do not wait for each other's networks.
async fn at_each<F: Future<Output = ()>>(beat: Duration, mut act: impl FnMut(Instant) -> F) {
    let mut beats = interval_at(tokio::time::Instant::now() + beat, beat);
    beats.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        let due = beats.tick().await;
        act(due.into_std()).await;
    }
}

/// Sends a message if the device's queue has room.
fn say(device: &Device, to: &Eid, stream: Stream, book: &Mutex<Book>, due: Instant) {
    let mut book = locked(book);
    let number = book.say(stream, due);
    let words = format!("{number} ");
    let content = match stream {
        Stream::TextUp | Stream::TextDown => Content::Text(format!("{words:.<TEXT_BYTES$}")),
        Stream::MediaUp | Stream::MediaDown => Content::Media(Media {
            kind: MediaType::Image,
            url: format!("https://media.example/{number:040}"),
            caption: words,
            thumbnail_url: format!("https://media.example/thumbnail/{number:040}"),
            size_bytes: 250_000,
        }),
    };
    if device.submit(device.draft(to, content)).is_err() {
        book.unsay(stream);
    }
}

async fn texts(device: Device, to: Eid, stream: Stream, book: Arc<Mutex<Book>>) {
    at_each(TEXT_EVERY, |due| {
        say(&device, &to, stream, &book, due);
        std::future::ready(())
    })
    .await;
}

async fn media(device: Device, to: Eid, stream: Stream, book: Arc<Mutex<Book>>) {
    at_each(MEDIA_EVERY, |due| {
        (0..MEDIA_BURST).for_each(|_| say(&device, &to, stream, &book, due));
        std::future::ready(())
    })
    .await;
}

async fn presence(device: Device) {
    let mut away = false;
    at_each(PRESENCE_EVERY, |_| {
        away = !away;
        let (device, status) = (device.clone(), if away { AwarenessStatus::Away } else { AwarenessStatus::Online });
        // Without a connection, the next one announces it.
        async move { drop(device.set_presence(status, true, None).await) }
    })
    .await;
}

async fn pings(device: Device, book: Arc<Mutex<Book>>) {
    at_each(PING_EVERY, |due| {
        let (device, book) = (device.clone(), book.clone());
        let number = {
            let mut book = locked(&book);
            book.pings.push((due, UNANSWERED));
            book.pings.len() - 1
        };
        // Pings do not wait for each other.
        tokio::spawn(async move {
            if device.ping().await.is_ok() {
                locked(&book).pings[number].1 = due.elapsed();
            }
        });
        std::future::ready(())
    })
    .await;
}
