//! The world: devices, links and a server, and every move that any of them can make at a given moment.

use std::collections::BTreeMap;

use crate::limits::{FRAME_BYTES_MAX, LANE_QUEUE_BYTES, SESSION_CALLS_MAX, SESSION_UNRELEASED_MAX};
use crate::session::{LinkEvent, Output};
use crate::store::{Key, Kv, Memory, Op, Order, Pass, Retention, Space, all_rows};
use crate::wire::{DeviceId, Eid, Lane};

use super::Violation;
use super::chronicle::Chronicle;
use super::device::Device;
use super::link::{Link, Up};
use super::server::{LinkId, Move, Server, Time};
use crate::random::Random;

pub(super) const DAY_MS: i64 = 24 * 3600 * 1000;

/// A move that is possible now.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The store's writer commits, tells the hub of one entry, or answers one call.
    Write,
    /// The retention looks for its next rows.
    Trim,
    /// The store writes cursors that have moved.
    Flush,
    /// A read of the store.
    Read,
    /// A session's call reaches the store.
    Submit(LinkId),
    /// A session handles its notices.
    Notice(LinkId),
    /// A session takes a finished call.
    Done(LinkId),
    /// A session takes what a client sent.
    Up(LinkId, Lane),
    /// A session's deadline is due.
    Tick(LinkId),
    /// The transport takes a frame.
    Take(LinkId, Lane),
    /// A client takes a frame.
    Down(LinkId, Lane),
    /// The server notices that the client is gone.
    ServerSees(LinkId),
    /// A client notices that its connection is gone.
    ClientSees(LinkId),
}

pub(super) struct World {
    pub(super) random: Random,
    pub(super) time: Time,
    pub(super) memory: Memory,
    pub(super) server: Server,
    pub(super) devices: Vec<Device>,
    pub(super) users: Vec<Eid>,
    pub(super) links: BTreeMap<LinkId, Link>,
    pub(super) next_link: LinkId,
    pub(super) chronicle: Chronicle,
    /// Highest sequence that was trimmed, by user.
    pub(super) trimmed: BTreeMap<Eid, i64>,
    /// In stories with a retention: the greatest age of an entry in milliseconds, and how many entries a log keeps.
    pub(super) retention: Option<(i64, u64)>,
    /// The current pass of the retention, and where the last one ended.
    pub(super) pass: Option<(Retention, Pass)>,
    pub(super) swept: Key,
    /// The moves so far; kept only when a seed is replayed.
    pub(super) trace: Option<Vec<String>>,
    pub(super) moves: usize,
    /// How often clients answer and links are narrow in this story, in percent.
    pub(super) answers: usize,
    pub(super) narrow: usize,
    /// Most operations in one commit of this story.
    pub(super) group: usize,
    possible: Vec<Step>,
}

