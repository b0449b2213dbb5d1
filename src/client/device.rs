//! The application's handle on its device: send, acknowledge, ask, move to another network, close.

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
use super::event::{Acknowledged, Content, Event, Session};
use super::inbox::Inbox;
use super::outbox::Draft;
use super::payloads::{acknowledgment, ping};
use super::requests::{Answer, RequestReply, SendReply, Sent};
use crate::wire::proto::AwarenessNotification;
use crate::wire::{AckStatus, DeviceId, Eid, Identity, LocalId, MessageId, Payload, PingStatus, Sequence};

/// The state of a device's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// An attempt to connect is under way.
    Connecting,
    /// A session is open.
    Connected(Session),
    /// The connection ended or an attempt failed; the next attempt follows by itself.
    Waiting {
        /// Length of the wait, counted from its beginning.
        retry_in: Duration,
        /// Why the previous connection or attempt ended.
        reason: CloseReason,
    },
    /// The device has stopped. [`Device::reconnect`] starts it again, unless the application has closed it (dropping
    /// the last handle counts as closing) or its task has panicked. [`CloseReason`] lists when a device stops.
    Closed(CloseReason),
}

/// A handle on one signed-in device.
///
/// Clones are cheap and share the device. When the last one is dropped, the device leaves without waiting for answers;
/// to wait for them, call [`Device::close`].
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
    eid: Eid,
    device: DeviceId,
    /// Random for each process, so that two processes never make the same local id.
    name: u128,
    messages: AtomicU64,
    /// Where answers go that nobody waits for any more.
    inbox: Arc<Inbox>,
}

/// A command from a handle to the device's task.
pub(crate) enum Command {
    Send { draft: Draft, reply: SendReply, at: Instant },
    Request { payload: Payload, lasting: bool, reply: RequestReply },
    Tell { presence: Box<AwarenessNotification>, reply: oneshot::Sender<Result<(), RequestError>> },
    Sync(Sequence),
    Rebind { to: Option<SocketAddr>, reply: oneshot::Sender<io::Result<Option<SocketAddr>>> },
    Reconnect(oneshot::Sender<()>),
    PathRtt(oneshot::Sender<Option<Duration>>),
    Close { connects: bool },
}

/// A future of the answer to a message that was [submitted](Device::submit). The output is the same as that of
/// [`Device::send`].
///
/// Dropping it does not take the message back; the result is then reported as [`super::Event::Accepted`],
/// [`super::Event::Refused`] or [`super::Event::NotSent`].
#[derive(Debug)]
pub struct Ticket {
    local_id: LocalId,
    answer: oneshot::Receiver<Result<Sent, SendError>>,
    state: watch::Receiver<State>,
    inbox: Arc<Inbox>,
}

