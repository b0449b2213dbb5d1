//! The client library on bad networks, against the running server: it returns with 0-RTT, a replayed first flight changes
//! nothing, it survives NAT rebinding, and it falls back to TCP and returns to QUIC.
#![cfg(all(feature = "client", feature = "server"))]
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod forged;
mod late;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bimip::client::limits::{EVENTS_MAX, STABLE_AFTER};
use bimip::client::{
    Builder, Content, Device, Event, Events, Media, RequestError, Session, State, Transport, Transports,
};
use bimip::config::Rate;
use bimip::wire::{AckStatus, AwarenessStatus, DeviceId, Eid, Lane, MediaType};
use common::{Road, TestServer, within_bound};
use tokio::net::UdpSocket;

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";
/// Silence that is no end of a path: on a busy machine an answer may take its time. For tests in which a session has to last.
const PATIENT: Duration = Duration::from_secs(15);

fn eid(text: &str) -> Eid {
    Eid::parse(text).unwrap()
}

fn options(server: &TestServer, user: &str, address: SocketAddr) -> Builder {
    Device::builder()
        .server(address.to_string())
        .server_name("localhost")
        .roots_pem(server.files().ca)
        .identity(eid(user), DeviceId::parse("phone").unwrap())
        .token(server.token(user, None))
        .silence(Duration::from_millis(800))
}

async fn connect(builder: Builder) -> (Device, Events, Session) {
    let (device, events) = builder.connect().unwrap();
    let session = within_bound("a session", device.connected()).await.unwrap();
    (device, events, session)
}

/// A road that drops UDP, and Alice's phone over TCP on it, which tries QUIC again each second at first.
async fn where_udp_is_dropped(server: &TestServer) -> (Road, (Device, Events, Session)) {
    let road = Road::to(server.quic_address()).await;
    road.drop_udp(true);
    let phone = connect(options(server, ALICE, road.address).retry_quic_after(Duration::from_secs(1))).await;
    assert_eq!(phone.2.transport, Transport::Tcp);
    (road, phone)
}

async fn state(device: &Device, what: &str, fits: impl Fn(&State) -> bool) -> State {
    let mut state = device.state();
    within_bound(what, state.wait_for(|state| fits(state))).await.unwrap().clone()
}

async fn session(device: &Device, what: &str, fits: impl Fn(&Session) -> bool) -> Session {
    match state(device, what, |state| matches!(state, State::Connected(session) if fits(session))).await {
        State::Connected(session) => session,
        _ => unreachable!("waited for a session"),
    }
}

async fn text(events: &mut Events) -> String {
    loop {
        let event = within_bound("a message", events.next()).await.unwrap();
        if let Event::Message(message) = event {
            return message.text().unwrap().to_owned();
        }
    }
}

