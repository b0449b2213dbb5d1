//! A server that is killed under load at any moment loses nothing that it acknowledged (README.md, What it promises).
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use bimip::wire::proto::{ChatMessage, SessionAccept};
use bimip::wire::{AckStatus, Lane, MessageScheme, Payload};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use common::{Dice, Got, Process, Raw, scratch, text_of, within_bound};

const ROUNDS: usize = 24;
/// User, device, pipelined or not, and recipients.
const SENDERS: [(&str, &str, bool, &[&str]); 5] = [
    (ALICE, "phone", true, &[BOB, ERIN]),
    (ALICE, "desk", false, &[BOB, ERIN]),
    ("carol@localhost", "phone", false, &[BOB, ERIN]),
    ("dave@localhost", "phone", true, &[BOB]),
    (BOB, "desk", true, &[ALICE]),
];
const LISTENERS: [&str; 2] = [BOB, ERIN];
const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";
const ERIN: &str = "erin@localhost";
/// At most this many messages of one sender wait for their VersionUpdate.
const IN_FLIGHT: usize = 16;

/// `KILL_SEED` repeats the random choices, but not the timing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_message_survives_kill_9() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = std::env::var("KILL_SEED").map_or(u64::from(now), |seed| seed.parse().unwrap());
    println!("KILL_SEED={seed}");
    let (mut dice, directory) = (Dice::new(seed), scratch());
    let mut world = World::new(&mut dice);
    for round in 1..=ROUNDS {
        // From zero to longer than any round, so that the kill comes before, during and after the release of messages.
        let release_within = [0, 20, 60_000][dice.roll(3)].to_string();
        let server = Process::start(directory.path(), &[("BIMIP_SESSION__RELEASE_WITHIN_MS", &release_within)]).await;
        let updates = if dice.roll(8) == 0 { 0 } else { dice.roll(150) };
        world.round(server, updates, dice.roll(60)).await;
        let (seen, open) = (world.seen(), world.senders.iter().map(|sender| sender.open.len()).sum::<usize>());
        println!("round {round}: killed after {updates} updates; {seen} seen so far, {open} unanswered");
    }
    let server = Process::start(directory.path(), &[]).await;
    world.finish(&server).await;
    world.check(&server).await;
    assert!(!server.log().contains("panicked"), "{}", server.log());
    println!("{} messages, none lost and none twice", world.seen());
    server.kill().await;
}

/// The message at each sequence of each user's log, as seen by any device.
type Logs = Arc<Mutex<BTreeMap<(String, i64), String>>>;

/// Records a message's sequence, and asserts that no device has seen another message there.
fn remember(logs: &Logs, user: &str, sequence: i64, message: &str) {
    assert!(sequence > 0, "{message} is not from the log");
    let there = logs.lock().unwrap().entry((user.to_owned(), sequence)).or_insert_with(|| message.to_owned()).clone();
    assert_eq!(there, message, "{user}'s sequence {sequence} has been used before");
}

struct World {
    logs: Logs,
    senders: Vec<Sender>,
    listeners: Vec<Listener>,
}

impl World {
    fn new(dice: &mut Dice) -> World {
        let logs = Logs::default();
        let senders = SENDERS.map(|(eid, device, pipelined, to)| Sender {
            eid,
            device,
            pipelined,
            to,
            dice: dice.fork(),
            logs: logs.clone(),
            resume: 0,
            said: 0,
            open: BTreeMap::new(),
            seen: BTreeMap::new(),
        });
        let listeners = LISTENERS.map(|eid| Listener {
            eid,
            dice: dice.fork(),
            logs: logs.clone(),
            resume: 0,
            versions: BTreeMap::new(),
        });
        World { logs, senders: senders.into(), listeners: listeners.into() }
    }

    fn seen(&self) -> usize {
        self.senders.iter().map(|sender| sender.seen.len()).sum()
    }

    /// Runs all devices until they have seen `updates` new VersionUpdates and after them `frames` further events; then kills
    /// the server.
    async fn round(&mut self, server: Process, updates: usize, frames: usize) {
        let ((events, mut happened), (stop, stopped)) = (mpsc::unbounded_channel(), watch::channel(false));
        let place = Place { directory: server.data_dir().to_owned(), address: server.door.address };
        let (mut senders, mut listeners) = (JoinSet::new(), JoinSet::new());
        for mut sender in self.senders.drain(..) {
            let (place, events, stopped) = (place.clone(), events.clone(), stopped.clone());
            senders.spawn(async move {
                until(stopped, sender.talk(&place, &events, false)).await;
                sender
            });
        }
        for mut listener in self.listeners.drain(..) {
            let (place, events, stopped) = (place.clone(), events.clone(), stopped.clone());
            listeners.spawn(async move {
                until(stopped, listener.listen(&place, &events)).await;
                listener
            });
        }
        let wait = async {
            let mut updates = updates;
            while updates > 0 {
                updates -= usize::from(happened.recv().await == Some(Event::Update));
            }
            for _ in 0..frames {
                happened.recv().await;
            }
        };
        within_bound("enough to happen before the kill", wait).await;
        server.kill().await;
        stop.send_replace(true);
        // A kill sends no close and so makes no device fail: a task that panicked has found a fault.
        self.senders = senders.join_all().await;
        self.listeners = listeners.join_all().await;
    }

