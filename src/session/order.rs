//! Keeps a sender's messages in order when one of them is put off (429, 503): messages that were on the wire behind it are put
//! off, too.
//!
//! Otherwise a later message of a pipeline would get the rate's token, or the store's place, that the earlier one did not get.
//! So while a sender over its rate has to wait, its further messages are refused and told the rest of that wait. The same holds
//! for messages that come soon behind one that the store had no place for, until that one is sent again. Soon means 250 ms or
//! two round trips, whichever is longer, up to two seconds. These refusals are counted, but cost nothing of the rate and are
//! no strike towards ABUSE; the frames' own rate still takes them. If a round trip takes more than two seconds, the last
//! messages on the wire may still overtake the first.

use std::time::{Duration, Instant};

use crate::limits::{SEND_BEHIND_ROUND_TRIPS, SEND_BEHIND_WAIT, SEND_BEHIND_WAIT_MAX, SESSION_UNRELEASED_MAX};
use crate::observe::LimitKind;
use crate::wire::{ErrorCode, Lane, LocalId, Payload};

use super::fault::Fault;
use super::flood::{Flood, wait_details};
use super::{Now, Open, Origin, Phase, Session};

/// The first message of a session that was put off and has not been sent again.
pub(super) struct PutOff {
    first: LocalId,
    /// When its wait is over.
    again: Instant,
    why: Why,
}

/// Why a message was put off.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Rate,
    /// The store or the session had no place. The message passed the rate before any that the rate put off since.
    Store,
}

impl Session {
    /// Whether a message may go on: no earlier message is still to be sent again, and the message is within the rate. Otherwise
    /// it is refused.
    pub(super) fn meter_send(&mut self, origin: Origin, local: &str, now: Now) -> bool {
        let Phase::Open(open) = &self.phase else { return true };
        if let Some(held) = &open.put_off
            && held.first.as_str() != local
            && held.again > now.at
        {
            let wait = wait_details(held.again - now.at);
            let fault = Fault::new(ErrorCode::TooFast, "send the message again first that was put off before this one");
            self.refuse_send(origin, fault.details(wait));
            return false;
        }
        let least = self.behind_wait();
        // Over TCP the frame that opens chat, on which the answers go, may lie behind this one: so it must not wait to be read.
        if !self.lanes.contains(Lane::Chat) && open.chat.unanswered() >= SESSION_UNRELEASED_MAX {
            self.put_off(local, least, Why::Store, now);
            let fault = Fault::new(ErrorCode::TooFast, "too many wait for their answers: open the chat lane");
            self.refuse_send(origin, fault.details(wait_details(least)));
            return false;
        }
        let limit = |open: &mut Open, flood: &Flood| open.meter.messages(flood, &open.user, now.at).take_or_wait(least);
        if let Err(wait) = self.meter(origin, LimitKind::Messages, limit) {
            self.put_off(local, wait, Why::Rate, now);
            return false;
        }
        if let Phase::Open(open) = &mut self.phase {
            open.put_off = None;
        }
        true
    }

    /// Refuses a message with 429. Only the rate's own refusals are a strike ([`Session::meter`]).
    fn refuse_send(&mut self, origin: Origin, fault: Fault) {
        self.services.metrics.rate_limited[LimitKind::Messages].increment(1);
        self.refuse(origin, fault);
    }

    /// How long it takes until everything has arrived that was on the wire behind a message when its refusal reached the
    /// sender.
    pub(super) fn behind_wait(&self) -> Duration {
        self.round_trip.saturating_mul(SEND_BEHIND_ROUND_TRIPS).clamp(SEND_BEHIND_WAIT, SEND_BEHIND_WAIT_MAX)
    }

