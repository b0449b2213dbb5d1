//! A repeated message gets the same answer and has no other effect (protocol.md §7).

use std::collections::BTreeMap;

use bimip::wire::proto::{TextPayloadRequest, VersionUpdate};
use bimip::wire::{Lane, Payload};

use super::common::{Got, Raw, TestServer, identity, text_of};
use super::{ALICE, BOB, CAROL};

async fn send(raw: &mut Raw, text: &TextPayloadRequest) -> Got<VersionUpdate> {
    let request_id = raw.send(Lane::Chat, Payload::TextPayloadRequest(text.clone())).await;
    let update = raw.expect::<VersionUpdate>(Lane::Chat).await;
    assert_eq!(update.request_id, request_id);
    update
}

fn assert_same(first: &Got<VersionUpdate>, again: &Got<VersionUpdate>) {
    assert_eq!((&**again, again.sequence), (&**first, first.sequence));
}

#[tokio::test]
async fn a_message_sent_again_is_answered_again_and_delivered_once() {
    let server = TestServer::start().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let text = alice.text(BOB, "local-1", "once");
    let first = send(&mut alice, &text).await;
    assert_same(&first, &send(&mut alice, &text).await);
    // A retry may have a later created_at.
    assert_same(
        &first,
        &send(&mut alice, &TextPayloadRequest { created_at: text.created_at + 5000, ..text.clone() }).await,
    );

    // From another connection of the phone, and from another device.
    let mut alice = server.session(ALICE, "phone").pipelined().resume_from(first.sequence).open().await;
    assert_same(&first, &send(&mut alice, &text).await);
    let mut tablet = server.session(ALICE, "tablet").pipelined().resume_from(first.sequence).open().await;
    let from_tablet = TextPayloadRequest { from: Some(tablet.identity()), ..text.clone() };
    assert_same(&first, &send(&mut tablet, &from_tablet).await);

    let server = server.restart().await;
    let mut alice = server.session(ALICE, "phone").pipelined().resume_from(first.sequence).open().await;
    assert_same(&first, &send(&mut alice, &text).await);
    let next = alice.say(BOB, "local-2", "twice").await;
    assert_eq!((next.version, next.sequence), (2, first.sequence + 1));

    let heard = bob_again(&server, &mut bob).await;
    assert_eq!(heard, ["once", "twice"]);
}

/// All texts in bob's log, read over a new connection.
async fn bob_again(server: &TestServer, bob: &mut Raw) -> Vec<String> {
    *bob = server.session(BOB, "phone").resume_from(0).open().await;
    let mut heard = Vec::new();
    while bob.last_sequence < bob.accept.log_head {
        heard.push(text_of(&*bob.hear().await).to_owned());
    }
    bob.expect_nothing_more(Lane::Chat).await;
    heard
}

#[tokio::test]
async fn a_message_sent_again_in_one_breath_is_accepted_once() {
    let server = TestServer::start().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let text = Payload::TextPayloadRequest(alice.text(BOB, "local-1", "once"));
    let mut requests = Vec::new();
    for _ in 0..20 {
        requests.push(alice.send(Lane::Chat, text.clone()).await);
    }
    let mut answered = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..20 {
        let update = alice.expect::<VersionUpdate>(Lane::Chat).await;
        assert_eq!((update.version, update.sequence), (1, 1));
        answered.push(update.request_id);
        ids.push(update.into_body().message_id);
    }
    answered.sort_unstable();
    ids.dedup();
    assert_eq!((answered, ids.len()), (requests, 1));
    assert_eq!(alice.say(BOB, "local-2", "next").await.version, 2);
    assert_eq!(text_of(&*bob.hear().await), "once");
    assert_eq!(text_of(&*bob.hear().await), "next");
}

#[tokio::test]
async fn two_devices_that_send_the_same_at_once_make_one_message() {
    let server = TestServer::start().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut phone = server.session(ALICE, "phone").pipelined().open().await;
    let mut tablet = server.session(ALICE, "tablet").pipelined().open().await;
    for n in 1..=10 {
        let local = format!("local-{n}");
        let (by_phone, by_tablet) = tokio::join!(phone.post(BOB, &local, &local), tablet.post(BOB, &local, &local));
        let mut seen = Vec::new();
        for (device, request_id) in [(&mut phone, by_phone), (&mut tablet, by_tablet)] {
            // The device whose request came second may also get the copy.
            loop {
                let scheme = device.recv(Lane::Chat).await;
                if let Some(Payload::VersionUpdate(update)) = scheme.payload {
                    assert_eq!((scheme.request_id, update.version), (request_id, n));
                    seen.push(update.message_id);
                    break;
                }
            }
        }
        assert_eq!(seen[0], seen[1]);
        assert_eq!(text_of(&*bob.hear().await), local);
    }
}

