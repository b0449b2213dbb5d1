//! The load generator: each kind of load for a moment, and its report. Nothing here checks how fast anything is.
#![allow(clippy::unwrap_used)]

#[cfg(target_os = "linux")]
#[path = "../src/skip.rs"]
mod skip;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

/// Far longer than any measurement here takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a program to its end. One that does not end is killed, and its server with it.
fn run(program: Command) -> Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut program = tokio::process::Command::from(program);
    let output = async { tokio::time::timeout(PATIENCE, program.kill_on_drop(true).output()).await };
    runtime.block_on(output).expect("it ends").unwrap()
}

/// `bimip bench` in its own folder.
fn measurement(arguments: &[&str], folder: &Path) -> Command {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bimip"));
    bench.arg("bench").args(arguments).current_dir(folder).env_clear();
    bench
}

/// The JSON output of `bimip bench`, run in its own folder with its own server.
fn bench(arguments: &[&str]) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let output = run(measurement(&[&[arguments[0], "--json"][..], &arguments[1..]].concat(), folder.path()));
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{arguments:?}: {err}");
    // Without a terminal it shows no progress. Other tests may make the kernel drop datagrams, of which it warns.
    let is_warning = |line: &&str| ["full socket buffers", "lossy network"].iter().any(|part| line.contains(part));
    let said: Vec<&str> = err.lines().filter(|line| !is_warning(line)).collect();
    assert_eq!(said, [""; 0]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the server's folder is gone");
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn load(arguments: &[&str]) -> Value {
    let short: &[&str] = if arguments.contains(&"--for") { &[] } else { &["--for", "1"] };
    let figures = bench(&[&["load", "--warm-up", "0"], short, arguments].concat()).remove(0);
    assert_eq!(figures["once_and_in_order"], true);
    assert!(count(&figures, "sent_in_all") > 0, "{figures}");
    figures
}

fn count(figures: &Value, name: &str) -> u64 {
    figures[name].as_u64().unwrap_or_else(|| panic!("{name} in {figures}"))
}

#[test]
fn pairs_as_fast_as_it_goes() {
    let figures = load(&["--pairs", "2"]);
    assert_eq!(count(&figures, "arrivals"), count(&figures, "sent_in_all"));
    assert_eq!((count(&figures, "sessions"), figures["transport"].as_str()), (4, Some("quic")));
    #[cfg(target_os = "linux")]
    assert!(figures["server_bytes_per_session"].as_f64().unwrap() > 0.0);
}

#[test]
fn over_tcp_with_receipts_at_a_rate() {
    let figures = load(&["--pairs", "2", "--transport", "tcp", "--receipts", "--rate", "100"]);
    assert_eq!(figures["transport"], "tcp");
    assert_eq!(count(&figures, "sent_in_all"), 100);
    assert_eq!(count(&figures["receipted"], "count"), 100);
}

#[test]
fn senders_that_answer_each_version_update() {
    load(&["--pairs", "2", "--answering"]);
}

#[test]
fn every_device_of_a_user_is_checked() {
    let figures = load(&["--pairs", "1", "--devices", "16", "--rate", "50"]);
    // Each message reaches the recipient's 16 devices and the sender's 15 others.
    assert_eq!(count(&figures, "arrivals"), 50 * (16 + 15));
    assert_eq!(count(&figures, "sessions"), 32);
}

#[test]
fn contacts_by_zipf_who_see_each_others_presence() {
    let arguments = [
        "--contacts",
        "zipf",
        "--users",
        "8",
        "--for",
        "2",
        "--rate",
        "200",
        "--presence",
        "1",
        "--presence-every",
        "0.6",
    ];
    let figures = load(&[&arguments[..], &["--receipts"]].concat());
    assert_eq!(count(&figures, "arrivals"), count(&figures, "sent_in_all"));
    assert!(count(&figures, "presence_changes") > 0);
    assert!(count(&figures["presence_told"], "count") > 0);
}

#[test]
fn devices_are_cut_off_and_nothing_is_lost_or_doubled() {
    let cut = ["--reconnects", "1", "--reconnect-every", "0.4", "--rate", "200", "--devices", "2"];
    for transport in ["quic", "tcp"] {
        let figures = load(&[&cut[..], &["--pairs", "2", "--receipts", "--transport", transport]].concat());
        assert!(count(&figures, "cut_off") >= 8, "{figures}");
        assert_eq!(count(&figures, "arrivals"), 3 * count(&figures, "sent_in_all"));
    }
    // Without receipts a sender reads nothing but the answers to its texts.
    load(&[&cut[..], &["--pairs", "2"]].concat());
    load(&[&cut[..], &["--contacts", "zipf", "--users", "6", "--answering"]].concat());
}

#[test]
fn an_idle_fleet_beside() {
    let figures = load(&["--pairs", "1", "--idle", "10", "--rate", "20"]);
    assert_eq!(count(&figures, "sessions"), 12);
    let idle = bench(&["idle", "--sessions", "10", "--for", "1"]).remove(0);
    assert_eq!((count(&idle, "lost"), count(&idle, "sessions")), (0, 10));
}

#[test]
fn refused_sign_ins_are_part_of_the_same_document() {
    let documents = bench(&["idle", "--sessions", "2", "--for", "1", "--refused", "3"]);
    assert_eq!(documents.len(), 1, "{documents:?}");
    assert_eq!(count(&documents[0], "refused"), 3);
    #[cfg(target_os = "linux")]
    assert!(documents[0]["refused_cpu_us"].is_f64(), "{documents:?}");
}

#[test]
fn a_backlog_that_cannot_be_made_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(measurement(&["backlog", "--messages", "10", "--size", "20000"], folder.path()));
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("refused: 413 "), "{err}");
}

