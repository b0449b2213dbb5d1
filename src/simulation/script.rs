//! What happens to the world: devices act, time passes, things fail; then everything settles.

use crate::hub::Notice;
use crate::store::{Fault, Space};
use crate::wire::{Lane, Payload};

use super::Violation;
use super::device::Outgoing;
use super::server::RELEASE_WITHIN;
use super::world::{DAY_MS, World};

/// Something that the world does not do by itself.
#[derive(Clone, Copy, Debug)]
enum Act {
    SignIn,
    Send,
    Resend,
    Misuse,
    Answer,
    Acknowledge,
    AcknowledgeAll,
    Sync,
    History,
    Ping,
    Vanish,
    PhoneRestart,
    Time,
    Days,
    Trim,
    DiskFails,
    Restart,
    Drain,
}

/// Most moves while everything settles: far more than any story needs, so that an endless loop is found.
const SETTLE_MOVES_MAX: usize = 200_000;

impl World {
    /// The eventful part. Each story has its own weights, so that some do little but crash, and others little but send.
    pub(super) fn live(&mut self, steps: usize) -> Result<(), Violation> {
        let usual: [(usize, Act); 18] = [
            (20, Act::SignIn),
            (40, Act::Send),
            (8, Act::Resend),
            (2, Act::Misuse),
            (8, Act::Answer),
            (20, Act::Acknowledge),
            (6, Act::AcknowledgeAll),
            (8, Act::Sync),
            (6, Act::History),
            (2, Act::Ping),
            (6, Act::Vanish),
            (2, Act::PhoneRestart),
            (6, Act::Time),
            (1, Act::Days),
            (6, Act::Trim),
            (2, Act::DiskFails),
            (2, Act::Restart),
            (1, Act::Drain),
        ];
        let weights = usual.map(|(weight, act)| (weight * self.random.of(&[0, 1, 1, 2, 5]), act));
        let weights: Vec<_> = weights.into_iter().chain([(1, Act::SignIn), (1, Act::Send)]).collect();
        let busy = self.random.within(40, 92);
        for _ in 0..steps {
            if !self.random.percent(busy) || !self.step()? {
                let act = self.random.weighted(&weights);
                self.act(act)?;
            }
            // Whatever supervises the server restarts it.
            if self.server.ledger.has_failed() && self.random.percent(5) {
                self.restart()?;
            }
        }
        Ok(())
    }

    fn act(&mut self, act: Act) -> Result<(), Violation> {
        let device = self.random.below(self.devices.len());
        let name = self.devices[device].name();
        let online = self.devices[device].link.is_some();
        match act {
            Act::Time => {
                let ms = self.random.of(&[1, 1, 50, 50, 500, 500, 1100, 1100, 31_000]);
                self.note(|| format!("{ms} ms pass"));
                self.time.pass(ms);
            }
            Act::Days => self.days_pass(),
            Act::Trim => {
                if let (Some((age, entries)), None) = (self.retention, &self.pass) {
                    self.begin_pass(self.time.now().unix_ms - age, entries);
                }
            }
            Act::DiskFails => {
                let fault = self.random.of(&[Fault::Before, Fault::After]);
                let commits = self.random.below(4);
                self.note(|| format!("the disk fails in {commits} commits, {fault:?}"));
                self.memory.fail_after(commits, fault);
            }
            Act::Restart => self.restart()?,
            Act::Drain => {
                self.note(|| "the server drains".into());
                self.server.services.hub.broadcast(&Notice::Drain);
            }
            // If it is signed in, this is a second connection of the same device.
            Act::SignIn if !online || self.random.percent(10) => {
                let (resume, pipelined) = (self.random.percent(80), self.random.percent(40));
                self.connect(device, resume, pipelined);
                if self.random.percent(60) {
                    self.send_again(device);
                }
            }
            Act::PhoneRestart => {
                self.note(|| format!("{name} restarts"));
                self.abandon(device);
                self.devices[device].forget_unsaved();
            }
            _ if !online => {}
            Act::Vanish => {
                self.note(|| format!("{name} vanishes"));
                self.abandon(device);
            }
            _ => self.chat(device, act),
        }
        Ok(())
    }

