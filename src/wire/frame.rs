//! Framing: an unsigned varint length, then one envelope of that many bytes (protocol.md §2).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::lane::Lane;
use super::proto::MessageScheme;

/// Longest accepted length prefix, in bytes: five hold every 32-bit length.
const PREFIX_BYTES_MAX: usize = 5;

/// Why a byte stream cannot be split into frames any further. The connection has to close (protocol.md §2, error 413).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is over the limit, or the prefix is longer than five bytes.
    #[error("a frame is longer than the limit of {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

/// Splits one lane's bytes into frames, however the transport split them into chunks.
///
/// Memory: the received part of one frame, at most the limit and a prefix. A length that is only announced allocates
/// nothing. A frame that lies within one fed chunk is not copied.
#[derive(Debug)]
pub struct FrameDecoder {
    limit: usize,
    /// Fed, not yet split.
    fresh: Bytes,
    /// The beginning of an incomplete frame, with its prefix.
    partial: BytesMut,
}

impl FrameDecoder {
    /// Creates a decoder that refuses frames of more than `limit` bytes.
    pub fn new(limit: usize) -> FrameDecoder {
        FrameDecoder { limit, fresh: Bytes::new(), partial: BytesMut::new() }
    }

    /// Adds received bytes. Call [`FrameDecoder::next_frame`] until it returns `None` before feeding again.
    pub fn feed(&mut self, chunk: Bytes) {
        debug_assert!(self.fresh.is_empty(), "feed only once everything was cut");
        self.fresh = chunk;
    }

    /// The next complete frame, without its prefix; `None` until more bytes are fed.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`]; do not use the decoder any further.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        if self.partial.is_empty() {
            return self.cut_fresh();
        }
        while self.fresh.has_remaining() {
            match prefix(&self.partial, self.limit)? {
                None => self.partial.put_u8(self.fresh.get_u8()),
                Some((prefix, len)) => {
                    let missing = prefix + len - self.partial.len();
                    let take = missing.min(self.fresh.len());
                    self.partial.extend_from_slice(&self.fresh.split_to(take));
                    break;
                }
            }
        }
        match prefix(&self.partial, self.limit)? {
            Some((prefix, len)) if self.partial.len() == prefix + len => {
                let mut whole = std::mem::take(&mut self.partial).freeze();
                whole.advance(prefix);
                Ok(Some(whole))
            }
            _ => Ok(None),
        }
    }

    /// Number of bytes held that were not returned as a frame yet.
    pub fn pending(&self) -> usize {
        self.partial.len() + self.fresh.len()
    }

    fn cut_fresh(&mut self) -> Result<Option<Bytes>, FrameError> {
        match prefix(&self.fresh, self.limit)? {
            Some((prefix, len)) if self.fresh.len() >= prefix + len => {
                self.fresh.advance(prefix);
                Ok(Some(self.fresh.split_to(len)))
            }
            _ => {
                // Copied, so that a small rest does not keep a whole packet's buffer alive.
                self.partial.extend_from_slice(&std::mem::take(&mut self.fresh));
                Ok(None)
            }
        }
    }
}

/// Splits a byte stream that all lanes share into frames; a lane byte precedes each (protocol.md §1, TLS over TCP).
///
/// Memory: one frame and what arrived with its last bytes.
#[derive(Debug)]
pub struct LaneFrameDecoder {
    limit: usize,
    buffer: BytesMut,
}

impl LaneFrameDecoder {
    /// Creates a decoder that refuses frames of more than `limit` bytes.
    pub fn new(limit: usize) -> LaneFrameDecoder {
        LaneFrameDecoder { limit, buffer: BytesMut::new() }
    }

    /// Adds received bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The lane byte of the next frame, of which the rest may not be here yet.
    pub fn next_lane(&self) -> Option<u8> {
        self.buffer.first().copied()
    }

