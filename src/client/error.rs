//! What can go wrong on the device's side, in the words that an application acts on.

use std::io;
use std::time::Duration;

use super::limits::{STABLE_AFTER, WORKED_AFTER};
use crate::wire::{CloseCode, ErrorCode, ErrorMessage, IdError, LocalId};

/// The options do not make a device.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An option without which there is no device.
    #[error("`{0}` is missing: set it on the builder")]
    Missing(&'static str),
    /// The eid or the device id is none.
    #[error("{0}")]
    Identity(#[from] IdError),
    /// The server is not `host:port`.
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
    /// TLS refused the settings.
    #[error("TLS settings: {0}")]
    Tls(String),
    /// Two options that exclude each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// The outbox could not be read.
    #[error("cannot read the outbox: {0}")]
    Outbox(#[source] io::Error),
    /// The system has no randomness.
    #[error("no randomness from the system: {0}")]
    Random(String),
}

/// An error that the server answered with (profile 9).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}{}", if details.is_empty() { String::new() } else { format!(" ({details})") })]
pub struct Refusal {
    /// As on the wire; [`Refusal::kind`] names it.
    pub code: i32,
    /// For people.
    pub message: String,
    /// The payload field that caused it.
    pub route: String,
    /// A `message_id_local`, milliseconds to wait, or the reason.
    pub details: String,
}

impl Refusal {
    /// The code, where it is one that this version knows.
    pub fn kind(&self) -> Option<ErrorCode> {
        ErrorCode::from_code(self.code)
    }

    /// How long the server asks to wait, when it does (429).
    pub fn wait(&self) -> Option<Duration> {
        (self.kind() == Some(ErrorCode::TooFast))
            .then(|| self.details.trim().parse().ok().map(Duration::from_millis))?
    }
}

impl From<ErrorMessage> for Refusal {
    fn from(error: ErrorMessage) -> Refusal {
        Refusal { code: error.code, message: error.message, route: error.route, details: error.details }
    }
}

/// Why a message was not sent, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// It breaks a bound of the protocol, and never left.
    #[error("not a message that can be sent: {0}")]
    Invalid(&'static str),
    /// Too much waits already. Nothing was sent; try again later.
    #[error("the outbox is full")]
    OutboxFull,
    /// The outbox could not keep it. Nothing was sent.
    #[error("the outbox failed: {0}")]
    Outbox(String),
    /// A message with this local id waits already: its own answer is on the way.
    #[error("a message with the local id {0} is being sent")]
    Duplicate(LocalId),
    /// The answer lies behind events that the application does not take, more than are read ahead of it
    /// ([`super::limits::AHEAD_BYTES_MAX`]). The message keeps its place in the outbox, and that it was accepted comes as
    /// [`super::Event::Accepted`].
    #[error("the answer lies behind events that are not taken")]
    Unread,
    /// The server refuses it.
    #[error("refused by the server: {0}")]
    Refused(#[from] Refusal),
    /// The device had stopped already: the message was not taken, and will not be sent.
    #[error("the device is closed: {0}")]
    Closed(CloseReason),
    /// The device stopped before the answer came: whether the server has the message is not known. It keeps its place in the
    /// outbox, and goes out with the same local id when the device connects again ([`super::Device::reconnect`], or a new
    /// process with a durable outbox). Sending it under another name could double it.
    #[error("the device was closed before the server answered: {0}")]
    Unanswered(CloseReason),
}

/// Why a request brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The server refuses it.
    #[error("refused by the server: {0}")]
    Refused(#[from] Refusal),
    /// It breaks a bound of the protocol, and never left.
    #[error("not a request that can be made: {0}")]
    Invalid(&'static str),
    /// The server understood it, and says that it was not done, and perhaps why.
    #[error("not done by the server{}", if .0.is_empty() { String::new() } else { format!(": {}", .0) })]
    Failed(String),
    /// No answer came in time.
    #[error("no answer in time")]
    TimedOut,
    /// Not connected, or not any more; for requests that make no sense later, such as a ping.
    #[error("not connected")]
    NotConnected,
    /// Too many wait already.
    #[error("too many requests are waiting for an answer")]
    Busy,
    /// The answer lies behind events that the application does not take, more than are read ahead of it
    /// ([`super::limits::AHEAD_BYTES_MAX`]). Whether the server did it is not known; take events, and ask again.
    #[error("the answer lies behind events that are not taken")]
    Unread,
    /// The answer is not one to this request.
    #[error("the server's answer does not fit the request")]
    Unexpected,
    /// The device is closed.
    #[error("the device is closed: {0}")]
    Closed(CloseReason),
}

/// Why a connection, or an attempt at one, came to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The application closed the device.
    #[error("closed by the application")]
    Local,
    /// The server closed the connection.
    #[error("closed by the server: {}{}", code.name(), if reason.is_empty() { String::new() } else { format!(" ({reason})") })]
    Server {
        /// The close code (profile 2).
        code: CloseCode,
        /// For people: the close's reason, or the error before it.
        reason: String,
    },
    /// The token source had none to give.
    #[error("no token: {0}")]
    NoToken(String),
    /// The server's certificate, or TLS otherwise, does not fit. Another attempt would end the same way, but may be
    /// made: a certificate can be replaced.
    #[error("TLS: {0}")]
    Tls(String),
    /// The server answers, and takes no sign-in now: too many at once (429), or it cannot serve (503).
    #[error("the server takes no sign-in now ({0})")]
    PutOff(Refusal),
    /// The network, the name, or a server that does not answer.
    #[error("{0}")]
    Network(String),
    /// What the server sent is not the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// The device's task panicked: code of the application's that it calls (token source, outbox, trace), or the library's.
    /// The device does nothing more.
    #[error("the device's task panicked")]
    Panicked,
}

impl CloseReason {
    /// Whether a token that was accepted now is what is missing.
    pub(crate) fn wants_new_token(&self) -> bool {
        matches!(self, CloseReason::Server { code: CloseCode::Unauthenticated | CloseCode::Revoked, .. })
    }

    /// Whether the attempt at a connection was a success whose session ended so, at this age: the next one need not wait
    /// longer than the first.
    pub(crate) fn was_success(&self, age: Duration) -> bool {
        match self {
            CloseReason::Server { code: CloseCode::Draining, .. } => true,
            // It would come to the same.
            CloseReason::Server { code: CloseCode::Abuse | CloseCode::ProtocolViolation, .. } => false,
            CloseReason::Network(_) => age >= WORKED_AFTER,
            _ => age >= STABLE_AFTER,
        }
    }

    /// Whether another session of the same device took the place of this one.
    pub(crate) fn is_replaced(&self) -> bool {
        matches!(self, CloseReason::Server { code: CloseCode::Replaced, .. })
    }

    /// Whether it is for the application to decide to come back.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, CloseReason::Local | CloseReason::Server { code: CloseCode::Goodbye | CloseCode::Replaced, .. })
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
