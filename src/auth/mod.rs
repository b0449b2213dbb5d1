//! Who may sign in: token verification and its keys, the server's certificate, and what development makes for itself.

pub mod dev;
mod keys;
mod tls;
mod token;

use std::path::PathBuf;

pub use tls::load_tls;
pub use token::{Claims, Grant, Signer, TokenError, Verifier};

/// Why keys or certificates cannot be used. Each says what the operator can do.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Nobody could sign in.
    #[error("no token keys: set auth.keys, auth.jwks or auth.hs256_secret_file, or start with --dev")]
    NoKeys,
    /// More keys than are worth trying.
    #[error("more than {} token keys: remove the retired ones", crate::limits::TOKEN_KEYS_MAX)]
    TooManyKeys,
    /// A file cannot be read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// What it is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{what} {}: {reason}", path.display())]
    Unusable {
        /// What it is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A certificate cannot be for it.
    #[error("{0:?} is not a host name or an IP address")]
    Name(String),
    /// The machine gives no randomness, or refuses to sign.
    #[error("cannot make a key or a signature: {0}")]
    Crypto(String),
}

impl AuthError {
    fn unusable(what: &'static str, path: &std::path::Path, reason: impl Into<String>) -> AuthError {
        AuthError::Unusable { what, path: path.to_owned(), reason: reason.into() }
    }
}
