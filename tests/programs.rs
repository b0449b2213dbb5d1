//! The program's commands together, as processes: a server, senders and listeners.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::FromRawFd;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

const FAILURE: i32 = 1;
const USAGE: i32 = 2;
/// Timeout of every wait. It only ends a test that has failed: nothing here takes seconds.
const WITHIN: Duration = Duration::from_secs(60);

/// A running program; dropping it kills the process.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(arguments: &[&str], folder: &tempfile::TempDir) -> Running {
        let mut child = program(arguments, folder).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = lines(child.stdout.take().unwrap());
        Running { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(WITHIN).expect("a line in time")
    }

    /// The next JSON line with this event name; earlier lines are skipped.
    fn event(&self, name: &str) -> Value {
        loop {
            let event: Value = serde_json::from_str(&self.line()).unwrap();
            if event["event"] == name {
                return event;
            }
        }
    }

    #[allow(unsafe_code)]
    fn signal(&self, signal: i32) {
        let id = i32::try_from(self.child.id()).unwrap();
        // SAFETY: a plain system call; the child was not waited for, so that the id is still its own.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
    }

    /// Its exit status, after its last line of output.
    fn end(mut self) -> ExitStatus {
        while self.lines.recv_timeout(WITHIN).is_ok() {}
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(out: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(out).lines().map_while(Result::ok).take_while(|line| sender.send(line.clone()).is_ok()).count()
    });
    lines
}

/// The exit status; panics if the process has not ended within `WITHIN`.
#[allow(unsafe_code)]
fn ends(child: Child) -> ExitStatus {
    // Nobody reads its output here, so a thread waits for the process itself.
    let (sender, status) = channel();
    let mut running = child;
    let id = i32::try_from(running.id()).unwrap();
    let waiting = std::thread::spawn(move || sender.send(running.wait().unwrap()));
    let status = status.recv_timeout(WITHIN);
    if status.is_err() {
        // SAFETY: a plain system call; the child was not waited for, so that the id is still its own.
        unsafe { libc::kill(id, libc::SIGKILL) };
    }
    waiting.join().unwrap().unwrap();
    status.expect("its end in time")
}

fn program(arguments: &[&str], folder: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bimip"));
    command.args(arguments).current_dir(folder.path()).env_clear();
    command
}

