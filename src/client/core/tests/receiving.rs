//! Incoming frames: each entry of the log once and in order, and what the device answers.

use super::*;

#[test]
fn only_control_is_read_until_the_session_is_accepted_and_while_events_wait() {
    let mut bench = Bench::new();
    bench.core.link_up("token".into(), QUIC, bench.now.instant, bench.now.instant);
    assert!(bench.core.reading(CONTROL) && !bench.core.reading(CHAT));
    bench.receive(CONTROL, accept(0, 0), 0, 0);
    bench.events();
    assert!(bench.core.reading(CHAT));
    bench.receive(CHAT, chat(1), 1, 0);
    assert!(bench.core.reading(CONTROL) && !bench.core.reading(CHAT) && !bench.core.reading(Lane::Presence));
    // Meanwhile a ping is answered.
    bench.out(CONTROL);
    bench.receive(CONTROL, ping_request(), 0, 0);
    let Some(Payload::PingpongMessage(pong)) = bench.out(CONTROL).remove(0).payload else { panic!() };
    assert_eq!((pong.r#type, pong.status, pong.request_time, pong.response_time), (2, 2, 5, 1_000));
    bench.events();
    assert!(bench.core.reading(CHAT));
}

#[test]
fn an_entry_comes_once_and_in_order_across_reconnects() {
    let mut bench = Bench::new().open(4);
    for (sequence, number) in [(5, 1), (6, 2), (6, 2), (5, 1)] {
        bench.receive(CHAT, chat(number), sequence, 0);
    }
    let seen = |events: Vec<Event>| -> Vec<u64> {
        let sequence = |event| match event {
            Event::Message(message) => Some(message.sequence.get()),
            _ => None,
        };
        events.into_iter().filter_map(sequence).collect()
    };
    assert_eq!(seen(bench.events()), [5, 6]);
    bench.core.link_down();
    bench.core.link_up("token".into(), QUIC, bench.now.instant, bench.now.instant);
    let Some(Payload::SessionOpen(open)) = bench.out(CONTROL).remove(0).payload else { panic!() };
    assert_eq!(open.resume_from, Some(6));
    bench.receive(CONTROL, accept(6, 8), 0, 0);
    for (sequence, number) in [(6, 2), (7, 3), (8, 4)] {
        bench.receive(CHAT, chat(number), sequence, 0);
    }
    assert_eq!(seen(bench.events()), [7, 8]);
}

#[test]
fn a_reply_that_runs_ahead_of_the_tail_hides_nothing() {
    let mut bench = Bench::new().open(10);
    let mut answer = bench.send("one");
    bench.out(CHAT);
    bench.receive(CHAT, update("one", 1), 14, 1);
    assert!(answer.try_recv().unwrap().is_ok());
    for sequence in [11, 12, 13] {
        bench.receive(CHAT, chat(sequence), u64::from(sequence), 0);
    }
    bench.receive(CHAT, update("one", 1), 14, 0);
    assert_eq!(bench.events().len(), 3);
}

#[test]
fn what_is_safe_is_said_only_where_chat_is_open() {
    for auto_sync in [true, false] {
        let backlog = Backlog { drafts: Vec::new(), cursor: Some(Sequence::from(500)) };
        let mut bench = Bench::with(backlog, false, auto_sync);
        bench.core.settings.tails = false;
        bench.connect(500, 1_000);
        let now = bench.now.instant;
        if auto_sync {
            assert_eq!(bench.core.sync(None, true, now), None);
        } else {
            assert_eq!(
                bench.core.sync(Some(Sequence::from(500)), false, now),
                Some(Sequence::from(500)),
                "for the outbox"
            );
        }
        assert_eq!(bench.core.deadline(now), None, "nothing is due");
        assert_eq!(bench.out(CHAT), []);
        // A message opens chat, be it one of media.
        let _one = bench.send("one");
        assert!(matches!(bench.out(CHAT).remove(0).payload, Some(Payload::TextPayloadRequest(_))));
        bench.core.sync(None, false, now);
        let _two = bench.send("two");
        let mut out = bench.out(CHAT);
        if !auto_sync {
            // It went out at once, right behind the first message.
            assert_eq!(out.len(), 1);
            continue;
        }
        let Some(Payload::SyncAck(safe)) = out.remove(0).payload else { panic!("{out:?}") };
        assert_eq!(safe.sequence, 500);
    }
}

#[test]
fn an_accepted_message_that_nobody_waits_for_is_an_event() {
    let backlog = Backlog { drafts: vec![draft("earlier"), draft("later")], cursor: Some(Sequence::from(3)) };
    let mut bench = Bench::with(backlog, true, true);
    bench.core.link_up("token".into(), QUIC, bench.now.instant, bench.now.instant);
    let Some(Payload::SessionOpen(open)) = bench.out(CONTROL).remove(0).payload else { panic!() };
    assert_eq!(open.resume_from, Some(3));
    bench.receive(CONTROL, accept(3, 9), 0, 0);
    assert_eq!(bench.names(), ["earlier", "later"]);
    bench.events();
    bench.receive(CHAT, update("earlier", 1), 4, 1);
    drop(bench.send("dropped"));
    bench.receive(CHAT, update("dropped", 3), 6, 3);
    let names: Vec<_> = bench
        .events()
        .into_iter()
        .map(|event| match event {
            Event::Accepted(accepted) => accepted.local_id.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["earlier", "dropped"]);
    assert_eq!(bench.core.take_done().len(), 2);
}

#[test]
fn an_accepted_message_comes_again_to_a_later_process_unless_this_one_took_its_event() {
    let backlog = Backlog { drafts: vec![draft("earlier")], cursor: Some(Sequence::from(3)) };
    let mut bench = Bench::with(backlog, false, true);
    bench.connect(3, 9);
    bench.out(CHAT);
    bench.receive(CHAT, update("earlier", 1), 4, 0);
    assert_eq!(bench.core.keep(true, bench.now.instant), None, "the application has not heard of it");
    assert!(matches!(bench.events()[..], [Event::Accepted(_)]));
    assert_eq!(bench.core.keep(true, bench.now.instant), Some(Sequence::from(4)));

    // The same with a direct reply ahead of the tail: taking its event says nothing about the entries before it.
    drop(bench.send("dropped"));
    bench.out(CHAT);
    bench.receive(CHAT, update("dropped", 2), 7, 2);
    bench.receive(CHAT, chat(1), 5, 0);
    let first = bench.core.next_event().unwrap();
    assert!(matches!(first.event, Event::Accepted(_)), "{first:?}");
    bench.core.taken(first.taken.unwrap(), bench.now);
    assert_eq!(bench.core.sync(None, true, bench.now.instant), Some(Sequence::from(4)));
    bench.events();
    assert_eq!(bench.core.sync(None, true, bench.now.instant), Some(Sequence::from(5)));
}

#[test]
fn a_message_of_an_earlier_process_that_no_server_takes_is_refused_here() {
    let long = Draft { content: Content::Text("x".repeat(20_000)), ..draft("long") };
    let backlog = Backlog { drafts: vec![long, draft("short")], ..Backlog::default() };
    let mut bench = Bench::with(backlog, false, true);
    let [Event::Refused(refused)] = &bench.events()[..] else { panic!() };
    assert_eq!(refused.local_id.as_ref().map(|id| id.as_str()), Some("long"));
    assert_eq!(bench.core.take_done().len(), 1);
    bench.connect(0, 0);
    assert_eq!(bench.names(), ["short"]);
}

#[test]
fn delivery_is_acknowledged_when_the_application_took_the_message_and_until_it_is_answered() {
    let acknowledged = |frames: Vec<MessageScheme>| -> Vec<(String, i32)> {
        let request = |scheme: MessageScheme| match scheme.payload {
            Some(Payload::AcknowledgmentRequest(ack)) => Some((ack.message_id, ack.status)),
            _ => None,
        };
        frames.into_iter().filter_map(request).collect()
    };
    let mut bench = Bench::new().open(0);
    bench.receive(CHAT, chat(1), 1, 0);
    assert_eq!(bench.out(CHAT), []);
    bench.events();
    assert_eq!(acknowledged(bench.out(CHAT)), [(id(1).to_string(), 2)]);
    // The acknowledgment told the server what a SyncAck would.
    bench.now.instant += SYNC_WITHIN;
    assert_eq!(bench.core.sync(None, false, bench.now.instant), None);
    bench.core.link_down();
    bench.connect(1, 1_000);
    let again = bench.out(CHAT);
    let request_id = again[0].request_id;
    assert_eq!(acknowledged(again), [(id(1).to_string(), 2)]);
    bench.receive(CHAT, receipt(1, AckStatus::Delivered), 0, request_id);
    assert!(bench.core.is_settled());
    assert_eq!(bench.events(), [], "one's own acknowledgment is no news");

    // A copy of a message that another device of the same user sent is not acknowledged.
    let Payload::ChatMessage(copy) = chat(2) else { panic!() };
    bench.receive(CHAT, Payload::ChatMessage(ChatMessage { author: "sender".into(), ..copy }), 2, 0);
    assert_eq!(bench.events().len(), 1);
    assert_eq!(acknowledged(bench.out(CHAT)), []);
}

/// A message from another user, and so of another chat, for each `peer`.
fn chat_with(peer: u64, number: u8) -> Payload {
    let Payload::ChatMessage(message) = chat(number) else { panic!() };
    let peer = Eid::parse(&format!("peer-{peer}@x")).unwrap();
    let chat_id = ChatId::between(&alice(), &peer).to_string();
    Payload::ChatMessage(ChatMessage { from: Some(peer.identity()), chat_id, ..message })
}

/// The outgoing acknowledgments that cover a chat up to a version: their request id, chat and version.
fn up_to(bench: &mut Bench) -> Vec<(i64, String, i64)> {
    let request = |scheme: MessageScheme| match scheme.payload {
        Some(Payload::AcknowledgmentRequest(ack)) if ack.up_to_version > 0 => {
            assert_eq!((ack.status, ack.message_id.as_str()), (AckStatus::Delivered.code(), ""));
            Some((scheme.request_id, ack.chat_id, ack.up_to_version))
        }
        _ => None,
    };
    bench.out(CHAT).into_iter().filter_map(request).collect()
}

fn covered(chat: &str, up_to_version: i64) -> Payload {
    Payload::AcknowledgmentResponse(AcknowledgmentResponse {
        from: Some(alice().identity()),
        to: Some(bob().identity()),
        chat_id: chat.into(),
        status: AckStatus::Delivered.code(),
        up_to_version,
        ..Default::default()
    })
}

#[test]
fn acknowledgments_that_find_no_place_become_one_for_each_chat() {
    let mut bench = Bench::new().open(0);
    let mut waiting: Vec<_> = (0..REQUESTS_MAX).map(|_| bench.ask(ping_request(), false)).collect();
    bench.out(CONTROL);
    for (sequence, number) in [(1, 3), (2, 4), (5, 5)] {
        bench.receive(CHAT, chat(number), sequence, 0);
    }
    bench.receive(CHAT, chat_with(1, 9), 6, 0);
    assert_eq!(bench.events().len(), 4);
    assert!(bench.core.can_take(), "the application goes on");
    assert_eq!(up_to(&mut bench), [], "as long as nothing is answered");
    waiting.push(bench.ask(ping_request(), false));
    assert_eq!(bench.out(CONTROL).len(), 1, "and what it asks itself has places of its own");

    // Two places are free. The chat whose newest entry is older gets the first.
    waiting.drain(..3);
    for request_id in [1, 2, 3] {
        bench.receive(CONTROL, ping_request_answer(), 0, request_id);
    }
    let sent = up_to(&mut bench);
    let [(first, with_bob, 5), (second, _, 9)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(*with_bob, ChatId::between(&alice(), &bob()).to_string());

    // An answer that covers a part is followed by a request for the rest. One without progress is not.
    bench.receive(CHAT, covered(with_bob, 4), 0, *first);
    let again = up_to(&mut bench);
    let [(again, _, 5)] = &again[..] else { panic!("{again:?}") };
    bench.receive(CHAT, covered(with_bob, 4), 0, *again);
    bench.receive(CHAT, covered("", 9), 0, *second);
    assert_eq!(up_to(&mut bench), []);

    // With room again, each message is acknowledged separately.
    bench.receive(CHAT, chat(6), 7, 0);
    bench.events();
    let by_name = bench.out(CHAT);
    let [MessageScheme { payload: Some(Payload::AcknowledgmentRequest(ack)), .. }] = &by_name[..] else { panic!() };
    assert_eq!((ack.message_id.as_str(), ack.up_to_version), (id(6).to_string().as_str(), 0));
}

#[test]
fn what_was_held_back_outlives_the_connection_and_goes_out_behind_what_was_asked_before() {
    let mut bench = Bench::new().open(0);
    for number in 0..REQUESTS_MAX + 2 {
        bench.receive(CHAT, chat_with(number as u64, 1), number as u64 + 1, 0);
    }
    bench.events();
    assert_eq!(bench.out(CHAT).len(), REQUESTS_MAX);
    bench.core.link_down();
    bench.connect(1_000, 1_000);
    let again = bench.out(CHAT);
    assert_eq!(again.len(), REQUESTS_MAX);
    assert!(!bench.core.is_settled());
    for scheme in again {
        bench.receive(CHAT, receipt(1, AckStatus::Delivered), 0, scheme.request_id);
    }
    assert_eq!(up_to(&mut bench).len(), 2);
}

#[test]
fn with_too_many_chats_the_application_waits_until_requests_are_over() {
    let mut bench = Bench::new().open(0);
    for number in 0..REQUESTS_MAX + HELD_CHATS_MAX {
        assert!(bench.core.can_take());
        bench.receive(CHAT, chat_with(number as u64, 1), number as u64 + 1, 0);
        bench.events();
    }
    assert!(!bench.core.can_take());
    assert_eq!(bench.out(CHAT).len(), REQUESTS_MAX);
    bench.pass(REQUEST_WITHIN);
    let again = bench.out(CHAT);
    assert!(again.len() == REQUESTS_MAX && !bench.core.can_take(), "they were not answered");
    for scheme in again {
        bench.receive(CHAT, receipt(1, AckStatus::Delivered), 0, scheme.request_id);
    }
    assert_eq!(up_to(&mut bench).len(), REQUESTS_MAX);
    assert!(bench.core.can_take());
}

/// Sends messages from `sequence` on until the read-ahead is at its bound. Returns the next sequence.
fn read_ahead(bench: &mut Bench, mut sequence: u64) -> u64 {
    while bench.core.reading(CHAT) {
        let Payload::ChatMessage(message) = chat(1) else { panic!() };
        let text = "x".repeat(512 * 1024);
        let message = ChatMessage { payload: Some(chat_message::Payload::Text(text)), ..message };
        bench.receive(CHAT, Payload::ChatMessage(message), sequence, 0);
        sequence += 1;
    }
    sequence
}

#[test]
fn whoever_waits_for_what_will_not_be_read_is_told() {
    let own = || alice().identity();
    let ask = |bench: &mut Bench| bench.ask(acknowledgment(own(), id(1), &bob(), AckStatus::Read, 0), true);
    let mut bench = Bench::with(Backlog::default(), false, true).open(0);
    let mut sent = bench.send("one");
    let mut asked = ask(&mut bench);
    let mut ping = bench.ask(ping_request(), false);
    bench.out(CHAT);
    bench.out(CONTROL);
    let next = read_ahead(&mut bench, 1);
    assert!(bench.core.reading(CONTROL));

    // An application that takes events now and then is only slow.
    for _ in 0..3 {
        bench.pass(UNREAD_WITHIN / 2);
        bench.core.next_event().unwrap();
    }
    assert!(sent.try_recv().is_err(), "nobody has told it anything");
    bench.pass(Duration::ZERO);
    assert_eq!(bench.core.deadline(bench.now.instant), Some(bench.now.instant + UNREAD_WITHIN));
    bench.pass(UNREAD_WITHIN);
    assert_eq!(sent.try_recv().unwrap(), Err(SendError::Unread));
    assert_eq!(asked.try_recv().unwrap().unwrap_err(), RequestError::Unread);
    assert!(ping.try_recv().is_err(), "control is read");

    // From then on calls fail at once, until the application has taken everything.
    let mut second = bench.send("two");
    assert_eq!(second.try_recv().unwrap(), Err(SendError::Unread));
    assert_eq!(failure(ask(&mut bench)), RequestError::Unread);
    assert_eq!(bench.names(), ["two"], "the message goes out all the same");
    bench.events();
    assert!(bench.core.reading(CHAT));
    let mut third = bench.send("three");
    assert!(third.try_recv().is_err());

    // The acceptances are reported as events.
    bench.receive(CHAT, update("one", 1), next, 1);
    bench.receive(CHAT, update("two", 2), next + 1, 4);
    let events = bench.events();
    assert!(matches!(&events[..], [Event::Accepted(_), Event::Accepted(_)]), "{events:?}");
}

#[test]
fn what_was_taken_is_synchronised_late_and_what_the_application_says_at_once() {
    let synced = |frames: Vec<MessageScheme>| -> Vec<i64> {
        let sync = |scheme: MessageScheme| match scheme.payload {
            Some(Payload::SyncAck(sync)) => Some(sync.sequence),
            _ => None,
        };
        frames.into_iter().filter_map(sync).collect()
    };
    let mut bench = Bench::with(Backlog::default(), false, true).open(0);
    bench.receive(CHAT, chat(1), 1, 0);
    bench.receive(CHAT, receipt(9, AckStatus::Read), 2, 0);
    assert_eq!(bench.core.sync(None, true, bench.now.instant), None, "nothing was taken");
    assert_eq!(bench.events().len(), 2);
    let due = bench.core.deadline(bench.now.instant).unwrap();
    assert_eq!(due, bench.now.instant + SYNC_WITHIN);
    assert_eq!(bench.core.sync(None, false, bench.now.instant), None);
    assert_eq!(bench.core.sync(None, false, due), Some(Sequence::from(2)));
    assert_eq!(synced(bench.out(CHAT)), [2]);

    let mut bench = Bench::with(Backlog::default(), false, false).open(0);
    bench.receive(CHAT, chat(1), 1, 0);
    bench.events();
    assert_eq!(bench.core.sync(None, true, bench.now.instant), None);
    assert_eq!(bench.core.sync(Some(Sequence::from(1)), false, bench.now.instant), Some(Sequence::from(1)));
    assert_eq!(synced(bench.out(CHAT)), [1]);
    // The application cannot confirm what it has not taken, nor take back what it confirmed.
    bench.receive(CHAT, chat(2), 2, 0);
    for said in [7, 0] {
        assert_eq!(bench.core.sync(Some(Sequence::from(said)), false, bench.now.instant), Some(Sequence::from(1)));
    }
    bench.core.link_down();
    bench.connect(2, 2);
    assert_eq!(synced(bench.out(CHAT)), [1], "the one before may have been lost");
}

#[test]
fn receipts_and_presence_are_events() {
    let mut bench = Bench::new().open(0);
    bench.receive(CHAT, receipt(1, AckStatus::Read), 1, 0);
    bench.receive(CHAT, receipt(1, AckStatus::Read), 1, 0);
    bench.receive(Lane::Presence, Payload::AwarenessNotification(AwarenessNotification::default()), 0, 0);
    let events = bench.events();
    let [Event::Acknowledged(receipt), Event::Presence(_)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&receipt.by, &receipt.sender, receipt.status), (&bob(), &alice(), AckStatus::Read));
}

#[test]
fn events_of_the_connection_are_bounded_while_nobody_reads_and_messages_are_never_dropped() {
    let mut bench = Bench::new().open(0);
    bench.receive(CHAT, chat(1), 1, 0);
    for _ in 0..4 * EVENTS_HELD_MAX {
        bench.core.announce(Event::Disconnected(CloseReason::Local));
    }
    let events = bench.events();
    assert_eq!(events.len(), EVENTS_HELD_MAX);
    assert!(matches!(events[0], Event::Message(_)));
}

#[test]
fn answers_to_a_server_that_does_not_read_are_bounded() {
    let mut bench = Bench::new().open(0);
    for _ in 0..2 * ANSWERS_MAX {
        bench.receive(CONTROL, ping_request(), 0, 0);
    }
    assert_eq!(bench.out(CONTROL).len(), ANSWERS_MAX);
}

#[test]
fn the_outbox_keeps_the_place_of_what_was_taken_and_acknowledged() {
    let kept = |bench: &mut Bench| {
        let due = bench.core.deadline(bench.now.instant)?;
        assert!(due <= bench.now.instant + SYNC_WITHIN);
        bench.core.keep(false, due)
    };
    let mut bench = Bench::new().open(4);
    for (sequence, number) in [(5, 1), (6, 2), (8, 3)] {
        bench.receive(CHAT, chat(number), sequence, 0);
    }
    assert_eq!(bench.core.keep(true, bench.now.instant), None, "nothing was taken");
    bench.events();
    assert_eq!(bench.core.keep(true, bench.now.instant), None, "another process would not acknowledge them");
    let ids: Vec<_> = bench.out(CHAT).into_iter().map(|ack| ack.request_id).collect();
    assert_eq!(ids.len(), 3);
    // The server's answers arrive in any order; the position is kept without a connection, too.
    bench.receive(CHAT, receipt(2, AckStatus::Delivered), 0, ids[1]);
    assert_eq!(bench.core.keep(true, bench.now.instant), None);
    bench.receive(CHAT, receipt(1, AckStatus::Delivered), 0, ids[0]);
    bench.core.link_down();
    assert_eq!(bench.core.keep(false, bench.now.instant), None, "not each by itself");
    assert_eq!(kept(&mut bench), Some(Sequence::from(7)));
    // A refusal counts as an answer.
    bench.connect(8, 1_000);
    bench.out(CHAT);
    bench.receive(CHAT, error(ErrorCode::NotFound, ""), 0, ids[2]);
    assert_eq!(kept(&mut bench), Some(Sequence::from(8)));
    assert_eq!(bench.core.keep(true, bench.now.instant), None, "once");

    // Acknowledgments that wait for a place also hold the position back, from their oldest message on.
    let full: Vec<_> = (0..REQUESTS_MAX).map(|_| bench.ask(ping_request(), true)).collect();
    for (sequence, number) in [(9, 4), (12, 5)] {
        bench.receive(CHAT, chat(number), sequence, 0);
    }
    bench.events();
    assert_eq!(bench.core.keep(true, bench.now.instant), None);
    drop(full);

    // If the application confirms entries itself, the device does not.
    let mut bench = Bench::with(Backlog::default(), false, false).open(0);
    bench.receive(CHAT, chat(1), 1, 0);
    bench.events();
    assert_eq!(bench.core.keep(true, bench.now.instant), None);

    // A position in a log that no longer exists does not count.
    let mut bench = Bench::with(Backlog { cursor: Some(Sequence::from(50)), ..Backlog::default() }, true, true);
    bench.connect(0, 3);
    assert_eq!(bench.core.keep(false, bench.now.instant), Some(Sequence::ZERO));
    assert_eq!(bench.core.keep(true, bench.now.instant), None, "once");
}

/// A device of the log's entry 50, on its way to a server that was restored from a backup.
fn restored(auto_deliver: bool, auto_sync: bool) -> Bench {
    let mut bench = Bench::with(Backlog::default(), auto_deliver, auto_sync).open(49);
    bench.receive(CHAT, chat(1), 50, 0);
    bench.events();
    bench.out(CHAT);
    bench.core.keep(true, bench.now.instant);
    bench.core.take_accepted();
    bench.core.link_down();
    bench.core.link_up("token".into(), QUIC, bench.now.instant, bench.now.instant);
    let Some(Payload::SessionOpen(open)) = bench.out(CONTROL).remove(0).payload else { panic!() };
    assert_eq!(open.resume_from, Some(50));
    bench
}

#[test]
fn a_session_that_would_skip_entries_of_a_restored_log_is_replaced_by_one_that_does_not() {
    for auto_sync in [true, false] {
        let mut bench = restored(false, auto_sync);
        let mut sent = bench.send("one");
        // 40 entries were restored, three came since. The server takes 50 for its log's end.
        bench.receive(CONTROL, accept(43, 43), 0, 0);
        assert!(bench.core.tick(bench.now.instant).is_err(), "another session is needed");
        assert_eq!(bench.core.take_accepted(), None);
        bench.receive(CHAT, chat(9), 44, 0);
        assert_eq!(bench.events(), [], "this one is never told to the application");
        assert_eq!((bench.out(CHAT), bench.core.sync(None, true, bench.now.instant)), (vec![], None));
        // Not even a process that starts now may skip them.
        assert_eq!(bench.core.keep(false, bench.now.instant), Some(Sequence::ZERO));

        bench.core.link_down();
        bench.core.link_up("token".into(), QUIC, bench.now.instant, bench.now.instant);
        let Some(Payload::SessionOpen(open)) = bench.out(CONTROL).remove(0).payload else { panic!() };
        assert_eq!(open.resume_from, None);
        assert_eq!(bench.names(), ["one"]);
        bench.receive(CONTROL, accept(38, 44), 0, 0);
        bench.core.tick(bench.now.instant).unwrap();
        assert_eq!(bench.core.keep(false, bench.now.instant), Some(Sequence::from(38)));
        for sequence in 39..=43 {
            bench.receive(CHAT, chat(sequence), u64::from(sequence), 0);
        }
        bench.receive(CHAT, update("one", 1), 44, 1);
        let events = bench.events();
        assert!(matches!(&events[0], Event::Connected(session) if session.gap), "{events:?}");
        assert_eq!(events.len(), 6);
        assert!(sent.try_recv().unwrap().is_ok());

        // The next session is one like others.
        bench.core.link_down();
        let open = bench.connect(44, 44);
        assert_eq!(open, []);
        bench.core.tick(bench.now.instant).unwrap();
    }
}

#[test]
fn nothing_moves_the_cursor_of_a_restored_log_before_the_device_knows_that_it_is_one() {
    let mut bench = restored(false, false);
    // The application has stored everything, and its user has read everything.
    assert_eq!(bench.core.sync(Some(Sequence::from(50)), false, bench.now.instant), Some(Sequence::from(50)));
    let chat = ChatId::between(&alice(), &bob());
    let read = acknowledgment_up_to(alice().identity(), (chat, Version::from(50)), &bob(), AckStatus::Read, 1);
    let all = bench.ask(read.clone(), true);
    let mut one = bench.ask(acknowledgment(alice().identity(), id(1), &bob(), AckStatus::Read, 1), true);
    let by_name = |bench: &mut Bench| {
        let out: Vec<_> = bench.out(CHAT).into_iter().filter_map(|scheme| scheme.payload).collect();
        let [Payload::AcknowledgmentRequest(ack)] = &out[..] else { panic!("{out:?}") };
        assert_eq!(ack.message_id, id(1).to_string(), "that one is surely not another message");
    };
    by_name(&mut bench);
    bench.receive(CONTROL, accept(43, 43), 0, 0);
    assert_eq!(failure(all), RequestError::NotConnected);
    bench.core.link_down();
    bench.connect(38, 43);
    by_name(&mut bench);
    assert!(one.try_recv().is_err());

    // If it is the log that the device knows, both follow.
    let mut bench = restored(false, false);
    bench.core.sync(Some(Sequence::from(50)), false, bench.now.instant);
    let _all = bench.ask(read, true);
    bench.receive(CONTROL, accept(50, 60), 0, 0);
    let out: Vec<_> = bench.out(CHAT).into_iter().filter_map(|scheme| scheme.payload).collect();
    assert!(matches!(out[..], [Payload::SyncAck(_), Payload::AcknowledgmentRequest(_)]), "{out:?}");
}

#[test]
fn what_was_handed_out_of_a_log_that_is_gone_is_not_acknowledged_in_the_next_one() {
    let mut bench = restored(true, true);
    bench.core.link_down();
    bench.connect(50, 60);
    bench.out(CHAT);
    bench.receive(CHAT, chat(2), 51, 0);
    let untaken = bench.core.next_event().unwrap().taken.unwrap();
    bench.core.link_down();
    bench.core.link_up("token".into(), QUIC, bench.now.instant, bench.now.instant);
    bench.receive(CONTROL, accept(43, 43), 0, 0);
    bench.core.link_down();
    bench.connect(38, 43);
    bench.out(CHAT);
    bench.core.taken(untaken, bench.now);
    assert_eq!(bench.out(CHAT), []);
}

#[test]
fn an_acknowledgment_that_is_not_answered_goes_out_again_and_holds_the_place() {
    let mut bench = Bench::new().open(0);
    bench.receive(CHAT, chat(1), 1, 0);
    bench.events();
    let first = bench.out(CHAT).remove(0);
    let mut asked = bench.ask(ping_request(), true);
    bench.out(CONTROL);
    bench.pass(REQUEST_WITHIN);
    assert!(matches!(asked.try_recv().unwrap(), Err(RequestError::TimedOut)));
    assert_eq!(bench.core.keep(true, bench.now.instant), None, "another process would have to acknowledge it");
    assert_eq!(bench.out(CHAT), std::slice::from_ref(&first));
    bench.receive(CHAT, receipt(1, AckStatus::Delivered), 0, first.request_id);
    assert_eq!(bench.core.keep(true, bench.now.instant), Some(Sequence::from(1)));
}