    /// Sends all unanswered messages again and waits for the answers.
    async fn finish(&mut self, server: &Process) {
        let place = Place { directory: server.data_dir().to_owned(), address: server.door.address };
        let (events, _happened) = mpsc::unbounded_channel();
        for sender in &mut self.senders {
            within_bound("the last answers", sender.talk(&place, &events, true)).await;
            assert!(sender.open.is_empty());
        }
    }

    /// Reads each user's log from its start on a new device, and compares it with what the devices have seen.
    async fn check(&self, server: &Process) {
        let mut marker = server.door.session("zoe@localhost", "phone").pipelined().open().await;
        let mut versions = BTreeMap::<String, i64>::new();
        for user in [ALICE, BOB, ERIN, "carol@localhost", "dave@localhost"] {
            marker.say(user, &format!("marker-{user}"), "the end").await;
            let mut audit = server.door.session(user, "audit").resume_from(0).open().await;
            let (mut found, mut of_chat) = (BTreeMap::new(), BTreeMap::new());
            loop {
                let scheme = audit.recv(Lane::Chat).await;
                let message = match &scheme.payload {
                    Some(Payload::ChatMessage(_)) => Got::<ChatMessage>::from_scheme(&scheme),
                    Some(Payload::AcknowledgmentResponse(_)) => continue,
                    other => panic!("{other:?} in the log of {user}"),
                };
                if text_of(&message) == "the end" {
                    break;
                }
                remember(&self.logs, user, message.sequence, &message.message_id);
                let next = of_chat.entry(message.chat_id.clone()).or_insert(0);
                *next += 1;
                assert_eq!(message.version, *next, "{} in the log of {user}", message.chat_id);
                let name = (message.from.clone().unwrap().eid, message.message_id_local.clone());
                assert!(found.insert(name, message).is_none(), "twice in the log of {user}");
            }
            for sender in &self.senders {
                let about_user = |to: &str| sender.eid == user || to == user;
                for (local, seen) in sender.seen.iter().filter(|(_, seen)| about_user(seen.to)) {
                    let message = found.remove(&(sender.eid.to_owned(), local.clone()));
                    let message = message.unwrap_or_else(|| panic!("{local} is not in the log of {user}"));
                    let author = if sender.eid == user { "sender" } else { "receiver" };
                    assert_eq!((text_of(&message), message.author.as_str()), (seen.text.as_str(), author));
                    let stored = (message.chat_id.clone(), message.version, message.message_id.clone());
                    assert_eq!(stored, (seen.chat_id.clone(), seen.version, seen.message_id.clone()), "{local}");
                }
            }
            assert!(found.is_empty(), "in the log of {user} though nobody sent it: {found:?}");
            versions.extend(of_chat);
        }
        // The last version of a chat is its number of messages.
        assert_eq!(versions.values().sum::<i64>(), self.seen() as i64);
    }
}

/// Directory and address of this round's server.
#[derive(Clone)]
struct Place {
    directory: PathBuf,
    address: std::net::SocketAddr,
}

impl Place {
    fn door(&self) -> common::Door {
        common::Door::new(Path::new(&self.directory), self.address, bimip::limits::FRAME_BYTES_MAX)
    }
}

#[derive(PartialEq)]
enum Event {
    Update,
    Other,
}

/// Runs `work` until the server has been killed, then drops it: a kill closes no connection, so `work` would go on waiting.
async fn until(mut stopped: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        _ = stopped.wait_for(|stopped| *stopped) => {}
        () = work => {}
    }
}

/// A sending device. Its state is kept from one server process to the next.
struct Sender {
    eid: &'static str,
    device: &'static str,
    pipelined: bool,
    to: &'static [&'static str],
    dice: Dice,
    logs: Logs,
    /// Highest sequence seen.
    resume: i64,
    said: usize,
    /// Messages sent without a VersionUpdate so far, by `message_id_local`.
    open: BTreeMap<String, Said>,
    seen: BTreeMap<String, Seen>,
}

#[derive(Clone)]
struct Said {
    to: &'static str,
    text: String,
}

struct Seen {
    to: &'static str,
    text: String,
    chat_id: String,
    version: i64,
    message_id: String,
    sequence: i64,
}

