//! Tokens: their claims, and whether they are valid (protocol.md §5). The time is an argument.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, EncodingKey, Header, Validation, decode, decode_header};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::AuthError;
use super::keys::{self, Key};
use crate::config::AuthConfig;
use crate::limits;
use crate::wire::{DeviceId, Eid};

/// The end of the year 9999: later times in a token mean "never". In milliseconds it still fits everywhere.
const LATEST_UNIX_S: i64 = 253_402_300_799;
/// The scope that may revoke any user's tokens (protocol.md §13).
const ADMIN: &str = "admin";

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The user: claim `eid`, else `sub`.
    pub eid: Eid,
    /// The only device that may use the token, if it names one.
    pub device: Option<DeviceId>,
    /// Identifies the token for revocation: by its `jti` within issuer and user, or else by its signed content. The signature
    /// is left out, because an ECDSA signature can be rewritten into another valid one.
    pub fingerprint: [u8; 32],
    /// `iat`, in Unix seconds.
    pub issued_at: Option<i64>,
    /// `exp`, in Unix seconds; at most the year 9999.
    pub expires_at: i64,
    /// Whether `scope` has `admin`.
    pub admin: bool,
}

/// Why a token is refused. The messages are sent to the peer, and repeat nothing of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// None was given.
    #[error("token missing")]
    Missing,
    /// Over [`limits::TOKEN_BYTES_MAX`].
    #[error("token too long")]
    TooLong,
    /// Not a JWT, or its claims have the wrong types.
    #[error("token malformed")]
    Malformed,
    /// `none`, an algorithm that no configured key serves, or a critical extension.
    #[error("token algorithm not accepted")]
    Algorithm,
    /// No configured key made the signature.
    #[error("token signature not valid")]
    Signature,
    /// Past `exp`.
    #[error("token expired")]
    Expired,
    /// No `exp`.
    #[error("token without expiry")]
    Unlimited,
    /// Before `nbf`, or `iat` lies in the future.
    #[error("token not valid yet")]
    NotYetValid,
    /// `iss` is not the configured one.
    #[error("token of another issuer")]
    Issuer,
    /// `aud` does not have the configured one.
    #[error("token for another audience")]
    Audience,
    /// Neither `eid` nor `sub` is a user.
    #[error("token names no user")]
    User,
    /// `device_id` is not one.
    #[error("token names no valid device")]
    Device,
}

/// Verifies tokens. Its keys can be replaced; it has no other state.
pub struct Verifier {
    keys: RwLock<Arc<[Key]>>,
    issuer: Option<String>,
    audience: Option<String>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("keys", &self.keys()).finish_non_exhaustive()
    }
}

impl Verifier {
    /// Reads the configured keys. `dev_key` is the public key of development tokens, which is accepted besides.
    ///
    /// # Errors
    /// A file cannot be read or used, or there are no keys or more than [`limits::TOKEN_KEYS_MAX`].
    pub fn from_config(config: &AuthConfig, dev_key: Option<&Path>) -> Result<Verifier, AuthError> {
        let mut keys = Vec::new();
        for path in config.keys.iter().map(AsRef::as_ref).chain(dev_key) {
            keys.extend(keys::from_pem_file(path)?);
        }
        if let Some(path) = &config.jwks {
            keys.extend(keys::from_jwks_file(path)?);
        }
        if let Some(path) = &config.hs256_secret_file {
            keys.push(keys::from_secret_file(path)?);
        }
        if keys.is_empty() {
            return Err(AuthError::NoKeys);
        }
        if keys.len() > limits::TOKEN_KEYS_MAX {
            return Err(AuthError::TooManyKeys);
        }
        Ok(Verifier {
            keys: RwLock::new(keys.into()),
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
        })
    }