/// Waits until a metric has at least this value.
async fn metric(server: &TestServer, series: &str, value: f64) {
    within_bound(series, async {
        while server.metric(series).await < value {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

const ACCEPTED: &str = "bimip_zero_rtt_total{result=\"accepted\"}";
const REJECTED: &str = "bimip_zero_rtt_total{result=\"rejected\"}";
const OPENS: &str = "bimip_session_opens_total{transport=\"quic\",result=\"accepted\"}";

#[tokio::test]
async fn a_phone_that_returns_sends_its_outbox_with_its_first_packet_and_a_replay_of_that_changes_nothing() {
    let server = TestServer::with(|config| config.quic.initial_rtt_ms = 5_000).await;
    let road = Road::to(server.quic_address()).await;
    let (_bob, mut bobs, _) = connect(options(&server, BOB, server.quic_address())).await;
    let only_quic = Transports::Only(Transport::Quic);
    let (alice, _alices, first) = connect(options(&server, ALICE, road.address).transports(only_quic)).await;
    assert!(!first.early);
    within_bound("the answer", alice.send_text(&eid(BOB), "before")).await.unwrap();

    road.drop_udp(true);
    let bob_eid = eid(BOB);
    let sending = alice.send_text(&bob_eid, "in the tunnel");
    let returning = async {
        state(&alice, "the path to be given up", |state| !matches!(state, State::Connected(_))).await;
        road.drop_udp(false);
        session(&alice, "another session", |session| *session != first).await
    };
    let (sent, second) = within_bound("the return", async { tokio::join!(sending, returning) }).await;
    sent.unwrap();
    assert!(second.early, "{second:?}");
    assert_eq!(server.metric(ACCEPTED).await, 1.0);
    assert_eq!((text(&mut bobs).await, text(&mut bobs).await), ("before".into(), "in the tunnel".into()));

    // After the phone has left, an attacker replays everything that it sent, from another address.
    let opens = server.metric(OPENS).await;
    let recorded = road.recorded();
    within_bound("alice to leave", alice.close()).await;
    metric(&server, "bimip_session_closes_total{reason=\"closed_by_peer\"}", 1.0).await;
    let ports: BTreeSet<_> = recorded.iter().map(|(from, _)| *from).collect();
    assert!(!ports.is_empty());
    let attacker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    within_bound("the server to see the ticket again", async {
        while server.metric(REJECTED).await == 0.0 {
            for (_, datagram) in &recorded {
                attacker.send_to(datagram, server.quic_address()).await.unwrap();
            }
        }
    })
    .await;

    // When the server has served another device, it has processed the replay.
    let (carol, _carols, _) = connect(options(&server, "carol@localhost", server.quic_address())).await;
    within_bound("the answer", carol.send_text(&eid(BOB), "after")).await.unwrap();
    assert_eq!(text(&mut bobs).await, "after");
    assert_eq!(server.metric(ACCEPTED).await, 1.0);
    assert_eq!(server.metric(OPENS).await, opens + 1.0);

    // The session that began early was not taken to have the round trip that is assumed before the first was measured.
    let below = server.metric("bimip_path_rtt_seconds_bucket{transport=\"quic\",le=\"4\"}").await;
    assert!(below >= 4.0, "{below}");
    assert_eq!(below, server.metric("bimip_path_rtt_seconds_count{transport=\"quic\"}").await);
}

#[tokio::test]
async fn a_first_flight_that_comes_late_does_not_end_the_session_that_the_phone_has_by_then() {
    let server = TestServer::start().await;
    let road = Road::to(server.quic_address()).await;
    let (bob, _bobs, _) = connect(options(&server, BOB, server.quic_address())).await;
    let only_quic = Transports::Only(Transport::Quic);
    let (alice, _alices, first) = connect(options(&server, ALICE, road.address).transports(only_quic)).await;
    // She says so again with each session.
    within_bound("the call", alice.set_presence(AwarenessStatus::Invisible, true, None)).await.unwrap();
    let before = road.recorded().len();
    // Nothing passes any more, but what the phone sends is recorded.
    road.drop_udp(true);
    let sending = tokio::spawn({
        let alice = alice.clone();
        async move { alice.send_text(&eid(BOB), "in the tunnel").await }
    });
    state(&alice, "the path to be given up", |state| !matches!(state, State::Connected(_))).await;
    let first_flight = || {
        let recorded = road.recorded().into_iter().map(|(_, datagram)| datagram);
        // Packets of the first connection have a short header by now.
        recorded.skip(before).filter(|datagram| datagram[0] & 0x80 != 0).collect::<Vec<_>>()
    };
    let withheld = within_bound("a first flight", async {
        loop {
            match first_flight() {
                // Enough for SessionOpen.
                flight if flight.len() >= 3 => return flight,
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    within_bound("alice to leave", alice.close()).await;
    assert!(within_bound("the end of it", sending).await.unwrap().is_err());

    let (alice, mut alices, second) = connect(options(&server, ALICE, server.quic_address())).await;
    assert_ne!(first, second);
    within_bound("the call", alice.set_presence(AwarenessStatus::Online, true, None)).await.unwrap();
    let opens = server.metric(OPENS).await;
    let attacker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for datagram in &withheld {
        attacker.send_to(datagram, server.quic_address()).await.unwrap();
    }
    metric(&server, OPENS, opens + 1.0).await;
    assert!(server.metric(ACCEPTED).await >= 1.0);
    within_bound("the answer", bob.send_text(&eid(ALICE), "still there?")).await.unwrap();
    assert_eq!(text(&mut alices).await, "still there?");
    let shown = within_bound("her presence", alice.presence_of(&eid(ALICE))).await.unwrap();
    assert_eq!(shown.status, AwarenessStatus::Online, "what is newer stands");
    assert_eq!(*alice.state().borrow(), State::Connected(second));
}

#[tokio::test]
async fn early_data_that_the_server_does_not_take_is_sent_again_on_the_same_connection() {
    let server = TestServer::start().await;
    let road = Road::to(server.quic_address()).await;
    let only_quic = Transports::Only(Transport::Quic);
    let (alice, _alices, first) = connect(options(&server, ALICE, road.address).transports(only_quic)).await;
    road.drop_udp(true);
    let bob_eid = eid(BOB);
    let sending = alice.send_text(&bob_eid, "in the tunnel");
    let returning = async {
        state(&alice, "the path to be given up", |state| !matches!(state, State::Connected(_))).await;
        // A restarted server does not know its earlier tickets.
        let server = server.restart().await;
        road.lead_to(server.quic_address());
        road.drop_udp(false);
        (session(&alice, "another session", |session| *session != first).await, server)
    };
    let (sent, (second, server)) = within_bound("the return", async { tokio::join!(sending, returning) }).await;
    sent.unwrap();
    assert!(!second.early, "{second:?}");
    assert_eq!(server.metric(ACCEPTED).await, 0.0);
    assert!(server.metric(REJECTED).await > 0.0);
    let (_bob, mut bobs, _) = connect(options(&server, BOB, server.quic_address())).await;
    assert_eq!(text(&mut bobs).await, "in the tunnel");
}

#[tokio::test]
async fn a_nat_that_forgets_in_mid_conversation_costs_neither_session_nor_message() {
    const MESSAGES: usize = 60;
    let server = TestServer::start().await;
    let road = Road::to(server.quic_address()).await;
    let (bob, mut bobs, _) = connect(options(&server, BOB, road.address).silence(PATIENT)).await;
    let (alice, mut alices, session) = connect(options(&server, ALICE, road.address).silence(PATIENT)).await;
    let (alice_eid, bob_eid) = (eid(ALICE), eid(BOB));
    for number in 0..MESSAGES {
        if number % 20 == 10 {
            road.forget_bindings();
        }
        let (there, back) = (alice.send_text(&bob_eid, format!("{number}")), bob.send_text(&alice_eid, "back"));
        let (there, back) = within_bound("both answers", async { tokio::join!(there, back) }).await;
        assert!(there.is_ok() && back.is_ok());
        assert_eq!((text(&mut bobs).await, text(&mut alices).await), (number.to_string(), "back".to_owned()));
    }
    assert_eq!(*alice.state().borrow(), State::Connected(session), "the session is the same");
    assert!(server.metric("bimip_path_migrations_total{kind=\"nat_rebinding\"}").await >= 3.0);
    assert_eq!(server.metric(OPENS).await, 2.0);
}

#[tokio::test]
async fn a_move_to_where_nothing_comes_back_from_has_failed_and_costs_neither_session_nor_message() {
    let server = TestServer::start().await;
    let road = Road::to(server.quic_address()).await;
    let (bob, _bobs, _) = connect(options(&server, BOB, server.quic_address()).silence(PATIENT)).await;
    let (alice, mut alices, session) = connect(options(&server, ALICE, road.address).silence(PATIENT)).await;
    let pinging = tokio::spawn({
        let alice = alice.clone();
        async move { alice.ping().await }
    });
    // The server validates a new path only when it has something to send there. The phone may be back on the old path before
    // that, so lead it astray until the server has seen a move.
    let mut sent = 0;
    within_bound("the server to go back", async {
        while server.metric("bimip_path_migrations_total{kind=\"failed\"}").await == 0.0 {
            if server.metric("bimip_path_migrations_total{kind=\"nat_rebinding\"}").await == 0.0 {
                road.lead_astray(true);
            }
            bob.send_text(&eid(ALICE), sent.to_string()).await.unwrap();
            sent += 1;
        }
    })
    .await;
    road.lead_astray(false);
    for number in 0..sent {
        assert_eq!(text(&mut alices).await, number.to_string());
    }
    within_bound("the ping's end", pinging).await.unwrap().unwrap();
    assert_eq!(*alice.state().borrow(), State::Connected(session), "the session is the same");
    assert!(server.metric("bimip_path_migrations_total{kind=\"nat_rebinding\"}").await >= 1.0);
}

#[tokio::test]
async fn where_udp_is_dropped_a_phone_comes_over_tcp_and_goes_back_to_quic() {
    let server = TestServer::start().await;
    let (road, (alice, mut alices, first)) = where_udp_is_dropped(&server).await;
    let (bob, mut bobs, _) = connect(options(&server, BOB, server.quic_address())).await;
    within_bound("the answer", alice.send_text(&eid(BOB), "over TCP")).await.unwrap();
    assert_eq!(text(&mut bobs).await, "over TCP");
    within_bound("the answer", bob.send_text(&eid(ALICE), "to TCP")).await.unwrap();
    assert_eq!(text(&mut alices).await, "to TCP");
    assert!(within_bound("a ping", alice.ping()).await.is_ok());

    // The library remembers that QUIC was silent on this network and starts with TCP.
    within_bound("the call", alice.network_changed()).await.unwrap();
    let second = session(&alice, "another session", |session| session.session_id != first.session_id).await;
    assert_eq!(second.transport, Transport::Tcp);

    road.drop_udp(false);
    session(&alice, "QUIC again", |session| session.transport == Transport::Quic).await;
    within_bound("the answer", alice.send_text(&eid(BOB), "over QUIC")).await.unwrap();
    assert_eq!(text(&mut bobs).await, "over QUIC");
}

#[tokio::test]
async fn where_quic_is_cut_behind_its_handshake_a_phone_comes_over_tcp() {
    let server = TestServer::start().await;
    // Before the phone has signed in, and twice after it.
    for datagrams in [0, 10] {
        let road = Road::to(server.quic_address()).await;
        road.cut_behind_handshake(datagrams);
        let (alice, _alices) = options(&server, ALICE, road.address).connect().unwrap();
        let speaking = async {
            // Until the phone speaks, nobody notices that nothing comes back.
            while alice.connected().await.unwrap().transport == Transport::Quic {
                let _ = alice.ping().await;
            }
        };
        within_bound("TCP", speaking).await;
        within_bound("the answer", alice.send_text(&eid(BOB), "over TCP")).await.unwrap();
        within_bound("alice to leave", alice.close()).await;
    }
}

#[tokio::test]
async fn a_phone_that_only_listens_where_quic_is_cut_comes_over_tcp() {
    let server = TestServer::start().await;
    let road = Road::to(server.quic_address()).await;
    road.cut_behind_handshake(10);
    let phone = options(&server, ALICE, road.address).keep_alive(Some(Duration::from_millis(500)));
    let (alice, mut alices) = phone.idle_timeout(Duration::from_secs(2)).connect().unwrap();
    session(&alice, "TCP", |session| session.transport == Transport::Tcp).await;
    let (bob, _bobs, _) = connect(options(&server, BOB, server.quic_address())).await;
    within_bound("the answer", bob.send_text(&eid(ALICE), "to TCP")).await.unwrap();
    assert_eq!(text(&mut alices).await, "to TCP");
}

#[tokio::test]
async fn a_phone_that_speaks_late_where_quic_is_cut_comes_over_tcp() {
    let server = TestServer::start().await;
    let (road, (alice, mut alices, _)) = where_udp_is_dropped(&server).await;
    road.drop_udp(false);
    session(&alice, "QUIC", |session| session.transport == Transport::Quic).await;
    road.cut_behind_handshake(0);
    // QUIC was silent here before, so that one session that is cut is enough, if nothing was heard of it after its first
    // seconds, whenever it was asked.
    tokio::time::sleep(STABLE_AFTER + Duration::from_secs(1)).await;
    within_bound("the answer", alice.send_text(&eid(BOB), "late")).await.unwrap();
    let told = async {
        loop {
            if let Event::Connected(session) = alices.next().await.unwrap()
                && session.transport == Transport::Quic
            {
                break alices.next().await.unwrap();
            }
        }
    };
    assert!(matches!(within_bound("the end of QUIC", told).await, Event::Disconnected(_)));
    let again = session(&alice, "another session", |_| true).await;
    assert_eq!(again.transport, Transport::Tcp);
}

#[tokio::test]
async fn a_return_to_quic_that_is_cut_is_told_and_ends_on_tcp() {
    let server = TestServer::start().await;
    let (road, (alice, mut alices, _)) = where_udp_is_dropped(&server).await;
    road.lose_sign_ins(true);
    road.drop_udp(false);
    let told = async {
        let (mut told, mut connected) = (Vec::new(), 0);
        while connected < 2 {
            match alices.next().await.unwrap() {
                Event::Connected(session) => {
                    connected += 1;
                    told.push(Some(session.transport));
                }
                Event::Disconnected(_) => told.push(None),
                _ => {}
            }
        }
        told
    };
    assert_eq!(within_bound("TCP again", told).await, [Some(Transport::Tcp), None, Some(Transport::Tcp)]);
    within_bound("the answer", alice.send_text(&eid(BOB), "over TCP")).await.unwrap();
}

#[tokio::test]
async fn a_phone_that_goes_back_to_quic_is_not_called_connected_before_it_has_signed_in_there() {
    let server = TestServer::start().await;
    let road = Road::to(server.quic_address()).await;
    road.drop_udp(true);
    let phone = options(&server, ALICE, road.address).silence(Duration::from_secs(12));
    let (alice, _alices, _) = connect(phone.retry_quic_after(Duration::from_secs(1))).await;
    road.lose_sign_ins(true);
    road.drop_udp(false);
    let held = async {
        let over_tcp =
            |state: &State| matches!(state, State::Connected(session) if session.transport == Transport::Tcp);
        state(&alice, "the phone to leave TCP", |state| !over_tcp(state)).await;
        road.lose_sign_ins(false);
    };
    // What an application does that has to have its answer, as `RequestError::NotConnected` says.
    let asking = async {
        let mut in_vain = 0;
        while alice.connected().await.unwrap().transport == Transport::Tcp {
            in_vain += usize::from(alice.ping().await == Err(RequestError::NotConnected));
            assert!(in_vain <= 1, "it is told that the phone is connected, and its requests fail");
        }
        alice.ping().await.unwrap();
    };
    within_bound("QUIC again", async { tokio::join!(held, asking) }).await;
}

#[tokio::test]
async fn a_phone_may_use_tcp_alone_and_reconnects_over_it() {
    let server = TestServer::start().await;
    let only_tcp = Transports::Only(Transport::Tcp);
    let (alice, mut alices, first) = connect(options(&server, ALICE, server.quic_address()).transports(only_tcp)).await;
    assert_eq!((first.transport, first.early), (Transport::Tcp, false));
    let (bob, _bobs, _) = connect(options(&server, BOB, server.quic_address())).await;
    // A second sign-in of the same device. The first connection gets the close code REPLACED in its last error frame.
    let (_thief, _events, _) = connect(options(&server, ALICE, server.quic_address())).await;
    let closed = state(&alice, "to be replaced", |state| matches!(state, State::Closed(_))).await;
    assert!(format!("{closed:?}").contains("Replaced"), "{closed:?}");
    within_bound("the answer", bob.send_text(&eid(ALICE), "hello")).await.unwrap();
    within_bound("the call", alice.reconnect()).await.unwrap();
    session(&alice, "another session", |session| session.session_id != first.session_id).await;
    assert_eq!(text(&mut alices).await, "hello");
}

#[tokio::test]
async fn where_too_many_sign_in_at_once_each_comes_in_later() {
    let server = TestServer::with(|config| config.limits.sign_ins = Rate { per_second: 5, burst: 1 }).await;
    for transport in [Transport::Quic, Transport::Tcp] {
        let users = ["one", "two", "three"].map(|name| format!("{name}-{}@localhost", transport.name()));
        let devices = users.map(|user| {
            let builder = options(&server, &user, server.quic_address()).transports(Transports::Only(transport));
            builder.connect().unwrap()
        });
        for (device, _events) in &devices {
            within_bound("a session", device.connected()).await.unwrap();
        }
    }
    assert!(server.metric("bimip_rate_limited_total{limit=\"sign_ins\"}").await >= 1.0);
}

/// Waits until two more frames have reached the server on control: the library's pings for a sign of life.
async fn asked_for_life(server: &TestServer) {
    let frames = "bimip_frames_total{lane=\"control\",direction=\"in\"}";
    let before = server.metric(frames).await;
    metric(server, frames, before + 2.0).await;
}

#[tokio::test]
async fn a_tcp_connection_lives_on_however_quiet_the_server_and_however_slow_the_application() {
    // More events than the library queues for the application, so that it stops reading the connection.
    const WAITING: usize = EVENTS_MAX + 20;
    let server = TestServer::with(|config| config.session.ping_interval_ms = 60_000).await;
    let (bob, _bobs, _) = connect(options(&server, BOB, server.quic_address())).await;
    let only_tcp = Transports::Only(Transport::Tcp);
    let phone = options(&server, ALICE, server.quic_address()).transports(only_tcp);
    let (alice, mut alices, session) = connect(phone.idle_timeout(Duration::from_secs(2))).await;
    asked_for_life(&server).await;
    assert_eq!(*alice.state().borrow(), State::Connected(session.clone()), "nobody had anything to say");

    for number in 0..WAITING {
        within_bound("the answer", bob.send_text(&eid(ALICE), number.to_string())).await.unwrap();
    }
    asked_for_life(&server).await;
    for number in 0..WAITING {
        assert_eq!(text(&mut alices).await, number.to_string());
    }
    asked_for_life(&server).await;
    assert_eq!(*alice.state().borrow(), State::Connected(session), "nobody read what was said");
}

/// The backlog is more than the device's queues and windows hold. The library acknowledges each message, and the application
/// acknowledges some; these answers lie behind messages that the application has not read yet.
#[tokio::test]
async fn a_long_backlog_is_taken_and_acknowledged_over_either_transport() {
    const WAITING: usize = 3 * EVENTS_MAX;
    // Bytes of a message. The backlog is several times the windows of a lane.
    const LENGTH: usize = 4_000;
    let server = TestServer::with(|config| config.limits.messages = Rate::default()).await;
    let (bob, _bobs, _) = connect(options(&server, BOB, server.quic_address())).await;
    for transport in [Transport::Quic, Transport::Tcp] {
        let user = format!("{}@localhost", transport.name());
        let to = eid(&user);
        for number in 0..WAITING {
            within_bound("the answer", bob.send_text(&to, format!("{number:.<LENGTH$}"))).await.unwrap();
        }

        let builder = options(&server, &user, server.quic_address()).transports(Transports::Only(transport));
        let (device, mut events, _) = connect(builder.auto_deliver(true)).await;
        let mut number = 0;
        while number < WAITING {
            let Some(Event::Message(message)) = within_bound("a message", events.next()).await else { continue };
            assert_eq!(message.text(), Some(format!("{number:.<LENGTH$}").as_str()));
            number += 1;
            if number % EVENTS_MAX == 1 {
                let bob = eid(BOB);
                let read = device.acknowledge(message.message_id, &bob, AckStatus::Read);
                assert_eq!(within_bound("the answer", read).await.unwrap(), AckStatus::Read);
            }
        }
        within_bound("a pong", device.ping()).await.unwrap();
    }
}

#[tokio::test]
async fn a_return_to_quic_without_a_token_is_not_tried_without_a_pause() {
    let server = TestServer::start().await;
    let road = Road::to(server.quic_address()).await;
    road.drop_udp(true);
    let asked = Arc::new(AtomicUsize::new(0));
    let token = server.token(ALICE, None);
    let source = {
        let asked = asked.clone();
        move || {
            let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            let token = token.clone();
            async move { if first { Ok(token) } else { Err("the sign-in service is down".into()) } }
        }
    };
    let phone = options(&server, ALICE, road.address).token(source).retry_quic_after(Duration::from_millis(500));
    let (alice, _alices, first) = connect(phone).await;
    assert_eq!(first.transport, Transport::Tcp);
    let twice = async {
        while asked.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    };
    within_bound("the token source to be asked again", twice).await;
    // The session over TCP is served meanwhile.
    for _ in 0..10 {
        within_bound("a pong", alice.ping()).await.unwrap();
    }
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked < 10, "the token source was asked {asked} times");
}

#[tokio::test]
async fn a_media_message_is_answered_whatever_lanes_were_opened() {
    let server = TestServer::start().await;
    let (alice, _events, _) =
        connect(options(&server, ALICE, server.quic_address()).lanes(&[Lane::Control, Lane::Media])).await;
    let media = Media {
        kind: MediaType::Image,
        url: "https://cdn.example.org/1".into(),
        caption: String::new(),
        thumbnail_url: String::new(),
        size_bytes: 1,
    };
    within_bound("the answer", alice.send(alice.draft(&eid(BOB), Content::Media(media)))).await.unwrap();
}
