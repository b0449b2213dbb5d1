//! `bimip bench growth`: what gets slower as one user's log grows: start-up, tailing, history, retention.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use futures_util::{StreamExt, stream};
use hdrhistogram::Histogram;
use tokio::sync::watch;

use super::backlog::talk;
use super::bounds;
use super::connection::{Device, SignIn, Target, Transport, text as text_frame};
use super::process::{Settings, Subject, own_folder};
use super::progress::Progress;
use super::report::{histogram, record};
use crate::cli::{Failure, say};
use crate::clock::Now;
use crate::store::{Bearer, Content, Embedded, LogEntry, LogObserver, NewMessage, Options, Retention, Store};
use crate::wire::proto::HistoryRequest;
use crate::wire::{DeviceId, Eid, LocalId, MessageScheme, Payload, encode_frame, envelope};

/// Concurrent store operations while a log is filled.
const FILLING_AT_ONCE: usize = 1024;
/// Entries read back, or trimmed, at a time; a quarter of the log if that is less.
const PART_MAX: u64 = 10_000;
/// The shortest log: a quarter of it is longer than a page of history.
const ENTRIES_MIN: u64 = 400;
/// The longest log: its store takes half a terabyte.
const ENTRIES_MAX: u64 = 1_000_000_000;
/// Number of pages requested, one after the other.
const PAGES: usize = 200;
/// Texts that a sender keeps in flight while the server is killed.
const IN_FLIGHT: u64 = 256;
/// How many of them are accepted before.
const WRITTEN_BEFORE_KILL: u64 = 2 * IN_FLIGHT;
/// How long texts are timed, one after the other.
const TALK_FOR: Duration = Duration::from_secs(2);
/// Pause between two attempts to sign in at a server that is starting.
const AGAIN_AFTER: Duration = Duration::from_millis(2);
const START_WITHIN: Duration = Duration::from_secs(60);

/// A growing log of one user: start-up, tailing, history, retention
///
/// Fills its own stores through the store's interface, then measures a server on each. Before each start the store's files
/// are dropped from the kernel's cache (on Linux).
#[derive(clap::Args)]
pub(super) struct Args {
    /// Lengths of the log, in entries
    #[arg(long, value_delimiter = ',', default_values_t = [20_000, 200_000, 2_000_000], value_parser = clap::value_parser!(u64).range(ENTRIES_MIN..=ENTRIES_MAX))]
    entries: Vec<u64>,
    /// Bytes of text
    #[arg(long, default_value_t = 150, value_parser = bounds::text_bytes())]
    size: usize,
    /// Transport of the devices
    #[arg(long, value_enum, default_value_t = Transport::Quic)]
    transport: Transport,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The figures for one length.
struct Figures {
    entries: u64,
    filled_per_second: f64,
    store_bytes: u64,
    /// Time from the start of the process to the first accepted session: after a clean shutdown, and after a kill.
    start: Duration,
    start_after_kill: Duration,
    /// Texts of that sender that were accepted by then; others were under way.
    accepted_before_kill: u64,
    /// Entries per second, read from the middle of the log and from near its end.
    tail_middle: f64,
    tail_end: f64,
    live: Histogram<u64>,
    history_newest: Histogram<u64>,
    history_middle: Histogram<u64>,
    history_oldest: Histogram<u64>,
    /// Duration of a retention pass that trims a part of both logs: the first one of a process, and the next one.
    first_pass: Duration,
    next_pass: Duration,
}

impl Args {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let progress = Progress::new(self.json);
        let mut all = Vec::new();
        for &entries in &self.entries {
            all.push(self.measure(entries, &progress).await?);
        }
        drop(progress);
        if self.json {
            let rows: Vec<_> = all.iter().map(Figures::json).collect();
            return Ok(say(&serde_json::json!(rows).to_string())?);
        }
        let heads: String = all.iter().map(|figures| format!("{:>14}", figures.entries)).collect();
        say(&format!("{:<44}{heads}", "entries of the log"))?;
        type Row = (&'static str, fn(&Figures) -> String);
        let rows: [Row; 12] = [
            ("store on disk, MiB", |f| format!("{:.0}", f.store_bytes as f64 / 1024.0 / 1024.0)),
            ("filled, messages a second", |f| format!("{:.0}", f.filled_per_second)),
            ("start to the first session, ms", |f| milliseconds(f.start)),
            ("  after kill -9 under messages, ms", |f| milliseconds(f.start_after_kill)),
            ("tail from the middle, entries a second", |f| format!("{:.0}", f.tail_middle)),
            ("tail from near the end, entries a second", |f| format!("{:.0}", f.tail_end)),
            ("live text p50 / p99, ms", |f| quantiles(&f.live)),
            ("newest page of history p50 / p99, ms", |f| quantiles(&f.history_newest)),
            ("page from the middle p50 / p99, ms", |f| quantiles(&f.history_middle)),
            ("oldest page p50 / p99, ms", |f| quantiles(&f.history_oldest)),
            ("retention, first pass of a process, s", |f| format!("{:.2}", f.first_pass.as_secs_f64())),
            ("retention, further pass, s", |f| format!("{:.2}", f.next_pass.as_secs_f64())),
        ];
        for (name, figure) in rows {
            say(&format!("{name:<44}{}", all.iter().map(|f| format!("{:>14}", figure(f))).collect::<String>()))?;
        }
        Ok(())
    }