impl Sender {
    /// Sends all unanswered messages and some answered ones again. After that it sends new messages without end or, with
    /// `finish`, returns when the repeated ones are answered.
    async fn talk(&mut self, place: &Place, events: &mpsc::UnboundedSender<Event>, finish: bool) {
        let door = place.door();
        let mut session = door.session(self.eid, self.device).resume_from(self.resume);
        if self.pipelined || finish {
            session = session.pipelined();
        }
        let (mut raw, _) = session.attempt().await;
        raw.expect::<SessionAccept>(Lane::Control).await;
        let mut again: Vec<_> = self.open.iter().map(|(local, said)| (local.clone(), said.clone())).collect();
        for _ in 0..self.dice.roll(4).min(self.seen.len()) {
            let (local, seen) = self.seen.iter().nth(self.dice.roll(self.seen.len())).unwrap();
            again.push((local.clone(), Said { to: seen.to, text: seen.text.clone() }));
        }
        let mut expected = again.len();
        for (local, Said { to, text }) in again {
            raw.post(to, &local, &text).await;
            let _ = events.send(Event::Other);
        }
        while !finish || expected > 0 {
            if !finish && self.open.len() < IN_FLIGHT && self.dice.roll(2) == 0 {
                self.said += 1;
                let (local, to) = (format!("{}-{}", self.device, self.said), self.to[self.dice.roll(self.to.len())]);
                let text = format!("{local} of {} to {to}", self.eid);
                self.open.insert(local.clone(), Said { to, text: text.clone() });
                raw.post(to, &local, &text).await;
                let _ = events.send(Event::Other);
            } else if !finish && self.open.is_empty() {
                // Nothing is unanswered: do not wait for a frame that may never come.
            } else {
                let scheme = raw.recv(Lane::Chat).await;
                expected -= usize::from(self.hear(&mut raw, &scheme, events).await && expected > 0);
            }
        }
    }

    /// Checks and records a frame. Returns whether it answers a request.
    async fn hear(&mut self, raw: &mut Raw, scheme: &MessageScheme, events: &mpsc::UnboundedSender<Event>) -> bool {
        let message_id = match &scheme.payload {
            Some(Payload::VersionUpdate(update)) => {
                let local = &update.message_id_local;
                if let Some(said) = self.open.remove(local) {
                    let (chat_id, message_id) = (update.chat_id.clone(), update.message_id.clone());
                    let (version, sequence, Said { to, text }) = (update.version, scheme.sequence, said);
                    let seen = Seen { to, text, chat_id, version, message_id, sequence };
                    self.seen.insert(local.clone(), seen);
                    let _ = events.send(Event::Update);
                }
                let seen = self.seen.get(local).unwrap_or_else(|| panic!("an answer to nothing: {update:?}"));
                let before = (seen.version, &seen.message_id, &seen.chat_id, seen.sequence);
                assert_eq!(before, (update.version, &update.message_id, &update.chat_id, scheme.sequence), "{local}");
                if !self.pipelined && self.dice.roll(2) == 0 {
                    raw.answer(update).await;
                }
                update.message_id.clone()
            }
            Some(Payload::ChatMessage(message)) => message.message_id.clone(),
            Some(Payload::AcknowledgmentResponse(_)) => {
                self.resume = self.resume.max(scheme.sequence);
                return false;
            }
            other => panic!("{other:?} to {} {}", self.eid, self.device),
        };
        let _ = events.send(Event::Other);
        remember(&self.logs, self.eid, scheme.sequence, &message_id);
        self.resume = self.resume.max(scheme.sequence);
        scheme.request_id != 0
    }
}

/// A receiving device that acknowledges some messages.
struct Listener {
    eid: &'static str,
    dice: Dice,
    logs: Logs,
    /// Highest sequence seen.
    resume: i64,
    /// Newest version seen of each chat.
    versions: BTreeMap<String, i64>,
}

impl Listener {
    async fn listen(&mut self, place: &Place, events: &mpsc::UnboundedSender<Event>) {
        let door = place.door();
        let (mut raw, _) = door.session(self.eid, "phone").resume_from(self.resume).attempt().await;
        let accept = raw.expect::<SessionAccept>(Lane::Control).await;
        assert!(accept.log_head >= self.resume, "{}'s log has lost what was delivered", self.eid);
        let mut heard = BTreeSet::new();
        loop {
            let scheme = raw.recv(Lane::Chat).await;
            let Some(Payload::ChatMessage(message)) = &scheme.payload else { continue };
            assert!(heard.insert(message.message_id.clone()) && scheme.sequence > self.resume, "twice: {message:?}");
            remember(&self.logs, self.eid, scheme.sequence, &message.message_id);
            let version = self.versions.entry(message.chat_id.clone()).or_insert(0);
            assert_eq!(message.version, *version + 1, "in order: {message:?}");
            (*version, self.resume) = (message.version, scheme.sequence);
            if message.author == "receiver" && self.dice.roll(4) == 0 {
                raw.acknowledge(message, AckStatus::Delivered).await;
            }
            let _ = events.send(Event::Other);
        }
    }
}