    /// The next complete frame, without its prefix, and the lane byte before it; `None` until more bytes are fed.
    ///
    /// # Errors
    /// The lane byte and [`FrameError::TooLarge`]; do not use the decoder any further.
    pub fn next_frame(&mut self) -> Result<Option<(u8, Bytes)>, (u8, FrameError)> {
        let Some((&lane, rest)) = self.buffer.split_first() else {
            // An idle connection keeps no buffer.
            self.buffer = BytesMut::new();
            return Ok(None);
        };
        match prefix(rest, self.limit).map_err(|error| (lane, error))? {
            Some((prefix, len)) if rest.len() >= prefix + len => {
                self.buffer.advance(1 + prefix);
                // Copied, so that a small frame does not keep the buffer alive.
                let frame = Bytes::copy_from_slice(&self.buffer[..len]);
                self.buffer.advance(len);
                Ok(Some((lane, frame)))
            }
            _ => Ok(None),
        }
    }
}

/// The length of the prefix and the length that it announces; `None` while the prefix is incomplete.
fn prefix(bytes: &[u8], limit: usize) -> Result<Option<(usize, usize)>, FrameError> {
    let too_large = FrameError::TooLarge { limit };
    let mut len = 0u64;
    for (index, byte) in bytes.iter().take(PREFIX_BYTES_MAX).enumerate() {
        len |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let len = usize::try_from(len).map_err(|_| too_large)?;
            return if len > limit { Err(too_large) } else { Ok(Some((index + 1, len))) };
        }
    }
    if bytes.len() >= PREFIX_BYTES_MAX { Err(too_large) } else { Ok(None) }
}

/// Encodes one frame: length prefix and envelope.
pub fn encode_frame(scheme: &MessageScheme) -> Bytes {
    let mut frame = BytesMut::with_capacity(frame_len(scheme));
    encode_into(scheme, &mut frame);
    frame.freeze()
}

/// Encodes a lane byte and one frame: a QUIC stream's first bytes, or any frame over TCP.
pub fn encode_lane_frame(lane: Lane, scheme: &MessageScheme) -> Bytes {
    let mut frame = BytesMut::with_capacity(1 + frame_len(scheme));
    frame.put_u8(lane.byte());
    encode_into(scheme, &mut frame);
    frame.freeze()
}

/// Length in bytes of an envelope's frame, including the prefix.
pub fn frame_len(scheme: &MessageScheme) -> usize {
    let len = scheme.encoded_len();
    len + prost::length_delimiter_len(len)
}

