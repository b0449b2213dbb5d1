//! The parts of an IPv4 packet that the link reads and rewrites: addresses, ports, and the checksums over them.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::Serialize;

/// The protocol that a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP, as the kernel speaks it.
    Tcp,
    /// UDP, including QUIC.
    Udp,
}

/// A whole IPv4 packet that carries TCP or UDP.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    bytes: Vec<u8>,
    pub(super) protocol: Protocol,
    pub(super) source: SocketAddrV4,
    pub(super) destination: SocketAddrV4,
    /// Offset of the TCP or UDP header.
    transport: usize,
}

/// Offsets in the IP header.
const IP_CHECKSUM: usize = 10;
const IP_SOURCE: usize = 12;
const IP_DESTINATION: usize = 16;
/// Offsets in the TCP and UDP header.
const SOURCE_PORT: usize = 0;
const DESTINATION_PORT: usize = 2;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

impl Packet {
    /// `None` for anything but a whole IPv4 packet with TCP or UDP: other protocols, fragments, IPv6.
    pub(super) fn parse(bytes: &[u8]) -> Option<Packet> {
        let header = bytes.first_chunk::<20>()?;
        let transport = usize::from(header[0] & 0x0f) * 4;
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        let (protocol, least) = match header[9] {
            6 => (Protocol::Tcp, TCP_CHECKSUM + 2),
            17 => (Protocol::Udp, UDP_CHECKSUM + 2),
            _ => return None,
        };
        if header[0] >> 4 != 4 || transport < header.len() || fragment || bytes.len() < transport + least {
            return None;
        }
        let end = |address: usize, port: usize| {
            let ip = [bytes[address], bytes[address + 1], bytes[address + 2], bytes[address + 3]];
            let port = u16::from_be_bytes([bytes[transport + port], bytes[transport + port + 1]]);
            SocketAddrV4::new(Ipv4Addr::from(ip), port)
        };
        let (source, destination) = (end(IP_SOURCE, SOURCE_PORT), end(IP_DESTINATION, DESTINATION_PORT));
        Some(Packet { protocol, source, destination, transport, bytes: bytes.to_vec() })
    }

    /// The packet's bytes, for a device.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Rewrites the source address and port, as a NAT does.
    pub(super) fn set_source(&mut self, source: SocketAddrV4) {
        self.source = source;
        self.rewrite(IP_SOURCE, SOURCE_PORT, source);
    }

    /// Rewrites the destination address and port.
    pub(super) fn set_destination(&mut self, destination: SocketAddrV4) {
        self.destination = destination;
        self.rewrite(IP_DESTINATION, DESTINATION_PORT, destination);
    }

    /// The IP checksum covers the address; the TCP or UDP checksum covers address and port.
    fn rewrite(&mut self, address: usize, port: usize, to: SocketAddrV4) {
        let transport_sum = self.transport
            + match self.protocol {
                Protocol::Tcp => TCP_CHECKSUM,
                Protocol::Udp => UDP_CHECKSUM,
            };
        let ip = to.ip().octets();
        let words = [
            (address, [ip[0], ip[1]], true),
            (address + 2, [ip[2], ip[3]], true),
            (self.transport + port, to.port().to_be_bytes(), false),
        ];
        // A UDP checksum of zero means that there is none (RFC 768).
        let unchecked = self.protocol == Protocol::Udp && self.word(transport_sum) == 0;
        for (at, new, is_address) in words {
            let (old, new) = (self.word(at), u16::from_be_bytes(new));
            self.set_word(at, new);
            if is_address {
                self.set_word(IP_CHECKSUM, updated(self.word(IP_CHECKSUM), old, new));
            }
            if !unchecked {
                let sum = updated(self.word(transport_sum), old, new);
                let sum = if sum == 0 && self.protocol == Protocol::Udp { 0xffff } else { sum };
                self.set_word(transport_sum, sum);
            }
        }
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn set_word(&mut self, at: usize, word: u16) {
        self.bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
    }
}

/// The checksum after one word that it covers changed (RFC 1624, equation 3).
fn updated(sum: u16, old: u16, new: u16) -> u16 {
    let mut sum = u32::from(!sum) + u32::from(!old) + u32::from(new);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{is_sound, packet};
    use super::*;

    fn end() -> impl Strategy<Value = SocketAddrV4> {
        (any::<u32>(), any::<u16>()).prop_map(|(ip, port)| SocketAddrV4::new(Ipv4Addr::from_bits(ip), port))
    }

    proptest! {
        #[test]
        fn a_rewritten_packet_has_the_new_ends_and_right_checksums(
            tcp: bool, ends in [end(), end(), end(), end()], payload: Vec<u8>
        ) {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let before = packet(protocol, ends[0], ends[1], &payload);
            let mut rewritten = Packet::parse(&before).unwrap();
            prop_assert_eq!((rewritten.source, rewritten.destination), (ends[0], ends[1]));
            rewritten.set_source(ends[2]);
            prop_assert!(is_sound(rewritten.bytes()));
            rewritten.set_destination(ends[3]);
            prop_assert!(is_sound(rewritten.bytes()));
            let after = Packet::parse(rewritten.bytes()).unwrap();
            prop_assert_eq!((after.protocol, after.source, after.destination), (protocol, ends[2], ends[3]));
            let header = before.len() - payload.len();
            prop_assert_eq!(&after.bytes()[header..], &payload[..]);
        }

        #[test]
        fn any_bytes_are_a_packet_or_none(bytes: Vec<u8>, end in end()) {
            if let Some(mut packet) = Packet::parse(&bytes) {
                packet.set_source(end);
            }
        }
    }

    #[test]
    fn an_unchecked_datagram_stays_unchecked() {
        let (from, to) = ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:2000".parse().unwrap());
        let mut bytes = packet(Protocol::Udp, from, to, b"hello");
        bytes[26..28].fill(0);
        let mut packet = Packet::parse(&bytes).unwrap();
        packet.set_source(to);
        assert_eq!(packet.bytes()[26..28], [0, 0]);
        assert!(is_sound(packet.bytes()));
    }

    #[test]
    fn what_is_not_whole_tcp_or_udp_is_none() {
        let (from, to) = ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:2000".parse().unwrap());
        let good = packet(Protocol::Udp, from, to, b"hello");
        assert!(Packet::parse(&good).is_some());
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            Packet::parse(&bytes)
        };
        assert!(changed(0, 0x65).is_none(), "version 6");
        assert!(changed(0, 0x44).is_none(), "a header shorter than any");
        assert!(changed(0, 0x4f).is_none(), "a header longer than the packet");
        assert!(changed(9, 1).is_none(), "ICMP");
        assert!(changed(6, 0x20).is_none(), "the first fragment");
        assert!(changed(7, 1).is_none(), "a later fragment");
        assert!(changed(6, 0x40).is_some(), "not to be fragmented");
        assert!((0..28).all(|length| Packet::parse(&good[..length]).is_none()), "cut short");
    }
}
