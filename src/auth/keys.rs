//! Verification keys from PEM, JWKS and secret files. A key serves only the one algorithm that its kind implies, so that
//! nothing in a token can choose how a key is used (protocol.md §5).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{SubjectPublicKeyInfoDer, alg_id};
use serde::Deserialize;

use super::AuthError;
use super::tls::pem_problem;
use crate::limits;

const PUBLIC_KEY: &str = "token key";
const JWKS: &str = "JWKS file";
const SECRET: &str = "HS256 secret";

/// One key, and the only algorithm that it serves.
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    /// Its name in a JWKS; keys from PEM files have none.
    pub(super) id: Option<String>,
    pub(super) decoding: DecodingKey,
}

/// All public keys of a PEM file.
pub(super) fn from_pem_file(path: &Path) -> Result<Vec<Key>, AuthError> {
    let text = read(PUBLIC_KEY, path)?;
    let mut keys = Vec::new();
    for section in SubjectPublicKeyInfoDer::pem_slice_iter(&text) {
        let der = section.map_err(|error| AuthError::unusable(PUBLIC_KEY, path, pem_problem(&error)))?;
        let key = public_key(&der).map_err(|reason| AuthError::unusable(PUBLIC_KEY, path, reason))?;
        keys.push(key);
    }
    if keys.is_empty() {
        let reason = if contains(&text, b"PRIVATE KEY-----") {
            "is a private key: give the public one (openssl pkey -in KEY -pubout)"
        } else {
            "has no public key: give a PEM file with -----BEGIN PUBLIC KEY----- (openssl pkey -pubout)"
        };
        return Err(AuthError::unusable(PUBLIC_KEY, path, reason));
    }
    Ok(keys)
}

/// The signature keys of a JWKS file. Keys for other purposes or algorithms are left out.
pub(super) fn from_jwks_file(path: &Path) -> Result<Vec<Key>, AuthError> {
    /// Entries stay raw, so that a key of an unknown kind does not make the others unusable.
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let text = read(JWKS, path)?;
    let set: Set = serde_json::from_slice(&text)
        .map_err(|error| AuthError::unusable(JWKS, path, format!("is not a JSON Web Key Set: {error}")))?;
    let mut keys = Vec::new();
    for (position, entry) in set.keys.into_iter().enumerate() {
        let key =
            serde_json::from_value::<Jwk>(entry).map_err(|error| error.to_string()).and_then(|jwk| from_jwk(&jwk));
        match key {
            Ok(key) => keys.push(key),
            Err(reason) => tracing::warn!(file = %path.display(), position, reason, "a key of the JWKS is not used"),
        }
    }
    if keys.is_empty() {
        return Err(AuthError::unusable(JWKS, path, "has no usable key: RSA, P-256 and Ed25519 signature keys are"));
    }
    Ok(keys)
}

/// The shared secret of HS256. A line break at the end, as editors and `openssl rand -base64` leave it, is not part of it.
pub(super) fn from_secret_file(path: &Path) -> Result<Key, AuthError> {
    let mut secret = read(SECRET, path)?;
    for end in [b'\n', b'\r'] {
        if secret.last() == Some(&end) {
            secret.pop();
        }
    }
    if secret.len() < limits::HS256_SECRET_BYTES_MIN {
        let reason = format!(
            "has {} bytes, must have at least {} (openssl rand -base64 48)",
            secret.len(),
            limits::HS256_SECRET_BYTES_MIN
        );
        return Err(AuthError::unusable(SECRET, path, reason));
    }
    Ok(Key { algorithm: Algorithm::HS256, id: None, decoding: DecodingKey::from_secret(&secret) })
}

/// A SubjectPublicKeyInfo (RFC 5280, 4.1.2.7) of one of the three kinds.
fn public_key(der: &[u8]) -> Result<Key, String> {
    let (algorithm, bits) = subject_public_key(der).ok_or("is not a public key")?;
    if algorithm == alg_id::ED25519.as_ref() {
        ed25519(DecodingKey::from_ed_der(bits))
    } else if algorithm == alg_id::ECDSA_P256.as_ref() {
        p256(DecodingKey::from_ec_der(bits))
    } else if algorithm == alg_id::RSA_ENCRYPTION.as_ref() {
        let (modulus, exponent) = rsa_public_key(bits).ok_or("is not an RSA public key")?;
        rsa(modulus, exponent)
    } else {
        Err("is of a kind that is not supported: use Ed25519, P-256 or RSA".to_owned())
    }
}

