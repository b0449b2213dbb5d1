//! The one task that owns a device: brings sockets, clocks and randomness to the core, and connects again.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::Endpoint;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::backoff::{Backoff, Jitter};
use super::core::{Core, Now};
use super::device::{Command, State, unix_ms};
use super::dial::{Attempt, DialError, Dialed, Dialer, unspecified};
use super::error::{CloseReason, RequestError, SendError};
use super::event::Event;
use super::inbox::Inbox;
use super::limits::{
    BACKOFF_MAX, BACKOFF_MIN, CLOSE_LINGER, CLOSE_WITHIN, COMMANDS_PER_TURN, DRAIN_JITTER, REFUSALS_MAX, SILENCE_MAX,
    STABLE_AFTER,
};
use super::link::QuicLink;
use super::outbox::Outbox;
use super::requests::answer;
use crate::wire::{CloseCode, Lane};

/// What the task waits for beside its link.
type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A device at work.
pub(crate) struct Task {
    core: Core,
    dialer: Arc<Dialer>,
    outbox: Box<dyn Outbox>,
    inbox: Arc<Inbox>,
    commands: mpsc::Receiver<Command>,
    state: watch::Sender<State>,
    lanes: Vec<Lane>,
    bind: Option<SocketAddr>,
    jitter: Jitter,
    backoff: Backoff,

    phase: Phase,
    /// The socket, which outlives connections.
    endpoint: Option<Endpoint>,
    /// The token of the last connection.
    token: String,
    /// Tokens refused one after the other.
    refusals: u32,
    /// The token not to come back with.
    refused: Option<(String, CloseReason)>,
    accepted_at: Option<Instant>,
    silence: Silence,
    renewing: Option<Work<Result<String, CloseReason>>>,
    frames: Vec<(Lane, Bytes)>,
    closing: Option<Closing>,
}

enum Phase {
    Dialing(Work<Result<Dialed, DialError>>),
    Linked(Box<QuicLink>),
    Waiting(Instant),
    Stopped(CloseReason),
}

/// How long the path has been silent while the server owes something.
struct Silence {
    bound: Duration,
    since: Option<Instant>,
    packets: u64,
    probed: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Life,
    /// Half the bound: time to ask.
    Nothing,
    NothingForTooLong,
}

struct Closing {
    until: Instant,
    /// Whether what is under way may take until then.
    patient: bool,
}

/// What woke the task.
enum Turn {
    Time,
    Command(Option<Command>),
    Link(Result<(), CloseReason>),
    Dialed(Result<Dialed, DialError>),
    Renewed(Result<String, CloseReason>),
}

