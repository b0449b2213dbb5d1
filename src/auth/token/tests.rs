//! Tokens that are accepted, and all the ways in which one is refused.

use std::path::PathBuf;
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::DecodingKey;
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData, SigningKey,
};
use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_800_000_000;
const SECRET: &str = "a shared secret of 32 bytes or so";

static ED25519: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_for(&PKCS_ED25519).unwrap());
static P256: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
static RSA: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());

/// A folder of key files, and the configuration that names them.
struct Setup {
    folder: tempfile::TempDir,
    config: AuthConfig,
}

impl Setup {
    fn new() -> Setup {
        Setup { folder: tempfile::tempdir().unwrap(), config: AuthConfig::default() }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn pem(mut self, key: &KeyPair) -> Setup {
        let path = self.file(&format!("{}.pem", self.config.keys.len()), key.public_key_pem());
        self.config.keys.push(path);
        self
    }

    fn jwks(mut self, set: &Value) -> Setup {
        self.config.jwks = Some(self.file("jwks.json", set.to_string()));
        self
    }

    fn secret(mut self, secret: &str) -> Setup {
        self.config.hs256_secret_file = Some(self.file("secret", secret));
        self
    }

    fn build(&self) -> Result<Verifier, AuthError> {
        Verifier::from_config(&self.config, None)
    }

    fn verifier(&self) -> Verifier {
        self.build().unwrap_or_else(|error| panic!("{error}"))
    }

    fn refusal(&self) -> String {
        self.build().err().map(|error| error.to_string()).unwrap()
    }
}

/// A token with any header and claims, signed with the algorithm of the key's kind.
fn token_with(header: &Value, claims: &Value, key: &KeyPair) -> String {
    let signed = unsigned(header, claims);
    let signature = if key.is_compatible(&PKCS_ECDSA_P256_SHA256) {
        // JOSE expects the two numbers bare, not in ASN.1.
        let key = EncodingKey::from_ec_der(key.serialized_der());
        jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::ES256).unwrap()
    } else {
        BASE64.encode(key.sign(signed.as_bytes()).unwrap())
    };
    format!("{signed}.{signature}")
}

fn hs256(claims: &Value, secret: &[u8]) -> String {
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret)).unwrap()
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()))
}

fn alice() -> Value {
    json!({"eid": "alice@localhost", "exp": NOW + 3600, "iat": NOW - 10, "jti": "1"})
}

fn alice_with(changes: Value) -> Value {
    let mut claims = alice();
    let Value::Object(changes) = changes else { panic!("changes are an object") };
    for (key, value) in changes {
        claims[key] = value;
    }
    claims
}

fn eddsa(claims: &Value) -> String {
    token_with(&json!({"alg": "EdDSA"}), claims, &ED25519)
}

/// How a server with one Ed25519 key judges the claims.
fn judged(claims: &Value) -> Result<Claims, TokenError> {
    Setup::new().pem(&ED25519).verifier().verify(&eddsa(claims), NOW)
}

fn jwk(key: &KeyPair, id: Option<&str>) -> Value {
    let raw = PublicKeyData::der_bytes(key);
    let (key, algorithm) = if key.is_compatible(&PKCS_ED25519) {
        (DecodingKey::from_ed_der(raw), Algorithm::EdDSA)
    } else if key.is_compatible(&PKCS_ECDSA_P256_SHA256) {
        (DecodingKey::from_ec_der(raw), Algorithm::ES256)
    } else {
        (DecodingKey::from_rsa_der(raw), Algorithm::RS256)
    };
    let jwk = jsonwebtoken::jwk::Jwk::from_decoding_key(&key, Some(algorithm)).unwrap();
    let mut jwk = serde_json::to_value(jwk).unwrap();
    if let Some(id) = id {
        jwk["kid"] = json!(id);
    }
    jwk
}

