//! What development needs and nobody should have to create by hand: a certificate authority, a certificate for this machine,
//! and a key that signs tokens. Existing files are never overwritten, except a certificate of ours that expires soon.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SerialNumber, SignatureAlgorithm,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::AuthError;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The authority should outlive the devices that it is installed on.
const CA_VALID: Duration = DAY.saturating_mul(10 * 365);
/// The longest validity that Apple's platforms accept for a certificate of a private authority.
const CERTIFICATE_VALID: Duration = DAY.saturating_mul(825);
/// A certificate that is valid for less than this is renewed.
const RENEW_BEFORE: Duration = DAY.saturating_mul(30);
/// By how much certificates are dated back: clocks of phones and virtual machines run late.
const CLOCK_SLACK: Duration = DAY;
/// Names under which a machine reaches itself.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

const CERTIFICATE: &str = "development certificate";
const TOKEN_KEY: &str = "development token key";

/// A certificate authority and a server certificate that it issued.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// PEM certificate of the authority: what clients trust.
    pub ca: PathBuf,
    /// PEM chain of the server.
    pub certificate: PathBuf,
    /// PEM key of the server.
    pub key: PathBuf,
}

/// Everything that `serve --dev` runs on.
#[derive(Clone, Debug)]
pub struct DevFiles {
    /// PEM certificate of the authority: what clients trust.
    pub ca: PathBuf,
    /// PEM chain of the server.
    pub certificate: PathBuf,
    /// PEM key of the server.
    pub key: PathBuf,
    /// PEM private key that signs tokens.
    pub token_key: PathBuf,
    /// PEM public key that verifies them.
    pub token_public: PathBuf,
}

impl DevFiles {
    /// The files' paths in a data directory, whether or not they exist.
    pub fn in_data_dir(data_dir: &Path) -> DevFiles {
        let Certificates { ca, certificate, key } = Certificates::in_folder(&data_dir.join("certs"));
        let keys = data_dir.join("keys");
        DevFiles { ca, certificate, key, token_key: keys.join("token.key"), token_public: keys.join("token.pub.pem") }
    }
}

impl Certificates {
    /// The files' paths in a folder, whether or not they exist.
    pub fn in_folder(folder: &Path) -> Certificates {
        Certificates {
            ca: folder.join("ca.pem"),
            certificate: folder.join("server.pem"),
            key: folder.join("server.key"),
        }
    }
}

/// Creates what is missing in a data directory: `certs/`, for `names` and this machine's own names, and `keys/`.
///
/// # Errors
/// A file cannot be read, written or used, a name is neither a host name nor an IP address, or no key can be generated.
pub fn ensure(data_dir: &Path, names: &[String]) -> Result<DevFiles, AuthError> {
    let files = DevFiles::in_data_dir(data_dir);
    certificates(&data_dir.join("certs"), names)?;
    token_key(&files)?;
    Ok(files)
}

/// Creates what is missing in a folder of an authority and a certificate for this machine and for `names`, which are host names
/// or IP addresses.
///
/// # Errors
/// As [`ensure`].
pub fn certificates(folder: &Path, names: &[String]) -> Result<Certificates, AuthError> {
    certificates_at(folder, names, SystemTime::now())
}

fn certificates_at(folder: &Path, names: &[String], now: SystemTime) -> Result<Certificates, AuthError> {
    let files = Certificates::in_folder(folder);
    let ca_key_file = folder.join("ca.key");
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let names: Vec<String> = OWN_NAMES.map(str::to_owned).into_iter().chain(names.iter().cloned()).collect();

    if let Some(name) = names.iter().find(|name| ServerName::try_from(name.as_str()).is_err()) {
        return Err(not_a_name(name));
    }

    // Keys are created before certificates, so that a start that was interrupted is continued where it stopped.
    if !files.ca.exists() {
        let ca_key = private_key(&ca_key_file, &PKCS_ECDSA_P256_SHA256)?;
        let ca = ca_params(now).self_signed(&ca_key).map_err(crypto)?;
        create(&files.ca, &ca.pem(), Access::Anyone)?;
    }
    if files.certificate.exists() {
        if !files.key.exists() {
            let reason = "has no key beside it: put server.key back, or remove server.pem to have both made anew";
            return Err(AuthError::unusable(CERTIFICATE, &files.certificate, reason));
        }
        if is_current(&files, &names, now)? {
            return Ok(files);
        }
    }
    if !ca_key_file.exists() {
        let reason = "has no key beside it to issue a certificate with: put ca.key back, or remove ca.pem";
        return Err(AuthError::unusable("development authority", &files.ca, reason));
    }
    let ca_key = private_key(&ca_key_file, &PKCS_ECDSA_P256_SHA256)?;
    let key = private_key(&files.key, &PKCS_ECDSA_P256_SHA256)?;
    let params = server_params(names, now)?;
    let certificate = params.signed_by(&key, &Issuer::new(ca_params(now), ca_key)).map_err(crypto)?;
    replace(&files.certificate, &certificate.pem())?;
    Ok(files)
}

