//! Packets for tests, with the checksums that a kernel would compute.

use std::net::SocketAddrV4;

use super::Protocol;

/// The Internet checksum before its complement (RFC 1071).
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let total: u32 = words.map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let folded = (total & 0xffff) + (total >> 16);
    (folded as u16).wrapping_add((folded >> 16) as u16)
}

fn pseudo_header(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() - 20) as u16;
    [&bytes[12..20], &[0, bytes[9]], &length.to_be_bytes()].concat()
}

/// Whether the IP checksum and the TCP or UDP checksum are right.
pub(super) fn is_sound(bytes: &[u8]) -> bool {
    let unchecked = bytes[9] == 17 && bytes[26..28] == [0, 0];
    sum(&[&bytes[..20]]) == 0xffff && (unchecked || sum(&[&pseudo_header(bytes), &bytes[20..]]) == 0xffff)
}

/// A packet with correct checksums.
pub(super) fn packet(protocol: Protocol, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let (number, header, at) = match protocol {
        Protocol::Tcp => (6, 20, 16),
        Protocol::Udp => (17, 8, 6),
    };
    let mut bytes = vec![0; 20 + header];
    bytes.extend(payload);
    let length = bytes.len() as u16;
    (bytes[0], bytes[8], bytes[9]) = (0x45, 64, number);
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[12..16].copy_from_slice(&from.ip().octets());
    bytes[16..20].copy_from_slice(&to.ip().octets());
    bytes[20..22].copy_from_slice(&from.port().to_be_bytes());
    bytes[22..24].copy_from_slice(&to.port().to_be_bytes());
    if protocol == Protocol::Udp {
        bytes[24..26].copy_from_slice(&(length - 20).to_be_bytes());
    } else {
        bytes[32] = 0x50;
    }
    let ip = !sum(&[&bytes[..20]]);
    bytes[10..12].copy_from_slice(&ip.to_be_bytes());
    let transport = match !sum(&[&pseudo_header(&bytes), &bytes[20..]]) {
        0 if protocol == Protocol::Udp => 0xffff,
        other => other,
    };
    bytes[20 + at..22 + at].copy_from_slice(&transport.to_be_bytes());
    assert!(is_sound(&bytes));
    bytes
}