fn encode_into(scheme: &MessageScheme, frame: &mut BytesMut) {
    scheme.encode_length_delimited(frame).expect("a BytesMut grows as needed");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::{self, TextPayloadRequest};
    use crate::wire::{Identity, Payload, envelope, open_envelope};
    use proptest::prelude::*;

    fn text(content: &str) -> MessageScheme {
        envelope(Payload::TextPayloadRequest(TextPayloadRequest { content: content.into(), ..Default::default() }))
    }

    fn cut(decoder: &mut FrameDecoder, chunk: &[u8], frames: &mut Vec<Bytes>) -> Result<(), FrameError> {
        decoder.feed(Bytes::copy_from_slice(chunk));
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            contents in proptest::collection::vec(".{0,300}", 1..6),
            cuts in proptest::collection::vec(1usize..200, 1..40),
        ) {
            let sent: Vec<_> = contents.iter().map(|content| text(content)).collect();
            let stream: Vec<u8> = sent.iter().flat_map(|scheme| encode_frame(scheme).to_vec()).collect();
            let mut decoder = FrameDecoder::new(64 * 1024);
            let mut frames = Vec::new();
            let mut rest = &stream[..];
            for len in cuts.iter().cycle() {
                let (chunk, tail) = rest.split_at((*len).min(rest.len()));
                cut(&mut decoder, chunk, &mut frames).unwrap();
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            let got: Vec<_> = frames.iter().map(|frame| open_envelope(frame).unwrap()).collect();
            prop_assert_eq!(got, sent);
            prop_assert_eq!(decoder.pending(), 0);
        }

        #[test]
        fn any_bytes_decode_or_give_an_error_within_the_limit(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20),
        ) {
            let limit = 100;
            let mut decoder = FrameDecoder::new(limit);
            let mut frames = Vec::new();
            for chunk in &chunks {
                if cut(&mut decoder, chunk, &mut frames).is_err() {
                    break;
                }
                prop_assert!(decoder.pending() <= limit + PREFIX_BYTES_MAX);
                prop_assert!(decoder.partial.capacity() <= 4 * (limit + PREFIX_BYTES_MAX) + 200);
            }
            for frame in frames {
                prop_assert!(frame.len() <= limit);
                let _ = open_envelope(&frame);
            }
        }

        #[test]
        fn lanes_share_a_stream_and_survive_any_split(
            sent in proptest::collection::vec((0u8..4, ".{0,300}"), 1..8),
            cuts in proptest::collection::vec(1usize..200, 1..40),
        ) {
            let stream: Vec<u8> = sent
                .iter()
                .flat_map(|(lane, content)| [&[*lane][..], &encode_frame(&text(content))].concat())
                .collect();
            let mut decoder = LaneFrameDecoder::new(64 * 1024);
            let mut got = Vec::new();
            let mut rest = &stream[..];
            for len in cuts.iter().cycle() {
                let (chunk, tail) = rest.split_at((*len).min(rest.len()));
                decoder.feed(chunk);
                while let Some((lane, frame)) = decoder.next_frame().unwrap() {
                    got.push((lane, open_envelope(&frame).unwrap()));
                }
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            let sent: Vec<_> = sent.iter().map(|(lane, content)| (*lane, text(content))).collect();
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn any_bytes_as_an_envelope_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = open_envelope(&bytes);
        }
    }

    #[test]
    fn frames_are_the_bytes_of_the_worked_example() {
        // protocol.md §2, without the lane byte.
        let open = proto::SessionOpen {
            identity: Some(Identity { eid: "alice@example.org".into(), connection_resource_id: "phone".into() }),
            token: "abc".into(),
            client: "demo/1".into(),
            pipelined: true,
            ..Default::default()
        };
        let sent = 1_767_225_600_000;
        let ping = proto::PingPong { r#type: 1, status: 1, request_time: sent, ..Default::default() };
        let pong = proto::PingPong { r#type: 2, status: 2, response_time: sent + 23, rtt: 23, ..ping.clone() };
        let example = [
            (
                MessageScheme { request_id: 1, ..envelope(Payload::SessionOpen(open)) },
                "33 08 13 9a 01 2b 0a 1a 0a 11 61 6c 69 63 65 40 65 78 61 6d 70 6c 65 2e 6f 72 67 12 05 70 68 6f 6e 65 \
                 12 03 61 62 63 22 06 64 65 6d 6f 2f 31 28 01 a8 06 01",
            ),
            (
                MessageScheme { request_id: 2, ..envelope(Payload::PingpongMessage(ping)) },
                "12 08 06 32 0b 10 01 18 01 20 80 d0 ea b6 b7 33 a8 06 02",
            ),
            (
                MessageScheme { request_id: 2, ..envelope(Payload::PingpongMessage(pong)) },
                "1b 08 06 32 14 10 02 18 02 20 80 d0 ea b6 b7 33 28 97 d0 ea b6 b7 33 30 17 a8 06 02",
            ),
        ];
        for (scheme, hex) in example {
            let bytes: Vec<u8> = hex.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            assert_eq!(encode_frame(&scheme), bytes);
            let frames = &mut Vec::new();
            cut(&mut FrameDecoder::new(64 * 1024), &bytes, frames).unwrap();
            assert_eq!(open_envelope(&frames[0]).unwrap(), scheme);
        }
    }

    #[test]
    fn the_limit_is_exact_and_an_announced_length_costs_nothing() {
        let frames = &mut Vec::new();
        let mut exact = vec![100];
        exact.extend([0; 100]);
        assert_eq!(cut(&mut FrameDecoder::new(100), &exact, frames), Ok(()));
        assert_eq!(frames.len(), 1);
        let refused = Err(FrameError::TooLarge { limit: 100 });
        assert_eq!(cut(&mut FrameDecoder::new(100), &[101], frames), refused);
        assert_eq!(cut(&mut FrameDecoder::new(100), &[0xff; 5], frames), refused);
        let mut decoder = FrameDecoder::new(64 * 1024);
        cut(&mut decoder, &[0x80, 0x80, 0x04], frames).unwrap();
        assert!(decoder.partial.capacity() < 1024);
    }

    #[test]
    fn an_empty_frame_is_a_frame() {
        let frames = &mut Vec::new();
        cut(&mut FrameDecoder::new(10), &[0, 0], frames).unwrap();
        assert_eq!(frames.len(), 2);
    }
}