/// A development server, and a folder in which the other commands run.
struct Place {
    server: Running,
    quic: String,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place::with(&[])
    }

    /// A server with additional arguments.
    fn with(more: &[&str]) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let (server, quic) = serve(&folder, "127.0.0.1:0", more);
        Place { server, quic, folder }
    }

    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--data-dir", "d", "--server", &self.quic]].concat()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        program(&self.arguments(arguments), &self.folder).output().unwrap()
    }

    fn start(&self, arguments: &[&str]) -> Running {
        Running::start(&self.arguments(arguments), &self.folder)
    }

    /// Sends a text and expects success; returns the JSON object that the command prints.
    fn send(&self, from: &str, to: &str, text: &str) -> Value {
        let output = self.run(&["send", "--as", from, "--to", to, "--text", text, "--json"]);
        assert!(output.status.success(), "{}", err(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Starts a server and waits until it is ready.
fn serve(folder: &tempfile::TempDir, listen: &str, more: &[&str]) -> (Running, String) {
    let arguments = ["serve", "--dev", "--data-dir", "d", "--domains", "localhost", "--listen", listen];
    let arguments = [&arguments[..], &["--metrics-listen", "127.0.0.1:0"], more].concat();
    let server = Running::start(&arguments, folder);
    let ready = server.line();
    let quic = ready.strip_prefix("bimip ready quic=").unwrap_or_else(|| panic!("{ready}"));
    let quic = quic.split(' ').next().unwrap().to_owned();
    (server, quic)
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn what_is_sent_is_heard_with_its_version_and_latencies() {
    let place = Place::new();
    let bob = place.start(&["listen", "--as", "bob@localhost", "--json", "--count", "1", "--read"]);
    bob.event("connected");
    let alice = place.start(&["listen", "--as", "alice@localhost", "--json"]);
    alice.event("connected");

    let sent = place.send("alice@localhost", "bob@localhost", "Hey Bob!");
    assert_eq!(sent["version"], 1);
    assert!(sent["latency_ms"].as_f64().unwrap() > 0.0);
    let heard = bob.event("message");
    assert_eq!(heard["text"], "Hey Bob!");
    assert_eq!(heard["from"], "alice@localhost");
    assert_eq!(heard["version"], 1);
    assert_eq!(heard["message_id"], sent["message_id"]);
    assert_eq!(heard["live"], true);
    assert!(heard["delivery_ms"].is_i64() && heard["end_to_end_ms"].is_i64());
    assert!(bob.end().success());

    // Another device of the sender gets the sender's copy and both receipts.
    assert_eq!(alice.event("message")["author"], "sender");
    assert_eq!(alice.event("acknowledged")["status"], "delivered");
    let read = alice.event("acknowledged");
    assert_eq!((&read["status"], &read["up_to_version"]), (&"read".into(), &1.into()));
    alice.signal(libc::SIGINT);
    assert!(alice.end().success());
}

#[test]
fn what_was_sent_before_is_heard_later_once_and_in_order() {
    let place = Place::new();
    for text in ["one", "two", "three"] {
        place.send("alice@localhost", "bob@localhost", text);
    }
    let bob = place.start(&["listen", "--as", "bob@localhost", "--json", "--count", "3"]);
    for (text, version) in [("one", 1), ("two", 2), ("three", 3)] {
        let heard = bob.event("message");
        assert_eq!((&heard["text"], &heard["version"]), (&text.into(), &version.into()));
        assert_eq!(heard["live"], false);
    }
    assert!(bob.end().success());
    // The same device does not get them again; another device does.
    place.send("alice@localhost", "bob@localhost", "four");
    let bob = place.start(&["listen", "--as", "bob@localhost", "--json", "--count", "1"]);
    assert_eq!(bob.event("message")["text"], "four");
    let tablet = place.start(&["listen", "--as", "bob@localhost", "--device", "tablet", "--count", "4"]);
    let words = tablet.line();
    assert!(words.contains("connected"), "{words}");
    let words = tablet.line();
    assert!(words.contains("#1 v1 from alice@localhost: \"one\""), "{words}");
    assert!(tablet.end().success());
}

#[test]
fn who_listens_leaves_when_nobody_reads_its_output() {
    let place = Place::new();
    for command in [&["listen"][..], &["presence", "--watch"]] {
        let arguments = [command, &["--as", "bob@localhost", "--json"]].concat();
        let mut program = program(&place.arguments(&arguments), &place.folder);
        let mut child = program.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut String::new()).unwrap();
        // The device has no further events, so the command must notice the closed pipe by itself.
        drop(out);
        assert!(ends(child).success(), "{command:?}");
    }
}

#[test]
fn what_could_not_be_printed_is_not_acknowledged() {
    let place = Place::new();
    place.send("alice@localhost", "bob@localhost", "one");
    let mut deaf = program(&place.arguments(&["listen", "--as", "bob@localhost", "--count", "1"]), &place.folder);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = ends(deaf.stdout(writer).stderr(Stdio::null()).spawn().unwrap());
    drop(deaf);
    let alice = place.start(&["listen", "--as", "alice@localhost", "--json"]);
    let bob = place.start(&["listen", "--as", "bob@localhost", "--json", "--count", "1"]);
    assert_eq!(bob.event("message")["text"], "one");
    assert!(status.success() && bob.end().success());
    assert_eq!(alice.event("acknowledged")["status"], "delivered");
}

#[test]
fn what_a_measured_server_does_not_show_is_left_out() {
    let place = Place::new();
    let output = place.run(&["bench", "idle", "--sessions", "2", "--for", "1", "--json"]);
    assert!(output.status.success(), "{}", err(&output));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&figures["sessions"], &figures["lost"]), (&2.into(), &0.into()));
    for cost in ["sign_in_cpu_us", "bytes_per_session", "idle_cpu_share", "server_resident_bytes"] {
        assert!(figures[cost].is_null(), "{figures}");
    }
}

#[test]
fn refusals_and_failures_are_one_line_a_hint_and_a_code() {
    let place = Place::new();
    let fails = |code: i32, arguments: &[&str], reason: &str| {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", err(&output));
        assert!(output.stdout.is_empty());
        let err = err(&output);
        assert!(err.contains(reason) && err.lines().count() <= 2, "{err}");
    };
    let send = ["send", "--as", "alice@localhost", "--text", "hi"];
    fails(USAGE, &[&send[..], &["--to", "alice@localhost"]].concat(), "the recipient is the sender");
    fails(USAGE, &[&send[..], &["--to", "bob"]].concat(), "an eid is local@domain");
    fails(USAGE, &[&send[..], &["--to", "bob@localhost", "--timeout", "0"]].concat(), "must be seconds");
    fails(USAGE, &["chat", "--as", "alice@localhost"], "chat needs a terminal");
    let refusal = format!("bimip: refused by {}: 404: ", place.quic);
    fails(FAILURE, &[&send[..], &["--to", "bob@elsewhere"]].concat(), &refusal);
    let wrong_ca = ["--to", "bob@localhost", "--ca", "other/ca.pem"];
    assert!(program(&["certs", "other"], &place.folder).output().unwrap().status.success());
    fails(FAILURE, &[&send[..], &wrong_ca].concat(), "TLS: ");

    // A port on which no server answers.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = socket.local_addr().unwrap().to_string();
    let arguments = ["--to", "bob@localhost", "--data-dir", "d", "--timeout", "0.3", "--server", &nobody];
    let output = program(&[&send[..], &arguments].concat(), &place.folder).output().unwrap();
    assert_eq!(output.status.code(), Some(FAILURE));
    assert!(err(&output).starts_with(&format!("bimip: cannot reach {nobody}: ")), "{}", err(&output));

    let nowhere = ["--to", "bob@localhost", "--data-dir", "nowhere"];
    let output = program(&[&send[..], &nowhere].concat(), &place.folder).output().unwrap();
    assert_eq!(output.status.code(), Some(FAILURE));
    assert!(err(&output).starts_with("bimip: no development key in nowhere/keys\nhint: "), "{}", err(&output));
}

#[test]
fn a_server_that_is_terminated_drains_and_its_listeners_come_back_to_the_next() {
    let place = Place::new();
    let bob = place.start(&["listen", "--as", "bob@localhost", "--json"]);
    bob.event("connected");
    place.server.signal(libc::SIGTERM);
    let Place { server, quic, folder } = place;
    assert!(server.end().success());
    bob.event("disconnected");

    let (server, same) = serve(&folder, &quic, &[]);
    assert_eq!(same, quic);
    let place = Place { server, quic, folder };
    bob.event("connected");
    place.send("alice@localhost", "bob@localhost", "Still there?");
    assert_eq!(bob.event("message")["text"], "Still there?");
    bob.signal(libc::SIGTERM);
    assert!(bob.end().success());
}

/// Name and records of the only trace in a folder. Format: JSON-SEQ (RFC 7464), one record per line after a separator.
fn trace(folder: &std::path::Path) -> (String, Vec<Value>) {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(files[0].extension().unwrap(), "sqlog");
    let text = std::fs::read_to_string(&files[0]).unwrap();
    let records = text.strip_suffix('\n').unwrap().split('\n');
    let records = records.map(|record| serde_json::from_str(record.strip_prefix('\u{1e}').unwrap()).unwrap());
    (files[0].file_stem().unwrap().to_str().unwrap().to_owned(), records.collect())
}

#[test]
fn both_sides_of_a_connection_are_traced_if_that_is_asked_for() {
    let place = Place::with(&["--qlog", "theirs"]);
    let arguments = ["send", "--as", "alice@localhost", "--to", "bob@localhost", "--text", "hi", "--qlog", "ours"];
    assert!(place.run(&arguments).status.success());
    // A trace is complete when its connection has ended, at the latest when the process has ended.
    place.server.signal(libc::SIGTERM);
    let Place { server, folder, .. } = place;
    assert!(server.end().success());

    let (server, theirs) = trace(&folder.path().join("theirs"));
    let (_, ours) = trace(&folder.path().join("ours"));
    for records in [&theirs, &ours] {
        assert_eq!(records[0]["qlog_format"], "JSON-SEQ", "{}", records[0]);
        let count = |name: &str| records.iter().filter(|record| record["name"].as_str() == Some(name)).count();
        for name in ["transport:packet_sent", "transport:packet_received", "recovery:metrics_updated"] {
            assert!(count(name) > 0, "no {name} in {}", records[0]);
        }
    }
    // Both traces of a connection carry the connection id to which the client sent its first packet.
    let first = ours[1]["group_id"].as_str().unwrap();
    assert!(server.ends_with(&format!("-{first}")), "{server} and {first}");
}

/// A terminal: the side of the one who sits before it, and the programs' side.
#[allow(unsafe_code)]
fn terminal() -> [File; 2] {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let (no_name, no_settings) = (std::ptr::null_mut(), std::ptr::null());
    // SAFETY: the call writes the two descriptors, and reads the size.
    let made = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, no_name, no_settings, &raw const size) };
    assert_eq!(made, 0);
    [ours, theirs].map(|side| {
        // SAFETY: it was opened a moment ago, and nobody else has it. Other tests' programs must not keep it open.
        unsafe {
            libc::fcntl(side, libc::F_SETFD, libc::FD_CLOEXEC);
            File::from_raw_fd(side)
        }
    })
}