#[test]
fn each_kind_of_key_verifies_its_algorithm_from_pem_and_from_jwks() {
    for (name, key) in [("EdDSA", &*ED25519), ("ES256", &*P256), ("RS256", &*RSA)] {
        let token = token_with(&json!({"alg": name, "typ": "JWT"}), &alice(), key);
        for setup in [Setup::new().pem(key), Setup::new().jwks(&json!({"keys": [jwk(key, None)]}))] {
            let claims = setup.verifier().verify(&token, NOW).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(claims.eid.as_str(), "alice@localhost");
            assert_eq!(claims.issued_at, Some(NOW - 10));
            assert_eq!(claims.expires_at, NOW + 3600);
            assert_eq!(claims.device, None);
            assert!(!claims.admin);
        }
    }
}

#[test]
fn several_keys_in_one_file_and_of_several_kinds_serve_side_by_side() {
    let mut setup = Setup::new();
    let both = format!("{}\n{}", ED25519.public_key_pem(), P256.public_key_pem());
    setup.config.keys.push(setup.file("both.pem", both));
    let setup = setup.jwks(&json!({"keys": [jwk(&RSA, Some("r"))]})).secret(SECRET);
    let verifier = setup.verifier();
    for (name, key) in [("EdDSA", &*ED25519), ("ES256", &*P256), ("RS256", &*RSA)] {
        verifier.verify(&token_with(&json!({"alg": name}), &alice(), key), NOW).unwrap();
    }
    verifier.verify(&hs256(&alice(), SECRET.as_bytes()), NOW).unwrap();
}

#[test]
fn claims_are_taken_over() {
    let claims =
        judged(&alice_with(json!({"device_id": "phone", "scope": "read admin", "sub": "bob@localhost"}))).unwrap();
    assert_eq!(claims.eid.as_str(), "alice@localhost");
    assert_eq!(claims.device.unwrap().as_str(), "phone");
    assert!(claims.admin);

    let claims = judged(&json!({"sub": "Bob@LocalHost", "exp": NOW + 1, "scope": ["a", "admin"]})).unwrap();
    assert_eq!(claims.eid.as_str(), "bob@localhost");
    assert_eq!(claims.issued_at, None);
    assert!(claims.admin);

    for scope in [json!("administrator"), json!(["x", "not-admin"]), json!("ADMIN"), json!("")] {
        assert!(!judged(&alice_with(json!({"scope": scope}))).unwrap().admin);
    }
}

#[test]
fn a_token_ends_at_exp_plus_the_leeway() {
    let leeway = limits::TOKEN_LEEWAY.as_secs() as i64;
    let verifier = Setup::new().pem(&ED25519).verifier();
    let token = eddsa(&alice_with(json!({"exp": NOW})));
    assert!(verifier.verify(&token, NOW + leeway - 1).is_ok());
    assert_eq!(verifier.verify(&token, NOW + leeway).unwrap_err(), TokenError::Expired);
    assert_eq!(TokenError::Expired.to_string(), "token expired");
    assert_eq!(verifier.verify(&token, i64::MAX).unwrap_err(), TokenError::Expired);
    assert_eq!(judged(&json!({"eid": "a@b"})).unwrap_err(), TokenError::Unlimited);
}

#[test]
fn a_token_starts_at_nbf_and_iat_less_the_leeway() {
    let leeway = limits::TOKEN_LEEWAY.as_secs() as i64;
    for claim in ["nbf", "iat"] {
        assert!(judged(&alice_with(json!({claim: NOW + leeway}))).is_ok());
        assert_eq!(judged(&alice_with(json!({claim: NOW + leeway + 1}))).unwrap_err(), TokenError::NotYetValid);
    }
}

#[test]
fn times_may_have_fractions_and_absurd_sizes() {
    assert_eq!(judged(&alice_with(json!({"exp": NOW as f64 + 10.75}))).unwrap().expires_at, NOW + 10);
    assert_eq!(judged(&alice_with(json!({"exp": 1e300}))).unwrap().expires_at, LATEST_UNIX_S);
    assert_eq!(judged(&alice_with(json!({"exp": u64::MAX}))).unwrap().expires_at, LATEST_UNIX_S);
    assert_eq!(judged(&alice_with(json!({"exp": -1e300}))).unwrap_err(), TokenError::Expired);
    assert_eq!(judged(&alice_with(json!({"iat": i64::MIN}))).unwrap().issued_at, Some(0));
}