fn from_jwk(jwk: &Jwk) -> Result<Key, String> {
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return Err("is not for signatures".to_owned());
    }
    let decoding = || DecodingKey::from_jwk(jwk).map_err(|error| error.to_string());
    let key = match &jwk.algorithm {
        AlgorithmParameters::RSA(number) => {
            let decode = |text| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|error| error.to_string());
            rsa(&decode(&number.n)?, &decode(&number.e)?)
        }
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => p256(decoding()?),
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => ed25519(decoding()?),
        AlgorithmParameters::OctetKey(_) => Err("is a secret: set auth.hs256_secret_file".to_owned()),
        _ => Err("is of a kind that is not supported".to_owned()),
    }?;
    match jwk.common.key_algorithm {
        Some(named) if named != KeyAlgorithm::from(key.algorithm) => {
            Err(format!("is for {named}, but a key of its kind serves {:?} here", key.algorithm))
        }
        _ => Ok(Key { id: jwk.common.key_id.clone(), ..key }),
    }
}

fn ed25519(decoding: DecodingKey) -> Result<Key, String> {
    match decoding.try_get_as_bytes() {
        Ok(bytes) if bytes.len() == 32 => Ok(Key { algorithm: Algorithm::EdDSA, id: None, decoding }),
        _ => Err("is not an Ed25519 public key".to_owned()),
    }
}

fn p256(decoding: DecodingKey) -> Result<Key, String> {
    match decoding.try_get_as_bytes() {
        Ok([4, xy @ ..]) if xy.len() == 64 => Ok(Key { algorithm: Algorithm::ES256, id: None, decoding }),
        _ => Err("is not an uncompressed P-256 point".to_owned()),
    }
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Key, String> {
    /// The most that the verifier accepts.
    const BITS_MAX: usize = 8192;
    let significant = |number: &[u8]| number.iter().position(|&byte| byte != 0).map_or(0, |at| number.len() - at);
    let (modulus, exponent) =
        (&modulus[modulus.len() - significant(modulus)..], &exponent[exponent.len() - significant(exponent)..]);
    let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
    if !(limits::RSA_BITS_MIN..=BITS_MAX).contains(&bits) {
        return Err(format!("is an RSA key of {bits} bits, must have {} to {BITS_MAX}", limits::RSA_BITS_MIN));
    }
    let decoding = DecodingKey::from_rsa_raw_components(modulus, exponent);
    Ok(Key { algorithm: Algorithm::RS256, id: None, decoding })
}

/// The algorithm identifier's content and the key's bits.
fn subject_public_key(mut der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut info = element(&mut der, SEQUENCE)?;
    let algorithm = element(&mut info, SEQUENCE)?;
    let (unused_bits, bits) = element(&mut info, BIT_STRING)?.split_first()?;
    (der.is_empty() && info.is_empty() && *unused_bits == 0).then_some((algorithm, bits))
}

/// Modulus and exponent (RFC 8017, A.1.1).
fn rsa_public_key(mut der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut key = element(&mut der, SEQUENCE)?;
    Some((element(&mut key, INTEGER)?, element(&mut key, INTEGER)?))
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;

/// Takes one DER element off the front and returns its content. Lengths of up to 64 KiB are supported, far more than an
/// accepted key needs.
fn element<'a>(der: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (length, rest) = match **der {
        [first, length @ 0..=0x7f, ref rest @ ..] if first == tag => (usize::from(length), rest),
        [first, 0x81, length, ref rest @ ..] if first == tag => (usize::from(length), rest),
        [first, 0x82, high, low, ref rest @ ..] if first == tag => (usize::from(u16::from_be_bytes([high, low])), rest),
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *der = rest;
    Some(content)
}

pub(super) fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, AuthError> {
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limits::KEY_FILE_BYTES_MAX + 1).read_to_end(&mut content));
    match read {
        Ok(_) if content.len() as u64 <= limits::KEY_FILE_BYTES_MAX => Ok(content),
        Ok(_) => Err(AuthError::unusable(what, path, format!("is over {} bytes", limits::KEY_FILE_BYTES_MAX))),
        Err(reason) => Err(AuthError::Read { what, path: path.to_owned(), reason }),
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
