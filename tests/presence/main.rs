//! Presence over the wire: what is shown of whom, to whom, and when (BIMip-Foundation 4.1, 5.2; protocol.md §12).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod crowd;
mod directed;
mod hiding;
mod leaving;
mod location;
mod state;
mod who;

use bimip::config::Config;
use bimip::wire::proto::{
    AwarenessNotification, AwarenessRequest, AwarenessResponse, BlockSubscriber, SubscriberAddRequest,
    SubscriberAddResponse, SubscriberRemove,
};
use bimip::wire::{Identity, Lane, Payload};

use common::{Got, Raw, TestServer, identity, now_ms};

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";
const CAROL: &str = "carol@localhost";
const LANES: [Lane; 3] = [Lane::Control, Lane::Presence, Lane::Chat];

const ONLINE: i32 = 1;
const OFFLINE: i32 = 2;
const AWAY: i32 = 3;
const BUSY: i32 = 4;
const DO_NOT_DISTURB: i32 = 5;
const INVISIBLE: i32 = 6;
const IDLE: i32 = 7;
const UNKNOWN: i32 = 8;
const DO_NOT_BROADCAST: i32 = 1;
const BROADCAST: i32 = 2;

/// A grace so long that it does not end during a test.
fn patient(config: &mut Config) {
    (config.presence.interval_ms, config.presence.offline_grace_ms) = (10, 600_000);
}

/// No grace: a lost connection counts as OFFLINE at once.
fn impatient(config: &mut Config) {
    (config.presence.interval_ms, config.presence.offline_grace_ms) = (10, 0);
}

/// Signs in a device with a presence lane.
async fn sign_in(server: &TestServer, eid: &str, device: &str) -> Raw {
    server.session(eid, device).lanes(&LANES).open().await
}

/// Alice on two devices, phone and desk, and bob, who may see her.
async fn scene() -> (TestServer, Raw, Raw, Raw) {
    let server = TestServer::with(patient).await;
    let mut bob = sign_in(&server, BOB, "phone").await;
    let mut phone = sign_in(&server, ALICE, "phone").await;
    admit(&mut phone, BOB, None).await;
    told(&mut bob, ALICE, ONLINE).await;
    let desk = sign_in(&server, ALICE, "desk").await;
    (server, phone, desk, bob)
}

/// Adds a subscriber to the owner's list.
async fn admit(owner: &mut Raw, subscriber: &str, share_location: Option<bool>) {
    let add = SubscriberAddRequest {
        owner: Some(owner.user()),
        subscriber: Some(identity(subscriber)),
        share_location,
        ..SubscriberAddRequest::default()
    };
    let request_id = owner.send(Lane::Control, Payload::SubscriberAddRequest(add)).await;
    let response = owner.expect::<SubscriberAddResponse>(Lane::Control).await;
    assert_eq!(response.request_id, request_id);
    assert!([1, 3].contains(&response.status), "{response:?}");
}

async fn withdraw(owner: &mut Raw, subscriber: &str) {
    let (owner_id, subscriber) = (Some(owner.user()), Some(identity(subscriber)));
    let remove = SubscriberRemove { owner: owner_id, subscriber, r#type: 1, ..SubscriberRemove::default() };
    owner.send(Lane::Control, Payload::SubscriberRemove(remove)).await;
    assert_eq!(owner.expect::<SubscriberRemove>(Lane::Control).await.status, 1);
}

async fn block(owner: &mut Raw, subscriber: &str, blocked: bool) {
    let (owner_id, subscriber) = (Some(owner.user()), Some(identity(subscriber)));
    let action = if blocked { 1 } else { 2 };
    let block = BlockSubscriber { owner: owner_id, subscriber, r#type: 1, action, ..BlockSubscriber::default() };
    owner.send(Lane::Control, Payload::BlockSubscriber(block)).await;
    assert_eq!(owner.expect::<BlockSubscriber>(Lane::Control).await.status, 1);
}

fn notification(from: &Raw, status: i32) -> AwarenessNotification {
    AwarenessNotification { from: Some(from.identity()), status, ..AwarenessNotification::default() }
}

/// Sends a notification unchanged; returns the request id.
async fn notify(raw: &mut Raw, notification: AwarenessNotification) -> i64 {
    raw.send(Lane::Presence, Payload::AwarenessNotification(notification)).await
}

/// Sends a status without waiting; returns the request id.
async fn tell(raw: &mut Raw, status: i32) -> i64 {
    let notification = notification(raw, status);
    notify(raw, notification).await
}

/// Sends a status, and returns once the server has processed it.
async fn be(raw: &mut Raw, status: i32) {
    let notification = notification(raw, status);
    set(raw, notification).await;
}

/// Sends a notification, and returns once the server has processed it without an error.
async fn set(raw: &mut Raw, notification: AwarenessNotification) {
    notify(raw, notification).await;
    raw.expect_nothing_more(Lane::Presence).await;
}

/// Asks for a user's awareness and returns the response.
async fn ask(raw: &mut Raw, about: &str) -> Got<AwarenessResponse> {
    let request = AwarenessRequest {
        from: Some(raw.identity()),
        to: Some(identity(about)),
        awareness_identifier: 12_345,
        timestamp: now_ms(),
    };
    let request_id = raw.send(Lane::Presence, Payload::AwarenessRequest(request)).await;
    let response = raw.expect::<AwarenessResponse>(Lane::Presence).await;
    assert_eq!((response.request_id, response.sequence), (request_id, 0));
    assert_eq!(response.awareness_identifier, "12345");
    assert_eq!((&response.from, &response.to), (&Some(identity(about)), &Some(raw.identity())));
    response
}

/// The next frame of presence; it must be a notification that this user has this status.
async fn told(raw: &mut Raw, about: &str, status: i32) -> Got<AwarenessNotification> {
    let told = raw.expect::<AwarenessNotification>(Lane::Presence).await;
    let expected = (Some(identity(about)), Some(identity(&raw.eid)), status);
    assert_eq!((told.from.clone(), told.to.clone(), told.status), expected, "{told:?}");
    assert_eq!((told.request_id, told.sequence), (0, 0));
    told
}

/// A user whose notifications show that earlier fan-out is complete: its own notification comes behind all earlier ones.
struct Canary {
    raw: Raw,
    busy: bool,
}

impl Canary {
    const EID: &str = "canary@localhost";

    /// A canary that the watchers may see. Each watcher must get its ONLINE as its next frame.
    async fn admitting(server: &TestServer, watchers: &mut [&mut Raw]) -> Canary {
        let mut raw = sign_in(server, Canary::EID, "perch").await;
        for watcher in watchers {
            admit(&mut raw, &watcher.eid, None).await;
            told(watcher, Canary::EID, ONLINE).await;
        }
        Canary { raw, busy: false }
    }

    /// Asserts that the canary's new status is the next frame on the watcher's presence lane, and nothing before it.
    async fn only_is_heard_by(&mut self, watcher: &mut Raw) {
        self.busy = !self.busy;
        let status = if self.busy { BUSY } else { ONLINE };
        be(&mut self.raw, status).await;
        told(watcher, Canary::EID, status).await;
    }
}

fn device_of(eid: &str, device: &str) -> Identity {
    Identity { eid: eid.to_owned(), connection_resource_id: device.to_owned() }
}
