//! A driven session over a link of which the test plays the other end.

use crate::limits::LANE_QUEUE_BYTES;
use crate::session::testing::House;
use crate::store::Content;
use crate::store::testing::{device, eid, text};
use crate::wire::proto::PingPong;
use crate::wire::{Lane, Payload};

#[tokio::test]
async fn a_backlog_goes_on_beside_a_lane_that_is_not_read() {
    const MESSAGES: u64 = 30;
    let house = House::new(|_, _| ());
    let alice = house.device(&eid("alice"), &device("phone")).await;
    alice.play(|played| (played.unread[Lane::Media.index()], played.unread[Lane::Chat.index()]) = (true, true));
    // Its answer, a refusal, is what stays unread.
    alice.say(Lane::Media, Payload::PingpongMessage(PingPong::default()));
    for number in 1..=MESSAGES {
        let message =
            crate::store::NewMessage { content: Content::Text("x".repeat(10_000)), ..text("bob", "alice", number) };
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
