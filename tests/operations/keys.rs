//! A key that is removed from the JWKS: its sessions go on, it admits no new ones, and each session can still be revoked.

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bimip::auth::dev;
use bimip::wire::proto::{TokenRevokeRequest, TokenRevokeResponse};
use bimip::wire::{CloseCode, Lane, Payload};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;

use crate::common::{Raw, TestServer, Transport, identity, now_ms, now_s, scratch, sign};

const ALICE: &str = "alice@localhost";
const HOUR: Duration = Duration::from_secs(3600);
const SUCCESS: i32 = 1;
const FAILED: i32 = 2;

/// A JWKS with this one Ed25519 key, whose bytes are the last 32 of the DER (RFC 8410, 4).
fn jwks(public: &Path, id: &str) -> String {
    let der = SubjectPublicKeyInfoDer::from_pem_file(public).unwrap();
    let bytes = &der[der.len() - 32..];
    let x = BASE64_URL_SAFE_NO_PAD.encode(bytes);
    serde_json::json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": id, "x": x }] }).to_string()
}

async fn revoke(raw: &mut Raw, device: &str, token: &str) -> i32 {
    let mut to = identity(ALICE);
    to.connection_resource_id = device.to_owned();
    let request = TokenRevokeRequest { to: Some(to), token: token.to_owned(), r#type: 1, timestamp: now_ms(), rtt: 0 };
    raw.send(Lane::Control, Payload::TokenRevokeRequest(request)).await;
    raw.expect::<TokenRevokeResponse>(Lane::Control).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_key_that_is_gone_go_on_and_fall_when_their_device_or_user_is_revoked() {
    let folder = scratch();
    let [first, second] = ["first", "second"].map(|name| dev::ensure(&folder.path().join(name), &[]).unwrap());
    let file = folder.path().join("jwks.json");
    fs::write(&file, jwks(&first.token_public, "1")).unwrap();
    let server = TestServer::with(|config| config.auth.jwks = Some(file.clone())).await;
    let of = |key: &Path| sign(key, ALICE, None, now_s(), HOUR);
    let (phones, tablets) = (of(&first.token_key), of(&first.token_key));
    let open =
        async |device: &str, over, token: &str| server.session(ALICE, device).over(over).token(token).open().await;
    let mut phone = open("phone", Transport::Quic, &phones).await;
    let mut tablet = open("tablet", Transport::Tcp, &tablets).await;

    fs::write(&file, jwks(&second.token_public, "2")).unwrap();
    assert!(server.reload().await);
    phone.ping().await;
    tablet.ping().await;
    let (mut late, request_id) = server.session(ALICE, "late").token(phones.clone()).attempt().await;
    late.expect_error(Lane::Control, 401, request_id).await;

    let (desks, watches) = (of(&second.token_key), of(&second.token_key));
    let mut desk = open("desk", Transport::Quic, &desks).await;
    let (mut watch, mut ring) =
        (open("watch", Transport::Tcp, &watches).await, open("ring", Transport::Quic, &watches).await);
    // A token whose key is in the JWKS can be revoked by itself.
    assert_eq!(revoke(&mut desk, "", &watches).await, SUCCESS);
    watch.expect_close(CloseCode::Revoked).await;
    ring.expect_close(CloseCode::Revoked).await;
    // A token whose key is gone can no longer be verified and so not be revoked by itself, but its device can be revoked.
    assert_eq!(revoke(&mut desk, "", &phones).await, FAILED);
    phone.ping().await;
    assert_eq!(revoke(&mut desk, "phone", "").await, SUCCESS);
    phone.expect_close(CloseCode::Revoked).await;
    tablet.ping().await;
    assert_eq!(revoke(&mut desk, "", "").await, SUCCESS);
    tablet.expect_close(CloseCode::Revoked).await;
    desk.expect_close(CloseCode::Revoked).await;

    // The revocation stays: the tokens are refused even when their key is back.
    fs::write(&file, jwks(&first.token_public, "1")).unwrap();
    assert!(server.reload().await);
    for (device, token) in [("phone", phones), ("tablet", tablets)] {
        let (mut raw, request_id) = server.session(ALICE, device).token(token).attempt().await;
        raw.expect_error(Lane::Control, 401, request_id).await;
        raw.expect_close(CloseCode::Unauthenticated).await;
    }
}
