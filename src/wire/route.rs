//! Routes: which payload an envelope carries, and on which lane it belongs (protocol.md §3).

use prost::Message;

use super::lane::Lane;
use super::proto::MessageScheme;
use super::proto::message_scheme::Payload;

/// The field number of a payload in the envelope.
pub type Route = i64;

/// Why an envelope is refused before its payload is looked at. Each reason has one error code (protocol.md §15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Not a `MessageScheme`: error 400.
    #[error("not a valid envelope")]
    Undecodable,
    /// No payload, or one that this version does not know: error 501.
    #[error("no known payload")]
    NoPayload,
    /// `route` names another payload than the envelope carries: error 400.
    #[error("route does not match the payload")]
    Mismatch,
}

/// Declares route, name and lane of every payload in one table.
macro_rules! routes {
    ($($variant:ident = $route:literal $name:literal $lane:expr),* $(,)?) => {
        /// The route of a payload.
        pub fn route_of(payload: &Payload) -> Route {
            match payload { $(Payload::$variant(_) => $route),* }
        }

        /// The payload's field name in the schema, used in errors and metrics.
        pub fn payload_name(payload: &Payload) -> &'static str {
            match payload { $(Payload::$variant(_) => $name),* }
        }

        /// The names of all payloads.
        pub const PAYLOAD_NAMES: &[&str] = &[$($name),*];

        /// The lane on which a payload belongs; `None` for errors, which may come on any lane.
        pub fn lane_of(payload: &Payload) -> Option<Lane> {
            match payload { $(Payload::$variant(_) => $lane),* }
        }
    };
}

routes! {
    AwarenessNotification = 2 "awareness_notification" Some(Lane::Presence),
    AwarenessResponse = 3 "awareness_response" Some(Lane::Presence),
    AwarenessRequest = 4 "awareness_request" Some(Lane::Presence),
    ErrorMessage = 5 "error_message" None,
    PingpongMessage = 6 "pingpong_message" Some(Lane::Control),
    TokenRevokeRequest = 7 "token_revoke_request" Some(Lane::Control),
    TokenRevokeResponse = 8 "token_revoke_response" Some(Lane::Control),
    SubscriberAddRequest = 9 "subscriber_add_request" Some(Lane::Control),
    SubscriberAddResponse = 10 "subscriber_add_response" Some(Lane::Control),
    BlockSubscriber = 11 "block_subscriber" Some(Lane::Control),
    Logout = 12 "logout" Some(Lane::Control),
    ChatMessage = 13 "chat_message" Some(Lane::Chat),
    TextPayloadRequest = 14 "text_payload_request" Some(Lane::Chat),
    MediaPayloadRequest = 15 "media_payload_request" Some(Lane::Media),
    AcknowledgmentRequest = 16 "acknowledgment_request" Some(Lane::Chat),
    AcknowledgmentResponse = 17 "acknowledgment_response" Some(Lane::Chat),
    VersionUpdate = 18 "version_update" Some(Lane::Chat),
    SessionOpen = 19 "session_open" Some(Lane::Control),
    SessionAccept = 20 "session_accept" Some(Lane::Control),
    SyncAck = 21 "sync_ack" Some(Lane::Chat),
    HistoryRequest = 22 "history_request" Some(Lane::Chat),
    HistoryPage = 23 "history_page" Some(Lane::Chat),
    SubscriberRemove = 24 "subscriber_remove" Some(Lane::Control),
    SubscriberListRequest = 25 "subscriber_list_request" Some(Lane::Control),
    SubscriberList = 26 "subscriber_list" Some(Lane::Control),
}

/// Wraps a payload in an envelope and sets its route.
pub fn envelope(payload: Payload) -> MessageScheme {
    MessageScheme { route: route_of(&payload), payload: Some(payload), ..MessageScheme::default() }
}

/// Decodes the envelope of one frame and checks that its route fits its payload (protocol.md §3).
///
/// Route 0 means unset. Route 1 is accepted with an AwarenessNotification, because older clients send it.
///
/// # Errors
/// A [`RouteError`] if the bytes are not an envelope, or it has no known payload or the wrong route. The decoded
/// envelope, if there is one, comes with it, so that the caller's error can repeat its `request_id` and payload name.
pub fn open_envelope(frame: &[u8]) -> Result<MessageScheme, (RouteError, Option<Box<MessageScheme>>)> {
    let scheme = MessageScheme::decode(frame).map_err(|_| (RouteError::Undecodable, None))?;
    let fits = match &scheme.payload {
        None => return Err((RouteError::NoPayload, Some(Box::new(scheme)))),
        Some(payload) => match scheme.route {
            0 => true,
            1 => matches!(payload, Payload::AwarenessNotification(_)),
            route => route == route_of(payload),
        },
    };
    if fits { Ok(scheme) } else { Err((RouteError::Mismatch, Some(Box::new(scheme)))) }
}

#[cfg(test)]
mod tests {
    use super::super::proto::{AwarenessNotification, PingPong};
    use super::*;

    #[test]
    fn routes_are_checked() {
        let ping = |route| {
            let mut scheme = envelope(Payload::PingpongMessage(PingPong::default()));
            scheme.route = route;
            open_envelope(&scheme.encode_to_vec()).map_err(|(error, _)| error)
        };
        assert!(ping(0).is_ok());
        assert!(ping(6).is_ok());
        assert_eq!(ping(1).unwrap_err(), RouteError::Mismatch);
        assert_eq!(ping(7).unwrap_err(), RouteError::Mismatch);
        let mut old = envelope(Payload::AwarenessNotification(AwarenessNotification::default()));
        assert_eq!(old.route, 2);
        old.route = 1;
        assert!(open_envelope(&old.encode_to_vec()).is_ok());
    }

    #[test]
    fn an_envelope_without_known_payload_is_unsupported() {
        assert_eq!(open_envelope(&[]).unwrap_err().0, RouteError::NoPayload);
        // Field 99, length-delimited, empty: a payload of a later version.
        assert_eq!(open_envelope(&[0x9a, 0x06, 0x00]).unwrap_err().0, RouteError::NoPayload);
        assert_eq!(open_envelope(&[0xff]).unwrap_err().0, RouteError::Undecodable);
    }
}
