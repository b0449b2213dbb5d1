//! Events that the application does not take: what is read meanwhile, and what is kept.

use super::*;

#[test]
fn an_answer_that_is_owed_is_read_behind_events_that_are_not_taken_also_one_to_the_devices_own_acknowledgment() {
    let mut bench = Bench::new().open(0);
    bench.receive(CHAT, chat(1), 1, 0);
    bench.events();
    bench.receive(CHAT, chat(2), 2, 0);
    assert!(!bench.core.reading(CHAT), "nothing is owed");
    // Delivery of the first is acknowledged automatically.
    assert_eq!(bench.out(CHAT).len(), 1);
    assert!(bench.core.reading(CHAT));
}

#[test]
fn the_memory_of_a_backlog_that_was_read_ahead_is_given_back() {
    let mut bench = Bench::new().open(0);
    for number in 1..=100 * EVENTS_MAX as u64 {
        bench.receive(CHAT, chat(1), number, 0);
    }
    assert!(bench.core.events.capacity() >= 100 * EVENTS_MAX);
    bench.events();
    assert!(bench.core.events.capacity() <= 2 * EVENTS_MAX);
}

#[test]
fn a_gap_in_the_log_is_the_last_thing_of_which_an_application_that_does_not_read_is_not_told() {
    let mut bench = Bench::new().open(0);
    bench.core.link_down();
    bench.core.link_up("token".into(), QUIC, bench.now.instant, bench.now.instant);
    bench.receive(CONTROL, accept(7, 1_000), 0, 0);
    for _ in 0..2 * EVENTS_HELD_MAX {
        bench.core.announce(Event::Disconnected(CloseReason::Local));
    }
    let Some(Event::Connected(session)) = bench.core.next_event().map(|held| held.event) else {
        panic!("it was dropped")
    };
    assert!(session.gap);
    assert_eq!(bench.events().len(), EVENTS_HELD_MAX - 1);
    // Gaps alone are bounded, too.
    for _ in 0..2 * EVENTS_HELD_MAX {
        bench.core.announce(Event::Connected(session.clone()));
    }
    assert_eq!(bench.events().len(), EVENTS_HELD_MAX);
}

#[test]
fn the_smallest_frames_take_no_more_memory_than_others_before_the_device_stops_reading_ahead() {
    let mut bench = Bench::new().open(0);
    bench.ask(ping_request(), false);
    bench.out(CONTROL);
    let mut frames = 0;
    while bench.core.reading(Lane::Presence) {
        bench.receive(Lane::Presence, Payload::AwarenessNotification(AwarenessNotification::default()), 0, 0);
        frames += 1;
        assert!(frames * size_of::<Event>() <= 2 * AHEAD_BYTES_MAX, "{frames} events");
    }
}
