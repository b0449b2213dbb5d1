//! The key of QUIC's stateless resets, kept in the data directory so that it outlives a restart.

use std::fs;
use std::path::Path;

use super::AuthError;
use super::dev::{Access, create};
use crate::config::from_hex;

const WHAT: &str = "stateless reset key";

/// The key, which is created first if there is none.
///
/// # Errors
/// The file cannot be read or written, or holds something else.
pub fn reset_key(data_dir: &Path) -> Result<[u8; 32], AuthError> {
    let path = data_dir.join("keys/reset.key");
    if !path.exists() {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| AuthError::Crypto(error.to_string()))?;
        let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        create(&path, &text, Access::Owner)?;
    }
    let text =
        fs::read_to_string(&path).map_err(|reason| AuthError::Read { what: WHAT, path: path.clone(), reason })?;
    from_hex(text.trim()).and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        AuthError::unusable(WHAT, &path, "is not 64 hexadecimal digits; remove it, and a new one is made")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_outlives_a_restart_and_rubbish_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let key = reset_key(folder.path()).unwrap();
        assert_eq!(reset_key(folder.path()).unwrap(), key);
        assert_ne!(key, [0; 32]);
        fs::write(folder.path().join("keys/reset.key"), "rubbish").unwrap();
        assert!(matches!(reset_key(folder.path()), Err(AuthError::Unusable { .. })));
    }
}
