//! The errors of the device side, grouped by what an application does about them.

use std::io;
use std::time::Duration;

use super::limits::{STABLE_AFTER, WORKED_AFTER};
use crate::wire::{CloseCode, ErrorCode, ErrorMessage, IdError, LocalId};

/// Why [`Builder::connect`](super::Builder::connect) did not start a device. Nothing was started; correct the option
/// and call it again.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A required option is not set, or there is no tokio runtime.
    #[error("`{0}` is missing: set it on the builder")]
    Missing(&'static str),
    /// The eid or the device id is malformed. `Builder::connect` never returns this: the application's `?` makes it
    /// from the error of [`Eid::parse`](crate::wire::Eid::parse) or [`DeviceId::parse`](crate::wire::DeviceId::parse).
    #[error("{0}")]
    Identity(#[from] IdError),
    /// The server is not given as `host:port`.
    #[error("`{0}` is not a server address: use host:port")]
    Server(String),
    /// The trusted certificates could not be read.
    #[error("cannot read trusted certificates from {path}: {reason}")]
    Roots {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS or QUIC rejected the settings.
    #[error("TLS settings: {0}")]
    Tls(String),
    /// Two options exclude each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// The outbox could not be read, or it belongs to another user.
    #[error("cannot read the outbox: {0}")]
    Outbox(#[source] io::Error),
    /// The system supplied no randomness.
    #[error("no randomness from the system: {0}")]
    Random(String),
}

/// An error with which the server answered (protocol.md §15).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}{}", if details.is_empty() { String::new() } else { format!(" ({details})") })]
pub struct Refusal {
    /// The code as on the wire; [`Refusal::kind`] names it.
    pub code: i32,
    /// Explanation in English, for logs.
    pub message: String,
    /// Field name of the payload that caused the error; empty if unknown.
    pub route: String,
    /// Depends on the code: a `message_id_local`, the milliseconds to wait, or the reason in words. Empty if it adds nothing
    /// to the message.
    pub details: String,
}

impl Refusal {
    /// The code as an enum; `None` if this version does not know it.
    pub fn kind(&self) -> Option<ErrorCode> {
        ErrorCode::from_code(self.code)
    }

    /// How long the server asks to wait before the next attempt (error 429); `None` for other errors.
    pub fn wait(&self) -> Option<Duration> {
        (self.kind() == Some(ErrorCode::TooFast))
            .then(|| self.details.trim().parse().ok().map(Duration::from_millis))?
    }
}

impl From<ErrorMessage> for Refusal {
    fn from(error: ErrorMessage) -> Refusal {
        // A server that has nothing to add repeats the message there.
        let details = if error.details == error.message { String::new() } else { error.details };
        Refusal { code: error.code, message: error.message, route: error.route, details }
    }
}

/// Why a message was not sent, or why it is not known whether it was.
///
/// A missing network is not an error: the device waits for a connection. It also repeats by itself what the server puts
/// off (errors 408, 429 and 503).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The message breaks a rule of the protocol and was not sent: an empty or too long field, or the user's own eid as
    /// recipient. Correct the draft.
    #[error("not a message that can be sent: {0}")]
    Invalid(&'static str),
    /// Too many messages or bytes already wait ([`super::limits::OUTBOX_MESSAGES_MAX`],
    /// [`super::limits::OUTBOX_BYTES_MAX`]). The message was not sent. Try again later.
    #[error("the outbox is full")]
    OutboxFull,
    /// The outbox could not store the message, for example because the disk is full. The message was not sent.
    #[error("the outbox failed: {0}")]
    Outbox(String),
    /// A message with this local id is already waiting. Wait for the answer to that one.
    #[error("a message with the local id {0} is being sent")]
    Duplicate(LocalId),
    /// The answer lies behind events that the application has not taken, further than the device reads ahead
    /// ([`super::limits::AHEAD_BYTES_MAX`]). The message stays in the outbox; its acceptance is reported as
    /// [`super::Event::Accepted`]. Take events. Do not send the message again under another local id.
    #[error("the answer lies behind events that are not taken")]
    Unread,
    /// The server refused the message and will not accept it unchanged. Common codes: 403 (the recipient has blocked
    /// this user), 404 (the recipient's domain is not served), 409 (the local id was used for another message).
    #[error("refused by the server: {0}")]
    Refused(#[from] Refusal),
    /// The device had already stopped. The message was not taken and will not be sent.
    #[error("the device is closed: {0}")]
    Closed(CloseReason),
    /// The device stopped before the answer arrived: it is not known whether the server has the message. The message
    /// stays in the outbox and is sent under the same local id when the device connects again: after
    /// [`super::Device::reconnect`] or, with a durable outbox, in a new process. Do not send it again under another
    /// local id: the recipient could get it twice.
    #[error("the device was closed before the server answered: {0}")]
    Unanswered(CloseReason),
}

/// Why a request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The server refused the request. After code 429, repeat it after [`Refusal::wait`]; after 503, with backoff. With
    /// another code, the same request would be refused again.
    #[error("refused by the server: {0}")]
    Refused(#[from] Refusal),
    /// The request breaks a rule of the protocol and was not sent. Correct the arguments.
    #[error("not a request that can be made: {0}")]
    Invalid(&'static str),
    /// The server understood the request but did not carry it out. Contains the server's reason; may be empty.
    #[error("not done by the server{}", if .0.is_empty() { String::new() } else { format!(": {}", .0) })]
    Failed(String),
    /// No answer came within [`super::limits::REQUEST_WITHIN`]. It is not known whether the server carried the request
    /// out. It is safe to repeat (protocol.md §8).
    #[error("no answer in time")]
    TimedOut,
    /// There is no connection, or it was lost before the answer arrived. Only requests that are not worth repeating
    /// later, such as a ping, fail with this. Wait for [`super::Device::connected`] and ask again.
    #[error("not connected")]
    NotConnected,
    /// Too many requests already wait for their answers ([`super::limits::REQUESTS_MAX`]). The request was not sent.
    /// Try again once others are answered.
    #[error("too many requests are waiting for an answer")]
    Busy,
    /// The answer lies behind events that the application has not taken, further than the device reads ahead
    /// ([`super::limits::AHEAD_BYTES_MAX`]). It is not known whether the server carried the request out. Take events,
    /// then ask again.
    #[error("the answer lies behind events that are not taken")]
    Unread,
    /// The server's answer does not fit the request: a fault of the server, or a version that this library does not
    /// know. Also for what is no request of the application's ([`super::Device::request`]).
    #[error("the server's answer does not fit the request")]
    Unexpected,
    /// The device is closed. [`super::Device::reconnect`] starts it again, unless the application closed it or its task
    /// panicked.
    #[error("the device is closed: {0}")]
    Closed(CloseReason),
}

/// Why a connection, or an attempt to make one, ended.
///
/// After most of these the device reconnects by itself. It stops, with [`super::State::Closed`], after [`Local`] and
/// [`Denied`], after REPLACED from the server, after the GOODBYE that answers a `Logout`, when the server refused a token and
/// the token source returns the same token again, and when tokens were refused [`super::limits::REFUSALS_MAX`] times in a row.
///
/// [`Local`]: CloseReason::Local
/// [`Denied`]: CloseReason::Denied
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The application closed the device, dropped its last handle, or ended the runtime that it was started in.
    #[error("closed by the application")]
    Local,
    /// The server closed the connection. protocol.md §14 says what each code means. After UNAUTHENTICATED and REVOKED
    /// the device asks its token source for another token.
    #[error("closed by the server: {}{}", code.name(), if reason.is_empty() { String::new() } else { format!(" ({reason})") })]
    Server {
        /// The close code.
        code: CloseCode,
        /// For logs: the reason of the close, or the message of the error before it.
        reason: String,
    },
    /// The token source failed, or took longer than [`super::limits::LOOKUP_WITHIN`]. Contains its error. The device
    /// asks again after a backoff.
    #[error("no token: {0}")]
    NoToken(String),
    /// The server's certificate, or TLS in another respect, was not accepted. The device keeps trying, because a
    /// certificate can be replaced, but each attempt ends the same way until something changes: check the trusted roots
    /// and the server name.
    #[error("TLS: {0}")]
    Tls(String),
    /// The server accepts no sign-in now: there are too many at once (429), or it cannot serve (503). The device tries again
    /// after the time that the server asked for and a backoff.
    #[error("the server takes no sign-in now ({0})")]
    PutOff(Refusal),
    /// The server admits no session of this device, whatever its token: it would be the user's seventeenth device (403). The
    /// device stops. Sign out or revoke another device, or take the id of one that is no longer used.
    #[error("the server does not admit this device: {0}")]
    Denied(Refusal),
    /// The network failed, the name could not be resolved, or the server did not answer. The device tries again after a
    /// backoff.
    #[error("{0}")]
    Network(String),
    /// The server sent something that violates the protocol. The device tries again after a backoff.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// The device's task panicked, in this library or in application code that it calls (token source, outbox, trace).
    /// The device does nothing more; start a new one.
    #[error("the device's task panicked")]
    Panicked,
}

impl CloseReason {
    /// Whether the connection ended for want of an acceptable token.
    pub(crate) fn wants_new_token(&self) -> bool {
        matches!(self, CloseReason::Server { code: CloseCode::Unauthenticated | CloseCode::Revoked, .. })
    }

    /// Whether a session that ended for this reason at this age counts as a success, which resets the backoff.
    pub(crate) fn was_success(&self, age: Duration) -> bool {
        match self {
            CloseReason::Server { code: CloseCode::Draining, .. } => true,
            // Another session would end the same way.
            CloseReason::Server { code: CloseCode::Abuse | CloseCode::ProtocolViolation, .. } => false,
            CloseReason::Network(_) => age >= WORKED_AFTER,
            _ => age >= STABLE_AFTER,
        }
    }

    /// Whether another session of the same device took this one's place.
    pub(crate) fn is_replaced(&self) -> bool {
        matches!(self, CloseReason::Server { code: CloseCode::Replaced, .. })
    }

    /// Whether the device stops and leaves it to the application to reconnect. `leaves`: whether the session carried a
    /// `Logout`. Code 0 is also what QUIC says for a server that has dropped the connection without a word.
    pub(crate) fn is_final(&self, leaves: bool) -> bool {
        match self {
            CloseReason::Local | CloseReason::Denied(_) => true,
            CloseReason::Server { code: CloseCode::Replaced, .. } => true,
            CloseReason::Server { code: CloseCode::Goodbye, .. } => leaves,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_ends_young_is_no_success_unless_the_server_only_moves_house() {
        let server = |code| CloseReason::Server { code, reason: String::new() };
        let network = CloseReason::Network("cut".into());
        let just_before = |age: Duration| age - Duration::from_millis(1);
        for (reason, age, success) in [
            (network.clone(), Duration::ZERO, false),
            (network.clone(), just_before(WORKED_AFTER), false),
            (network, WORKED_AFTER, true),
            (server(CloseCode::Draining), Duration::ZERO, true),
            (server(CloseCode::Internal), just_before(STABLE_AFTER), false),
            (server(CloseCode::Internal), STABLE_AFTER, true),
            (server(CloseCode::Abuse), STABLE_AFTER, false),
            (server(CloseCode::ProtocolViolation), STABLE_AFTER, false),
        ] {
            assert_eq!(reason.was_success(age), success, "{reason:?} after {age:?}");
        }
    }
}
