//! The chat's state machine: key presses and events go in, effects come out. No terminal, no network, no clock.

use std::collections::HashMap;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::limits::{CHAT_CONVERSATIONS_MAX, CHAT_HISTORIES_MAX};
use super::command::Line;
use super::conversation::{Conversation, Progress};
use super::input::Input;
use crate::client::{Accepted, Acknowledged, CloseReason, Content, Event, Message, SendError, Sent, State, Transport};
use crate::wire::proto::{AwarenessNotification, Subscriber};
use crate::wire::{AckStatus, Author, AwarenessStatus, CloseCode, DeviceId, Eid, LocalId, Version};

/// An input to the state machine.
pub(super) enum Happening {
    Key(KeyEvent),
    Pasted(String),
    Event(Event),
    State(State),
    /// A message was handed to the device under this local id.
    Composed {
        to: Eid,
        local_id: LocalId,
        content: Content,
        at: i64,
    },
    Sent(Eid, Sent),
    NotSent(Eid, Option<LocalId>, SendError),
    History {
        peer: Eid,
        messages: Vec<Message>,
        complete: bool,
    },
    NoHistory {
        peer: Eid,
        reason: String,
    },
    Contacts(Vec<Subscriber>),
    RoundTrip(Duration),
    Notice(String),
    /// The frame was drawn: lines of the open conversation, and how many of them fit.
    Drawn {
        lines: usize,
        height: usize,
    },
}

/// An output of the state machine.
#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    Send(Eid, Content),
    /// Ask for the page of history before this version, or the newest page.
    History(Eid, Option<Version>),
    Acknowledge(Eid, AckStatus, Version),
    Contacts,
    Admit(Eid),
    Status(AwarenessStatus),
    Reconnect,
    Quit,
}

/// The state of the connection to the server.
#[derive(Debug, PartialEq)]
pub(super) enum Connection {
    Connecting,
    Open { session: String, transport: Transport },
    Waiting { seconds: u64, reason: String },
    Closed { reason: String },
}

/// The state of the chat.
pub(super) struct App {
    pub(super) own: Eid,
    pub(super) device: DeviceId,
    pub(super) connection: Connection,
    pub(super) round_trip: Option<Duration>,
    /// Ordered by last activity, newest first.
    pub(super) conversations: Vec<Conversation>,
    open: Option<Eid>,
    /// Of these conversations' peers only.
    presence: HashMap<Eid, AwarenessStatus>,
    /// Requests for pages of history that are under way.
    requested: usize,
    pub(super) input: Input,
    /// A message to the user, shown until the next key press.
    pub(super) notice: Option<String>,
    pub(super) help: bool,
    /// Lines that fit on the screen, and lines of the open conversation.
    height: usize,
    lines: usize,
}

impl App {
    pub(super) fn new(own: Eid, device: DeviceId) -> App {
        App {
            own,
            device,
            connection: Connection::Connecting,
            round_trip: None,
            conversations: Vec::new(),
            open: None,
            presence: HashMap::new(),
            requested: 0,
            input: Input::default(),
            notice: None,
            help: false,
            height: 0,
            lines: 0,
        }
    }

    // --- What is shown ----------------------------------------------------------------------------------------------

    pub(super) fn opened(&self) -> Option<&Conversation> {
        let open = self.open.as_ref()?;
        self.conversations.iter().find(|conversation| conversation.peer == *open)
    }

    pub(super) fn is_open(&self, conversation: &Conversation) -> bool {
        self.open.as_ref() == Some(&conversation.peer)
    }

    pub(super) fn presence_of(&self, peer: &Eid) -> Option<AwarenessStatus> {
        self.presence.get(peer).copied()
    }

    pub(super) fn is_online(&self) -> bool {
        matches!(self.connection, Connection::Open { .. })
    }

    pub(super) fn unread(&self) -> usize {
        self.conversations.iter().map(Conversation::unread).sum()
    }

    // --- What happens -----------------------------------------------------------------------------------------------

