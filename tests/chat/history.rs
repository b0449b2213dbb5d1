//! Pages of a chat (protocol.md §10).

use bimip::wire::proto::{AcknowledgmentResponse, HistoryPage, HistoryRequest};
use bimip::wire::{AckStatus, Lane, Payload};

use super::common::{Got, Raw, TestServer, identity, text_of};
use super::{ALICE, BOB, CAROL};

fn with(peer: &str) -> HistoryRequest {
    HistoryRequest { peer: Some(identity(peer)), ..HistoryRequest::default() }
}

async fn page(raw: &mut Raw, request: HistoryRequest) -> Got<HistoryPage> {
    let request_id = raw.send(Lane::Chat, Payload::HistoryRequest(request)).await;
    let page = raw.expect::<HistoryPage>(Lane::Chat).await;
    assert_eq!((page.request_id, page.sequence), (request_id, 0));
    page
}

fn versions(page: &HistoryPage) -> Vec<i64> {
    page.messages.iter().map(|message| message.version).collect()
}

/// Alice has sent `count` messages to bob and one to carol.
async fn scene(count: usize) -> (TestServer, Raw, Raw) {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    alice.say(CAROL, "carols", "not for bob").await;
    for n in 1..=count {
        alice.say(BOB, &format!("local-{n}"), &n.to_string()).await;
    }
    let bob = server.session(BOB, "phone").resume_from(i64::MAX).open().await;
    (server, alice, bob)
}

#[tokio::test]
async fn a_page_shows_the_newest_last_with_the_states_they_have_now() {
    let (server, mut alice, _) = scene(3).await;
    let mut bob = server.session(BOB, "phone").resume_from(0).open().await;
    let mut heard = Vec::new();
    for _ in 0..3 {
        heard.push(bob.hear().await);
    }
    for (message, status) in [(&heard[0], AckStatus::Read), (&heard[1], AckStatus::Delivered)] {
        bob.acknowledge(message, status).await;
        bob.expect::<AcknowledgmentResponse>(Lane::Chat).await;
        alice.expect::<AcknowledgmentResponse>(Lane::Chat).await;
    }
    let bobs = page(&mut bob, with("Alice@LocalHost")).await;
    assert_eq!((&bobs.chat_id, bobs.complete), (&heard[0].chat_id, true));
    let states = |page: &HistoryPage| page.messages.iter().map(|m| m.acknowledgment).collect::<Vec<_>>();
    assert_eq!(states(&bobs), [3, 2, 1]);
    assert!(bobs.messages.iter().all(|message| message.author == "receiver"));
    let alices = page(&mut alice, with(BOB)).await;
    assert_eq!(states(&alices), [3, 2, 4]);
    assert!(alices.messages.iter().all(|message| message.author == "sender"));
    // Except for the acknowledgment, the messages are equal to those that were delivered.
    for (message, heard) in bobs.messages.iter().zip(&heard) {
        let mut as_delivered = message.clone();
        assert_eq!(message.acknowledgment_timestamp > 0, message.acknowledgment > 1);
        (as_delivered.acknowledgment, as_delivered.acknowledgment_timestamp) = (1, 0);
        assert_eq!(as_delivered, **heard);
    }
}