#[test]
fn a_chat_on_a_terminal_sends_what_is_typed_shows_what_comes_and_ends_at_ctrl_c() {
    let place = Place::new();
    let bob = place.start(&["listen", "--as", "bob@localhost", "--json"]);
    bob.event("connected");
    let [mut keyboard, programs] = terminal();
    let chat = {
        let mut chat =
            program(&place.arguments(&["chat", "--as", "alice@localhost", "--to", "bob@localhost"]), &place.folder);
        chat.env("TERM", "xterm").stdin(programs.try_clone().unwrap()).stdout(programs).stderr(Stdio::null());
        chat.spawn().unwrap()
    };
    let (mut screen, (sender, lines)) = (keyboard.try_clone().unwrap(), channel());
    // Reading fails once the program has ended.
    std::thread::spawn(move || {
        let mut drawn = [0; 4096];
        while let Ok(bytes @ 1..) = screen.read(&mut drawn) {
            let _ = sender.send(String::from_utf8_lossy(&drawn[..bytes]).into_owned());
        }
    });
    let chat = Running { child: chat, lines };
    let shows = |text: &str| {
        let (began, mut drawn) = (Instant::now(), String::new());
        while !drawn.contains(text) {
            assert!(began.elapsed() < WITHIN, "no {text} in {drawn}");
            drawn += &chat.line();
        }
    };
    shows("bob@localhost");
    keyboard.write_all(b"Hey-from-Alice\r").unwrap();
    assert_eq!(bob.event("message")["text"], "Hey-from-Alice");
    place.send("bob@localhost", "alice@localhost", "Hey-from-Bob");
    shows("Hey-from-Bob");
    const CTRL_C: u8 = 3;
    keyboard.write_all(&[CTRL_C]).unwrap();
    assert!(chat.end().success());
}