fn token_key(files: &DevFiles) -> Result<(), AuthError> {
    if files.token_public.exists() && !files.token_key.exists() {
        let reason = "has no private key beside it: put token.key back, or remove token.pub.pem to have both made anew";
        return Err(AuthError::unusable(TOKEN_KEY, &files.token_public, reason));
    }
    let key = private_key(&files.token_key, &PKCS_ED25519)?;
    create(&files.token_public, &key.public_key_pem(), Access::Anyone)
}

/// Whether the certificate is valid for the names, and remains so for a while. `false`: it must be renewed.
fn is_current(files: &Certificates, names: &[String], now: Duration) -> Result<bool, AuthError> {
    let unusable = |reason: String| AuthError::unusable(CERTIFICATE, &files.certificate, reason);
    let read = |path: &Path| {
        CertificateDer::from_pem_file(path)
            .map_err(|error| AuthError::unusable(CERTIFICATE, path, format!("cannot be read: {error}")))
    };
    let (ca, certificate) = (read(&files.ca)?, read(&files.certificate)?);
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(|error| AuthError::unusable(CERTIFICATE, &files.ca, error.to_string()))?;
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(aws_lc_rs::default_provider()))
            .build()
            .map_err(|error| AuthError::Crypto(error.to_string()))?;

    let then = UnixTime::since_unix_epoch(now + RENEW_BEFORE);
    for name in names {
        let server = ServerName::try_from(name.as_str()).map_err(|_| not_a_name(name))?;
        match verifier.verify_server_cert(&certificate, &[], &server, &[], then) {
            Ok(_) => {}
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => return Ok(false),
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => return Err(unusable(format!("is not for {name}: remove server.pem to have it issued anew"))),
            Err(error) => {
                return Err(unusable(format!(
                    "does not come from ca.pem ({error}): remove server.pem and server.key to have them made anew"
                )));
            }
        }
    }
    Ok(true)
}

/// The same for every authority of ours, so that the issuer can be reconstructed from its key alone.
fn ca_params(now: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("bimip development authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, now, CA_VALID);
    params
}

fn server_params(names: Vec<String>, now: Duration) -> Result<CertificateParams, AuthError> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|error| AuthError::Crypto(error.to_string()))?;
    // A positive number without a leading zero byte (RFC 5280, 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;

    let mut params = CertificateParams::new(names).map_err(crypto)?;
    params.distinguished_name = name("bimip development server");
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    valid(&mut params, now, CERTIFICATE_VALID);
    Ok(params)
}

fn name(common: &str) -> rcgen::DistinguishedName {
    let mut name = rcgen::DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn valid(params: &mut CertificateParams, now: Duration, how_long: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(CLOCK_SLACK);
    params.not_after = epoch + now + how_long - CLOCK_SLACK;
}

/// The key in the file, which is created first if there is none. It is read back in any case, because another process may have
/// been faster.
fn private_key(path: &Path, algorithm: &'static SignatureAlgorithm) -> Result<KeyPair, AuthError> {
    if !path.exists() {
        let key = KeyPair::generate_for(algorithm).map_err(crypto)?;
        create(path, &key.serialize_pem(), Access::Owner)?;
    }
    let what = "development key";
    let text = fs::read_to_string(path).map_err(|reason| AuthError::Read { what, path: path.to_owned(), reason })?;
    KeyPair::from_pkcs8_pem_and_sign_algo(&text, algorithm)
        .map_err(|error| AuthError::unusable(what, path, format!("is not a key of ours: {error}")))
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Access {
    Owner,
    Anyone,
}

/// Writes a new file completely or not at all; an existing file stays as it is.
pub(super) fn create(path: &Path, text: &str, access: Access) -> Result<(), AuthError> {
    if path.exists() {
        return Ok(());
    }
    let written = temporary(path, text, access).and_then(|temporary| match fs::hard_link(&temporary, path) {
        Ok(()) => fs::remove_file(&temporary),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(&temporary),
        // A file system without hard links: the file did not exist a moment ago.
        Err(_) => fs::rename(&temporary, path),
    });
    written.map_err(|reason| AuthError::Write { path: path.to_owned(), reason })
}

fn replace(path: &Path, text: &str) -> Result<(), AuthError> {
    temporary(path, text, Access::Anyone)
        .and_then(|temporary| fs::rename(temporary, path))
        .map_err(|reason| AuthError::Write { path: path.to_owned(), reason })
}

/// Writes the text to a new file beside `path`. With [`Access::Owner`] only its owner can read it, from the first byte on.
fn temporary(path: &Path, text: &str, access: Access) -> io::Result<PathBuf> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(io::Error::other)?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:016x}", u64::from_be_bytes(suffix)));
    let temporary = PathBuf::from(name);

    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    options.mode(if access == Access::Owner { 0o600 } else { 0o644 });
    let mut file = options.open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(temporary)
}

fn not_a_name(name: &str) -> AuthError {
    AuthError::Name(name.to_owned())
}

fn crypto(error: rcgen::Error) -> AuthError {
    AuthError::Crypto(error.to_string())
}

#[cfg(test)]
mod tests;