    fn chat(&mut self, device: usize, act: Act) {
        let sent = self.devices[device].outbox.len();
        match act {
            Act::Send => {
                let local = format!("{}-{sent}", self.devices[device].id);
                let others: Vec<_> =
                    self.users.iter().filter(|user| **user != self.devices[device].user).cloned().collect();
                let to = others[self.random.below(others.len())].clone();
                let padding = self.random.of(&[0, 0, 0, 0, 0, 0, 0, 50, 400, 16_000]);
                let text = format!("{sent:<7} from {local}{}", ".".repeat(padding));
                self.devices[device].outbox.push(Outgoing { local, to, text, given_up: false, sends: 0, answer: None });
                self.send_text(device, sent, false);
            }
            Act::Resend if sent > 0 => {
                let index = self.random.below(sent);
                if self.devices[device].outbox[index].given_up {
                    return;
                }
                self.send_text(device, index, false);
            }
            Act::Misuse if sent > 0 => {
                let index = self.random.below(sent);
                let out = &self.devices[device].outbox[index];
                if out.answer.is_some() && !out.given_up {
                    self.send_text(device, index, true);
                }
            }
            Act::Answer => self.answer(device),
            Act::Acknowledge | Act::AcknowledgeAll => self.acknowledge(device, matches!(act, Act::AcknowledgeAll)),
            Act::Sync => {
                let sync = self.devices[device].sync();
                self.send(device, Lane::Chat, sync, 0);
            }
            Act::History if self.devices[device].history.is_none() => {
                let peer = self.random.below(self.users.len());
                if self.users[peer] != self.devices[device].user {
                    let peer = self.users[peer].clone();
                    let (before, after) = self.random.of(&[(0, 0), (0, 0), (0, 2), (5, 0), (9, 3)]);
                    let limit = self.random.of(&[0, 1, 3, 200]);
                    let (payload, request) = self.devices[device].ask_history(&peer, before, after, limit);
                    self.send(device, Lane::Chat, payload, request);
                }
            }
            Act::Ping => {
                let ping = crate::wire::proto::PingPong { r#type: 1, status: 1, ..Default::default() };
                self.send(device, Lane::Control, Payload::PingpongMessage(ping), 0);
            }
            _ => {}
        }
    }

    fn send_text(&mut self, device: usize, index: usize, misuse: bool) {
        let sender = &mut self.devices[device];
        let request = if self.random.percent(80) { sender.request() } else { 0 };
        let text = if misuse { sender.misuse(index) } else { sender.text(index, false) };
        self.send(device, Lane::Chat, text, request);
    }

    /// Sends everything again that was not answered, as a client does after it has signed in.
    fn send_again(&mut self, device: usize) {
        for index in 0..self.devices[device].outbox.len() {
            let out = &self.devices[device].outbox[index];
            if out.answer.is_none() && !out.given_up {
                self.send_text(device, index, false);
            }
        }
    }

    fn acknowledge(&mut self, device: usize, bulk: bool) {
        let reader = &self.devices[device];
        let received: Vec<_> = reader.known.iter().filter(|(_, known)| !known.mine).map(|(id, _)| id.clone()).collect();
        if received.is_empty() {
            return;
        }
        let id = &received[self.random.below(received.len())];
        let status = self.random.of(&[2, 2, 3]);
        let at = self.time.now().unix_ms;
        let (payload, request) = self.devices[device].acknowledge(id, status, bulk, at);
        self.send(device, Lane::Chat, payload, request);
    }

    /// More time passes than names of messages are remembered. All phones are off, and nothing stays in transit.
    fn days_pass(&mut self) {
        if self.retention.is_none() {
            return;
        }
        self.note(|| "days pass".into());
        for device in 0..self.devices.len() {
            self.abandon(device);
            self.devices[device].outbox.iter_mut().for_each(|out| out.given_up = true);
        }
        self.links.values_mut().for_each(|link| link.lanes.iter_mut().for_each(|lane| lane.up.clear()));
        self.time.pass(8 * DAY_MS as u64);
    }

    /// Everything comes to rest: first without any device's help, then with every device connected again.
    pub(super) fn settle(&mut self) -> Result<(), Violation> {
        self.memory.heal();
        if self.server.ledger.has_failed() {
            self.restart()?;
        }
        self.links.values_mut().for_each(|link| link.narrow = None);
        self.rest()?;
        self.note(|| "everything rests; the bound passes".into());
        self.time.pass(RELEASE_WITHIN.as_millis() as u64 + 1);
        self.rest()?;
        if self.waiting() > 0 {
            return Err(format!("{} messages are held back for ever", self.waiting()));
        }
        for device in 0..self.devices.len() {
            self.connect(device, true, device % 2 == 0);
            self.links.values_mut().for_each(|link| link.narrow = None);
            self.send_again(device);
        }
        self.rest()?;
        self.time.pass(RELEASE_WITHIN.as_millis() as u64 + 1);
        self.rest()?;
        for device in 0..self.devices.len() {
            if !self.devices[device].accepted {
                return Err(format!("{} cannot sign in", self.devices[device].name()));
            }
        }
        Ok(())
    }

    /// A retention that keeps nothing must leave no rows, except those that say where numbers continue.
    pub(super) fn trim_all(&mut self) -> Result<(), Violation> {
        if self.retention.is_none() {
            return Ok(());
        }
        self.days_pass();
        self.rest()?;
        for _ in 0..2 {
            self.begin_pass(i64::MAX, 0);
            self.rest()?;
        }
        for space in [Space::Logs, Space::Messages, Space::Chats, Space::Locals, Space::Marks] {
            if self.rows(space) > 0 {
                return Err(format!("{} rows are left in {}", self.rows(space), space.name()));
            }
        }
        Ok(())
    }

    fn rest(&mut self) -> Result<(), Violation> {
        let until = self.moves + SETTLE_MOVES_MAX;
        while self.step()? {
            if self.moves > until {
                return Err("it never comes to rest".into());
            }
        }
        Ok(())
    }
}
