//! `bimip doctor` and `bimip config --check`: their findings on a server that is well, and on one that is not.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::start::make_pipe;
use crate::common::{Process, TestServer, program, scratch, within_bound};

const FAILURE: i32 = 1;
const USAGE: i32 = 2;
const KEY: &str = "8f95f09245765f80256934e50c66207f";

/// Exit code, standard output and standard error of the program.
async fn run(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bimip"));
    command.env_clear().args(arguments).kill_on_drop(true);
    let output = within_bound("a command", command.output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The findings of one check in the output of `--json`, as `grade: found`.
fn found(out: &str, check: &str) -> Vec<String> {
    let findings = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    findings
        .filter(|finding| finding["check"] == check)
        .inspect(|finding| assert_eq!(finding["advice"].is_string(), finding["grade"] != "ok", "{finding}"))
        .map(|finding| format!("{}: {}", text(&finding, "grade"), text(&finding, "found")))
        .collect()
}

fn any(findings: &[String], begin: &str, contains: &str) -> bool {
    findings.iter().any(|finding| finding.starts_with(begin) && finding.contains(contains))
}

fn path(folder: &Path) -> &str {
    folder.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_checked_before_a_server_starts_with_it() {
    let folder = scratch();
    let data = folder.path().join("data");
    let free = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir", path(&data)];
    let check = async |more: &[&str]| run(&[&["config", "--check"], &free[..], more].concat()).await;

    let (code, out, err) = check(&["--dev"]).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    // How much room this machine has is its own affair.
    let disk = |line: &str| line.starts_with("WARN  disk ") || line.starts_with(' ');
    assert!(out.lines().all(|line| line.starts_with("ok ") || disk(line)), "{out}");
    assert!(!data.exists(), "nothing is made");

    let (code, out, err) = check(&[]).await;
    assert_eq!(code, FAILURE);
    assert!(out.contains("FAIL  certificate ") && out.contains("set tls.certificate and tls.key"), "{out}");
    assert!(err.starts_with("bimip: 2 of ") && err.contains(" checks failed"), "{err}");

    // Another process has the UDP port or the TCP port.
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    for (what, port) in [("UDP", udp.local_addr().unwrap()), ("TCP", tcp.local_addr().unwrap())] {
        let listen = port.to_string();
        let arguments = ["config", "--check", "--json", "--dev", "--listen", &listen, "--data-dir", path(&data)];
        let (code, out, _) = run(&arguments).await;
        assert_eq!(code, FAILURE);
        assert!(any(&found(&out, "ports"), "fail", &format!("{what} {listen}: ")), "{out}");
    }

    // A missing or invalid balancer key, with which a server would not start.
    let file = folder.path().join("bimip.toml");
    let key = folder.path().join("lb.key");
    for (content, fails) in [(None, true), (Some("8f95f09245765f80256934e50c66207z"), true), (Some(KEY), false)] {
        let lb = format!("[quic.lb]\nserver_id = \"0a\"\nkey_file = \"{}\"\n", path(&key));
        fs::write(&file, lb).unwrap();
        content.map_or(Ok(()), |content| fs::write(&key, content)).unwrap();
        let (code, out, _) = check(&["--dev", "--json", "--config", path(&file)]).await;
        assert_eq!(code, if fails { FAILURE } else { 0 }, "{out}");
        assert!(any(&found(&out, "balancer key"), if fails { "fail" } else { "ok" }, path(&key)), "{out}");
    }
    for (traces, fails) in [("bimip.toml", true), ("bimip.toml/traces", true), (".", false), ("a/b", false)] {
        let traces = folder.path().join(traces);
        let (code, out, _) = check(&["--dev", "--json", "--qlog", path(&traces)]).await;
        assert_eq!(code, if fails { FAILURE } else { 0 }, "{out}");
        assert!(any(&found(&out, "traces"), if fails { "fail" } else { "ok" }, path(&traces)), "{out}");
    }
    let (code, _, err) = run(&["config", "--check", "--dev", "--metrics-listen", "127.0.0.1:4433"]).await;
    assert_eq!((code, err.starts_with("bimip: metrics_listen is 127.0.0.1:4433")), (USAGE, true), "{err}");
    fs::write(&file, "log.level = \"bimip=loud\"\n").unwrap();
    for command in [&["serve"][..], &["config", "--check"]] {
        let (code, _, err) = run(&[command, &["--dev", "--config", path(&file)]].concat()).await;
        assert_eq!((code, err.starts_with("bimip: log.level is \"bimip=loud\"")), (USAGE, true), "{err}");
    }

    fs::write(&file, "liste = \"127.0.0.1:1\"\n").unwrap();
    let (code, out, err) = run(&["config", "--check", "--config", path(&file)]).await;
    assert_eq!((code, out.as_str()), (USAGE, ""));
    assert!(err.contains("liste"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_never_end_are_told() {
    let folder = scratch();
    let pipe = folder.path().join("privkey.pem");
    make_pipe(&pipe);
    // With a reader and a writer that stay, opening it succeeds and reading it hangs.
    let _open = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let file = folder.path().join("bimip.toml");
    let (data, pipe) = (path(folder.path()), path(&pipe));
    let toml = format!(
        "data_dir = \"{data}/data\"\nlisten = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\n\
         tls = {{ certificate = \"{pipe}\", key = \"{pipe}\" }}\nauth = {{ keys = [\"{data}/none.pem\"] }}\n"
    );
    fs::write(&file, toml).unwrap();
    let of = ["--json", "--config", path(&file)];
    let (check, doctor) = ([&["config", "--check"], &of[..]].concat(), [&["doctor"], &of[..]].concat());
    let (checked, doctored) = tokio::join!(run(&check), run(&doctor));
    for (code, out, _) in [checked, doctored] {
        assert_eq!(code, FAILURE);
        assert!(any(&found(&out, "certificate"), "fail: not read to the end within", pipe), "{out}");
        assert!(any(&found(&out, "token keys"), "fail", "none.pem"), "the other checks go on: {out}");
        assert!(!found(&out, "ports").is_empty(), "{out}");
    }
}

/// Runs a program with a file system on this folder that never answers: one in user space that nobody serves. The mount is that
/// process's alone.
#[cfg(target_os = "linux")]
async fn run_on_a_dead_mount(folder: &Path, program: &[&str]) -> (Option<i32>, String) {
    const SCRIPT: &str = "exec 3<>/dev/fuse
        mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 dead \"$0\" && exec \"$@\"";
    let mut shell = Command::new("unshare");
    shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT]).arg(folder).args(program);
    shell.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).kill_on_drop(true);
    let output = within_bound("a command", shell.output()).await.unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_does_not_answer_is_told_by_the_check_that_waits_for_it() {
    let folder = scratch();
    if run_on_a_dead_mount(folder.path(), &["true"]).await.0 != Some(0) {
        return crate::common::skip_outside_ci("no file system can be mounted here");
    }
    let (data, traces) = (folder.path().join("data"), folder.path().join("traces"));
    let store = data.join("store");
    fs::create_dir_all(&store).unwrap();
    fs::create_dir(&traces).unwrap();
    let here = ["--json", "--data-dir", path(&data)];
    let doctor = [&[env!("CARGO_BIN_EXE_bimip"), "doctor"], &here[..]].concat();
    let check = [&[env!("CARGO_BIN_EXE_bimip"), "config", "--check"], &here[..]].concat();
    let with_traces = [&check[..], &["--qlog", path(&traces)]].concat();
    let (doctored, checked, without_store, without_traces) = tokio::join!(
        run_on_a_dead_mount(&data, &doctor),
        run_on_a_dead_mount(&data, &check),
        run_on_a_dead_mount(&store, &doctor),
        run_on_a_dead_mount(&traces, &with_traces),
    );
    for ((code, out), check, hangs) in [
        (doctored, "data", &data),
        (checked, "data", &data),
        (without_store, "clock", &store),
        (without_traces, "traces", &traces),
    ] {
        assert_eq!(code, Some(FAILURE), "{check}: {out}");
        assert!(any(&found(&out, check), "fail: no answer within", path(hangs)), "{check}: {out}");
        assert!(!found(&out, "ports").is_empty(), "the other checks go on: {out}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_open_as_many_files_as_the_system_lets_it() {
    let folder = scratch();
    let program = program(folder.path());
    let program = program.as_std();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -S -n 300 && exec \"$0\" \"$@\""]).arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let mut server = shell.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(server.stdout.take().unwrap());
    within_bound("the ready line", stdout.read_line(&mut line)).await.unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.id().unwrap())).unwrap();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let [soft, hard, _] = limit.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{limit}") };
    assert_ne!(hard, "300");
    assert_eq!(soft, hard);
}

/// The limit on file sizes stands for a disk that fails: every commit fails from then on.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
#[allow(unsafe_code)]
async fn a_server_whose_store_has_failed_is_not_called_well() {
    let folder = scratch();
    let program = program(folder.path());
    let program = program.as_std();
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(program.get_program()).args(program.get_args());
    for (name, _) in program.get_envs() {
        shell.env_remove(name);
    }
    let mut server = shell.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(server.stdout.take().unwrap());
    within_bound("the ready line", stdout.read_line(&mut line)).await.unwrap();
    let here = ["--data-dir", path(folder.path())];
    let (code, ..) = run(&[&["status"], &here[..]].concat()).await;
    assert_eq!(code, 0);

    let pid = server.id().unwrap() as libc::pid_t;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` lives through the call, and nothing is written back.
    assert_eq!(unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const none, std::ptr::null_mut()) }, 0);
    within_bound("the store's failure", async {
        loop {
            let (code, out, err) = run(&[&["status", "--json"], &here[..]].concat()).await;
            let status: Value = serde_json::from_str(&out).unwrap();
            if code == FAILURE {
                assert!(status["not_ready"].as_str().unwrap().contains("storage failed"), "{status}");
                assert!(err.contains("the server is not ready: storage failed"), "{err}");
                break;
            }
        }
    })
    .await;
    let (code, out, _) = run(&[&["doctor", "--json"], &here[..]].concat()).await;
    assert_eq!(code, FAILURE);
    assert!(any(&found(&out, "ready"), "fail", "storage failed"), "{out}");
    assert!(any(&found(&out, "certificate"), "ok", ""), "a development server's are its own: {out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_is_looked_at_from_here_and_as_its_clients_do() {
    let folder = scratch();
    let data = folder.path().join("data");
    let mut server = Process::start(&data, &[]).await;
    let address = server.door.address.to_string();
    let (_, out, _) = run(&["doctor", "--json", "--dev", "--data-dir", path(&data), "--server", &address]).await;
    // Look only at findings about the server. Findings about the machine depend on where the test runs.
    for (check, says) in [
        ("certificate", "good for 127.0.0.1, by "),
        ("token keys", "1 in use"),
        ("ports", "a server runs on "),
        ("udp", "the server answers at 127.0.0.1:"),
        ("quic", "a handshake for 127.0.0.1 in "),
        ("tcp", "takes connections"),
    ] {
        assert!(any(&found(&out, check), "ok", says), "{check}: {out}");
    }
    assert!(found(&out, "disk").iter().any(|finding| finding.contains("fdatasync takes ")), "{out}");
    if cfg!(target_os = "linux") {
        assert!(found(&out, "open files")[0].contains("for the running server"), "{out}");
        assert!(found(&out, "udp buffers").iter().any(|finding| finding.contains("rmem_max")), "{out}");
    }

    // An authority that did not issue this server's certificate, as when a client has an old file.
    let other = folder.path().join("other");
    let (code, ..) = run(&["certs", path(&other)]).await;
    assert_eq!(code, 0);
    let ca = other.join("ca.pem");
    let (code, out, _) = run(&["doctor", "--json", "--remote", "--server", &address, "--ca", path(&ca)]).await;
    assert_eq!(code, FAILURE);
    assert!(any(&found(&out, "quic"), "fail", "invalid peer certificate"), "{out}");
    assert!(any(&found(&out, "tcp"), "ok", ""), "{out}");
    assert!(found(&out, "disk").is_empty(), "that server alone: {out}");
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_that_is_dropped_on_the_way_is_told_and_what_to_do() {
    let server = TestServer::start().await;
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let ca = server.files().ca;
    let (code, out, err) = run(&["doctor", "--remote", "--server", &address, "--ca", path(&ca)]).await;
    assert_eq!(code, FAILURE);
    assert!(out.contains("FAIL  quic ") && out.contains("-> UDP is dropped on the way"), "{out}");
    assert!(out.contains("WARN  tcp "), "{out}");
    assert!(err.starts_with("bimip: 1 of 2 checks failed"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_commands_take_the_transport_that_they_are_told() {
    let server = TestServer::start().await;
    let (data, address) = (server.config().data_dir.clone(), server.quic_address().to_string());
    let send = async |transport: &[&str]| {
        let who = ["send", "--as", "alice@localhost", "--to", "bob@localhost", "--text", "hello"];
        run(&[&who[..], &["--server", &address, "--data-dir", path(&data)], transport].concat()).await
    };
    let opened = async |transport: &str| {
        let series = format!("bimip_session_opens_total{{transport=\"{transport}\",result=\"accepted\"}}");
        server.metric(&series).await
    };
    assert_eq!(send(&["--transport", "tcp"]).await.0, 0);
    assert_eq!((opened("quic").await, opened("tcp").await), (0.0, 1.0));
    assert_eq!(send(&["--transport", "quic"]).await.0, 0);
    assert_eq!((opened("quic").await, opened("tcp").await), (1.0, 1.0));
    let (code, _, err) = send(&["--transport", "udp"]).await;
    assert_eq!(code, USAGE, "{err}");
    assert!(err.contains("--transport"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_place_is_called_full() {
    let folder = scratch();
    let data = folder.path().join("data");
    let server = Process::start(&data, &[("BIMIP_QUIC__MAX_CONNECTIONS", "1")]).await;
    let mut alice = server.door.session("alice@localhost", "phone").open().await;
    alice.ping().await;
    let here = ["--data-dir", path(&data), "--server", &server.door.address.to_string()];
    let (code, out, _) = run(&[&["doctor", "--json", "--remote"], &here[..]].concat()).await;
    assert_eq!(code, FAILURE);
    let quic = out.lines().find(|line| line.contains("\"quic\"")).unwrap();
    assert!(quic.contains("refused to accept a new connection") && quic.contains("the server is full"), "{out}");
    let mut listen = Command::new(env!("CARGO_BIN_EXE_bimip"));
    listen.env_clear().args(["listen", "--as", "bob@localhost"]).args(here).stderr(Stdio::piped()).kill_on_drop(true);
    let mut listen = listen.stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(listen.stderr.take().unwrap()).lines();
    let hint = async {
        let complaint = lines.next_line().await.unwrap().unwrap();
        assert!(complaint.contains("refused to accept a new connection"), "{complaint}");
        lines.next_line().await.unwrap().unwrap()
    };
    let hint = within_bound("the hint", hint).await;
    assert!(hint.starts_with("hint: the server is full"), "{hint}");
    alice.ping().await;
}
