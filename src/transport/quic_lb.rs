//! QUIC-LB: connection ids that say which server of a pool they belong to, and how a load balancer reads them
//! (draft-ietf-quic-load-balancers-21).
//!
//! A balancer has the same [`Layout`] as its servers, asks [`Layout::server_id_of_datagram`] for each datagram that comes
//! from a client, and sends it to that server. `None`: the client has chosen the connection id itself, as it does in its
//! first packet, so that any server will do as long as all that comes from the same address goes to the same one.
//!
//! Each connection id states its length in the first octet, which the draft leaves to choice (section 3.3): fewer of those
//! that clients make up look like a server's.

use std::sync::Arc;

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey};
use aws_lc_rs::error::Unspecified;
use quinn::{ConnectionId, ConnectionIdGenerator};
use quinn_proto::InvalidCid;

use crate::config::{LbConfig, ServerId};

/// Longest connection id (RFC 9000, 17.2).
const CID_BYTES_MAX: usize = 20;
/// What stands between the first byte of a long header and its connection ids (RFC 8999, 5.1).
const VERSION_BYTES: usize = 4;
/// Shortest nonce (section 5.3).
const NONCE_BYTES_MIN: usize = 4;
/// What AES works on.
const BLOCK_BYTES: usize = 16;
/// The configuration that means that there is no server id (section 3.2).
const UNROUTABLE: u8 = 0b111;

/// How the connection ids of a pool are made: what its servers and the balancer before them agree on.
pub struct Layout {
    config_id: u8,
    server_id_bytes: usize,
    nonce_bytes: usize,
    cipher: Option<Cipher>,
}

/// Why connection ids cannot be made so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Three bits, and the last value is taken.
    #[error("the configuration id is {0}, must be 0 to 6")]
    ConfigId(u8),
    /// They do not fit together into a connection id.
    #[error("a server id of {0} and a nonce of {1} bytes: at least 1 and 4, and together at most 19")]
    Lengths(usize, usize),
    /// The cryptographic library refuses.
    #[error("AES-128 is not to be had")]
    Cipher,
}

impl Layout {
    /// `key`: none leaves server and nonce readable for everybody on the way.
    ///
    /// # Errors
    /// Values outside of the draft's bounds.
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

    /// Bytes of every connection id.
    pub fn cid_bytes(&self) -> usize {
        1 + self.server_id_bytes + self.nonce_bytes
    }

    /// The server that a datagram from a client is for; `None` if its first packet has a connection id that no server of
    /// this layout made. Looks only at what no version of QUIC will change (RFC 8999).
    pub fn server_id_of_datagram(&self, datagram: &[u8]) -> Option<ServerId> {
        let (first, rest) = datagram.split_first()?;
        if first & 0x80 == 0 {
            // A short header has nothing before the connection id, not even its length.
            return self.server_id_of(rest);
        }
        let (length, cid) = rest.get(VERSION_BYTES..)?.split_first()?;
        (usize::from(*length) == self.cid_bytes()).then(|| self.server_id_of(cid))?
    }

    /// The server that made a connection id; what may follow it is not looked at. `None`: another configuration's, or of
    /// no server's making.
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

    /// Configuration and length (section 3).
    fn first_octet(&self) -> u8 {
        self.config_id << 5 | (self.cid_bytes() - 1) as u8
    }

    /// A connection id. Lengths are the layout's.
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

/// AES-128 over server id and nonce (section 5.4): once where they make up a block, else as the round function of a
/// Feistel network of four passes.
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

    /// One half, enciphered, changes the other: the left one in passes 1 and 3. The same pass again undoes it.
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

/// Half of the longest text that is not a block.
const HALF_BYTES_MAX: usize = CID_BYTES_MAX / 2;

/// A text of `whole` bytes in two; of an odd one the middle byte's first four bits are the left half's last, and the
/// other four the right half's first. Both are zero where they have no text.
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

    /// Takes out of each half what is not its own.
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
    /// Of the server that the configuration names, if it does. `random` fills with what nobody can guess.
    ///
    /// # Errors
    /// Values that [`crate::config::Config::check`] refuses too.
    pub fn from_config(
        config: &LbConfig,
        key: Option<&[u8; 16]>,
        random: fn(&mut [u8]),
    ) -> Result<Option<Issuer>, LayoutError> {
        let Some(server_id) = config.server_id else { return Ok(None) };
        let layout = Arc::new(Layout::new(config.config_id, server_id.len(), config.nonce_bytes, key)?);
        Ok(Some(Issuer { layout, server_id, random }))
    }

    /// The ids of one endpoint. Each starts at a place of its own, so that no two make the same.
    pub fn generator(&self) -> Generator {
        let mut nonce = [0; CID_BYTES_MAX];
        (self.random)(&mut nonce);
        Generator { layout: self.layout.clone(), server_id: self.server_id, nonce, random: self.random }
    }
}

/// The connection ids of one endpoint.
pub struct Generator {
    layout: Arc<Layout>,
    server_id: ServerId,
    /// The last one, at the layout's length.
    nonce: [u8; CID_BYTES_MAX],
    random: fn(&mut [u8]),
}

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        let nonce = &mut self.nonce[..self.layout.nonce_bytes];
        if self.layout.cipher.is_some() {
            // The next number: it comes again only after all others (section 9.6), of which there are 2^64 and more.
            for byte in nonce.iter_mut().rev() {
                *byte = byte.wrapping_add(1);
                if *byte != 0 {
                    break;
                }
            }
        } else {
            // Who could read that two ids follow each other would follow the phone (section 5.4).
            (self.random)(nonce);
        }
        self.layout.cid(&self.server_id, nonce)
    }

    /// Only what this server made, before a restart too, is answered with a reset; what a balancer brought to the wrong
    /// server is not.
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