    async fn measure(&self, entries: u64, progress: &Progress) -> anyhow::Result<Figures> {
        let folder = own_folder()?;
        progress.note(&format!("filling a log of {entries}"));
        let began = Instant::now();
        let (writer, reader) = self.fill(folder.path(), entries).await?;
        let filled_per_second = entries as f64 / began.elapsed().as_secs_f64();
        let store_bytes = bytes_in(&store_folder(folder.path()))?;

        progress.note(&format!("measuring {entries} over the wire"));
        forget_pages(&store_folder(folder.path()))?;
        let began = Instant::now();
        // Retention must not trim anything meanwhile.
        let settings = Settings { limited: false, entries_per_user: Some(10 * entries) };
        let mut subject = Subject::start(folder, settings, self.transport)?;
        let target = Target::new(&subject)?;
        let mut device = first_session(&target, &reader, entries as i64).await?;
        let start = began.elapsed();
        ensure!(device.accept.log_head == entries as i64, "the log ends at {}", device.accept.log_head);

        let part = PART_MAX.min(entries / 4);
        let tail_middle = tail(&target, &reader, entries / 2, part).await?;
        let tail_end = tail(&target, &reader, entries - part, part).await?;
        let version = entries as i64;
        let history_newest = history(&mut device, &writer, 0).await?;
        let history_middle = history(&mut device, &writer, version / 2).await?;
        let history_oldest = history(&mut device, &writer, 51).await?;
        let other = first_session(&target, &writer, version).await?;
        let ((one, two), live) = talk((other, device), TALK_FOR).await?;

        let sender = if one.eid == writer { one } else { two };
        let (accepted, mut count) = watch::channel(0);
        let writing = tokio::spawn(write(sender, reader.clone(), "x".repeat(self.size), accepted));
        let accepted_before_kill = match count.wait_for(|count| *count >= WRITTEN_BEFORE_KILL).await.map(|count| *count)
        {
            Ok(count) => count,
            Err(_) => return Err(writing.await?.context("the sender ended before the server was killed")),
        };
        let began = subject.restart_after(|folder| forget_pages(&store_folder(folder)))?;
        let device = first_session(&target, &reader, version).await?;
        let start_after_kill = began.elapsed();
        writing.abort();
        drop((device, target));
        let folder = subject.end()?;

        progress.note(&format!("trimming {entries}"));
        let store = open(folder.path())?;
        let bounds = store.open_device(&reader, &DeviceId::parse("growth")?, Bearer::default()).await?.log;
        let mut passes = [Duration::ZERO; 2];
        for (pass, took) in passes.iter_mut().enumerate() {
            let entries_max_per_user = bounds.head.get() - part * (pass as u64 + 1);
            let began = Instant::now();
            let trimmed =
                store.trim(Retention { older_than_ms: 0, entries_max_per_user }, Now::system().unix_ms).await?;
            *took = began.elapsed();
            // Of both users; of each only whole rows go.
            ensure!(trimmed.entries >= part, "{} entries were trimmed", trimmed.entries);
        }
        store.close().await;
        let [first_pass, next_pass] = passes;
        Ok(Figures {
            entries,
            filled_per_second,
            store_bytes,
            start,
            start_after_kill,
            accepted_before_kill,
            tail_middle,
            tail_end,
            live,
            history_newest,
            history_middle,
            history_oldest,
            first_pass,
            next_pass,
        })
    }

