//! The task that owns a device: it supplies sockets, clocks and randomness to the core, and reconnects.

mod commands;
mod connecting;
mod moving;
mod upgrade;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
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
use super::dial::{DialError, Dialed, Dialer, Early};
use super::error::CloseReason;
use super::inbox::Inbox;
use super::limits::{BACKOFF_MAX, BACKOFF_MIN, CLOSE_LINGER, COMMANDS_PER_TURN, IDLE_TIMEOUT, SILENCE_MAX};
use super::link::Link;
use super::outbox::{MemoryOutbox, Outbox};
use super::silence::{Idle, Silence};
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
    outlived: Outlived,
    /// The application was told that the device is connected, and not that this has ended.
    connected: bool,
    /// The device's own IP address towards the server, on the connection in use.
    network: Option<IpAddr>,
    silence: Silence,
    idle: Idle,
    /// Whether this device sends keep-alives over QUIC. Then an idle timeout means that they had no answer.
    keeps_alive: bool,
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

/// Whether a session has grown older than [`STABLE_AFTER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outlived {
    NotYet,
    /// With these counts of what had arrived and was sent. Whatever arrived later shows that the transport lasts in this network.
    With {
        arrivals: u64,
        sent: u64,
    },
    /// The process did not run at that time, or the device was in another network, so nothing is known.
    Asleep,
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
            outlived: Outlived::NotYet,
            connected: false,
            network: None,
            silence: Silence::new(SILENCE_MAX),
            idle: Idle::new(IDLE_TIMEOUT),
            keeps_alive: false,
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

    pub(crate) fn idle_timeout(self, idle_timeout: Duration, keep_alive: Option<Duration>) -> Task {
        let keeps_alive = keep_alive.is_some_and(|interval| interval < idle_timeout);
        Task { idle: Idle::new(idle_timeout), keeps_alive, ..self }
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
        [retry, closing, renew, upgrade, look, idle, self.old_at(), self.core.deadline(now)].into_iter().flatten().min()
    }

    /// Does everything that follows from what has happened since the last turn, without waiting.
    fn settle(&mut self, now: Now) {
        // What frames brought comes before commands: callers have their answers already, and what they ask next is about
        // the outbox and the session as they are then.
        if let Some(session) = self.core.take_accepted() {
            self.accepted_at = Some(now.instant);
            self.outlived = Outlived::NotYet;
            self.connected = true;
            self.refusals = 0;
            self.refused = None;
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
        self.grow_old(now.instant);
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
        self.outbox = Box::new(MemoryOutbox);
        self.state.send_replace(State::Closed(CloseReason::Local));
        self.core.release_waiters(&CloseReason::Local);
        self.refuse_commands();
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