    pub(super) fn update(&mut self, happening: Happening) -> Vec<Effect> {
        let mut effects = Vec::new();
        match happening {
            Happening::Key(key) => self.key(key, &mut effects),
            Happening::Pasted(text) => self.input.insert(&text),
            Happening::Event(event) => self.event(event, &mut effects),
            Happening::State(state) => self.state(state),
            Happening::Composed { to, local_id, content, at } => {
                self.conversation(&to).compose(local_id, content, at);
                self.sort();
            }
            // An answer is for a conversation that is there. If it were to make one that was evicted meanwhile, it would
            // evict another, whose answer would do the same.
            Happening::Sent(to, Sent { local_id, version, message_id, .. }) => {
                if let Some(conversation) = self.find(&to) {
                    conversation.sent(&local_id, version, message_id);
                }
            }
            Happening::NotSent(to, local_id, error) => {
                // These leave the message in the outbox; how it fares comes as an event.
                let still_waits = matches!(error, SendError::Unanswered(_) | SendError::Unread);
                if let Some((local_id, conversation)) = local_id.filter(|_| !still_waits).zip(self.find(&to)) {
                    conversation.refused(&local_id);
                }
                self.notice = Some(match still_waits {
                    true => format!("it is not known whether a message to {to} was sent: {error}"),
                    false => format!("not sent to {to}: {error}"),
                });
            }
            Happening::History { peer, messages, complete } => {
                self.requested = self.requested.saturating_sub(1);
                if let Some(conversation) = self.find(&peer) {
                    conversation.page(messages, complete);
                    self.sort();
                }
            }
            Happening::NoHistory { peer, reason } => {
                self.requested = self.requested.saturating_sub(1);
                let online = self.is_online();
                if let Some(conversation) = self.find(&peer) {
                    conversation.loading = false;
                    // A repeat at once would fail again. After a reconnect the history is requested anew.
                    conversation.failed = online;
                    if online {
                        self.notice = Some(format!("no history of {peer}: {reason}"));
                    }
                }
            }
            Happening::Contacts(contacts) => self.contacts(contacts),
            Happening::RoundTrip(time) => self.round_trip = Some(time),
            Happening::Notice(text) => self.notice = Some(text),
            Happening::Drawn { lines, height } => self.drawn(lines, height, &mut effects),
        }
        self.read(&mut effects);
        self.fetch(&mut effects);
        effects
    }