impl Device {
    /// The options of a new device; [`Builder::connect`] starts it.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(
        commands: mpsc::Sender<Command>,
        state: watch::Receiver<State>,
        eid: Eid,
        device: DeviceId,
        name: u128,
        inbox: Arc<Inbox>,
    ) -> Device {
        Device { inner: Arc::new(Inner { commands, state, eid, device, name, messages: AtomicU64::new(0), inbox }) }
    }

    /// The user's identifier.
    pub fn eid(&self) -> &Eid {
        &self.inner.eid
    }

    /// The id of this device.
    pub fn device_id(&self) -> &DeviceId {
        &self.inner.device
    }

    // --- State ------------------------------------------------------------------------------------------------------

    /// The current state of the connection: read it with `borrow`, wait for a change with `changed`.
    pub fn state(&self) -> watch::Receiver<State> {
        self.inner.state.clone()
    }

    /// Waits until a session is open. There is no timeout: while the network fails, the device keeps trying. Wrap the
    /// call in `tokio::time::timeout` to bound the wait.
    ///
    /// # Errors
    /// The [`CloseReason`] if the device has stopped (see [`State::Closed`]).
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

    /// Sends a text of 1 byte to 16 KiB of UTF-8, and waits until the server has stored and numbered it. There is no
    /// timeout: without a connection the message waits for one.
    ///
    /// Dropping the future does not take the message back once the device's task has received it, which is normally at
    /// the first poll (later if many commands are queued).
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send_text(&self, to: &Eid, text: impl Into<String>) -> Result<Sent, SendError> {
        self.send(self.draft(to, Content::Text(text.into()))).await
    }

    /// Like [`Device::send_text`], under a local id that the application chooses. The message is sent once however
    /// often this is called, also after a restart; the server remembers local ids for at least seven days (protocol.md
    /// §7).
    ///
    /// # Errors
    /// See [`SendError`]: [`SendError::Duplicate`] while a message with this local id waits, and [`SendError::Refused`]
    /// with code 409 if the id was used for another message.
    pub async fn send_text_with(
        &self,
        local_id: LocalId,
        to: &Eid,
        text: impl Into<String>,
    ) -> Result<Sent, SendError> {
        self.send(Draft { local_id, ..self.draft(to, Content::Text(text.into())) }).await
    }

    /// Sends a draft, and waits until the server has stored and numbered it. Otherwise like [`Device::send_text`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&self, draft: Draft) -> Result<Sent, SendError> {
        let (command, ticket) = self.ticket(draft);
        self.inner.commands.send(command).await.map_err(|_| SendError::Closed(self.closed()))?;
        ticket.await
    }

    /// Queues a draft without waiting. Texts are sent in the order of these calls, and so are media messages.
    ///
    /// ```no_run
    /// # use bimip::client::{Content, Device};
    /// # use bimip::wire::Eid;
    /// # async fn example(device: Device, bob: Eid) -> Result<(), Box<dyn std::error::Error>> {
    /// let first = device.submit(device.draft(&bob, Content::Text("Hey Bob!".to_owned())))?;
    /// let second = device.submit(device.draft(&bob, Content::Text("Are you there?".to_owned())))?;
    /// for ticket in [first, second] {
    ///     let sent = ticket.await?;
    ///     println!("{} is version {}", sent.local_id, sent.version);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SendError::OutboxFull`] if too many commands wait for the device's task ([`super::limits::COMMANDS_MAX`]), and
    /// [`SendError::Closed`] if the device has ended. The ticket reports every other error.
    pub fn submit(&self, draft: Draft) -> Result<Ticket, SendError> {
        let (command, ticket) = self.ticket(draft);
        match self.inner.commands.try_send(command) {
            Ok(()) => Ok(ticket),
            Err(mpsc::error::TrySendError::Full(_)) => Err(SendError::OutboxFull),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(SendError::Closed(self.closed())),
        }
    }

    /// A draft with a new random local id and the current time. This does not send it.
    pub fn draft(&self, to: &Eid, content: Content) -> Draft {
        let number = self.inner.messages.fetch_add(1, Ordering::Relaxed);
        // 32 digits, a hyphen and at most 16 digits: legal, and within the 64 bytes of a local id (protocol.md §4).
        let name = format!("{:032x}-{number:x}", self.inner.name);
        let local_id = LocalId::parse(&name).expect("1 to 64 bytes");
        Draft { local_id, to: to.clone(), content, created_at: unix_ms() }
    }

    // --- Receipts and the log ---------------------------------------------------------------------------------------

    /// Acknowledges a message of `sender`, another user, as delivered or read. Returns the status that the server now
    /// stores, which may be further than `status`.
    ///
    /// It also moves the position in the log that the server keeps for this device to this message (protocol.md §9): unlike
    /// [`Device::sync`], even beyond entries that the application has not taken. A later process that asks the server where
    /// to go on would not get those. So acknowledge a message once everything before it is safe, or keep the position on
    /// this side, in a [`super::FileOutbox`] or with [`Builder::resume_from`]: that one counts then.
    ///
    /// Without a connection the acknowledgment waits for one, in memory only: if the process ends before the answer,
    /// the application has to acknowledge again.
    ///
    /// Dropping the future, as a timeout around it does, does not take the acknowledgment back, but nothing is done for it any
    /// more: it is not sent again after a lost connection, and while it has not been sent, its place is given to another
    /// request once none is left ([`super::limits::REQUESTS_MAX`]). For an acknowledgment that has to arrive, await the
    /// future in a task of its own.
    ///
    /// # Errors
    /// See [`RequestError`]. [`RequestError::Refused`] has code 403 if the message is not to this user and 404 if there
    /// is no such message.
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

    /// Tells the server (with a `SyncAck`) and the outbox that every entry of the log up to `sequence` is safe on this
    /// device, so that a later process does not receive it again. For applications that store what they receive and
    /// have switched [`Builder::auto_sync`] off; there is an example.
    ///
    /// Entries whose events the application has not taken do not count as safe, even if `sequence` covers them. The
    /// device repeats the newest position on each new connection. The call does not wait for the server.
    ///
    /// # Errors
    /// [`RequestError::Closed`] if the application has closed the device.
    pub async fn sync(&self, sequence: Sequence) -> Result<(), RequestError> {
        self.command(Command::Sync(sequence)).await
    }

    // --- Asking -----------------------------------------------------------------------------------------------------

    /// Sends any request of the protocol that is answered by its `request_id`, and returns the answer. The caller sets
    /// `from`, `owner` or `entity`. The request is sent on the current connection only.
    ///
    /// Messages and `SessionOpen` are not among them: see [`Device::send`] and [`Builder::token`]. A payload without an
    /// answer, such as an `AwarenessNotification`, is sent as well, but the call ends with an error: the server's, or
    /// [`RequestError::TimedOut`].
    ///
    /// # Errors
    /// See [`RequestError`]: [`RequestError::NotConnected`] without a connection or if it is lost before the answer,
    /// and [`RequestError::Unexpected`], before anything is sent, for a `TextPayloadRequest`, `MediaPayloadRequest`,
    /// `SessionOpen` or `ErrorMessage`.
    pub async fn request(&self, payload: Payload) -> Result<Payload, RequestError> {
        Ok(self.ask(payload, false).await?.payload)
    }

    /// Measures the round-trip time to the server's session, over the control lane.
    ///
    /// # Errors
    /// See [`RequestError`]; [`RequestError::NotConnected`] without a connection.
    pub async fn ping(&self) -> Result<Duration, RequestError> {
        let answer = self.ask(Payload::PingpongMessage(ping(unix_ms())), false).await?;
        match answer.payload {
            Payload::PingpongMessage(pong) if pong.status == PingStatus::Ok.code() => Ok(answer.elapsed),
            _ => Err(RequestError::Unexpected),
        }
    }

    /// Round-trip time of the path as QUIC estimates it; `None` without a connection and over TCP.
    pub async fn path_rtt(&self) -> Option<Duration> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::PathRtt(reply)).await.ok()?;
        answer.await.ok()?
    }

    // --- Moving -----------------------------------------------------------------------------------------------------

    /// Moves to another local address and returns the new one.
    ///
    /// A QUIC connection continues there (connection migration). A connection over TCP, or one on which nothing has
    /// arrived for a while although something is owed, is replaced by a new one from there; without a connection, the
    /// next one starts there. In these cases the result is `None`, as there is no socket yet.
    ///
    /// # Errors
    /// The system's error if no socket can be opened at `to`, or an error if `to` is of another IP family than the
    /// connection; the old socket stays in use. Also an error if the application has closed the device.
    ///
    /// Dropping the future does not take the move back once the device's task has received it.
    pub async fn rebind(&self, to: SocketAddr) -> io::Result<Option<SocketAddr>> {
        self.move_to(Some(to)).await
    }

    /// Call this when the network under the device has changed or come back, and when the phone wakes up (the clock
    /// that counts silence stands still while it sleeps).
    ///
    /// A QUIC connection moves to a new socket, whose address the system chooses and which is returned. If the
    /// connection is over TCP, or nothing has arrived for a while although something is owed, the device makes a new
    /// connection at once, with 0-RTT where possible. The same happens if there is no connection; the result is `None`
    /// then. A device that has stopped stays stopped: see [`Device::reconnect`]. Dropping the future is as with
    /// [`Device::rebind`].
    ///
    /// # Errors
    /// The system's error if no new socket can be opened; the old one stays in use. Also an error if the application
    /// has closed the device.
    pub async fn network_changed(&self) -> io::Result<Option<SocketAddr>> {
        self.move_to(None).await
    }

    /// Tries to connect at once, if the device is waiting for its next attempt or has stopped. Does nothing while an
    /// attempt is under way or a session is open; use [`Device::network_changed`] if that session may be dead. When it
    /// returns, the state is `Connecting`, or `Connected` if it was that before. Dropping the future does not keep the device
    /// from connecting once its task has received the call.
    ///
    /// # Errors
    /// [`RequestError::Closed`] if the application has closed the device.
    pub async fn reconnect(&self) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Reconnect(reply)).await?;
        answer.await.map_err(|_| RequestError::Closed(self.closed()))
    }

    // --- Closing ----------------------------------------------------------------------------------------------------

    /// Closes the device: waits up to 3 s for pending answers ([`super::limits::CLOSE_WITHIN`]), tells the server how
    /// far the application got in the log, and closes the connection with GOODBYE. Without a connection, it goes on
    /// trying to make one in that time if anything is pending. Messages that are still unanswered stay in the outbox.
    ///
    /// Dropping the future does not keep the device from closing once its task has received the call.
    pub async fn close(&self) {
        self.end(true).await;
    }

    /// Closes the device. `connects`: whether it may make a connection for what is pending.
    pub(super) async fn end(&self, connects: bool) {
        let mut state = self.state();
        if self.command(Command::Close { connects }).await.is_ok() {
            // The task drops its end of the state when it has ended.
            while state.changed().await.is_ok() {}
        }
    }

    /// The user and device, as requests carry them.
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
        let (state, inbox) = (self.inner.state.clone(), self.inner.inbox.clone());
        let ticket = Ticket { local_id: draft.local_id.clone(), answer, state, inbox };
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
    /// The message's local id.
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

impl Drop for Ticket {
    /// An answer may have come that the caller no longer takes.
    fn drop(&mut self) {
        self.answer.close();
        let event = match self.answer.try_recv() {
            Ok(Ok(sent)) => Some(Event::Accepted(sent.into())),
            Ok(Err(error)) => Event::of_unsent(self.local_id.clone(), error),
            Err(_) => None,
        };
        event.into_iter().for_each(|event| self.inbox.add(event));
    }
}

fn reason(state: &watch::Receiver<State>) -> CloseReason {
    match &*state.borrow() {
        State::Closed(reason) => reason.clone(),
        _ => CloseReason::Local,
    }
}

/// The wall clock, in Unix milliseconds.
pub(crate) fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
