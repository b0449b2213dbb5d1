//! A server that is stopped and started again forgets nothing (README.md, What it promises).

use bimip::wire::proto::{AcknowledgmentResponse, HistoryPage, HistoryRequest, VersionUpdate};
use bimip::wire::{AckStatus, Lane, Payload};

use super::common::{TestServer, identity, text_of};
use super::{ALICE, BOB};

#[tokio::test]
async fn a_restart_keeps_messages_versions_receipts_and_cursors() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    let first = alice.say(BOB, "local-1", "one").await;
    let message = bob.hear().await;
    bob.acknowledge(&message, AckStatus::Read).await;
    bob.expect::<AcknowledgmentResponse>(Lane::Chat).await;
    alice.expect::<AcknowledgmentResponse>(Lane::Chat).await;
    bob.say(ALICE, "local-1", "two").await;
    alice.hear().await;
    alice.sync(2).await;
    let (alices_head, bobs_head) = (alice.last_sequence, bob.last_sequence);

    let server = server.restart().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    assert_eq!((alice.accept.resume_from, alice.accept.log_head), (2, alices_head));
    let heard = alice.hear().await;
    assert_eq!((text_of(&heard), heard.version, heard.sequence), ("two", 2, alices_head));
    alice.expect_nothing_more(Lane::Chat).await;

    // Bob's acknowledgment moved his cursor past alice's message. The VersionUpdate of his own message is still to come.
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    assert_eq!((bob.accept.resume_from, bob.accept.log_head), (1, bobs_head));
    let update = bob.expect::<VersionUpdate>(Lane::Chat).await;
    assert_eq!((update.version, update.sequence), (2, bobs_head));

    // Versions and sequences continue.
    let third = alice.say(BOB, "local-3", "three").await;
    assert_eq!((third.version, &third.chat_id), (3, &first.chat_id));
    assert_eq!(third.sequence, alices_head + 1);
    assert_eq!(bob.hear().await.sequence, bobs_head + 1);

    let history = HistoryRequest { peer: Some(identity(ALICE)), ..HistoryRequest::default() };
    bob.send(Lane::Chat, Payload::HistoryRequest(history)).await;
    let page = bob.expect::<HistoryPage>(Lane::Chat).await;
    let states: Vec<_> = page.messages.iter().map(|m| (text_of(m), m.acknowledgment, m.author.as_str())).collect();
    assert_eq!(states, [("one", 3, "receiver"), ("two", 4, "sender"), ("three", 1, "receiver")]);
}

#[tokio::test]
async fn what_waited_for_its_senders_answer_is_delivered_after_a_restart() {
    let server = TestServer::with(|config| config.session.release_within_ms = 60_000).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let first = alice.say(BOB, "local-1", "one").await;
    alice.say(BOB, "local-2", "two").await;

    let server = server.restart().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    assert_eq!(text_of(&*bob.hear().await), "one");
    assert_eq!(text_of(&*bob.hear().await), "two");
    // Alice still gets the VersionUpdates, and may still answer them.
    let mut alice = server.sign_in(ALICE, "phone").await;
    let again = alice.expect::<VersionUpdate>(Lane::Chat).await;
    assert_eq!((&*again, again.sequence), (&*first, first.sequence));
    alice.answer(&again).await;
    alice.expect::<VersionUpdate>(Lane::Chat).await;
    alice.expect_nothing_more(Lane::Chat).await;
    bob.expect_nothing_more(Lane::Chat).await;
}

#[tokio::test]
async fn a_server_may_be_restarted_again_and_again() {
    let mut server = TestServer::start().await;
    for n in 1..=5 {
        let mut alice = server.session(ALICE, "phone").pipelined().resume_from(i64::MAX).open().await;
        assert_eq!(alice.say(BOB, &format!("local-{n}"), &n.to_string()).await.version, n);
        server = server.restart().await;
    }
    let mut bob = server.sign_in(BOB, "phone").await;
    for n in 1..=5 {
        assert_eq!(text_of(&*bob.hear().await), n.to_string());
    }
    bob.expect_nothing_more(Lane::Chat).await;
}