impl World {
    pub(super) fn new(seed: u64, traced: bool) -> Result<World, Violation> {
        let mut random = Random::new(seed);
        let names = ["alice@x", "bob@x", "carol@x", "dave@x"];
        let users: Vec<_> = names[..random.within(2, 4)].iter().map(|name| Eid::parse(name).unwrap()).collect();
        let mut devices = Vec::new();
        for user in &users {
            for id in &["phone", "tablet", "desk"][..random.of(&[1, 1, 2, 2, 3])] {
                devices.push(Device::new(user.clone(), DeviceId::parse(id).unwrap()));
            }
        }
        let retention =
            random.percent(35).then(|| (random.of(&[200, 60_000, 10 * DAY_MS]), random.of(&[0, 4, 12, 1000])));
        let (time, memory) = (Time::new(), Memory::new());
        let server = Server::start(&memory, &time, random.number()).map_err(|error| error.to_string())?;
        Ok(World {
            answers: random.of(&[0, 30, 80, 100]),
            narrow: random.of(&[0, 30, 100]),
            group: random.of(&[1, 3, 16]),
            random,
            time,
            memory,
            server,
            devices,
            users,
            links: BTreeMap::new(),
            next_link: 0,
            chronicle: Chronicle::default(),
            trimmed: BTreeMap::new(),
            retention,
            pass: None,
            swept: Key::new(),
            trace: traced.then(Vec::new),
            moves: 0,
            possible: Vec::new(),
        })
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!(
                "{:5} {:7} ms  {}",
                self.moves,
                self.time.now().unix_ms - super::server::BEGINNING_MS,
                what()
            ));
        }
    }

    // --- Moves ---

    /// Makes one of the possible moves; `false` if there is none.
    pub(super) fn step(&mut self) -> Result<bool, Violation> {
        let mut possible = std::mem::take(&mut self.possible);
        possible.clear();
        self.list(&mut possible);
        let chosen = (!possible.is_empty()).then(|| self.random.of(&possible));
        self.possible = possible;
        let Some(step) = chosen else { return Ok(false) };
        self.moves += 1;
        self.perform(step)?;
        Ok(true)
    }

    fn list(&self, possible: &mut Vec<Step>) {
        let now = self.time.now();
        if self.server.writer_has_work() {
            possible.extend([Step::Write; 3]);
        } else if self.server.ledger.has_unwritten_cursors() {
            possible.push(Step::Flush);
        }
        if self.pass.is_some() && self.server.trims == 0 && !self.server.ledger.has_failed() {
            possible.push(Step::Trim);
        }
        possible.extend((0..self.server.reads_under_way()).map(|_| Step::Read));
        for (id, link) in &self.links {
            for lane in Lane::ALL {
                let state = &link.lanes[lane.index()];
                if !state.queued.is_empty() {
                    possible.push(Step::Take(*id, lane));
                }
                if link.client && !state.down.is_empty() {
                    possible.push(Step::Down(*id, lane));
                }
            }
            match (link.client, link.server) {
                (true, false) => possible.push(Step::ClientSees(*id)),
                (false, true) => possible.push(Step::ServerSees(*id)),
                _ => {}
            }
            let Some(conn) = self.server.conns.get(id) else { continue };
            if !conn.unsubmitted.is_empty() {
                possible.push(Step::Submit(*id));
            }
            if !conn.ready.is_empty() {
                possible.push(Step::Done(*id));
            }
            if conn.ended {
                continue;
            }
            if conn.session.signal().is_set() {
                possible.push(Step::Notice(*id));
            }
            if conn.session.deadline().is_some_and(|deadline| deadline <= now.at) {
                possible.push(Step::Tick(*id));
            }
            let wanted = conn.session.wanted();
            for lane in Lane::ALL {
                let readable = match link.lanes[lane.index()].up.front() {
                    Some(Up::Opened) => true,
                    Some(Up::Frame(_)) => wanted.contains(lane) && link.queued(lane) < LANE_QUEUE_BYTES,
                    None => false,
                };
                if readable {
                    possible.push(Step::Up(*id, lane));
                }
            }
        }
    }

    fn perform(&mut self, step: Step) -> Result<(), Violation> {
        let now = self.time.now();
        match step {
            Step::Write => return self.write(),
            Step::Trim => return self.trim(),
            Step::Flush => {
                self.note(|| "cursors are written".into());
                _ = self.server.ledger.flush_cursors();
            }
            Step::Read => {
                let index = self.random.below(self.server.reads_under_way());
                let entries = self.random.of(&[1, 2, 5, 1000]);
                self.note(|| format!("read {index}, up to {entries} entries"));
                self.server.read(index, &self.memory, entries);
            }
            Step::Submit(link) => {
                if self.trace.is_some() {
                    let call = format!("{:?}", self.server.conns[&link].unsubmitted.front());
                    self.note(|| format!("link {link} asks the store: {}", &call[..call.len().min(300)]));
                }
                self.server.submit(link);
                self.collect(link);
            }
            Step::Take(link, lane) => {
                let state = self.link(link).lane(lane);
                if let Some(frame) = state.queued.pop_front() {
                    state.down.push_back(frame);
                }
                return self.session(link, |_| ());
            }
            Step::Notice(link) => {
                self.note(|| format!("link {link} looks up"));
                return self.session(link, |session| {
                    while let Some(notice) = session.signal().take_notice() {
                        session.notice(notice, now);
                    }
                    if session.signal().take_advanced() {
                        session.advanced();
                    }
                });
            }
            Step::Done(link) => {
                let conn = self.conn(link);
                let Some(done) = conn.ready.pop_front() else { return Ok(()) };
                if self.trace.is_some() {
                    let words = format!("{done:?}");
                    self.note(|| format!("link {link} hears from the store: {}", &words[..words.len().min(300)]));
                }
                return self.session(link, |session| session.done(done, now));
            }
            Step::Tick(link) => {
                self.note(|| format!("link {link} ticks"));
                return self.session(link, |session| session.tick(now));
            }
            Step::Up(link, lane) => {
                let Some(up) = self.link(link).lane(lane).up.pop_front() else { return Ok(()) };
                let event = match up {
                    Up::Opened => {
                        self.link(link).lane(lane).open = true;
                        LinkEvent::Opened(lane)
                    }
                    Up::Frame(frame) => LinkEvent::Frame(lane, frame),
                };
                self.note(|| format!("link {link} {lane:?} reaches the server"));
                return self.session(link, |session| session.event(event, now));
            }
            Step::Down(link, lane) => return self.down(link, lane),
            Step::ServerSees(link) => {
                self.note(|| format!("the server finds link {link} gone"));
                self.end(link);
            }
            Step::ClientSees(link) => self.client_sees(link),
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), Violation> {
        let group = self.random.within(1, self.group);
        let before = self.server.ledger.has_failed();
        let cursors_due = self.random.percent(20);
        let (moved, appended) = self.server.write(group, cursors_due, self.time.now().at);
        for (user, entry) in appended {
            self.chronicle.append(&user, &entry)?;
        }
        let failed = self.server.ledger.has_failed() && !before;
        self.note(|| format!("the writer: {moved:?}{}", if failed { ", and the disk fails" } else { "" }));
        if let Move::Answered(link) = moved {
            self.collect(link);
        }
        Ok(())
    }

    /// Gives a session an input, and performs its outputs.
    fn session(&mut self, link: LinkId, input: impl FnOnce(&mut crate::session::Session)) -> Result<(), Violation> {
        let now = self.time.now();
        let (Some(conn), Some(state)) = (self.server.conns.get_mut(&link), self.links.get_mut(&link)) else {
            return Ok(());
        };
        input(&mut conn.session);
        if !conn.ended {
            conn.session.pump(|lane| state.queued(lane), now);
        }
        let (mut closing, mut synced) = (None, Vec::new());
        while let Some(output) = conn.session.poll_output() {
            match output {
                Output::Send(lane, frame) if !conn.ended && state.lane(lane).open => {
                    state.lane(lane).queued.push_back(frame);
                }
                Output::Send(..) => {}
                Output::Call(_) | Output::Write(..) => conn.unsubmitted.push_back(output),
                Output::Synced(user, device, sequence) => synced.push(Op::AdvanceCursor(user, device, sequence)),
                Output::Close(code, reason) => closing = closing.or(Some((code, reason))),
            }
        }
        let (calls, held) = (conn.calls(), state.held());
        let closing = closing.filter(|_| !conn.ended);
        synced.into_iter().for_each(|op| self.server.enqueue(op));
        if let Some((code, reason)) = closing {
            self.note(|| format!("the server closes link {link}: {code:?} {reason}"));
            self.close(link);
        }
        self.collect(link);
        let calls_max = SESSION_CALLS_MAX + 2 * SESSION_UNRELEASED_MAX + 2;
        if calls > calls_max || held > 4 * (LANE_QUEUE_BYTES + SESSION_CALLS_MAX * FRAME_BYTES_MAX) {
            return Err(format!("link {link} holds {calls} calls and {held} bytes"));
        }
        Ok(())
    }

    /// The server closes a link. What it has written is still delivered.
    fn close(&mut self, link: LinkId) {
        let conn = self.conn(link);
        conn.ended = true;
        let rest = conn.session.end();
        conn.unsubmitted.extend(rest.into_iter().map(|(asked, write)| Output::Write(asked, write)));
        let state = self.link(link);
        state.server = false;
        state.lanes.iter_mut().for_each(|lane| lane.up.clear());
    }

    /// The server's end of a link is lost with everything that is in it.
    fn end(&mut self, link: LinkId) {
        if self.server.conns.get(&link).is_some_and(|conn| !conn.ended) {
            self.close(link);
        }
        self.link(link).server_lost();
        self.collect(link);
    }

    /// Removes a connection and a link that are over on both sides.
    pub(super) fn collect(&mut self, link: LinkId) {
        if self.server.conns.get(&link).is_some_and(super::server::Conn::is_over) {
            self.server.conns.remove(&link);
        }
        let is_used = self.server.conns.contains_key(&link);
        if !is_used && self.links.get(&link).is_some_and(|link| !link.client && !link.server) {
            self.links.remove(&link);
        }
    }

    pub(super) fn link(&mut self, link: LinkId) -> &mut Link {
        self.links.get_mut(&link).expect("a step names a link that is there")
    }

    fn conn(&mut self, link: LinkId) -> &mut super::server::Conn {
        self.server.conns.get_mut(&link).expect("a step names a connection that is there")
    }

    /// The number of rows in a space.
    pub(super) fn rows(&self, space: Space) -> usize {
        let rows = self.memory.view().range(space, &all_rows(), Order::Ascending, usize::MAX);
        rows.map_or(usize::MAX, |rows| rows.len())
    }

    /// The number of messages that are stored as accepted and not released.
    pub(super) fn waiting(&self) -> usize {
        self.rows(Space::Pending)
    }
}
