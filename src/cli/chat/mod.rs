//! `bimip chat`: conversations in the terminal. This file connects terminal, keyboard and device; `app` decides and
//! `ui` draws.

mod app;
mod command;
mod conversation;
mod input;
mod ui;

use std::io::{self, IsTerminal};
use std::time::Instant;

use jiff::tz::TimeZone;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{
    self, DisableBracketedPaste, EnableBracketedPaste, Event as TerminalEvent, KeyEventKind,
};
use ratatui::crossterm::execute;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::interval;

use self::app::{App, Effect, Happening};
use super::connect::Connection;
use super::limits::{
    CHAT_CONSENT_AFTER, CHAT_EVENTS_PER_DRAW, CHAT_KEY_POLL, CHAT_PAGE, CHAT_PING_EVERY, CHAT_QUEUE_MAX,
};
use super::receipts::Receipts;
use super::signals::Ending;
use super::{Failure, Usage};
use crate::client::{Content, Device, Event, Events, Message, RequestError};
use crate::wire::proto::{AwarenessNotification, HistoryRequest, SubscriberAddRequest, SubscriberListRequest};
use crate::wire::{AckStatus, AwarenessStatus, ChatId, Eid, Payload, Sequence, Version};

/// Chat in the terminal
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connection: Connection,
    /// User to open a conversation with, local@domain
    #[arg(long, value_name = "EID")]
    to: Option<Eid>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let account = self.connection.account("cli-chat")?;
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(Usage("chat needs a terminal: scripts have `bimip send` and `bimip listen`").into());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let _entered = runtime.enter();
        // Read the log from its start, because it holds the conversations.
        let (device, events) = account.builder().resume_from(Some(Sequence::ZERO)).connect()?;
        let app = App::new(account.eid.clone(), account.device.clone());
        let (answers, answered) = mpsc::channel(CHAT_QUEUE_MAX);
        let chat = Chat {
            delivered: Receipts::new(device.clone(), AckStatus::Delivered),
            read: Receipts::new(device.clone(), AckStatus::Read),
            device: device.clone(),
            app,
            answers,
            over: false,
        };
        // `try_init` also restores the terminal after a panic.
        let mut terminal = ratatui::try_init()?;
        let _ = execute!(io::stdout(), EnableBracketedPaste);
        let result = runtime.block_on(chat.run(&mut terminal, events, answered, self.to));
        let _ = execute!(io::stdout(), DisableBracketedPaste);
        if ratatui::try_restore().is_err() {
            // The window was closed. Dropping the terminal would complain to it, and panic because that fails, too.
            std::mem::forget(terminal);
        }
        runtime.block_on(device.close());
        // The keyboard's thread ends after its current poll.
        Ok(result?)
    }
}

struct Chat {
    device: Device,
    app: App,
    delivered: Receipts,
    read: Receipts,
    answers: mpsc::Sender<Happening>,
    over: bool,
}

impl Chat {
    async fn run(
        mut self,
        terminal: &mut DefaultTerminal,
        mut events: Events,
        mut answered: mpsc::Receiver<Happening>,
        to: Option<Eid>,
    ) -> io::Result<()> {
        let zone = TimeZone::system();
        let mut keys = keyboard();
        let mut state = self.device.state();
        state.mark_changed();
        let mut ending = Ending::listen()?;
        let mut pings = interval(CHAT_PING_EVERY);
        let mut ping: Option<JoinHandle<()>> = None;
        if let Some(to) = to {
            let effects = self.app.open(&to);
            self.perform(effects);
        }
        while !self.over {
            let mut drawn = None;
            terminal.draw(|frame| drawn = Some(ui::draw(frame, &self.app, &zone)))?;
            if let Some(ui::Drawn { lines, height }) = drawn {
                self.happened(Happening::Drawn { lines, height });
            }
            tokio::select! {
                key = keys.recv() => match key {
                    Some(event) => self.terminal(event),
                    None => break,
                },
                Some(answer) = answered.recv() => self.happened(answer),
                Some(event) = events.next() => {
                    self.event(event);
                    // So that a long log is not drawn message by message.
                    for _ in 0..CHAT_EVENTS_PER_DRAW {
                        let Some(event) = events.try_next() else { break };
                        self.event(event);
                    }
                }
                Ok(()) = state.changed() => {
                    let now = state.borrow_and_update().clone();
                    self.happened(Happening::State(now));
                }
                () = self.delivered.turn() => {}
                () = self.read.turn() => {}
                _ = pings.tick() => {
                    if self.app.is_online() && ping.as_ref().is_none_or(JoinHandle::is_finished) {
                        ping = Some(self.ping());
                    }
                }
                _ = ending.next() => break,
            }
        }
        Ok(())
    }

    fn terminal(&mut self, event: TerminalEvent) {
        match event {
            TerminalEvent::Key(key) if key.kind != KeyEventKind::Release => self.happened(Happening::Key(key)),
            TerminalEvent::Paste(text) => self.happened(Happening::Pasted(text)),
            // Other events, such as a resize, only need a redraw.
            _ => {}
        }
    }

    fn event(&mut self, event: Event) {
        if let Event::Connected(_) = &event {
            self.delivered.resume();
            self.read.resume();
            drop(self.ping());
        }
        self.happened(Happening::Event(event));
    }

