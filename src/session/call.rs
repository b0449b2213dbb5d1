//! Store calls as values: the session asks for them, the driver runs them, and their results come back as inputs.

use std::sync::Arc;

use crate::store::{
    Accepted, Access, Acknowledged, Bearer, Contact, ContactsPage, DeviceState, HistoryMessage, HistoryQuery, LogEntry,
    Relation, Reply, Revocation, RevocationTarget, Store, StoreError,
};
use crate::wire::proto::{Logout, PingPong, TokenRevokeResponse};
use crate::wire::{DeviceId, Eid, Lane, LocalId, MessageId, Payload, Sequence};

/// The request that a call answers.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The lane on which the request came, and on which an error is sent.
    pub lane: Lane,
    /// Echoed in the answer; zero: none.
    pub request_id: i64,
    /// The payload's field name.
    pub payload: &'static str,
}

/// A change to the user's list.
#[derive(Debug)]
pub enum ListChange {
    /// Add or change an entry.
    Put(Box<Contact>),
    /// Remove an entry.
    Remove(Eid),
    /// Block a user (`true`), or unblock.
    Block(Eid, bool),
}

/// Why a session asks for the relation between two users.
#[derive(Debug)]
pub enum Purpose {
    /// To relay a ping.
    Ping(Option<DeviceId>, Box<PingPong>),
    /// To send one user a notification about another.
    Direct,
}

/// Which chat operation a [`Write`](crate::store::Write) is.
#[derive(Debug)]
pub enum Asked {
    /// Accept the message with this local id.
    Accept(Origin, LocalId),
    /// Release one of the user's messages.
    Release(MessageId),
    /// Acknowledge one or more messages.
    Acknowledge(Origin),
}

impl Asked {
    /// Turns the outcome into the session's input.
    pub fn done(self, outcome: Result<Reply, StoreError>) -> Done {
        match self {
            Asked::Accept(origin, local) => Done::Accept(origin, local, outcome.and_then(Reply::accepted)),
            Asked::Release(message) => Done::Release(message, outcome.map(drop)),
            Asked::Acknowledge(origin) => Done::Acknowledge(origin, outcome.and_then(Reply::acknowledged)),
        }
    }
}

/// A store call that a session asks for, besides writes of chat.
#[derive(Debug)]
pub enum Call {
    /// Sign in the session's device.
    OpenDevice(Eid, DeviceId, Bearer),
    /// Read a page of history.
    History(Origin, Box<HistoryQuery>),
    /// Read the user's log after a position: at most so many entries.
    ReadLog(Eid, Sequence, usize),
    /// Find the lists that the user is on.
    Owners(Eid),
    /// Find what the first user's list says of the second, and whether either has blocked the other.
    Relation(Origin, Eid, Eid, Purpose),
    /// Change the user's list, then send the answer.
    ChangeList(Origin, Eid, ListChange, Box<Payload>),
    /// Read the part of the user's list behind somebody: at most so many bytes.
    List(Origin, Eid, Option<Eid>, usize),
    /// Revoke, then send the answer.
    Revoke(Origin, Box<Revocation>, Box<TokenRevokeResponse>),
    /// Revoke the device's token and forget its cursor, then send the answer.
    SignOut(Origin, Eid, DeviceId, Box<Revocation>, Logout),
}

/// A finished store call.
#[derive(Debug)]
pub enum Done {
    /// Of [`Call::OpenDevice`].
    OpenDevice(Result<DeviceState, StoreError>),
    /// Of [`Asked::Accept`].
    Accept(Origin, LocalId, Result<Accepted, StoreError>),
    /// Of [`Asked::Release`].
    Release(MessageId, Result<(), StoreError>),
    /// Of [`Asked::Acknowledge`].
    Acknowledge(Origin, Result<Acknowledged, StoreError>),
    /// Of [`Call::History`].
    History(Origin, Box<HistoryQuery>, Result<Vec<HistoryMessage>, StoreError>),
    /// Of [`Call::ReadLog`].
    ReadLog(Result<Vec<Arc<LogEntry>>, StoreError>),
    /// Of [`Call::Owners`].
    Owners(Result<Vec<(Eid, Access)>, StoreError>),
    /// Of [`Call::Relation`].
    Relation(Origin, Eid, Eid, Purpose, Result<Relation, StoreError>),
    /// Of [`Call::ChangeList`].
    ChangeList(Origin, Box<Payload>, Result<bool, StoreError>),
    /// Of [`Call::List`].
    List(Origin, Result<ContactsPage, StoreError>),
    /// Of [`Call::Revoke`].
    Revoke(Origin, RevocationTarget, Box<TokenRevokeResponse>, Result<(), StoreError>),
    /// Of [`Call::SignOut`].
    SignOut(Origin, Eid, DeviceId, Logout, Result<(), StoreError>),
}

