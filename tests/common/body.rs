//! Payloads by their type, so that a test says what it expects next and gets it.

use std::ops::Deref;

use bimip::wire::proto::{
    AcknowledgmentResponse, AwarenessNotification, AwarenessResponse, BlockSubscriber, ChatMessage, HistoryPage,
    Logout, PingPong, SessionAccept, SubscriberAddResponse, SubscriberList, SubscriberRemove, TokenRevokeResponse,
    VersionUpdate, chat_message,
};
use bimip::wire::{ErrorMessage, MessageScheme, Payload};

/// A payload type, and the one variant of the envelope that carries it.
pub trait Body: Sized {
    /// For messages of failed tests.
    const NAME: &'static str;
    /// `None`: the envelope carries something else.
    fn of(payload: &Payload) -> Option<&Self>;
}

macro_rules! bodies {
    ($($variant:ident = $body:ident),* $(,)?) => {$(
        impl Body for $body {
            const NAME: &'static str = stringify!($body);
            fn of(payload: &Payload) -> Option<&$body> {
                match payload { Payload::$variant(body) => Some(body), _ => None }
            }
        }
    )*};
}
bodies! {
    ErrorMessage = ErrorMessage,
    PingpongMessage = PingPong,
    SessionAccept = SessionAccept,
    VersionUpdate = VersionUpdate,
    ChatMessage = ChatMessage,
    AcknowledgmentResponse = AcknowledgmentResponse,
    HistoryPage = HistoryPage,
    AwarenessNotification = AwarenessNotification,
    AwarenessResponse = AwarenessResponse,
    BlockSubscriber = BlockSubscriber,
    Logout = Logout,
    SubscriberAddResponse = SubscriberAddResponse,
    SubscriberList = SubscriberList,
    SubscriberRemove = SubscriberRemove,
    TokenRevokeResponse = TokenRevokeResponse,
}

/// A payload that came, with what its envelope says.
#[derive(Clone, Debug)]
pub struct Got<T> {
    /// Position in the receiving user's log; zero: not from the log.
    pub sequence: i64,
    /// The request that it answers; zero: none.
    pub request_id: i64,
    body: T,
}

impl<T: Body + Clone> Got<T> {
    /// Panics if the envelope carries something else.
    pub fn from_scheme(scheme: &MessageScheme) -> Got<T> {
        let body = scheme.payload.as_ref().and_then(T::of);
        let body = body.unwrap_or_else(|| panic!("expected {}, got {scheme:?}", T::NAME)).clone();
        Got { sequence: scheme.sequence, request_id: scheme.request_id, body }
    }

    /// The payload alone.
    pub fn into_body(self) -> T {
        self.body
    }
}

impl<T> Deref for Got<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.body
    }
}

/// What a text message says.
pub fn text_of(message: &ChatMessage) -> &str {
    match &message.payload {
        Some(chat_message::Payload::Text(text)) => text,
        other => panic!("expected a text, got {other:?}"),
    }
}
