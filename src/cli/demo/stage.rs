//! The demo's stage: a server of its own, its devices, and functions that wait for the expected events.

use std::collections::HashMap;
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::event_line::status;
use super::super::limits::{DEMO_NEWS_MAX, DEMO_STEP_WITHIN};
use super::ledger::Ledger;
use super::timeline::{Timeline, Who, ms};
use crate::auth::dev::DevFiles;
use crate::auth::{Grant, Signer};
use crate::client::{AckTarget, Content, Device, Event, Message, Sent, Session, State};
use crate::clock::Now;
use crate::config::Config;
use crate::server::Server;
use crate::wire::{AckStatus, Author, DeviceId, Eid, MessageId, Sequence};

/// The state of the demo.
pub(super) struct Stage {
    server: Server,
    files: DevFiles,
    signer: Arc<Signer>,
    news: mpsc::Receiver<News>,
    reporter: mpsc::Sender<News>,
    /// Per device, the head of the log when its session began.
    heads: HashMap<Who, Sequence>,
    /// The text of each message, for receipts that refer to it.
    texts: HashMap<MessageId, String>,
    /// The newest message of each device, for a read receipt.
    newest: HashMap<Who, Message>,
    pub(super) ledger: Ledger,
    pub(super) timeline: Timeline,
    /// The temporary directory; removed when the stage is dropped.
    _directory: TempDir,
}

/// An event of a device.
struct News {
    who: Who,
    event: Event,
}

impl Stage {
    /// Starts a server on free ports with a temporary data directory.
    pub(super) async fn build() -> anyhow::Result<Stage> {
        let timeline = Timeline::begin();
        let directory = tempfile::Builder::new().prefix("bimip-demo-").tempdir().context("no temporary directory")?;
        let config = Config {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            metrics_listen: (Ipv4Addr::LOCALHOST, 0).into(),
            data_dir: directory.path().to_owned(),
            dev: true,
            ..Config::default()
        };
        let files = DevFiles::in_data_dir(&config.data_dir);
        let server = Server::start(config).await?;
        timeline.line(
            Who::Server,
            format!("serves QUIC on {}, durable in {}", server.quic_address, directory.path().display()),
        )?;
        let signer = Arc::new(Signer::from_pem_file(&files.token_key)?);
        let (reporter, news) = mpsc::channel(DEMO_NEWS_MAX);
        Ok(Stage {
            server,
            files,
            signer,
            news,
            reporter,
            heads: HashMap::new(),
            texts: HashMap::new(),
            newest: HashMap::new(),
            ledger: Ledger::default(),
            timeline,
            _directory: directory,
        })
    }

