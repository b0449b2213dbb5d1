//! QUIC-LB: connection ids that say which server of a pool they belong to, and how a load balancer reads them
//! (draft-ietf-quic-load-balancers-21).
//!
//! A balancer has the same [`Layout`] as its servers. It calls [`Layout::server_id_of_datagram`] for each datagram from a
//! client, and forwards the datagram to that server. `None` means that the client chose the connection id itself, as it does in
//! its first packet. Then any server will do, provided that all datagrams from the same address go to the same one.
//!
//! Each connection id states its length in the first octet, which the draft leaves optional (section 3.3): fewer ids that
//! clients make up look like a server's.

use std::sync::Arc;

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;
use quinn::{ConnectionId, ConnectionIdGenerator};
use quinn_proto::InvalidCid;

use crate::config::{LbConfig, ServerId};
use crate::limits::{CID_MARK_BYTES, CID_NONCE_BYTES};

/// Longest connection id (RFC 9000, 17.2).
const CID_BYTES_MAX: usize = 20;
/// Bytes of the version, between the first byte of a long header and its connection ids (RFC 8999, 5.1).
const VERSION_BYTES: usize = 4;
/// Shortest nonce in bytes (section 5.3).
const NONCE_BYTES_MIN: usize = 4;
/// The block size of AES.
const BLOCK_BYTES: usize = 16;
/// The configuration id which says that there is no server id (section 3.2).
const UNROUTABLE: u8 = 0b111;

/// How the connection ids of a pool are made. The servers and the balancer in front of them agree on it.
pub struct Layout {
    config_id: u8,
    server_id_bytes: usize,
    nonce_bytes: usize,
    cipher: Option<Cipher>,
}

/// Why a layout cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The configuration id has three bits, and the last value is reserved.
    #[error("the configuration id is {0}, must be 0 to 6")]
    ConfigId(u8),
    /// A length is out of bounds, or server id and nonce do not fit together into a connection id.
    #[error("a server id of {0} and a nonce of {1} bytes: at least 1 and 4, and together at most 19")]
    Lengths(usize, usize),
    /// The cryptographic library refuses AES-128.
    #[error("AES-128 is not to be had")]
    Cipher,
}

impl Layout {
    /// A layout with lengths in bytes. Without a `key`, everybody on the path can read server id and nonce.
    ///
    /// # Errors
    /// Values outside of the draft's bounds, or no AES-128 in the cryptographic library.
    pub fn new(
        config_id: u8,
        server_id_bytes: usize,
        nonce_bytes: usize,
        key: Option<&[u8; 16]>,
    ) -> Result<Layout, LayoutError> {
        if config_id >= UNROUTABLE {
            return Err(LayoutError::ConfigId(config_id));
        }
        let lengths = (1..=ServerId::BYTES_MAX).contains(&server_id_bytes)
            && (NONCE_BYTES_MIN..CID_BYTES_MAX).contains(&nonce_bytes)
            && server_id_bytes + nonce_bytes < CID_BYTES_MAX;
        if !lengths {
            return Err(LayoutError::Lengths(server_id_bytes, nonce_bytes));
        }
        let cipher = key.map(Cipher::new).transpose().map_err(|Unspecified| LayoutError::Cipher)?;
        Ok(Layout { config_id, server_id_bytes, nonce_bytes, cipher })
    }

    /// Length of every connection id, in bytes.
    pub fn cid_bytes(&self) -> usize {
        1 + self.server_id_bytes + self.nonce_bytes
    }

    /// The server that a datagram from a client is for; `None` if the connection id of its first packet was not made by a
    /// server of this layout. Uses only what is the same in all versions of QUIC (RFC 8999).
    pub fn server_id_of_datagram(&self, datagram: &[u8]) -> Option<ServerId> {
        let (first, rest) = datagram.split_first()?;
        if first & 0x80 == 0 {
            // A short header has nothing before the connection id, not even its length.
            return self.server_id_of(rest);
        }
        let (length, cid) = rest.get(VERSION_BYTES..)?.split_first()?;
        (usize::from(*length) == self.cid_bytes()).then(|| self.server_id_of(cid))?
    }

