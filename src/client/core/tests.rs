//! A device without sockets: what it sends, and how it handles the answers, frame by frame.

mod families;
mod receiving;
mod sign_in;
mod untaken;

use std::time::Duration;

use tokio::sync::oneshot;

use super::*;
use crate::client::event::Content;
use crate::client::limits::{
    ANSWERS_MAX, BACKOFF_MAX, HELD_CHATS_MAX, OUTBOX_BYTES_MAX, OUTBOX_MESSAGES_MAX, RENEW_RETRY, RENEW_SPREAD,
    REQUEST_WITHIN, REQUESTS_MAX, REQUESTS_RESERVED, SYNC_WITHIN,
};
use crate::client::payloads::acknowledgment_up_to;
use crate::client::requests::{Answer, Sent};
use crate::wire::proto::{
    AcknowledgmentResponse, AwarenessNotification, ChatMessage, ErrorMessage, MediaPayloadRequest, PingPong,
    SessionAccept, VersionUpdate, chat_message,
};
use crate::wire::{ChatId, ErrorCode, MessageId, Version, VersionStatus};

const CONTROL: Lane = Lane::Control;
const CHAT: Lane = Lane::Chat;
const QUIC: Passage = Passage { transport: Transport::Quic, early: false };

/// A core with a clock that only the test moves.
struct Bench {
    core: Core,
    now: Now,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Backlog::default(), true, true)
    }

    fn with(backlog: Backlog, auto_deliver: bool, auto_sync: bool) -> Bench {
        let settings = Settings {
            eid: alice(),
            device: DeviceId::parse("phone").unwrap(),
            client: "test".into(),
            pipelined: true,
            auto_deliver,
            auto_sync,
            tails: true,
        };
        let now = Now { instant: Instant::now(), unix_ms: 1_000 };
        Bench { core: Core::new(settings, backlog, Jitter::new(7), now), now }
    }

    /// Connected, with its SessionOpen and SyncAcks already taken out of the lanes.
    fn open(mut self, resume_from: u64) -> Bench {
        self.connect(resume_from, 1_000);
        self
    }

    fn connect(&mut self, resume_from: u64, log_head: u64) -> Vec<MessageScheme> {
        self.core.link_up("token".into(), QUIC, self.now.instant, self.now.instant);
        self.receive(CONTROL, accept(resume_from, log_head), 0, 0);
        let mut out = self.out(CONTROL);
        assert!(matches!(out.remove(0).payload, Some(Payload::SessionOpen(_))));
        let connected = self.events();
        assert!(matches!(connected.last(), Some(Event::Connected(_))), "{connected:?}");
        out
    }

    fn receive(&mut self, lane: Lane, payload: Payload, sequence: u64, request_id: i64) {
        let scheme = MessageScheme { sequence: Sequence::from(sequence).wire(), request_id, ..envelope(payload) };
        self.core.frame(lane, &prost::Message::encode_to_vec(&scheme), self.now);
    }

    fn out(&mut self, lane: Lane) -> Vec<MessageScheme> {
        std::iter::from_fn(|| self.core.next_frame(lane, self.now))
            .map(|frame| prost::Message::decode_length_delimited(frame).unwrap())
            .collect()
    }

    /// The texts that are sent, with their local and request ids.
    fn texts(&mut self) -> Vec<(String, i64)> {
        let text = |scheme: MessageScheme| match scheme.payload {
            Some(Payload::TextPayloadRequest(text)) => Some((text.message_id_local, scheme.request_id)),
            _ => None,
        };
        self.out(CHAT).into_iter().filter_map(text).collect()
    }

    fn names(&mut self) -> Vec<String> {
        self.texts().into_iter().map(|(name, _)| name).collect()
    }

    fn send(&mut self, name: &str) -> oneshot::Receiver<Result<Sent, SendError>> {
        let (reply, answer) = oneshot::channel();
        let draft = draft(name);
        match self.core.admit(&draft) {
            Ok(()) => self.core.send(&draft, reply, self.now.instant),
            Err(error) => reply.send(Err(error)).unwrap(),
        }
        answer
    }

    fn ask(&mut self, payload: Payload, lasting: bool) -> oneshot::Receiver<Result<Answer, RequestError>> {
        let (reply, answer) = oneshot::channel();
        self.core.request(payload, lasting, reply);
        answer
    }

    /// The application takes all events.
    fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(outgoing) = self.core.next_event() {
            events.push(outgoing.event);
            if let Some(taken) = outgoing.taken {
                self.core.taken(taken, self.now);
            }
        }
        events
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.core.tick(self.now.instant).unwrap();
    }
}

