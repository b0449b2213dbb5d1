//! The key that encrypts server ids in connection ids: the load balancer and all servers behind it share it.

use std::path::Path;

use super::AuthError;
use super::keys::read;
use crate::config::from_hex;

const WHAT: &str = "quic.lb.key_file";

/// The key of `quic.lb.key_file`: AES-128, as 32 hexadecimal digits. White space around them is ignored.
///
/// # Errors
/// The file cannot be read or holds something else.
pub fn lb_key(path: &Path) -> Result<[u8; 16], AuthError> {
    let text = read(WHAT, path)?;
    let key = std::str::from_utf8(&text).ok().and_then(|text| from_hex(text.trim())?.try_into().ok());
    key.ok_or_else(|| {
        let reason = "is not 32 hexadecimal digits: make one with openssl rand -hex 16, the same for the balancer \
                      and all its servers";
        AuthError::unusable(WHAT, path, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bytes_in_hexadecimal_are_a_key_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lb.key");
        let with = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            lb_key(&path)
        };
        let key = with(b"8f95f09245765f80256934e50c66207F\n").unwrap();
        assert_eq!((key[0], key[15]), (0x8f, 0x7f));
        for content in [&b""[..], b"8f95", &[b'0'; 31], &[b'0'; 33], &[b'0'; 34], &[b'x'; 32], &[0xff; 32]] {
            let message = with(content).unwrap_err().to_string();
            assert!(message.starts_with("quic.lb.key_file /") && message.contains("openssl rand -hex 16"), "{message}");
        }
        let absent = lb_key(&folder.path().join("none")).unwrap_err().to_string();
        assert!(absent.starts_with("cannot read quic.lb.key_file /"), "{absent}");
    }
}
