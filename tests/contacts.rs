//! Subscribers and blocks: the list, its bounds, and what a block stops (BIMip-Foundation 4.4, 4.5, 5.5, 5.6; protocol.md §11).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

mod common;

use bimip::wire::proto::{
    BlockSubscriber, Subscriber, SubscriberAddRequest, SubscriberAddResponse, SubscriberList, SubscriberListRequest,
    SubscriberRemove, VersionUpdate,
};
use bimip::wire::{ErrorMessage, Identity, Lane, Payload};

use common::{Bystanders, Got, Raw, TestServer, identity, now_ms, text_of};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";
const CAROL: &str = "carol@localhost";
const SUCCESS: i32 = 1;
const FAILED: i32 = 2;
const UPDATED: i32 = 3;

fn add(owner: &Raw, subscriber: &str) -> SubscriberAddRequest {
    let (owner, subscriber) = (Some(owner.identity()), Some(identity(subscriber)));
    SubscriberAddRequest { owner, subscriber, timestamp: now_ms(), ..SubscriberAddRequest::default() }
}

async fn put(owner: &mut Raw, add: SubscriberAddRequest) -> Got<SubscriberAddResponse> {
    let request_id = owner.send(Lane::Control, Payload::SubscriberAddRequest(add)).await;
    let response = owner.expect::<SubscriberAddResponse>(Lane::Control).await;
    assert_eq!((response.request_id, response.sequence), (request_id, 0));
    assert_eq!(response.owner, Some(owner.user()));
    response
}