fn alice() -> Eid {
    Eid::parse("alice@x").unwrap()
}

fn bob() -> Eid {
    Eid::parse("bob@x").unwrap()
}

fn id(number: u8) -> MessageId {
    MessageId::new(1_000, [number; 10])
}

fn draft(name: &str) -> Draft {
    Draft {
        local_id: LocalId::parse(name).unwrap(),
        to: bob(),
        content: Content::Text(format!("text of {name}")),
        created_at: 1_000,
    }
}

fn accept(resume_from: u64, log_head: u64) -> Payload {
    Payload::SessionAccept(SessionAccept {
        session_id: "s1".into(),
        resume_from: Sequence::from(resume_from).wire(),
        log_head: Sequence::from(log_head).wire(),
        ..Default::default()
    })
}

fn update(name: &str, version: u64) -> Payload {
    Payload::VersionUpdate(VersionUpdate {
        to: Some(alice().identity()),
        message_id: id(9).to_string(),
        message_id_local: name.into(),
        r#type: Exchange::Request.code(),
        timestamp: 1_000,
        status: VersionStatus::Sent.code(),
        version: Version::from(version).wire(),
        chat_id: ChatId::between(&alice(), &bob()).to_string(),
    })
}

fn chat(number: u8) -> Payload {
    Payload::ChatMessage(ChatMessage {
        message_id: id(number).to_string(),
        version: i64::from(number),
        chat_id: ChatId::between(&alice(), &bob()).to_string(),
        from: Some(bob().identity()),
        to: vec![alice().identity()],
        author: "receiver".into(),
        acknowledgment: 1,
        payload: Some(chat_message::Payload::Text(format!("number {number}"))),
        ..Default::default()
    })
}

fn receipt(number: u8, status: AckStatus) -> Payload {
    Payload::AcknowledgmentResponse(AcknowledgmentResponse {
        from: Some(bob().identity()),
        to: Some(alice().identity()),
        message_id: id(number).to_string(),
        status: status.code(),
        ..Default::default()
    })
}

fn error(code: ErrorCode, details: &str) -> Payload {
    Payload::ErrorMessage(ErrorMessage { code: code.code(), details: details.into(), ..Default::default() })
}

fn ping_request() -> Payload {
    Payload::PingpongMessage(super::ping(5))
}