    /// Records that a message was refused for now and told to wait.
    pub(super) fn put_off(&mut self, local: &str, wait: Duration, why: Why, now: Now) {
        let Phase::Open(open) = &mut self.phase else { return };
        let again = now.at + wait;
        match &mut open.put_off {
            Some(held) if held.first.as_str() == local => held.again = again,
            Some(held) if held.again > now.at && (held.why == Why::Store || why == Why::Rate) => {}
            // A message with an invalid name would never be accepted, so nothing waits for it.
            held => *held = LocalId::parse(local).ok().map(|first| Box::new(PutOff { first, again, why })),
        }
    }
}

/// The `message_id_local` of a message that a client sends; `None` for other payloads.
pub(super) fn sent_name(payload: &Payload) -> Option<&str> {
    match payload {
        Payload::TextPayloadRequest(text) => Some(&text.message_id_local),
        Payload::MediaPayloadRequest(media) => Some(&media.message_id_local),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::config::Rate;
    use crate::session::testing::{Bare, House, content, payload};
    use crate::session::{Asked, Done, LinkEvent, Output, PathStats};
    use crate::store::StoreError;
    use crate::store::testing::{device, eid};
    use crate::wire::proto::{MediaPayloadRequest, TextPayloadRequest};
    use crate::wire::{Lane, MessageScheme, envelope, open_envelope};

    /// A session with a clock that only the test moves. The rate limits use the system's clock.
    struct Bench {
        bare: Bare,
        now: Now,
    }

    #[derive(Debug, PartialEq)]
    enum Then {
        Taken,
        /// Refused, and told to wait for so many milliseconds.
        Wait(u64),
    }
    use Then::{Taken, Wait};

    impl Bench {
        async fn new(messages: Rate, frames: Rate) -> Bench {
            let house = House::new(|_, limits| (limits.messages, limits.frames) = (messages, frames));
            let bare = house.bare(&eid("alice"), &device("phone")).await;
            Bench { bare, now: Now::system() }
        }

        fn send(&mut self, name: &str) -> Then {
            let [from, to] = ["alice", "bob"].map(|user| eid(user).identity());
            let (content, message_id_local) = ("hello".to_owned(), name.to_owned());
            let text =
                TextPayloadRequest { from: Some(from), to: vec![to], content, message_id_local, ..Default::default() };
            self.bare.hear_at(Lane::Chat, Payload::TextPayloadRequest(text), self.now);
            self.then()
        }

        fn then(&mut self) -> Then {
            match self.bare.outputs().pop() {
                Some(Output::Write(Asked::Accept(..), _)) => Taken,
                Some(Output::Send(_, frame)) => match payload(&frame) {
                    Payload::ErrorMessage(error) if error.code == ErrorCode::TooFast.code() => {
                        Wait(error.details.parse().unwrap())
                    }
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        }

        /// Answers a message as if the store had no place for it.
        fn no_place(&mut self, name: &str) {
            let origin = Origin { lane: Lane::Chat, request_id: 1, payload: "text_payload_request" };
            let done = Done::Accept(origin, LocalId::parse(name).unwrap(), Err(StoreError::Overloaded));
            self.bare.session.done(done, self.now);
            assert!(matches!(self.bare.outputs()[..], [Output::Send(..)]));
        }

        /// Sends until a message is refused. Returns its number and how many milliseconds it was told to wait.
        fn fill(&mut self) -> (usize, u64) {
            for number in 1.. {
                if let Wait(wait) = self.send(&format!("local-{number}")) {
                    return (number, wait);
                }
            }
            unreachable!("there is a rate")
        }
    }

    const NO_LIMIT: Rate = Rate { per_second: 0, burst: 0 };
    const BEHIND: Then = Wait(SEND_BEHIND_WAIT.as_millis() as u64);

    #[tokio::test]
    async fn what_is_behind_a_message_over_the_rate_waits_for_it_at_no_cost() {
        for by_frames in [false, true] {
            let rate = Rate { per_second: 20, burst: 4 };
            let (messages, frames) = if by_frames { (NO_LIMIT, rate) } else { (rate, NO_LIMIT) };
            let mut bench = Bench::new(messages, frames).await;
            let (refused, wait) = bench.fill();
            assert_eq!(wait, 200, "long enough for what is on the wire, but no longer than a full burst takes");
            let strikes = bench.bare.session.strikes;
            // The rate has room again, but not for what follows before the refused message's time.
            tokio::time::sleep(Duration::from_millis(wait) + Duration::from_millis(150)).await;
            let media = MediaPayloadRequest { message_id_local: "picture".into(), ..Default::default() };
            bench.bare.hear_at(Lane::Media, Payload::MediaPayloadRequest(media), bench.now);
            assert_eq!(bench.then(), Wait(wait));
            assert_eq!(bench.send(&format!("local-{}", refused + 1)), Wait(wait));
            assert_eq!(bench.bare.session.strikes, strikes, "it cannot know yet");
            bench.now.at += Duration::from_millis(wait);
            assert_eq!(bench.send("another"), Taken, "who has waited as told may send what it likes");
        }
    }

    #[tokio::test]
    async fn a_message_over_the_frames_rate_is_put_off_by_its_name_whatever_its_route() {
        let mut bench = Bench::new(NO_LIMIT, Rate { per_second: 1, burst: 2 }).await;
        let refusal = loop {
            let text = TextPayloadRequest { message_id_local: "one".into(), ..Default::default() };
            let scheme = MessageScheme { request_id: 7, route: 1, ..envelope(Payload::TextPayloadRequest(text)) };
            bench.bare.session.event(LinkEvent::Frame(Lane::Chat, scheme.encode_to_vec().into()), bench.now);
            let Some(Output::Send(Lane::Chat, frame)) = bench.bare.outputs().pop() else { panic!("no answer") };
            let answer = open_envelope(&content(&frame)).unwrap();
            let Some(Payload::ErrorMessage(error)) = answer.payload else { panic!("{answer:?}") };
            assert_eq!((answer.request_id, error.route.as_str()), (7, "text_payload_request"));
            if error.code != ErrorCode::Malformed.code() {
                break error;
            }
        };
        assert_eq!(refusal.code, ErrorCode::TooFast.code());
        let Phase::Open(open) = &bench.bare.session.phase else { panic!("closed") };
        assert!(open.put_off.as_ref().is_some_and(|held| held.first.as_str() == "one"));
    }

    #[tokio::test]
    async fn a_message_over_the_rate_that_comes_again_early_lets_the_others_through() {
        let mut bench = Bench::new(Rate { per_second: 20, burst: 5 }, NO_LIMIT).await;
        let (refused, wait) = bench.fill();
        assert_eq!(Wait(wait), BEHIND, "long enough for what is on the wire");
        tokio::time::sleep(Duration::from_millis(wait)).await;
        assert_eq!(bench.send(&format!("local-{}", refused + 1)), Wait(wait));
        assert_eq!(bench.send(&format!("local-{refused}")), Taken);
        assert_eq!(bench.send(&format!("local-{}", refused + 1)), Taken);
    }

    #[tokio::test]
    async fn what_is_behind_a_message_that_the_store_had_no_place_for_waits_for_it() {
        let mut bench = Bench::new(NO_LIMIT, NO_LIMIT).await;
        assert_eq!([bench.send("one"), bench.send("two")], [Taken, Taken]);
        bench.no_place("one");
        assert_eq!(bench.send("three"), BEHIND);
        bench.no_place("two");
        assert_eq!([bench.send("two"), bench.send("three")], [BEHIND, BEHIND]);
        assert_eq!(["one", "two", "three"].map(|name| bench.send(name)), [Taken, Taken, Taken]);
    }

    #[tokio::test]
    async fn a_message_for_a_full_chat_is_told_to_wait_and_so_is_what_is_behind_it() {
        let mut bench = Bench::new(NO_LIMIT, NO_LIMIT).await;
        assert_eq!(bench.send("one"), Taken);
        let origin = Origin { lane: Lane::Chat, request_id: 1, payload: "text_payload_request" };
        let done = Done::Accept(origin, LocalId::parse("one").unwrap(), Err(StoreError::ChatFull));
        bench.bare.session.done(done, bench.now);
        assert_eq!(bench.then(), BEHIND);
        assert_eq!([bench.send("two"), bench.send("one"), bench.send("two")], [BEHIND, Taken, Taken]);
        assert_eq!(bench.bare.session.strikes, 0, "it is the chat that is full, not the sender that is fast");
    }

    #[tokio::test]
    async fn a_message_for_which_the_disk_has_no_room_is_put_off_and_counted() {
        let mut bench = Bench::new(NO_LIMIT, NO_LIMIT).await;
        assert_eq!(bench.send("one"), Taken);
        let origin = Origin { lane: Lane::Chat, request_id: 1, payload: "text_payload_request" };
        let done = Done::Accept(origin, LocalId::parse("one").unwrap(), Err(StoreError::DiskFull));
        bench.bare.session.done(done, bench.now);
        let Some(Output::Send(_, frame)) = bench.bare.outputs().pop() else { panic!("no answer") };
        let Payload::ErrorMessage(error) = payload(&frame) else { panic!("it was refused") };
        assert_eq!((error.code, error.details.as_str()), (ErrorCode::Unavailable.code(), "one"));
        assert!(bench.bare.session.services.metrics.render().contains("bimip_disk_refused_messages_total 1\n"));
        assert_eq!([bench.send("two"), bench.send("one"), bench.send("two")], [BEHIND, Taken, Taken]);
    }

    #[tokio::test]
    async fn what_is_behind_a_message_waits_for_two_round_trips_of_a_long_path_and_two_seconds_at_most() {
        for (round_trip, wait) in [(None, 250), (Some(20), 250), (Some(400), 800), (Some(60_000), 2_000)] {
            let mut bench = Bench::new(NO_LIMIT, NO_LIMIT).await;
            assert_eq!(bench.send("one"), Taken);
            let rtt = round_trip.map(Duration::from_millis);
            bench.bare.session.seen(&PathStats { rtt, ..PathStats::default() });
            bench.no_place("one");
            assert_eq!(bench.send("two"), Wait(wait), "{round_trip:?}");
        }
    }

    #[tokio::test]
    async fn who_gives_a_message_up_waits_for_a_while_only() {
        let mut bench = Bench::new(NO_LIMIT, NO_LIMIT).await;
        assert_eq!(bench.send("one"), Taken);
        bench.no_place("one");
        bench.now.at += SEND_BEHIND_WAIT - Duration::from_millis(1);
        assert_eq!(bench.send("two"), Wait(1));
        bench.now.at += Duration::from_millis(1);
        assert_eq!([bench.send("two"), bench.send("one")], [Taken, Taken]);
    }

    #[tokio::test]
    async fn what_the_store_was_asked_first_comes_again_before_what_was_over_the_rate_meanwhile() {
        let mut bench = Bench::new(Rate { per_second: 20, burst: 1 }, NO_LIMIT).await;
        let (refused, wait) = bench.fill();
        bench.no_place("local-1");
        tokio::time::sleep(Duration::from_millis(wait)).await;
        assert_eq!(bench.send(&format!("local-{refused}")), BEHIND);
        assert_eq!(bench.send("local-1"), Taken);
    }

    #[tokio::test]
    async fn what_is_no_name_holds_nothing_up() {
        let mut bench = Bench::new(Rate { per_second: 20, burst: 1 }, NO_LIMIT).await;
        bench.bare.session.put_off("", Duration::ZERO, Why::Rate, bench.now);
        bench.bare.session.put_off(&"x".repeat(65), Duration::ZERO, Why::Rate, bench.now);
        assert_eq!(bench.send("one"), Taken);
    }
}
