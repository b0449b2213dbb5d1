//! `bimip listen`: prints one line for each event of a device.

use std::future::{pending, ready};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep_until};

use super::connect::{Account, Connection, seconds};
use super::event_line::Line;
use super::limits::{PRINT_ENDS_WITHIN, WAIT_MAX};
use super::printer::Printer;
use super::receipts::Receipts;
use super::signals::Ending;
use super::{Failure, complain};
use crate::client::{CloseReason, Device, Event, Events, Session, State};
use crate::clock::Now;
use crate::wire::{AckStatus, Author, Sequence};

/// Print what a device receives, and acknowledge it as delivered
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connection: Connection,
    /// How long to listen [until interrupted]
    #[arg(long = "for", value_name = "SECONDS", value_parser = |text: &str| seconds(text, WAIT_MAX))]
    duration: Option<Duration>,
    /// Stop after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Acknowledge messages as read, too
    #[arg(long)]
    read: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// Why listening ends.
pub(super) enum End {
    /// The requested time, number of messages or signal was reached.
    Done,
    /// Nobody reads standard output any more, as after `head` has ended.
    Unheard,
    /// The connection is closed for good; no more events will come.
    Closed(CloseReason),
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let account = self.connection.account("cli-listen")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let stop = Stop::new(self.duration, Ending::listen()?)?;
            let (device, events) = account.builder().auto_deliver(true).connect()?;
            let listener = Listener {
                reader: self.read.then(|| Receipts::new(device.clone(), AckStatus::Read)),
                session: None,
                told: false,
                json: self.json,
                left: self.count,
                account,
                device,
                printer: Printer::start()?,
            };
            listener.run(events, stop).await
        })
    }
}

struct Listener {
    account: Account,
    device: Device,
    printer: Printer,
    reader: Option<Receipts>,
    /// The newest session.
    session: Option<Session>,
    /// Whether the user was told that there is no connection.
    told: bool,
    json: bool,
    /// Messages left until the requested count is reached.
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
                // Events that have come already are printed before listening ends.
                biased;
                event = events.peek() => match event {
                    Some(event) => match self.tell(&event, &mut stop).await? {
                        // Take the event only now: one that could not be printed comes again to the next listener.
                        None => {
                            let _ = events.try_next();
                            self.taken(event);
                        }
                        Some(end) => break end,
                    },
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
                end = stop.wanted() => break end,
            }
            if self.left == Some(0) {
                break End::Done;
            }
            if let Some(end) = stop.overdue().await {
                break end;
            }
        };
        self.leave(end).await
    }

    /// Prints an event; returns why it could not, if so.
    async fn tell(&mut self, event: &Event, stop: &mut Stop) -> Result<Option<End>, Failure> {
        if let Event::Connected(session) = event {
            self.session = Some(session.clone());
        }
        let head = self.session.as_ref().map_or(Sequence::ZERO, |session| session.log_head);
        let line = Line { event, at: Now::system().unix_ms, head };
        Ok(self.printer.print(if self.json { line.json() } else { line.words() }, stop).await?)
    }

    /// Handles an event after it was printed.
    fn taken(&mut self, event: Event) {
        match event {
            Event::Connected(_) => {
                if let Some(reader) = &mut self.reader {
                    reader.resume();
                }
            }
            Event::Message(message) => {
                self.left = self.left.map(|left| left - 1);
                if let Some(reader) = self.reader.as_mut().filter(|_| message.author == Author::Receiver) {
                    reader.reached(message.chat_id, &message.from, message.version);
                }
            }
            _ => {}
        }
    }

    /// Before the first session, tells the user why nothing happens; later the events do so.
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
            End::Done | End::Unheard => {
                if let Some(reader) = &mut self.reader {
                    reader.finish().await;
                }
                self.device.close().await;
                Ok(())
            }
        }
    }
}

/// The end of listening: the time is over, a signal came, or nobody reads standard output any more.
pub(super) struct Stop {
    until: Option<Instant>,
    /// A signal has come.
    told: bool,
    /// When the end was first seen to be wanted.
    since: Option<Instant>,
    ending: Ending,
    /// Standard output if it can be watched for a closed reader; `None` for a file, which has no reader.
    out: Option<pipe::Sender>,
}

impl Stop {
    pub(super) fn new(duration: Option<Duration>, ending: Ending) -> Result<Stop, Failure> {
        Ok(Stop {
            until: duration.map(|duration| Instant::now() + duration),
            told: false,
            since: None,
            ending,
            out: io::stdout().as_fd().try_clone_to_owned().and_then(pipe::Sender::from_owned_fd_unchecked).ok(),
        })
    }

    /// Waits for the first of them; once it has come, it is there every time. Cancel safe.
    pub(super) async fn wanted(&mut self) -> End {
        if self.told {
            return End::Done;
        }
        let time = async {
            match self.until {
                Some(until) => sleep_until(until).await,
                None => pending().await,
            }
        };
        let unheard = async {
            match &self.out {
                Some(out) => out.ready(Interest::ERROR).await.map(drop),
                None => pending().await,
            }
        };
        tokio::select! {
            () = time => End::Done,
            _ = unheard => End::Unheard,
            _ = self.ending.next() => {
                self.told = true;
                End::Done
            }
        }
    }

    /// The end, if it has been wanted for more than a moment: without a pause between events it would never come.
    pub(super) async fn overdue(&mut self) -> Option<End> {
        let end = tokio::select! {
            biased;
            end = self.wanted() => end,
            () = ready(()) => return None,
        };
        let since = *self.since.get_or_insert_with(Instant::now);
        (since.elapsed() >= PRINT_ENDS_WITHIN).then_some(end)
    }
}
