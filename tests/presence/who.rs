//! Who may see whom, and that nobody else learns anything.

use bimip::wire::proto::AwarenessResponse;
use prost::Message as _;

use super::common::{Raw, TestServer};
use super::{
    ALICE, AWAY, BOB, BUSY, CAROL, Canary, OFFLINE, ONLINE, UNKNOWN, admit, ask, be, block, patient, sign_in, tell,
    told, withdraw,
};

/// A response without the fields that always differ: the user asked about, and the time.
fn bare(response: &AwarenessResponse) -> Vec<u8> {
    assert!(response.timestamp > 0);
    AwarenessResponse { from: None, timestamp: 0, ..response.clone() }.encode_to_vec()
}

/// Asserts that the answer is the same as for a user who does not exist.
async fn sees_nothing(raw: &mut Raw, about: &str) {
    let nobody = ask(raw, "nobody@localhost").await;
    let answer = ask(raw, about).await;
    assert_eq!(bare(&answer), bare(&nobody), "{answer:?}");
    assert_eq!((answer.status, answer.last_seen, answer.awareness_intention), (UNKNOWN, 0, 0));
}

#[tokio::test]
async fn a_stranger_gets_the_same_answer_for_those_who_exist_and_those_who_do_not() {
    let server = TestServer::with(patient).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    let mut carol = sign_in(&server, CAROL, "phone").await;
    be(&mut carol, AWAY).await;
    let mut bob = sign_in(&server, BOB, "phone").await;
    for about in [ALICE, CAROL, "nobody-else@localhost", "somebody@elsewhere.example"] {
        sees_nothing(&mut bob, about).await;
    }
    // Bob sees nothing of alice although she is on his list and others are on hers.
    admit(&mut bob, ALICE, None).await;
    told(&mut alice, BOB, ONLINE).await;
    admit(&mut alice, CAROL, None).await;
    sees_nothing(&mut bob, ALICE).await;
    // Alice's notifications do not reach him either.
    let mut canary = Canary::admitting(&server, &mut [&mut bob]).await;
    tell(&mut alice, BUSY).await;
    told(&mut carol, ALICE, ONLINE).await;
    told(&mut carol, ALICE, BUSY).await;
    canary.only_is_heard_by(&mut bob).await;
}

#[tokio::test]
async fn admitting_a_connected_user_shows_the_owner_at_once_on_every_device() {
    let server = TestServer::with(patient).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    let mut phone = sign_in(&server, BOB, "phone").await;
    let mut desk = sign_in(&server, BOB, "desk").await;
    sees_nothing(&mut phone, ALICE).await;
    admit(&mut alice, BOB, None).await;
    for device in [&mut phone, &mut desk] {
        told(device, ALICE, ONLINE).await;
        assert_eq!(ask(device, ALICE).await.status, ONLINE);
    }
    // A list works one way only.
    sees_nothing(&mut alice, BOB).await;
}

#[tokio::test]
async fn who_withdraws_seems_to_leave_at_once() {
    let server = TestServer::with(patient).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    let mut bob = sign_in(&server, BOB, "phone").await;
    let mut canary = Canary::admitting(&server, &mut [&mut bob]).await;
    for _ in 0..3 {
        admit(&mut alice, BOB, None).await;
        told(&mut bob, ALICE, ONLINE).await;
        withdraw(&mut alice, BOB).await;
        let gone = told(&mut bob, ALICE, OFFLINE).await;
        assert_eq!((gone.last_seen, gone.latitude), (0, None));
        sees_nothing(&mut bob, ALICE).await;
        be(&mut alice, AWAY).await;
        be(&mut alice, ONLINE).await;
        canary.only_is_heard_by(&mut bob).await;
    }
}

#[tokio::test]
async fn a_block_either_way_hides_both_until_it_is_lifted() {
    let server = TestServer::with(patient).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    let mut bob = sign_in(&server, BOB, "phone").await;
    admit(&mut alice, BOB, None).await;
    told(&mut bob, ALICE, ONLINE).await;
    admit(&mut bob, ALICE, None).await;
    told(&mut alice, BOB, ONLINE).await;
    for _ in 0..2 {
        block(&mut alice, BOB, true).await;
        told(&mut bob, ALICE, OFFLINE).await;
        told(&mut alice, BOB, OFFLINE).await;
        sees_nothing(&mut bob, ALICE).await;
        sees_nothing(&mut alice, BOB).await;
        // Neither a change of state nor a new presence lane reveals anything.
        be(&mut alice, AWAY).await;
        be(&mut alice, ONLINE).await;
        sign_in(&server, BOB, "desk").await.expect_nothing_more(bimip::wire::Lane::Presence).await;
        block(&mut alice, BOB, false).await;
        told(&mut bob, ALICE, ONLINE).await;
        told(&mut alice, BOB, ONLINE).await;
        std::mem::swap(&mut alice, &mut bob);
        // The same with the roles swapped.
        block(&mut alice, &bob.eid.clone(), true).await;
        told(&mut bob, &alice.eid, OFFLINE).await;
        told(&mut alice, &bob.eid, OFFLINE).await;
        block(&mut alice, &bob.eid.clone(), false).await;
        told(&mut bob, &alice.eid, ONLINE).await;
        told(&mut alice, &bob.eid, ONLINE).await;
        std::mem::swap(&mut alice, &mut bob);
    }
}

#[tokio::test]
async fn who_was_admitted_while_blocked_sees_nothing_until_unblocked() {
    let server = TestServer::with(patient).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    let mut bob = sign_in(&server, BOB, "phone").await;
    block(&mut bob, ALICE, true).await;
    admit(&mut alice, BOB, None).await;
    sees_nothing(&mut bob, ALICE).await;
    block(&mut bob, ALICE, false).await;
    told(&mut bob, ALICE, ONLINE).await;
}

#[tokio::test]
async fn who_may_see_survives_a_restart() {
    let server = TestServer::with(patient).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    admit(&mut alice, BOB, None).await;
    admit(&mut alice, CAROL, None).await;
    block(&mut alice, CAROL, true).await;
    let server = server.restart().await;
    let mut bob = sign_in(&server, BOB, "phone").await;
    let mut carol = sign_in(&server, CAROL, "phone").await;
    assert_eq!(ask(&mut bob, ALICE).await.status, OFFLINE);
    let _alice = sign_in(&server, ALICE, "phone").await;
    told(&mut bob, ALICE, ONLINE).await;
    sees_nothing(&mut carol, ALICE).await;
    carol.expect_nothing_more(bimip::wire::Lane::Presence).await;
}
