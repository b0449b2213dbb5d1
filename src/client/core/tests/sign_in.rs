//! Signing in and renewal: what happens to the token when the server does not check it, refuses it, or ends it.

use super::*;
use crate::wire::proto::Logout;
use crate::wire::{CloseCode, LogoutStatus};

/// Connects and sends SessionOpen. Returns its request id.
fn opening(bench: &mut Bench) -> i64 {
    bench.core.link_up("first".into(), QUIC, bench.now.instant, bench.now.instant);
    let open = bench.out(CONTROL).remove(0);
    assert!(matches!(open.payload, Some(Payload::SessionOpen(_))), "{open:?}");
    open.request_id
}

#[test]
fn a_sign_in_that_is_put_off_ends_the_connection_and_not_the_token() {
    let ms = Duration::from_millis;
    // The server's error, whether it names the request, and how long the next sign-in is put off.
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
        // A server that did not check SessionOpen takes the next frame for the first one.
        bench.receive(CONTROL, error(ErrorCode::Unauthenticated, "the first frame is SessionOpen"), 0, 7);
        let gone = bench.core.tick(bench.now.instant);
        assert!(
            matches!(&gone, Err(CloseReason::PutOff(refusal)) if refusal.kind() == Some(code)),
            "{code:?}: {gone:?}"
        );
        assert!(bench.core.has_no_session());
        bench.core.link_down();
        assert_eq!(bench.core.take_put_off(), Some(wait), "{code:?} {details}");
        assert_eq!(bench.core.take_put_off(), None);
        // The next connection is not affected, and nothing was lost.
        bench.connect(0, 1_000);
        assert!(!bench.core.has_no_session());
        assert_eq!(bench.names(), ["250"]);
    }
}

/// Signed in with the token "first", which is being renewed with "second". Returns the renewal's request id.
fn renewing(bench: &mut Bench) -> i64 {
    let request_id = opening(bench);
    bench.receive(CONTROL, accept(0, 0), 0, request_id);
    renew(bench, "second").expect("a new token")
}

/// The token source returned this token.
fn renew(bench: &mut Bench, token: &str) -> Option<i64> {
    bench.core.renew(token.into(), bench.now.instant);
    let open = bench.out(CONTROL).pop()?;
    let Some(Payload::SessionOpen(SessionOpen { token: shown, .. })) = open.payload else { panic!("{open:?}") };
    assert_eq!(shown, token);
    Some(open.request_id)
}

#[test]
fn the_token_not_to_come_back_with_is_the_one_that_was_refused_or_the_sessions() {
    let unauthenticated = || error(ErrorCode::Unauthenticated, "");
    // Before a session is open.
    for (payload, named, refused) in [
        (unauthenticated(), true, Some("first")),
        // SessionOpen did not arrive in time.
        (unauthenticated(), false, None),
    ] {
        let mut bench = Bench::new();
        let request_id = opening(&mut bench);
        bench.receive(CONTROL, payload, 0, if named { request_id } else { 0 });
        assert_eq!(bench.core.take_refused_token().as_deref(), refused);
    }

    // On an open session: the server's answer to the renewal, and the token for which it then closes.
    enum Says {
        Nothing,
        Later,
        No,
        Yes,
    }
    for (says, expired) in
        [(Says::Nothing, "first"), (Says::Later, "first"), (Says::No, "second"), (Says::Yes, "second")]
    {
        let mut bench = Bench::new();
        let request_id = renewing(&mut bench);
        match says {
            Says::Nothing => {}
            Says::Later => bench.receive(CONTROL, error(ErrorCode::TooFast, "5"), 0, request_id),
            Says::No => bench.receive(CONTROL, unauthenticated(), 0, request_id),
            Says::Yes => bench.receive(CONTROL, accept(0, 0), 0, request_id),
        }
        assert!(bench.core.tick(bench.now.instant).is_ok(), "the session goes on until it is closed");
        // The session's token expires; this error answers no request.
        bench.receive(CONTROL, unauthenticated(), 0, 0);
        bench.core.link_down();
        assert_eq!(bench.core.take_refused_token().as_deref(), Some(expired));
        assert!(bench.events().iter().all(|event| matches!(event, Event::Connected(_))));
    }

    // The next connection starts without any of this.
    let mut bench = Bench::new();
    renewing(&mut bench);
    bench.core.link_down();
    opening(&mut bench);
    assert_eq!(bench.core.take_refused_token(), None);
}

