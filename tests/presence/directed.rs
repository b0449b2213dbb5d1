//! An awareness notification to one user alone.

use bimip::wire::Lane;
use bimip::wire::proto::AwarenessNotification;

use super::common::{Raw, TestServer, identity, now_ms};
use super::{
    ALICE, AWAY, BOB, BUSY, CAROL, Canary, DO_NOT_BROADCAST, INVISIBLE, OFFLINE, ONLINE, UNKNOWN, admit, ask, be,
    block, device_of, notification, notify, patient, scene, sign_in, told,
};

#[tokio::test]
async fn it_reaches_that_user_alone_on_all_devices_and_is_not_stored() {
    let server = TestServer::with(patient).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    let mut bob = sign_in(&server, BOB, "phone").await;
    let mut desk = sign_in(&server, BOB, "desk").await;
    let mut carol = sign_in(&server, CAROL, "phone").await;
    admit(&mut alice, CAROL, None).await;
    told(&mut carol, ALICE, ONLINE).await;
    let mut canary = Canary::admitting(&server, &mut [&mut carol]).await;
    // Bob is not on alice's list: a directed notification needs no subscription.
    let word = AwarenessNotification {
        to: Some(identity("BOB@localhost")),
        latitude: Some(1.5),
        longitude: Some(2.5),
        ..notification(&alice, BUSY)
    };
    notify(&mut alice, word).await;
    for device in [&mut bob, &mut desk] {
        // Bob sees alice's location only if her list shares it with him.
        let word = told(device, ALICE, BUSY).await;
        assert_eq!((word.latitude, word.longitude), (None, None));
        assert_eq!(ask(device, ALICE).await.status, UNKNOWN);
    }
    canary.only_is_heard_by(&mut carol).await;
    let word = AwarenessNotification {
        to: Some(identity(CAROL)),
        latitude: Some(1.5),
        longitude: Some(2.5),
        ..notification(&alice, BUSY)
    };
    notify(&mut alice, word).await;
    let word = told(&mut carol, ALICE, BUSY).await;
    assert_eq!((word.latitude, word.longitude), (Some(1.5), Some(2.5)));
    let asked = ask(&mut carol, ALICE).await;
    assert_eq!((asked.status, asked.latitude), (ONLINE, None));
}

#[tokio::test]
async fn it_is_dropped_where_one_has_blocked_the_other() {
    let server = TestServer::with(patient).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    let mut bob = sign_in(&server, BOB, "phone").await;
    let mut canary = Canary::admitting(&server, &mut [&mut bob]).await;
    let word = |alice: &Raw, status| AwarenessNotification { to: Some(identity(BOB)), ..notification(alice, status) };
    let allowed = word(&alice, AWAY);
    notify(&mut alice, allowed).await;
    told(&mut bob, ALICE, AWAY).await;
    for alice_blocks in [true, false] {
        match alice_blocks {
            true => block(&mut alice, BOB, true).await,
            false => block(&mut bob, ALICE, true).await,
        }
        for _ in 0..20 {
            let dropped = word(&alice, BUSY);
            notify(&mut alice, dropped).await;
        }
        // Alice gets no error, and bob gets nothing.
        alice.expect_nothing_more(Lane::Presence).await;
        canary.only_is_heard_by(&mut bob).await;
        if alice_blocks {
            // Both block now; then bob alone.
            block(&mut bob, ALICE, true).await;
            block(&mut alice, BOB, false).await;
        }
    }
    canary.only_is_heard_by(&mut bob).await;
}

#[tokio::test]
async fn who_hides_from_somebody_seems_to_go() {
    // Bob is on alice's list, which shares her location with him.
    let (_server, mut alice, _desk, mut bob) = scene().await;
    let hides = [(INVISIBLE, 0), (BUSY, DO_NOT_BROADCAST)];
    let word = |alice: &Raw, (status, awareness_intention)| AwarenessNotification {
        to: Some(identity(BOB)),
        awareness_intention,
        latitude: Some(1.0),
        longitude: Some(1.0),
        ..notification(alice, status)
    };
    for how in hides {
        let hidden = word(&alice, how);
        notify(&mut alice, hidden).await;
        let told = told(&mut bob, ALICE, OFFLINE).await;
        assert_eq!((told.latitude, told.longitude, told.awareness_intention), (None, None, 2));
    }
    // Alice's own state has not changed.
    assert_eq!(ask(&mut alice, ALICE).await.status, ONLINE);
    // Who hides from everybody was seen last when that began.
    be(&mut alice, INVISIBLE).await;
    let gone = told(&mut bob, ALICE, OFFLINE).await.last_seen;
    while now_ms() <= gone {
        tokio::task::yield_now().await;
    }
    for how in hides {
        let hidden = word(&alice, how);
        notify(&mut alice, hidden).await;
        assert_eq!(told(&mut bob, ALICE, OFFLINE).await.last_seen, gone);
    }
}

#[tokio::test]
async fn a_recipient_that_is_none_is_refused() {
    let server = TestServer::with(patient).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    for to in [identity("bob"), device_of("", "phone"), identity("b ob@localhost")] {
        let word = AwarenessNotification { to: Some(to), ..notification(&alice, BUSY) };
        let request_id = notify(&mut alice, word).await;
        alice.expect_error(Lane::Presence, 400, request_id).await;
    }
    // A notification to a user who does not exist looks like one that was delivered.
    let word = AwarenessNotification { to: Some(identity("nobody@localhost")), ..notification(&alice, BUSY) };
    notify(&mut alice, word).await;
    alice.expect_nothing_more(Lane::Presence).await;
}
