//! Store calls as values: the session says what it wants, the driver runs it, the result comes back as an input.

use std::sync::Arc;

use crate::store::{
    Accepted, Acknowledged, Acknowledgment, DeviceState, HistoryMessage, HistoryQuery, LogEntry, NewMessage, Store,
    StoreError,
};
use crate::wire::{DeviceId, Eid, Lane, LocalId, MessageId, Sequence};

/// Which request a call answers.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Where it came in, and where an error goes.
    pub lane: Lane,
    /// Echoed; zero: none.
    pub request_id: i64,
    /// The payload's field name.
    pub payload: &'static str,
}

/// A wanted store call.
#[derive(Debug)]
pub enum Call {
    /// The session's device signs in.
    OpenDevice(Eid, DeviceId),
    /// Accept a message, and release it at once if the flag says so.
    Accept(Origin, Box<NewMessage>, bool),
    /// Release a message.
    Release(MessageId),
    /// Acknowledge.
    Acknowledge(Origin, Box<Acknowledgment>),
    /// A page of history.
    History(Origin, Box<HistoryQuery>),
    /// Read the user's log after a position.
    ReadLog(Eid, Sequence, usize),
}

/// A finished store call.
#[derive(Debug)]
pub enum Done {
    /// Of [`Call::OpenDevice`].
    OpenDevice(Result<DeviceState, StoreError>),
    /// Of [`Call::Accept`].
    Accept(Origin, LocalId, Result<Accepted, StoreError>),
    /// Of [`Call::Release`].
    Release(MessageId, Result<(), StoreError>),
    /// Of [`Call::Acknowledge`].
    Acknowledge(Origin, Result<Acknowledged, StoreError>),
    /// Of [`Call::History`].
    History(Origin, Box<HistoryQuery>, Result<Vec<HistoryMessage>, StoreError>),
    /// Of [`Call::ReadLog`].
    ReadLog(Result<Vec<Arc<LogEntry>>, StoreError>),
}

/// Runs a call.
pub async fn run(store: Arc<dyn Store>, call: Call) -> Done {
    match call {
        Call::OpenDevice(user, device) => Done::OpenDevice(store.open_device(&user, &device).await),
        Call::Accept(origin, message, release) => {
            let local_id = message.local_id.clone();
            Done::Accept(origin, local_id, store.accept(*message, release).await)
        }
        Call::Release(message) => Done::Release(message, store.release(message).await),
        Call::Acknowledge(origin, acknowledgment) => {
            Done::Acknowledge(origin, store.acknowledge(*acknowledgment).await)
        }
        Call::History(origin, query) => {
            let page = store.history(HistoryQuery::clone(&query)).await;
            Done::History(origin, query, page)
        }
        Call::ReadLog(user, after, limit) => Done::ReadLog(store.read_log(&user, after, limit).await),
    }
}
