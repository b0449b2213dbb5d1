//! How a session ends when the server shuts down: with the answers that it owes (protocol.md §14).

use crate::limits::{CLOSE_LINGER, DRAIN_ANSWERS_WITHIN, DRAIN_WITHIN};
use crate::wire::{CloseCode, Lane};

use super::{Now, Phase, Session};

impl Session {
    /// The server shuts down: the session takes no more frames.
    pub(super) fn drain(&mut self, now: Now) {
        self.draining.get_or_insert(now.at + DRAIN_ANSWERS_WITHIN);
    }

    /// Closes a session that drains once its calls are done and its answers are on their way. For answers that find no room
    /// on their lane it waits a while only: the device may never read on.
    pub(super) fn close_if_drained(&mut self, now: Now) {
        if let Some(until) = self.draining
            && !self.is_waiting()
            && (until <= now.at || !self.owes_answers())
        {
            self.close(CloseCode::Draining, "the server is shutting down");
        }
    }

    /// Whether answers wait for room: the rest of a list, or VersionUpdates behind earlier entries of the log.
    fn owes_answers(&self) -> bool {
        let Phase::Open(open) = &self.phase else { return false };
        open.listing.is_some() || self.lanes.contains(Lane::Chat) && open.chat.unanswered() > 0
    }
}

/// What a session takes to end while the server waits for it: its answers, and then its last frames.
const _: () = assert!(
    DRAIN_ANSWERS_WITHIN.as_millis() + CLOSE_LINGER.as_millis() < DRAIN_WITHIN.as_millis(),
    "a shutdown waits for sessions that close"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Notice;
    use crate::limits::{LANE_QUEUE_BYTES, LIST_TEXT_BYTES_MAX};
    use crate::session::Output;
    use crate::session::testing::{Bare, House, payload};
    use crate::store::testing::{contact, device, eid, text};
    use crate::store::{Contact, Content, NewMessage};
    use crate::wire::Payload;
    use crate::wire::proto::{SubscriberListRequest, TextPayloadRequest};

    /// Runs calls and pumps until nothing is left to do; a lane holds `queued` bytes that its device does not read.
    async fn settle(phone: &mut Bare, queued: usize, now: Now) -> (Vec<Payload>, Option<CloseCode>) {
        let (mut sent, mut closed) = (Vec::new(), None);
        loop {
            if phone.session.signal().take_advanced() {
                phone.session.advanced();
            }
            phone.session.pump(|_| queued, now);
            let outputs = phone.outputs();
            if outputs.is_empty() {
                return (sent, closed);
            }
            for output in outputs {
                match output {
                    Output::Send(_, frame) => sent.push(payload(&frame)),
                    Output::Call(call) => phone.answer(call).await,
                    Output::Write(asked, write) => phone.write(asked, write).await,
                    Output::Close(code, _) => closed = Some(code),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// A session that drains and owes answers on a lane that is full: it waits for room, and takes what comes in that time.
    async fn drains(mut phone: Bare, reads: bool) -> Vec<Payload> {
        let now = Now::system();
        phone.session.notice(Notice::Drain, now);
        let (sent, closed) = settle(&mut phone, LANE_QUEUE_BYTES, now).await;
        assert!(sent.is_empty() && closed.is_none(), "{sent:?}, {closed:?}: it waits for room");
        let until = phone.session.deadline().unwrap();
        assert_eq!(until, now.at + DRAIN_ANSWERS_WITHIN, "the driver has to end it");
        let late = Now { at: if reads { now.at } else { until }, ..now };
        let (sent, closed) = settle(&mut phone, if reads { 0 } else { LANE_QUEUE_BYTES }, late).await;
        assert_eq!(closed, Some(CloseCode::Draining));
        sent
    }

    #[tokio::test]
    async fn a_list_is_told_to_its_end_before_the_session_drains_if_its_device_reads_it() {
        const USERS: usize = 1000;
        let house = House::new(|_, _| ());
        let alice = eid("alice");
        for number in 0..USERS {
            let nickname = "n".repeat(LIST_TEXT_BYTES_MAX);
            let contact = Contact { nickname, ..contact(&format!("s{number}")) };
            house.store.put_contact(&alice, contact).await.unwrap();
        }
        for reads in [true, false] {
            let mut phone = house.bare(&alice, &device("phone")).await;
            let owner = Some(alice.device_identity(&device("phone")));
            phone.hear(Lane::Control, Payload::SubscriberListRequest(SubscriberListRequest { owner }));
            let (first, _) = settle(&mut phone, LANE_QUEUE_BYTES, Now::system()).await;
            let rest = drains(phone, reads).await;
            let names = first.iter().chain(&rest).map(|payload| match payload {
                Payload::SubscriberList(list) => list.entries.len(),
                other => panic!("{other:?}"),
            });
            assert_eq!((names.sum::<usize>() == USERS, rest.is_empty()), (reads, !reads));
        }
    }

    #[tokio::test]
    async fn a_message_that_was_accepted_is_answered_before_the_session_drains_if_its_device_reads_on() {
        for reads in [true, false] {
            let house = House::new(|_, _| ());
            let (alice, bob) = (eid("alice"), eid("bob"));
            let mut phone = house.bare(&alice, &device("phone")).await;
            // What the device missed lies before the answer, and is more than the lane holds.
            for number in 1..=20 {
                let message = NewMessage { content: Content::Text("x".repeat(10_000)), ..text("bob", "alice", number) };
                house.store.accept(message, true).await.unwrap();
            }
            let request = TextPayloadRequest {
                from: Some(alice.identity()),
                to: vec![bob.identity()],
                content: "hello".into(),
                message_id_local: "local-1".into(),
                ..TextPayloadRequest::default()
            };
            phone.hear(Lane::Chat, Payload::TextPayloadRequest(request));
            settle(&mut phone, LANE_QUEUE_BYTES, Now::system()).await;
            let sent = drains(phone, reads).await;
            let answers = sent.iter().filter(|payload| matches!(payload, Payload::VersionUpdate(_)));
            assert_eq!((answers.count(), sent.is_empty()), (usize::from(reads), !reads));
        }
    }
}
