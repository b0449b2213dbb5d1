//! Requests in their wire form, for requests that are made in more than one place.

use crate::wire::proto::{AcknowledgmentRequest, PingPong};
use crate::wire::{AckStatus, ChatId, Eid, Exchange, Identity, MessageId, Payload, PingStatus, Version};

/// A ping to the server itself (protocol.md §6).
pub(crate) fn ping(at: i64) -> PingPong {
    PingPong {
        r#type: Exchange::Request.code(),
        status: PingStatus::Pending.code(),
        request_time: at,
        ..Default::default()
    }
}

/// The request that acknowledges one message of `sender` (BIMip-Foundation 5.9.3).
pub(crate) fn acknowledgment(own: Identity, message: MessageId, sender: &Eid, status: AckStatus, at: i64) -> Payload {
    Payload::AcknowledgmentRequest(AcknowledgmentRequest {
        message_id: message.to_string(),
        ..acknowledgment_of(own, sender, status, at)
    })
}

/// The request that acknowledges every message of `sender` in a chat up to a version (protocol.md §7).
pub(crate) fn acknowledgment_up_to(
    own: Identity,
    (chat, version): (ChatId, Version),
    sender: &Eid,
    status: AckStatus,
    at: i64,
) -> Payload {
    Payload::AcknowledgmentRequest(AcknowledgmentRequest {
        chat_id: chat.to_string(),
        up_to_version: version.wire(),
        ..acknowledgment_of(own, sender, status, at)
    })
}

fn acknowledgment_of(own: Identity, sender: &Eid, status: AckStatus, at: i64) -> AcknowledgmentRequest {
    AcknowledgmentRequest {
        from: Some(own),
        to: Some(sender.identity()),
        status: status.code(),
        timestamp: at,
        ..Default::default()
    }
}
