//! INVISIBLE and DO_NOT_BROADCAST: others see OFFLINE with a frozen `last_seen`, and delivery does not change.

use bimip::wire::proto::AwarenessNotification;
use bimip::wire::{AckStatus, Lane};

use super::common::{Got, Raw, now_ms, text_of};
use super::{
    ALICE, AWAY, BOB, BROADCAST, Canary, DO_NOT_BROADCAST, IDLE, INVISIBLE, OFFLINE, ONLINE, ask, be, notification,
    scene, set, sign_in, tell, told,
};

/// Asserts that alice's devices still get messages, and that bob still sees her OFFLINE with the `last_seen` of `told`.
async fn stays_hidden(told: &Got<AwarenessNotification>, phone: &mut Raw, desk: &mut Raw, bob: &mut Raw) {
    let say = bob.say(ALICE, &format!("while-hidden-{}", bob.last_sequence), "are you there?").await;
    bob.answer(&say).await;
    for device in [&mut *phone, &mut *desk] {
        let message = device.hear().await;
        assert_eq!(text_of(&message), "are you there?", "hiding changes nothing in what is delivered");
    }
    phone.ping().await;
    let asked = ask(bob, ALICE).await;
    assert_eq!((asked.status, asked.last_seen), (OFFLINE, told.last_seen), "frozen");
    assert_eq!((asked.latitude, asked.longitude, asked.awareness_intention), (None, None, BROADCAST));
}

#[tokio::test]
async fn an_invisible_user_is_offline_to_others_with_a_frozen_last_seen() {
    let (server, mut phone, mut desk, mut bob) = scene().await;
    let mut canary = Canary::admitting(&server, &mut [&mut bob]).await;
    let before = now_ms();
    tell(&mut phone, INVISIBLE).await;
    let gone = told(&mut bob, ALICE, OFFLINE).await;
    assert!((before..=now_ms()).contains(&gone.last_seen), "{gone:?}");
    // Alice's own devices see the truth.
    told(&mut desk, ALICE, INVISIBLE).await;
    assert_eq!(ask(&mut desk, ALICE).await.status, INVISIBLE);
    stays_hidden(&gone, &mut phone, &mut desk, &mut bob).await;
    be(&mut desk, IDLE).await;
    stays_hidden(&gone, &mut phone, &mut desk, &mut bob).await;
    // She is hidden from a device that signs in later, too.
    let mut late = sign_in(&server, BOB, "late").await;
    told(&mut late, Canary::EID, ONLINE).await;
    assert_eq!(ask(&mut late, ALICE).await.last_seen, gone.last_seen);
    canary.only_is_heard_by(&mut bob).await;
    tell(&mut desk, ONLINE).await;
    told(&mut bob, ALICE, ONLINE).await;
    // Each contact has its own notification interval, so either may come first.
    let mut heard = [(); 2].map(|()| None);
    for heard in &mut heard {
        let told = late.expect::<AwarenessNotification>(Lane::Presence).await.into_body();
        *heard = Some((told.from.unwrap().eid, told.status));
    }
    heard.sort();
    assert_eq!(heard.map(Option::unwrap), [(ALICE.to_owned(), ONLINE), (Canary::EID.to_owned(), super::BUSY)]);
}

#[tokio::test]
async fn do_not_broadcast_hides_until_that_device_broadcasts_again() {
    let (server, mut phone, mut desk, mut bob) = scene().await;
    let mut canary = Canary::admitting(&server, &mut [&mut bob]).await;
    let silent = AwarenessNotification { awareness_intention: DO_NOT_BROADCAST, ..notification(&phone, ONLINE) };
    set(&mut phone, silent).await;
    let gone = told(&mut bob, ALICE, OFFLINE).await;
    assert_eq!(told(&mut desk, ALICE, ONLINE).await.awareness_intention, DO_NOT_BROADCAST);
    stays_hidden(&gone, &mut phone, &mut desk, &mut bob).await;
    // A notification from another device does not lift it.
    be(&mut desk, AWAY).await;
    told(&mut phone, ALICE, AWAY).await;
    stays_hidden(&gone, &mut phone, &mut desk, &mut bob).await;
    canary.only_is_heard_by(&mut bob).await;
    let loud = AwarenessNotification { awareness_intention: BROADCAST, ..notification(&phone, IDLE) };
    set(&mut phone, loud).await;
    assert!(told(&mut bob, ALICE, AWAY).await.last_seen >= gone.last_seen);
}

#[tokio::test]
async fn acknowledgments_and_chat_do_not_betray_a_hidden_user_in_presence() {
    let (server, mut phone, mut desk, mut bob) = scene().await;
    let mut canary = Canary::admitting(&server, &mut [&mut bob]).await;
    tell(&mut phone, INVISIBLE).await;
    let gone = told(&mut bob, ALICE, OFFLINE).await;
    told(&mut desk, ALICE, INVISIBLE).await;
    let update = bob.say(ALICE, "local-1", "hello").await;
    bob.answer(&update).await;
    let message = phone.hear().await;
    phone.acknowledge(&message, AckStatus::Read).await;
    phone.recv(Lane::Chat).await;
    canary.only_is_heard_by(&mut bob).await;
    assert_eq!(ask(&mut bob, ALICE).await.last_seen, gone.last_seen);
}
