//! The list of domains that are served, and what does not look at it (protocol.md §4).

use bimip::wire::proto::{
    AwarenessNotification, AwarenessRequest, AwarenessResponse, BlockSubscriber, HistoryPage, HistoryRequest, PingPong,
    SubscriberAddRequest, SubscriberAddResponse,
};
use bimip::wire::{AwarenessStatus, Exchange, Lane, Payload, PingStatus};

use super::common::{Raw, TestServer, identity, now_ms};

const HERE: &str = "alice@localhost";
const ELSEWHERE: &str = "bob@elsewhere.example";
const LANES: [Lane; 3] = [Lane::Control, Lane::Presence, Lane::Chat];

/// Pings another user's device; returns the answer's status. `asked` is who has to answer, if somebody has.
async fn ping(asker: &mut Raw, to: &str, asked: Option<&mut Raw>) -> i32 {
    let (r#type, status) = (Exchange::Request.code(), PingStatus::Pending.code());
    let ping = PingPong { to: Some(identity(to)), r#type, status, request_time: now_ms(), ..PingPong::default() };
    asker.send(Lane::Control, Payload::PingpongMessage(ping)).await;
    if let Some(asked) = asked {
        let ping = asked.expect::<PingPong>(Lane::Control).await.into_body();
        let (r#type, status) = (Exchange::Response.code(), PingStatus::Ok.code());
        asked.send(Lane::Control, Payload::PingpongMessage(PingPong { r#type, status, ..ping })).await;
    }
    asker.expect::<PingPong>(Lane::Control).await.status
}

#[tokio::test]
async fn signing_in_presence_pings_blocks_and_history_do_not_look_at_the_list() {
    let server = TestServer::with(|config| config.domains = vec!["localhost".to_owned()]).await;
    let mut alice = server.session(HERE, "phone").lanes(&LANES).open().await;
    let mut bob = server.session(ELSEWHERE, "phone").lanes(&LANES).open().await;

    // Nobody here can admit him, and he can admit somebody here.
    assert_eq!(ping(&mut alice, ELSEWHERE, None).await, PingStatus::Fail.code());
    let (owner, subscriber) = (Some(bob.user()), Some(alice.user()));
    let add = SubscriberAddRequest { owner, subscriber, ..SubscriberAddRequest::default() };
    bob.send(Lane::Control, Payload::SubscriberAddRequest(add)).await;
    assert_eq!(bob.expect::<SubscriberAddResponse>(Lane::Control).await.status, 1);
    assert_eq!(ping(&mut alice, ELSEWHERE, Some(&mut bob)).await, PingStatus::Ok.code());

    let online = AwarenessStatus::Online.code();
    assert_eq!(alice.expect::<AwarenessNotification>(Lane::Presence).await.status, online);
    let (from, to) = (Some(alice.user()), Some(bob.user()));
    let request = AwarenessRequest { from: from.clone(), to: to.clone(), ..AwarenessRequest::default() };
    alice.send(Lane::Presence, Payload::AwarenessRequest(request)).await;
    assert_eq!(alice.expect::<AwarenessResponse>(Lane::Presence).await.status, online);
    let away = AwarenessStatus::Away.code();
    let word = AwarenessNotification { from, to, status: away, ..AwarenessNotification::default() };
    alice.send(Lane::Presence, Payload::AwarenessNotification(word)).await;
    assert_eq!(bob.expect::<AwarenessNotification>(Lane::Presence).await.status, away);

    let request = HistoryRequest { peer: Some(bob.user()), ..HistoryRequest::default() };
    alice.send(Lane::Chat, Payload::HistoryRequest(request)).await;
    assert!(alice.expect::<HistoryPage>(Lane::Chat).await.complete);

    let (owner, subscriber) = (Some(alice.user()), Some(bob.user()));
    let block = BlockSubscriber { owner, subscriber, r#type: 1, action: 1, ..BlockSubscriber::default() };
    alice.send(Lane::Control, Payload::BlockSubscriber(block)).await;
    assert_eq!(alice.expect::<BlockSubscriber>(Lane::Control).await.status, 1);
}
