//! Signing in and staying so: what becomes of the token when the server does not look at it, refuses it, or ends it.

use super::*;

/// On its way in; the request id of its SessionOpen.
fn opening(bench: &mut Bench) -> i64 {
    bench.core.link_up("first".into(), QUIC, bench.now.instant, bench.now.instant);
    let open = bench.out(CONTROL).remove(0);
    assert!(matches!(open.payload, Some(Payload::SessionOpen(_))), "{open:?}");
    open.request_id
}

#[test]
fn a_sign_in_that_is_put_off_ends_the_connection_and_not_the_token() {
    let ms = Duration::from_millis;
    // What the server says; whether it names the request; how long it wants the next one put off.
    let cases = [
        (ErrorCode::TooFast, "250", true, ms(250)),
        (ErrorCode::TooFast, "250", false, ms(250)),
        (ErrorCode::TooFast, "99999999", true, BACKOFF_MAX),
        (ErrorCode::TooFast, "", true, ms(0)),
        (ErrorCode::Unavailable, "", true, ms(0)),
    ];
    for (code, details, named, wait) in cases {
        let mut bench = Bench::new();
        let _one = bench.send("250");
        let request_id = opening(&mut bench);
        assert_ne!(request_id, 0);
        bench.receive(CONTROL, error(code, details), 0, if named { request_id } else { 0 });
        // A server that did not look at SessionOpen takes the next frame for the first.
        bench.receive(CONTROL, error(ErrorCode::Unauthenticated, "the first frame is SessionOpen"), 0, 7);
        let gone = bench.core.tick(bench.now.instant);
        assert!(matches!(gone, Err(CloseReason::Network(_))), "{code:?}: {gone:?}");
        assert!(bench.core.is_put_off());
        bench.core.link_down();
        assert_eq!(bench.core.take_put_off(), Some(wait), "{code:?} {details}");
        assert_eq!(bench.core.take_put_off(), None);
        // The next connection is as any other, and nothing was lost.
        bench.connect(0, 1_000);
        assert!(!bench.core.is_put_off());
        assert_eq!(bench.names(), ["250"]);
    }
}

#[test]
fn no_sign_of_life_is_asked_for_before_the_session_is_accepted() {
    let mut bench = Bench::new();
    opening(&mut bench);
    bench.core.probe(bench.now);
    assert_eq!(bench.out(CONTROL), [], "it would be the first frame of a sign-in that is put off");
    bench.receive(CONTROL, accept(0, 0), 0, 0);
    bench.core.probe(bench.now);
    assert_eq!(bench.out(CONTROL).len(), 1);
}