    /// Stores messages of one user to another; afterwards both logs have this many entries.
    async fn fill(&self, data_dir: &Path, entries: u64) -> anyhow::Result<(Eid, Eid)> {
        let (writer, reader) = (Eid::parse("growth-writer@localhost")?, Eid::parse("growth-reader@localhost")?);
        let (device, content) = (DeviceId::parse("bench")?, Content::Text("x".repeat(self.size)));
        let store = open(data_dir)?;
        let now = Now::system();
        let texts = (1..=entries).map(|number| {
            let mut entropy = [0; 10];
            entropy[2..].copy_from_slice(&number.to_be_bytes());
            anyhow::Ok(NewMessage {
                sender: writer.clone(),
                device: device.clone(),
                recipient: reader.clone(),
                local_id: LocalId::parse(&format!("growth-{number}"))?,
                content: content.clone(),
                created_at: now.unix_ms,
                received_at: now.unix_ms,
                received: now.at,
                entropy,
            })
        });
        let mut accepting =
            stream::iter(texts).map(|text| async { Ok(store.accept(text?, true).await?) }).buffered(FILLING_AT_ONCE);
        while let Some(accepted) = accepting.next().await {
            let _: crate::store::Accepted =
                accepted.map_err(|error: anyhow::Error| error.context("filling the log"))?;
        }
        drop(accepting);
        store.close().await;
        Ok((writer, reader))
    }
}

impl Figures {
    fn json(&self) -> serde_json::Value {
        use super::report::json;
        serde_json::json!({
            "entries": self.entries, "filled_per_second": self.filled_per_second, "store_bytes": self.store_bytes,
            "start_ms": self.start.as_secs_f64() * 1e3, "start_after_kill_ms": self.start_after_kill.as_secs_f64() * 1e3,
            "accepted_before_kill": self.accepted_before_kill,
            "tail_middle_per_second": self.tail_middle, "tail_end_per_second": self.tail_end, "live": json(&self.live),
            "history_newest": json(&self.history_newest), "history_middle": json(&self.history_middle),
            "history_oldest": json(&self.history_oldest), "retention_first_pass_s": self.first_pass.as_secs_f64(),
            "retention_next_pass_s": self.next_pass.as_secs_f64(),
        })
    }
}

/// The observer while a log is filled: nobody is connected.
struct Nobody;

impl LogObserver for Nobody {
    fn appended(&self, _: &Eid, _: &Arc<LogEntry>) {}
}

fn store_folder(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("store")
}

fn open(data_dir: &Path) -> anyhow::Result<Embedded> {
    Ok(Embedded::open(&store_folder(data_dir), Options::default(), Arc::new(Nobody))?)
}

fn bytes_in(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let file = entry.metadata()?;
        bytes += if file.is_dir() { bytes_in(&entry.path())? } else { file.len() };
    }
    Ok(bytes)
}

