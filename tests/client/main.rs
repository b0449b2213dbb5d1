//! The client library's promises, over real QUIC against a peer that loses, refuses and dies.
#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, unreachable_pub)]

#[cfg(feature = "cli")]
mod commands;
mod peer;
mod told;

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bimip::client::limits::{ABUSE_WAIT, EVENTS_MAX};
use bimip::client::{
    Backlog, BuildError, Builder, CloseReason, Content, Device, Draft, Event, Events, Media, Message, Outbox,
    RequestError, SendError, State,
};
use bimip::wire::{AckStatus, CloseCode, DeviceId, LocalId, MediaType, Sequence, Version};
use peer::{Peer, eid};

/// Timeout of every wait, long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn options(peer: &Peer) -> Builder {
    Device::builder()
        .server(peer.address.to_string())
        .server_name("localhost")
        .roots(peer.roots.clone())
        .identity(eid("alice@x"), DeviceId::parse("phone").unwrap())
        .token("good".to_owned())
        .silence(Duration::from_millis(800))
}

fn device(peer: &Peer) -> (Device, Events) {
    options(peer).connect().unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// A media message, which the peer refuses.
fn picture() -> Content {
    Content::Media(Media {
        kind: MediaType::Image,
        url: "https://cdn.x/1".into(),
        caption: String::new(),
        thumbnail_url: String::new(),
        size_bytes: 1,
    })
}

async fn message(events: &mut Events) -> Message {
    loop {
        match soon(events.next()).await {
            Some(Event::Message(message)) => return message,
            Some(_) => {}
            None => panic!("the device has ended"),
        }
    }
}

async fn state(device: &Device, fits: impl Fn(&State) -> bool) -> State {
    let mut state = device.state();
    soon(state.wait_for(|state| fits(state))).await.unwrap().clone()
}

#[tokio::test]
async fn a_text_goes_out_a_message_comes_in_and_the_device_leaves_politely() {
    let peer = Peer::start();
    let (device, mut events) = options(&peer).auto_deliver(true).connect().unwrap();
    let session = soon(device.connected()).await.unwrap();
    assert_eq!((session.session_id.as_str(), session.gap), ("s", false));
    assert!(matches!(soon(events.next()).await, Some(Event::Connected(_))));

    let sent = soon(device.send_text(&eid("bob@x"), "Hey Bob!")).await.unwrap();
    assert_eq!((sent.version, sent.sequence), (Version::from(1), Sequence::from(1)));
    peer.push("Hey Alice!");
    let received = message(&mut events).await;
    assert_eq!((received.text(), received.from.clone()), (Some("Hey Alice!"), eid("bob@x")));
    let id = received.message_id.to_string();
    soon(peer.until(|seen| seen.acknowledged == [(id.clone(), AckStatus::Delivered.code())])).await;
    let read = device.acknowledge(received.message_id, &received.from, AckStatus::Read);
    assert_eq!(soon(read).await, Ok(AckStatus::Read));

    assert!(soon(device.ping()).await.is_ok());
    assert!(soon(device.path_rtt()).await.is_some());
    soon(peer::ping(&peer)).await;

    soon(device.close()).await;
    soon(peer.until(|seen| seen.closes == [0])).await;
    assert_eq!(peer.state().seen().texts, 1);
    assert_eq!(soon(events.next()).await, None);
    assert_eq!(*device.state().borrow(), State::Closed(CloseReason::Local));
    let late = soon(device.send_text(&eid("bob@x"), "late")).await;
    assert_eq!(late, Err(SendError::Closed(CloseReason::Local)));
}

#[tokio::test]
async fn what_was_unanswered_when_the_connection_was_lost_is_sent_again_and_taken_once_in_order() {
    let peer = Peer::start();
    peer.state().change(|seen| seen.lose_after = vec![1, 10, 60, 61, 150, 230]);
    let (device, events) = device(&peer);
    drop(events);
    let tickets: Vec<_> = (0..100)
        .map(|number| device.submit(device.draft(&eid("bob@x"), Content::Text(format!("number {number}")))).unwrap())
        .collect();
    let names: Vec<_> = tickets.iter().map(|ticket| ticket.local_id().to_string()).collect();
    for (index, ticket) in tickets.into_iter().enumerate() {
        let sent = soon(ticket).await.unwrap();
        assert_eq!(sent.version, Version::from(index as u64 + 1));
    }
    let seen = peer.state().seen();
    assert_eq!(seen.accepted, names);
    assert!(seen.opens.len() > 2, "{} connections", seen.opens.len());
    assert!(seen.texts > 100, "something was repeated");
}

#[tokio::test]
async fn every_entry_comes_to_the_application_once_and_in_order_across_lost_connections() {
    const TOTAL: usize = 400;
    let peer = Peer::start();
    let (device, mut events) = device(&peer);
    for number in 0..TOTAL / 2 {
        peer.push(&format!("{number}"));
    }
    for number in 0..TOTAL {
        assert_eq!(message(&mut events).await.text(), Some(format!("{number}").as_str()));
        if number % 40 == 0 {
            let opens = peer.state().seen().opens.len();
            peer.close_all(CloseCode::Draining);
            soon(peer.until(|seen| seen.opens.len() > opens)).await;
        }
        if number < TOTAL / 2 {
            peer.push(&format!("{}", TOTAL / 2 + number));
        }
    }
    soon(peer.until(|seen| seen.synced == TOTAL as i64)).await;
    soon(device.close()).await;
    // No message came after that.
    while let Some(event) = soon(events.next()).await {
        assert!(!matches!(event, Event::Message(_)), "{event:?}");
    }
    assert!(peer.state().seen().opens.len() > 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_killed_is_found_again_with_nothing_lost() {
    let mut peer = Peer::start();
    let (device, mut events) = device(&peer);
    soon(device.connected()).await.unwrap();
    soon(device.send_text(&eid("bob@x"), "before")).await.unwrap();
    peer.push("one");
    assert_eq!(message(&mut events).await.text(), Some("one"));
    for round in 0..2 {
        peer.kill();
        let ticket = device.submit(device.draft(&eid("bob@x"), Content::Text(format!("during {round}")))).unwrap();
        // The device notices only from the silence that the server is gone.
        state(&device, |state| !matches!(state, State::Connected(_))).await;
        peer.revive();
        assert_eq!(soon(ticket).await.unwrap().version, Version::from(round + 2));
        peer.push("again");
        assert_eq!(message(&mut events).await.text(), Some("again"));
    }
    assert_eq!(peer.state().seen().accepted.len(), 3);
}

#[tokio::test]
async fn a_device_that_changes_its_address_in_mid_conversation_keeps_its_connection() {
    let peer = Peer::start();
    let (device, mut events) = device(&peer);
    soon(device.connected()).await.unwrap();
    let mut addresses = vec![peer.state().seen().connections[0].remote_address()];
    for round in 0..3 {
        let moved = match round {
            0 => soon(device.rebind("127.0.0.2:0".parse().unwrap())).await,
            _ => soon(device.network_changed()).await,
        };
        let moved = moved.unwrap().expect("there is a socket");
        // Nobody says that the address before is still there.
        assert_eq!(moved.ip().is_unspecified(), round > 0, "{moved}");
        soon(device.send_text(&eid("bob@x"), "from elsewhere")).await.unwrap();
        peer.push(&format!("to elsewhere {round}"));
        assert_eq!(message(&mut events).await.text(), Some(format!("to elsewhere {round}").as_str()));
        addresses.push(peer.state().seen().connections[0].remote_address());
    }
    assert!(addresses.windows(2).all(|pair| pair[0] != pair[1]), "{addresses:?}");
    let seen = peer.state().seen();
    assert_eq!((seen.connections.len(), seen.opens.len(), seen.texts), (1, 1, 3));
}

#[tokio::test]
async fn a_refused_token_is_final_unless_the_source_has_another() {
    let peer = Peer::start();
    let (device, _events) = options(&peer).token("bad".to_owned()).connect().unwrap();
    let waiting = device.submit(device.draft(&eid("bob@x"), Content::Text("never".into()))).unwrap();
    let refused = soon(device.connected()).await.unwrap_err();
    let CloseReason::Server { code, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!(*code, CloseCode::Unauthenticated);
    assert_eq!(soon(waiting).await, Err(SendError::Unanswered(refused.clone())));
    assert_eq!(soon(device.ping()).await, Err(RequestError::Closed(refused)));
    assert_eq!(peer.state().seen().opens.len(), 1, "the same token is not tried twice");
    assert_eq!(peer.state().seen().texts, 0, "what came with a refused session was dropped");

    let tokens = Arc::new(Mutex::new(vec!["good".to_owned(), "bad".to_owned()]));
    let source = move || {
        let token = tokens.lock().unwrap().pop();
        async move { token.ok_or("no more tokens".into()) }
    };
    let (device, _events) = options(&peer).token(source).connect().unwrap();
    soon(device.connected()).await.unwrap();

    // A source that returns a new bad token each time is not asked for ever.
    let made_up = || async { Ok(format!("{:?}", std::time::Instant::now())) };
    let (device, _events) = options(&peer).token(made_up).connect().unwrap();
    soon(device.connected()).await.unwrap_err();
}

#[tokio::test]
async fn a_sign_in_that_is_put_off_is_made_again_with_the_same_token() {
    let peer = Peer::start();
    peer.state().change(|seen| seen.put_off = 3);
    let (device, _events) = device(&peer);
    let waiting = device.submit(device.draft(&eid("bob@x"), Content::Text("patient".into()))).unwrap();
    soon(device.connected()).await.unwrap();
    soon(waiting).await.unwrap();
    let seen = peer.state().seen();
    assert!(seen.opens.iter().all(|open| open.token == "good"));
    assert_eq!((seen.opens.len(), seen.texts), (4, 1));
}

#[tokio::test]
async fn a_new_token_that_the_server_had_not_looked_at_is_good_for_the_next_connection() {
    let peer = Peer::start();
    peer.state().change(|seen| seen.token_lives = 1);
    let (gate, open) = tokio::sync::watch::channel(false);
    let asked = AtomicUsize::new(0);
    let source = move || {
        let (first, mut open) = (asked.fetch_add(1, Ordering::Relaxed) == 0, open.clone());
        async move {
            if first {
                return Ok("good".to_owned());
            }
            open.wait_for(|open| *open).await?;
            Ok("better".to_owned())
        }
    };
    let (device, _events) = options(&peer).token(source).connect().unwrap();
    soon(device.connected()).await.unwrap();
    peer.state().change(|seen| (seen.token, seen.put_off) = ("better".into(), 1));
    gate.send_replace(true);
    soon(peer.until(|seen| seen.opens.len() == 2)).await;
    // The first token has expired before the server checks the second.
    peer.close_all(CloseCode::Unauthenticated);
    soon(peer.until(|seen| seen.opens.len() == 3)).await;
    soon(device.send_text(&eid("bob@x"), "still here")).await.unwrap();
    let tokens: Vec<_> = peer.state().seen().opens.iter().map(|open| open.token.clone()).collect();
    assert_eq!(tokens, ["good", "better", "better"]);
}

#[tokio::test]
async fn a_replaced_device_stays_away_until_the_application_calls_it_back() {
    let peer = Peer::start();
    let (device, mut events) = device(&peer);
    soon(device.connected()).await.unwrap();
    let waiting = device.submit(device.draft(&eid("bob@x"), Content::Text("kept".into()))).unwrap();
    soon(waiting).await.unwrap();
    peer.state().change(|seen| seen.mute = true);
    let waiting = device.submit(device.draft(&eid("bob@x"), Content::Text("kept".into()))).unwrap();
    let kept = waiting.local_id().clone();
    soon(peer.until(|seen| seen.texts == 2)).await;
    peer.close_all(CloseCode::Replaced);
    assert!(matches!(soon(waiting).await, Err(SendError::Unanswered(_))));
    let reason = soon(device.connected()).await.unwrap_err();
    assert!(matches!(reason, CloseReason::Server { code: CloseCode::Replaced, .. }));
    assert_eq!(peer.state().seen().opens.len(), 1);

    peer.state().change(|seen| seen.mute = false);
    soon(device.reconnect()).await.unwrap();
    soon(device.connected()).await.unwrap();
    // The message kept its place in the outbox, and its acceptance comes as an event now.
    loop {
        match soon(events.next()).await.unwrap() {
            Event::Accepted(accepted) => break assert_eq!(accepted.local_id, kept),
            _ => continue,
        }
    }
    assert_eq!(peer.state().seen().accepted.len(), 2);
}

#[tokio::test]
async fn an_application_that_does_not_read_stops_chat_alone_and_gets_everything_later() {
    // 8 MiB in all: more than all windows, queues and buffers together.
    const TOTAL: usize = 1024;
    let peer = Peer::start();
    let (device, mut events) = device(&peer);
    soon(device.connected()).await.unwrap();
    let text = "x".repeat(8 * 1024);
    for number in 0..TOTAL {
        peer.push(&format!("{number} {text}"));
    }
    soon(peer.until(|seen| seen.tailed > EVENTS_MAX)).await;
    for _ in 0..3 {
        assert!(soon(device.ping()).await.is_ok());
        soon(peer::ping(&peer)).await;
    }
    let tailed = peer.state().seen().tailed;
    assert!(tailed < TOTAL, "{tailed} entries were taken from the peer");
    for number in 0..TOTAL {
        let message = message(&mut events).await;
        assert_eq!(message.text().and_then(|text| text.split(' ').next()), Some(number.to_string().as_str()));
    }
    assert_eq!(peer.state().seen().opens.len(), 1, "silence of the application is not silence of the path");
}

#[tokio::test]
async fn control_goes_on_while_every_other_lane_is_full() {
    const TOTAL: usize = 1024;
    let peer = Peer::start();
    let (device, mut events) = device(&peer);
    soon(device.connected()).await.unwrap();
    let text = "x".repeat(8 * 1024);
    for number in 0..TOTAL {
        peer.push(&format!("{number} {text}"));
    }
    peer.state().change(|seen| seen.to_presence = TOTAL);
    // The device answers pings while chat and presence fill up, and for 20 more pings after neither lane takes any more.
    let (mut before, mut still) = ((0, 0), 0);
    while still < 20 {
        soon(peer::ping(&peer)).await;
        let now = {
            let seen = peer.state().seen();
            (seen.tailed, seen.noticed)
        };
        still = if now == before { still + 1 } else { 0 };
        before = now;
    }
    assert!(before.0 < TOTAL && before.1 < TOTAL, "{before:?}");
    // Nothing was lost.
    for number in 0..TOTAL {
        let message = message(&mut events).await;
        assert_eq!(message.text().and_then(|text| text.split(' ').next()), Some(number.to_string().as_str()));
    }
    assert_eq!(peer.state().seen().opens.len(), 1);
}

#[tokio::test]
async fn a_lane_is_opened_by_its_first_frame_and_refusals_reach_whoever_sent() {
    let peer = Peer::start();
    let (device, _events) = device(&peer);
    let refused = soon(device.send(device.draft(&eid("bob@x"), picture()))).await.unwrap_err();
    let SendError::Refused(refusal) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.code, 501);
    assert_eq!(peer.state().seen().media, 1);
}

#[tokio::test]
async fn a_send_under_the_same_local_id_is_taken_once() {
    let peer = Peer::start();
    let (device, _events) = device(&peer);
    let name = LocalId::parse("invoice-7").unwrap();
    let first = soon(device.send_text_with(name.clone(), &eid("bob@x"), "pay")).await.unwrap();
    let second = soon(device.send_text_with(name, &eid("bob@x"), "pay")).await.unwrap();
    assert_eq!((first.version, first.message_id), (second.version, second.message_id));
    assert_eq!(peer.state().seen().accepted.len(), 1);
}

#[tokio::test]
async fn close_waits_for_the_answers_that_are_under_way() {
    let peer = Peer::start();
    let (device, _events) = device(&peer);
    soon(device.connected()).await.unwrap();
    let tickets: Vec<_> = (0..50)
        .map(|number| device.submit(device.draft(&eid("bob@x"), Content::Text(format!("{number}")))).unwrap())
        .collect();
    soon(device.close()).await;
    for ticket in tickets {
        soon(ticket).await.unwrap();
    }
    assert_eq!(peer.state().seen().accepted.len(), 50);
}

#[tokio::test]
async fn a_dropped_device_leaves() {
    let peer = Peer::start();
    let (device, mut events) = device(&peer);
    soon(device.connected()).await.unwrap();
    drop(device);
    soon(peer.until(|seen| seen.closes == [0])).await;
    while soon(events.next()).await.is_some() {}
}

#[tokio::test]
async fn an_application_whose_code_panics_in_the_device_is_told() {
    let peer = Peer::start();
    let fetched = AtomicUsize::new(0);
    let source = move || {
        assert_eq!(fetched.fetch_add(1, Ordering::Relaxed), 0, "the application's own mistake");
        async { Ok("good".to_owned()) }
    };
    let (device, mut events) = options(&peer).token(source).connect().unwrap();
    soon(device.connected()).await.unwrap();
    peer.close_all(CloseCode::Draining);
    state(&device, |state| *state == State::Closed(CloseReason::Panicked)).await;
    while soon(events.next()).await.is_some() {}
    let late = soon(device.send_text(&eid("bob@x"), "late")).await;
    assert_eq!(late, Err(SendError::Closed(CloseReason::Panicked)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_may_have_replaced_itself_comes_back_once() {
    let mut peer = Peer::with_early_data();
    let (device, _events) = device(&peer);
    soon(device.connected()).await.unwrap();
    peer.kill();
    // An attempt in vain: for all that the device knows, what it sent in its first flight may yet arrive.
    state(&device, |state| matches!(state, State::Connecting)).await;
    state(&device, |state| matches!(state, State::Waiting { .. })).await;
    peer.revive();
    state(&device, |state| matches!(state, State::Connected(_))).await;
    let opens = peer.state().seen().opens.len();
    peer.close_all(CloseCode::Replaced);
    soon(peer.until(|seen| seen.opens.len() > opens)).await;
    state(&device, |state| matches!(state, State::Connected(_))).await;
    peer.close_all(CloseCode::Replaced);
    state(&device, |state| matches!(state, State::Closed(_))).await;
}

/// An outbox that outlives its device, like a file.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Backlog>>);

impl Outbox for Kept {
    fn load(&mut self, _: &bimip::wire::Eid) -> io::Result<Backlog> {
        Ok(self.0.lock().unwrap().clone())
    }

    fn insert(&mut self, draft: &Draft) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap();
        if draft.content == Content::Text("poison".into()) {
            return Err(io::Error::other("disk full"));
        }
        if kept.drafts.iter().any(|other| other.local_id == draft.local_id) {
            return Err(io::Error::other("a message of this name is there"));
        }
        kept.drafts.push(draft.clone());
        Ok(())
    }

    fn remove(&mut self, local_id: &LocalId) -> io::Result<()> {
        self.0.lock().unwrap().drafts.retain(|draft| draft.local_id != *local_id);
        Ok(())
    }

    fn advance(&mut self, cursor: Sequence) -> io::Result<()> {
        self.0.lock().unwrap().cursor = Some(cursor);
        Ok(())
    }
}

#[tokio::test]
async fn what_a_durable_outbox_kept_goes_out_from_the_next_process() {
    let peer = Peer::start();
    let outbox = Kept::default();
    let (device, mut events) = options(&peer).outbox(Box::new(outbox.clone())).connect().unwrap();
    peer.push("one");
    message(&mut events).await;
    soon(peer.until(|seen| seen.synced == 1)).await;
    soon(device.send_text(&eid("bob@x"), "answered")).await.unwrap();
    peer.state().change(|seen| seen.mute = true);
    let ticket = device.submit(device.draft(&eid("bob@x"), Content::Text("unanswered".into()))).unwrap();
    let poison = soon(device.send_text(&eid("bob@x"), "poison")).await;
    assert_eq!(poison, Err(SendError::Outbox("disk full".into())));
    soon(peer.until(|seen| seen.texts == 2)).await;
    drop(device);
    assert!(matches!(soon(ticket).await, Err(SendError::Unanswered(_))));
    while soon(events.next()).await.is_some() {}
    {
        let kept = outbox.0.lock().unwrap();
        assert_eq!(kept.drafts.len(), 1);
        assert!(kept.cursor >= Some(Sequence::from(1)));
    }

    peer.state().change(|seen| seen.mute = false);
    let (_device, mut events) = options(&peer).outbox(Box::new(outbox.clone())).connect().unwrap();
    let mut accepted = 0;
    while accepted == 0 {
        match soon(events.next()).await.unwrap() {
            Event::Accepted(_) => accepted += 1,
            Event::Message(message) => panic!("taken before: {message:?}"),
            _ => {}
        }
    }
    assert_eq!(peer.state().seen().accepted.len(), 2);
    assert!(outbox.0.lock().unwrap().drafts.is_empty());
}

#[tokio::test]
async fn what_an_application_took_does_not_come_to_the_next_process() {
    let peer = Peer::start();
    let outbox = Kept::default();
    for (round, texts) in [["one", "two"], ["three", "four"]].into_iter().enumerate() {
        let builder = options(&peer).outbox(Box::new(outbox.clone())).auto_deliver(true);
        let (device, mut events) = builder.connect().unwrap();
        for text in texts {
            peer.push(text);
            assert_eq!(message(&mut events).await.text(), Some(text));
        }
        soon(peer.until(|seen| seen.acknowledged.len() == 2 * (round + 1))).await;
        soon(device.close()).await;
        while soon(events.next()).await.is_some() {}
        assert_eq!(outbox.0.lock().unwrap().cursor, Some(Sequence::from(2 * (round as u64 + 1))));
    }
}

#[tokio::test]
async fn options_that_make_no_device_say_what_is_wrong() {
    let peer = Peer::start();
    let missing = Device::builder().server("localhost:1").connect().unwrap_err();
    assert!(matches!(missing, BuildError::Missing("identity")), "{missing}");
    let server = options(&peer).server("localhost").connect().unwrap_err();
    assert!(matches!(server, BuildError::Server(_)), "{server}");
    let both = options(&peer).auto_deliver(true).auto_sync(false).connect().unwrap_err();
    assert!(matches!(both, BuildError::Contradiction(_)), "{both}");
    let roots = options(&peer).roots_pem("/nonexistent/ca.pem").connect().unwrap_err();
    assert!(matches!(roots, BuildError::Roots { .. }), "{roots}");
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_is_not_talked_to() {
    let (peer, other) = (Peer::start(), Peer::start());
    let (device, _events) = options(&peer).roots(other.roots.clone()).connect().unwrap();
    let waiting = state(&device, |state| matches!(state, State::Waiting { .. })).await;
    assert!(matches!(waiting, State::Waiting { reason: CloseReason::Tls(_), .. }), "{waiting:?}");
    assert_eq!(peer.state().seen().opens.len(), 0);
}

#[tokio::test]
async fn a_server_that_has_closed_for_abuse_is_left_alone_for_a_while() {
    let peer = Peer::start();
    let (device, _events) = device(&peer);
    soon(device.connected()).await.unwrap();
    peer.close_all(CloseCode::Abuse);
    let waiting = state(&device, |state| matches!(state, State::Waiting { .. })).await;
    let State::Waiting { retry_in, .. } = waiting else { unreachable!("waited for it") };
    assert!((ABUSE_WAIT..=2 * ABUSE_WAIT).contains(&retry_in), "{retry_in:?}");
}
