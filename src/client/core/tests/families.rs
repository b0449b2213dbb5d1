//! The presence that the device sends, lists that come in several frames, and the order of messages that were put off.

use super::*;
use crate::client::limits::{ANSWERS_BYTES_MAX, LIST_BYTES_MAX, LIST_ENTRIES_MAX, LOCATION_KEPT};
use crate::wire::proto::{AwarenessResponse, Subscriber, SubscriberList, SubscriberListRequest};
use crate::wire::{AwarenessIntention, AwarenessStatus};

const PRESENCE: Lane = Lane::Presence;

fn state(status: i32) -> AwarenessNotification {
    AwarenessNotification {
        from: Some(alice().identity()),
        status,
        latitude: Some(1.0),
        longitude: Some(2.0),
        ..Default::default()
    }
}

fn told(bench: &mut Bench) -> Vec<(i32, Option<f64>)> {
    say(bench).0
}

/// What the device says of its user, and the id of the question behind it.
fn say(bench: &mut Bench) -> (Vec<(i32, Option<f64>)>, Option<i64>) {
    let (mut told, mut question) = (Vec::new(), None);
    for scheme in bench.out(PRESENCE) {
        match scheme.payload {
            Some(Payload::AwarenessNotification(state)) => {
                assert_eq!(question, None, "the question goes behind");
                told.push((state.status, state.latitude));
            }
            Some(Payload::AwarenessRequest(request)) => {
                assert_eq!((request.from, request.to), (Some(alice().identity()), Some(alice().identity())));
                question = Some(scheme.request_id);
            }
            other => panic!("{other:?}"),
        }
    }
    (told, question)
}

/// The device sets this state, and the server takes it.
fn set(bench: &mut Bench, status: AwarenessStatus, broadcast: bool) {
    let intention = if broadcast { AwarenessIntention::Broadcast } else { AwarenessIntention::DoNotBroadcast };
    let state = AwarenessNotification { awareness_intention: intention.code(), ..state(status.code()) };
    bench.core.tell(state, bench.now).unwrap();
    let question = say(bench).1.expect("a question behind the state");
    let answer = AwarenessResponse { status: status.code(), ..Default::default() };
    bench.receive(PRESENCE, Payload::AwarenessResponse(answer), 0, question);
}

/// What the device says by itself on its next connection.
fn said_again(bench: &mut Bench) -> Vec<AwarenessStatus> {
    bench.core.link_down();
    bench.connect(0, 1_000);
    told(bench).into_iter().map(|(status, _)| AwarenessStatus::from_code(status).unwrap()).collect()
}

#[test]
fn what_another_device_may_have_replaced_is_not_said_again() {
    use AwarenessStatus::{Away, Busy, DoNotDisturb, Idle, Invisible, Offline, Online};
    // What was set, whether it was broadcast, and what is said on each later connection.
    let cases = [
        (Online, true, vec![]),
        (Away, true, vec![]),
        (Busy, true, vec![]),
        (DoNotDisturb, true, vec![]),
        // These are about the device alone.
        (Idle, true, vec![Idle]),
        (Offline, true, vec![Offline]),
        // A server that was restarted would show the user.
        (Invisible, true, vec![Invisible]),
        (Invisible, false, vec![Invisible]),
        // These hide as well, and leave the choice of another device alone.
        (Online, false, vec![Idle]),
        (Away, false, vec![Idle]),
    ];
    for (status, broadcast, again) in cases {
        let mut bench = Bench::new().open(0);
        set(&mut bench, status, broadcast);
        for _ in 0..2 {
            assert_eq!(said_again(&mut bench), again, "{status:?} {broadcast}");
        }
    }
}

#[test]
fn invisible_is_not_said_again_once_another_device_has_ended_it() {
    use AwarenessStatus::{Idle, Invisible, Online};
    let heard = |bench: &mut Bench, of: Eid, status: AwarenessStatus| {
        let from = Some(of.identity());
        let told = AwarenessNotification { from, status: status.code(), ..Default::default() };
        bench.receive(PRESENCE, Payload::AwarenessNotification(told), 0, 0);
        assert_eq!(bench.events().len(), 1, "the application hears it, too");
    };
    for (broadcast, left) in [(true, vec![]), (false, vec![Idle])] {
        let mut bench = Bench::new().open(0);
        set(&mut bench, Invisible, broadcast);
        heard(&mut bench, bob(), Online);
        heard(&mut bench, alice(), Invisible);
        assert_eq!(said_again(&mut bench), [Invisible]);
        heard(&mut bench, alice(), Online);
        assert_eq!(said_again(&mut bench), left);
    }
}

