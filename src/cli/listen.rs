//! `bimip listen`: everything that happens to a device, one line each.

use std::future::pending;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::connect::{Account, Connection, seconds};
use super::event_line::Line;
use super::limits::WAIT_MAX;
use super::receipts::Receipts;
use super::{Failure, complain, say};
use crate::client::{CloseReason, Device, Event, Events, Session, State};
use crate::clock::Now;
use crate::wire::{AckStatus, Author, Sequence};

/// Print what a device receives, and acknowledge it as delivered
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connection: Connection,
    /// How long [until interrupted]
    #[arg(long = "for", value_name = "SECONDS", value_parser = |text: &str| seconds(text, WAIT_MAX))]
    duration: Option<Duration>,
    /// Stop after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Acknowledge as read, too
    #[arg(long)]
    read: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// What ends it.
enum End {
    /// As asked for.
    Done,
    /// There will be no further event.
    Closed(CloseReason),
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let account = self.connection.account("cli-listen")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let stop = Stop::new(self.duration)?;
            let (device, events) = account.builder().auto_deliver(true).connect()?;
            let listener = Listener {
                reader: self.read.then(|| Receipts::new(device.clone(), AckStatus::Read)),
                session: None,
                told: false,
                json: self.json,
                left: self.count,
                account,
                device,
            };
            listener.run(events, stop).await
        })
    }
}

struct Listener {
    account: Account,
    device: Device,
    reader: Option<Receipts>,
    /// The newest.
    session: Option<Session>,
    /// Whether it was told that there is none.
    told: bool,
    json: bool,
    /// Messages to come.
    left: Option<u64>,
}

impl Listener {
    async fn run(mut self, mut events: Events, mut stop: Stop) -> Result<(), Failure> {
        let mut state = self.device.state();
        let end = loop {
            let reading = async {
                match &mut self.reader {
                    Some(reader) => reader.turn().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                // What has come already is told before what ends it.
                biased;
                event = events.next() => match event {
                    Some(event) => self.tell(&event)?,
                    None => break End::Closed(CloseReason::Local),
                },
                () = reading => {}
                changed = state.changed() => {
                    if changed.is_err() {
                        break End::Closed(CloseReason::Local);
                    }
                    let now = state.borrow_and_update().clone();
                    if let State::Closed(reason) = now {
                        break End::Closed(reason);
                    }
                    self.look(&now)?;
                }
                () = stop.wanted() => break End::Done,
            }
            if self.left == Some(0) {
                break End::Done;
            }
        };
        self.leave(end).await
    }

    fn tell(&mut self, event: &Event) -> Result<(), Failure> {
        if let Event::Connected(session) = event {
            self.session = Some(session.clone());
            if let Some(reader) = &mut self.reader {
                reader.resume();
            }
        }
        let head = self.session.as_ref().map_or(Sequence::ZERO, |session| session.log_head);
        let line = Line { event, at: Now::system().unix_ms, head };
        say(&if self.json { line.json() } else { line.words() })?;
        if let Event::Message(message) = event {
            self.left = self.left.map(|left| left - 1);
            if let Some(reader) = self.reader.as_mut().filter(|_| message.author == Author::Receiver) {
                reader.reached(message.chat_id, &message.from, message.version);
            }
        }
        Ok(())
    }

    /// Before the first session a person wants to know why nothing happens; later the events tell.
    fn look(&mut self, state: &State) -> Result<(), Failure> {
        let State::Waiting { reason, .. } = state else { return Ok(()) };
        if self.session.is_some() || self.told {
            return Ok(());
        }
        let failure = self.account.failure(reason);
        if matches!(reason, CloseReason::Tls(_) | CloseReason::NoToken(_)) {
            return Err(failure);
        }
        self.told = true;
        complain(&format!("{:#}; trying again", failure.reason), failure.hint.as_deref());
        Ok(())
    }

    async fn leave(mut self, end: End) -> Result<(), Failure> {
        match end {
            End::Closed(reason) => Err(self.account.failure(&reason)),
            End::Done if self.session.is_none() => {
                let reason = match &*self.device.state().borrow() {
                    State::Waiting { reason, .. } => reason.clone(),
                    _ => CloseReason::Network("no answer in time".to_owned()),
                };
                Err(self.account.failure(&reason))
            }
            End::Done => {
                if let Some(reader) = &mut self.reader {
                    reader.finish().await;
                }
                self.device.close().await;
                Ok(())
            }
        }
    }
}

/// The end of the time, or a signal.
struct Stop {
    until: Option<Instant>,
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new(duration: Option<Duration>) -> Result<Stop, Failure> {
        Ok(Stop {
            until: duration.map(|duration| Instant::now() + duration),
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Cancel safe.
    async fn wanted(&mut self) {
        let time = async {
            match self.until {
                Some(until) => sleep_until(until).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = time => {}
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