#[test]
fn forged_tokens_are_refused() {
    let verifier = Setup::new().pem(&ED25519).verifier();
    let stranger = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let forged = token_with(&json!({"alg": "EdDSA"}), &alice(), &stranger);
    assert_eq!(verifier.verify(&forged, NOW).unwrap_err(), TokenError::Signature);

    let good = eddsa(&alice());
    let (_, signature) = good.rsplit_once('.').unwrap();
    let other_claims = unsigned(&json!({"alg": "EdDSA"}), &alice_with(json!({"eid": "root@localhost"})));
    assert_eq!(verifier.verify(&format!("{other_claims}.{signature}"), NOW).unwrap_err(), TokenError::Signature);
    // A forged token does not reveal whether its claims would be accepted, either.
    let expired = token_with(&json!({"alg": "EdDSA"}), &alice_with(json!({"exp": 1})), &stranger);
    assert_eq!(verifier.verify(&expired, NOW).unwrap_err(), TokenError::Signature);
}

#[test]
fn none_is_refused_in_every_spelling() {
    let verifier = Setup::new().pem(&ED25519).secret(SECRET).verifier();
    for name in ["none", "None", "NONE", "nOnE", ""] {
        let unsigned = unsigned(&json!({"alg": name, "typ": "JWT"}), &alice());
        assert_eq!(verifier.verify(&format!("{unsigned}."), NOW).unwrap_err(), TokenError::Algorithm, "{name}");
        assert_eq!(verifier.verify(&format!("{unsigned}.AAAA"), NOW).unwrap_err(), TokenError::Algorithm, "{name}");
    }
    let (_, signature) = eddsa(&alice()).rsplit_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let unsigned = unsigned(&json!({"alg": "none"}), &alice());
    assert_eq!(verifier.verify(&format!("{unsigned}.{signature}"), NOW).unwrap_err(), TokenError::Algorithm);
}

#[test]
fn a_public_key_is_no_hs256_secret() {
    for key in [&*RSA, &*P256, &*ED25519] {
        let der = pem_der(&key.public_key_pem());
        let raw = PublicKeyData::der_bytes(key).to_vec();
        for known in [key.public_key_pem().into_bytes(), key.public_key_pem().trim().as_bytes().to_vec(), der, raw] {
            let token = hs256(&alice(), &known);
            let asymmetric = Setup::new().pem(key);
            assert_eq!(asymmetric.verifier().verify(&token, NOW).unwrap_err(), TokenError::Algorithm);
            let with_secret = Setup::new().pem(key).secret(SECRET);
            assert_eq!(with_secret.verifier().verify(&token, NOW).unwrap_err(), TokenError::Signature);
        }
    }
}