    /// Connects a device, as an application would, and waits for its session.
    pub(super) async fn sign_in(&mut self, who: Who) -> anyhow::Result<Device> {
        let (eid, device) = (Eid::parse(who.user())?, DeviceId::parse(who.device())?);
        let (signer, ca): (_, PathBuf) = (self.signer.clone(), self.files.ca.clone());
        let grant =
            Grant { eid: eid.clone(), device: Some(device.clone()), ttl: Duration::from_secs(3600), scope: None };
        let (device, mut events) = Device::builder()
            .server(self.server.quic_address.to_string())
            .roots_pem(ca)
            .identity(eid, device)
            .token(move || std::future::ready(signer.sign(&grant, Now::system().unix_ms / 1000).map_err(Into::into)))
            .auto_deliver(true)
            .connect()?;
        let reporter = self.reporter.clone();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if reporter.send(News { who, event }).await.is_err() {
                    break;
                }
            }
        });
        let before = self.ledger.connections_of(who);
        self.until("the sign-in", |ledger| ledger.connections_of(who) > before).await?;
        Ok(device)
    }

    /// Sends a text and waits for the server's answer.
    pub(super) async fn say(&mut self, device: &Device, by: Who, text: &str) -> anyhow::Result<Sent> {
        let to = if by == Who::AlicePhone { Who::BobPhone } else { Who::AlicePhone };
        let draft = device.draft(&Eid::parse(to.user())?, Content::Text(text.to_owned()));
        self.timeline.line(by, format!("says {text:?}"))?;
        self.ledger.say(by, draft.local_id.clone());
        let ticket = device.submit(draft)?;
        let sent = self.meanwhile("the server's answer", ticket).await??;
        self.ledger.numbered(&sent);
        self.texts.insert(sent.message_id, text.to_owned());
        let took = self.timeline.faint(ms(sent.latency));
        self.timeline.line(by, format!("✓ durable at the server, version {} {took}", sent.version))?;
        Ok(sent)
    }

    /// Sends a read receipt for the newest message.
    pub(super) async fn read_newest(&mut self, device: &Device, who: Who) -> anyhow::Result<()> {
        let message = self.newest.get(&who).cloned().context("there is nothing to read")?;
        let reading = async { device.acknowledge(message.message_id, &message.from, AckStatus::Read).await };
        self.timeline.line(who, format!("reads {:?}", message.text().unwrap_or_default()))?;
        self.meanwhile("the receipt's answer", reading).await??;
        Ok(())
    }

    /// Waits until the ledger meets a condition, and prints events meanwhile.
    pub(super) async fn until(&mut self, what: &str, enough: impl Fn(&Ledger) -> bool) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + DEMO_STEP_WITHIN;
        while !enough(&self.ledger) {
            let news = tokio::time::timeout_at(deadline, self.news.recv()).await;
            let news = news.map_err(|_| anyhow!("{what} did not come within {} s", DEMO_STEP_WITHIN.as_secs()))?;
            self.tell(news.context("the stage reports to itself")?)?;
        }
        Ok(())
    }

    /// Waits for a future, and prints events meanwhile.
    pub(super) async fn meanwhile<T>(&mut self, what: &str, wanted: impl Future<Output = T>) -> anyhow::Result<T> {
        let deadline = tokio::time::Instant::now() + DEMO_STEP_WITHIN;
        let mut wanted = pin!(wanted);
        loop {
            tokio::select! {
                biased;
                result = &mut wanted => return Ok(result),
                Some(news) = self.news.recv() => self.tell(news)?,
                () = tokio::time::sleep_until(deadline) => {
                    return Err(anyhow!("{what} did not come within {} s", DEMO_STEP_WITHIN.as_secs()));
                }
            }
        }
    }

    /// The number of durable commits of the store so far, from the server's metrics.
    pub(super) async fn commits(&self) -> anyhow::Result<u64> {
        let exchange = async {
            let mut http = TcpStream::connect(self.server.metrics_address).await?;
            http.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
            let mut page = String::new();
            http.read_to_string(&mut page).await?;
            std::io::Result::Ok(page)
        };
        let page = timeout(DEMO_STEP_WITHIN, exchange).await.context("no answer from the metrics listener")??;
        let value = page.lines().find_map(|line| line.split_once("_commit_seconds_count ")?.1.trim().parse().ok());
        value.context("the metrics do not count commits")
    }

    pub(super) async fn strike(self) {
        self.server.shutdown().await;
    }

    fn tell(&mut self, News { who, event }: News) -> anyhow::Result<()> {
        let line = match &event {
            Event::Connected(session) => {
                self.ledger.connected(who);
                self.heads.insert(who, session.log_head);
                format!("signed in {}, session {}", self.timeline.faint(ms(session.connected_in)), session.session_id)
            }
            Event::Disconnected(reason) => {
                self.ledger.lost(who);
                format!("is offline: {reason}")
            }
            Event::Message(message) => self.message(who, message),
            Event::Acknowledged(receipt) => {
                self.ledger.acknowledged(who, receipt);
                // The recipient's other devices get the receipt, too; it would clutter the timeline.
                if receipt.sender.as_str() != who.user() {
                    return Ok(());
                }
                let ticks = if receipt.status == AckStatus::Read { "✓✓ read" } else { "✓✓ delivered" };
                let text = match receipt.target {
                    AckTarget::Message(id) => self.texts.get(&id).map_or(String::new(), |text| format!(": {text:?}")),
                    AckTarget::UpTo(_, version) => format!(" up to version {version}"),
                };
                format!("{ticks} by {}{}", receipt.by, self.timeline.faint(text))
            }
            Event::Presence(presence) => {
                self.ledger.presence(who, presence.status);
                let whose = presence.from.as_ref().map_or("", |from| from.eid.as_str());
                format!("sees that {whose} is {}", status(presence))
            }
            other => format!("hears {other:?}"),
        };
        Ok(self.timeline.line(who, line)?)
    }

    fn message(&mut self, who: Who, message: &Message) -> String {
        let live = self.heads.get(&who).is_none_or(|head| message.sequence > *head);
        let latency = self.ledger.arrived(who, message, live);
        let text = message.text().unwrap_or_default();
        self.texts.insert(message.message_id, text.to_owned());
        let took = latency.map_or_else(|| "waited for this device".to_owned(), ms);
        let took = self.timeline.faint(format!("version {}, {took}", message.version));
        if message.author == Author::Sender {
            return format!("has its own copy of {text:?} {took}");
        }
        self.newest.insert(who, message.clone());
        format!("receives {text:?} {took}")
    }
}

/// The session of a device, if it is connected.
pub(super) fn session(device: &Device) -> Option<Session> {
    match &*device.state().borrow() {
        State::Connected(session) => Some(session.clone()),
        _ => None,
    }
}