#[test]
fn a_renewal_that_is_put_off_is_made_again_with_the_same_token_and_no_other_twice() {
    let mut bench = Bench::new();
    let first = renewing(&mut bench);
    assert_eq!(renew(&mut bench, "second"), None, "the server is about to look at it");
    bench.receive(CONTROL, error(ErrorCode::TooFast, "250"), 0, first);
    let again = bench.core.renew_at().unwrap() - bench.now.instant;
    assert!((Duration::from_millis(250)..Duration::from_millis(250) + RENEW_RETRY).contains(&again), "{again:?}");
    let second = renew(&mut bench, "second").expect("it was not looked at");
    assert_ne!(first, second);
    bench.receive(CONTROL, accept(0, 0), 0, second);
    assert_eq!(renew(&mut bench, "second"), None, "it is the session's");
    assert!(renew(&mut bench, "third").is_some());
}

#[test]
fn a_fleet_that_signed_in_at_once_does_not_renew_at_once() {
    let hour = 3_600_000;
    let renewals = (0..100).map(|seed| {
        let mut bench = Bench::new();
        bench.core.jitter = Jitter::new(seed);
        let session = SessionAccept { server_time: 7, token_expires_at: 7 + hour, ..Default::default() };
        let request_id = opening(&mut bench);
        bench.receive(CONTROL, Payload::SessionAccept(session), 0, request_id);
        bench.core.renew_at().unwrap() - bench.now.instant
    });
    let early = Duration::from_millis(hour.unsigned_abs()) - Duration::from_secs(60) - RENEW_SPREAD / 2;
    let earlier = renewals.filter(|at| *at < early).count();
    assert!((30..70).contains(&earlier), "{earlier} of 100 in the first half");
}

#[test]
fn a_device_that_is_one_too_many_stops_and_its_token_is_as_good_as_before() {
    for named in [true, false] {
        let mut bench = Bench::new();
        let request_id = opening(&mut bench);
        bench.receive(CONTROL, error(ErrorCode::Forbidden, ""), 0, if named { request_id } else { 0 });
        let gone = bench.core.tick(bench.now.instant).unwrap_err();
        assert!(matches!(&gone, CloseReason::Denied(refusal) if refusal.code == 403), "{gone:?}");
        assert!(gone.is_final(false) && !gone.wants_new_token() && bench.core.has_no_session());
        assert_eq!(bench.core.take_refused_token(), None);
        bench.core.link_down();
        bench.connect(0, 1_000);
        assert!(!bench.core.has_no_session());
    }
}

#[test]
fn a_server_to_which_every_token_has_expired_is_not_asked_without_a_pause() {
    let mut bench = Bench::new();
    let expired =
        || Payload::SessionAccept(SessionAccept { server_time: 7, token_expires_at: 7, ..Default::default() });
    let request_id = opening(&mut bench);
    bench.receive(CONTROL, expired(), 0, request_id);
    assert_eq!(bench.core.renew_at(), Some(bench.now.instant), "the first new token may be better");
    let second = renew(&mut bench, "second").unwrap();
    bench.now.instant += Duration::from_millis(40);
    bench.receive(CONTROL, expired(), 0, second);
    assert_eq!(bench.core.renew_at(), Some(bench.now.instant + RENEW_RETRY - Duration::from_millis(40)));
}

#[test]
fn a_close_with_code_0_is_final_for_who_signs_out() {
    let goodbye = CloseReason::Server { code: CloseCode::Goodbye, reason: String::new() };
    let logout = || Payload::Logout(Logout::default());
    let mut bench = Bench::new();
    assert_eq!(failure(bench.ask(logout(), false)), RequestError::NotConnected);
    let mut bench = bench.open(0);
    assert!(!goodbye.is_final(bench.core.leaves()), "QUIC says that for a server that says nothing");
    let _answer = bench.ask(logout(), false);
    bench.core.link_down();
    assert!(goodbye.is_final(bench.core.leaves()));
    bench.connect(0, 1_000);
    assert!(!goodbye.is_final(bench.core.leaves()), "that was another session");
    let _answer = bench.ask(logout(), false);
    let request_id = bench.out(CONTROL)[0].request_id;
    let failed = Logout { status: LogoutStatus::Fail.code(), ..Logout::default() };
    bench.receive(CONTROL, Payload::Logout(failed), 0, request_id);
    assert!(!goodbye.is_final(bench.core.leaves()), "the session goes on");
}
