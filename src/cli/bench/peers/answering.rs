//! A relay that speaks the protocol: it decodes each frame, has it on disk, and sends the frames that the protocol has for
//! it. It has no sessions, checks nothing, and finds nothing again: what is left is the least that a durable server of
//! this protocol does.

use anyhow::bail;
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::relay::{Duplex, Log, read};
use crate::cli::bench::connection::FRAME_BYTES_MAX;
use crate::wire::proto::{
    AcknowledgmentRequest, AcknowledgmentResponse, ChatMessage, TextPayloadRequest, VersionUpdate, chat_message,
};
use crate::wire::{
    AckStatus, Author, Exchange, FrameDecoder, MessageScheme, Payload, VersionStatus, encode_frame, envelope,
    open_envelope,
};

/// As long as the chat's real id, which costs a server a hash or a search.
const CHAT_ID: &str = "00000000000000000000000000000000";

/// As long as a real `message_id`; tells the index of the pair's text.
pub(super) fn message_id(index: u64) -> String {
    format!("{index:036}")
}

/// Passes messages on between the ends of a pair until one of them ends.
pub(super) async fn pass_on(mut one: impl Duplex, mut other: impl Duplex, log: &Log) -> anyhow::Result<()> {
    let mut sides = [Side::new(), Side::new()];
    let mut texts = 0;
    loop {
        let [first, second] = &mut sides;
        let (from, bytes) = tokio::select! {
            bytes = read(&mut one, &mut first.input) => (0, bytes?),
            bytes = read(&mut other, &mut second.input) => (1, bytes?),
        };
        let Some(bytes) = bytes else { return Ok(()) };
        let (author, reader) = if from == 0 { (first, second) } else { (second, first) };
        author.decoder.feed(bytes.clone());
        while let Some(frame) = author.decoder.next_frame()? {
            let scheme = open_envelope(&frame).map_err(|(error, _)| error)?;
            match scheme.payload {
                Some(Payload::TextPayloadRequest(text)) => {
                    let (update, message) = numbered(text, texts);
                    texts += 1;
                    author.out.extend_from_slice(&update);
                    reader.out.extend_from_slice(&message);
                }
                Some(Payload::AcknowledgmentRequest(receipt)) => {
                    let response = encode_frame(&acknowledged(receipt, scheme.request_id));
                    author.out.extend_from_slice(&response);
                    reader.out.extend_from_slice(&response);
                }
                other => bail!("a frame that the job does not have: {other:?}"),
            }
        }
        log.append(bytes).await?;
        let [first, second] = &mut sides;
        one.write_all_buf(&mut first.out).await?;
        one.flush().await?;
        other.write_all_buf(&mut second.out).await?;
        other.flush().await?;
    }
}

/// What there is for one end of a pair.
struct Side {
    input: BytesMut,
    decoder: FrameDecoder,
    out: BytesMut,
}

impl Side {
    fn new() -> Side {
        Side { input: BytesMut::new(), decoder: FrameDecoder::new(FRAME_BYTES_MAX), out: BytesMut::new() }
    }
}

/// The sender's VersionUpdate and the recipient's message.
fn numbered(text: TextPayloadRequest, index: u64) -> (Bytes, Bytes) {
    let version = index as i64 + 1;
    let update = VersionUpdate {
        to: text.from.clone(),
        message_id: message_id(index),
        message_id_local: text.message_id_local.clone(),
        r#type: Exchange::Request.code(),
        timestamp: text.created_at,
        status: VersionStatus::Sent.code(),
        version,
        chat_id: CHAT_ID.to_owned(),
    };
    let message = ChatMessage {
        message_id: message_id(index),
        message_id_local: text.message_id_local,
        version,
        chat_id: CHAT_ID.to_owned(),
        from: text.from,
        to: text.to,
        author: Author::Receiver.as_str().to_owned(),
        payload: Some(chat_message::Payload::Text(text.content)),
        acknowledgment: AckStatus::Unread.code(),
        created_at: text.created_at,
        server_received_at: text.created_at,
        ..ChatMessage::default()
    };
    let [update, message] = [Payload::VersionUpdate(update), Payload::ChatMessage(message)]
        .map(|payload| encode_frame(&MessageScheme { sequence: version, ..envelope(payload) }));
    (update, message)
}

/// What both ends get for a receipt.
fn acknowledged(receipt: AcknowledgmentRequest, request_id: i64) -> MessageScheme {
    let response = AcknowledgmentResponse {
        from: receipt.from,
        to: receipt.to,
        message_id: receipt.message_id,
        status: receipt.status,
        timestamp: receipt.timestamp,
        chat_id: CHAT_ID.to_owned(),
        up_to_version: 0,
    };
    MessageScheme { request_id, ..envelope(Payload::AcknowledgmentResponse(response)) }
}