#[tokio::test]
async fn pages_cover_a_chat_in_both_directions() {
    let (_server, mut alice, mut bob) = scene(120).await;
    let newest = page(&mut bob, with(ALICE)).await;
    assert_eq!((versions(&newest), newest.complete), ((71..=120).collect::<Vec<_>>(), false));
    let all = page(&mut bob, HistoryRequest { limit: 200, ..with(ALICE) }).await;
    assert_eq!((versions(&all), all.complete), ((1..=120).collect::<Vec<_>>(), true));
    assert!(all.messages.iter().all(|message| text_of(message) == message.version.to_string()));

    for (before, after, limit, expected, complete) in [
        (71, 0, 50, (21..=70).collect::<Vec<i64>>(), false),
        (21, 0, 50, (1..=20).collect(), true),
        (21, 0, 20, (1..=20).collect(), true),
        (1, 0, 50, vec![], true),
        (0, 0, 1, vec![120], false),
        (0, 118, 50, vec![119, 120], true),
        (0, 100, 10, (101..=110).collect(), false),
        (0, 120, 10, vec![], true),
        (1000, 0, 2, vec![119, 120], false),
    ] {
        let request = HistoryRequest { before_version: before, after_version: after, limit, ..with(ALICE) };
        let got = page(&mut bob, request.clone()).await;
        assert_eq!((versions(&got), got.complete), (expected, complete), "{request:?}");
    }
    // Between two versions.
    let between = HistoryRequest { before_version: 15, after_version: 10, ..with(ALICE) };
    assert_eq!(
        versions(&*page(&mut alice, HistoryRequest { peer: Some(identity(BOB)), ..between }).await),
        [11, 12, 13, 14]
    );
}

#[tokio::test]
async fn a_chat_that_is_not_ones_own_is_empty() {
    let (server, _alice, mut bob) = scene(1).await;
    let none = page(&mut bob, with(CAROL)).await;
    assert_eq!((none.messages.len(), none.complete), (0, true));
    let mut mallory = server.sign_in("mallory@localhost", "phone").await;
    for peer in [ALICE, BOB, "nobody@nowhere"] {
        assert_eq!(page(&mut mallory, with(peer)).await.messages.len(), 0);
    }
}

#[tokio::test]
async fn a_page_that_cannot_be_is_refused() {
    let (_server, _alice, mut bob) = scene(1).await;
    for wrong in [
        HistoryRequest::default(),
        with("alice"),
        with(BOB),
        HistoryRequest { limit: 201, ..with(ALICE) },
        HistoryRequest { limit: -1, ..with(ALICE) },
        HistoryRequest { before_version: -1, ..with(ALICE) },
        HistoryRequest { after_version: -1, ..with(ALICE) },
    ] {
        let request_id = bob.send(Lane::Chat, Payload::HistoryRequest(wrong)).await;
        let error = bob.expect_error(Lane::Chat, 400, request_id).await;
        assert_eq!(error.route, "history_request");
    }
}

#[tokio::test]
async fn a_page_of_long_messages_keeps_to_the_longest_frame() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    for n in 1..=20 {
        alice.say(BOB, &format!("local-{n}"), &"x".repeat(16 * 1024)).await;
    }
    // The test's client refuses a frame over max_frame_bytes. A page that had to be cut is not complete, and the next request
    // continues from there, in either direction.
    let mut bob = server.session(BOB, "phone").resume_from(i64::MAX).open().await;
    for forwards in [false, true] {
        // An after_version of zero means no bound, so the forward pages start after version 1.
        let after_version = i64::from(forwards);
        let (mut request, mut seen) = (HistoryRequest { after_version, ..with(ALICE) }, Vec::new());
        loop {
            let page = page(&mut bob, request.clone()).await;
            assert!(!page.messages.is_empty(), "a page brings at least one message");
            let end = if forwards { seen.len() } else { 0 };
            seen.splice(end..end, versions(&page));
            if page.complete {
                break;
            }
            (request.before_version, request.after_version) =
                if forwards { (0, seen[seen.len() - 1]) } else { (seen[0], 0) };
        }
        assert_eq!(seen, (1 + after_version..=20).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_message_that_waits_for_its_senders_answer_is_in_no_page_of_its_recipient() {
    let server = TestServer::with(|config| config.session.release_within_ms = 60_000).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let update = alice.say(BOB, "local-1", "not yet").await;
    assert_eq!(page(&mut bob, with(ALICE)).await.messages.len(), 0);
    alice.answer(&update).await;
    assert_eq!(text_of(&*bob.hear().await), "not yet");
    assert_eq!(page(&mut bob, with(ALICE)).await.messages.len(), 1);
}
