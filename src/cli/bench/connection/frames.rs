//! The frames that measured devices send.

use bytes::Bytes;

use crate::clock::Now;
use crate::wire::proto::{AcknowledgmentRequest, MediaPayloadRequest, TextPayloadRequest, VersionUpdate};
use crate::wire::{AckStatus, Eid, MessageScheme, Payload, encode_frame, envelope};

/// A frame with a text.
pub(in crate::cli::bench) fn text(from: &Eid, to: &Eid, local_id: &str, content: &str) -> Bytes {
    numbered_text(from, to, local_id, content, 0)
}

/// As [`text`], with a request id for errors to refer to; 0 for none.
pub(in crate::cli::bench) fn numbered_text(
    from: &Eid,
    to: &Eid,
    local_id: &str,
    content: &str,
    request_id: i64,
) -> Bytes {
    let text = TextPayloadRequest {
        from: Some(from.identity()),
        to: vec![to.identity()],
        content: content.to_owned(),
        message_id_local: local_id.to_owned(),
        created_at: Now::system().unix_ms,
        ..TextPayloadRequest::default()
    };
    encode_frame(&MessageScheme { request_id, ..envelope(Payload::TextPayloadRequest(text)) })
}

/// A frame with the metadata of a media message.
pub(in crate::cli::bench) fn media(from: &Eid, to: &Eid, local_id: &str) -> Bytes {
    let media = MediaPayloadRequest {
        from: Some(from.identity()),
        to: vec![to.identity()],
        message_id_local: local_id.to_owned(),
        r#type: 1,
        caption: "a picture among many".to_owned(),
        cdn_url_id: format!("https://cdn.example/{local_id}.jpg"),
        thumbnail_url: format!("https://cdn.example/{local_id}-small.jpg"),
        media_size_bytes: 2_000_000,
        created_at: Now::system().unix_ms,
        ..MediaPayloadRequest::default()
    };
    encode_frame(&envelope(Payload::MediaPayloadRequest(media)))
}

/// A frame by which `reader` acknowledges a message of `sender` as delivered.
pub(in crate::cli::bench) fn receipt(reader: &Eid, sender: &Eid, message_id: String, request_id: i64) -> Bytes {
    let receipt = AcknowledgmentRequest {
        from: Some(reader.identity()),
        to: Some(sender.identity()),
        message_id,
        status: AckStatus::Delivered.code(),
        timestamp: Now::system().unix_ms,
        ..AcknowledgmentRequest::default()
    };
    encode_frame(&MessageScheme { request_id, ..envelope(Payload::AcknowledgmentRequest(receipt)) })
}

/// A frame with the sender's answer to a VersionUpdate, which releases the message if the session is not pipelined.
pub(in crate::cli::bench) fn answer(update: VersionUpdate) -> Bytes {
    encode_frame(&envelope(Payload::VersionUpdate(VersionUpdate { r#type: 2, status: 2, ..update })))
}