#[tokio::test]
async fn a_repeat_does_not_release_a_message_that_waits_nor_make_it_wait_longer() {
    let server = TestServer::with(|config| config.session.release_within_ms = 60_000).await;
    let mut carol = server.session(CAROL, "phone").pipelined().open().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let text = alice.text(BOB, "local-1", "once");
    let first = send(&mut alice, &text).await;
    assert_same(&first, &send(&mut alice, &text).await);
    carol.say(BOB, "local-1", "meanwhile").await;
    assert_eq!(text_of(&*bob.hear().await), "meanwhile");
    alice.answer(&first).await;
    assert_eq!(text_of(&*bob.hear().await), "once");
    assert_same(&first, &send(&mut alice, &text).await);
    alice.answer(&first).await;
    alice.expect_nothing_more(Lane::Chat).await;
    carol.say(BOB, "local-2", "nothing in between").await;
    assert_eq!(text_of(&*bob.hear().await), "nothing in between");
}

#[tokio::test]
async fn the_same_name_for_another_message_is_a_conflict() {
    let server = TestServer::start().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut alice = server.session(ALICE, "phone").pipelined().lanes(&Lane::ALL).open().await;
    let text = alice.text(BOB, "local-1", "once");
    let first = send(&mut alice, &text).await;
    let others = [
        TextPayloadRequest { content: "twice".into(), text_size_count: String::new(), ..text.clone() },
        TextPayloadRequest { content: "once ".into(), ..text.clone() },
        TextPayloadRequest { to: vec![identity(CAROL)], ..text.clone() },
    ];
    for other in others {
        let request_id = alice.send(Lane::Chat, Payload::TextPayloadRequest(other)).await;
        let error = alice.expect_error(Lane::Chat, 409, request_id).await;
        assert_eq!((error.route.as_str(), error.details.as_str()), ("text_payload_request", "local-1"));
    }
    let media = bimip::wire::proto::MediaPayloadRequest {
        from: Some(alice.user()),
        to: vec![identity(BOB)],
        message_id_local: "local-1".into(),
        r#type: 1,
        cdn_url_id: "https://cdn.example/once".into(),
        ..Default::default()
    };
    let request_id = alice.send(Lane::Media, Payload::MediaPayloadRequest(media)).await;
    assert_eq!(alice.expect_error(Lane::Media, 409, request_id).await.details, "local-1");

    assert_same(&first, &send(&mut alice, &text).await);
    // Another sender may use the same local id.
    let mut carol = server.session(CAROL, "phone").pipelined().open().await;
    assert_eq!(carol.say(BOB, "local-1", "mine").await.version, 1);
    assert_eq!(text_of(&*bob.hear().await), "once");
    assert_eq!(text_of(&*bob.hear().await), "mine");
}

#[tokio::test]
async fn a_message_sent_again_while_the_tail_brings_its_answer_is_answered_once() {
    const MESSAGES: usize = 100;
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    for n in 0..MESSAGES {
        alice.say(BOB, &format!("local-{n}"), &n.to_string()).await;
    }
    for _ in 0..5 {
        // As a returning phone does, send the whole outbox right behind SessionOpen.
        let (mut alice, _) = server.session(ALICE, "phone").pipelined().resume_from(0).attempt().await;
        let mut requests = BTreeMap::new();
        for n in 0..MESSAGES {
            requests.insert(alice.post(BOB, &format!("local-{n}"), &n.to_string()).await, format!("local-{n}"));
        }
        while !requests.is_empty() {
            let update = alice.expect::<VersionUpdate>(Lane::Chat).await;
            if update.request_id != 0 {
                let local = requests.remove(&update.request_id);
                assert_eq!(local.as_ref(), Some(&update.message_id_local), "each is answered once");
            }
        }
        // The tail may still deliver entries of the log, but no second answers.
        alice.send(Lane::Chat, Payload::SyncAck(Default::default())).await;
        let last = alice.post(BOB, "local-0", "0").await;
        loop {
            match alice.expect::<VersionUpdate>(Lane::Chat).await.request_id {
                0 => {}
                id => break assert_eq!(id, last),
            }
        }
        alice.expect_nothing_more(Lane::Chat).await;
    }
}
