//! The task that owns a device: it supplies sockets, clocks and randomness to the core, and reconnects.

mod commands;
mod moving;
mod upgrade;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::Endpoint;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::backoff::{Backoff, Jitter};
use super::core::{Core, Now, Passage};
use super::device::{Command, State, unix_ms};
use super::dial::{Attempt, Carrier, DialError, Dialed, Dialer, Early};
use super::error::CloseReason;
use super::event::Event;
use super::inbox::Inbox;
use super::limits::{
    ABUSE_WAIT, ADDRESSES_MAX, BACKOFF_MAX, BACKOFF_MIN, CLOSE_LINGER, COMMANDS_PER_TURN, DRAIN_JITTER, EARLY_LINGERS,
    IDLE_TIMEOUT, REFUSALS_MAX, SILENCE_MAX,
};
use super::link::{Link, QuicLink, TcpLink};
use super::outbox::Outbox;
use super::silence::{Idle, Silence};
use super::transport::Transport;
use crate::wire::{CloseCode, Lane};

use upgrade::Upgrade;

/// An operation for which the task waits besides its connection.
type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A running device.
pub(crate) struct Task {
    // The fields are dropped in this order, also if something panics or the runtime ends: whoever is told of the end, by the
    // answer to a message or by `_told`, may open the same outbox again.
    outbox: Box<dyn Outbox>,
    core: Core,
    dialer: Arc<Dialer>,
    inbox: Arc<Inbox>,
    commands: mpsc::Receiver<Command>,
    state: watch::Sender<State>,
    lanes: Vec<Lane>,
    bind: Option<SocketAddr>,
    jitter: Jitter,
    backoff: Backoff,

    phase: Phase,
    /// The UDP socket; it outlives connections.
    endpoint: Option<Endpoint>,
    /// The application says that there is a network; applies to the next attempt.
    hinted: bool,
    upgrade: Upgrade,
    /// Number of tokens refused in a row.
    refusals: u32,
    /// The refused token, which must not be used again, and the reason of that close.
    refused: Option<(String, CloseReason)>,
    /// When a connection was given up whose `SessionOpen` had no answer. It may still reach the server, which then takes it for
    /// the newest session and replaces a later one.
    open_lost: Option<Instant>,
    accepted_at: Option<Instant>,
    silence: Silence,
    idle: Idle,
    renewing: Option<Work<Result<String, CloseReason>>>,
    frames: Vec<(Lane, Bytes)>,
    closing: Option<Closing>,
    _told: EndTold,
}

enum Phase {
    Dialing(Dialing),
    Linked(Box<dyn Link>),
    Waiting(Instant),
    Stopped(CloseReason),
}

/// An attempt to connect that is under way.
struct Dialing {
    work: Work<Result<Dialed, DialError>>,
    early: mpsc::Receiver<Early>,
    /// The connection that accepts 0-RTT data, until the attempt is decided.
    link: Option<Box<dyn Link>>,
}

struct Closing {
    until: Instant,
    /// Whether pending answers are waited for until then.
    patient: bool,
    /// Whether it goes on connecting for them.
    connects: bool,
}