    /// Accepts the keys of another verifier from now on, and no others: tokens of a key that is gone are no longer valid.
    /// Issuer and audience stay.
    pub fn replace(&self, other: Verifier) {
        let keys = other.keys.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// The number of its keys.
    pub fn keys(&self) -> usize {
        self.current().len()
    }

    fn current(&self) -> Arc<[Key]> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Verifies a token at `now_unix_s`, in Unix seconds. The session itself checks that the token is for its device, and not
    /// revoked.
    ///
    /// # Errors
    /// [`TokenError`] if the token is not valid at that time, or not signed by a configured key.
    pub fn verify(&self, token: &str, now_unix_s: i64) -> Result<Claims, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > limits::TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        let claims = self.signed(token)?;
        self.judge(claims, token, now_unix_s)
    }

    /// The claims, once a key of the header's algorithm has verified the signature.
    fn signed(&self, token: &str) -> Result<RawClaims, TokenError> {
        let header = decode_header(token).map_err(|error| match error.kind() {
            // Valid JSON that is not a header: an algorithm that the library does not know, above all `none`.
            ErrorKind::Json(json) if json.is_data() => TokenError::Algorithm,
            _ => TokenError::Malformed,
        })?;
        // RFC 7515, 4.1.11: these extensions must be understood, and none are.
        if header.crit.is_some() {
            return Err(TokenError::Algorithm);
        }
        let keys = self.current();
        let candidates = || keys.iter().filter(|key| key.algorithm == header.alg);
        if candidates().next().is_none() {
            return Err(TokenError::Algorithm);
        }

        // Only the signature: times need the caller's clock, and the rest has errors of its own.
        let mut validation = Validation::new(header.alg);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;

        // A `kid` selects among keys that have an id; keys from PEM have none, and are tried for every `kid`.
        let fits = |key: &&Key| header.kid.is_none() || key.id.is_none() || key.id == header.kid;
        for key in candidates().filter(fits) {
            match decode::<RawClaims>(token, &key.decoding, &validation) {
                Ok(verified) => return Ok(verified.claims),
                Err(error) => match error.kind() {
                    ErrorKind::InvalidSignature => {}
                    _ => return Err(TokenError::Malformed),
                },
            }
        }
        Err(TokenError::Signature)
    }

    fn judge(&self, claims: RawClaims, token: &str, now: i64) -> Result<Claims, TokenError> {
        let leeway = i64::try_from(limits::TOKEN_LEEWAY.as_secs()).unwrap_or(0);
        let expires_at = claims.exp.as_ref().ok_or(TokenError::Unlimited).map(unix_s)?;
        if now.saturating_sub(leeway) >= expires_at {
            return Err(TokenError::Expired);
        }
        let issued_at = claims.iat.as_ref().map(unix_s);
        let starts = [claims.nbf.as_ref().map(unix_s), issued_at];
        if starts.into_iter().flatten().any(|start| start > now.saturating_add(leeway)) {
            return Err(TokenError::NotYetValid);
        }
        if self.issuer.is_some() && self.issuer != claims.iss {
            return Err(TokenError::Issuer);
        }
        if let Some(audience) = &self.audience
            && !claims.aud.as_ref().is_some_and(|aud| aud.words().any(|word| word == audience))
        {
            return Err(TokenError::Audience);
        }

        let user = claims.eid.as_deref().or(claims.sub.as_deref()).ok_or(TokenError::User)?;
        let eid = Eid::parse(user).map_err(|_| TokenError::User)?;
        let device = claims.device_id.as_deref().map(DeviceId::parse).transpose().map_err(|_| TokenError::Device)?;
        let fingerprint = fingerprint(&claims, &eid, token);
        let admin = claims.scope.is_some_and(|scope| scope.words().flat_map(str::split_whitespace).any(|w| w == ADMIN));
        Ok(Claims { eid, device, fingerprint, issued_at, expires_at, admin })
    }
}

/// The claims as the token has them.
#[derive(Deserialize)]
struct RawClaims {
    eid: Option<String>,
    sub: Option<String>,
    device_id: Option<String>,
    jti: Option<String>,
    exp: Option<serde_json::Number>,
    nbf: Option<serde_json::Number>,
    iat: Option<serde_json::Number>,
    iss: Option<String>,
    aud: Option<OneOrMany>,
    scope: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn words(&self) -> impl Iterator<Item = &str> {
        match self {
            OneOrMany::One(word) => std::slice::from_ref(word),
            OneOrMany::Many(words) => words,
        }
        .iter()
        .map(String::as_str)
    }
}