async fn remove(owner: &mut Raw, subscriber: &str) -> i32 {
    let (owner_id, subscriber) = (Some(owner.user()), Some(identity(subscriber)));
    let request = SubscriberRemove { owner: owner_id, subscriber: subscriber.clone(), ..SubscriberRemove::default() };
    let request_id = owner.send(Lane::Control, Payload::SubscriberRemove(request)).await;
    let response = owner.expect::<SubscriberRemove>(Lane::Control).await;
    assert_eq!((response.request_id, response.r#type, &response.subscriber), (request_id, 2, &subscriber));
    response.status
}

async fn block(owner: &mut Raw, subscriber: &str, action: i32) -> i32 {
    let (owner_id, subscriber) = (Some(owner.user()), Some(identity(subscriber)));
    let request = BlockSubscriber { owner: owner_id, subscriber, r#type: 1, action, ..BlockSubscriber::default() };
    let request_id = owner.send(Lane::Control, Payload::BlockSubscriber(request)).await;
    let response = owner.expect::<BlockSubscriber>(Lane::Control).await;
    assert_eq!((response.request_id, response.r#type, response.action), (request_id, 2, action));
    response.status
}

async fn list(owner: &mut Raw) -> Vec<Subscriber> {
    let request = SubscriberListRequest { owner: Some(owner.user()) };
    let request_id = owner.send(Lane::Control, Payload::SubscriberListRequest(request)).await;
    let mut entries = Vec::new();
    loop {
        let page = owner.expect::<SubscriberList>(Lane::Control).await;
        assert_eq!((page.request_id, &page.owner), (request_id, &Some(owner.user())));
        entries.extend(page.entries.clone());
        if !page.more {
            return entries;
        }
    }
}

/// Sends a text and expects error 403 that does not repeat its content.
async fn is_refused(sender: &mut Raw, to: &str, local: &str) {
    let request_id = sender.post(to, local, "a secret").await;
    let error = sender.expect_error(Lane::Chat, 403, request_id).await;
    assert_eq!((error.route.as_str(), error.details.as_str()), ("text_payload_request", local));
    assert!(!format!("{error:?}").contains("secret"));
}

#[tokio::test]
async fn an_entry_is_added_updated_listed_and_removed() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    assert_eq!(list(&mut alice).await, []);
    let before = now_ms();
    let full = SubscriberAddRequest {
        nickname: "Bobby".into(),
        group: "friends".into(),
        subscriber_resource_id: "bobs-phone".into(),
        share_location: Some(false),
        subscriber: Some(identity("Bob@LOCALHOST")),
        ..add(&alice, BOB)
    };
    let response = put(&mut alice, full.clone()).await;
    assert_eq!((response.status, response.subscriber_resource_id.as_str()), (SUCCESS, "bobs-phone"));
    assert_eq!(response.subscriber, Some(identity(BOB)));
    assert!((before..=now_ms()).contains(&response.timestamp));
    let [entry] = list(&mut alice).await.try_into().unwrap();
    assert_eq!((entry.nickname.as_str(), entry.group.as_str()), ("Bobby", "friends"));
    assert_eq!((entry.subscriber_resource_id.as_str(), entry.share_location), ("bobs-phone", false));
    assert_eq!((entry.subscriber, entry.blocked), (Some(identity(BOB)), false));
    assert!((before..=now_ms()).contains(&entry.added_at));

    // Adding again sets every field except the time. Fields that are not given become empty.
    let bare = add(&alice, BOB);
    let response = put(&mut alice, bare).await;
    assert_eq!(response.status, UPDATED);
    let [updated] = list(&mut alice).await.try_into().unwrap();
    assert_eq!((updated.nickname.as_str(), updated.group.as_str(), updated.share_location), ("", "", true));
    assert_eq!((&updated.subscriber_resource_id, updated.added_at), (&response.subscriber_resource_id, entry.added_at));

    assert_eq!(remove(&mut alice, BOB).await, SUCCESS);
    assert_eq!(remove(&mut alice, BOB).await, FAILED);
    assert_eq!(list(&mut alice).await, []);
    assert_eq!(put(&mut alice, full).await.status, SUCCESS);
}

#[tokio::test]
async fn a_resource_id_is_echoed_or_assigned() {
    let server = TestServer::start().await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let mut assigned = Vec::new();
    for subscriber in [BOB, CAROL] {
        let request = add(&alice, subscriber);
        let id = put(&mut alice, request).await.subscriber_resource_id.clone();
        assert!(bimip::wire::DeviceId::parse(&id).is_ok(), "{id:?}");
        assigned.push(id);
    }
    assert_ne!(assigned[0], assigned[1]);
    // Sent again, as a client does whose connection was lost: nothing changes.
    let request = add(&alice, BOB);
    assert_eq!(put(&mut alice, request).await.subscriber_resource_id, assigned[0]);
    let listed: Vec<_> = list(&mut alice).await.into_iter().map(|entry| entry.subscriber_resource_id).collect();
    assert_eq!(listed, assigned);
    for bad in ["a b", "ä", &"x".repeat(65)] {
        let request = SubscriberAddRequest { subscriber_resource_id: bad.to_owned(), ..add(&alice, BOB) };
        let request_id = alice.send(Lane::Control, Payload::SubscriberAddRequest(request)).await;
        alice.expect_error(Lane::Control, 400, request_id).await;
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let server = TestServer::with(|config| config.domains = vec!["localhost".to_owned()]).await;
    let mut bystanders = Bystanders::join(&server).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let owner = Some(alice.identity());
    let who = |eid: &str| Some(identity(eid));
    let adding = |change: fn(&mut SubscriberAddRequest)| {
        let mut request = SubscriberAddRequest { owner: owner.clone(), subscriber: who(BOB), ..Default::default() };
        change(&mut request);
        Payload::SubscriberAddRequest(request)
    };
    let removing = |subscriber, r#type| {
        let owner = owner.clone();
        Payload::SubscriberRemove(SubscriberRemove { owner, subscriber, r#type, ..Default::default() })
    };
    let blocking = |subscriber, r#type, action| {
        let owner = owner.clone();
        Payload::BlockSubscriber(BlockSubscriber { owner, subscriber, r#type, action, ..Default::default() })
    };
    for (code, payload) in [
        (400, adding(|add| add.subscriber = None)),
        (400, adding(|add| add.subscriber = Some(Identity::default()))),
        (400, adding(|add| add.subscriber = Some(identity("bob")))),
        (400, adding(|add| add.subscriber = Some(identity("ALICE@localhost")))),
        (404, adding(|add| add.subscriber = Some(identity("bob@elsewhere.example")))),
        (413, adding(|add| add.nickname = "x".repeat(257))),
        (413, adding(|add| add.group = "ä".repeat(129))),
        (400, removing(None, 1)),
        (400, removing(who(ALICE), 1)),
        (400, removing(who(BOB), 2)),
        (400, blocking(None, 1, 1)),
        (400, blocking(who(ALICE), 1, 1)),
        (400, blocking(who(BOB), 2, 1)),
        (400, blocking(who(BOB), 1, 3)),
        (400, blocking(who(BOB), 1, -1)),
    ] {
        let what = format!("{payload:?}");
        let request_id = alice.send(Lane::Control, payload).await;
        let error = alice.expect::<ErrorMessage>(Lane::Control).await;
        assert_eq!((error.code, error.request_id), (code, request_id), "{what}");
    }
    assert_eq!(list(&mut alice).await, []);
    let longest = SubscriberAddRequest { nickname: "x".repeat(256), group: "y".repeat(256), ..add(&alice, BOB) };
    assert_eq!(put(&mut alice, longest).await.status, SUCCESS);
    bystanders.assert_unharmed().await;
}

#[tokio::test]
async fn a_list_of_5000_is_told_in_several_frames_and_takes_no_more() {
    const MOST: usize = 5_000;
    let server = TestServer::with(|config| config.limits = unlimited()).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    for n in 0..MOST {
        let mut request = add(&alice, &format!("subscriber-{n:04}@localhost"));
        request.nickname = format!("number {n}");
        alice.send(Lane::Control, Payload::SubscriberAddRequest(request)).await;
    }
    for _ in 0..MOST {
        assert_eq!(alice.expect::<SubscriberAddResponse>(Lane::Control).await.status, SUCCESS);
    }
    let request = add(&alice, BOB);
    let refused = put(&mut alice, request).await;
    assert_eq!((refused.status, refused.message.is_empty()), (FAILED, false));
    // An existing entry may still change, and a block needs no place in the list.
    let request = add(&alice, "subscriber-0000@localhost");
    assert_eq!(put(&mut alice, request).await.status, UPDATED);
    assert_eq!(block(&mut alice, BOB, 1).await, SUCCESS);

    let request = SubscriberListRequest { owner: Some(alice.user()) };
    alice.send(Lane::Control, Payload::SubscriberListRequest(request)).await;
    let (mut frames, mut names) = (0, Vec::new());
    loop {
        let page = alice.expect::<SubscriberList>(Lane::Control).await;
        frames += 1;
        assert!(!page.entries.is_empty());
        names.extend(page.entries.iter().map(|entry| entry.subscriber.clone().unwrap().eid));
        if !page.more {
            break;
        }
    }
    assert!(frames > 1);
    let expected = (0..MOST).map(|n| format!("subscriber-{n:04}@localhost"));
    assert!([BOB.to_owned()].into_iter().chain(expected).eq(names), "ordered by eid, each once");

    assert_eq!(remove(&mut alice, "subscriber-4999@localhost").await, SUCCESS);
    let request = add(&alice, CAROL);
    assert_eq!(put(&mut alice, request).await.status, SUCCESS);
}

#[tokio::test]
async fn a_list_keeps_to_the_frames_that_are_configured() {
    // The test's client refuses a longer frame.
    let server = TestServer::with(|config| config.session.max_frame_bytes = 20 * 1024).await;
    let mut alice = server.sign_in(ALICE, "phone").await;
    let names: Vec<_> = (0..60).map(|n| format!("{n:02}{}@localhost", "x".repeat(200))).collect();
    for name in &names {
        let request = SubscriberAddRequest { nickname: "n".repeat(256), group: "g".repeat(256), ..add(&alice, name) };
        assert_eq!(put(&mut alice, request).await.status, SUCCESS);
    }
    let told = list(&mut alice).await.into_iter().map(|entry| entry.subscriber.unwrap().eid);
    assert!(told.eq(names));
}

fn unlimited() -> bimip::config::LimitsConfig {
    let none = bimip::config::Rate::default();
    bimip::config::LimitsConfig {
        frames: none,
        messages: none,
        awareness: none,
        sign_ins: none,
        ..bimip::config::LimitsConfig::default()
    }
}

#[tokio::test]
async fn a_blocked_user_is_refused_with_403_and_nothing_is_stored() {
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    // Neither user is on the other's list. Action 0 blocks as 1 does.
    for action in [1, 0] {
        assert_eq!(block(&mut bob, ALICE, action).await, SUCCESS);
        assert_eq!(block(&mut bob, ALICE, action).await, SUCCESS, "blocking again is no failure");
        is_refused(&mut alice, BOB, "while-blocked").await;
        // The user who blocks may still send.
        let update = bob.say(ALICE, &format!("while-blocking-{action}"), "no").await;
        assert_eq!(text_of(&*alice.hear().await), "no");
        assert_eq!(update.version, 2 - i64::from(action));
        assert_eq!(block(&mut bob, ALICE, 2).await, SUCCESS);
        assert_eq!(block(&mut bob, ALICE, 2).await, SUCCESS);
    }
    bob.expect_nothing_more(Lane::Chat).await;
    // The refused messages took neither a version nor their local id.
    let update = alice.say(BOB, "while-blocked", "hello").await;
    assert_eq!((update.version, update.sequence), (3, 3));
    assert_eq!((text_of(&*bob.hear().await), bob.last_sequence), ("hello", 3));
}

#[tokio::test]
async fn a_block_stops_media_too_and_survives_a_restart() {
    let server = TestServer::start().await;
    let mut bob = server.sign_in(BOB, "phone").await;
    let request = SubscriberAddRequest { nickname: "Al".into(), ..add(&bob, ALICE) };
    put(&mut bob, request).await;
    assert_eq!(block(&mut bob, ALICE, 1).await, SUCCESS);
    assert_eq!(block(&mut bob, CAROL, 1).await, SUCCESS);
    let mut server = server;
    for restarted in [false, true] {
        if restarted {
            server = server.restart().await;
            bob = server.sign_in(BOB, "phone").await;
        }
        let lanes = [Lane::Control, Lane::Chat, Lane::Media];
        let mut alice = server.session(ALICE, "phone").pipelined().lanes(&lanes).open().await;
        is_refused(&mut alice, BOB, "local-1").await;
        let media = bimip::wire::proto::MediaPayloadRequest {
            from: Some(alice.user()),
            to: vec![identity(BOB)],
            message_id_local: "local-2".into(),
            r#type: 1,
            cdn_url_id: "https://cdn.example/cat.png".into(),
            ..Default::default()
        };
        let request_id = alice.send(Lane::Media, Payload::MediaPayloadRequest(media)).await;
        alice.expect_error(Lane::Media, 403, request_id).await;
        let listed: Vec<_> = list(&mut bob).await;
        let listed: Vec<_> = listed
            .iter()
            .map(|e| (e.subscriber.as_ref().unwrap().eid.as_str(), e.nickname.as_str(), e.blocked, e.share_location))
            .collect();
        assert_eq!(listed, [(ALICE, "Al", true, true), (CAROL, "", true, false)]);
    }
    // A blocked user who is removed stays blocked. An unblocked user who was never a subscriber is no longer listed.
    assert_eq!(remove(&mut bob, ALICE).await, SUCCESS);
    assert_eq!(list(&mut bob).await.len(), 2);
    let mut alice = server.sign_in(ALICE, "phone").await;
    is_refused(&mut alice, BOB, "local-3").await;
    assert_eq!(block(&mut bob, ALICE, 2).await, SUCCESS);
    assert_eq!(block(&mut bob, CAROL, 2).await, SUCCESS);
    assert_eq!(list(&mut bob).await, []);
    alice.say(BOB, "local-4", "at last").await;
}

#[tokio::test]
async fn a_message_that_races_with_a_block_is_accepted_and_arrives_or_is_refused() {
    const ROUNDS: usize = 30;
    const EACH: usize = 12;
    let server = TestServer::start().await;
    let mut alice = server.session(ALICE, "phone").pipelined().open().await;
    let mut bob = server.session(BOB, "phone").pipelined().open().await;
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let sending = async {
            for n in 0..EACH {
                alice.post(BOB, &format!("{round}-{n}"), &format!("{round}-{n}")).await;
            }
            let mut taken = Vec::new();
            for _ in 0..EACH {
                let scheme = alice.recv(Lane::Chat).await;
                match &scheme.payload {
                    Some(Payload::VersionUpdate(_)) => taken.push(Got::<VersionUpdate>::from_scheme(&scheme)),
                    Some(Payload::ErrorMessage(error)) if error.code == 403 => {}
                    other => panic!("{other:?}"),
                }
            }
            taken
        };
        let (taken, ()) = tokio::join!(sending, async { assert_eq!(block(&mut bob, ALICE, 1).await, SUCCESS) });
        refused += EACH - taken.len();
        accepted.extend(taken);
        is_refused(&mut alice, BOB, "after").await;
        assert_eq!(block(&mut bob, ALICE, 2).await, SUCCESS);
    }
    // Exactly the accepted messages arrive. Refused ones left no gap in the versions.
    for (index, update) in accepted.iter().enumerate() {
        let message = bob.hear().await;
        assert_eq!((message.version, update.version), (index as i64 + 1, index as i64 + 1));
        assert_eq!((&message.message_id, text_of(&message)), (&update.message_id, &*update.message_id_local));
    }
    bob.expect_nothing_more(Lane::Chat).await;
    println!("{} accepted, {refused} refused", accepted.len());
}