    /// The server that made a connection id; bytes behind the id are ignored. `None` if the id has another configuration, or
    /// was not made by a server.
    pub fn server_id_of(&self, cid: &[u8]) -> Option<ServerId> {
        let (first, rest) = cid.split_first()?;
        let mut plain = [0; CID_BYTES_MAX - 1];
        let plain = &mut plain[..self.cid_bytes() - 1];
        plain.copy_from_slice(rest.get(..plain.len())?);
        if *first != self.first_octet() {
            return None;
        }
        if let Some(cipher) = &self.cipher {
            cipher.decrypt(plain);
        }
        ServerId::new(&plain[..self.server_id_bytes]).ok()
    }

    /// The first octet: configuration id and length (section 3).
    fn first_octet(&self) -> u8 {
        self.config_id << 5 | (self.cid_bytes() - 1) as u8
    }

    /// Makes a connection id. The lengths of the arguments must be the layout's.
    fn cid(&self, server_id: &[u8], nonce: &[u8]) -> ConnectionId {
        let mut cid = [0; CID_BYTES_MAX];
        let cid = &mut cid[..self.cid_bytes()];
        cid[0] = self.first_octet();
        cid[1..=self.server_id_bytes].copy_from_slice(server_id);
        cid[1 + self.server_id_bytes..].copy_from_slice(nonce);
        if let Some(cipher) = &self.cipher {
            cipher.encrypt(&mut cid[1..]);
        }
        ConnectionId::new(cid)
    }
}

/// AES-128 over server id and nonce (section 5.4): one encryption if together they fill a block, else four passes of a Feistel
/// network with AES as its round function.
struct Cipher {
    encrypting: EncryptingKey,
    decrypting: DecryptingKey,
}

const WHOLE_BLOCK: &str = "a whole block without an initialization vector";

impl Cipher {
    fn new(key: &[u8; 16]) -> Result<Cipher, Unspecified> {
        let key = || UnboundCipherKey::new(&AES_128, key);
        Ok(Cipher { encrypting: EncryptingKey::ecb(key()?)?, decrypting: DecryptingKey::ecb(key()?)? })
    }

    fn encrypt(&self, text: &mut [u8]) {
        if text.len() == BLOCK_BYTES {
            self.encrypting.encrypt(text).expect(WHOLE_BLOCK);
            return;
        }
        let mut halves = Halves::of(text);
        for number in 1..=4 {
            self.pass(number, &mut halves);
        }
        halves.join(text);
    }

    fn decrypt(&self, text: &mut [u8]) {
        if text.len() == BLOCK_BYTES {
            self.decrypting.decrypt(text, DecryptionContext::None).expect(WHOLE_BLOCK);
            return;
        }
        let mut halves = Halves::of(text);
        for number in (1..=4).rev() {
            self.pass(number, &mut halves);
        }
        halves.join(text);
    }

    /// Enciphers one half and adds the result to the other: the left one is enciphered in passes 1 and 3. The same pass again
    /// undoes it.
    fn pass(&self, number: u8, halves: &mut Halves) {
        let from_left = number % 2 == 1;
        let (from, to) = if from_left { (&halves.left, &mut halves.right) } else { (&halves.right, &mut halves.left) };
        let mut block = [0; BLOCK_BYTES];
        block[..HALF_BYTES_MAX].copy_from_slice(from);
        block[BLOCK_BYTES - 2] = halves.whole as u8;
        block[BLOCK_BYTES - 1] = number;
        self.encrypting.encrypt(&mut block).expect(WHOLE_BLOCK);
        to.iter_mut().zip(block).for_each(|(byte, mask)| *byte ^= mask);
        halves.clear();
    }
}

/// Bytes of a half of the longest text that is not a block.
const HALF_BYTES_MAX: usize = CID_BYTES_MAX / 2;

/// A text of `whole` bytes in two halves. If the length is odd, the first four bits of the middle byte end the left half, and
/// the other four begin the right half. Bits that a half does not use are zero.
struct Halves {
    left: [u8; HALF_BYTES_MAX],
    right: [u8; HALF_BYTES_MAX],
    whole: usize,
}

impl Halves {
    fn of(text: &[u8]) -> Halves {
        let mut halves = Halves { left: [0; HALF_BYTES_MAX], right: [0; HALF_BYTES_MAX], whole: text.len() };
        let half = halves.half();
        halves.left[..half].copy_from_slice(&text[..half]);
        halves.right[..half].copy_from_slice(&text[text.len() - half..]);
        halves.clear();
        halves
    }