fn ping_request_answer() -> Payload {
    Payload::PingpongMessage(PingPong { r#type: Exchange::Response.code(), ..super::ping(5) })
}

#[test]
fn everything_goes_out_behind_session_open_without_waiting() {
    let mut bench = Bench::new();
    let _one = bench.send("one");
    assert_eq!(bench.out(CONTROL).len() + bench.out(CHAT).len(), 0, "there is no link");
    bench.core.link_up("secret".into(), QUIC, bench.now.instant, bench.now.instant);
    let open = bench.out(CONTROL).remove(0);
    let Some(Payload::SessionOpen(open)) = open.payload else { panic!("{open:?}") };
    assert_eq!((open.token.as_str(), open.resume_from, open.pipelined), ("secret", None, true));
    assert_eq!(open.identity.unwrap(), alice().device_identity(&DeviceId::parse("phone").unwrap()));
    assert_eq!(bench.names(), ["one"]);
    assert!(bench.core.owed());
}

#[test]
fn a_session_that_is_not_accepted_in_time_ends() {
    let mut bench = Bench::new();
    bench.core.link_up("token".into(), QUIC, bench.now.instant, bench.now.instant);
    let deadline = bench.core.deadline(bench.now.instant).unwrap();
    assert_eq!(deadline, bench.now.instant + ACCEPT_WITHIN);
    assert!(bench.core.tick(deadline).is_err());
}

#[test]
fn what_is_unanswered_goes_out_again_in_order_under_the_same_names() {
    let mut bench = Bench::new().open(0);
    let mut answers: Vec<_> = ["a", "b", "c", "d"].map(|name| bench.send(name)).into();
    let first = bench.texts();
    assert_eq!(first.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    assert!(bench.texts().is_empty(), "once on one link");
    bench.receive(CHAT, update("b", 2), 2, first[1].1);
    assert_eq!(answers.remove(1).try_recv().unwrap().unwrap().version, Version::from(2));

    bench.core.link_down();
    bench.connect(0, 1_000);
    let second = bench.texts();
    assert_eq!(second, [first[0].clone(), first[2].clone(), first[3].clone()]);
    let _e = bench.send("e");
    assert_eq!(bench.names(), ["e"]);
    assert_eq!(bench.core.take_done(), [LocalId::parse("b").unwrap()]);
}

#[test]
fn a_version_update_resolves_by_local_id_whatever_its_sequence_and_is_always_answered() {
    // Sequence and request id of the VersionUpdate.
    for (sequence, request_id) in [(11, 1), (11, 0), (3, 1), (3, 0), (0, 1), (50, 1)] {
        let mut bench = Bench::new().open(10);
        let mut answer = bench.send("one");
        bench.out(CHAT);
        bench.now.instant += Duration::from_millis(30);
        bench.receive(CHAT, update("one", 7), sequence, request_id);
        let sent = answer.try_recv().unwrap().unwrap();
        assert_eq!(sent.latency, Duration::from_millis(30));
        assert_eq!((sent.version, sent.message_id), (Version::from(7), id(9)));
        let Some(Payload::VersionUpdate(response)) = bench.out(CHAT).remove(0).payload else { panic!() };
        assert_eq!((response.r#type, response.status, response.message_id_local.as_str()), (2, 2, "one"));
        assert_eq!(response.message_id, id(9).to_string());
        assert_eq!(bench.events(), [], "whoever waited knows");
        // When it comes again from the tail, the device answers it again and reports nothing.
        bench.receive(CHAT, update("one", 7), sequence, 0);
        assert_eq!(bench.out(CHAT).len(), 1);
        assert_eq!(bench.events(), []);
    }
}

#[test]
fn a_full_outbox_refuses_and_takes_again_once_there_is_room() {
    let mut bench = Bench::new().open(0);
    let mut waiting: Vec<_> = (0..OUTBOX_MESSAGES_MAX).map(|number| bench.send(&format!("m{number}"))).collect();
    assert_eq!(bench.send("over").try_recv().unwrap(), Err(SendError::OutboxFull));
    assert_eq!(waiting[0].try_recv(), Err(oneshot::error::TryRecvError::Empty));
    bench.receive(CHAT, update("m0", 1), 1, 1);
    let mut over = bench.send("over");
    assert_eq!(over.try_recv(), Err(oneshot::error::TryRecvError::Empty));
}

#[test]
fn long_messages_fill_the_outbox_by_their_bytes() {
    const LONG: usize = 16 * 1024;
    let mut bench = Bench::new().open(0);
    let (mut taken, mut answers) = (0, Vec::new());
    let full = loop {
        let draft = Draft { content: Content::Text("x".repeat(LONG)), ..draft(&format!("m{taken}")) };
        if let Err(error) = bench.core.admit(&draft) {
            break error;
        }
        let (reply, answer) = oneshot::channel();
        bench.core.send(&draft, reply, bench.now.instant);
        answers.push(answer);
        taken += 1;
        assert!(taken * LONG <= OUTBOX_BYTES_MAX, "{taken} messages");
    };
    assert_eq!(full, SendError::OutboxFull);
    assert!((taken + 1) * (LONG + 1024) > OUTBOX_BYTES_MAX, "{taken} messages");
    bench.receive(CHAT, update("m0", 1), 1, 1);
    assert!(bench.core.admit(&draft("short")).is_ok(), "the answer made room");
}

#[test]
fn what_the_server_would_refuse_takes_no_place() {
    let mut bench = Bench::new().open(0);
    let _one = bench.send("one");
    let mut same = bench.send("one");
    assert!(matches!(same.try_recv().unwrap(), Err(SendError::Duplicate(_))));
    let text = |content: String| Draft { content: Content::Text(content), ..draft("x") };
    assert!(bench.core.admit(&text(String::new())).is_err());
    assert!(bench.core.admit(&text("x".repeat(16 * 1024))).is_ok());
    assert!(bench.core.admit(&text("x".repeat(16 * 1024 + 1))).is_err());
    assert!(bench.core.admit(&Draft { to: alice(), ..draft("x") }).is_err());
}

#[test]
fn errors_resolve_put_off_or_end_the_session() {
    enum Then {
        Refused,
        LaterAfter(Duration),
        StillWaiting,
    }
    use Then::{LaterAfter, Refused, StillWaiting};
    let ms = Duration::from_millis;
    // Code, details, whether the error names the request; what then happens to the message.
    let cases = [
        (ErrorCode::Forbidden, "one", true, Refused),
        (ErrorCode::NotFound, "one", false, Refused),
        (ErrorCode::Conflict, "one", true, Refused),
        (ErrorCode::Internal, "", true, Refused),
        (ErrorCode::Unsupported, "", true, Refused),
        (ErrorCode::TooFast, "250", true, LaterAfter(ms(250))),
        (ErrorCode::TooFast, "99999999", true, LaterAfter(BACKOFF_MAX)),
        (ErrorCode::Unavailable, "one", false, LaterAfter(ms(200))),
        (ErrorCode::Unavailable, "", true, LaterAfter(ms(200))),
        (ErrorCode::Unauthenticated, "token expired", true, StillWaiting),
        (ErrorCode::Malformed, "another", false, StillWaiting),
    ];
    for (code, details, named, then) in cases {
        let mut bench = Bench::new().open(0);
        let mut answer = bench.send("one");
        let _two = bench.send("two");
        let request_id = bench.texts()[0].1;
        bench.receive(CHAT, error(code, details), 0, if named { request_id } else { 0 });
        match then {
            Refused => {
                let Err(SendError::Refused(refusal)) = answer.try_recv().unwrap() else { panic!("{code:?}") };
                assert_eq!(refusal.kind(), Some(code));
                assert_eq!(bench.core.take_done().len(), 1);
            }
            LaterAfter(wait) => {
                // A message sent in the meantime waits behind it.
                let _three = bench.send("three");
                assert!(bench.names().is_empty(), "{code:?}");
                bench.receive(CHAT, update("two", 1), 1, request_id + 1);
                let due = bench.core.deadline(bench.now.instant).unwrap();
                assert!(due <= bench.now.instant + wait, "{code:?}");
                bench.pass(wait);
                assert_eq!(bench.names(), ["one", "three"], "{code:?}");
                assert!(answer.try_recv().is_err());
            }
            StillWaiting => {
                assert!(answer.try_recv().is_err(), "{code:?}");
                assert!(bench.names().is_empty());
            }
        }
    }
}

#[test]
fn a_refusal_that_nobody_waits_for_is_an_event() {
    let mut bench = Bench::new().open(0);
    drop(bench.send("one"));
    bench.receive(CHAT, error(ErrorCode::Forbidden, "one"), 0, 1);
    bench.receive(Lane::Presence, error(ErrorCode::Unsupported, ""), 0, 0);
    let events = bench.events();
    let [Event::Refused(first), Event::Refused(second)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(first.local_id, Some(LocalId::parse("one").unwrap()));
    assert_eq!(second.local_id, None);
}

#[test]
fn requests_are_answered_expire_or_end_with_the_link() {
    let mut bench = Bench::new();
    assert_eq!(failure(bench.ask(ping_request(), false)), RequestError::NotConnected);
    let mut bench = bench.open(0);

    let mut answered = bench.ask(ping_request(), false);
    let request_id = bench.out(CONTROL)[0].request_id;
    bench.now.instant += Duration::from_millis(12);
    let pong = PingPong { r#type: 2, status: 2, ..Default::default() };
    bench.receive(CONTROL, Payload::PingpongMessage(pong), 0, request_id);
    assert_eq!(answered.try_recv().unwrap().unwrap().elapsed, Duration::from_millis(12));

    let refused = bench.ask(ping_request(), false);
    let request_id = bench.out(CONTROL)[0].request_id;
    bench.receive(CONTROL, error(ErrorCode::TooFast, "100"), 0, request_id);
    assert!(matches!(failure(refused), RequestError::Refused(_)), "a ping is not made later");

    let expired = bench.ask(ping_request(), false);
    bench.out(CONTROL);
    // The first deadline may be early: all requests share one.
    assert!(bench.core.deadline(bench.now.instant).unwrap() <= bench.now.instant + REQUEST_WITHIN);
    bench.pass(REQUEST_WITHIN);
    assert_eq!(failure(expired), RequestError::TimedOut);

    let lost = bench.ask(ping_request(), false);
    let own = alice().identity();
    let mut kept = bench.ask(acknowledgment(own, id(1), &bob(), AckStatus::Read, 0), true);
    assert_eq!(bench.out(CHAT).len(), 1);
    bench.core.link_down();
    assert_eq!(failure(lost), RequestError::NotConnected);
    bench.connect(0, 1_000);
    let request_id = bench.out(CHAT)[0].request_id;
    bench.receive(CHAT, receipt(1, AckStatus::Read), 0, request_id);
    assert!(kept.try_recv().unwrap().is_ok());

    let waiting: Vec<_> = (0..REQUESTS_MAX + REQUESTS_RESERVED).map(|_| bench.ask(ping_request(), false)).collect();
    assert_eq!(failure(bench.ask(ping_request(), false)), RequestError::Busy);
    drop(waiting);
}

fn failure(mut answer: oneshot::Receiver<Result<Answer, RequestError>>) -> RequestError {
    answer.try_recv().unwrap().unwrap_err()
}

#[test]
fn an_acknowledgment_that_nobody_waits_for_gives_its_place_to_another() {
    let mut bench = Bench::new();
    let read = |number| acknowledgment(alice().identity(), id(number), &bob(), AckStatus::Read, 0);
    let mut waiting = bench.ask(read(1), true);
    for _ in 1..REQUESTS_MAX + REQUESTS_RESERVED {
        drop(bench.ask(read(2), true));
    }
    let mut newest = bench.ask(read(3), true);
    let mut bench = bench.open(0);
    let sent = bench.out(CHAT);
    assert_eq!(sent.len(), 2);
    for (asked, answer) in sent.into_iter().zip([&mut waiting, &mut newest]) {
        bench.receive(CHAT, receipt(1, AckStatus::Read), 0, asked.request_id);
        assert!(answer.try_recv().unwrap().is_ok());
    }
    // On an open session one that was sent keeps its place until the answer.
    let waiting: Vec<_> = (0..REQUESTS_MAX + REQUESTS_RESERVED).map(|_| bench.ask(read(2), true)).collect();
    assert_eq!(bench.out(CHAT).len(), waiting.len());
    drop(waiting);
    assert_eq!(failure(bench.ask(read(3), true)), RequestError::Busy);
}

#[test]
fn what_the_device_sends_itself_is_no_request_of_the_application() {
    let mut bench = Bench::new().open(0);
    let (_, text) = draft("one").payload(&alice(), &DeviceId::parse("phone").unwrap());
    let media = Payload::MediaPayloadRequest(MediaPayloadRequest::default());
    for own in [text, media, Payload::SessionOpen(SessionOpen::default()), error(ErrorCode::Malformed, "")] {
        assert_eq!(failure(bench.ask(own, false)), RequestError::Unexpected);
    }
    assert!(Lane::ALL.into_iter().all(|lane| bench.out(lane).is_empty()));
}

#[test]
fn a_token_is_renewed_before_it_runs_out() {
    let hour = 3_600_000;
    // Remaining life of the token, how long before its end it is renewed (both in ms).
    for (life, before) in [(hour, 60_000), (100_000, 10_000)] {
        let mut bench = Bench::new();
        bench.core.link_up("first".into(), QUIC, bench.now.instant, bench.now.instant);
        let session = SessionAccept { server_time: 7, token_expires_at: 7 + life, ..Default::default() };
        bench.receive(CONTROL, Payload::SessionAccept(session.clone()), 0, 0);
        bench.out(CONTROL);
        let ms = |ms: i64| Duration::from_millis(ms.unsigned_abs());
        let spread = |life: i64| ms(life / 10).min(RENEW_SPREAD);
        let latest = bench.now.instant + ms(life - before);
        assert!((latest - spread(life)..=latest).contains(&bench.core.renew_at().unwrap()));
        bench.core.renew("second".into(), bench.now.instant);
        let Some(Payload::SessionOpen(open)) = bench.out(CONTROL).remove(0).payload else { panic!() };
        assert_eq!(open.token, "second");
        // The acceptance of a renewal is not a new session.
        bench.events();
        let session = SessionAccept { token_expires_at: 7 + 2 * life, ..session };
        bench.receive(CONTROL, Payload::SessionAccept(session), 0, 0);
        assert_eq!(bench.events(), []);
        let latest = bench.now.instant + ms(2 * life - 60_000.min(2 * life / 10));
        assert!((latest - spread(2 * life)..=latest).contains(&bench.core.renew_at().unwrap()));
    }
}

#[test]
fn the_servers_last_word_is_kept_for_the_close() {
    let mut bench = Bench::new();
    bench.core.link_up("token".into(), QUIC, bench.now.instant, bench.now.instant);
    bench.receive(CONTROL, error(ErrorCode::Unauthenticated, "token expired"), 0, 0);
    assert_eq!(bench.core.take_refusal().map(|refusal| refusal.details), Some("token expired".into()));
    assert_eq!(bench.events(), []);
}

#[test]
fn whoever_waits_is_told_when_the_device_stops_and_the_messages_keep_their_place() {
    let mut bench = Bench::new().open(0);
    let mut answer = bench.send("one");
    let request = bench.ask(ping_request(), false);
    bench.core.link_down();
    bench.core.release_waiters(&CloseReason::Local);
    assert_eq!(answer.try_recv().unwrap(), Err(SendError::Unanswered(CloseReason::Local)));
    assert_eq!(failure(request), RequestError::NotConnected);
    bench.connect(0, 1_000);
    assert_eq!(bench.names(), ["one"]);
}

proptest::proptest! {
    #[test]
    fn nothing_a_server_sends_panics_or_grows_without_bound(
        frames in proptest::collection::vec(
            (0usize..4, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80), 0u8..8, 0u64..20, 0i64..4),
            0..60,
        ),
    ) {
        let mut bench = Bench::new().open(0);
        let _one = bench.send("one");
        for (lane, bytes, kind, sequence, request_id) in frames {
            let lane = Lane::ALL[lane];
            let payload = match kind {
                0 => {
                    bench.core.frame(lane, &bytes, bench.now);
                    continue;
                }
                1 => chat(3),
                2 => update("one", 1),
                3 => receipt(3, AckStatus::Read),
                4 => error(ErrorCode::Unavailable, "one"),
                5 => accept(sequence, 5),
                6 => ping_request(),
                _ => error(ErrorCode::NotFound, ""),
            };
            bench.receive(lane_of(&payload).unwrap_or(lane), payload, sequence, request_id);
            proptest::prop_assert!(bench.core.events.len() <= 61 + EVENTS_HELD_MAX);
        }
    }
}