    fn happened(&mut self, happening: Happening) {
        let effects = self.app.update(happening);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Quit => self.over = true,
                Effect::Send(to, content) => self.send(to, content),
                Effect::History(peer, before) => self.history(peer, before),
                Effect::Acknowledge(peer, status, version) => {
                    let chat = ChatId::between(&self.app.own, &peer);
                    let receipts = if status == AckStatus::Read { &mut self.read } else { &mut self.delivered };
                    receipts.reached(chat, &peer, version);
                }
                Effect::Contacts => self.contacts(),
                Effect::Admit(peer) => self.admit(peer),
                Effect::Status(status) => self.status(status),
                Effect::Reconnect => self.answer(|device| async move {
                    let tried = device.reconnect().await;
                    tried.err().map(|error| Happening::Notice(error.to_string()))
                }),
            }
        }
    }

    // --- What is asked of the device --------------------------------------------------------------------------------

    /// Submits messages in the order of writing; each answer comes back as a [`Happening`].
    fn send(&mut self, to: Eid, content: Content) {
        let draft = self.device.draft(&to, content);
        let composed = Happening::Composed {
            to: to.clone(),
            local_id: draft.local_id.clone(),
            content: draft.content.clone(),
            at: draft.created_at,
        };
        let local_id = draft.local_id.clone();
        match self.device.submit(draft) {
            Ok(ticket) => {
                self.happened(composed);
                self.answer(|_| async move {
                    Some(match ticket.await {
                        Ok(sent) => Happening::Sent(to, sent),
                        Err(error) => Happening::NotSent(to, Some(local_id), error),
                    })
                });
            }
            Err(error) => self.happened(Happening::NotSent(to, None, error)),
        }
    }

    fn history(&self, peer: Eid, before: Option<Version>) {
        self.answer(|device| async move {
            let request = HistoryRequest {
                peer: Some(peer.identity()),
                before_version: before.map_or(0, Version::wire),
                after_version: 0,
                limit: CHAT_PAGE,
            };
            Some(match device.request(Payload::HistoryRequest(request)).await {
                Ok(Payload::HistoryPage(page)) => {
                    let parse = |message| Message::parse(message, Sequence::ZERO, Instant::now());
                    let messages = page.messages.into_iter().filter_map(parse).collect();
                    Happening::History { peer, messages, complete: page.complete }
                }
                Ok(_) => Happening::NoHistory { peer, reason: RequestError::Unexpected.to_string() },
                Err(error) => Happening::NoHistory { peer, reason: error.to_string() },
            })
        });
    }

    fn contacts(&self) {
        let owner = Some(self.app.own.identity());
        self.answer(|device| async move {
            let list = device.request(Payload::SubscriberListRequest(SubscriberListRequest { owner })).await;
            match list {
                Ok(Payload::SubscriberList(list)) => Some(Happening::Contacts(list.entries)),
                // Conversations work without the list, and a reconnect requests it again.
                _ => None,
            }
        });
    }

    fn admit(&self, peer: Eid) {
        let owner = Some(self.app.own.identity());
        self.answer(|device| async move {
            let request =
                SubscriberAddRequest { owner, subscriber: Some(peer.identity()), ..SubscriberAddRequest::default() };
            Some(Happening::Notice(match device.request(Payload::SubscriberAddRequest(request)).await {
                Ok(_) => format!("{peer} may see you now"),
                Err(error) => format!("{peer} was not admitted: {error}"),
            }))
        });
    }

    fn status(&self, status: AwarenessStatus) {
        let from = Some(self.app.own.device_identity(&self.app.device));
        self.answer(|device| async move {
            let notification =
                AwarenessNotification { from, status: status.code(), ..AwarenessNotification::default() };
            let told = Happening::Notice(format!("you are {}", status.name().replace('_', " ")));
            // The server answers a refused status only; no answer within the timeout means that it was accepted.
            let asked = device.request(Payload::AwarenessNotification(notification));
            Some(match tokio::time::timeout(CHAT_CONSENT_AFTER, asked).await {
                Ok(Err(error)) => Happening::Notice(format!("you are not: {error}")),
                _ => told,
            })
        });
    }

    fn ping(&self) -> JoinHandle<()> {
        let (device, answers) = (self.device.clone(), self.answers.clone());
        tokio::spawn(async move {
            if let Ok(time) = device.ping().await {
                // If the send fails, the chat is over.
                let _ = answers.send(Happening::RoundTrip(time)).await;
            }
        })
    }

    /// Runs a request in the background; its result comes back as a [`Happening`].
    fn answer<F>(&self, ask: impl FnOnce(Device) -> F)
    where
        F: Future<Output = Option<Happening>> + Send + 'static,
    {
        let answers = self.answers.clone();
        let asked = ask(self.device.clone());
        tokio::spawn(async move {
            if let Some(happening) = asked.await {
                // If the send fails, the chat is over.
                let _ = answers.send(happening).await;
            }
        });
    }
}

/// Reads key presses and other terminal events on a separate thread until the receiver is dropped.
fn keyboard() -> mpsc::Receiver<TerminalEvent> {
    let (sender, keys) = mpsc::channel(CHAT_QUEUE_MAX);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let news = match event::poll(CHAT_KEY_POLL) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            // The chat ends if its terminal is gone.
            let Ok(news) = news else { break };
            if sender.blocking_send(news).is_err() {
                break;
            }
        }
    });
    keys
}
