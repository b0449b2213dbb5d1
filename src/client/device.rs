//! The application's handle on its device: send, acknowledge, ask, move, close.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};

use super::builder::Builder;
use super::error::{CloseReason, RequestError, SendError};
use super::event::{Acknowledged, Content, Session};
use super::outbox::Draft;
use super::payloads::{acknowledgment, ping};
use super::requests::{Answer, RequestReply, SendReply, Sent};
use crate::wire::proto::AwarenessNotification;
use crate::wire::{AckStatus, DeviceId, Eid, Identity, LocalId, MessageId, Payload, PingStatus, Sequence};

/// Where a device stands with its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// An attempt is under way.
    Connecting,
    /// A session is open.
    Connected(Session),
    /// The next attempt comes by itself.
    Waiting {
        /// How long the wait was when it began.
        retry_in: Duration,
        /// Why the one before ended.
        reason: CloseReason,
    },
    /// Nothing more happens by itself; [`Device::reconnect`] tries again, unless the application closed it.
    Closed(CloseReason),
}

/// One signed-in device. Clones share it; when the last one is dropped, the device leaves.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
    eid: Eid,
    device: DeviceId,
    /// Random for each process: local ids of two never meet.
    name: u128,
    messages: AtomicU64,
}

/// What a handle asks of the task.
pub(crate) enum Command {
    Send { draft: Draft, reply: SendReply, at: Instant },
    Request { payload: Payload, lasting: bool, reply: RequestReply },
    Tell { presence: Box<AwarenessNotification>, reply: oneshot::Sender<Result<(), RequestError>> },
    Sync(Sequence),
    Rebind { to: Option<SocketAddr>, reply: oneshot::Sender<io::Result<Option<SocketAddr>>> },
    Reconnect(oneshot::Sender<()>),
    PathRtt(oneshot::Sender<Option<Duration>>),
    Close,
}

/// The answer to a message that was [submitted](Device::submit), when it comes. Dropping it does not take the message
/// back: [`super::Event::Accepted`] or [`super::Event::Refused`] tells what came of it.
#[derive(Debug)]
pub struct Ticket {
    local_id: LocalId,
    answer: oneshot::Receiver<Result<Sent, SendError>>,
    state: watch::Receiver<State>,
}

