//! Every payload of the schema with the lane that the profile gives it (profile 2), independent of the server's table.

use bimip::wire::{Lane, Payload};

/// All payloads but ErrorMessage, which every lane carries.
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

/// Payloads of families whose turn has not come; a family that comes takes itself off this list.
pub(crate) fn not_yet_served() -> Vec<(Lane, Payload)> {
    by_lane()
        .into_iter()
        .filter(|(_, payload)| {
            matches!(
                payload,
                Payload::TokenRevokeRequest(_)
                    | Payload::SubscriberAddRequest(_)
                    | Payload::SubscriberRemove(_)
                    | Payload::SubscriberListRequest(_)
                    | Payload::BlockSubscriber(_)
                    | Payload::Logout(_)
                    | Payload::AwarenessRequest(_)
                    | Payload::AwarenessNotification(_)
            )
        })
        .collect()
}
