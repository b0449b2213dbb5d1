//! Bytes that are not frames, and frames that are not envelopes.

use bimip::wire::proto::{AwarenessNotification, PingPong, TextPayloadRequest};
use bimip::wire::{CloseCode, ErrorMessage, Lane, MessageScheme, Payload, encode_frame, envelope, payload_name};
use prost::Message;

use super::common::{Bystanders, Raw, TestServer, Transport, length_prefix};
use super::payloads;

/// A signed-in device with every lane open.
async fn alice(server: &TestServer) -> Raw {
    server.session("alice@localhost", "phone").pipelined().lanes(&Lane::ALL).open().await
}

#[tokio::test]
async fn an_undecodable_frame_is_refused_on_its_lane_and_the_connection_goes_on() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = alice(&server).await;
    // A lone tag byte, a length beyond the frame's end, an unknown wire type, text that is not UTF-8, an identity with
    // invalid content.
    let broken: [&[u8]; 5] =
        [&[0xff], &[0x72, 0x7f, 0x00], &[0x0f], &[0x72, 0x04, 0x1a, 0x02, 0xc3, 0x28], &[0x72, 0x03, 0x0a, 0x01, 0xff]];
    for lane in Lane::ALL {
        for content in broken {
            alice.write_frame(lane, content).await;
            let error = alice.expect_error(lane, 400, 0).await;
            assert_eq!((error.route.as_str(), error.message.is_empty()), ("", false));
        }
    }
    for lane in Lane::ALL {
        alice.expect_nothing_more(lane).await;
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn a_frame_over_the_limit_is_refused_and_closes_and_one_at_the_limit_does_not() {
    let server = TestServer::with(|config| config.session.max_frame_bytes = 24 * 1024).await;
    let mut bystanders = Bystanders::join(&server).await;
    let limit = 24 * 1024;
    let mut endless = vec![0xff; 10];
    endless.push(1);
    for lane in Lane::ALL {
        for announced in [length_prefix(limit + 1), length_prefix(u32::MAX as usize), endless.clone()] {
            let mut alice = alice(&server).await;
            assert_eq!(alice.accept.max_frame_bytes, limit as i32);
            alice.write_frame(lane, &vec![0xff; limit]).await;
            alice.expect_error(lane, 400, 0).await;
            // The length alone is enough for the refusal: no byte of the frame follows.
            alice.write(lane, &announced).await;
            alice.expect_error(lane, 413, 0).await;
            alice.expect_close(CloseCode::ProtocolViolation).await;
        }
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn an_oversized_first_frame_is_refused_before_anybody_signed_in() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut stranger = server.connect().await;
    stranger.open(Lane::Control).await;
    stranger.write(Lane::Control, &length_prefix(64 * 1024 + 1)).await;
    stranger.expect_error(Lane::Control, 413, 0).await;
    stranger.expect_close(CloseCode::ProtocolViolation).await;
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn a_route_that_is_not_the_payloads_is_refused_and_an_unset_one_is_not() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = alice(&server).await;
    for route in [1, 5, 7, 99, -1, i64::MAX] {
        let request_id = alice.request_id();
        let ping = Payload::PingpongMessage(PingPong { r#type: 1, ..PingPong::default() });
        alice.send_scheme(Lane::Control, &MessageScheme { route, request_id, ..envelope(ping) }).await;
        let error = alice.expect_error(Lane::Control, 400, request_id).await;
        assert_eq!(error.route, "pingpong_message", "{route}");
    }
    for route in [0, 6] {
        let request_id = alice.request_id();
        let ping = Payload::PingpongMessage(PingPong { r#type: 1, ..PingPong::default() });
        alice.send_scheme(Lane::Control, &MessageScheme { route, request_id, ..envelope(ping) }).await;
        assert_eq!(alice.expect::<PingPong>(Lane::Control).await.request_id, request_id);
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn an_awareness_notification_may_have_the_route_of_older_clients() {
    let server = TestServer::start().await;
    let mut alice = alice(&server).await;
    // A client may not send status 8 UNKNOWN, so every notification gets an error as its answer.
    let notification =
        || envelope(Payload::AwarenessNotification(AwarenessNotification { status: 8, ..Default::default() }));
    let mut answers = Vec::new();
    for route in [2, 1, 0, 3] {
        alice.send_scheme(Lane::Presence, &MessageScheme { route, ..notification() }).await;
        answers.push(alice.expect::<ErrorMessage>(Lane::Presence).await.into_body());
    }
    assert_eq!(answers[1], answers[0]);
    assert_eq!(answers[2], answers[0]);
    assert_ne!(answers[3], answers[0]);
    assert_eq!(answers[3].code, 400);
}

#[tokio::test]
async fn an_envelope_without_a_known_payload_is_unsupported() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = alice(&server).await;
    for lane in Lane::ALL {
        alice.write_frame(lane, &[]).await;
        if Transport::HERE == Transport::Quic {
            // Over TCP an empty frame only opens a lane.
            alice.expect_error(lane, 501, 0).await;
        }
        // Field 99 stands for a payload of a later version. The server still echoes the request id beside it.
        let request_id = alice.request_id();
        let mut later = MessageScheme { route: 99, request_id, ..MessageScheme::default() }.encode_to_vec();
        later.extend([0x9a, 0x06, 0x02, 0x08, 0x01]);
        alice.write_frame(lane, &later).await;
        alice.expect_error(lane, 501, request_id).await;
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn fields_of_a_later_version_in_a_known_payload_do_no_harm() {
    let server = TestServer::start().await;
    let mut alice = alice(&server).await;
    let mut ping = envelope(Payload::PingpongMessage(PingPong { r#type: 1, ..PingPong::default() })).encode_to_vec();
    // Field 100000, varint.
    ping.extend([0x80, 0xea, 0x30, 0x01]);
    alice.write_frame(Lane::Control, &ping).await;
    assert_eq!(alice.expect::<PingPong>(Lane::Control).await.r#type, 2);
}

#[tokio::test]
async fn payloads_that_only_a_server_sends_are_unsupported() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = alice(&server).await;
    for (lane, payload) in payloads::of_the_server() {
        let name = payload_name(&payload);
        let request_id = alice.send(lane, payload).await;
        let error = alice.expect_error(lane, 501, request_id).await;
        assert_eq!(error.route, name);
    }
    alice.ping().await;
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn frames_are_served_however_they_are_split() {
    let server = TestServer::start().await;
    let mut alice = alice(&server).await;
    let ping = |request_id| {
        let ping = Payload::PingpongMessage(PingPong { r#type: 1, request_time: 1, ..PingPong::default() });
        encode_frame(&MessageScheme { request_id, ..envelope(ping) })
    };
    for byte in ping(100).iter() {
        alice.write(Lane::Control, &[*byte]).await;
    }
    assert_eq!(alice.expect::<PingPong>(Lane::Control).await.request_id, 100);
    let three = [ping(101), ping(102), ping(103)].concat();
    let (one, other) = three.split_at(three.len() / 2);
    alice.write(Lane::Control, one).await;
    alice.write(Lane::Control, other).await;
    for request_id in 101..=103 {
        assert_eq!(alice.expect::<PingPong>(Lane::Control).await.request_id, request_id);
    }
}

#[tokio::test]
async fn half_a_frame_and_then_silence_harms_nobody_and_its_rest_completes_it() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = alice(&server).await;
    let text = alice.text("bob@localhost", "halved", "in two halves");
    let frame = encode_frame(&MessageScheme { request_id: 77, ..envelope(Payload::TextPayloadRequest(text)) });
    let (one, other) = frame.split_at(frame.len() / 2);
    alice.write(Lane::Chat, one).await;
    if Transport::HERE == Transport::Quic {
        // The first byte of a two-byte length prefix on another lane.
        alice.write(Lane::Media, &length_prefix(300)[..1]).await;
        // The other lanes go on. Over TCP they cannot send before the frame is complete.
        alice.ping().await;
        alice.expect_nothing_more(Lane::Presence).await;
    }
    bystanders.assert_unharmed().await;

    alice.write(Lane::Chat, other).await;
    let update = alice.expect::<bimip::wire::proto::VersionUpdate>(Lane::Chat).await;
    assert_eq!((update.request_id, update.version), (77, 1));
    assert_eq!(bystanders.bob.hear().await.message_id, update.message_id);
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn a_device_that_reads_its_answers_late_gets_them_all() {
    // The answers exceed QUIC's window (1.25 MB on the client's side) and the lane's queue, so the server stops reading. The
    // requests that it has not read then still fit the server's window, so the write below does not block.
    const REQUESTS: i64 = 11_200;
    // No timer of the session may wake it.
    let server = TestServer::with(|config| {
        config.session.open_within_ms = 600_000;
        config.session.ping_interval_ms = 60_000;
    })
    .await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = alice(&server).await;
    let refused = TextPayloadRequest { message_id_local: "x".repeat(64), ..TextPayloadRequest::default() };
    let mut frames = Vec::new();
    for request_id in 1..=REQUESTS {
        let text = Payload::TextPayloadRequest(refused.clone());
        frames.extend_from_slice(&encode_frame(&MessageScheme { request_id, ..envelope(text) }));
    }
    alice.write(Lane::Chat, &frames).await;
    alice.ping().await;
    bystanders.assert_unharmed().await;
    for request_id in 1..=REQUESTS {
        alice.expect_error(Lane::Chat, 400, request_id).await;
    }
    alice.expect_nothing_more(Lane::Chat).await;
}