impl Device {
    /// Options for a device.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(
        commands: mpsc::Sender<Command>,
        state: watch::Receiver<State>,
        eid: Eid,
        device: DeviceId,
        name: u128,
    ) -> Device {
        Device { inner: Arc::new(Inner { commands, state, eid, device, name, messages: AtomicU64::new(0) }) }
    }

    /// The user.
    pub fn eid(&self) -> &Eid {
        &self.inner.eid
    }

    /// The device of the user.
    pub fn device_id(&self) -> &DeviceId {
        &self.inner.device
    }

    // --- State ------------------------------------------------------------------------------------------------------

    /// The state, to look at and to wait on.
    pub fn state(&self) -> watch::Receiver<State> {
        self.inner.state.clone()
    }

    /// Waits until a session is open.
    ///
    /// # Errors
    /// Why there will be none: refused for good, or closed. A network that fails is not a reason: the device goes on
    /// trying, and the caller bounds its own patience.
    pub async fn connected(&self) -> Result<Session, CloseReason> {
        let mut state = self.state();
        loop {
            match &*state.borrow_and_update() {
                State::Connected(session) => return Ok(session.clone()),
                State::Closed(reason) => return Err(reason.clone()),
                State::Connecting | State::Waiting { .. } => {}
            }
            if state.changed().await.is_err() {
                return Err(self.closed());
            }
        }
    }

    // --- Sending ----------------------------------------------------------------------------------------------------

    /// Sends a text, and waits until the server has it: durable, and numbered.
    ///
    /// # Errors
    /// See [`SendError`]. Dropping the future once it was polled does not take the message back, unless so many commands wait
    /// that the device's task has not come to it.
    pub async fn send_text(&self, to: &Eid, text: impl Into<String>) -> Result<Sent, SendError> {
        self.send(self.draft(to, Content::Text(text.into()))).await
    }

    /// The same under a local id of the application's choice: however often it is called, also after a restart, the
    /// message is sent once (profile 7).
    ///
    /// # Errors
    /// See [`SendError`]; 409 when the id was used for another message.
    pub async fn send_text_with(
        &self,
        local_id: LocalId,
        to: &Eid,
        text: impl Into<String>,
    ) -> Result<Sent, SendError> {
        self.send(Draft { local_id, ..self.draft(to, Content::Text(text.into())) }).await
    }

    /// Sends a draft, and waits until the server has it.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&self, draft: Draft) -> Result<Sent, SendError> {
        let (command, ticket) = self.ticket(draft);
        self.inner.commands.send(command).await.map_err(|_| SendError::Closed(self.closed()))?;
        ticket.await
    }

    /// Hands a draft over without waiting for anything; texts go out in the order of these calls, and so does media.
    ///
    /// # Errors
    /// [`SendError::OutboxFull`] when the device's task is behind, and [`SendError::Closed`]; what else there may be
    /// comes through the ticket.
    pub fn submit(&self, draft: Draft) -> Result<Ticket, SendError> {
        let (command, ticket) = self.ticket(draft);
        match self.inner.commands.try_send(command) {
            Ok(()) => Ok(ticket),
            Err(mpsc::error::TrySendError::Full(_)) => Err(SendError::OutboxFull),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(SendError::Closed(self.closed())),
        }
    }

    /// A message of now with a local id of its own.
    pub fn draft(&self, to: &Eid, content: Content) -> Draft {
        let number = self.inner.messages.fetch_add(1, Ordering::Relaxed);
        // 32 digits, a hyphen and at most 16: within the 64 bytes of profile 7, and legal.
        let name = format!("{:032x}-{number:x}", self.inner.name);
        let local_id = LocalId::parse(&name).expect("1 to 64 bytes");
        Draft { local_id, to: to.clone(), content, created_at: unix_ms() }
    }

    // --- Receipts and the log ---------------------------------------------------------------------------------------

    /// Says that a message of `sender`, who is somebody else, was delivered or read (5.9.3). Without a connection it waits for
    /// one, in memory: a process that ends before the answer has to say it again.
    ///
    /// It also tells the server that every entry of the log up to this message is safe on this device, as [`Device::sync`]
    /// does. Gives the status that is now stored: it may be further than this one.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn acknowledge(
        &self,
        message: MessageId,
        sender: &Eid,
        status: AckStatus,
    ) -> Result<AckStatus, RequestError> {
        let payload = acknowledgment(self.identity(), message, sender, status, unix_ms());
        self.receipt(payload).await
    }

    pub(super) async fn receipt(&self, acknowledgment: Payload) -> Result<AckStatus, RequestError> {
        match self.ask(acknowledgment, true).await?.payload {
            Payload::AcknowledgmentResponse(receipt) => Acknowledged::parse(&receipt, Sequence::ZERO)
                .map(|receipt| receipt.status)
                .ok_or(RequestError::Unexpected),
            _ => Err(RequestError::Unexpected),
        }
    }

    /// Says that everything up to this sequence is safe here (`SyncAck`); for applications that keep what they receive,
    /// and have switched [`Builder::auto_sync`] off. What the application has not taken yet is not safe, whatever it says. Said
    /// again on each new connection.
    ///
    /// # Errors
    /// [`RequestError::Closed`].
    pub async fn sync(&self, sequence: Sequence) -> Result<(), RequestError> {
        self.command(Command::Sync(sequence)).await
    }

    // --- Asking -----------------------------------------------------------------------------------------------------

    /// Any request of the protocol that is answered by its `request_id`; `from`, `owner` or `entity` are the caller's to
    /// set. Made on the connection that is there, and not repeated on another.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn request(&self, payload: Payload) -> Result<Payload, RequestError> {
        Ok(self.ask(payload, false).await?.payload)
    }

    /// Round-trip time to the server's session and back, through the control lane.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn ping(&self) -> Result<Duration, RequestError> {
        let answer = self.ask(Payload::PingpongMessage(ping(unix_ms())), false).await?;
        match answer.payload {
            Payload::PingpongMessage(pong) if pong.status == PingStatus::Ok.code() => Ok(answer.elapsed),
            _ => Err(RequestError::Unexpected),
        }
    }

    /// Round-trip time of the path as QUIC estimates it; `None` without a connection.
    pub async fn path_rtt(&self) -> Option<Duration> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::PathRtt(reply)).await.ok()?;
        answer.await.ok()?
    }

    // --- Moving -----------------------------------------------------------------------------------------------------

    /// Moves to another local address: the connection goes on there (QUIC migration). Without a connection, the next one
    /// starts there. Gives the new local address, if there is a socket already.
    ///
    /// # Errors
    /// Whatever the system says to the new socket; the old one stays in use then.
    pub async fn rebind(&self, to: SocketAddr) -> io::Result<Option<SocketAddr>> {
        self.move_to(Some(to)).await
    }

    /// The network under the device has changed, or has come back: moves to a new socket that the system places, or, when
    /// there is no connection, or one that has been silent for a while, tries anew at once, with 0-RTT where it can. Also the
    /// call to make when the phone wakes up: the clock that counts silence stands while it sleeps.
    ///
    /// # Errors
    /// Whatever the system says to the new socket; the old one stays in use then.
    pub async fn network_changed(&self) -> io::Result<Option<SocketAddr>> {
        self.move_to(None).await
    }

    /// Ends a wait or a refusal and tries at once. Does nothing where an attempt is under way or a session open; one that may
    /// be dead is for [`Device::network_changed`]. Returns with the state on `Connecting`, or `Connected` if it was.
    ///
    /// # Errors
    /// [`RequestError::Closed`] when the application has closed the device.
    pub async fn reconnect(&self) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Reconnect(reply)).await?;
        answer.await.map_err(|_| RequestError::Closed(self.closed()))
    }

    // --- Closing ----------------------------------------------------------------------------------------------------

    /// Leaves: waits, within a bound, for the answers that are under way, tells the server how far it got, and says
    /// GOODBYE. Messages that are still unanswered stay in a durable outbox.
    pub async fn close(&self) {
        let mut state = self.state();
        if self.command(Command::Close).await.is_ok() {
            // The task lets go of the state when it has ended.
            while state.changed().await.is_ok() {}
        }
    }

    /// The user on this device, as requests have it.
    pub(super) fn identity(&self) -> Identity {
        self.inner.eid.device_identity(&self.inner.device)
    }

    pub(super) async fn tell(&self, presence: AwarenessNotification) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Tell { presence: Box::new(presence), reply }).await?;
        answer.await.unwrap_or_else(|_| Err(RequestError::Closed(self.closed())))
    }

    pub(super) async fn ask(&self, payload: Payload, lasting: bool) -> Result<Answer, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Request { payload, lasting, reply }).await?;
        answer.await.unwrap_or_else(|_| Err(RequestError::Closed(self.closed())))
    }

    async fn move_to(&self, to: Option<SocketAddr>) -> io::Result<Option<SocketAddr>> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Rebind { to, reply }).await.map_err(io::Error::other)?;
        answer.await.unwrap_or_else(|_| Err(io::Error::other(self.closed())))
    }

    async fn command(&self, command: Command) -> Result<(), RequestError> {
        self.inner.commands.send(command).await.map_err(|_| RequestError::Closed(self.closed()))
    }

    fn ticket(&self, draft: Draft) -> (Command, Ticket) {
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket { local_id: draft.local_id.clone(), answer, state: self.inner.state.clone() };
        (Command::Send { draft, reply, at: Instant::now() }, ticket)
    }

    fn closed(&self) -> CloseReason {
        reason(&self.inner.state)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("eid", &self.inner.eid)
            .field("device", &self.inner.device)
            .finish_non_exhaustive()
    }
}

impl Ticket {
    /// The message's name.
    pub fn local_id(&self) -> &LocalId {
        &self.local_id
    }
}

impl Future for Ticket {
    type Output = Result<Sent, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.answer).poll(cx));
        Poll::Ready(answer.unwrap_or_else(|_| Err(SendError::Closed(reason(&self.state)))))
    }
}

fn reason(state: &watch::Receiver<State>) -> CloseReason {
    match &*state.borrow() {
        State::Closed(reason) => reason.clone(),
        _ => CloseReason::Local,
    }
}

/// The wall clock, Unix milliseconds.
pub(crate) fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
