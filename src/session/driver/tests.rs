//! A session with its driver, over a link whose other end the test plays.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Rate;
use crate::hub::presence::{Shown, Told, Update};
use crate::limits::{LANE_QUEUE_BYTES, LIST_TEXT_BYTES_MAX, SESSION_UNRELEASED_MAX};
use crate::planted;
use crate::session::testing::{House, Peer};
use crate::store::testing::{Gate, contact, device, eid, text};
use crate::store::{Contact, Content, Embedded, Memory, NewMessage, Options};
use crate::wire::proto::{
    AwarenessRequest, Logout, MediaPayloadRequest, PingPong, SubscriberListRequest, TextPayloadRequest,
};
use crate::wire::{AwarenessStatus, ChatId, CloseCode, ErrorCode, Lane, Payload, Version};

#[tokio::test]
async fn a_backlog_goes_on_beside_a_lane_that_is_not_read() {
    const MESSAGES: u64 = 30;
    let house = House::new(|_, _| ());
    let alice = house.device(&eid("alice"), &device("phone")).await;
    alice.play(|played| (played.unread[Lane::Media.index()], played.unread[Lane::Chat.index()]) = (true, true));
    // The answer to this, a refusal, is what stays unread.
    alice.say(Lane::Media, Payload::PingpongMessage(PingPong::default()));
    for number in 1..=MESSAGES {
        let message = NewMessage { content: Content::Text("x".repeat(10_000)), ..text("bob", "alice", number) };
        house.store.accept(message, true).await.unwrap();
    }
    while alice.untaken(Lane::Chat) < LANE_QUEUE_BYTES || alice.untaken(Lane::Media) == 0 {
        tokio::task::yield_now().await;
    }
    alice.play(|played| played.unread[Lane::Chat.index()] = false);
    for version in 1..=MESSAGES as i64 {
        let next = alice.next(Lane::Chat).await.payload;
        assert!(matches!(&next, Some(Payload::ChatMessage(message)) if message.version == version), "{next:?}");
    }
    assert!(alice.untaken(Lane::Media) > 0);
}

