//! Lanes: payloads on the wrong lane, lanes opened twice, and unknown lanes.

use bimip::limits::STRIKES_MAX;
use bimip::wire::proto::{MediaPayloadRequest, PingPong, SessionAccept};
use bimip::wire::{CloseCode, ErrorMessage, Lane, MessageScheme, Payload, payload_name};

use super::common::{Bystanders, TestServer, Transport, identity};
use super::payloads;

#[tokio::test]
async fn a_payload_on_the_wrong_lane_is_refused_there_and_the_connection_goes_on() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = server.session("alice@localhost", "phone").pipelined().lanes(&Lane::ALL).open().await;
    for (right, payload) in payloads::by_lane() {
        for wrong in Lane::ALL.into_iter().filter(|lane| *lane != right) {
            let name = payload_name(&payload);
            let request_id = alice.send(wrong, payload.clone()).await;
            let error = alice.expect_error(wrong, 421, request_id).await;
            assert_eq!(error.route, name, "on {wrong:?}");
        }
    }
    // Also a complete and valid text on the wrong lane is refused and not accepted.
    let text = alice.text("bob@localhost", "wrong-lane", "on control");
    let request_id = alice.send(Lane::Control, Payload::TextPayloadRequest(text)).await;
    assert_eq!(alice.expect_error(Lane::Control, 421, request_id).await.details, "wrong-lane");
    alice.ping().await;
    for lane in Lane::ALL {
        alice.expect_nothing_more(lane).await;
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn a_lane_opened_twice_closes_the_connection_where_it_is_a_second_stream() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    for lanes in [&[Lane::Control, Lane::Chat][..], &Lane::ALL] {
        for again in lanes {
            let mut alice = server.session("alice@localhost", "phone").lanes(lanes).open().await;
            alice.open(*again).await;
            match Transport::HERE {
                Transport::Quic => alice.expect_close(CloseCode::ProtocolViolation).await,
                // Over TCP an empty frame opens a lane and may be repeated.
                Transport::Tcp => alice.ping().await,
            }
        }
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn an_unknown_lane_closes_the_connection() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    for byte in [4, 0x7f, 0xff] {
        let mut alice = server.sign_in("alice@localhost", "phone").await;
        alice.open_byte(byte).await;
        alice.expect_close(CloseCode::ProtocolViolation).await;

        let mut stranger = server.connect().await;
        stranger.open_byte(byte).await;
        stranger.expect_close(CloseCode::ProtocolViolation).await;
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn a_first_frame_that_is_not_session_open_is_refused_and_closes() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let firsts = payloads::by_lane().into_iter().filter(|(lane, _)| *lane == Lane::Control);
    for (_, payload) in firsts.filter(|(_, payload)| !matches!(payload, Payload::SessionOpen(_))) {
        let mut stranger = server.connect().await;
        stranger.open(Lane::Control).await;
        let name = payload_name(&payload);
        let request_id = stranger.send(Lane::Control, payload).await;
        let error = stranger.expect_error(Lane::Control, 401, request_id).await;
        assert_eq!(error.route, name);
        stranger.expect_close(CloseCode::Unauthenticated).await;
    }
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn what_no_server_takes_does_not_end_a_sign_in() {
    let server = TestServer::start().await;
    let mut stranger = server.connect().await;
    stranger.open(Lane::Control).await;
    let unknown = stranger.request_id();
    stranger.send_scheme(Lane::Control, &MessageScheme { request_id: unknown, ..MessageScheme::default() }).await;
    stranger.expect_error(Lane::Control, 501, unknown).await;
    let text = stranger.text("bob@localhost", "wrong-lane", "on control");
    let misplaced = stranger.send(Lane::Control, Payload::TextPayloadRequest(text)).await;
    stranger.expect_error(Lane::Control, 421, misplaced).await;
    // An error from a client gets no answer.
    stranger.send(Lane::Control, Payload::ErrorMessage(ErrorMessage { code: 500, ..ErrorMessage::default() })).await;
    let open = server.session("alice@localhost", "phone").open;
    let request_id = stranger.send(Lane::Control, Payload::SessionOpen(open)).await;
    assert_eq!(stranger.expect::<SessionAccept>(Lane::Control).await.request_id, request_id);
}

#[tokio::test]
async fn who_is_not_signed_in_is_not_answered_for_ever() {
    let server = TestServer::start().await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut stranger = server.connect().await;
    stranger.open(Lane::Control).await;
    for _ in 0..=STRIKES_MAX {
        stranger.write_frame(Lane::Control, &[0xff]).await;
    }
    for _ in 0..STRIKES_MAX {
        stranger.expect_error(Lane::Control, 400, 0).await;
    }
    stranger.expect_close(CloseCode::Abuse).await;
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn a_connection_without_session_open_is_closed_in_time() {
    // Honest devices sign in within this time on a busy machine, too.
    let server = TestServer::with(|config| config.session.open_within_ms = 4000).await;
    let mut bystanders = Bystanders::join(&server).await;

    let mut mute = server.connect().await;

    let mut silent = server.connect().await;
    silent.open(Lane::Control).await;

    // Neither half a frame nor frames on other lanes count as SessionOpen.
    let mut halting = server.connect().await;
    halting.open(Lane::Control).await;
    halting.open(Lane::Chat).await;
    if Transport::HERE == Transport::Quic {
        // Over TCP no other lane can send within a frame.
        halting.send(Lane::Chat, Payload::PingpongMessage(PingPong::default())).await;
    }
    halting.write(Lane::Control, &[20, 0x9a]).await;

    mute.expect_close(CloseCode::Unauthenticated).await;
    for mut stranger in [silent, halting] {
        stranger.expect_error(Lane::Control, 401, 0).await;
        stranger.expect_close(CloseCode::Unauthenticated).await;
    }
    // The timeout does not affect signed-in devices.
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn an_error_answers_on_the_lane_of_the_frame_that_caused_it() {
    let server = TestServer::start().await;
    let mut alice = server.session("alice@localhost", "phone").lanes(&Lane::ALL).open().await;
    let media = MediaPayloadRequest {
        from: Some(alice.user()),
        to: vec![identity("bob@localhost")],
        message_id_local: "picture".to_owned(),
        ..MediaPayloadRequest::default()
    };
    let request_id = alice.send(Lane::Media, Payload::MediaPayloadRequest(media)).await;
    let error = alice.expect_error(Lane::Media, 400, request_id).await;
    assert_eq!((error.route.as_str(), error.details.as_str()), ("media_payload_request", "picture"));
    // An error from a client gets no answer.
    for lane in Lane::ALL {
        alice.send(lane, Payload::ErrorMessage(ErrorMessage { code: 500, ..ErrorMessage::default() })).await;
        alice.expect_nothing_more(lane).await;
    }
}

#[tokio::test]
async fn lanes_that_are_not_read_leave_control_its_room() {
    if Transport::HERE == Transport::Tcp {
        return; // There is one stream: a frame that is not read blocks all frames behind it.
    }
    let server = TestServer::start().await;
    let mut alice = server.connect().await;
    alice.open(Lane::Control).await;
    // Before the session is accepted the server reads only control. Two frames of this size with their prefixes and the lane
    // byte are one byte less than the lane's window of 128 KiB.
    let frame = 64 * 1024 - 4;
    let others = [Lane::Presence, Lane::Chat, Lane::Media];
    for lane in others {
        alice.open(lane).await;
        for _ in 0..2 {
            alice.write_frame(lane, &vec![0xff; frame]).await;
        }
    }
    alice.send(Lane::Control, Payload::SessionOpen(server.session("alice@localhost", "phone").open)).await;
    alice.expect::<SessionAccept>(Lane::Control).await;
    alice.ping().await;
    for lane in others {
        alice.expect_error(lane, 400, 0).await;
        alice.expect_error(lane, 400, 0).await;
    }
}
