//! Media messages: requested on the media lane, otherwise treated as texts (BIMip-Foundation 5.9.1; protocol.md §7).

use bimip::wire::proto::{MediaMetadata, MediaPayloadRequest, VersionUpdate, chat_message};
use bimip::wire::{Lane, Payload};

use super::common::{Raw, TestServer, identity, now_ms, text_of};
use super::{ALICE, BOB};

fn picture(alice: &Raw, local: &str) -> MediaPayloadRequest {
    MediaPayloadRequest {
        from: Some(alice.identity()),
        to: vec![identity(BOB)],
        message_id_local: local.to_owned(),
        r#type: 1,
        caption: "a cat".to_owned(),
        thumbnail_url: "https://cdn.example/cat-small.png".to_owned(),
        cdn_url_id: "https://cdn.example/cat.png?v=2".to_owned(),
        media_size_bytes: 123_456,
        created_at: now_ms(),
        ..MediaPayloadRequest::default()
    }
}

async fn alice(server: &TestServer) -> Raw {
    server.session(ALICE, "phone").pipelined().lanes(&[Lane::Control, Lane::Chat, Lane::Media]).open().await
}

#[tokio::test]
async fn a_picture_is_sent_on_media_and_numbered_and_delivered_on_chat() {
    let server = TestServer::start().await;
    let mut alice = alice(&server).await;
    let mut tablet = server.sign_in(ALICE, "tablet").await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let media = picture(&alice, "local-1");
    let request_id = alice.send(Lane::Media, Payload::MediaPayloadRequest(media.clone())).await;
    let update = alice.expect::<VersionUpdate>(Lane::Chat).await;
    assert_eq!((update.request_id, update.version, update.message_id_local.as_str()), (request_id, 1, "local-1"));
    for (device, author, state) in [(&mut bob, "receiver", 1), (&mut tablet, "sender", 4)] {
        let message = device.hear().await;
        assert_eq!((&message.message_id, message.version), (&update.message_id, 1));
        assert_eq!((message.author.as_str(), message.acknowledgment), (author, state));
        assert_eq!(message.payload, Some(chat_message::Payload::MediaUrl(media.cdn_url_id.clone())));
        let metadata = MediaMetadata {
            r#type: 1,
            caption: "a cat".into(),
            thumbnail_url: media.thumbnail_url.clone(),
            size_bytes: 123_456,
        };
        assert_eq!((&message.media, message.created_at), (&Some(metadata), media.created_at));
    }
    // Texts and media share the chat's versions. A repeated request is the same message.
    alice.say(BOB, "local-2", "a text").await;
    assert_eq!(bob.hear().await.version, 2);
    let again = alice.send(Lane::Media, Payload::MediaPayloadRequest(media)).await;
    let repeated = alice.expect::<VersionUpdate>(Lane::Chat).await;
    assert_eq!((repeated.request_id, repeated.version, &repeated.message_id), (again, 1, &update.message_id));
    alice.expect_nothing_more(Lane::Media).await;
    alice.say(BOB, "local-3", "nothing in between").await;
    assert_eq!(text_of(&*bob.hear().await), "nothing in between");
}