#[tokio::test]
async fn a_change_that_is_put_off_while_another_is_told_comes_in_its_time() {
    let house = House::new(|_, _| ());
    let presence = house.services.hub.presence().clone();
    let phone = house.device(&eid("alice"), &device("phone")).await;
    let says = |status| Update { status, silent: false, location: None };
    let (alice, desk) = (eid("alice"), device("desk"));
    presence.update(&alice, &desk, &says(AwarenessStatus::Away));
    let told = async |status: AwarenessStatus| loop {
        match phone.next(Lane::Presence).await.payload {
            Some(Payload::AwarenessNotification(told)) if told.status == status.code() => return,
            Some(Payload::AwarenessNotification(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    told(AwarenessStatus::Away).await;
    // The next change comes too soon after this one, while the session is about to send something else: nothing wakes it for
    // this.
    let busy = Arc::clone(&presence);
    phone.play(|played| {
        played.before_presence = Some(Box::new(move || busy.update(&alice, &desk, &says(AwarenessStatus::Busy))));
    });
    let shown = Shown { status: AwarenessStatus::Idle, last_seen: 1, location: None, silent: false };
    presence.direct(&eid("alice"), &Told { owner: eid("bob"), shown });
    told(AwarenessStatus::Idle).await;
    told(AwarenessStatus::Busy).await;
}

#[tokio::test]
async fn what_is_behind_a_message_over_the_rate_waits_as_long_as_its_path_takes() {
    // The full burst is available again after a second.
    let house = House::new(|_, limits| limits.messages = Rate { per_second: 5, burst: 5 });
    let far = Peer::default();
    far.play(|played| played.path.rtt = Some(Duration::from_millis(400)));
    let alice = house.device_at(far, &eid("alice"), &device("phone")).await;
    for number in 1.. {
        alice.say(Lane::Chat, text_of("alice", "bob", number));
        match alice.next(Lane::Chat).await.payload {
            Some(Payload::VersionUpdate(_)) => {}
            Some(Payload::ErrorMessage(error)) if error.code == ErrorCode::TooFast.code() => {
                return assert_eq!(error.details, "800", "two round trips");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_behind_a_list_that_nobody_reads_counts_when_the_connection_ends() {
    // A list that is told to its end and fills the queue, and one that waits for room in it.
    for users in [300, 1500] {
        let house = House::new(|_, _| ());
        let (alice, phone) = (eid("alice"), device("phone"));
        for number in 0..users {
            let nickname = "n".repeat(LIST_TEXT_BYTES_MAX);
            let contact = Contact { nickname, ..contact(&format!("s{number}")) };
            house.store.put_contact(&alice, contact).await.unwrap();
        }
        let peer = house.device(&alice, &phone).await;
        peer.play(|played| played.unread[Lane::Control.index()] = true);
        let entity = Some(alice.device_identity(&phone));
        peer.say(Lane::Control, Payload::SubscriberListRequest(SubscriberListRequest { owner: entity.clone() }));
        while peer.untaken(Lane::Control) < LANE_QUEUE_BYTES {
            tokio::task::yield_now().await;
        }
        peer.say(Lane::Control, Payload::Logout(Logout { entity, r#type: 1, status: 3, ..Logout::default() }));
        peer.play(|played| played.closed = Some(CloseCode::Goodbye));
        let signed_out = async {
            while house.store.revocations().await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), signed_out).await.expect("the token is revoked");
    }
}

#[tokio::test]
async fn a_session_that_panics_leaves_like_any_other() {
    let house = House::new(|_, _| ());
    let (alice, bob) = (eid("alice"), eid("bob"));
    let peer = house.device(&bob, &device("phone")).await;
    let mut open = house.open(&alice, &device("phone"));
    if let Payload::SessionOpen(open) = &mut open {
        open.pipelined = false;
    }
    let broken = house.device_with(Peer::default(), open).await;
    broken.say(Lane::Chat, text_of("alice", "bob", 1));
    let answer = broken.next(Lane::Chat).await.payload;
    assert!(matches!(answer, Some(Payload::VersionUpdate(_))), "{answer:?}");
    // It does not answer that, so the message waits.
    planted::plant(Some(planted::Bug::Panic));
    broken.say(Lane::Media, Payload::PingpongMessage(PingPong::default()));
    assert_eq!(broken.end().await, CloseCode::Internal);
    planted::plant(None);
    sessions(&house, 1).await;
    assert_eq!(value(&house, "bimip_session_closes_total{reason=\"internal\"}"), 1);
    let again = house.device(&alice, &device("phone")).await;
    again.say(Lane::Chat, text_of("alice", "bob", 2));
    for version in [1, 2] {
        let next = peer.next(Lane::Chat).await.payload;
        assert!(matches!(&next, Some(Payload::ChatMessage(message)) if message.version == version), "{next:?}");
    }
}

#[tokio::test]
async fn a_backlog_that_nobody_reads_any_more_is_not_read_from_the_store() {
    const MESSAGES: u64 = 30;
    let (gate, go_on) = Gate::new();
    let mut house = House::new(|_, _| ());
    house.store = Arc::new(Embedded::open_memory(Memory::new(), Options::default(), gate.clone()).unwrap());
    for number in 1..=MESSAGES {
        // One entry in each of two logs.
        (0..2).for_each(|_| go_on.send(()).unwrap());
        let message = NewMessage { content: Content::Text("x".repeat(10_000)), ..text("bob", "alice", number) };
        house.store.accept(message, true).await.unwrap();
        gate.reached().await;
        gate.reached().await;
    }
    let peer = Peer::default();
    peer.play(|played| played.unread[Lane::Chat.index()] = true);
    let alice = house.device_at(peer, &eid("alice"), &device("phone")).await;
    while alice.untaken(Lane::Chat) < LANE_QUEUE_BYTES {
        tokio::task::yield_now().await;
    }
    let picture = MediaPayloadRequest {
        from: Some(eid("alice").identity()),
        to: vec![eid("bob").identity()],
        r#type: 1,
        cdn_url_id: "https://cdn.example/1.jpg".into(),
        message_id_local: "picture".into(),
        ..MediaPayloadRequest::default()
    };
    alice.say(Lane::Media, Payload::MediaPayloadRequest(picture));
    gate.reached().await;
    let reads = value(&house, "bimip_tail_reads_total");
    alice.play(|played| played.closed = Some(CloseCode::Goodbye));
    while alice.untaken(Lane::Chat) > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(value(&house, "bimip_tail_reads_total"), reads);
    drop(go_on);
    sessions(&house, 0).await;
}

#[tokio::test]
async fn all_messages_that_came_before_the_connection_was_lost_count() {
    const MESSAGES: u64 = 2 * SESSION_UNRELEASED_MAX as u64;
    let house = House::new(|_, _| ());
    let alice = house.device(&eid("alice"), &device("phone")).await;
    alice.play(|played| played.closed = Some(CloseCode::Goodbye));
    (1..=MESSAGES).for_each(|number| alice.say(Lane::Chat, text_of("alice", "bob", number)));
    let chat = ChatId::between(&eid("alice"), &eid("bob"));
    let accepted = async {
        while house.store.chat_version(chat).await.unwrap() < Version::from(MESSAGES) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), accepted).await.expect("all are accepted");
}

fn value(house: &House, series: &str) -> u64 {
    let page = house.services.metrics.render();
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{series} is not in {page}")).parse().unwrap()
}

/// Waits until so many sessions are there.
async fn sessions(house: &House, number: u64) {
    let there = async {
        while value(house, "bimip_sessions{transport=\"quic\"}") != number {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), there).await.expect("as many sessions");
}

fn text_of(from: &str, to: &str, number: u64) -> Payload {
    let (from, to) = (Some(eid(from).identity()), vec![eid(to).identity()]);
    let (content, message_id_local) = ("hello".to_owned(), format!("local-{number}"));
    Payload::TextPayloadRequest(TextPayloadRequest { from, to, content, message_id_local, ..Default::default() })
}

#[tokio::test]
async fn a_lane_whose_answers_nobody_reads_is_not_read_on() {
    let house = House::new(|_, limits| limits.frames = Rate::default());
    let alice = house.device(&eid("alice"), &device("phone")).await;
    alice.play(|played| played.unread[Lane::Media.index()] = true);
    // On the wrong lane, so that a refusal answers each.
    let ping = || Payload::PingpongMessage(PingPong { r#type: 1, ..PingPong::default() });
    for _ in 0..LANE_QUEUE_BYTES / 10 {
        alice.say(Lane::Media, ping());
    }
    while alice.untaken(Lane::Media) < LANE_QUEUE_BYTES {
        tokio::task::yield_now().await;
    }
    // Presence is read after media would have been.
    let ask =
        AwarenessRequest { from: Some(eid("alice").identity()), to: Some(eid("bob").identity()), ..Default::default() };
    alice.say(Lane::Presence, Payload::AwarenessRequest(ask));
    alice.next(Lane::Presence).await;
    let kept = alice.untaken(Lane::Media);
    assert!(kept < LANE_QUEUE_BYTES + 1024, "{kept} bytes are kept for who does not read");
}
