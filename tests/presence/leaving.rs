//! How a user goes OFFLINE: after a grace when a connection is lost, at once on Logout.

use bimip::wire::proto::{Logout, TokenRevokeRequest, TokenRevokeResponse};
use bimip::wire::{CloseCode, Lane, Payload};

use super::common::{Raw, TestServer, now_ms};
use super::{
    ALICE, BOB, CAROL, Canary, DO_NOT_BROADCAST, IDLE, OFFLINE, ONLINE, admit, ask, be, impatient, notification,
    patient, set, sign_in, tell, told,
};

async fn scene(server: &TestServer) -> (Raw, Raw) {
    let mut alice = sign_in(server, ALICE, "phone").await;
    let mut bob = sign_in(server, BOB, "phone").await;
    admit(&mut alice, BOB, None).await;
    told(&mut bob, ALICE, ONLINE).await;
    (alice, bob)
}

async fn log_out(raw: &mut Raw, status: i32) {
    let logout = Logout { entity: Some(raw.identity()), r#type: 1, status, timestamp: now_ms() };
    raw.send(Lane::Control, Payload::Logout(logout)).await;
    assert_eq!(raw.expect::<Logout>(Lane::Control).await.status, 3);
    raw.expect_close(CloseCode::Goodbye).await;
}

#[tokio::test]
async fn a_lost_connection_within_the_grace_is_not_told() {
    let server = TestServer::with(patient).await;
    let (mut alice, mut bob) = scene(&server).await;
    let mut canary = Canary::admitting(&server, &mut [&mut bob]).await;
    be(&mut alice, IDLE).await;
    told(&mut bob, ALICE, IDLE).await;
    for _ in 0..5 {
        alice.leave();
        canary.only_is_heard_by(&mut bob).await;
        // The device's state from before a short loss still holds.
        alice = sign_in(&server, ALICE, "phone").await;
        assert_eq!(ask(&mut bob, ALICE).await.status, IDLE);
    }
    canary.only_is_heard_by(&mut bob).await;
}

#[tokio::test]
async fn after_the_grace_the_user_is_offline_since_the_loss() {
    let server = TestServer::with(|config| {
        patient(config);
        config.presence.offline_grace_ms = 200;
    })
    .await;
    let (alice, mut bob) = scene(&server).await;
    let before = now_ms();
    alice.leave();
    let gone = told(&mut bob, ALICE, OFFLINE).await;
    assert!((before..=now_ms() - 190).contains(&gone.last_seen), "at the loss, not at the end of the grace: {gone:?}");
    assert_eq!(ask(&mut bob, ALICE).await.last_seen, gone.last_seen);
    let _back = sign_in(&server, ALICE, "phone").await;
    told(&mut bob, ALICE, ONLINE).await;
}

#[tokio::test]
async fn the_last_device_decides() {
    let server = TestServer::with(impatient).await;
    let (phone, mut bob) = scene(&server).await;
    let mut desk = sign_in(&server, ALICE, "desk").await;
    be(&mut desk, IDLE).await;
    phone.leave();
    told(&mut bob, ALICE, IDLE).await;
    desk.leave();
    told(&mut bob, ALICE, OFFLINE).await;
}

#[tokio::test]
async fn a_logout_and_a_disconnect_are_told_at_once() {
    let server = TestServer::with(patient).await;
    let (mut alice, mut bob) = scene(&server).await;
    for (status, device) in [(1, "desk"), (0, "desk-2"), (3, "desk-3"), (4, "desk-4")] {
        let before = now_ms();
        log_out(&mut alice, status).await;
        let gone = told(&mut bob, ALICE, OFFLINE).await;
        assert!((before..=now_ms()).contains(&gone.last_seen), "{gone:?}");
        alice = sign_in(&server, ALICE, device).await;
        told(&mut bob, ALICE, ONLINE).await;
    }
    // A device that leaves changes nothing while another device is connected.
    let mut canary = Canary::admitting(&server, &mut [&mut bob]).await;
    let mut other = sign_in(&server, ALICE, "other").await;
    log_out(&mut other, 1).await;
    canary.only_is_heard_by(&mut bob).await;
}

#[tokio::test]
async fn a_replaced_connection_does_not_end_its_successors_presence() {
    let server = TestServer::with(|config| {
        patient(config);
        // Longer than a sign-in takes, because the older connection may end before the newer one counts.
        config.presence.offline_grace_ms = 1_500;
    })
    .await;
    let (mut alice, mut bob) = scene(&server).await;
    let mut carol = sign_in(&server, CAROL, "phone").await;
    admit(&mut carol, BOB, None).await;
    told(&mut bob, CAROL, ONLINE).await;
    for _ in 0..5 {
        let next = sign_in(&server, ALICE, "phone").await;
        alice.expect_close(CloseCode::Replaced).await;
        alice = next;
        alice.ping().await;
    }
    // Carol's connection is lost after the last of alice's replaced ones, so a wrong grace of those would have ended before
    // carol's does.
    carol.leave();
    told(&mut bob, CAROL, OFFLINE).await;
    assert_eq!(ask(&mut bob, ALICE).await.status, ONLINE);
}

#[tokio::test]
async fn signing_out_takes_the_devices_silence_back_and_leaving_for_now_does_not() {
    let server = TestServer::with(patient).await;
    let (mut alice, mut bob) = scene(&server).await;
    let mut phone = sign_in(&server, ALICE, "silent").await;
    for (status, then) in [(1, OFFLINE), (3, ONLINE)] {
        let silent = bimip::wire::proto::AwarenessNotification {
            awareness_intention: DO_NOT_BROADCAST,
            ..notification(&phone, ONLINE)
        };
        set(&mut phone, silent).await;
        if status == 1 {
            told(&mut bob, ALICE, OFFLINE).await;
        }
        log_out(&mut phone, status).await;
        if then == ONLINE {
            told(&mut bob, ALICE, ONLINE).await;
        }
        assert_eq!(ask(&mut bob, ALICE).await.status, then);
        phone = sign_in(&server, ALICE, "silent").await;
    }
    tell(&mut alice, ONLINE).await;
}

#[tokio::test]
async fn a_lost_device_that_is_revoked_hides_its_user_no_longer() {
    let server = TestServer::with(patient).await;
    let (mut alice, mut bob) = scene(&server).await;
    let mut lost = sign_in(&server, ALICE, "lost").await;
    let silent = bimip::wire::proto::AwarenessNotification {
        awareness_intention: DO_NOT_BROADCAST,
        ..notification(&lost, ONLINE)
    };
    set(&mut lost, silent).await;
    told(&mut bob, ALICE, OFFLINE).await;
    let request = TokenRevokeRequest { to: Some(lost.identity()), r#type: 1, ..TokenRevokeRequest::default() };
    alice.send(Lane::Control, Payload::TokenRevokeRequest(request)).await;
    assert_eq!(alice.expect::<TokenRevokeResponse>(Lane::Control).await.status, 1);
    told(&mut bob, ALICE, ONLINE).await;
    lost.expect_close(CloseCode::Revoked).await;
}

#[tokio::test]
async fn closing_the_lane_ends_what_is_told_and_not_the_users_own_presence() {
    let server = TestServer::with(patient).await;
    let (mut alice, mut bob) = scene(&server).await;
    admit(&mut bob, ALICE, None).await;
    told(&mut alice, BOB, ONLINE).await;
    bob.leave();
    tell(&mut alice, IDLE).await;
    let mut bob = sign_in(&server, BOB, "phone").await;
    told(&mut bob, ALICE, IDLE).await;
    assert_eq!(ask(&mut alice, BOB).await.status, ONLINE);
}
