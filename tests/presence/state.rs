//! A user's state over several devices, and what a newly opened presence lane gets.

use bimip::wire::proto::AwarenessNotification;
use bimip::wire::{Lane, Payload};

use super::common::{TestServer, identity};
use super::{
    ALICE, AWAY, BOB, BROADCAST, BUSY, CAROL, Canary, DO_NOT_BROADCAST, DO_NOT_DISTURB, IDLE, LANES, ONLINE, UNKNOWN,
    admit, ask, be, notification, notify, patient, scene, set, sign_in, tell, told,
};

#[tokio::test]
async fn online_if_any_device_is_else_idle() {
    let (server, mut phone, mut desk, mut bob) = scene().await;
    let mut canary = Canary::admitting(&server, &mut [&mut bob]).await;
    be(&mut phone, IDLE).await;
    canary.only_is_heard_by(&mut bob).await;
    assert_eq!(ask(&mut bob, ALICE).await.status, ONLINE);
    tell(&mut desk, IDLE).await;
    told(&mut bob, ALICE, IDLE).await;
    tell(&mut phone, ONLINE).await;
    told(&mut bob, ALICE, ONLINE).await;
    assert_eq!(ask(&mut bob, ALICE).await.status, ONLINE);
}

#[tokio::test]
async fn a_choice_holds_on_all_devices_until_one_sends_online() {
    let (server, mut phone, mut desk, mut bob) = scene().await;
    for (choice, name) in [(AWAY, "tablet-1"), (BUSY, "tablet-2"), (DO_NOT_DISTURB, "tablet-3")] {
        tell(&mut phone, choice).await;
        told(&mut bob, ALICE, choice).await;
        // The other devices of the owner see it too.
        told(&mut desk, ALICE, choice).await;
        // Neither another device's IDLE nor a new device changes it.
        be(&mut desk, IDLE).await;
        sign_in(&server, ALICE, name).await;
        assert_eq!(ask(&mut bob, ALICE).await.status, choice);
        tell(&mut desk, ONLINE).await;
        told(&mut bob, ALICE, ONLINE).await;
        told(&mut phone, ALICE, ONLINE).await;
    }
    bob.expect_nothing_more(Lane::Presence).await;
}

#[tokio::test]
async fn a_choice_outlives_all_devices() {
    let server = TestServer::with(super::impatient).await;
    let mut bob = sign_in(&server, BOB, "phone").await;
    let mut phone = sign_in(&server, ALICE, "phone").await;
    admit(&mut phone, BOB, None).await;
    told(&mut bob, ALICE, ONLINE).await;
    tell(&mut phone, BUSY).await;
    told(&mut bob, ALICE, BUSY).await;
    phone.leave();
    told(&mut bob, ALICE, super::OFFLINE).await;
    // Keep this device connected until bob is told.
    let mut desk = sign_in(&server, ALICE, "desk").await;
    desk.ping().await;
    told(&mut bob, ALICE, BUSY).await;
}

#[tokio::test]
async fn opening_the_lane_tells_of_each_visible_contact_that_is_not_offline() {
    let server = TestServer::with(patient).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    let mut carol = sign_in(&server, CAROL, "phone").await;
    let mut dave = sign_in(&server, "dave@localhost", "phone").await;
    // Not announced: erin, who does not list bob; dave, who hides; gone, who has left.
    let _erin = sign_in(&server, "erin@localhost", "phone").await;
    let mut gone = sign_in(&server, "gone@localhost", "phone").await;
    for owner in [&mut alice, &mut carol, &mut dave, &mut gone] {
        admit(owner, BOB, None).await;
    }
    be(&mut carol, AWAY).await;
    be(&mut dave, super::INVISIBLE).await;
    let logout = bimip::wire::proto::Logout { entity: Some(gone.identity()), status: 1, r#type: 1, timestamp: 0 };
    gone.send(Lane::Control, Payload::Logout(logout)).await;
    gone.expect_close(bimip::wire::CloseCode::Goodbye).await;

    // The presence lane is opened together with the sign-in, and after it.
    for late in [false, true] {
        let lanes = if late { &LANES[..1] } else { &LANES[..] };
        let mut bob = server.session(BOB, if late { "late" } else { "phone" }).lanes(lanes).open().await;
        if late {
            bob.ping().await;
            bob.open(Lane::Presence).await;
        }
        let mut heard = Vec::new();
        for _ in 0..2 {
            let told = bob.expect::<AwarenessNotification>(Lane::Presence).await;
            heard.push((told.from.clone().unwrap().eid, told.status));
        }
        heard.sort();
        assert_eq!(heard, [(ALICE.to_owned(), ONLINE), (CAROL.to_owned(), AWAY)]);
        bob.expect_nothing_more(Lane::Presence).await;
    }
}

#[tokio::test]
async fn nothing_is_pushed_without_a_presence_lane() {
    let (server, mut phone, _desk, mut bob) = scene().await;
    let mut laneless = server.sign_in(BOB, "laneless").await;
    tell(&mut phone, AWAY).await;
    told(&mut bob, ALICE, AWAY).await;
    laneless.ping().await;
    laneless.expect_nothing_more(Lane::Chat).await;
}

#[tokio::test]
async fn a_client_may_not_set_unknown_or_what_does_not_exist() {
    let (_server, mut phone, _desk, mut bob) = scene().await;
    for status in [0, UNKNOWN, 9, -1, i32::MAX] {
        let request_id = tell(&mut phone, status).await;
        phone.expect_error(Lane::Presence, 400, request_id).await;
    }
    for awareness_intention in [3, -1] {
        let bad = AwarenessNotification { awareness_intention, ..notification(&phone, AWAY) };
        let request_id = notify(&mut phone, bad).await;
        phone.expect_error(Lane::Presence, 400, request_id).await;
    }
    assert_eq!(ask(&mut bob, ALICE).await.status, ONLINE);
}

#[tokio::test]
async fn an_intention_of_zero_is_broadcast() {
    let (_server, mut phone, _desk, mut bob) = scene().await;
    for (awareness_intention, status) in [(0, AWAY), (BROADCAST, BUSY)] {
        let change = AwarenessNotification { awareness_intention, ..notification(&phone, status) };
        set(&mut phone, change).await;
        assert_eq!(told(&mut bob, ALICE, status).await.awareness_intention, BROADCAST);
        assert_eq!(ask(&mut bob, ALICE).await.awareness_intention, BROADCAST);
    }
    let silent = AwarenessNotification { awareness_intention: DO_NOT_BROADCAST, ..notification(&phone, BUSY) };
    set(&mut phone, silent).await;
    assert_eq!(told(&mut bob, ALICE, super::OFFLINE).await.awareness_intention, BROADCAST, "or it would tell");
}

#[tokio::test]
async fn ones_own_devices_may_ask_and_what_a_client_claims_of_times_counts_for_nothing() {
    let (_server, mut phone, mut desk, mut bob) = scene().await;
    let claimed = AwarenessNotification {
        last_seen: 1,
        to: Some(bimip::wire::Identity::default()),
        from: Some(identity("ALICE@localhost")),
        ..notification(&phone, AWAY)
    };
    let before = super::common::now_ms();
    set(&mut phone, claimed).await;
    assert!(told(&mut bob, ALICE, AWAY).await.last_seen >= before);
    told(&mut desk, ALICE, AWAY).await;
    assert_eq!(ask(&mut desk, ALICE).await.status, AWAY);
    assert_eq!(ask(&mut phone, ALICE).await.status, AWAY);
}
