//! Who may sign in: token verification and its keys, the server's certificate, and the files that development creates.

pub mod dev;
mod facts;
mod keys;
mod lb_key;
mod reset_key;
mod tls;
mod token;

use std::path::{Path, PathBuf};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Config;

pub use facts::{CertificateFacts, ChainFacts, ChainFault};
pub use lb_key::lb_key;
pub use reset_key::reset_key;
pub use tls::{load_tls, server_tls};
pub use token::{Claims, Grant, Signer, TokenError, Verifier};

/// The certificate that the server presents to devices, and the verifier of their tokens.
#[derive(Debug)]
pub struct Credentials {
    /// The certificate chain, the server's own first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first certificate.
    pub key: PrivateKeyDer<'static>,
    /// Verifies tokens.
    pub verifier: Verifier,
}

impl Credentials {
    /// Reads what is configured. With `dev`, files that are missing in the data directory are created first: their certificate
    /// is used if none is configured, and their token key is accepted besides the configured ones.
    ///
    /// # Errors
    /// There is no certificate or no token key, or a file cannot be read, written or used.
    pub fn from_config(config: &Config) -> Result<Credentials, AuthError> {
        let dev = config.dev.then(|| dev::ensure(&config.data_dir, &config.dev_names)).transpose()?;
        let (chain, key) = match (&config.tls.certificate, &config.tls.key, &dev) {
            (Some(certificate), Some(key), _) => load_tls(certificate, key)?,
            (_, _, Some(files)) => load_tls(&files.certificate, &files.key)?,
            _ => return Err(AuthError::NoCertificate),
        };
        let verifier = Verifier::from_config(&config.auth, dev.as_ref().map(|files| files.token_public.as_ref()))?;
        Ok(Credentials { chain, key, verifier })
    }
}

/// Why keys or certificates cannot be used. Each message says what the operator can do.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Without a certificate nobody could connect.
    #[error("no certificate: set tls.certificate and tls.key, or start with --dev")]
    NoCertificate,
    /// Without token keys nobody could sign in.
    #[error("no token keys: set auth.keys, auth.jwks or auth.hs256_secret_file, or start with --dev")]
    NoKeys,
    /// More keys than are worth trying for a token.
    #[error("more than {} token keys: remove the retired ones", crate::limits::TOKEN_KEYS_MAX)]
    TooManyKeys,
    /// A file cannot be read.
    #[error("cannot read {what} {}: {reason}", path.display())]
    Read {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{what} {}: {reason}", path.display())]
    Unusable {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// No certificate can be issued for this name.
    #[error("{0:?} is not a host name or an IP address")]
    Name(String),
    /// The system provides no randomness, or a key or signature cannot be made.
    #[error("cannot make a key or a signature: {0}")]
    Crypto(String),
}

impl AuthError {
    fn unusable(what: &'static str, path: &Path, reason: impl Into<String>) -> AuthError {
        AuthError::Unusable { what, path: path.to_owned(), reason: reason.into() }
    }
}