fn pem_der(pem: &str) -> Vec<u8> {
    rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

#[test]
fn a_key_serves_one_algorithm() {
    let verifier = Setup::new().pem(&RSA).pem(&P256).verifier();
    for name in ["RS384", "RS512", "PS256", "PS384", "PS512", "ES384", "HS256", "HS384", "HS512", "EdDSA"] {
        for key in [&*RSA, &*P256] {
            let token = token_with(&json!({"alg": name}), &alice(), key);
            assert_eq!(verifier.verify(&token, NOW).unwrap_err(), TokenError::Algorithm, "{name}");
        }
    }
    // The right name, but the other key's signature.
    let token = token_with(&json!({"alg": "RS256"}), &alice(), &P256);
    assert_eq!(verifier.verify(&token, NOW).unwrap_err(), TokenError::Signature);
    let token = token_with(&json!({"alg": "ES256"}), &alice(), &RSA);
    assert_eq!(verifier.verify(&token, NOW).unwrap_err(), TokenError::Signature);
}

#[test]
fn keys_that_a_token_brings_along_are_ignored() {
    let stranger = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let header = json!({"alg": "EdDSA", "jwk": jwk(&stranger, Some("x")), "jku": "https://evil.example/", "kid": "x"});
    let verifier = Setup::new().pem(&ED25519).verifier();
    assert_eq!(verifier.verify(&token_with(&header, &alice(), &stranger), NOW).unwrap_err(), TokenError::Signature);
    let critical = json!({"alg": "EdDSA", "crit": ["b64"], "b64": false});
    assert_eq!(verifier.verify(&token_with(&critical, &alice(), &ED25519), NOW).unwrap_err(), TokenError::Algorithm);
}

#[test]
fn hs256_needs_its_secret_configured() {
    let token = hs256(&alice(), SECRET.as_bytes());
    assert_eq!(Setup::new().pem(&ED25519).verifier().verify(&token, NOW).unwrap_err(), TokenError::Algorithm);
    assert!(Setup::new().secret(SECRET).verifier().verify(&token, NOW).is_ok());
    assert!(Setup::new().secret(&format!("{SECRET}\r\n")).verifier().verify(&token, NOW).is_ok());
    let guess = hs256(&alice(), b"another secret of 32 bytes or so");
    assert_eq!(Setup::new().secret(SECRET).verifier().verify(&guess, NOW).unwrap_err(), TokenError::Signature);
    let short = Setup::new().secret(&"x".repeat(31)).refusal();
    assert!(short.contains("has 31 bytes, must have at least 32"), "{short}");
    assert!(!short.contains("xxx"), "{short}");
}

#[test]
fn kid_selects_and_without_it_every_key_of_the_algorithm_is_tried() {
    let second = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let set = json!({"keys": [jwk(&ED25519, Some("one")), jwk(&second, Some("two"))]});
    let verifier = Setup::new().jwks(&set).verifier();
    let with = |kid: Option<&str>, key: &KeyPair| {
        let header = kid.map_or(json!({"alg": "EdDSA"}), |kid| json!({"alg": "EdDSA", "kid": kid}));
        verifier.verify(&token_with(&header, &alice(), key), NOW).map(|_| ())
    };
    assert_eq!(with(None, &ED25519), Ok(()));
    assert_eq!(with(None, &second), Ok(()));
    assert_eq!(with(Some("two"), &second), Ok(()));
    assert_eq!(with(Some("one"), &second), Err(TokenError::Signature));
    assert_eq!(with(Some("three"), &second), Err(TokenError::Signature));

    // A key from PEM has no id and is tried for every token.
    let pem = Setup::new().pem(&ED25519).verifier();
    assert!(pem.verify(&token_with(&json!({"alg": "EdDSA", "kid": "any"}), &alice(), &ED25519), NOW).is_ok());
}

#[test]
fn keys_of_other_purposes_in_a_jwks_are_left_out() {
    let changed = |field: &str, value: &str| {
        let mut jwk = jwk(&RSA, None);
        jwk[field] = json!(value);
        jwk
    };
    let strange = [
        changed("use", "enc"),
        changed("alg", "RS512"),
        changed("alg", "ES256"),
        changed("alg", "of the future"),
        json!({"kty": "oct", "k": BASE64.encode(SECRET), "alg": "HS256"}),
        json!({"kty": "OKP", "crv": "Ed448", "x": "AAAA"}),
        json!({"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"}),
        json!({"kty": "RSA", "n": "*", "e": "AQAB"}),
        json!("no key at all"),
    ];
    for key in &strange {
        let refusal = Setup::new().jwks(&json!({"keys": [key]})).refusal();
        assert!(refusal.contains("has no usable key"), "{key}: {refusal}");
    }
    let mut keys = strange.to_vec();
    keys.push(jwk(&ED25519, None));
    let verifier = Setup::new().jwks(&json!({"keys": keys})).verifier();
    assert!(verifier.verify(&eddsa(&alice()), NOW).is_ok());
    assert_eq!(verifier.verify(&hs256(&alice(), SECRET.as_bytes()), NOW).unwrap_err(), TokenError::Algorithm);
    assert!(Setup::new().jwks(&json!([])).refusal().contains("is not a JSON Web Key Set"));
}

#[test]
fn a_configured_issuer_and_audience_are_required() {
    let mut setup = Setup::new().pem(&ED25519);
    setup.config.issuer = Some("https://id.example".to_owned());
    setup.config.audience = Some("bimip".to_owned());
    let verifier = setup.verifier();
    let judged = |changes: Value| verifier.verify(&eddsa(&alice_with(changes)), NOW).map(|_| ());
    assert_eq!(judged(json!({"iss": "https://id.example", "aud": "bimip"})), Ok(()));
    assert_eq!(judged(json!({"iss": "https://id.example", "aud": ["other", "bimip"]})), Ok(()));
    assert_eq!(judged(json!({"aud": "bimip"})), Err(TokenError::Issuer));
    assert_eq!(judged(json!({"iss": "https://id.example.evil", "aud": "bimip"})), Err(TokenError::Issuer));
    assert_eq!(judged(json!({"iss": "https://id.example"})), Err(TokenError::Audience));
    assert_eq!(judged(json!({"iss": "https://id.example", "aud": "bimip2"})), Err(TokenError::Audience));
    assert_eq!(judged(json!({"iss": "https://id.example", "aud": []})), Err(TokenError::Audience));
    // Without a configured value they are not checked.
    assert!(super::tests::judged(&alice_with(json!({"iss": "x", "aud": "y"}))).is_ok());
}

#[test]
fn what_names_no_user_or_device_is_refused() {
    for claims in [json!({"exp": NOW + 1}), json!({"exp": NOW + 1, "eid": "alice"}), alice_with(json!({"eid": ""}))] {
        assert_eq!(judged(&claims).unwrap_err(), TokenError::User);
    }
    // A bad `eid` does not fall back on `sub`.
    assert_eq!(judged(&alice_with(json!({"eid": "x", "sub": "bob@b"}))).unwrap_err(), TokenError::User);
    for device in ["", "a b", &"x".repeat(65)] {
        assert_eq!(judged(&alice_with(json!({"device_id": device}))).unwrap_err(), TokenError::Device);
    }
}

#[test]
fn what_is_no_token_is_refused() {
    let verifier = Setup::new().pem(&ED25519).verifier();
    let refused = |token: &str| verifier.verify(token, NOW).unwrap_err();
    assert_eq!(refused(""), TokenError::Missing);
    assert_eq!(refused(&"x".repeat(limits::TOKEN_BYTES_MAX + 1)), TokenError::TooLong);
    let good = eddsa(&alice());
    for bad in ["x", ".", "..", "a.b.c", "a.b.c.d", "💥.💥.💥", &good[1..], &format!("{good}."), &format!(" {good}")]
    {
        assert_eq!(refused(bad), TokenError::Malformed, "{bad}");
    }
    assert_eq!(refused(&format!("{good}*")), TokenError::Malformed);
    for claims in [
        json!([]),
        json!("x"),
        alice_with(json!({"exp": "tomorrow"})),
        alice_with(json!({"eid": 1})),
        alice_with(json!({"jti": 7})),
        alice_with(json!({"scope": {"admin": true}})),
    ] {
        assert_eq!(refused(&eddsa(&claims)), TokenError::Malformed, "{claims}");
    }
    let twice = format!(r#"{{"eid":"a@b","eid":"root@b","exp":{}}}"#, NOW + 1);
    let signed = format!("{}.{}", BASE64.encode(r#"{"alg":"EdDSA"}"#), BASE64.encode(twice));
    let signature = BASE64.encode(ED25519.sign(signed.as_bytes()).unwrap());
    assert_eq!(refused(&format!("{signed}.{signature}")), TokenError::Malformed);
}

#[test]
fn a_fingerprint_follows_jti_within_issuer_and_user_else_the_signed_content() {
    let fingerprint = |changes: Value| judged(&alice_with(changes)).unwrap().fingerprint;
    let first = fingerprint(json!({}));
    assert_eq!(first, fingerprint(json!({"exp": NOW + 7200})));
    for other in [json!({"jti": "2"}), json!({"eid": "bob@localhost"}), json!({"iss": "x"}), json!({"jti": ""})] {
        assert_ne!(first, fingerprint(other));
    }

    // The same ECDSA token, signed twice: two signatures, one token.
    let claims = alice_with(json!({"jti": null}));
    let verifier = Setup::new().pem(&P256).verifier();
    let [one, two] = [(); 2].map(|()| token_with(&json!({"alg": "ES256"}), &claims, &P256));
    assert_ne!(one, two);
    let [one, two] = [one, two].map(|token| verifier.verify(&token, NOW).unwrap().fingerprint);
    assert_eq!(one, two);
}

#[test]
fn unusable_key_files_are_refused_with_what_to_do() {
    let refusal = |content: &str| {
        let mut setup = Setup::new();
        setup.config.keys.push(setup.file("key.pem", content));
        let refusal = setup.refusal();
        assert!(!refusal.contains('\n'), "{refusal}");
        refusal
    };
    assert_eq!(Setup::new().refusal(), AuthError::NoKeys.to_string());
    assert!(refusal(&ED25519.serialize_pem()).contains("is a private key: give the public one"));
    assert!(refusal("hello").contains("has no public key"));
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(refusal(&p384.public_key_pem()).contains("is of a kind that is not supported"));
    assert!(refusal("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").contains("is not a public key"));
    assert!(refusal(RSA_1024).contains("is an RSA key of 1024 bits, must have 2048 to 8192"));

    let mut absent = Setup::new();
    absent.config.keys.push("/nowhere/key.pem".into());
    assert!(absent.refusal().starts_with("cannot read token key /nowhere/key.pem: "));
    let mut many = Setup::new();
    many.config.keys.push(many.file("many.pem", ED25519.public_key_pem().repeat(limits::TOKEN_KEYS_MAX + 1)));
    assert!(many.refusal().starts_with("more than 32 token keys"));
}

#[test]
fn a_signer_signs_what_its_public_key_verifies() {
    let setup = Setup::new().pem(&ED25519);
    let signer = Signer::from_pem_file(&setup.file("token.key", ED25519.serialize_pem())).unwrap();
    let grant = Grant {
        eid: Eid::parse("alice@localhost").unwrap(),
        device: Some(DeviceId::parse("phone").unwrap()),
        ttl: Duration::from_secs(60),
        scope: Some("admin".to_owned()),
    };
    let token = signer.sign(&grant, NOW).unwrap();
    let claims = setup.verifier().verify(&token, NOW).unwrap();
    assert_eq!((claims.eid, claims.device), (grant.eid.clone(), grant.device.clone()));
    assert_eq!((claims.issued_at, claims.expires_at, claims.admin), (Some(NOW), NOW + 60, true));
    // Each token has its own `jti`, so that it can be revoked alone.
    let again = setup.verifier().verify(&signer.sign(&grant, NOW).unwrap(), NOW).unwrap();
    assert_ne!(claims.fingerprint, again.fingerprint);

    let refused = |content: String| Signer::from_pem_file(&setup.file("other", content)).err().unwrap().to_string();
    assert!(refused(P256.serialize_pem()).contains("is not an Ed25519 key"));
    assert!(refused(ED25519.public_key_pem()).contains("is not a PKCS#8 private key"));
}

/// Made with `openssl genrsa 1024`: shorter than libraries agree to generate.
const RSA_1024: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDxkZJAJ/bI7hWuxNhhaoiOwnhL\n\
1NHHq//Yi/+pSRw6gRoUuDUV6//4r+KhPghjvaQWJgBJmMAhS0Sb2T1O+H2JmXf3\n\
7apbFDFh892x8XQ0AG4UEyH1nDiH0K9oOqX/VVRFcYz7esjXiyTUx8OzqPPEBqPR\n\
6hXzbO7mhyazubf6TQIDAQAB\n\
-----END PUBLIC KEY-----\n";
