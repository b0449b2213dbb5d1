//! The wire formats of a text and its receipt: a bare one for the relays, as long as BIMip's frames; these frames without a
//! session; and MQTT 3.1.1 with QoS 1.

use anyhow::{bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::answering::message_id;
use crate::cli::bench::connection::{FRAME_BYTES_MAX, receipt, text};
use crate::wire::{Eid, FrameDecoder, Payload, open_envelope};

/// Longest accepted packet: much longer than any that is sent.
const PACKET_BYTES_MAX: usize = 64 * 1024;

/// The text whose frame all bare ones are as long as: one of a run's thousands.
const TYPICAL_INDEX: u64 = 1000;
/// Bytes of a receipt's payload over MQTT: the id of a message, 36 bytes, and what else BIMip's receipt says without the
/// names, which the topic has.
const MQTT_RECEIPT_BYTES: usize = 64;

/// One end of a pair.
pub(super) enum Format {
    /// A length, an index and padding; as many bytes in all as BIMip's frame of a text, and of a receipt.
    Bare { text: usize, receipt: usize },
    /// BIMip's chat lane, for the relay that speaks it.
    Bimip(Box<Bimip>),
    /// MQTT 3.1.1; publishes to `topic` with QoS 1.
    Mqtt { topic: String, next_id: u16, size: usize },
}

/// One end of a pair that speaks BIMip.
pub(super) struct Bimip {
    own: Eid,
    other: Eid,
    /// What the names of its texts begin with, as those of `bimip bench load` do: the other's number.
    prefix: String,
    /// Bytes of text.
    size: usize,
    /// Texts came from here, so receipts come to here.
    sends: bool,
    decoder: FrameDecoder,
}

impl Bimip {
    fn new(name: &str, other: &str, size: usize) -> anyhow::Result<Bimip> {
        let eid = |name: &str| Eid::parse(&format!("{name}@localhost"));
        let decoder = FrameDecoder::new(FRAME_BYTES_MAX);
        let prefix = other.rsplit('-').next().unwrap_or(other).to_owned();
        Ok(Bimip { own: eid(name)?, other: eid(other)?, prefix, size, sends: false, decoder })
    }

    fn text(&self, index: u64) -> Bytes {
        let (content, size) = (format!("{index} "), self.size);
        text(&self.own, &self.other, &format!("{}-{index}", self.prefix), &format!("{content:x<size$}"))
    }

    fn receipt(&self, index: u64) -> Bytes {
        receipt(&self.own, &self.other, message_id(index), index as i64 + 1)
    }
}

impl Format {
    /// The format of the end `name`, which talks to `other` in texts of `size` bytes.
    pub(super) fn bimip(name: &str, other: &str, size: usize) -> anyhow::Result<Format> {
        Ok(Format::Bimip(Box::new(Bimip::new(name, other, size)?)))
    }

    /// The bare format for the same.
    pub(super) fn bare(name: &str, other: &str, size: usize) -> anyhow::Result<Format> {
        let bimip = Bimip::new(name, other, size)?;
        Ok(Format::Bare { text: bimip.text(TYPICAL_INDEX).len(), receipt: bimip.receipt(TYPICAL_INDEX).len() })
    }

    pub(super) fn mqtt(other: &str, size: usize) -> Format {
        Format::Mqtt { topic: other.to_owned(), next_id: 0, size }
    }

    /// The first bytes on a connection: the pair's number for a relay, CONNECT and SUBSCRIBE for a broker.
    pub(super) fn greeting(&self, pair: u32, name: &str) -> BytesMut {
        let mut out = BytesMut::new();
        match self {
            Format::Bare { .. } | Format::Bimip(_) => out.put_u32(pair),
            Format::Mqtt { .. } => {
                // CONNECT: protocol level 4, clean session, no keep-alive.
                out.put_u8(0x10);
                put_len(&mut out, 10 + 2 + name.len());
                put_text(&mut out, "MQTT");
                out.put_slice(&[4, 2, 0, 0]);
                put_text(&mut out, name);
                // SUBSCRIBE to the own topic with QoS 1.
                out.put_u8(0x82);
                put_len(&mut out, 2 + 2 + name.len() + 1);
                out.put_u16(1);
                put_text(&mut out, name);
                out.put_u8(1);
            }
        }
        out
    }

    /// Reads the answers to the greeting; `false` if they have not all arrived.
    pub(super) fn greeted(&self, input: &mut BytesMut) -> anyhow::Result<bool> {
        match self {
            Format::Bare { .. } | Format::Bimip(_) => Ok(true),
            // CONNACK (4 bytes) and SUBACK (5).
            Format::Mqtt { .. } if input.len() < 9 => Ok(false),
            Format::Mqtt { .. } => {
                let answers = input.split_to(9);
                ensure!(answers[..4] == [0x20, 2, 0, 0], "the broker refused the connection: {answers:?}");
                ensure!(answers[4..8] == [0x90, 3, 0, 1] && answers[8] == 1, "or the subscription: {answers:?}");
                Ok(true)
            }
        }
    }

    /// Appends a text.
    pub(super) fn text(&mut self, out: &mut BytesMut, index: u64) {
        match self {
            Format::Bare { text, .. } => put_bare(out, index, *text),
            Format::Bimip(bimip) => {
                bimip.sends = true;
                out.put_slice(&bimip.text(index));
            }
            Format::Mqtt { size, .. } => {
                let size = *size;
                self.publish(out, index, size);
            }
        }
    }

    /// Appends the receipt for a text.
    pub(super) fn receipt(&mut self, out: &mut BytesMut, index: u64) {
        match self {
            Format::Bare { receipt, .. } => put_bare(out, index, *receipt),
            Format::Bimip(bimip) => out.put_slice(&bimip.receipt(index)),
            Format::Mqtt { .. } => self.publish(out, index, MQTT_RECEIPT_BYTES),
        }
    }

    fn publish(&mut self, out: &mut BytesMut, index: u64, size: usize) {
        let Format::Mqtt { topic, next_id, .. } = self else { return };
        let size = size.max(8);
        out.put_u8(0x32);
        put_len(out, 2 + topic.len() + 2 + size);
        put_text(out, topic);
        // Packet id 0 is not allowed.
        *next_id = next_id.checked_add(1).unwrap_or(1);
        out.put_u16(*next_id);
        out.put_u64(index);
        out.put_bytes(b'x', size - 8);
    }

    /// The index of the next complete message; an immediate answer to it goes to `out`.
    pub(super) fn next(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> anyhow::Result<Option<u64>> {
        match self {
            Format::Bare { .. } => {
                let Some(mut len) = input.get(..4) else { return Ok(None) };
                let len = len.get_u32() as usize;
                ensure!((8..=PACKET_BYTES_MAX).contains(&len), "a message of {len} bytes");
                if input.len() < 4 + len {
                    return Ok(None);
                }
                let mut message = input.split_to(4 + len).freeze();
                message.advance(4);
                Ok(Some(message.get_u64()))
            }
            Format::Bimip(bimip) => loop {
                let Some(frame) = bimip.decoder.next_frame()? else {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    bimip.decoder.feed(input.split().freeze());
                    continue;
                };
                match open_envelope(&frame).map_err(|(error, _)| error)?.payload {
                    Some(Payload::ChatMessage(message)) => return Ok(Some(message.message_id.parse()?)),
                    Some(Payload::AcknowledgmentResponse(receipt)) if bimip.sends => {
                        return Ok(Some(receipt.message_id.parse()?));
                    }
                    // The receipt's own answer.
                    Some(Payload::VersionUpdate(_) | Payload::AcknowledgmentResponse(_)) => {}
                    other => bail!("a frame that the job does not have: {other:?}"),
                }
            },
            Format::Mqtt { .. } => loop {
                let Some((kind, mut packet)) = mqtt_packet(input)? else { return Ok(None) };
                match kind >> 4 {
                    // PUBLISH
                    3 => {
                        let topic = usize::from(packet.try_get_u16()?);
                        ensure!(packet.len() >= topic + 2 + 8, "a short PUBLISH");
                        packet.advance(topic);
                        let id = packet.get_u16();
                        out.put_slice(&[0x40, 2]);
                        out.put_u16(id);
                        return Ok(Some(packet.get_u64()));
                    }
                    // PUBACK
                    4 => {}
                    other => bail!("a packet of kind {other}"),
                }
            },
        }
    }
}

/// A message of `bytes` in all.
fn put_bare(out: &mut BytesMut, index: u64, bytes: usize) {
    let size = bytes.saturating_sub(4).max(8);
    out.put_u32(size as u32);
    out.put_u64(index);
    out.put_bytes(b'x', size - 8);
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
}

fn put_len(out: &mut BytesMut, mut len: usize) {
    while len >= 0x80 {
        out.put_u8(len as u8 | 0x80);
        len >>= 7;
    }
    out.put_u8(len as u8);
}

fn mqtt_packet(input: &mut BytesMut) -> anyhow::Result<Option<(u8, Bytes)>> {
    let Some(&kind) = input.first() else { return Ok(None) };
    let mut len = 0;
    for (index, byte) in input.iter().skip(1).take(4).enumerate() {
        len |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            ensure!(len <= PACKET_BYTES_MAX, "a packet of {len} bytes");
            let header = 2 + index;
            if input.len() < header + len {
                return Ok(None);
            }
            let mut packet = input.split_to(header + len).freeze();
            packet.advance(header);
            return Ok(Some((kind, packet)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages that arrive in pieces are decoded whole and in order, and each PUBLISH is acknowledged.
    fn comes_through(mut format: Format, acknowledgments: usize) {
        let mut sent = BytesMut::new();
        for index in (0..70_000).step_by(2_000) {
            format.text(&mut sent, index);
            format.receipt(&mut sent, index + 1_000);
        }
        let (mut input, mut out, mut seen) = (BytesMut::new(), BytesMut::new(), Vec::new());
        for piece in sent.chunks(7) {
            input.extend_from_slice(piece);
            while let Some(index) = format.next(&mut input, &mut out).unwrap() {
                seen.push(index);
            }
        }
        assert_eq!(seen, (0..70_000).step_by(1_000).collect::<Vec<u64>>());
        assert_eq!((out.len(), input.len()), (acknowledgments, 0));
    }

    #[test]
    fn messages_come_through() {
        comes_through(Format::bare("one", "other", 150).unwrap(), 0);
        comes_through(Format::Mqtt { topic: "somebody".into(), next_id: u16::MAX - 3, size: 300 }, 70 * 4);
    }

    #[test]
    fn a_bare_message_is_as_long_as_bimips_frame() {
        for size in [1, 150, 5_000] {
            let mut bare = Format::bare("load-1700000000000-2", "load-1700000000000-3", size).unwrap();
            let mut bimip = Format::bimip("load-1700000000000-2", "load-1700000000000-3", size).unwrap();
            let len = |format: &mut Format, put: fn(&mut Format, &mut BytesMut, u64)| {
                let mut out = BytesMut::new();
                put(format, &mut out, 4_567);
                out.len()
            };
            assert_eq!(len(&mut bare, Format::text), len(&mut bimip, Format::text));
            assert_eq!(len(&mut bare, Format::receipt), len(&mut bimip, Format::receipt));
        }
    }
}
