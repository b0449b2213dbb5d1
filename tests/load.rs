//! The load generator: each kind of load for a moment, and its report. Nothing here checks how fast anything is.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;

/// The JSON output of `bimip bench`, run in its own folder with its own server.
fn bench(arguments: &[&str]) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bimip"))
        .args(["bench", arguments[0], "--json"])
        .args(&arguments[1..])
        .current_dir(folder.path())
        .env_clear()
        .output()
        .unwrap();
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
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bimip"));
    bench.args(["bench", "backlog", "--messages", "10", "--size", "20000"]).current_dir(folder.path()).env_clear();
    let output = bench.output().unwrap();
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
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bimip"));
    bench.args(["bench", "backlog", "--messages", "100", "--returns", "3"]).current_dir(folder.path()).env_clear();
    let output = bench.output().unwrap();
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
fn options_that_do_not_go_together_are_refused() {
    for arguments in [&["load", "--users", "4"][..], &["peers", "--one-way"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_bimip")).arg("bench").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
