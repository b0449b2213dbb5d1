//! Refused requests of a signed-in device: in another user's name, to too many recipients, too long.

use bimip::wire::proto::TextPayloadRequest;
use bimip::wire::{ErrorMessage, Identity, Lane, Payload, payload_name};

use super::common::{Bystanders, Raw, TestServer, identity, text_of};
use super::payloads;

const BOB: &str = "bob@localhost";

/// Alice with all lanes open, and the bystanders.
struct Scene {
    _server: TestServer,
    alice: Raw,
    bystanders: Bystanders,
}

impl Scene {
    async fn set() -> Scene {
        let server = TestServer::start().await;
        let alice = server.session("alice@localhost", "phone").pipelined().lanes(&Lane::ALL).open().await;
        let bystanders = Bystanders::join(&server).await;
        Scene { _server: server, alice, bystanders }
    }

    /// Sends a valid text with this change, and expects this error code.
    async fn refused(&mut self, code: i32, change: impl FnOnce(&mut TextPayloadRequest)) -> ErrorMessage {
        let mut text = self.alice.text(BOB, "refused", "Hey Bob!");
        change(&mut text);
        let local = text.message_id_local.clone();
        let request_id = self.alice.send(Lane::Chat, Payload::TextPayloadRequest(text)).await;
        let error = self.alice.expect_error(Lane::Chat, code, request_id).await;
        assert_eq!(error.route, "text_payload_request");
        if local.len() <= 64 {
            assert_eq!(error.details, if local.is_empty() { error.message.clone() } else { local });
        }
        error
    }

    /// Sends a valid text with this change, and expects that it is accepted and arrives.
    async fn accepted(&mut self, change: impl FnOnce(&mut TextPayloadRequest)) {
        let mut text = self.alice.text(BOB, &format!("accepted-{}", self.bystanders.bob.last_sequence), "Hey Bob!");
        change(&mut text);
        let content = text.content.clone();
        let request_id = self.alice.send(Lane::Chat, Payload::TextPayloadRequest(text)).await;
        let update = self.alice.expect::<bimip::wire::proto::VersionUpdate>(Lane::Chat).await;
        assert_eq!(update.request_id, request_id);
        assert_eq!(text_of(&*self.bystanders.bob.hear().await), content);
    }

    /// Asserts that no refused request was numbered, stored or delivered, and that everybody is still served.
    async fn assert_unharmed(&mut self) {
        self.bystanders.assert_unharmed().await;
        let update = self.alice.say(BOB, "the-first-legal-one", "hello").await;
        let message = self.bystanders.bob.hear().await;
        assert_eq!((message.version, &message.message_id), (update.version, &update.message_id));
        self.alice.ping().await;
        self.alice.expect_nothing_more(Lane::Chat).await;
    }
}

