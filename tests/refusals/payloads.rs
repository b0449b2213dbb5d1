//! Every payload of the schema with its lane (protocol.md §3), independent of the server's own table.

use bimip::wire::{Identity, Lane, Payload};

use super::common::identity;

/// All payloads except ErrorMessage, which every lane carries.
pub(crate) fn by_lane() -> Vec<(Lane, Payload)> {
    use Payload::{
        AcknowledgmentRequest, AcknowledgmentResponse, AwarenessNotification, AwarenessRequest, AwarenessResponse,
        BlockSubscriber, ChatMessage, HistoryPage, HistoryRequest, Logout, MediaPayloadRequest, PingpongMessage,
        SessionAccept, SessionOpen, SubscriberAddRequest, SubscriberAddResponse, SubscriberList, SubscriberListRequest,
        SubscriberRemove, SyncAck, TextPayloadRequest, TokenRevokeRequest, TokenRevokeResponse, VersionUpdate,
    };
    let control = vec![
        SessionOpen(Default::default()),
        SessionAccept(Default::default()),
        PingpongMessage(Default::default()),
        TokenRevokeRequest(Default::default()),
        TokenRevokeResponse(Default::default()),
        SubscriberAddRequest(Default::default()),
        SubscriberAddResponse(Default::default()),
        SubscriberRemove(Default::default()),
        SubscriberListRequest(Default::default()),
        SubscriberList(Default::default()),
        BlockSubscriber(Default::default()),
        Logout(Default::default()),
    ];
    let presence = vec![
        AwarenessRequest(Default::default()),
        AwarenessResponse(Default::default()),
        AwarenessNotification(Default::default()),
    ];
    let chat = vec![
        TextPayloadRequest(Default::default()),
        VersionUpdate(Default::default()),
        ChatMessage(Default::default()),
        AcknowledgmentRequest(Default::default()),
        AcknowledgmentResponse(Default::default()),
        SyncAck(Default::default()),
        HistoryRequest(Default::default()),
        HistoryPage(Default::default()),
    ];
    let media = vec![MediaPayloadRequest(Default::default())];
    [(Lane::Control, control), (Lane::Presence, presence), (Lane::Chat, chat), (Lane::Media, media)]
        .into_iter()
        .flat_map(|(lane, payloads)| payloads.into_iter().map(move |payload| (lane, payload)))
        .collect()
}

/// Payloads that only a server sends.
pub(crate) fn of_the_server() -> Vec<(Lane, Payload)> {
    by_lane()
        .into_iter()
        .filter(|(_, payload)| {
            matches!(
                payload,
                Payload::SessionAccept(_)
                    | Payload::TokenRevokeResponse(_)
                    | Payload::SubscriberAddResponse(_)
                    | Payload::SubscriberList(_)
                    | Payload::AwarenessResponse(_)
                    | Payload::ChatMessage(_)
                    | Payload::AcknowledgmentResponse(_)
                    | Payload::HistoryPage(_)
            )
        })
        .collect()
}

/// All requests that carry the sender's identity (protocol.md §4, Whose name), with `from` as that identity. They name bob
/// where they need another user, and are otherwise valid.
pub(crate) fn in_the_name_of(from: Option<&Identity>) -> Vec<(Lane, Payload)> {
    let (from, bob) = (from.cloned(), Some(identity("bob@localhost")));
    let mut requests = by_lane();
    requests.retain_mut(|(_, payload)| {
        match payload {
            Payload::TextPayloadRequest(request) => {
                (request.from, request.to) = (from.clone(), bob.clone().into_iter().collect());
                (request.content, request.message_id_local) = ("Hey Bob!".into(), "in-whose-name".into());
            }
            Payload::MediaPayloadRequest(request) => {
                (request.from, request.to) = (from.clone(), bob.clone().into_iter().collect());
                (request.r#type, request.message_id_local) = (1, "in-whose-name".into());
                request.cdn_url_id = "https://cdn.example/cat.png".into();
            }
            Payload::AcknowledgmentRequest(request) => {
                (request.from, request.to, request.status) = (from.clone(), bob.clone(), 2);
                request.message_id = "01890000-0000-7000-8000-000000000000".into();
            }
            Payload::AwarenessRequest(request) => (request.from, request.to) = (from.clone(), bob.clone()),
            Payload::AwarenessNotification(request) => (request.from, request.status) = (from.clone(), 1),
            Payload::SubscriberAddRequest(request) => {
                (request.owner, request.subscriber) = (from.clone(), bob.clone());
            }
            Payload::SubscriberRemove(request) => {
                (request.owner, request.subscriber, request.r#type) = (from.clone(), bob.clone(), 1);
            }
            Payload::SubscriberListRequest(request) => request.owner = from.clone(),
            Payload::BlockSubscriber(request) => {
                (request.owner, request.subscriber, request.r#type) = (from.clone(), bob.clone(), 1);
            }
            Payload::Logout(request) => (request.entity, request.r#type) = (from.clone(), 1),
            _ => return false,
        }
        true
    });
    requests
}
