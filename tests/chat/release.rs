//! When a message is released: on its sender's answer, or soon without one (BIMip-Foundation 5.10; protocol.md §7).

use bimip::wire::proto::VersionUpdate;
use bimip::wire::{Lane, Payload};

use super::common::{Raw, TestServer, Transport, text_of};
use super::{ALICE, BOB, CAROL};

const OVERDUE: &str = "bimip_releases_overdue_total";

/// A server that waits for a sender's answer as long as the configuration allows.
async fn patient() -> TestServer {
    TestServer::with(|config| config.session.release_within_ms = 60_000).await
}

#[tokio::test]
async fn a_message_leaves_only_after_its_sender_has_answered_the_version_update() {
    let server = patient().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut tablet = server.sign_in(ALICE, "tablet").await;
    let mut carol = server.session(CAROL, "phone").pipelined().open().await;
    let mut bob = server.sign_in(BOB, "phone").await;

    let update = alice.say(BOB, "local-1", "after my answer").await;
    // Carol's messages overtake it, to bob and to alice.
    carol.say(BOB, "local-1", "to bob, first").await;
    carol.say(ALICE, "local-2", "to alice, first").await;
    assert_eq!(text_of(&*bob.hear().await), "to bob, first");
    assert_eq!(text_of(&*tablet.hear().await), "to alice, first");
    assert_eq!(text_of(&*alice.hear().await), "to alice, first");

    alice.answer(&update).await;
    assert_eq!(text_of(&*bob.hear().await), "after my answer");
    assert_eq!(text_of(&*tablet.hear().await), "after my answer");
    assert_eq!(server.metric(OVERDUE).await, 0.0);
}

#[tokio::test]
async fn an_answer_releases_its_own_message_and_versions_stay_in_order() {
    let server = patient().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut carol = server.session(CAROL, "phone").pipelined().open().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let first = alice.say(BOB, "local-1", "one").await;
    let second = alice.say(BOB, "local-2", "two").await;
    let third = alice.say(BOB, "local-3", "three").await;

    // The second waits for the first, because messages are released in the order of their versions.
    alice.answer(&second).await;
    alice.expect_nothing_more(Lane::Chat).await;
    carol.say(BOB, "local-1", "meanwhile").await;
    assert_eq!(text_of(&*bob.hear().await), "meanwhile");
    alice.answer(&first).await;
    assert_eq!(text_of(&*bob.hear().await), "one");
    assert_eq!(text_of(&*bob.hear().await), "two");
    // A second answer to the same message has no effect.
    alice.answer(&first).await;
    alice.answer(&third).await;
    assert_eq!(text_of(&*bob.hear().await), "three");
    carol.say(BOB, "local-2", "nothing in between").await;
    assert_eq!(text_of(&*bob.hear().await), "nothing in between");
}

#[tokio::test]
async fn a_sender_that_never_answers_does_not_hold_its_message_back() {
    let server = TestServer::with(|config| config.session.release_within_ms = 100).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    alice.say(BOB, "local-1", "no answer from me").await;
    assert_eq!(text_of(&*bob.hear().await), "no answer from me");
    assert_eq!(server.metric(OVERDUE).await, 1.0);
    alice.expect_nothing_more(Lane::Chat).await;
}

#[tokio::test]
async fn a_sender_that_disconnects_does_not_hold_its_message_back() {
    let server = patient().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    alice.say(BOB, "local-1", "sent in a hurry").await;
    alice.say(BOB, "local-2", "and gone").await;
    alice.leave();
    assert_eq!(text_of(&*bob.hear().await), "sent in a hurry");
    assert_eq!(text_of(&*bob.hear().await), "and gone");
}

#[tokio::test]
async fn a_sender_that_is_thrown_out_does_not_hold_its_message_back() {
    let server = patient().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    alice.say(BOB, "local-1", "then I open a lane that is none").await;
    alice.open_byte(9).await;
    assert_eq!(text_of(&*bob.hear().await), "then I open a lane that is none");

    let mut alice = server.sign_in(ALICE, "phone").await;
    assert_eq!(alice.expect::<VersionUpdate>(Lane::Chat).await.sequence, 1);
    alice.say(BOB, "local-2", "then I sign in again").await;
    let _replacement = server.sign_in(ALICE, "phone").await;
    assert_eq!(text_of(&*bob.hear().await), "then I sign in again");
}

#[tokio::test]
async fn a_pipelined_senders_message_does_not_wait() {
    let server = patient().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let update = alice.say(BOB, "local-1", "at once").await;
    assert_eq!(text_of(&*bob.hear().await), "at once");
    // An answer that was not needed is not an error.
    alice.answer(&update).await;
    alice.say(BOB, "local-2", "again").await;
    assert_eq!(text_of(&*bob.hear().await), "again");
    alice.expect_nothing_more(Lane::Chat).await;
    assert_eq!(server.metric(OVERDUE).await, 0.0);
}

#[tokio::test]
async fn one_chat_that_waits_does_not_hold_back_another() {
    let server = patient().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut carol = server.sign_in(CAROL, "phone").await;
    alice.say(BOB, "local-1", "waits").await;
    let update = alice.say(CAROL, "local-2", "goes").await;
    alice.answer(&update).await;
    assert_eq!(text_of(&*carol.hear().await), "goes");
    alice.leave();
    assert_eq!(text_of(&*bob.hear().await), "waits");
}

#[tokio::test]
async fn a_version_update_that_answers_nothing_does_no_harm() {
    let server = patient().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut mallory = server.session("mallory@localhost", "phone").pipelined().open().await;
    let update = alice.say(BOB, "local-1", "mine to release").await;

    // Type REQUEST, type 0, an empty id, an invalid id.
    for (kind, message_id) in [(1, update.message_id.as_str()), (0, &update.message_id), (2, ""), (2, "srv-456")] {
        let wrong = VersionUpdate { r#type: kind, message_id: message_id.into(), ..(*update).clone() };
        let request_id = alice.send(Lane::Chat, Payload::VersionUpdate(wrong)).await;
        alice.expect_error(Lane::Chat, 400, request_id).await;
    }
    // Well formed, but for a message that does not exist or that is not mallory's: ignored.
    let unknown = VersionUpdate { message_id: "01890000-0000-7000-8000-000000000000".into(), ..(*update).clone() };
    alice.answer(&unknown).await;
    alice.expect_nothing_more(Lane::Chat).await;
    mallory.answer(&update).await;
    mallory.expect_nothing_more(Lane::Chat).await;
    mallory.say(BOB, "local-1", "from mallory").await;
    assert_eq!(text_of(&*bob.hear().await), "from mallory");

    alice.answer(&update).await;
    assert_eq!(text_of(&*bob.hear().await), "mine to release");
}

/// More texts than a session has store calls under way. Over TCP even so many that its answers meet the close and fail.
#[tokio::test]
async fn all_that_arrived_before_a_close_counts_although_nobody_waits_for_its_answer() {
    let texts = if Transport::HERE == Transport::Tcp { 1000 } else { 100 };
    let server = TestServer::start().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    let say = move |alice: &Raw| {
        let text = |n| Payload::TextPayloadRequest(alice.text(BOB, &format!("local-{n}"), &format!("gone {n}")));
        (0..texts).map(text).collect()
    };
    server.leave_behind(ALICE, server.token(ALICE, None), Lane::Chat, say).await;
    for n in 0..texts {
        assert_eq!(text_of(&*bob.hear().await), format!("gone {n}"));
    }
}