/// Whole seconds of a NumericDate (RFC 7519, 2), which may have a fraction.
fn unix_s(number: &serde_json::Number) -> i64 {
    // `as` saturates, and numbers in JSON are finite.
    let seconds = number.as_i64().or_else(|| number.as_f64().map(|seconds| seconds.floor() as i64));
    seconds.unwrap_or(0).clamp(0, LATEST_UNIX_S)
}

fn fingerprint(claims: &RawClaims, eid: &Eid, token: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    match claims.jti.as_deref().filter(|jti| !jti.is_empty()) {
        Some(jti) => {
            let issuer = claims.iss.as_deref().unwrap_or_default();
            hash.update(b"bimip token jti v1\0");
            for part in [issuer, eid.as_str(), jti] {
                // Lengths are included, because a claim may contain any character that could serve as a separator.
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        None => {
            hash.update(b"bimip token v1\0");
            hash.update(token.rsplit_once('.').map_or(token, |(signed, _)| signed));
        }
    }
    hash.finalize().into()
}

/// Signs tokens for development and tests, with an Ed25519 key.
pub struct Signer {
    key: EncodingKey,
}

/// What a token to be signed says.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The user.
    pub eid: Eid,
    /// The only device that may use it; `None`: any.
    pub device: Option<DeviceId>,
    /// How long the token is valid.
    pub ttl: Duration,
    /// Space-separated scopes, as in `admin`.
    pub scope: Option<String>,
}

impl Signer {
    /// Reads a private key: Ed25519, PKCS#8, PEM.
    ///
    /// # Errors
    /// The file cannot be read, or does not hold such a key.
    pub fn from_pem_file(path: &Path) -> Result<Signer, AuthError> {
        let what = "token signing key";
        let der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|error| match error {
            rustls_pki_types::pem::Error::Io(reason) => AuthError::Read { what, path: path.to_owned(), reason },
            other => AuthError::unusable(what, path, format!("is not a PKCS#8 private key in PEM: {other:?}")),
        })?;
        let signer = Signer { key: EncodingKey::from_ed_der(der.secret_pkcs8_der()) };
        match jsonwebtoken::crypto::sign(b"probe", &signer.key, Algorithm::EdDSA) {
            Ok(_) => Ok(signer),
            Err(_) => Err(AuthError::unusable(what, path, "is not an Ed25519 key")),
        }
    }

    /// Signs a token that is valid from `now_unix_s` on, in Unix seconds, with a random `jti`.
    ///
    /// # Errors
    /// [`AuthError::Crypto`] if the system provides no randomness, or signing fails.
    pub fn sign(&self, grant: &Grant, now_unix_s: i64) -> Result<String, AuthError> {
        #[derive(Serialize)]
        struct Payload<'a> {
            eid: &'a str,
            sub: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            device_id: Option<&'a str>,
            jti: String,
            iat: i64,
            exp: i64,
            #[serde(skip_serializing_if = "Option::is_none")]
            scope: Option<&'a str>,
        }
        let mut jti = [0; 16];
        getrandom::fill(&mut jti).map_err(|error| AuthError::Crypto(error.to_string()))?;
        let ttl = i64::try_from(grant.ttl.as_secs()).unwrap_or(i64::MAX);
        let payload = Payload {
            eid: grant.eid.as_str(),
            sub: grant.eid.as_str(),
            device_id: grant.device.as_ref().map(DeviceId::as_str),
            jti: format!("{:032x}", u128::from_be_bytes(jti)),
            iat: now_unix_s,
            exp: now_unix_s.saturating_add(ttl).min(LATEST_UNIX_S),
            scope: grant.scope.as_deref(),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &payload, &self.key)
            .map_err(|error| AuthError::Crypto(error.to_string()))
    }
}

#[cfg(test)]
mod tests;