#[test]
fn a_state_that_the_server_may_not_have_is_said_again() {
    let mut bench = Bench::new().open(0);
    let now = bench.now;
    bench.core.tell(state(1), now).unwrap();
    let (_, question) = say(&mut bench);
    assert_eq!(said_again(&mut bench), [AwarenessStatus::Online], "the connection was lost before the answer");
    // An answer to an earlier question, or one of the application's own, says nothing about this state.
    let answer = |status| Payload::AwarenessResponse(AwarenessResponse { status, ..Default::default() });
    bench.receive(PRESENCE, answer(1), 0, question.unwrap());
    bench.receive(PRESENCE, answer(1), 0, 1);
    assert_eq!(said_again(&mut bench), [AwarenessStatus::Online]);

    // The server was told too much.
    bench.core.tell(state(3), now).unwrap();
    let question = say(&mut bench).1.unwrap();
    bench.receive(PRESENCE, error(ErrorCode::TooFast, "10"), 0, question);
    bench.receive(PRESENCE, answer(1), 0, question);
    assert_eq!(said_again(&mut bench), [AwarenessStatus::Away]);
}

#[test]
fn the_newest_own_presence_is_said_once_on_each_connection_until_it_is_taken() {
    let mut bench = Bench::new();
    let now = bench.now;
    bench.core.tell(state(1), now).unwrap();
    bench.core.tell(state(3), now).unwrap();
    assert!(bench.core.is_settled(), "nobody waits for a link that is not there");
    let mut bench = bench.open(0);
    assert!(!bench.core.is_settled());
    assert_eq!(told(&mut bench), [(3, Some(1.0))]);
    assert_eq!(told(&mut bench), []);
    bench.core.tell(state(4), now).unwrap();
    assert_eq!(told(&mut bench), [(4, Some(1.0))]);

    bench.core.link_down();
    bench.connect(0, 1_000);
    assert_eq!(told(&mut bench), [(4, Some(1.0))]);
}

#[test]
fn an_old_location_is_not_made_new() {
    let kept = LOCATION_KEPT.as_millis() as i64;
    // How far the monotonic clock and the wall clock (in ms) are, and whether the location is still sent.
    let cases = [
        (LOCATION_KEPT / 2, kept / 2, true),
        (LOCATION_KEPT, kept, false),
        // The phone has slept.
        (Duration::ZERO, kept, false),
        // Its clock was set.
        (LOCATION_KEPT, 0, false),
        (Duration::ZERO, -1, false),
    ];
    for (monotonic, wall, is_sent) in cases {
        let mut bench = Bench::new();
        bench.core.tell(state(4), bench.now).unwrap();
        bench.now.instant += monotonic;
        bench.now.unix_ms += wall;
        let mut bench = bench.open(0);
        assert_eq!(told(&mut bench), [(4, is_sent.then_some(1.0))], "{monotonic:?} {wall}");
    }
}

#[test]
fn a_word_to_one_user_is_said_now_or_not_at_all() {
    let mut bench = Bench::new();
    let word = AwarenessNotification { to: Some(bob().identity()), ..state(1) };
    assert_eq!(bench.core.tell(word.clone(), bench.now), Err(RequestError::NotConnected));
    let mut bench = bench.open(0);
    assert_eq!(told(&mut bench), []);
    for _ in 0..ANSWERS_MAX {
        bench.core.tell(word.clone(), bench.now).unwrap();
    }
    assert_eq!(bench.core.tell(word, bench.now), Err(RequestError::Busy));
    assert_eq!(told(&mut bench).len(), ANSWERS_MAX);
}

fn list(entries: usize, more: bool) -> Payload {
    let entry = Subscriber { subscriber: Some(bob().identity()), ..Default::default() };
    Payload::SubscriberList(SubscriberList { owner: None, entries: vec![entry; entries], more })
}

