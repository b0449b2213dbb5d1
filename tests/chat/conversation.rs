//! A hundred messages each way, in order, whether or not their senders answer the VersionUpdates.

use bimip::wire::proto::{ChatMessage, VersionUpdate};
use bimip::wire::{Lane, Payload};

use super::common::{Raw, TestServer, text_of};
use super::{ALICE, BOB};

const EACH: usize = 100;

/// What one device has received of a conversation.
#[derive(Default)]
struct Heard {
    updates: Vec<VersionUpdate>,
    messages: Vec<ChatMessage>,
}

impl Heard {
    /// Receives and keeps the next frame of chat; returns a VersionUpdate.
    async fn next(&mut self, raw: &mut Raw) -> Option<VersionUpdate> {
        let scheme = raw.recv(Lane::Chat).await;
        match &scheme.payload {
            Some(Payload::VersionUpdate(update)) => {
                self.updates.push(update.clone());
                return Some(update.clone());
            }
            Some(Payload::ChatMessage(message)) => self.messages.push(message.clone()),
            other => panic!("in a conversation: {other:?}"),
        }
        None
    }

    /// Asserts that the VersionUpdates and the peer's messages came in the order in which each side sent.
    fn assert_in_order(&self) {
        let own: Vec<_> = self.updates.iter().map(|update| update.message_id_local.clone()).collect();
        assert_eq!(own, (0..EACH).map(local).collect::<Vec<_>>());
        let peers: Vec<_> = self.messages.iter().map(text_of).collect();
        assert_eq!(peers, (0..EACH).map(local).collect::<Vec<_>>());
        assert!(self.updates.is_sorted_by(|one, next| one.version < next.version));
        assert!(self.messages.is_sorted_by(|one, next| one.version < next.version));
    }
}

fn local(n: usize) -> String {
    format!("local-{n}")
}

/// Sends all messages at once, then receives until everything of both sides has come.
async fn converse(raw: &mut Raw, peer: &str, answers: bool) -> Heard {
    for n in 0..EACH {
        raw.post(peer, &local(n), &local(n)).await;
    }
    let mut heard = Heard::default();
    while heard.updates.len() < EACH || heard.messages.len() < EACH {
        if let Some(update) = heard.next(raw).await
            && answers
        {
            raw.answer(&update).await;
        }
    }
    heard.assert_in_order();
    heard
}

/// Asserts that a device that signs in later sees each message of both sides once, by ascending version without a gap.
async fn assert_whole(server: &TestServer, eid: &str) {
    let mut late = server.sign_in(eid, "late").await;
    for version in 1..=2 * EACH {
        let message = late.hear().await;
        assert_eq!(message.version, version as i64);
        let sent_by_me = message.from.as_ref().is_some_and(|from| from.eid == eid);
        assert_eq!(message.author, if sent_by_me { "sender" } else { "receiver" });
    }
    late.expect_nothing_more(Lane::Chat).await;
}

/// How a sender treats VersionUpdates.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Answers,
    NeverAnswers,
    Pipelined,
}

async fn open(server: &TestServer, eid: &str, manner: Manner) -> Raw {
    let session = server.session(eid, "phone");
    if manner == Manner::Pipelined { session.pipelined().open().await } else { session.open().await }
}

async fn assert_in_order(alices_manner: Manner, bobs_manner: Manner) {
    let never = [alices_manner, bobs_manner].contains(&Manner::NeverAnswers);
    // As long as possible unless a sender never answers: then messages wait for this timeout.
    let release_within_ms = if never { 1000 } else { 60_000 };
    let server = TestServer::with(|config| config.session.release_within_ms = release_within_ms).await;
    let mut alice = open(&server, ALICE, alices_manner).await;
    let mut bob = open(&server, BOB, bobs_manner).await;
    let (alices, bobs) = tokio::join!(
        converse(&mut alice, BOB, alices_manner == Manner::Answers),
        converse(&mut bob, ALICE, bobs_manner == Manner::Answers)
    );
    let mut versions: Vec<_> = alices.updates.iter().chain(&bobs.updates).map(|update| update.version).collect();
    versions.sort_unstable();
    assert_eq!(versions, (1..=2 * EACH as i64).collect::<Vec<_>>());
    // The sender's VersionUpdate and the recipient's message name the same message.
    for (told, had) in [(&alices.updates, &bobs.messages), (&bobs.updates, &alices.messages)] {
        assert!(told.iter().zip(had).all(|(update, message)| update.message_id == message.message_id));
    }
    alice.expect_nothing_more(Lane::Chat).await;
    bob.expect_nothing_more(Lane::Chat).await;
    assert_whole(&server, ALICE).await;
    assert_whole(&server, BOB).await;
}

