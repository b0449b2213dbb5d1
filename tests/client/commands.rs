//! What the commands do with a server that refuses, is silent or goes away at an awkward moment.

use std::process::{Output, Stdio};

use bimip::wire::{AckStatus, CloseCode};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::peer::Peer;
use super::soon;

const FAILURE: i32 = 1;

/// A peer, and a folder with its certificate and a token for it.
struct Place {
    peer: Peer,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let (peer, folder) = (Peer::start(), tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("ca.pem"), &peer.certificate).unwrap();
        std::fs::write(folder.path().join("token"), "good").unwrap();
        Place { peer, folder }
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bimip"));
        command.env_clear().current_dir(self.folder.path()).args(arguments);
        command.args(["--as", "alice@x", "--ca", "ca.pem", "--token-file", "token", "--transport", "quic"]);
        command.args(["--server", &self.peer.address.to_string()]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Waits for the end of a command that fails; returns what it complains of.
    async fn fails(&self, child: Child) -> String {
        let Output { status, stderr, .. } = soon(child.wait_with_output()).await.unwrap();
        let err = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(FAILURE), "{err}");
        err
    }

    async fn is_left(&self) {
        soon(self.peer.until(|seen| seen.closes == [CloseCode::Goodbye.code() as u64])).await;
    }
}

/// Sends SIGTERM.
#[allow(unsafe_code)]
fn terminate(child: &Child) {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).unwrap();
    // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
    assert_eq!(unsafe { libc::kill(id, libc::SIGTERM) }, 0);
}

const SEND: [&str; 5] = ["send", "--to", "bob@x", "--text", "hi"];
const NOT_KNOWN: &str = "it is not known whether the message of alice@x was sent";

#[tokio::test]
async fn a_sender_that_is_replaced_before_the_answer_says_that_the_message_may_be_sent() {
    let place = Place::new();
    place.peer.state().change(|seen| seen.mute = true);
    let send = place.start(&SEND);
    soon(place.peer.until(|seen| seen.texts == 1)).await;
    place.peer.close_all(CloseCode::Replaced);
    let err = place.fails(send).await;
    assert!(err.contains("signed in elsewhere as device cli-send") && err.contains(NOT_KNOWN), "{err}");
}

#[tokio::test]
async fn a_sender_without_an_answer_leaves() {
    let place = Place::new();
    place.peer.state().change(|seen| seen.mute = true);
    let err = place.fails(place.start(&[&SEND[..], &["--timeout", "5"]].concat())).await;
    assert!(err.contains("no answer within 5 s") && err.contains(NOT_KNOWN), "{err}");
    place.is_left().await;
}

#[tokio::test]
async fn who_is_not_told_a_presence_leaves() {
    let place = Place::new();
    let err = place.fails(place.start(&["presence"])).await;
    assert!(err.contains("503: no presence"), "{err}");
    place.is_left().await;
}

#[tokio::test]
async fn who_watches_is_told_that_the_device_may_not_come_back() {
    let place = Place::new();
    let mut watch = place.start(&["presence", "--watch", "--json"]);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let line = soon(lines.next_line()).await.unwrap().unwrap();
    assert!(line.contains("\"connected\""), "{line}");
    // The session does not end for that, but no other one begins.
    place.peer.state().change(|seen| seen.token = "renewed".to_owned());
    place.peer.close_all(CloseCode::Draining);
    let err = place.fails(watch).await;
    assert!(err.contains("does not let alice@x sign in"), "{err}");
}

