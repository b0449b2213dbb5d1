//! Why a request is refused, and the protocol's code for it, in one place (protocol.md §15).

use crate::store::StoreError;
use crate::wire::{Eid, ErrorCode, IdError, Identity, RouteError};

/// A refusal. The message is for the peer: it never repeats content or tokens.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) code: ErrorCode,
    pub(super) message: &'static str,
    pub(super) details: String,
}

impl Fault {
    pub(super) fn new(code: ErrorCode, message: &'static str) -> Fault {
        Fault { code, message, details: String::new() }
    }

    pub(super) fn malformed(message: &'static str) -> Fault {
        Fault::new(ErrorCode::Malformed, message)
    }

    /// Sets the details, unless there are some already.
    pub(super) fn details(mut self, details: impl Into<String>) -> Fault {
        if self.details.is_empty() {
            self.details = details.into();
        }
        self
    }
}

impl From<IdError> for Fault {
    fn from(error: IdError) -> Fault {
        let message = match error {
            IdError::Missing => "an identity is missing",
            IdError::Eid => "not an eid: local@domain, 3 to 254 bytes",
            IdError::Device => "not a connection_resource_id: 1 to 64 of A-Z a-z 0-9 . _ -",
            IdError::Local => "not a message_id_local: 1 to 64 bytes",
            IdError::Message => "not a message_id: a UUID",
            IdError::Chat => "not a chat_id",
        };
        Fault::malformed(message)
    }
}

impl From<RouteError> for Fault {
    fn from(error: RouteError) -> Fault {
        match error {
            RouteError::Undecodable => Fault::malformed("not a valid envelope"),
            RouteError::Mismatch => Fault::malformed("route does not match the payload"),
            RouteError::NoPayload => Fault::new(ErrorCode::Unsupported, "no known payload"),
        }
    }
}

impl From<&StoreError> for Fault {
    fn from(error: &StoreError) -> Fault {
        match error {
            StoreError::Conflict => Fault::new(ErrorCode::Conflict, "this message_id_local has other content"),
            StoreError::NoSuchMessage => Fault::new(ErrorCode::NotFound, "no such message"),
            StoreError::NotRecipient => Fault::new(ErrorCode::Forbidden, "only the recipient acknowledges a message"),
            StoreError::Blocked => Fault::new(ErrorCode::Forbidden, "not allowed to write to this user"),
            StoreError::Revoked => Fault::new(ErrorCode::Unauthenticated, "the token was revoked"),
            StoreError::TooManyDevices => Fault::new(ErrorCode::Forbidden, "the user has too many devices"),
            StoreError::TooManyRevoked => {
                Fault::new(ErrorCode::Forbidden, "too many devices are revoked: revoke all of the user's tokens")
            }
            StoreError::ListFull => Fault::new(ErrorCode::Forbidden, "the list is full"),
            StoreError::ChatFull => Fault::new(ErrorCode::TooFast, "an earlier message has to come first"),
            StoreError::Overloaded => Fault::new(ErrorCode::Unavailable, "overloaded, try again"),
            StoreError::DiskFull => Fault::new(ErrorCode::Unavailable, "no room on disk, try again later"),
            StoreError::Closed => Fault::new(ErrorCode::Unavailable, "the server is shutting down"),
            StoreError::Engine(_) => Fault::new(ErrorCode::Unavailable, "storage is unavailable"),
        }
    }
}

/// Checks that `from`, `owner` or `entity` is the session's own user, with its own or an empty resource id (protocol.md §4).
pub(super) fn require_own(identity: Option<&Identity>, user: &Eid, device: &str) -> Result<(), Fault> {
    // Usually it is written as the server writes it, and needs no parsing.
    let own = identity.is_some_and(|identity| identity.eid == user.as_str()) || Eid::from_identity(identity)? == *user;
    let resource = identity.map_or("", |identity| identity.connection_resource_id.as_str());
    if !own || !(resource.is_empty() || resource == device) {
        return Err(Fault::new(ErrorCode::Forbidden, "not your own identity"));
    }
    Ok(())
}
