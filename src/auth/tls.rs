//! The server's side of TLS: its certificate chain and private key, and the settings that use them.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{AuthError, Credentials};
use crate::wire::ALPN;

const CERTIFICATE: &str = "certificate";
const KEY: &str = "private key";

/// Reads the certificate chain, the server's own certificate first, and the key that belongs to it.
///
/// # Errors
/// A file cannot be read or used, or the key does not belong to the certificate.
pub fn load_tls(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), AuthError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| explain(CERTIFICATE, certificate, error))?;
    if chain.is_empty() {
        return Err(explain(CERTIFICATE, certificate, pem::Error::NoItemsFound));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| explain(KEY, key, error))?;
    CertifiedKey::from_der(chain.clone(), private.clone_key(), &aws_lc_rs::default_provider()).map_err(|error| {
        let reason = match error {
            rustls::Error::InconsistentKeys(_) => {
                format!(
                    "does not belong to the certificate {}: give the pair that was issued together",
                    certificate.display()
                )
            }
            other => format!("cannot be used with the certificate {}: {other}", certificate.display()),
        };
        AuthError::unusable(KEY, key, reason)
    })?;
    Ok((chain, private))
}

/// TLS 1.3 alone, with the protocol's ALPN. It remembers only its own TLS sessions: a session of another configuration cannot
/// be resumed with it.
///
/// # Errors
/// The certificate and the key cannot be used together.
pub fn server_tls(credentials: &Credentials) -> Result<rustls::ServerConfig, rustls::Error> {
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    Ok(tls)
}

fn explain(what: &'static str, path: &Path, error: pem::Error) -> AuthError {
    match error {
        pem::Error::Io(reason) => AuthError::Read { what, path: path.to_owned(), reason },
        pem::Error::NoItemsFound if what == KEY => {
            AuthError::unusable(what, path, "has none: give an unencrypted PEM file with -----BEGIN PRIVATE KEY-----")
        }
        pem::Error::NoItemsFound => {
            AuthError::unusable(what, path, "has none: give a PEM file with -----BEGIN CERTIFICATE-----")
        }
        other => AuthError::unusable(what, path, pem_problem(&other)),
    }
}

/// What is wrong with a PEM file, in words.
pub(super) fn pem_problem(error: &pem::Error) -> String {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_matches('-').to_owned();
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            let section = shown(end_marker);
            let section = section.strip_prefix("END ").unwrap_or(&section);
            format!("is cut off: the line -----END {section}----- is missing")
        }
        pem::Error::IllegalSectionStart { line } => {
            format!("is not PEM: the line \"{}\" begins no section", shown(line))
        }
        pem::Error::Base64Decode(reason) => format!("is not PEM: {reason}"),
        other => format!("is not PEM: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_cut_off_is_called_so() {
        let cut = b"-----BEGIN CERTIFICATE-----\nAAAA\n";
        let error = CertificateDer::pem_slice_iter(cut).next().unwrap().unwrap_err();
        assert_eq!(pem_problem(&error), "is cut off: the line -----END CERTIFICATE----- is missing");
    }
}
