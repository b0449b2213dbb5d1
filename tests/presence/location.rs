//! Location: shown only to those who may see it, validated, and kept for a limited time.

use bimip::wire::Lane;
use bimip::wire::proto::AwarenessNotification;

use super::common::{Raw, TestServer};
use super::{
    ALICE, AWAY, BOB, BUSY, CAROL, INVISIBLE, OFFLINE, ONLINE, admit, ask, be, notification, notify, patient, set,
    sign_in, tell, told,
};

fn at(from: &Raw, status: i32, latitude: f64, longitude: f64) -> AwarenessNotification {
    let (latitude, longitude) = (Some(latitude), Some(longitude));
    AwarenessNotification { latitude, longitude, ..notification(from, status) }
}

const HERE: (Option<f64>, Option<f64>) = (Some(48.2), Some(-16.4));
const NOWHERE: (Option<f64>, Option<f64>) = (None, None);

/// Alice, bob who may see her location, and carol who may not.
async fn scene(server: &TestServer) -> (Raw, Raw, Raw) {
    let mut alice = sign_in(server, ALICE, "phone").await;
    let mut bob = sign_in(server, BOB, "phone").await;
    let mut carol = sign_in(server, CAROL, "phone").await;
    admit(&mut alice, BOB, None).await;
    admit(&mut alice, CAROL, Some(false)).await;
    told(&mut bob, ALICE, ONLINE).await;
    told(&mut carol, ALICE, ONLINE).await;
    (alice, bob, carol)
}

#[tokio::test]
async fn only_those_see_it_with_whom_it_is_shared() {
    let server = TestServer::with(patient).await;
    let (mut alice, mut bob, mut carol) = scene(&server).await;
    let here = at(&alice, AWAY, 48.2, -16.4);
    notify(&mut alice, here).await;
    let told_bob = told(&mut bob, ALICE, AWAY).await;
    assert_eq!((told_bob.latitude, told_bob.longitude), HERE);
    let told_carol = told(&mut carol, ALICE, AWAY).await;
    assert_eq!((told_carol.latitude, told_carol.longitude), NOWHERE);
    let (asked_bob, asked_carol) = (ask(&mut bob, ALICE).await, ask(&mut carol, ALICE).await);
    assert_eq!((asked_bob.latitude, asked_bob.longitude), HERE);
    assert_eq!((asked_carol.latitude, asked_carol.longitude), NOWHERE);
    // A notification without a location keeps the earlier one. A change of `share_location` takes effect at once.
    tell(&mut alice, BUSY).await;
    assert_eq!(told(&mut bob, ALICE, BUSY).await.latitude, HERE.0);
    told(&mut carol, ALICE, BUSY).await;
    admit(&mut alice, BOB, Some(false)).await;
    assert_eq!(told(&mut bob, ALICE, BUSY).await.latitude, None);
    admit(&mut alice, CAROL, Some(true)).await;
    assert_eq!(told(&mut carol, ALICE, BUSY).await.latitude, HERE.0);
    assert_eq!(ask(&mut bob, ALICE).await.latitude, None);
}

#[tokio::test]
async fn places_that_do_not_exist_are_refused() {
    let server = TestServer::with(patient).await;
    let (mut alice, mut bob, _carol) = scene(&server).await;
    let mut refused = Vec::new();
    for bad in [90.000_001, -90.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
        refused.push((Some(bad), Some(0.0)));
    }
    for bad in [180.000_001, -180.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e300] {
        refused.push((Some(0.0), Some(bad)));
    }
    refused.extend([(Some(1.0), None), (None, Some(1.0))]);
    for (latitude, longitude) in refused {
        let bad = AwarenessNotification { latitude, longitude, ..notification(&alice, AWAY) };
        let request_id = notify(&mut alice, bad).await;
        let error = alice.expect_error(Lane::Presence, 400, request_id).await;
        assert_eq!(error.route, "awareness_notification", "{latitude:?} {longitude:?}");
    }
    assert_eq!(ask(&mut bob, ALICE).await.status, ONLINE, "nothing of what was refused has been taken");
    for (latitude, longitude) in [(90.0, 180.0), (-90.0, -180.0), (0.0, 0.0), (-0.0, 0.0)] {
        let good = at(&alice, ONLINE, latitude, longitude);
        set(&mut alice, good).await;
        let asked = ask(&mut alice, ALICE).await;
        assert_eq!((asked.latitude, asked.longitude), (Some(latitude), Some(longitude)));
    }
}

#[tokio::test]
async fn a_hiding_user_is_nowhere_and_was_nowhere_afterwards() {
    let server = TestServer::with(patient).await;
    let (mut alice, mut bob, _carol) = scene(&server).await;
    let here = at(&alice, ONLINE, 48.2, -16.4);
    set(&mut alice, here).await;
    assert_eq!(told(&mut bob, ALICE, ONLINE).await.latitude, HERE.0);
    let hidden = at(&alice, INVISIBLE, 48.2, -16.4);
    set(&mut alice, hidden).await;
    assert_eq!(told(&mut bob, ALICE, OFFLINE).await.latitude, None);
    assert_eq!(ask(&mut bob, ALICE).await.latitude, None);
    be(&mut alice, ONLINE).await;
    assert_eq!(told(&mut bob, ALICE, ONLINE).await.latitude, None);
}

#[tokio::test]
async fn it_runs_out_and_those_who_saw_it_are_told() {
    let server = TestServer::with(|config| {
        patient(config);
        config.presence.location_kept_ms = 300;
    })
    .await;
    let (mut alice, mut bob, mut carol) = scene(&server).await;
    let here = at(&alice, AWAY, 48.2, -16.4);
    notify(&mut alice, here).await;
    assert_eq!(told(&mut bob, ALICE, AWAY).await.latitude, HERE.0);
    assert_eq!(told(&mut bob, ALICE, AWAY).await.latitude, None);
    told(&mut carol, ALICE, AWAY).await;
    assert_eq!(ask(&mut alice, ALICE).await.latitude, None, "it is not held");
    // Carol never saw the location and is not told that it ran out.
    carol.expect_nothing_more(Lane::Presence).await;
}

#[tokio::test]
async fn it_is_held_in_memory_only() {
    let server = TestServer::with(patient).await;
    let (mut alice, mut bob, _carol) = scene(&server).await;
    let here = at(&alice, AWAY, 48.2, -16.4);
    set(&mut alice, here).await;
    assert_eq!(told(&mut bob, ALICE, AWAY).await.latitude, HERE.0);
    let server = server.restart().await;
    let mut bob = sign_in(&server, BOB, "phone").await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    assert_eq!(told(&mut bob, ALICE, ONLINE).await.latitude, None);
    assert_eq!(ask(&mut alice, ALICE).await.latitude, None);
}
