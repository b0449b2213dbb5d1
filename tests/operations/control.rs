//! The control socket of a running server, and the commands that use it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bimip::limits::{CONTROL_CONNECTIONS_MAX, CONTROL_REQUEST_BYTES_MAX};
use bimip::wire::CloseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::common::{Process, Transport, scratch, within_bound};

/// Runs a command on a data directory. Returns its standard output, or its standard error if it fails.
pub(crate) async fn bimip(data_dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bimip"));
    command.env_clear().args(arguments).arg("--data-dir").arg(data_dir).kill_on_drop(true);
    let output = within_bound("a command", command.output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

async fn answer(data_dir: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(data_dir.join("control.sock")).await.unwrap();
    // The server may close before everything is written.
    let _ = stream.write_all(request).await;
    let mut answer = String::new();
    let _ = within_bound("an answer", stream.read_to_string(&mut answer)).await;
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_changes_while_it_runs() {
    let folder = scratch();
    let mut server = Process::start(folder.path(), &[("BIMIP_LOG__LEVEL", "error")]).await;
    let session = async |device: &str| server.door.session("alice@localhost", device).open().await.ping().await;
    session("before").await;
    assert_eq!(bimip(folder.path(), &["log"]).await.unwrap(), "error\n");

    bimip(folder.path(), &["log", "info"]).await.unwrap();
    session("while").await;
    bimip(folder.path(), &["log", "bimip::session=error,warn"]).await.unwrap();
    session("after").await;
    let refused = bimip(folder.path(), &["log", "bimip=loud"]).await.unwrap_err();
    assert!(refused.contains("bimip=loud"), "{refused}");
    let refused = bimip(folder.path(), &["log", "bimip::sesion=debug"]).await.unwrap_err();
    assert!(refused.contains("there is no module bimip::sesion"), "{refused}");
    let refused = bimip(folder.path(), &["log", ""]).await.unwrap_err();
    assert!(refused.contains("it is empty: give a level"), "{refused}");

    let status = bimip(folder.path(), &["status", "--json"]).await.unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["quic"], server.door.address.to_string());
    assert!(status["log"].as_str().unwrap().contains("bimip::session=error"), "{status}");
    bimip(folder.path(), &["reload"]).await.unwrap();

    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
    let log = server.log();
    let opened = |device: &str| log.contains(&format!("device=\"{device}\""));
    assert_eq!((opened("before"), opened("while"), opened("after")), (false, true, false), "{log}");
    assert!(log.contains("what is logged has changed"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_its_owners_and_takes_a_little_only() {
    let folder = scratch();
    let socket = folder.path().join("control.sock");
    let refused = bimip(folder.path(), &["status"]).await.unwrap_err();
    assert!(refused.contains("no server runs on "), "{refused}");
    Process::start(folder.path(), &[]).await.kill().await;
    assert!(socket.exists(), "left behind");
    let refused = bimip(folder.path(), &["status"]).await.unwrap_err();
    assert!(refused.contains("no server runs on "), "{refused}");

    let mut server = Process::start(folder.path(), &[]).await;
    assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    for request in [&b"rubbish\n"[..], b"{}\n", b"{\"do\":\"shutdown\"}\n", b"{\"do\":\"log\",\"more\":1}\n", b"\xff\n"]
    {
        let answer = answer(folder.path(), request).await;
        assert!(answer.starts_with("{\"refused\":\"not a request: "), "{answer}");
    }
    let long = vec![b'x'; 2 * CONTROL_REQUEST_BYTES_MAX as usize];
    let answer = answer(folder.path(), &long).await;
    assert!(answer.is_empty() || answer.starts_with("{\"refused\":"), "{answer}");

    // A silent connection takes a place. While all are taken, others are closed at once; afterwards they are served again.
    let mut idle = Vec::new();
    for _ in 0..CONTROL_CONNECTIONS_MAX {
        idle.push(UnixStream::connect(&socket).await.unwrap());
    }
    let mut turned_away = UnixStream::connect(&socket).await.unwrap();
    assert_eq!(within_bound("the end", turned_away.read(&mut [0])).await.unwrap(), 0);
    drop(idle);
    within_bound("a place", async { while bimip(folder.path(), &["status"]).await.is_err() {} }).await;

    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
    assert!(!socket.exists(), "taken away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drains_says_so_and_no_client_of_the_socket_holds_it_up() {
    let folder = scratch();
    let mut server = Process::start(folder.path(), &[]).await;
    // Over TCP the server waits half a second until its client has closed, too; this one does not even read.
    let mut alice = server.door.session("alice@localhost", "phone").over(Transport::Tcp).open().await;
    alice.ping().await;
    let _silent = UnixStream::connect(folder.path().join("control.sock")).await.unwrap();
    server.signal(libc::SIGTERM);
    let status = || answer(folder.path(), b"{\"do\":\"status\"}\n");
    let drains = async { while !status().await.contains("\"not_ready\":\"draining\"") {} };
    within_bound("the server to say that it drains", drains).await;
    let (reload, backup) =
        tokio::join!(answer(folder.path(), b"{\"do\":\"reload\"}\n"), answer(folder.path(), b"{\"do\":\"backup\"}\n"),);
    for answer in [reload, backup] {
        assert!(answer.starts_with("{\"refused\":\"it is draining"), "{answer}");
    }
    alice.expect_close(CloseCode::Draining).await;
    assert!(server.ended().await.success());
    assert!(!folder.path().join("control.sock").exists(), "taken away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_too_long_for_a_socket_can_be_checked_and_backed_up() {
    let folder = scratch();
    let data = folder.path().join("d".repeat(120));
    let mut server = Process::start(&data, &[]).await;
    server.door.session("alice@localhost", "phone").open().await.ping().await;
    let refused = bimip(&data, &["status"]).await.unwrap_err();
    assert!(refused.contains("cannot be asked: the path is too long") && refused.contains("hint: "), "{refused}");
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());

    let free = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    let said = bimip(&data, &[&["config", "--check", "--dev"], &free[..]].concat()).await.unwrap();
    assert!(said.contains("UDP 127.0.0.1:0 is free"), "{said}");
    let said = bimip(&data, &["backup", folder.path().join("backup").to_str().unwrap()]).await.unwrap();
    assert!(said.contains(" rows, "), "{said}");
}