/// Has the files written to disk and dropped from the kernel's cache, so that the next start reads them from disk. Systems
/// that cannot be asked for that keep them.
fn forget_pages(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            forget_pages(&path)?;
            continue;
        }
        let file = std::fs::File::open(&path)?;
        // The kernel keeps what is not on disk yet.
        file.sync_all()?;
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// Writes texts until the connection ends, and counts those that were accepted; returns why it ended.
async fn write(mut device: Device, to: Eid, text: String, accepted: watch::Sender<u64>) -> anyhow::Error {
    let from = device.eid.clone();
    let Some((lane, answers)) = device.chat.as_mut() else { return anyhow!("no chat lane") };
    let mut sent = 0;
    loop {
        let until = *accepted.borrow() + IN_FLIGHT;
        while sent < until {
            lane.queue(text_frame(&from, &to, &format!("killed-{sent}"), &text));
            sent += 1;
        }
        if let Err(error) = lane.flush().await {
            return error;
        }
        match answers.next().await {
            Ok(MessageScheme { payload: Some(Payload::VersionUpdate(_)), .. }) => {
                accepted.send_modify(|count| *count += 1)
            }
            Ok(MessageScheme { payload: Some(Payload::ErrorMessage(error)), .. }) => {
                return anyhow!("refused: {} {}", error.code, error.message);
            }
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

fn sign_in_at<'a>(user: &'a Eid, after: i64) -> SignIn<'a> {
    let name = user.as_str().split_once('@').map_or(user.as_str(), |(name, _)| name);
    SignIn { name, device: "bench", pipelined: true, resume_from: Some(after) }
}

/// Signs in as soon as the server accepts anybody.
async fn first_session(target: &Target, user: &Eid, after: i64) -> anyhow::Result<Device> {
    let until = Instant::now() + START_WITHIN;
    loop {
        match target.sign_in(sign_in_at(user, after)).await {
            Ok(device) => return Ok(device),
            Err(error) if Instant::now() > until => return Err(error.context("the server did not start")),
            Err(_) => tokio::time::sleep(AGAIN_AFTER).await,
        }
    }
}

/// Entries per second that a returning device gets, sign-in included; checks that versions have no gap.
async fn tail(target: &Target, user: &Eid, after: u64, part: u64) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut sign_in = sign_in_at(user, after as i64);
    sign_in.device = "returning";
    let mut device = target.sign_in(sign_in).await?;
    let (_lane, messages) = device.chat.as_mut().context("the chat lane")?;
    let mut version = after as i64;
    while version < (after + part) as i64 {
        if let Some(Payload::ChatMessage(message)) = messages.next().await?.payload {
            version += 1;
            ensure!(message.version == version, "version {} came where {version} was due", message.version);
        }
    }
    let per_second = part as f64 / began.elapsed().as_secs_f64();
    device.connection.close();
    Ok(per_second)
}

/// Requests pages of 50 messages before a version, one after the other; 0 for the newest page.
async fn history(device: &mut Device, peer: &Eid, before_version: i64) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = histogram();
    let (lane, answers) = device.chat.as_mut().context("the chat lane")?;
    for page in 1..=PAGES {
        let request = HistoryRequest { peer: Some(peer.identity()), before_version, limit: 50, ..Default::default() };
        let scheme = MessageScheme { request_id: page as i64, ..envelope(Payload::HistoryRequest(request)) };
        let began = Instant::now();
        lane.send(encode_frame(&scheme)).await?;
        loop {
            match answers.next().await?.payload {
                Some(Payload::HistoryPage(page)) => {
                    ensure!(page.messages.len() == 50, "a page of {} messages", page.messages.len());
                    break;
                }
                Some(Payload::ErrorMessage(error)) => bail!("refused: {} {}", error.code, error.message),
                _ => {}
            }
        }
        record(&mut latencies, began.elapsed());
    }
    Ok(latencies)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.0}", time.as_secs_f64() * 1e3)
}

fn quantiles(latencies: &Histogram<u64>) -> String {
    let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    format!("{:.2} / {:.2}", at(0.5), at(0.99))
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::store::testing::{Pages, beside_the_build};

    #[test]
    fn forgotten_pages_are_in_memory_no_more() {
        const TMPFS: i64 = 0x0102_1994;
        const BYTES: usize = 1 << 20;
        let folder = beside_the_build();
        let deep = folder.path().join("deep");
        std::fs::create_dir(&deep).unwrap();
        std::fs::write(deep.join("file"), vec![7; BYTES]).unwrap();
        let file = File::open(deep.join("file")).unwrap();
        let cached = || Pages::of(&file).map(|pages| pages.cached);
        if cached().is_none() {
            return crate::skip::skip("this kernel does not tell what is in memory");
        }
        assert!(cached().unwrap() > 0, "it was written a moment ago");
        forget_pages(folder.path()).unwrap();
        if rustix::fs::fstatfs(&file).unwrap().f_type as i64 == TMPFS {
            return crate::skip::skip("the build's files are in memory");
        }
        assert_eq!(cached(), Some(0));
        assert_eq!(std::fs::read(deep.join("file")).unwrap().len(), BYTES);
    }
}