    /// Opens a conversation, which may be new.
    pub(super) fn open(&mut self, peer: &Eid) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.open_in(peer);
        self.read(&mut effects);
        self.fetch(&mut effects);
        effects
    }

    fn open_in(&mut self, peer: &Eid) {
        if *peer == self.own {
            self.notice = Some("that is you".to_owned());
            return;
        }
        self.conversation(peer);
        self.open = Some(peer.clone());
        self.help = false;
    }

    // --- Keys -------------------------------------------------------------------------------------------------------

    fn key(&mut self, key: KeyEvent, effects: &mut Vec<Effect>) {
        self.notice = None;
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let broken = key.modifiers.intersects(KeyModifiers::ALT | KeyModifiers::SHIFT);
        match key.code {
            KeyCode::Char('c') if control => effects.push(Effect::Quit),
            KeyCode::Char('d') if control && self.input.is_empty() => effects.push(Effect::Quit),
            KeyCode::Char('r') if control => effects.push(Effect::Reconnect),
            KeyCode::Char('n') if control => self.step(1),
            KeyCode::Char('p') if control => self.step(-1),
            KeyCode::Tab => self.step(1),
            KeyCode::BackTab => self.step(-1),
            KeyCode::PageUp => self.scroll(1, effects),
            KeyCode::PageDown => self.scroll(-1, effects),
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Esc => self.scroll(isize::MIN, effects),
            KeyCode::Enter if broken => self.input.insert("\n"),
            KeyCode::Enter => self.enter(effects),
            _ => drop(self.input.key(key)),
        }
    }

    fn enter(&mut self, effects: &mut Vec<Effect>) {
        let text = self.input.take();
        let line = match Line::parse(&text) {
            Ok(line) => line,
            Err(reason) => {
                self.notice = Some(reason);
                return;
            }
        };
        match (line, &self.open) {
            (Line::Nothing, _) => self.help = false,
            (Line::Say(content), Some(peer)) => {
                self.help = false;
                effects.push(Effect::Send(peer.clone(), content));
            }
            (Line::Say(_), None) => {
                self.input.insert(&text);
                self.notice = Some("to whom? /to bob@localhost opens a conversation".to_owned());
            }
            (Line::To(peer), _) => self.open_in(&peer),
            (Line::Admit(peer), _) => effects.push(Effect::Admit(peer)),
            (Line::Status(status), _) => effects.push(Effect::Status(status)),
            (Line::Reconnect, _) => effects.push(Effect::Reconnect),
            (Line::Help, _) => self.help = !self.help,
            (Line::Quit, _) => effects.push(Effect::Quit),
        }
    }

    /// Opens the next conversation or the one before.
    fn step(&mut self, by: isize) {
        let count = self.conversations.len();
        if count == 0 {
            return;
        }
        let current = self.conversations.iter().position(|conversation| self.is_open(conversation));
        let next = match current {
            Some(index) => (index + count).wrapping_add_signed(by) % count,
            None => 0,
        };
        self.open = Some(self.conversations[next].peer.clone());
        self.help = false;
    }

    /// Scrolls up by pages; `isize::MIN` scrolls all the way down.
    fn scroll(&mut self, pages: isize, effects: &mut Vec<Effect>) {
        // Keep one line of the previous page in view, for orientation.
        let page = self.height.saturating_sub(1).max(1);
        let (lines, height) = (self.lines, self.height);
        let Some(conversation) = self.opened_mut() else { return };
        let top = lines.saturating_sub(height);
        conversation.scroll = match pages {
            1.. => (conversation.scroll + page).min(top),
            isize::MIN => 0,
            _ => conversation.scroll.saturating_sub(page),
        };
        if pages > 0 {
            self.ask_for_older(effects);
        }
    }

    /// Keeps the scroll position valid and requests the history that is about to be shown.
    fn drawn(&mut self, lines: usize, height: usize, effects: &mut Vec<Effect>) {
        (self.lines, self.height) = (lines, height);
        let online = self.is_online();
        let Some(conversation) = self.opened_mut() else { return };
        conversation.scroll = conversation.scroll.min(lines.saturating_sub(height));
        if online && lines < conversation.scroll + 2 * height {
            self.ask_for_older(effects);
        }
    }

    // --- The device -------------------------------------------------------------------------------------------------

    fn event(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Connected(_) => {
                effects.push(Effect::Contacts);
                // A request that the previous connection could not answer is made anew.
                self.conversations.iter_mut().for_each(|conversation| conversation.failed = false);
            }
            Event::Disconnected(_) => self.round_trip = None,
            Event::Message(message) => self.message(message, effects),
            Event::Acknowledged(receipt) => self.receipt(&receipt),
            Event::Presence(presence) => self.told(&presence),
            Event::Accepted(accepted) => {
                // None has it if it was sent by an earlier run of this device: history has its text.
                let Accepted { local_id, version, message_id, .. } = accepted;
                self.conversations.iter_mut().for_each(|known| known.sent(&local_id, version, message_id));
            }
            Event::Refused(refused) => {
                if let Some(local_id) = &refused.local_id {
                    self.conversations.iter_mut().for_each(|known| known.refused(local_id));
                }
                self.notice = Some(format!("refused: {}", refused.refusal));
            }
            // Whoever submitted the message waits for its answer.
            Event::NotSent(_) => {}
        }
    }

    fn message(&mut self, message: Message, effects: &mut Vec<Effect>) {
        let received = message.author == Author::Receiver;
        let peer = if received { message.from.clone() } else { message.to.clone() };
        let conversation = self.conversation(&peer);
        conversation.wanted = true;
        conversation.message(message);
        if let Some(version) = conversation.newest_received().filter(|_| received) {
            effects.push(Effect::Acknowledge(peer, AckStatus::Delivered, version));
        }
        self.sort();
    }

    fn receipt(&mut self, receipt: &Acknowledged) {
        let Acknowledged { by, sender, target, status, .. } = receipt;
        let progress = if *status == AckStatus::Read { Progress::Read } else { Progress::Delivered };
        let own = *sender == self.own;
        if !(own || *by == self.own && progress == Progress::Read) {
            return;
        }
        let conversation = self.conversation(if own { by } else { sender });
        conversation.wanted = true;
        match own {
            true => conversation.reached(*target, progress),
            false => conversation.read(*target),
        }
    }

    fn told(&mut self, presence: &AwarenessNotification) {
        let Ok(peer) = Eid::from_identity(presence.from.as_ref()) else { return };
        if peer != self.own && self.listed(&peer).is_some() {
            self.presence.insert(peer, AwarenessStatus::from_code(presence.status).unwrap_or(AwarenessStatus::Unknown));
        }
    }

    fn contacts(&mut self, contacts: Vec<Subscriber>) {
        for contact in contacts.into_iter().filter(|contact| !contact.blocked) {
            let Ok(peer) = Eid::from_identity(contact.subscriber.as_ref()) else { continue };
            if let Some(conversation) = self.listed(&peer) {
                conversation.nickname = contact.nickname;
            }
        }
    }

    fn state(&mut self, state: State) {
        self.connection = match state {
            State::Connecting => match &self.connection {
                // Between two attempts: keep the reason visible.
                Connection::Waiting { reason, .. } => Connection::Waiting { seconds: 0, reason: reason.clone() },
                _ => Connection::Connecting,
            },
            State::Connected(session) => {
                self.round_trip.get_or_insert(session.connected_in);
                Connection::Open { session: session.session_id, transport: session.transport }
            }
            State::Waiting { retry_in, reason } => {
                Connection::Waiting { seconds: retry_in.as_millis().div_ceil(1000) as u64, reason: reason.to_string() }
            }
            State::Closed(CloseReason::Server { code: CloseCode::Replaced, .. }) => {
                Connection::Closed { reason: "signed in elsewhere as the same device".to_owned() }
            }
            State::Closed(reason) => Connection::Closed { reason: reason.to_string() },
        };
    }

    // --- Within -----------------------------------------------------------------------------------------------------

    /// Marks received messages as read if they are visible.
    fn read(&mut self, effects: &mut Vec<Effect>) {
        if self.help {
            return;
        }
        let Some(conversation) = self.opened_mut().filter(|conversation| conversation.scroll == 0) else { return };
        if let Some(version) = conversation.take_unread() {
            effects.push(Effect::Acknowledge(conversation.peer.clone(), AckStatus::Read, version));
        }
    }

    fn opened_mut(&mut self) -> Option<&mut Conversation> {
        let open = self.open.as_ref()?;
        self.conversations.iter_mut().find(|conversation| conversation.peer == *open)
    }

    fn find(&mut self, peer: &Eid) -> Option<&mut Conversation> {
        self.conversations.iter_mut().find(|conversation| conversation.peer == *peer)
    }

    /// Finds or makes a conversation in which something happened; at the bound, for that of the longest quiet.
    fn conversation(&mut self, peer: &Eid) -> &mut Conversation {
        let index = match self.conversations.iter().position(|conversation| conversation.peer == *peer) {
            Some(index) => index,
            None => {
                if self.conversations.len() >= CHAT_CONVERSATIONS_MAX {
                    let quiet = self.conversations.iter().rposition(|conversation| !self.is_open(conversation));
                    let evicted = self.conversations.remove(quiet.unwrap_or(CHAT_CONVERSATIONS_MAX - 1));
                    self.presence.remove(&evicted.peer);
                }
                self.conversations.push(Conversation::new(peer.clone()));
                self.conversations.len() - 1
            }
        };
        &mut self.conversations[index]
    }

    /// Finds a conversation, or makes one for a peer with whom nothing happened yet if there is room for it.
    fn listed(&mut self, peer: &Eid) -> Option<&mut Conversation> {
        if self.conversations.len() >= CHAT_CONVERSATIONS_MAX {
            return self.find(peer);
        }
        Some(self.conversation(peer))
    }

    /// Requests the newest pages of history, which have the states of messages: that of the open conversation first, then
    /// of those in which something happened. A conversation that is only listed waits until it is opened.
    fn fetch(&mut self, effects: &mut Vec<Effect>) {
        while self.is_online() {
            let is_due = |conversation: &Conversation| {
                let wanted = conversation.wanted || self.is_open(conversation);
                wanted && !conversation.fetched && !conversation.complete && conversation.may_ask()
            };
            let open = self.conversations.iter().position(|known| self.is_open(known) && is_due(known));
            // One place is left to what is open, also for its older messages.
            let places = if open.is_some() { CHAT_HISTORIES_MAX } else { CHAT_HISTORIES_MAX - 1 };
            let Some(next) = open.or_else(|| self.conversations.iter().position(is_due)) else { return };
            if self.requested >= places {
                return;
            }
            let conversation = &mut self.conversations[next];
            conversation.loading = true;
            self.requested += 1;
            effects.push(Effect::History(conversation.peer.clone(), None));
        }
    }

    /// Requests what is older than the open conversation shows.
    fn ask_for_older(&mut self, effects: &mut Vec<Effect>) {
        if self.requested >= CHAT_HISTORIES_MAX {
            // Drawing asks again.
            return;
        }
        let Some(conversation) = self.opened_mut() else { return };
        if conversation.may_ask() && conversation.has_older() {
            conversation.loading = true;
            effects.push(Effect::History(conversation.peer.clone(), conversation.floor()));
            self.requested += 1;
        }
    }

    fn sort(&mut self) {
        self.conversations.sort_by_key(|conversation| std::cmp::Reverse(conversation.active));
    }
}

#[cfg(test)]
mod tests;