#[test]
fn a_fleet_comes_back_after_the_server_was_killed() {
    let waves = bench(&["storm", "--devices", "20", "--waves", "2", "--restart"]);
    assert_eq!(waves.iter().map(|wave| wave["restarted"].as_bool().unwrap()).collect::<Vec<_>>(), [false, true]);
    assert!(waves.iter().all(|wave| count(&wave["served"], "count") == 20));
}

#[test]
fn a_fleet_comes_back_once_its_sessions_have_ended() {
    for transport in ["quic", "tcp"] {
        let waves = bench(&["storm", "--devices", "20", "--waves", "2", "--transport", transport]);
        assert!(waves.iter().all(|wave| count(&wave["served"], "count") == 20));
        // It is only given where the server says that the sessions of the wave before are gone.
        #[cfg(target_os = "linux")]
        assert!(waves.iter().all(|wave| wave["server_cpu_us_per_sign_in"].is_f64()), "{waves:?}");
    }
}

#[test]
fn what_a_flood_was_acknowledged_arrives() {
    let arguments = ["overload", "--maximum", "500", "--flooders", "2", "--pairs", "2"];
    let figures = bench(&[&arguments[..], &["--before", "1", "--for", "1", "--after", "1"]].concat()).remove(0);
    assert_eq!(count(&figures["flood"], "due"), 1000);
    assert!(count(&figures["flood"], "acknowledged") > 0);
    assert_eq!(figures["beside"]["acknowledged"], figures["beside"]["sent"]);
}

#[test]
fn others_are_looked_at_while_a_device_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(measurement(&["backlog", "--messages", "100", "--returns", "3"], folder.path()));
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    assert!(out.contains(" messages a second in 3 returns, "), "{out}");
    let during = out.lines().find(|line| line.starts_with("others during ")).unwrap();
    let exchanged = during.rsplit_once(" of ").unwrap().1;
    assert!(exchanged.parse::<u64>().unwrap() > 0, "{during}");
}

#[test]
fn a_log_that_grows() {
    let rows = bench(&["growth", "--entries", "500"]).remove(0);
    assert_eq!(count(&rows[0], "entries"), 500);
    assert_eq!(count(&rows[0]["history_oldest"], "count"), 200);
    assert!(count(&rows[0], "accepted_before_kill") > 0, "it is killed while somebody writes");
}

#[test]
fn all_peers_do_the_same_job() {
    const SUBJECTS: [&str; 7] =
        ["bare QUIC", "QUIC, synced", "QUIC, frames", "bare TLS", "TLS, synced", "bimip", "bimip, TCP"];
    let short = ["peers", "--pairs", "2", "--for", "1", "--warm-up", "0"];
    for job in [&["--rates", "0"][..], &["--one-way", "--rates", "100"]] {
        let figures = bench(&[&short[..], job].concat()).remove(0);
        assert!(figures["synced_writes"]["per_second"].as_f64().unwrap() > 0.0);
        let rows = figures["rows"].as_array().unwrap();
        assert!(rows.iter().all(|row| row["figures"]["per_second"].as_f64().unwrap() > 0.0), "{figures}");
        let mut subjects: Vec<_> = rows.iter().map(|row| row["subject"].as_str().unwrap()).collect();
        // It is measured where it is installed.
        subjects.retain(|subject| *subject != "mosquitto");
        assert_eq!(subjects, SUBJECTS);
    }
}

