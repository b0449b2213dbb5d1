//! What the log says about a session, and what it does not say.

use serde_json::Value;

use super::start::make_pipe;
use crate::common::{Process, Transport, scratch};

const ALICE: &str = "alice@localhost";
const TEXT: &str = "nobody else's business";

/// Lines of the JSON log with this message.
pub(crate) fn lines(log: &str, message: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["fields"]["message"].as_str() == Some(message)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_one_line_when_it_opens_and_one_when_it_closes() {
    let fields = session_over(Transport::Quic).await;
    assert_eq!((&fields["reason"], &fields["migrations"]), (&"closed_by_peer".into(), &1.into()), "{fields}");
    for number in ["seconds", "rtt_ms", "bytes_in", "bytes_out", "packets_sent"] {
        assert!(fields[number].as_f64().unwrap() > 0.0, "{number} in {fields}");
    }
    assert!(fields["packets_lost"].is_u64(), "{fields}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_has_the_same_over_tcp_where_it_cannot_change_its_address() {
    let fields = session_over(Transport::Tcp).await;
    assert_eq!((&fields["reason"], &fields["migrations"]), (&"closed_by_peer".into(), &0.into()), "{fields}");
    for number in ["seconds", "bytes_in", "bytes_out"] {
        assert!(fields[number].as_f64().unwrap() > 0.0, "{number} in {fields}");
    }
    // On Linux the kernel reports the round-trip time.
    assert!(!cfg!(target_os = "linux") || fields["rtt_ms"].as_f64().unwrap() > 0.0, "{fields}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_the_log_holds_nobody_up() {
    let folder = scratch();
    // Where the process's standard error goes: a pipe that takes 64 KiB, and nobody reads it.
    let pipe = folder.path().join("stderr.log");
    make_pipe(&pipe);
    let _nobody = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let mut server = Process::start(folder.path(), &[("BIMIP_LOG__LEVEL", "trace")]).await;
    for _ in 0..50 {
        let mut alice = server.door.session(ALICE, "phone").open().await;
        alice.ping().await;
        alice.leave();
    }
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_server_whose_log_nobody_reads() {
    let folder = scratch();
    let pipe = folder.path().join("stderr.log");
    make_pipe(&pipe);
    let _nobody = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let mut server = Process::start(folder.path(), &[("BIMIP_LOG__LEVEL", "trace")]).await;
    // Whose session holds up the drain, and fills the log.
    let mut alice = server.door.session(ALICE, "phone").open().await;
    for _ in 0..100 {
        alice.ping().await;
    }
    server.signal(libc::SIGTERM);
    server.signal(libc::SIGINT);
    // At once, or when the drain is over, if it was quicker.
    server.ended().await;
}

/// Fields of the closing log line of a session that opened, sent a text, changed its address (QUIC only) and left.
async fn session_over(over: Transport) -> Value {
    let folder = scratch();
    let mut server =
        Process::start(folder.path(), &[("BIMIP_LOG__FORMAT", "json"), ("BIMIP_LOG__LEVEL", "trace")]).await;
    let mut alice = server.door.session(ALICE, "phone").over(over).pipelined().open().await;
    alice.say("bob@localhost", "m1", TEXT).await;
    if over == Transport::Quic {
        server.door.change_address();
    }
    alice.ping().await;
    let session = alice.accept.session_id.clone();
    alice.leave();
    server.logs("session closed").await;
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
    let log = server.log();

    let (opened, closed) = (lines(&log, "session open"), lines(&log, "session closed"));
    assert_eq!((opened.len(), closed.len()), (1, 1), "{log}");
    for line in [&opened[0], &closed[0]] {
        let span = &line["span"];
        assert_eq!((&span["session"], &span["user"]), (&session.as_str().into(), &ALICE.into()), "{line}");
        assert_eq!((&span["device"], &span["transport"]), (&"phone".into(), &over.name().into()), "{line}");
        assert!(span["path"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    }
    let fields = &closed[0]["fields"];
    assert_eq!(fields["last"] != closed[0]["span"]["path"], over == Transport::Quic, "{fields}");
    // This holds even at level trace.
    assert!(!log.contains(TEXT) && !log.contains("eyJ"), "content or a token in the log");
    fields.clone()
}