/// What woke the task.
enum Turn {
    Time,
    Command(Box<Option<Command>>),
    Link(Result<(), CloseReason>),
    Early(Early),
    Dialed(Box<Result<Dialed, DialError>>),
    Upgraded(Box<Result<Dialed, CloseReason>>),
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
            _told: EndTold { state: state.clone(), inbox: inbox.clone() },
            outbox,
            core,
            dialer,
            inbox,
            commands,
            state,
            lanes: Vec::new(),
            bind: None,
            jitter: Jitter::new(0),
            backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX),
            phase: Phase::Stopped(CloseReason::Local),
            endpoint: None,
            hinted: false,
            upgrade: Upgrade::Off,
            refusals: 0,
            refused: None,
            open_lost: None,
            accepted_at: None,
            silence: Silence::new(SILENCE_MAX),
            idle: Idle::new(IDLE_TIMEOUT),
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

    pub(crate) fn silence(self, bound: Duration) -> Task {
        Task { silence: Silence::new(bound), ..self }
    }

    pub(crate) fn idle_timeout(self, idle_timeout: Duration) -> Task {
        Task { idle: Idle::new(idle_timeout), ..self }
    }

    pub(crate) fn jitter(self, jitter: Jitter) -> Task {
        Task { jitter, ..self }
    }

    /// Runs until the application closes the device or drops its last handle.
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
                Turn::Command(command) => self.commands(*command),
                Turn::Link(Ok(())) => {
                    let now = self::now();
                    for (lane, frame) in self.frames.drain(..) {
                        self.core.frame(lane, &frame, now);
                    }
                }
                Turn::Link(Err(reason)) => self.link_lost(reason),
                Turn::Early(early) => self.link_early(early),
                Turn::Dialed(dialed) => match *dialed {
                    Ok(dialed) => self.dialed(dialed),
                    Err(DialError::Failed(reason)) => self.dial_failed(reason),
                    Err(DialError::NoNewToken(reason)) => self.stop(reason),
                },
                Turn::Upgraded(upgraded) => self.upgraded(*upgraded),
                Turn::Renewed(token) => self.renewed(token),
            }
        }
        self.leave().await;
    }

    /// Waits for the next thing to do.
    async fn turn(&mut self, now: Instant) -> Turn {
        let deadline = self.deadline(now);
        let Task { core, phase, commands, inbox, renewing, upgrade, frames, .. } = self;
        tokio::select! {
            // The link comes first, so that queued frames are written at every turn; commands are also taken in
            // `settle`.
            biased;
            turn = std::future::poll_fn(|cx| {
                let mut poll_link = |link: &mut Box<dyn Link>, cx: &mut _| {
                    link.poll(cx, &|lane| core.reading(lane), frames).map(Turn::Link)
                };
                match phase {
                    Phase::Dialing(dialing) => {
                        if let Poll::Ready(Some(early)) = dialing.early.poll_recv(cx) {
                            return Poll::Ready(Turn::Early(early));
                        }
                        if let Poll::Ready(dialed) = dialing.work.as_mut().poll(cx) {
                            return Poll::Ready(Turn::Dialed(Box::new(dialed)));
                        }
                        dialing.link.as_mut().map_or(Poll::Pending, |link| poll_link(link, cx))
                    }
                    Phase::Linked(link) => {
                        if let Upgrade::Dialing(work, _) = upgrade
                            && let Poll::Ready(upgraded) = work.as_mut().poll(cx)
                        {
                            return Poll::Ready(Turn::Upgraded(Box::new(upgraded)));
                        }
                        poll_link(link, cx)
                    }
                    Phase::Waiting(_) | Phase::Stopped(_) => Poll::Pending,
                }
            }) => turn,
            command = commands.recv() => Turn::Command(Box::new(command)),
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
        let upgrade = match self.upgrade {
            Upgrade::At(at, _) => Some(at),
            _ => None,
        };
        let (look, idle) = match &self.phase {
            Phase::Linked(link) => (self.silence.next_look(), link.quiet().map(|quiet| self.idle.next_look(quiet))),
            _ => (None, None),
        };
        [retry, closing, renew, upgrade, look, idle, self.core.deadline(now)].into_iter().flatten().min()
    }

    /// Does everything that follows from what has happened since the last turn, without waiting.
    fn settle(&mut self, now: Now) {
        // What frames brought comes before commands: callers have their answers already, and what they ask next is about
        // the outbox and the session as they are then.
        if let Some(session) = self.core.take_accepted() {
            self.accepted_at = Some(now.instant);
            self.refusals = 0;
            self.state.send_replace(State::Connected(session));
        }
        self.forget_done();
        for _ in 0..COMMANDS_PER_TURN {
            let Ok(command) = self.commands.try_recv() else { break };
            self.command(command);
        }
        if matches!(self.phase, Phase::Waiting(until) if until <= now.instant) {
            self.dial();
        }
        self.note_taken(now);
        self.core.sync(None, self.closing.is_some(), now.instant);
        if let Some(sequence) = self.core.keep(self.closing.is_some(), now.instant) {
            self.keep(|outbox| outbox.advance(sequence));
        }
        if let Err(reason) = self.core.tick(now.instant) {
            self.link_lost(reason);
        }
        self.start_renewal(now.instant);
        self.start_upgrade(now.instant);
        self.write(now);
        self.listen(now);
        self.inbox.fill(|| self.core.next_event());
    }

    /// Removes answered messages from the outbox.
    fn forget_done(&mut self) {
        for local_id in self.core.take_done() {
            self.keep(|outbox| outbox.remove(&local_id));
        }
    }

    /// Handles the events that the application has taken.
    fn note_taken(&mut self, now: Now) {
        while self.core.can_take() {
            let Some(taken) = self.inbox.next_taken() else { break };
            self.core.taken(taken, now);
        }
    }

    /// Queues frames on the link while it has room.
    fn write(&mut self, now: Now) {
        let (Phase::Linked(link) | Phase::Dialing(Dialing { link: Some(link), .. })) = &mut self.phase else { return };
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
            hinted: std::mem::take(&mut self.hinted),
            refused: self.refused.take(),
        };
        // A chosen port may still be in use by the previous socket; from now on the system chooses one.
        self.bind = self.bind.map(|bind| SocketAddr::new(bind.ip(), 0));
        let (sender, early) = mpsc::channel(ADDRESSES_MAX);
        let work = Box::pin(self.dialer.clone().dial(attempt, sender));
        self.phase = Phase::Dialing(Dialing { work, early, link: None });
        self.state.send_replace(State::Connecting);
    }

    /// A connection accepts 0-RTT data: everything that waits is sent in its first flight (protocol.md §1, 0-RTT).
    fn link_early(&mut self, early: Early) {
        let Phase::Dialing(dialing) = &mut self.phase else { return };
        let link: Box<dyn Link> = Box::new(QuicLink::new(early.connection, &self.lanes));
        if dialing.link.replace(link).is_some() {
            self.give_up_session();
        }
        self.frames.clear();
        let passage = Passage { transport: Transport::Quic, early: true };
        self.core.link_up(early.token, passage, early.started, Instant::now());
    }

    /// The attempt succeeded.
    fn dialed(&mut self, dialed: Dialed) {
        let Phase::Dialing(dialing) = &mut self.phase else { return };
        let mut link = dialing.link.take();
        let taken = matches!(dialed.carrier, Carrier::Quic { early: true, .. });
        // A session that was accepted on the early connection stays in use, even if TCP connected at almost the same
        // time.
        if let Some(link) = link.take_if(|_| taken || self.core.is_open()) {
            if let Carrier::Quic { endpoint, .. } = dialed.carrier {
                self.endpoint = Some(endpoint);
            }
            self.phase = Phase::Linked(link);
            self.silence.reset();
            return;
        }
        if link.is_some() {
            // Either QUIC's handshake refused the early data, which is then gone, or TCP was faster than that
            // handshake.
            if matches!(dialed.carrier, Carrier::Tcp(_)) {
                self.open_lost = Some(Instant::now());
            }
            self.core.link_down();
            self.frames.clear();
        }
        self.link_up(dialed);
    }

    fn link_up(&mut self, dialed: Dialed) {
        let Dialed { carrier, token, started, network } = dialed;
        self.upgrade = Upgrade::Off;
        let link: Box<dyn Link> = match carrier {
            Carrier::Quic { endpoint, connection, .. } => {
                self.endpoint = Some(endpoint);
                Box::new(QuicLink::new(connection, &self.lanes))
            }
            Carrier::Tcp(stream) => {
                let retry = network.and_then(|network| self.dialer.networks().retry_at(network));
                if let Some(at) = retry.filter(|_| self.dialer.transports.allow(Transport::Quic)) {
                    self.upgrade = Upgrade::At(at, network);
                }
                Box::new(TcpLink::new(*stream, &self.lanes))
            }
        };
        let passage = Passage { transport: link.transport(), early: false };
        self.phase = Phase::Linked(link);
        self.silence.reset();
        self.idle.reset();
        self.core.link_up(token, passage, started, Instant::now());
    }

    fn dial_failed(&mut self, reason: CloseReason) {
        let age = match &mut self.phase {
            Phase::Dialing(Dialing { link: Some(_), .. }) => {
                self.refined(reason.clone());
                self.part(&reason)
            }
            _ => None,
        };
        self.retry(reason, age);
    }

    fn link_lost(&mut self, reason: CloseReason) {
        let reason = self.refined(reason);
        let answered = self.core.is_put_off() || self.core.is_useless();
        let age = self.part(&reason);
        match &mut self.phase {
            // The attempt goes on, perhaps over TCP.
            Phase::Dialing(_) if !answered => {}
            _ => self.retry(reason, age),
        }
    }

    /// The error before the close says more than the close itself.
    fn refined(&mut self, mut reason: CloseReason) -> CloseReason {
        if let (CloseReason::Server { reason, .. }, Some(refusal)) = (&mut reason, self.core.take_refusal()) {
            *reason = match refusal.details.as_str() {
                "" => refusal.message,
                details => format!("{} ({details})", refusal.message),
            };
        }
        reason
    }

    /// Closes and drops the link. Returns how long its session lasted, if it had one.
    fn part(&mut self, reason: &CloseReason) -> Option<Duration> {
        let link = match &mut self.phase {
            Phase::Dialing(dialing) => dialing.link.take(),
            Phase::Linked(_) => match std::mem::replace(&mut self.phase, Phase::Stopped(reason.clone())) {
                Phase::Linked(link) => Some(link),
                _ => None,
            },
            _ => None,
        };
        let mut link = link?;
        match reason {
            CloseReason::Protocol(broken) => link.close(CloseCode::ProtocolViolation, broken),
            _ => link.close(CloseCode::Goodbye, ""),
        }
        self.give_up_session();
        self.renewing = None;
        self.upgrade = Upgrade::Off;
        let age = self.accepted_at.take().map(|at| at.elapsed());
        if age.is_some() {
            self.core.announce(Event::Disconnected(reason.clone()));
        }
        age
    }

    /// The session of the link is over, whether it was accepted or not.
    fn give_up_session(&mut self) {
        if !self.core.is_open() && !self.core.is_useless() {
            self.open_lost = Some(Instant::now());
        }
        self.core.link_down();
        self.frames.clear();
    }

    /// Decides what follows after a connection ended for this reason. `age` is how long its session lasted; `None` if
    /// it was not accepted.
    fn retry(&mut self, reason: CloseReason, age: Option<Duration>) {
        tracing::debug!(%reason, attempts = self.backoff.attempts(), "not connected");
        let lost = self.open_lost.take_if(|_| reason.is_replaced());
        if reason.is_final() && lost.is_none_or(|at| at.elapsed() >= EARLY_LINGERS) {
            return self.stop(reason);
        }
        if reason.wants_new_token() {
            self.refusals += 1;
            self.refused = self.core.take_refused_token().map(|token| (token, reason.clone()));
            if let Some((token, _)) = &self.refused {
                self.dialer.tokens.refused(token);
            }
            if self.refusals >= REFUSALS_MAX {
                return self.stop(reason);
            }
        }
        let draining = matches!(reason, CloseReason::Server { code: CloseCode::Draining, .. });
        if age.is_some_and(|age| reason.was_success(age)) {
            self.backoff.reset();
        }
        let first = self.backoff.attempts() == 0;
        let mut retry_in = self.backoff.failed(&mut self.jitter);
        if draining && first {
            retry_in = self.jitter.up_to(DRAIN_JITTER);
        }
        if matches!(reason, CloseReason::Server { code: CloseCode::Abuse, .. }) {
            retry_in = ABUSE_WAIT + self.jitter.up_to(ABUSE_WAIT);
        }
        // Added to the random wait, not instead of it: the server tells all devices the same time.
        retry_in += self.core.take_put_off().unwrap_or_default();
        self.phase = Phase::Waiting(Instant::now() + retry_in);
        self.state.send_replace(State::Waiting { retry_in, reason });
    }

    /// Stops: only the application can decide whether to connect again.
    fn stop(&mut self, reason: CloseReason) {
        self.core.release_waiters(&reason);
        self.state.send_replace(State::Closed(reason.clone()));
        self.phase = Phase::Stopped(reason);
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
            Ok(token) => self.core.renew(token, now),
            Err(reason) => {
                tracing::warn!(%reason, "the token could not be renewed");
                self.core.renew_later(now);
            }
        }
    }

    /// Updates the outbox. A failure costs a repetition after a restart, which is harmless; the server has the message.
    fn keep(&mut self, change: impl FnOnce(&mut dyn Outbox) -> io::Result<()>) {
        if let Err(error) = change(self.outbox.as_mut()) {
            tracing::warn!(%error, "the outbox could not be updated");
        }
    }

    // --- Closing ----------------------------------------------------------------------------------------------------

    /// `leave` still writes what is queued.
    fn may_close(&self, closing: &Closing, now: Instant) -> bool {
        let over = now >= closing.until || !closing.patient || self.core.is_settled();
        let in_vain = match &self.phase {
            Phase::Linked(_) | Phase::Dialing(Dialing { link: Some(_), .. }) => false,
            Phase::Dialing(_) => !closing.connects,
            Phase::Waiting(until) => !closing.connects || *until >= closing.until,
            Phase::Stopped(_) => true,
        };
        over || in_vain
    }

    async fn leave(mut self) {
        self.commands.close();
        let phase = std::mem::replace(&mut self.phase, Phase::Stopped(CloseReason::Local));
        if let Phase::Linked(mut link) | Phase::Dialing(Dialing { link: Some(mut link), .. }) = phase {
            // Even if the time is over, written data has to arrive before the close overtakes it.
            let _ = timeout(CLOSE_LINGER, std::future::poll_fn(|cx| link.poll_finish(cx))).await;
            link.close(CloseCode::Goodbye, "");
        }
        self.forget_done();
        // Whoever reads the end of the events may open the same file again.
        drop(self.outbox);
        self.state.send_replace(State::Closed(CloseReason::Local));
        self.core.release_waiters(&CloseReason::Local);
        self.inbox.end();
        if let Some(endpoint) = self.endpoint.take() {
            let _ = timeout(CLOSE_LINGER, endpoint.wait_idle()).await;
        }
    }
}

/// Tells the application that the device has ended, also if something in the task panics or its runtime ends, so that no
/// caller waits for ever.
struct EndTold {
    state: watch::Sender<State>,
    inbox: Arc<Inbox>,
}

impl Drop for EndTold {
    fn drop(&mut self) {
        let panicked = std::thread::panicking();
        self.state.send_if_modified(|state| {
            let untold = panicked || !matches!(state, State::Closed(_));
            if untold {
                *state = State::Closed(if panicked { CloseReason::Panicked } else { CloseReason::Local });
            }
            untold
        });
        self.inbox.end();
    }
}

fn now() -> Now {
    Now { instant: Instant::now(), unix_ms: unix_ms() }
}
