//! Maps payload types to variants of the envelope, so that a test can name the payload type that it expects next.

use std::ops::Deref;

use bimip::wire::proto::{
    AcknowledgmentResponse, AwarenessNotification, AwarenessResponse, BlockSubscriber, ChatMessage, HistoryPage,
    Logout, PingPong, SessionAccept, SubscriberAddResponse, SubscriberList, SubscriberRemove, TokenRevokeResponse,
    VersionUpdate, chat_message,
};
use bimip::wire::{ErrorMessage, MessageScheme, Payload};

/// A payload type, and the one variant of the envelope that carries it.
pub trait Body: Sized {
    /// The type's name, for failure messages.
    const NAME: &'static str;
    /// The body; `None` if the envelope carries another payload.
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

/// A received payload with the numbers of its envelope.
#[derive(Clone, Debug)]
pub struct Got<T> {
    /// Position in the receiving user's log; zero: not from the log.
    pub sequence: i64,
    /// Id of the request that it answers; zero: none.
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

/// The text of a text message.
pub fn text_of(message: &ChatMessage) -> &str {
    match &message.payload {
        Some(chat_message::Payload::Text(text)) => text,
        other => panic!("expected a text, got {other:?}"),
    }
}
