//! Who gets which copy of a message, field by field (BIMip-Foundation 5.9.2, 5.10; protocol.md §7).

use bimip::wire::proto::{AcknowledgmentResponse, ChatMessage, VersionUpdate};
use bimip::wire::{AckStatus, Lane, Payload};
use uuid::Uuid;

use super::common::{TestServer, now_ms, text_of};
use super::{ALICE, BOB, CAROL};

/// Asserts the fields that both copies of a message share.
fn assert_is(copy: &ChatMessage, update: &VersionUpdate, text: &str, created_at: i64) {
    assert_eq!(copy.message_id, update.message_id);
    assert_eq!(copy.message_id_local, update.message_id_local);
    assert_eq!(copy.version, update.version);
    assert_eq!(copy.chat_id, update.chat_id);
    assert_eq!(text_of(copy), text);
    assert_eq!(copy.created_at, created_at);
    assert_eq!(copy.media, None);
    assert_eq!(copy.acknowledgment_timestamp, 0);
    assert_eq!(copy.from.as_ref().map(|from| from.eid.as_str()), Some(ALICE));
    assert_eq!(copy.to.iter().map(|to| to.eid.as_str()).collect::<Vec<_>>(), [BOB]);
}

#[tokio::test]
async fn a_text_reaches_the_recipient_and_each_device_sees_its_right_copy() {
    let server = TestServer::start().await;
    let mut phone = server.sign_in(ALICE, "phone").await;
    let mut tablet = server.sign_in(ALICE, "tablet").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut bobs_tablet = server.sign_in(BOB, "tablet").await;

    let before = now_ms();
    let mut text = phone.text(BOB, "local-123", "Hey Bob! 👋");
    text.created_at = 1_600_000_000_123;
    let request_id = phone.send(Lane::Chat, Payload::TextPayloadRequest(text)).await;
    let update = phone.expect::<VersionUpdate>(Lane::Chat).await;
    assert_eq!((update.request_id, update.sequence), (request_id, 1));
    assert_eq!(update.to, Some(phone.identity()));
    assert_eq!((update.r#type, update.status, update.version), (1, 1, 1));
    assert_eq!(update.message_id_local, "local-123");
    assert!((before..=now_ms()).contains(&update.timestamp));
    let id = Uuid::parse_str(&update.message_id).unwrap();
    assert_eq!((id.get_version_num(), update.message_id.as_str()), (7, id.hyphenated().to_string().as_str()));
    assert!(!update.chat_id.is_empty());
    for part in ["alice", "bob", "localhost"] {
        assert!(!update.chat_id.contains(part), "a chat_id reveals nobody");
    }
    phone.answer(&update).await;

    let received = bob.hear().await;
    assert_is(&received, &update, "Hey Bob! 👋", 1_600_000_000_123);
    assert_eq!((received.author.as_str(), received.acknowledgment), ("receiver", 1));
    assert!((before..=now_ms()).contains(&received.server_received_at));
    assert_eq!((received.sequence, received.request_id), (1, 0));
    let also_received = bobs_tablet.hear().await;
    assert_eq!((&*also_received, also_received.sequence), (&*received, 1));

    let copy = tablet.hear().await;
    assert_is(&copy, &update, "Hey Bob! 👋", 1_600_000_000_123);
    assert_eq!((copy.author.as_str(), copy.acknowledgment), ("sender", 4));
    assert_eq!(copy.server_received_at, received.server_received_at);
    assert!(copy.sequence > 0);

    // No device has anything more to read. The sending phone gets no copy.
    for device in [&mut phone, &mut tablet, &mut bob, &mut bobs_tablet] {
        device.expect_nothing_more(Lane::Chat).await;
        device.ping().await;
    }
}

#[tokio::test]
async fn a_delivered_and_read_message_comes_back_as_such() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let update = alice.say(BOB, "local-1", "Hey Bob!").await;
    alice.answer(&update).await;
    let message = bob.hear().await;
    for status in [AckStatus::Delivered, AckStatus::Read] {
        let request_id = bob.acknowledge(&message, status).await;
        assert_eq!(bob.expect::<AcknowledgmentResponse>(Lane::Chat).await.request_id, request_id);
        let receipt = alice.expect::<AcknowledgmentResponse>(Lane::Chat).await;
        assert_eq!((receipt.status, &receipt.message_id), (status.code(), &update.message_id));
    }
}

#[tokio::test]
async fn a_chat_has_one_id_and_one_count_of_versions_for_both_sides() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    let first = alice.say(BOB, "local-1", "one").await;
    assert_eq!(bob.hear().await.chat_id, first.chat_id);
    let second = bob.say(ALICE, "local-1", "two").await;
    let heard = alice.hear().await;
    assert_eq!((&heard.chat_id, heard.version), (&first.chat_id, 2));
    assert_eq!((&second.chat_id, second.version), (&first.chat_id, 2));
    assert_eq!(alice.say("Bob@LOCALHOST", "local-2", "three").await.version, 3);
    // Another pair is another chat.
    let other = alice.say(CAROL, "local-3", "one").await;
    assert_ne!(other.chat_id, first.chat_id);
    assert_eq!(other.version, 1);
    // The same bob in another domain is somebody else.
    let elsewhere = alice.say("bob@elsewhere", "local-4", "one").await;
    assert_ne!(elsewhere.chat_id, first.chat_id);
    assert_eq!(elsewhere.version, 1);
}

#[tokio::test]
async fn nobody_sees_a_message_that_was_not_sent_to_them() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let mut carol = server.sign_in(CAROL, "phone").await;
    for n in 0..10 {
        let (to, text) = if n % 2 == 0 { (BOB, "for bob") } else { (CAROL, "for carol") };
        alice.say(to, &format!("local-{n}"), text).await;
    }
    for n in 1..=5 {
        let (heard, also) = (bob.hear().await, carol.hear().await);
        assert_eq!((text_of(&heard), heard.sequence), ("for bob", n));
        assert_eq!((text_of(&also), also.sequence), ("for carol", n));
    }
}

#[tokio::test]
async fn a_recipient_elsewhere_does_not_exist_where_domains_are_listed() {
    let server = TestServer::with(|config| config.domains = vec!["localhost".into(), "example.org".into()]).await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    for elsewhere in ["bob@elsewhere", "bob@sub.example.org", "bob@localhost.evil"] {
        let request_id = alice.post(elsewhere, "local-1", "anybody there?").await;
        let error = alice.expect_error(Lane::Chat, 404, request_id).await;
        assert_eq!((error.route.as_str(), error.details.as_str()), ("text_payload_request", "local-1"));
    }
    // A user who has never signed in may still do so.
    let update = alice.say("Unseen@Example.ORG", "local-1", "are you there?").await;
    let mut unseen = server.sign_in("unseen@example.org", "phone").await;
    assert_eq!(unseen.hear().await.message_id, update.message_id);
}