#[test]
fn a_list_in_several_frames_is_one_answer_and_a_bounded_one() {
    let mut bench = Bench::new().open(0);
    let request = || Payload::SubscriberListRequest(SubscriberListRequest::default());
    let mut joined = bench.ask(request(), false);
    let id = bench.out(CONTROL)[0].request_id;
    bench.receive(CONTROL, list(2, true), 0, id);
    bench.receive(CONTROL, list(3, true), 0, id + 1);
    bench.receive(CONTROL, list(3, true), 0, id);
    assert!(joined.try_recv().is_err());
    bench.receive(CONTROL, list(1, false), 0, id);
    let Payload::SubscriberList(joined) = joined.try_recv().unwrap().unwrap().payload else { panic!() };
    assert_eq!(joined.entries.len(), 6);

    let endless = bench.ask(request(), false);
    let id = bench.out(CONTROL)[0].request_id;
    for _ in 0..2 {
        bench.receive(CONTROL, list(LIST_ENTRIES_MAX / 2 + 1, true), 0, id);
    }
    assert_eq!(failure(endless), RequestError::Unexpected);

    // Few entries, with a group of 200 KB each.
    let vast = bench.ask(request(), false);
    let id = bench.out(CONTROL)[0].request_id;
    let entry = Subscriber { group: "x".repeat(200_000), ..Default::default() };
    let frame = Payload::SubscriberList(SubscriberList { owner: None, entries: vec![entry], more: true });
    for _ in 0..=LIST_BYTES_MAX / 200_000 {
        bench.receive(CONTROL, frame.clone(), 0, id);
    }
    assert_eq!(failure(vast), RequestError::Unexpected);

    // The longest entries of a list that is full.
    let long = |length| "x".repeat(length);
    let entry = Subscriber {
        subscriber: Some(Eid::parse(&format!("{}@x", long(252))).unwrap().identity()),
        nickname: long(256),
        group: long(256),
        subscriber_resource_id: long(64),
        share_location: true,
        blocked: true,
        added_at: i64::MAX,
    };
    assert!(prost::Message::encoded_len(&entry) <= LIST_BYTES_MAX / LIST_ENTRIES_MAX - 8);
}

#[test]
fn what_repeats_the_servers_own_words_takes_no_more_than_its_bytes() {
    let mut bench = Bench::new().open(0);
    let to = Some(Identity { eid: "x".repeat(200_000), ..Identity::default() });
    for _ in 0..ANSWERS_MAX {
        bench.receive(CONTROL, Payload::PingpongMessage(PingPong { to: to.clone(), ..super::ping(5) }), 0, 0);
    }
    assert_eq!(bench.out(CONTROL).len(), ANSWERS_BYTES_MAX.div_ceil(200_000));
    // There is room again, and a clock of the server that is far off is no harm.
    let far = PingPong { request_time: i64::MIN, ..super::ping(5) };
    bench.receive(CONTROL, Payload::PingpongMessage(far), 0, 0);
    assert_eq!(bench.out(CONTROL).len(), 1);
}

#[test]
fn what_comes_on_another_lane_than_its_own_ends_the_connection_and_nothing_is_skipped() {
    for (lane, payload) in [
        (CONTROL, chat(3)),
        (PRESENCE, update("one", 1)),
        (CHAT, Payload::AwarenessNotification(state(1))),
        (Lane::Media, ping_request()),
    ] {
        let mut bench = Bench::new().open(0);
        bench.receive(lane, payload, 1, 0);
        bench.receive(CHAT, chat(4), 2, 0);
        assert_eq!(bench.events(), []);
        let broken = bench.core.tick(bench.now.instant);
        assert!(matches!(broken, Err(CloseReason::Protocol(_))), "{broken:?}");
        bench.core.link_down();
        assert!(bench.core.tick(bench.now.instant).is_ok());
        bench.connect(0, 1_000);
        bench.receive(CHAT, chat(3), 1, 0);
        assert_eq!(bench.events().len(), 1);
    }
    // An error comes on the lane of what caused it.
    let mut bench = Bench::new().open(0);
    Lane::ALL.into_iter().for_each(|lane| bench.receive(lane, error(ErrorCode::Malformed, ""), 0, 0));
    assert!(bench.core.tick(bench.now.instant).is_ok());
}

