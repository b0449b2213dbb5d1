//! Stored messages and acknowledgments as payloads of the protocol.

use crate::store::{AckTarget, Acknowledged, Content, HistoryMessage, Message};
use crate::wire::proto::{self, AcknowledgmentResponse, ChatMessage, MediaMetadata, VersionUpdate, chat_message};
use crate::wire::{AckStatus, Author, Eid, Exchange, MessageScheme, Payload, Sequence, VersionStatus, envelope};

/// BIMip-Foundation 5.10 VersionUpdate REQUEST, an entry of the sender's log.
pub(super) fn version_update(message: &Message, sequence: Sequence) -> MessageScheme {
    let update = VersionUpdate {
        to: Some(message.sender.device_identity(&message.device)),
        message_id: message.id.to_string(),
        message_id_local: message.local_id.as_str().to_owned(),
        r#type: Exchange::Request.code(),
        timestamp: message.received_at,
        status: VersionStatus::Sent.code(),
        version: message.version.wire(),
        chat_id: message.chat.to_string(),
    };
    MessageScheme { sequence: sequence.wire(), ..envelope(Payload::VersionUpdate(update)) }
}

/// 5.9.2 ChatMessage, an entry of the recipient's or the sender's log: a copy with the state at sending. Later acknowledgments
/// are entries of their own.
pub(super) fn chat_message(message: &Message, author: Author, sequence: Sequence) -> MessageScheme {
    let copy = copy(message, author, initial(author), 0);
    MessageScheme { sequence: sequence.wire(), ..envelope(Payload::ChatMessage(copy)) }
}

/// One message of a HistoryPage, with its current state.
pub(super) fn history(message: &HistoryMessage, reader: &Eid) -> ChatMessage {
    let author = if message.message.sender == *reader { Author::Sender } else { Author::Receiver };
    let (status, at) = message.acknowledged.unwrap_or((initial(author), 0));
    copy(&message.message, author, status, at)
}

/// 5.9.3 AcknowledgmentResponse. `from` is the user who acknowledged and `to` the message's sender. For all messages up to a
/// version, `message_id` is empty (protocol.md §7).
pub(super) fn acknowledgment(state: &Acknowledged) -> Payload {
    let (message_id, up_to_version) = match state.target {
        AckTarget::Message(id) => (id.to_string(), 0),
        AckTarget::UpTo(_, version) => (String::new(), version.wire()),
    };
    Payload::AcknowledgmentResponse(AcknowledgmentResponse {
        from: Some(state.reader.identity()),
        to: Some(state.sender.identity()),
        message_id,
        status: state.status.code(),
        timestamp: state.at,
        chat_id: state.chat.to_string(),
        up_to_version,
    })
}

/// 5.9.2: the sender's copy starts as sent, the receiver's as unread.
fn initial(author: Author) -> AckStatus {
    match author {
        Author::Sender => AckStatus::Sent,
        Author::Receiver => AckStatus::Unread,
    }
}

fn copy(message: &Message, author: Author, status: AckStatus, status_at: i64) -> ChatMessage {
    let (payload, media) = match &message.content {
        Content::Text(text) => (chat_message::Payload::Text(text.clone()), None),
        Content::Media { kind, url, caption, thumbnail_url, size_bytes } => {
            let media = MediaMetadata {
                r#type: kind.code(),
                caption: caption.clone(),
                thumbnail_url: thumbnail_url.clone(),
                size_bytes: *size_bytes,
            };
            (chat_message::Payload::MediaUrl(url.clone()), Some(media))
        }
    };
    proto::ChatMessage {
        message_id: message.id.to_string(),
        message_id_local: message.local_id.as_str().to_owned(),
        version: message.version.wire(),
        chat_id: message.chat.to_string(),
        from: Some(message.sender.identity()),
        to: vec![message.recipient.identity()],
        author: author.as_str().to_owned(),
        payload: Some(payload),
        acknowledgment: status.code(),
        acknowledgment_timestamp: status_at,
        created_at: message.created_at,
        server_received_at: message.received_at,
        media,
    }
}
