//! `[quic.lb]`: what this server and a load balancer in front of it agree on.

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::limits;

/// `[quic.lb]`: connection ids by which a load balancer finds this server, wherever a phone has moved
/// (draft-ietf-quic-load-balancers-21).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LbConfig {
    /// The id of this server among those behind the balancer, in hexadecimal: different for each server, and of the same length
    /// for all. Absent: connection ids carry no server id.
    pub server_id: Option<ServerId>,
    /// Which of the balancer's configurations this is, 0 to 6 (section 3.1 of the draft).
    pub config_id: u8,
    /// Bytes of the nonce, which distinguishes the connection ids of one server.
    pub nonce_bytes: usize,
    /// File with the key that the balancer and all its servers share, 32 hexadecimal digits. Absent: everybody on the path can
    /// read the server from a connection id.
    pub key_file: Option<PathBuf>,
}

impl Default for LbConfig {
    fn default() -> LbConfig {
        LbConfig { server_id: None, config_id: 0, nonce_bytes: limits::LB_NONCE_BYTES, key_file: None }
    }
}

/// The id of a server among those behind one balancer: 1 to 15 bytes, and at most 11 with a server's nonce of 8 or more.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerId {
    /// Zeros after `length` bytes.
    bytes: [u8; ServerId::BYTES_MAX],
    length: u8,
}

/// Something is not a server id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 11 bytes in hexadecimal (fewer with a longer nonce), as in \"a1\" or \"00c3\"")]
pub struct ServerIdError;

impl ServerId {
    /// The draft's own bound: a connection id of version 1 has 20 bytes, of which the first octet and the shortest nonce
    /// take five.
    pub const BYTES_MAX: usize = 15;

    /// The id with these bytes.
    ///
    /// # Errors
    /// [`ServerIdError`] if there are no bytes or more than [`ServerId::BYTES_MAX`].
    pub fn new(bytes: &[u8]) -> Result<ServerId, ServerIdError> {
        if bytes.is_empty() || bytes.len() > Self::BYTES_MAX {
            return Err(ServerIdError);
        }
        let mut id = ServerId { bytes: [0; Self::BYTES_MAX], length: bytes.len() as u8 };
        id.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(id)
    }
}

impl Deref for ServerId {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl TryFrom<String> for ServerId {
    type Error = ServerIdError;
    fn try_from(text: String) -> Result<ServerId, ServerIdError> {
        from_hex(&text).ok_or(ServerIdError).and_then(|bytes| ServerId::new(&bytes))
    }
}

impl From<ServerId> for String {
    fn from(id: ServerId) -> String {
        id.to_string()
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerId({self})")
    }
}

/// Decodes pairs of hexadecimal digits, with nothing between or around them.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |&[high, low]: &[u8; 2]| Some((digit(high)? << 4 | digit(low)?) as u8);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_id_is_what_its_digits_say() {
        let id = ServerId::try_from("00C3".to_owned()).unwrap();
        assert_eq!((&*id, id.to_string()), (&[0x00, 0xC3][..], "00c3".to_owned()));
        assert_ne!(id, ServerId::new(&[0x00, 0xC3, 0x00]).unwrap());
        assert_eq!(ServerId::try_from("ab".repeat(15)).unwrap().len(), 15);
        for text in ["", "1", "abc", "0x01", "zz", "+1", "a b1", "é", &"ab".repeat(16)] {
            assert_eq!(ServerId::try_from(text.to_owned()), Err(ServerIdError), "{text:?}");
        }
    }
}