impl Task {
    pub(crate) fn new(
        core: Core,
        dialer: Arc<Dialer>,
        outbox: Box<dyn Outbox>,
        inbox: Arc<Inbox>,
        commands: mpsc::Receiver<Command>,
        state: watch::Sender<State>,
    ) -> Task {
        Task {
            core,
            dialer,
            outbox,
            inbox,
            commands,
            state,
            lanes: Vec::new(),
            bind: None,
            jitter: Jitter::new(0),
            backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX),
            phase: Phase::Stopped(CloseReason::Local),
            endpoint: None,
            token: String::new(),
            refusals: 0,
            refused: None,
            accepted_at: None,
            silence: Silence { bound: SILENCE_MAX, since: None, packets: 0, probed: false },
            renewing: None,
            frames: Vec::new(),
            closing: None,
        }
    }

    pub(crate) fn lanes(self, lanes: Vec<Lane>) -> Task {
        Task { lanes, ..self }
    }

    pub(crate) fn bind(self, bind: Option<SocketAddr>) -> Task {
        Task { bind, ..self }
    }

    pub(crate) fn silence(mut self, bound: Duration) -> Task {
        self.silence.bound = bound;
        self
    }

    pub(crate) fn jitter(self, jitter: Jitter) -> Task {
        Task { jitter, ..self }
    }

    /// Until the application closes the device, or drops it.
    pub(crate) async fn run(mut self) {
        self.dial();
        loop {
            let now = now();
            self.settle(now);
            if self.closing.as_ref().is_some_and(|closing| self.may_close(closing, now.instant)) {
                break;
            }
            match self.turn(now.instant).await {
                Turn::Time => {}
                Turn::Command(command) => self.commands(command),
                Turn::Link(Ok(())) => {
                    let now = self::now();
                    for (lane, frame) in self.frames.drain(..) {
                        self.core.frame(lane, &frame, now);
                    }
                }
                Turn::Link(Err(reason)) => self.link_lost(reason),
                Turn::Dialed(Ok(dialed)) => self.link_up(dialed),
                Turn::Dialed(Err(DialError::Failed(reason))) => self.retry(reason, None),
                Turn::Dialed(Err(DialError::NoNewToken(reason))) => self.stop(reason),
                Turn::Renewed(token) => self.renewed(token),
            }
        }
        self.leave().await;
    }

    /// Waits for the next thing to do.
    async fn turn(&mut self, now: Instant) -> Turn {
        let deadline = self.deadline(now);
        let Task { core, phase, commands, inbox, renewing, frames, .. } = self;
        tokio::select! {
            // The link first, so that what is queued is written at every turn; commands are also taken in between.
            biased;
            turn = std::future::poll_fn(|cx| match phase {
                Phase::Dialing(dialing) => dialing.as_mut().poll(cx).map(Turn::Dialed),
                Phase::Linked(link) => link.poll(cx, |lane| core.reading(lane), frames).map(Turn::Link),
                Phase::Waiting(_) | Phase::Stopped(_) => Poll::Pending,
            }) => turn,
            command = commands.recv() => Turn::Command(command),
            () = inbox.wait_taken() => Turn::Time,
            token = std::future::poll_fn(|cx| match renewing {
                Some(renewing) => renewing.as_mut().poll(cx),
                None => Poll::Pending,
            }) => Turn::Renewed(token),
            () = tokio::time::sleep_until(deadline.unwrap_or(now).into()), if deadline.is_some() => Turn::Time,
        }
    }

    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let retry = match &self.phase {
            Phase::Waiting(until) => Some(*until),
            _ => None,
        };
        let closing = self.closing.as_ref().map(|closing| closing.until);
        let renew = if self.renewing.is_none() { self.core.renew_at() } else { None };
        [retry, closing, renew, self.silence.next_look(now), self.core.deadline(now)].into_iter().flatten().min()
    }

    /// Everything that follows from what has happened since, without waiting.
    fn settle(&mut self, now: Now) {
        for _ in 0..COMMANDS_PER_TURN {
            let Ok(command) = self.commands.try_recv() else { break };
            self.command(command);
        }
        if matches!(self.phase, Phase::Waiting(until) if until <= now.instant) {
            self.dial();
        }
        if let Some(session) = self.core.take_accepted() {
            self.accepted_at = Some(now.instant);
            self.refusals = 0;
            self.state.send_replace(State::Connected(session));
        }
        while self.core.can_take() {
            let Some(taken) = self.inbox.next_taken() else { break };
            self.core.taken(taken, now);
        }
        if let Some(sequence) = self.core.sync(None, self.closing.is_some(), now.instant) {
            self.keep(|outbox| outbox.advance(sequence));
        }
        for local_id in self.core.take_done() {
            self.keep(|outbox| outbox.remove(&local_id));
        }
        if let Err(reason) = self.core.tick(now.instant) {
            self.link_lost(reason);
        }
        self.start_renewal(now.instant);
        self.write(now.instant);
        self.listen(now);
        self.inbox.fill(|| self.core.next_event());
    }

    /// Gives the link what it takes.
    fn write(&mut self, now: Instant) {
        let Phase::Linked(link) = &mut self.phase else { return };
        for lane in Lane::ALL {
            while link.has_room(lane) {
                let Some(frame) = self.core.next_frame(lane, now) else { break };
                link.queue(lane, frame);
            }
        }
    }

    // --- Connecting -------------------------------------------------------------------------------------------------

    fn dial(&mut self) {
        let attempt = Attempt {
            endpoint: self.endpoint.take(),
            bind: self.bind,
            number: self.backoff.attempts(),
            refused: self.refused.take(),
        };
        // A port of choice may still belong to the socket before; from now on the system chooses.
        self.bind = self.bind.map(|bind| SocketAddr::new(bind.ip(), 0));
        self.phase = Phase::Dialing(Box::pin(self.dialer.clone().dial(attempt)));
        self.state.send_replace(State::Connecting);
    }

    fn link_up(&mut self, dialed: Dialed) {
        self.token.clone_from(&dialed.token);
        self.endpoint = Some(dialed.endpoint);
        self.phase = Phase::Linked(Box::new(QuicLink::new(dialed.connection, &self.lanes)));
        self.silence.since = None;
        self.core.link_up(dialed.token, dialed.started, Instant::now());
    }

    fn link_lost(&mut self, mut reason: CloseReason) {
        if !matches!(self.phase, Phase::Linked(_)) {
            return;
        }
        if let Phase::Linked(link) = &self.phase {
            match &reason {
                CloseReason::Protocol(broken) => link.close(CloseCode::ProtocolViolation, broken),
                _ => link.close(CloseCode::Goodbye, ""),
            }
        }
        // The error before the close says more than the close.
        if let (CloseReason::Server { reason, .. }, Some(refusal)) = (&mut reason, self.core.take_refusal()) {
            *reason = refusal.message;
        }
        self.core.link_down();
        self.frames.clear();
        self.renewing = None;
        let age = self.accepted_at.take().map(|at| at.elapsed());
        if age.is_some() {
            self.core.announce(Event::Disconnected(reason.clone()));
        }
        self.retry(reason, age);
    }

    /// After a connection that lived for `age` (none: that was not accepted) ended for this reason.
    fn retry(&mut self, reason: CloseReason, age: Option<Duration>) {
        tracing::debug!(%reason, attempts = self.backoff.attempts(), "not connected");
        if reason.is_final() {
            return self.stop(reason);
        }
        if reason.wants_new_token() {
            self.refusals += 1;
            if self.refusals >= REFUSALS_MAX {
                return self.stop(reason);
            }
            self.refused = Some((std::mem::take(&mut self.token), reason.clone()));
        }
        let draining = matches!(reason, CloseReason::Server { code: CloseCode::Draining, .. });
        let network = matches!(reason, CloseReason::Network(_));
        if age.is_some_and(|age| age >= STABLE_AFTER || draining || network) {
            self.backoff.reset();
        }
        let first = self.backoff.attempts() == 0;
        let mut retry_in = self.backoff.failed(&mut self.jitter);
        if draining && first {
            retry_in = self.jitter.up_to(DRAIN_JITTER);
        }
        self.phase = Phase::Waiting(Instant::now() + retry_in);
        self.state.send_replace(State::Waiting { retry_in, reason });
    }

    /// Only the application can say whether to go on.
    fn stop(&mut self, reason: CloseReason) {
        self.core.release_waiters(&reason);
        self.state.send_replace(State::Closed(reason.clone()));
        self.phase = Phase::Stopped(reason);
    }

    /// Notices that nothing is heard any more while something is owed.
    fn listen(&mut self, now: Now) {
        let Phase::Linked(link) = &self.phase else { return };
        let owed = self.core.owed();
        match self.silence.look(owed, now.instant, || link.packets_received()) {
            Heard::Life => {}
            Heard::Nothing => {
                self.core.probe(now);
                self.write(now.instant);
            }
            Heard::NothingForTooLong => {
                // The path behind this socket may be what is dead.
                self.endpoint = None;
                self.link_lost(CloseReason::Network("the server went silent".into()));
            }
        }
    }

    // --- Token ------------------------------------------------------------------------------------------------------

    fn start_renewal(&mut self, now: Instant) {
        if self.renewing.is_none() && self.core.renew_at().is_some_and(|at| at <= now) {
            let dialer = self.dialer.clone();
            self.renewing = Some(Box::pin(async move { dialer.token().await }));
        }
    }

    fn renewed(&mut self, token: Result<String, CloseReason>) {
        self.renewing = None;
        let now = Instant::now();
        match token {
            Ok(token) if token != self.token => {
                self.token.clone_from(&token);
                self.core.renew(token, now);
            }
            Ok(_) => self.core.renew_later(now),
            Err(reason) => {
                tracing::warn!(%reason, "the token could not be renewed");
                self.core.renew_later(now);
            }
        }
    }

    // --- Commands ---------------------------------------------------------------------------------------------------

    fn commands(&mut self, command: Option<Command>) {
        match command {
            Some(command) => self.command(command),
            // The last handle is gone, and with it whoever could wait.
            None => {
                self.commands.close();
                self.closing.get_or_insert(Closing { until: Instant::now(), patient: false });
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Send { draft, reply, at } => {
                if let Phase::Stopped(reason) = &self.phase {
                    answer(Some(reply), Err(SendError::Closed(reason.clone())));
                    return;
                }
                let kept = self
                    .core
                    .admit(&draft)
                    .and_then(|()| self.outbox.insert(&draft).map_err(|error| SendError::Outbox(error.to_string())));
                match kept {
                    Ok(()) => self.core.send(&draft, reply, at),
                    Err(error) => drop(answer(Some(reply), Err(error))),
                }
            }
            Command::Request { payload, lasting, reply } => match &self.phase {
                Phase::Stopped(reason) => drop(answer(Some(reply), Err(RequestError::Closed(reason.clone())))),
                _ => self.core.request(payload, lasting, reply),
            },
            Command::Tell { presence, reply } => {
                let told = match &self.phase {
                    Phase::Stopped(reason) => Err(RequestError::Closed(reason.clone())),
                    _ => self.core.tell(*presence, Instant::now()),
                };
                answer(Some(reply), told);
            }
            Command::Sync(sequence) => {
                if let Some(sequence) = self.core.sync(Some(sequence), false, Instant::now()) {
                    self.keep(|outbox| outbox.advance(sequence));
                }
            }
            Command::Rebind { to, reply } => drop(answer(Some(reply), self.rebind(to))),
            Command::Reconnect(reply) => {
                if matches!(self.phase, Phase::Waiting(_) | Phase::Stopped(_)) {
                    self.refusals = 0;
                    self.refused = None;
                    self.dial();
                }
                answer(Some(reply), ());
            }
            Command::PathRtt(reply) => {
                let rtt = match &self.phase {
                    Phase::Linked(link) => Some(link.rtt()),
                    _ => None,
                };
                answer(Some(reply), rtt);
            }
            Command::Close => {
                self.closing.get_or_insert(Closing { until: Instant::now() + CLOSE_WITHIN, patient: true });
            }
        }
    }

    /// Moves the socket, and with it the connection.
    fn rebind(&mut self, to: Option<SocketAddr>) -> io::Result<Option<SocketAddr>> {
        match (&self.phase, &self.endpoint) {
            (Phase::Linked(_), Some(endpoint)) => {
                let local = endpoint.local_addr()?;
                let bind = to.unwrap_or_else(|| unspecified(local));
                if bind.is_ipv6() != local.is_ipv6() {
                    return Err(io::Error::other("the connection is of the other IP family"));
                }
                endpoint.rebind(UdpSocket::bind(bind)?)?;
                self.bind = to.map(|to| SocketAddr::new(to.ip(), 0));
                endpoint.local_addr().map(Some)
            }
            (Phase::Dialing(_) | Phase::Waiting(_), _) => {
                self.bind = to;
                self.endpoint = None;
                self.dial();
                Ok(None)
            }
            _ => {
                self.bind = to;
                Ok(None)
            }
        }
    }

    /// A failure costs a repetition after a restart, which is harmless; the message itself is with the server.
    fn keep(&mut self, change: impl FnOnce(&mut dyn Outbox) -> io::Result<()>) {
        if let Err(error) = change(self.outbox.as_mut()) {
            tracing::warn!(%error, "the outbox could not be updated");
        }
    }

    // --- Closing ----------------------------------------------------------------------------------------------------

    fn may_close(&self, closing: &Closing, now: Instant) -> bool {
        match &self.phase {
            Phase::Linked(_) => {
                // What is queued is written by leaving.
                now >= closing.until || !closing.patient || self.core.is_settled()
            }
            _ => true,
        }
    }

    async fn leave(mut self) {
        self.commands.close();
        if let Phase::Linked(mut link) = std::mem::replace(&mut self.phase, Phase::Stopped(CloseReason::Local)) {
            // Late or not, what is written has to arrive before the close overtakes it.
            let _ = timeout(CLOSE_LINGER, link.finish()).await;
            link.close(CloseCode::Goodbye, "");
        }
        self.state.send_replace(State::Closed(CloseReason::Local));
        self.core.release_waiters(&CloseReason::Local);
        for local_id in self.core.take_done() {
            self.keep(|outbox| outbox.remove(&local_id));
        }
        self.inbox.end();
        if let Some(endpoint) = self.endpoint.take() {
            let _ = timeout(CLOSE_LINGER, endpoint.wait_idle()).await;
        }
    }
}

impl Silence {
    /// When to look again: often enough to notice within a quarter of the bound.
    fn next_look(&self, now: Instant) -> Option<Instant> {
        self.since.map(|since| (since + self.bound).min(now + self.bound / 4))
    }

    fn look(&mut self, owed: bool, now: Instant, packets: impl FnOnce() -> u64) -> Heard {
        if !owed {
            self.since = None;
            return Heard::Life;
        }
        if self.since.is_some_and(|since| now < since + self.bound / 4) {
            return Heard::Life;
        }
        let packets = packets();
        match self.since {
            Some(since) if packets == self.packets => {
                if now >= since + self.bound {
                    return Heard::NothingForTooLong;
                }
                if self.probed || now < since + self.bound / 2 {
                    return Heard::Life;
                }
                self.probed = true;
                Heard::Nothing
            }
            _ => {
                *self = Silence { bound: self.bound, since: Some(now), packets, probed: false };
                Heard::Life
            }
        }
    }
}

fn now() -> Now {
    Now { instant: Instant::now(), unix_ms: unix_ms() }
}