#[test]
fn each_change_of_a_presence_is_told_to_all() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(measurement(&["fan-out", "--subscribers", "3", "--changes", "2"], folder.path()));
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    assert!(out.contains("3 subscribers added") && out.contains("each told after "), "{out}");
}

#[test]
fn others_are_looked_at_beside_a_device_that_does_not_read_and_one_that_sends_much() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(measurement(&["neighbours", "--for", "1"], folder.path()));
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    let begins = ["others alone ", "beside a device that reads ", "beside one that does not ", "pings alone "];
    for begin in begins.into_iter().chain(["media, albums: ", "media, flat out: "]) {
        assert!(out.lines().any(|line| line.starts_with(begin)), "{begin} in {out}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_link_is_checked_and_the_exit_code_says_whether_it_holds() {
    /// Its exit code where there can be no link.
    const NO_LINK: i32 = 77;
    let folder = tempfile::tempdir().unwrap();
    let output = run(measurement(&["link", "--profile", "clean", "--probes", "100", "--json"], folder.path()));
    let err = String::from_utf8(output.stderr).unwrap();
    if output.status.code() == Some(NO_LINK) {
        return skip::skip_outside_ci(err);
    }
    let reports: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {err}"));
    assert_eq!((reports[0]["profile"].as_str(), reports.as_array().unwrap().len()), (Some("clean"), 1), "{reports}");
    assert!(!reports[0]["report"]["rows"].as_array().unwrap().is_empty(), "{reports}");
    // On a busy machine a figure may not hold.
    let code = if reports[0]["holds"].as_bool().unwrap() { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(code), "{reports}");
}

#[test]
fn options_of_which_no_figure_could_come_are_refused() {
    let refused: [&[&str]; 13] = [
        &["load", "--users", "4"],
        &["load", "--in-flight", "0"],
        &["load", "--for", "18446744073709551615"],
        &["load", "--warm-up", "18446744073709551615"],
        &["load", "--rate", "18446744073709551615"],
        &["load", "--server", "127.0.0.1:4433"],
        &["peers", "--one-way"],
        &["peers", "--pairs", "0"],
        &["idle", "--sessions", "0"],
        &["idle", "--for", "0"],
        &["idle", "--sessions", "10", "--contacts", "10"],
        &["storm", "--devices", "0"],
        &["fan-out", "--changes", "0"],
    ];
    let folder = tempfile::tempdir().unwrap();
    for arguments in refused {
        let output = run(measurement(arguments, folder.path()));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let output = run(measurement(&["load", "--nothing", "1"], folder.path()));
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.ends_with("hint: see bimip bench load --help\n"), "{err}");
}

/// What ends a measurement from outside, and what is left of it.
#[cfg(target_os = "linux")]
mod ended {
    use std::fs;
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::{Child, Command, ExitStatus, Stdio};
    use std::time::{Duration, Instant};

    use libc::{SIG_DFL, SIG_IGN, SIGHUP, SIGINT, SIGKILL, SIGTERM};

    use super::{PATIENCE, measurement};

    /// The processes that are waited for need the processors.
    const LOOK_EVERY: Duration = Duration::from_millis(5);

    fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            match look() {
                Some(found) => return found,
                None if Instant::now() > end => panic!("in time: {what}"),
                None => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// A measurement, killed at the end of the test at the latest: some would load the machine for an hour.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            // Fails if it has ended.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Running {
        fn start(mut command: Command) -> Running {
            Running(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
        }

        #[allow(unsafe_code)]
        fn signal(&self, signal: i32) {
            // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
            assert_eq!(unsafe { libc::kill(self.0.id() as i32, signal) }, 0);
        }

        /// Its end, and what it said on standard error, which is less than a pipe holds.
        fn ended(mut self) -> (ExitStatus, String) {
            let status = until("it ends", || self.0.try_wait().unwrap());
            (status, std::io::read_to_string(self.0.stderr.take().unwrap()).unwrap())
        }
    }

    /// Processes that work in this folder, and have not ended: a measurement and those that it has started.
    fn processes_in(folder: &Path) -> usize {
        let (folder, all) = (folder.canonicalize().unwrap(), fs::read_dir("/proc").unwrap().filter_map(Result::ok));
        all.filter(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|own| own == folder)).count()
    }

    /// A measurement, started with this disposition of SIGHUP, whose server has begun to write.
    fn start(arguments: &[&str], folder: &Path, hang_up: libc::sighandler_t) -> Running {
        let mut command = measurement(arguments, folder);
        #[allow(unsafe_code)]
        // SAFETY: between fork and exec only system calls are made. A shell may have had the tests ignore signals.
        unsafe {
            command.pre_exec(move || {
                libc::signal(SIGINT, SIG_DFL);
                libc::signal(SIGHUP, hang_up);
                Ok(())
            });
        }
        let bench = Running::start(command);
        until("a store", || {
            let mut folders = fs::read_dir(folder).unwrap().filter_map(Result::ok);
            folders.any(|folder| folder.path().join("store").exists()).then_some(())
        });
        bench
    }

    const LONG: [&str; 5] = ["load", "--pairs", "1", "--for", "3600"];

    #[test]
    fn a_measurement_that_is_told_to_end_leaves_neither_its_server_nor_its_data() {
        for (number, name) in [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT"), (SIGHUP, "SIGHUP")] {
            let folder = tempfile::tempdir().unwrap();
            let bench = start(&LONG, folder.path(), SIG_DFL);
            assert_eq!(processes_in(folder.path()), 2);
            bench.signal(number);
            let (status, err) = bench.ended();
            assert_eq!(status.code(), Some(1), "{err}");
            assert!(err.contains(&format!("stopped by {name}")), "{err}");
            assert_eq!(processes_in(folder.path()), 0, "the server has ended");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "its folder is gone");
        }
    }

    #[test]
    fn a_comparison_that_is_told_to_end_leaves_nothing_of_the_measurement_within() {
        let folder = tempfile::tempdir().unwrap();
        // Its folder has a store once it measures bimip, which is another measurement with a server of its own.
        let short = ["peers", "--pairs", "1", "--for", "1", "--warm-up", "0", "--rates", "100", "--one-way"];
        let bench = start(&short, folder.path(), SIG_DFL);
        bench.signal(SIGTERM);
        let (status, err) = bench.ended();
        assert_eq!(status.code(), Some(1), "{err}");
        assert_eq!(processes_in(folder.path()), 0, "{err}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{err}");
    }

    #[test]
    fn a_measurement_under_nohup_goes_on_when_the_terminal_goes() {
        let folder = tempfile::tempdir().unwrap();
        let bench = start(&LONG, folder.path(), SIG_IGN);
        let status = fs::read_to_string(format!("/proc/{}/status", bench.0.id())).unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        assert_eq!(u64::from_str_radix(ignored.trim(), 16).unwrap() & 1, 1, "SIGHUP is ignored");
        bench.signal(SIGHUP);
        bench.signal(SIGTERM);
        let (_, err) = bench.ended();
        assert!(err.contains("stopped by SIGTERM"), "{err}");
    }

    #[test]
    fn the_server_of_a_measurement_that_is_killed_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let bench = start(&LONG, folder.path(), SIG_DFL);
        assert_eq!(processes_in(folder.path()), 2);
        bench.signal(SIGKILL);
        bench.ended();
        until("the server has ended", || (processes_in(folder.path()) == 0).then_some(()));
    }

    /// Datagrams that a socket had no room for.
    fn drops(port: u16) -> u64 {
        let sockets = fs::read_to_string("/proc/net/udp").unwrap();
        let local = format!(":{port:04X}");
        let socket =
            sockets.lines().find(|line| line.split_whitespace().nth(1).is_some_and(|own| own.ends_with(&local)));
        socket.unwrap().split_whitespace().last().unwrap().parse().unwrap()
    }

    #[test]
    fn a_measurement_that_fails_tells_of_datagrams_that_the_kernel_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let files = bimip::auth::dev::ensure(folder.path(), &["localhost".to_owned()]).unwrap();
        // A server that does not read, whose buffer is full.
        let (server, flood) = (std::net::UdpSocket::bind("127.0.0.1:0"), std::net::UdpSocket::bind("127.0.0.1:0"));
        let (server, flood) = (server.unwrap(), flood.unwrap());
        let address = server.local_addr().unwrap();
        while drops(address.port()) == 0 {
            (0..1_000).for_each(|_| _ = flood.send_to(&[7; 1_200], address));
        }
        let before = drops(address.port());
        let address_text = address.to_string();
        let mut command = measurement(&["idle", "--sessions", "1", "--server", &address_text, "--ca"], folder.path());
        command.arg(&files.ca).arg("--token-key").arg(&files.token_key);
        let bench = Running::start(command);
        until("a datagram of the measurement", || (drops(address.port()) > before).then_some(()));
        bench.signal(SIGTERM);
        let (status, err) = bench.ended();
        assert_eq!(status.code(), Some(1), "{err}");
        assert!(err.contains("stopped by SIGTERM") && err.contains("dropped meanwhile"), "{err}");
    }
}