#[tokio::test]
async fn a_receipt_that_the_server_has_no_room_for_is_sent_again() {
    let place = Place::new();
    place.peer.state().change(|seen| seen.busy = 1);
    place.peer.push("Hey Alice!");
    let listen = place.start(&["listen", "--read", "--count", "1"]);
    let output = soon(listen.wait_with_output()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let read = (String::new(), AckStatus::Read.code());
    let acknowledged = place.peer.state().seen().acknowledged.clone();
    assert_eq!(acknowledged.iter().filter(|known| **known == read).count(), 2, "{acknowledged:?}");
}

#[tokio::test]
async fn a_sender_that_is_interrupted_says_whether_the_message_may_be_sent() {
    let place = Place::new();
    place.peer.state().change(|seen| seen.mute = true);
    let send = place.start(&SEND);
    soon(place.peer.until(|seen| seen.texts == 1)).await;
    terminate(&send);
    let err = place.fails(send).await;
    assert!(err.contains("stopped by SIGTERM") && err.contains(NOT_KNOWN), "{err}");
    place.is_left().await;

    let place = Place::new();
    place.peer.state().change(|seen| seen.put_off = usize::MAX);
    let send = place.start(&SEND);
    soon(place.peer.until(|seen| seen.put_off < usize::MAX)).await;
    terminate(&send);
    let err = place.fails(send).await;
    assert!(err.contains("stopped by SIGTERM: nothing was sent"), "{err}");
}

/// Whoever takes that for a failure sends the message again.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_message_that_was_sent_is_no_failure_for_want_of_room_for_the_answer() {
    let place = Place::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let send = place.command(&SEND).stdout(full).spawn().unwrap();
    let Output { status, stderr, .. } = soon(send.wait_with_output()).await.unwrap();
    let err = String::from_utf8(stderr).unwrap();
    assert!(status.success(), "{err}");
    assert!(err.contains("sent to bob@x: version 1, message ") && err.contains("No space left"), "{err}");
}

#[tokio::test]
async fn who_listens_for_a_reader_that_has_stopped_to_read_still_ends_when_told_to() {
    const TEXTS: usize = 200;
    let place = Place::new();
    // More than a pipe takes.
    (0..TEXTS).for_each(|_| place.peer.push(&"x".repeat(2_000)));
    let mut listen = place.start(&["listen", "--json"]);
    let unread = listen.stdout.take().unwrap();
    // It has printed something, and cannot print all.
    soon(place.peer.until(|seen| !seen.acknowledged.is_empty())).await;
    terminate(&listen);
    assert!(soon(listen.wait()).await.unwrap().success());
    place.is_left().await;
    assert!(place.peer.state().seen().acknowledged.len() < TEXTS);
    drop(unread);
}

#[tokio::test]
async fn who_listens_ends_when_told_to_though_events_come_without_a_pause() {
    let place = Place::new();
    for arguments in [&["listen", "--json"][..], &["listen", "--json", "--for", "1"]] {
        let mut listen = place.start(arguments);
        let mut lines = BufReader::new(listen.stdout.take().unwrap()).lines();
        assert!(soon(lines.next_line()).await.unwrap().unwrap().contains("\"connected\""));
        // What waits never runs out: for each line that is read there is one more.
        (0..500).for_each(|_| place.peer.push("once"));
        let ends = async {
            let mut told = arguments.len() > 2;
            loop {
                place.peer.push("once more");
                tokio::select! {
                    ended = listen.wait() => break ended.unwrap(),
                    line = lines.next_line() => drop(line),
                }
                if !std::mem::replace(&mut told, true) {
                    terminate(&listen);
                }
            }
        };
        assert!(soon(ends).await.success());
    }
}

#[tokio::test]
async fn a_request_that_is_interrupted_is_left_and_told() {
    let place = Place::new();
    let revoke = place.start(&["revoke", "--all"]);
    soon(place.peer.until(|seen| seen.revocations == 1)).await;
    terminate(&revoke);
    let err = place.fails(revoke).await;
    assert!(err.contains("stopped by SIGTERM: it is not known whether it was done"), "{err}");
    place.is_left().await;

    place.peer.state().change(|seen| seen.put_off = usize::MAX);
    for arguments in [&["revoke", "--all"][..], &["presence", "--watch"]] {
        let opens = place.peer.state().seen().opens.len();
        let command = place.start(arguments);
        soon(place.peer.until(|seen| seen.opens.len() > opens)).await;
        terminate(&command);
        let err = place.fails(command).await;
        assert!(err.contains("stopped by SIGTERM: nothing was asked"), "{err}");
    }
}