#[tokio::test]
async fn a_conversation_whose_senders_answer_is_in_order() {
    assert_in_order(Manner::Answers, Manner::Answers).await;
}

#[tokio::test]
async fn a_conversation_whose_senders_never_answer_is_in_order() {
    assert_in_order(Manner::NeverAnswers, Manner::NeverAnswers).await;
}

#[tokio::test]
async fn a_pipelined_conversation_is_in_order() {
    assert_in_order(Manner::Pipelined, Manner::Pipelined).await;
}

#[tokio::test]
async fn a_conversation_of_two_manners_is_in_order() {
    assert_in_order(Manner::Answers, Manner::Pipelined).await;
    assert_in_order(Manner::Pipelined, Manner::NeverAnswers).await;
}

/// Sends all messages, receives all VersionUpdates, and disconnects without answering any.
async fn shout_and_leave(server: &TestServer, eid: &str, peer: &str) {
    let mut raw = server.sign_in(eid, "phone").await;
    for n in 0..EACH {
        raw.post(peer, &local(n), &local(n)).await;
    }
    let mut heard = Heard::default();
    while heard.updates.len() < EACH {
        heard.next(&mut raw).await;
    }
    raw.leave();
}

#[tokio::test]
async fn a_conversation_whose_senders_disconnect_at_once_is_in_order() {
    let server = TestServer::with(|config| config.session.release_within_ms = 60_000).await;
    tokio::join!(shout_and_leave(&server, ALICE, BOB), shout_and_leave(&server, BOB, ALICE));
    assert_whole(&server, ALICE).await;
    assert_whole(&server, BOB).await;
}

#[tokio::test]
async fn a_sender_whose_connection_breaks_again_and_again_loses_and_doubles_nothing() {
    let server = TestServer::with(|config| config.session.release_within_ms = 60_000).await;
    let mut bob = server.sign_in(BOB, "phone").await;
    // On each connection Alice sends every message whose VersionUpdate she has not seen, receives a few VersionUpdates, and
    // disconnects. Messages in flight at that moment may or may not have been accepted.
    let (mut numbered, mut seen) = (Vec::<VersionUpdate>::new(), 0);
    while numbered.len() < EACH {
        let mut alice = server.session(ALICE, "phone").resume_from(seen).open().await;
        for n in numbered.len()..EACH {
            alice.post(BOB, &local(n), &local(n)).await;
        }
        let until = (numbered.len() + 7).min(EACH);
        while numbered.len() < until {
            let update = alice.expect::<VersionUpdate>(Lane::Chat).await;
            // One message can bring two VersionUpdates: one from the log, and one in answer to its repetition.
            if numbered.iter().all(|known| known.message_id != update.message_id) {
                numbered.push(update.into_body());
            }
        }
        seen = alice.last_sequence;
        alice.leave();
    }
    for (n, update) in numbered.iter().enumerate() {
        let message = bob.hear().await;
        assert_eq!((message.version, text_of(&message)), (n as i64 + 1, local(n).as_str()));
        assert_eq!((message.message_id.as_str(), update.version), (update.message_id.as_str(), message.version));
    }
    server.session("carol@localhost", "phone").pipelined().open().await.say(BOB, "last", "that was all").await;
    assert_eq!(text_of(&*bob.hear().await), "that was all");
}