#[tokio::test]
async fn nobody_speaks_in_somebody_elses_name() {
    let mut scene = Scene::set().await;
    let device = |eid: &str, device: &str| Identity { eid: eid.to_owned(), connection_resource_id: device.to_owned() };
    for from in [
        identity(BOB),
        device(BOB, "phone"),
        identity("alice@elsewhere"),
        device("alice@localhost", "tablet"),
        device("alice@localhost", "PHONE"),
    ] {
        for (lane, payload) in payloads::in_the_name_of(Some(&from)) {
            let name = payload_name(&payload);
            let request_id = scene.alice.send(lane, payload).await;
            let error = scene.alice.expect_error(lane, 403, request_id).await;
            assert_eq!(error.route, name, "{from:?}");
        }
    }
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_request_without_a_valid_from_is_refused() {
    let mut scene = Scene::set().await;
    for from in [None, Some(Identity::default()), Some(identity("alice")), Some(identity("@localhost"))] {
        for (lane, payload) in payloads::in_the_name_of(from.as_ref()) {
            let name = payload_name(&payload);
            let request_id = scene.alice.send(lane, payload).await;
            let error = scene.alice.expect_error(lane, 400, request_id).await;
            assert_eq!(error.route, name, "{from:?}");
        }
    }
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn ones_own_name_may_be_written_in_capitals_and_without_the_device() {
    let mut scene = Scene::set().await;
    scene.accepted(|text| text.from = Some(identity("alice@localhost"))).await;
    scene.accepted(|text| text.from = Some(identity("Alice@LocalHost"))).await;
    scene.accepted(|text| text.to = vec![identity("BOB@localhost")]).await;
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_text_has_exactly_one_recipient_who_is_somebody_else() {
    let mut scene = Scene::set().await;
    scene.refused(400, |text| text.to = Vec::new()).await;
    scene.refused(400, |text| text.to.push(identity("carol@localhost"))).await;
    scene.refused(400, |text| text.to.push(identity(BOB))).await;
    scene.refused(400, |text| text.to = vec![identity("alice@localhost")]).await;
    scene.refused(400, |text| text.to = vec![identity("ALICE@localhost")]).await;
    scene
        .refused(400, |text| {
            text.to[0] = Identity { connection_resource_id: "tablet".into(), ..identity("alice@localhost") }
        })
        .await;
    scene.refused(400, |text| text.to = vec![Identity::default()]).await;
    scene.refused(400, |text| text.to = vec![identity("bob")]).await;
    scene.refused(400, |text| text.to = vec![identity("b ob@localhost")]).await;
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_text_has_1_byte_to_16_kib() {
    let mut scene = Scene::set().await;
    let error = scene.refused(400, |text| (text.content, text.text_size_count) = (String::new(), "0".into())).await;
    assert!(!error.message.is_empty());
    let kib16 = 16 * 1024;
    scene.accepted(|text| (text.content, text.text_size_count) = ("x".into(), String::new())).await;
    scene.accepted(|text| (text.content, text.text_size_count) = ("x".repeat(kib16), String::new())).await;
    // The limit counts bytes, not characters.
    scene.accepted(|text| (text.content, text.text_size_count) = ("ä".repeat(kib16 / 2), String::new())).await;
    let long = "secret".repeat(kib16 / 6 + 1);
    let error = scene.refused(413, |text| (text.content, text.text_size_count) = (long, String::new())).await;
    assert!(!format!("{error:?}").contains("secret"), "errors never repeat message content");
    scene.refused(413, |text| (text.content, text.text_size_count) = ("x".repeat(kib16 + 1), String::new())).await;
    let two_bytes_over = "ä".repeat(kib16 / 2 + 1);
    scene.refused(413, |text| (text.content, text.text_size_count) = (two_bytes_over, String::new())).await;
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_message_id_local_has_1_to_64_bytes() {
    let mut scene = Scene::set().await;
    scene.refused(400, |text| text.message_id_local = String::new()).await;
    scene.refused(400, |text| text.message_id_local = "x".repeat(65)).await;
    scene.refused(400, |text| text.message_id_local = "ä".repeat(33)).await;
    let error = scene.refused(400, |text| text.message_id_local = "x".repeat(20_000)).await;
    assert!(error.details.len() <= 64, "an error does not echo what is far too long");
    scene.accepted(|text| text.message_id_local = "x".repeat(64)).await;
    scene.accepted(|text| text.message_id_local = "ä".repeat(32)).await;
    scene.accepted(|text| text.message_id_local = "a b\n\u{0}".into()).await;
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_text_size_count_is_empty_or_a_number_up_to_the_contents_bytes() {
    let mut scene = Scene::set().await;
    for bad in ["9", "-1", "+8", "8.0", " 8", "8 ", "0x8", "eight", "٨", "99999999999999999999999999"] {
        scene.refused(400, |text| text.text_size_count = bad.to_owned()).await;
    }
    for good in ["", "0", "1", "8"] {
        scene.accepted(|text| text.text_size_count = good.to_owned()).await;
    }
    scene.assert_unharmed().await;
}

#[tokio::test]
async fn a_refusal_names_the_request_its_payload_and_the_message() {
    let mut scene = Scene::set().await;
    let local = "my-own-name-for-it";
    let mut text = scene.alice.text(BOB, local, "Hey Bob!");
    text.to.clear();
    for request_id in [0, 1, i64::MAX, -5] {
        let payload = Payload::TextPayloadRequest(text.clone());
        let scheme = bimip::wire::MessageScheme { request_id, ..bimip::wire::envelope(payload) };
        scene.alice.send_scheme(Lane::Chat, &scheme).await;
        let error = scene.alice.expect_error(Lane::Chat, 400, request_id).await;
        assert_eq!((error.route.as_str(), error.details.as_str()), ("text_payload_request", local));
        assert!(!error.message.is_empty());
    }
    scene.assert_unharmed().await;
}