/// Two messages were put off, a third is still in flight, and a fourth was sent after them.
fn put_off_with_one_on_the_way() -> Bench {
    let mut bench = Bench::new().open(0);
    ["one", "two", "three"].into_iter().for_each(|name| drop(bench.send(name)));
    assert_eq!(bench.names(), ["one", "two", "three"]);
    bench.receive(CHAT, error(ErrorCode::TooFast, "10"), 0, 1);
    bench.receive(CHAT, error(ErrorCode::TooFast, "20"), 0, 2);
    drop(bench.send("four"));
    bench
}

#[test]
fn what_was_put_off_and_what_follows_go_out_in_order_once_the_rest_is_answered() {
    for last_is_put_off in [true, false] {
        let mut bench = put_off_with_one_on_the_way();
        bench.pass(Duration::from_millis(20));
        assert!(bench.names().is_empty(), "it would overtake the answer that is on the way");
        if last_is_put_off {
            bench.receive(CHAT, error(ErrorCode::TooFast, "10"), 0, 3);
            // A second refusal of the same message changes nothing.
            bench.receive(CHAT, error(ErrorCode::TooFast, "10"), 0, 3);
            assert!(bench.names().is_empty());
            bench.pass(Duration::from_millis(10));
        } else {
            bench.receive(CHAT, update("three", 1), 1, 3);
        }
        drop(bench.send("five"));
        let mut order = Vec::new();
        for sequence in 2.. {
            let names = bench.names();
            if names.is_empty() {
                break;
            }
            names.iter().for_each(|name| bench.receive(CHAT, update(name, sequence), sequence, 0));
            order.extend(names);
        }
        let three = last_is_put_off.then_some("three");
        let expected: Vec<_> = ["one", "two"].into_iter().chain(three).chain(["four", "five"]).collect();
        assert_eq!(order, expected);
    }
}

#[test]
fn who_is_over_the_rate_does_not_send_all_that_waits_again_each_time() {
    let mut bench = Bench::new().open(0);
    let all: Vec<_> = (1..=20).map(|number| format!("local-{number}")).collect();
    all.iter().for_each(|name| drop(bench.send(name)));
    assert_eq!(bench.names().len(), 20);
    let refuse = |bench: &mut Bench, name: &String| {
        let id = all.iter().position(|other| other == name).unwrap() as i64 + 1;
        bench.receive(CHAT, error(ErrorCode::TooFast, "10"), 0, id);
    };
    all.iter().for_each(|name| refuse(&mut bench, name));
    let (mut rounds, mut sequence) = (Vec::new(), 0);
    for _ in 0..4 {
        bench.pass(Duration::from_millis(10));
        let names = bench.names();
        rounds.push(names.len());
        names.iter().for_each(|name| {
            sequence += 1;
            bench.receive(CHAT, update(name, sequence), sequence, 0);
        });
    }
    assert_eq!(rounds, [1, 2, 4, 8]);
    // The last five are put off again, so the window starts again at one.
    let last = bench.names();
    assert_eq!(last.len(), 5);
    last.iter().for_each(|name| refuse(&mut bench, name));
    bench.pass(Duration::from_millis(10));
    assert_eq!(bench.names(), last[..1]);
}

#[test]
fn requests_and_answers_pass_messages_that_were_put_off() {
    let mut bench = put_off_with_one_on_the_way();
    bench.pass(Duration::from_millis(20));
    let _answer = bench.ask(acknowledgment(alice().identity(), id(1), &bob(), AckStatus::Read, 1), true);
    bench.receive(CHAT, update("other", 9), 9, 0);
    let out: Vec<_> = bench.out(CHAT).into_iter().filter_map(|scheme| scheme.payload).collect();
    assert!(matches!(out[..], [Payload::VersionUpdate(_), Payload::AcknowledgmentRequest(_)]), "{out:?}");
}

#[test]
fn messages_that_were_put_off_wait_for_no_answer_that_does_not_come() {
    let mut bench = put_off_with_one_on_the_way();
    bench.pass(Duration::from_millis(20));
    let due = bench.core.deadline(bench.now.instant).unwrap();
    assert!(due > bench.now.instant);
    bench.pass(REQUEST_WITHIN);
    assert!(due <= bench.now.instant);
    assert_eq!(bench.names(), ["one", "two", "four"]);

    let mut bench = put_off_with_one_on_the_way();
    bench.core.link_down();
    bench.connect(0, 1_000);
    assert_eq!(bench.names(), ["one", "two", "three", "four"], "a new link owes nothing of the old one's");
}