#[tokio::test]
async fn a_media_request_that_cannot_be_is_refused_on_media() {
    let server = TestServer::start().await;
    let mut alice = alice(&server).await;
    let right = picture(&alice, "local-1");
    let wrong = [
        (400, MediaPayloadRequest { r#type: 0, ..right.clone() }),
        (400, MediaPayloadRequest { r#type: 5, ..right.clone() }),
        (400, MediaPayloadRequest { cdn_url_id: String::new(), ..right.clone() }),
        (400, MediaPayloadRequest { cdn_url_id: "http://cdn.example/cat.png".into(), ..right.clone() }),
        (400, MediaPayloadRequest { cdn_url_id: "javascript:alert(1)".into(), ..right.clone() }),
        // An id, while no base address is configured to append it to.
        (400, MediaPayloadRequest { cdn_url_id: "cat.png".into(), ..right.clone() }),
        (400, MediaPayloadRequest { thumbnail_url: "http://cdn.example/small.png".into(), ..right.clone() }),
        (400, MediaPayloadRequest { media_size_bytes: -1, ..right.clone() }),
        (400, MediaPayloadRequest { media_size_bytes: 4 * 1024 * 1024 * 1024 + 1, ..right.clone() }),
        (400, MediaPayloadRequest { chat_id: "0".repeat(32), ..right.clone() }),
        (400, MediaPayloadRequest { to: Vec::new(), ..right.clone() }),
        (400, MediaPayloadRequest { to: vec![identity(BOB), identity("carol@localhost")], ..right.clone() }),
        (400, MediaPayloadRequest { to: vec![identity(ALICE)], ..right.clone() }),
        (400, MediaPayloadRequest { message_id_local: String::new(), ..right.clone() }),
        (413, MediaPayloadRequest { caption: "x".repeat(1025), ..right.clone() }),
    ];
    for (code, request) in wrong {
        let local = request.message_id_local.clone();
        let request_id = alice.send(Lane::Media, Payload::MediaPayloadRequest(request)).await;
        let error = alice.expect_error(Lane::Media, code, request_id).await;
        let details = if local.is_empty() { error.message } else { local };
        assert_eq!(
            (error.route, error.details),
            ("media_payload_request".to_owned(), details),
            "the name, or the reason"
        );
    }
    let chat_id = alice.say(BOB, "local-0", "before it").await.chat_id.clone();
    let largest = MediaPayloadRequest {
        r#type: 4,
        chat_id,
        caption: "x".repeat(1024),
        thumbnail_url: String::new(),
        media_size_bytes: 4 * 1024 * 1024 * 1024,
        ..right
    };
    alice.send(Lane::Media, Payload::MediaPayloadRequest(largest)).await;
    assert_eq!(alice.expect::<VersionUpdate>(Lane::Chat).await.version, 2);
}

#[tokio::test]
async fn a_picture_that_is_sent_again_before_chat_is_open_is_answered_once_it_is() {
    let server = TestServer::start().await;
    let mut alice = alice(&server).await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let media = picture(&alice, "local-1");
    alice.send(Lane::Media, Payload::MediaPayloadRequest(media.clone())).await;
    let first = alice.expect::<VersionUpdate>(Lane::Chat).await;
    bob.hear().await;
    alice.leave();

    let lanes = [Lane::Control, Lane::Media];
    let mut alice = server.session(ALICE, "phone").pipelined().resume_from(first.sequence).lanes(&lanes).open().await;
    let again = alice.send(Lane::Media, Payload::MediaPayloadRequest(media)).await;
    let next = alice.send(Lane::Media, Payload::MediaPayloadRequest(picture(&alice, "local-2"))).await;
    // Once bob hears the second one, both are answered by the store; and with the pong, by the session.
    assert_eq!(bob.hear().await.version, 2);
    alice.ping().await;
    alice.open(Lane::Chat).await;
    let repeated = alice.expect::<VersionUpdate>(Lane::Chat).await;
    assert_eq!((repeated.request_id, repeated.sequence, &*repeated), (again, first.sequence, &*first));
    assert_eq!(alice.expect::<VersionUpdate>(Lane::Chat).await.request_id, next);
}

#[tokio::test]
async fn a_media_id_is_resolved_against_the_configured_base() {
    let server = TestServer::with(|config| config.media.cdn_base = Some("https://cdn.example/m/".into())).await;
    let mut alice = alice(&server).await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let media = MediaPayloadRequest { cdn_url_id: "2025/08/cat.png".into(), ..picture(&alice, "local-1") };
    alice.send(Lane::Media, Payload::MediaPayloadRequest(media)).await;
    alice.expect::<VersionUpdate>(Lane::Chat).await;
    let resolved = "https://cdn.example/m/2025/08/cat.png".to_owned();
    assert_eq!(bob.hear().await.payload, Some(chat_message::Payload::MediaUrl(resolved)));
    for outside in ["../secret", "/etc/passwd", "a//b", "a b", "cat.png?x=1"] {
        let media = MediaPayloadRequest { cdn_url_id: outside.into(), ..picture(&alice, "local-2") };
        let request_id = alice.send(Lane::Media, Payload::MediaPayloadRequest(media)).await;
        alice.expect_error(Lane::Media, 400, request_id).await;
    }
}