#[test]
fn a_chat_whose_window_is_closed_leaves() {
    let place = Place::new();
    let [mut window, programs] = terminal();
    let mut chat =
        program(&place.arguments(&["chat", "--as", "alice@localhost", "--to", "bob@localhost"]), &place.folder);
    let side = || Stdio::from(programs.try_clone().unwrap());
    let chat = chat.env("TERM", "xterm").stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
    let chat = Running { child: chat, lines: channel().1 };
    drop(programs);
    let (mut drawn, mut bytes) = (String::new(), [0; 4096]);
    while !drawn.contains("bob@localhost") {
        let read = window.read(&mut bytes).unwrap();
        drawn += &String::from_utf8_lossy(&bytes[..read]);
    }
    drop(window);
    // What the kernel sends to those whose terminal it is.
    chat.signal(libc::SIGHUP);
    // Nobody is left to be told why, but it was not ended by a signal, and the server knows that it has left.
    let ended = chat.end();
    assert!(ended.code().is_some(), "{ended}");
    let connected = || {
        let status = program(&["status", "--json", "--data-dir", "d"], &place.folder).output().unwrap();
        serde_json::from_slice::<Value>(&status.stdout).unwrap()["connected"].as_u64().unwrap()
    };
    let began = Instant::now();
    while connected() > 0 {
        assert!(began.elapsed() < WITHIN / 2, "it has not left");
    }
}

#[test]
fn the_demo_succeeds_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = program(&["demo"], &folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    child.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(child.wait().unwrap().success(), "{told}");
    for part in ["changes of address", "catching up", "Everything arrived, in order, exactly once."] {
        assert!(told.contains(part), "{part} in {told}");
    }
    // Output that is not a terminal has no colours.
    assert!(!told.contains('\u{1b}'));
}
