//! Tokens that are refused (protocol.md §5).

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use bimip::auth::dev;
use bimip::wire::{CloseCode, Identity, Lane};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::common::{Bystanders, SignIn, TestServer, now_s, sign};

const ALICE: &str = "alice@localhost";
const HOUR: Duration = Duration::from_secs(3600);

fn claims() -> Value {
    json!({"eid": ALICE, "sub": ALICE, "iat": now_s(), "exp": now_s() + 3600})
}

fn with(key: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[key] = value;
    claims
}

fn without(keys: &[&str]) -> Value {
    let mut claims = claims();
    keys.iter().for_each(|key| _ = claims.as_object_mut().unwrap().remove(*key));
    claims
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()))
}

/// A token with any claims, signed with the server's development key.
fn eddsa(key: &Path, claims: &Value) -> String {
    let der = PrivatePkcs8KeyDer::from_pem_file(key).unwrap();
    let key = EncodingKey::from_ed_der(der.secret_pkcs8_der());
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &key).unwrap()
}

fn hs256(secret: &[u8], claims: &Value) -> String {
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret)).unwrap()
}

async fn assert_refused(what: &str, open: SignIn<'_>) {
    let token = open.open.token.clone();
    let (mut alice, request_id) = open.attempt().await;
    let error = alice.expect_error(Lane::Control, 401, request_id).await;
    assert_eq!(error.route, "session_open", "{what}");
    let echoed = token.split('.').any(|part| part.len() > 8 && format!("{error:?}").contains(part));
    assert!(!echoed, "{what}: errors never repeat tokens: {error:?}");
    alice.expect_close(CloseCode::Unauthenticated).await;
}

#[tokio::test]
async fn the_tokens_of_these_tests_are_good_but_for_what_they_change() {
    let server = TestServer::start().await;
    let token = eddsa(&server.files().token_key, &claims());
    server.session(ALICE, "phone").token(token).open().await.ping().await;
    let only_sub = eddsa(&server.files().token_key, &without(&["eid"]));
    server.session(ALICE, "phone").token(only_sub).open().await.ping().await;
    let bound = eddsa(&server.files().token_key, &with("device_id", json!("phone")));
    server.session(ALICE, "phone").token(bound).open().await.ping().await;
}

#[tokio::test]
async fn a_token_that_is_not_signed_as_it_should_be_opens_nothing() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let files = server.files();
    let public = std::fs::read(&files.token_public).unwrap();
    let other = tempfile::tempdir().unwrap();
    let others_key = dev::ensure(other.path(), &[]).unwrap().token_key;
    let good = server.token(ALICE, None);
    let (head, signature) = (good.split('.').next().unwrap(), good.rsplit('.').next().unwrap());
    let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let es256 = EncodingKey::from_ec_der(p256.serialized_der());

    let none = |alg: &str| format!("{}.", unsigned(&json!({"alg": alg, "typ": "JWT"}), &claims()));
    let forged = [
        ("none", none("none")),
        ("None", none("None")),
        ("none without the last dot", unsigned(&json!({"alg": "none"}), &claims())),
        ("none with a signature", format!("{}.{signature}", unsigned(&json!({"alg": "none"}), &claims()))),
        ("no algorithm", format!("{}.{signature}", unsigned(&json!({"typ": "JWT"}), &claims()))),
        ("another server's key", sign(&others_key, ALICE, None, now_s(), HOUR)),
        ("HS256 with the public key as its secret", hs256(&public, &claims())),
        ("ES256, which no key of the server serves", {
            jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims(), &es256).unwrap()
        }),
        (
            "claims changed after signing",
            format!("{head}.{}.{signature}", BASE64.encode(with("n", json!(1)).to_string())),
        ),
        ("signature cut", good[..good.len() - 4].to_owned()),
        ("no signature", format!("{}.", good.rsplit_once('.').unwrap().0)),
        ("empty", String::new()),
        ("no token at all", "let me in".to_owned()),
        ("dots", "..".to_owned()),
        ("longer than any token", "a".repeat(9 * 1024)),
    ];
    for (what, token) in forged {
        assert_refused(what, server.session(ALICE, "phone").token(token)).await;
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn a_token_whose_claims_do_not_fit_opens_nothing() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let key = server.files().token_key;
    let unfit = [
        ("expired", with("exp", json!(now_s() - 31))),
        ("expired long ago", with("exp", json!(1))),
        ("without expiry", without(&["exp"])),
        ("an expiry in words", with("exp", json!("tomorrow"))),
        ("not valid yet", with("nbf", json!(now_s() + 3600))),
        ("for nobody", without(&["eid", "sub"])),
        ("for somebody else", with("eid", json!("mallory@localhost"))),
        ("for somebody else by sub", {
            let mut claims = without(&["eid"]);
            claims["sub"] = json!("mallory@localhost");
            claims
        }),
        ("for another device", with("device_id", json!("tablet"))),
        ("for a device in capitals", with("device_id", json!("PHONE"))),
    ];
    for (what, claims) in unfit {
        assert_refused(what, server.session(ALICE, "phone").token(eddsa(&key, &claims))).await;
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn clocks_may_differ_by_half_a_minute() {
    let server = TestServer::start().await;
    let key = server.files().token_key;
    // Well within the leeway of 30 s, so that the test holds on a slow machine.
    for claims in [with("exp", json!(now_s() - 5)), with("nbf", json!(now_s() + 20))] {
        server.session(ALICE, "phone").token(eddsa(&key, &claims)).open().await.ping().await;
    }
}

#[tokio::test]
async fn an_identity_that_is_none_signs_nobody_in() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let long = "d".repeat(65);
    for (eid, device) in [
        ("", "phone"),
        ("alice", "phone"),
        ("alice@", "phone"),
        ("a@b@c", "phone"),
        ("al ice@localhost", "phone"),
        (ALICE, ""),
        (ALICE, "my phone"),
        (ALICE, &long),
    ] {
        let mut open = server.session(ALICE, "phone");
        open.open.identity = Some(Identity { eid: eid.to_owned(), connection_resource_id: device.to_owned() });
        let (mut stranger, request_id) = open.attempt().await;
        stranger.expect_error(Lane::Control, 400, request_id).await;
        stranger.expect_close(CloseCode::Unauthenticated).await;
    }
    let mut open = server.session(ALICE, "phone");
    open.open.identity = None;
    let (mut stranger, request_id) = open.attempt().await;
    stranger.expect_error(Lane::Control, 400, request_id).await;
    stranger.expect_close(CloseCode::Unauthenticated).await;
    bystanders.assert_unharmed().await;
}