impl Done {
    /// What did not happen because the store's engine failed, as the log says it, and the engine's reason.
    pub(super) fn failure(&self) -> Option<(&'static str, &str)> {
        let (what, error) = match self {
            Done::OpenDevice(Err(error)) => ("a device was not signed in", error),
            Done::Accept(.., Err(error)) => ("a message was not accepted", error),
            Done::Release(_, Err(error)) => ("a message was not released", error),
            Done::Acknowledge(_, Err(error)) => ("a receipt was not taken", error),
            Done::History(.., Err(error)) => ("history could not be read", error),
            Done::ReadLog(Err(error)) => ("the log could not be read", error),
            Done::Owners(Err(error)) => ("the contacts could not be read", error),
            Done::Relation(.., Err(error)) => ("it could not be read who may reach whom", error),
            Done::ChangeList(.., Err(error)) => ("a list was not changed", error),
            Done::List(_, Err(error)) => ("a list could not be read", error),
            Done::Revoke(.., Err(error)) => ("tokens were not revoked", error),
            Done::SignOut(.., Err(error)) => ("a device was not signed out", error),
            _ => return None,
        };
        match error {
            StoreError::Engine(reason) => Some((what, reason)),
            _ => None,
        }
    }
}

/// Runs a call against the store.
pub(super) async fn run(store: Arc<dyn Store>, call: Call) -> Done {
    match call {
        Call::OpenDevice(user, device, bearer) => Done::OpenDevice(store.open_device(&user, &device, bearer).await),
        Call::History(origin, query) => {
            let page = store.history(HistoryQuery::clone(&query)).await;
            Done::History(origin, query, page)
        }
        Call::ReadLog(user, after, limit) => Done::ReadLog(store.read_log(&user, after, limit).await),
        Call::Owners(user) => Done::Owners(store.owners_of(&user).await),
        Call::Relation(origin, owner, other, purpose) => {
            let asker = match purpose {
                Purpose::Ping(..) => &other,
                Purpose::Direct => &owner,
            };
            let relation = store.relation(asker, &owner, &other).await;
            Done::Relation(origin, owner, other, purpose, relation)
        }
        Call::ChangeList(origin, owner, change, answer) => {
            let changed = match change {
                ListChange::Put(contact) => store.put_contact(&owner, *contact).await,
                ListChange::Remove(subscriber) => store.remove_contact(&owner, &subscriber).await,
                ListChange::Block(subscriber, blocked) => store.set_block(&owner, &subscriber, blocked).await,
            };
            Done::ChangeList(origin, answer, changed)
        }
        Call::List(origin, owner, after, bytes) => {
            Done::List(origin, store.contacts(&owner, after.as_ref(), bytes).await)
        }
        Call::Revoke(origin, revocation, answer) => {
            // A lost device gives its place back here, because nobody can sign it out any more.
            let forget = match &revocation.target {
                RevocationTarget::Device(_, device) => Some(device.clone()),
                _ => None,
            };
            let target = revocation.target.clone();
            Done::Revoke(origin, target, answer, store.revoke(*revocation, forget).await)
        }
        Call::SignOut(origin, user, device, revocation, answer) => {
            let done = store.revoke(*revocation, Some(device.clone())).await;
            Done::SignOut(origin, user, device, answer, done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::testing::{House, payload};
    use crate::session::{Now, Output};
    use crate::store::testing::{device, eid};
    use crate::wire::{CloseCode, ErrorCode};

    fn engine(reason: &str) -> StoreError {
        StoreError::Engine(reason.to_owned())
    }

    fn list(error: StoreError) -> Done {
        Done::List(Origin { lane: Lane::Control, request_id: 1, payload: "subscriber_list_request" }, Err(error))
    }

    #[tokio::test]
    async fn what_the_engine_failed_is_logged_with_its_reason_once_for_each_session() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = Arc::new(file.reopen().unwrap());
        // While there is one subscriber alone, tracing asks the thread that first comes to a line whether it has one: another
        // test's has none, and the line would never be written.
        let _second = tracing::Dispatch::new(tracing_subscriber::registry());
        let _log =
            tracing::subscriber::set_default(tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish());
        let house = House::new(|_, _| ());
        for user in ["alice", "bob"] {
            let mut phone = house.bare(&eid(user), &device("phone")).await;
            for error in [StoreError::Overloaded, engine("first"), engine("second")] {
                phone.session.done(list(error), Now::system());
                let [Output::Send(_, frame)] = &phone.outputs()[..] else { panic!("one answer") };
                let Payload::ErrorMessage(told) = payload(frame) else { panic!("an error") };
                assert_eq!(told.code, ErrorCode::Unavailable.code(), "the device is not told why");
            }
        }
        let mut visitor = house.visitor();
        visitor.hear(Lane::Control, house.open(&eid("carol"), &device("phone")));
        visitor.session.done(Done::OpenDevice(Err(engine("third"))), Now::system());
        let log = std::fs::read_to_string(file.path()).unwrap();
        let errors = log.lines().filter_map(|line| line.split_once("ERROR").map(|(_, said)| said));
        let said: Vec<_> = errors.map(|said| said.split_once(": ").unwrap().1).collect();
        let list = r#"a list could not be read reason="first""#;
        assert_eq!(said, [list, list, r#"a device was not signed in reason="third""#], "{log}");
    }

    #[tokio::test]
    async fn a_session_whose_log_or_owners_cannot_be_read_is_closed_with_internal() {
        let house = House::new(|_, _| ());
        for done in [Done::ReadLog(Err(engine("x"))), Done::Owners(Err(engine("x")))] {
            let mut phone = house.bare(&eid("alice"), &device("phone")).await;
            phone.session.done(done, Now::system());
            let outputs = phone.outputs();
            assert!(matches!(outputs[..], [Output::Close(CloseCode::Internal, _)]), "{outputs:?}");
        }
    }
}