    fn half(&self) -> usize {
        self.whole.div_ceil(2)
    }

    /// Clears the bits that a half does not use.
    fn clear(&mut self) {
        let half = self.half();
        self.left[half..].fill(0);
        self.right[half..].fill(0);
        if self.whole % 2 == 1 {
            self.left[half - 1] &= 0xF0;
            self.right[0] &= 0x0F;
        }
    }

    fn join(&self, text: &mut [u8]) {
        let half = self.half();
        text.fill(0);
        text.iter_mut().zip(&self.left[..half]).for_each(|(byte, part)| *byte |= part);
        text[self.whole - half..].iter_mut().zip(&self.right).for_each(|(byte, part)| *byte |= part);
    }
}

/// Makes one server's connection ids.
pub struct Issuer {
    layout: Arc<Layout>,
    server_id: ServerId,
    random: fn(&mut [u8]),
}

impl Issuer {
    /// For the server that the configuration names; `None` if it names none. `random` must fill its argument with bytes that
    /// nobody can guess.
    ///
    /// # Errors
    /// [`LayoutError`] for values that [`crate::config::Config::check`] refuses, too.
    pub fn from_config(
        config: &LbConfig,
        key: Option<&[u8; 16]>,
        random: fn(&mut [u8]),
    ) -> Result<Option<Issuer>, LayoutError> {
        let Some(server_id) = config.server_id else { return Ok(None) };
        let layout = Arc::new(Layout::new(config.config_id, server_id.len(), config.nonce_bytes, key)?);
        Ok(Some(Issuer { layout, server_id, random }))
    }

    /// For a server of no pool. Its ids carry a mark instead of a server id, and are encrypted with a key derived from `reset_key`:
    /// only who has that can make another id that the server takes for its own, and answers with a reset. `random` as above.
    ///
    /// # Errors
    /// [`LayoutError::Cipher`].
    pub fn unbalanced(reset_key: &[u8; 32], random: fn(&mut [u8])) -> Result<Issuer, LayoutError> {
        // The input is longer than a connection id, so that the tag is not the reset token of one.
        let text = b"bimip: key of connection ids without a server id";
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, reset_key), text);
        let mut key = [0; BLOCK_BYTES];
        key.copy_from_slice(&tag.as_ref()[..BLOCK_BYTES]);
        let layout = Layout {
            config_id: UNROUTABLE,
            server_id_bytes: CID_MARK_BYTES,
            nonce_bytes: CID_NONCE_BYTES,
            cipher: Some(Cipher::new(&key).map_err(|Unspecified| LayoutError::Cipher)?),
        };
        let mark = ServerId::new(&[0; CID_MARK_BYTES]).expect("within the bounds of a server id");
        Ok(Issuer { layout: Arc::new(layout), server_id: mark, random })
    }

    /// The generator of one endpoint. Each starts at a random nonce of its own, so that no two make the same ids.
    pub fn generator(&self) -> Generator {
        let mut nonce = [0; CID_BYTES_MAX];
        (self.random)(&mut nonce);
        Generator { layout: self.layout.clone(), server_id: self.server_id, nonce, random: self.random }
    }
}

/// Makes the connection ids of one endpoint.
pub struct Generator {
    layout: Arc<Layout>,
    server_id: ServerId,
    /// The last nonce; only as many of the first bytes are used as the layout says.
    nonce: [u8; CID_BYTES_MAX],
    random: fn(&mut [u8]),
}

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        let nonce = &mut self.nonce[..self.layout.nonce_bytes];
        if self.layout.cipher.is_some() {
            // The next number: a nonce repeats only after all others (section 9.6), of which there are 2^64 or more.
            for byte in nonce.iter_mut().rev() {
                *byte = byte.wrapping_add(1);
                if *byte != 0 {
                    break;
                }
            }
        } else {
            // An observer who could read that two ids follow each other could follow the phone (section 5.4).
            (self.random)(nonce);
        }
        self.layout.cid(&self.server_id, nonce)
    }

    /// Accepts only ids that this server made, also before a restart: only those are answered with a reset, and not what a
    /// balancer brought to the wrong server.
    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        if self.layout.server_id_of(cid) == Some(self.server_id) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        self.layout.cid_bytes()
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests;
