//! A backup of a server under traffic, and a server that continues from it.

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bimip::wire::proto::VersionUpdate;
use bimip::wire::{Lane, Payload};

use crate::common::{Process, scratch, skip_outside_ci, within_bound};
use crate::control::bimip;

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";

/// Copies the certificates and keys, which another server for the same domain needs besides the store.
fn copy_identity(from: &Path, to: &Path) {
    for folder in ["certs", "keys"] {
        fs::create_dir_all(to.join(folder)).unwrap();
        for entry in fs::read_dir(from.join(folder)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_backup_is_there_after_restoring_it() {
    let folder = scratch();
    let (data, other) = (folder.path().join("data"), folder.path().join("other"));
    let server = Process::start(&data, &[]).await;
    // Alice sends all the time, one message after the other.
    let acknowledged = Arc::new(AtomicI64::new(0));
    let mut alice = server.door.session(ALICE, "phone").pipelined().open().await;
    let counting = acknowledged.clone();
    let traffic = tokio::spawn(async move {
        for number in 1.. {
            alice.post(BOB, &format!("m{number}"), &format!("text {number}")).await;
            let Ok(answer) = alice.try_recv(Lane::Chat).await else { return };
            let Some(Payload::VersionUpdate(VersionUpdate { version, .. })) = answer.payload else { return };
            assert_eq!(version, number);
            counting.store(number, Ordering::SeqCst);
        }
    });
    let written = |at_least: i64| {
        let acknowledged = acknowledged.clone();
        async move {
            while acknowledged.load(Ordering::SeqCst) < at_least {
                tokio::task::yield_now().await;
            }
        }
    };
    within_bound("traffic", written(100)).await;
    let before = acknowledged.load(Ordering::SeqCst);
    let file = folder.path().join("backup");
    let said = bimip(&data, &["backup", "--verify", file.to_str().unwrap()]).await.unwrap();
    assert!(said.contains("restored and found whole"), "{said}");
    let after = acknowledged.load(Ordering::SeqCst);
    within_bound("more traffic", written(after + 100)).await;
    server.kill().await;
    traffic.abort();

    copy_identity(&data, &other);
    let said = bimip(&other, &["restore", file.to_str().unwrap()]).await.unwrap();
    assert!(said.contains("everything fits together"), "{said}");
    let mut server = Process::start(&other, &[]).await;
    let mut bob = server.door.session(BOB, "phone").resume_from(0).open().await;
    let held = bob.accept.log_head;
    assert!((before..=acknowledged.load(Ordering::SeqCst)).contains(&held), "{before} {held}");
    for number in 1..=held {
        let message = bob.hear().await;
        assert_eq!((message.version, message.sequence), (number, number));
    }
    let mut fresh = server.door.session("carol@localhost", "phone").pipelined().open().await;
    fresh.say(BOB, "c1", "after").await;
    assert_eq!(bob.hear().await.sequence, held + 1);
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_a_server_is_the_same_and_nothing_is_overwritten() {
    let folder = scratch();
    let (data, file) = (folder.path().join("data"), folder.path().join("backup"));
    let path = file.to_str().unwrap();
    let refused = bimip(&data, &["backup", path]).await.unwrap_err();
    assert!(refused.contains("no store in "), "{refused}");
    let mut server = Process::start(&data, &[]).await;
    let mut alice = server.door.session(ALICE, "phone").pipelined().open().await;
    alice.say(BOB, "m1", "kept").await;
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());

    // Another one writes it, and then leaves it unfinished.
    let unfinished = folder.path().join("backup.partial");
    fs::write(&unfinished, "half of it").unwrap();
    let writing = fs::File::open(&unfinished).unwrap();
    writing.lock().unwrap();
    let refused = bimip(&data, &["backup", path]).await.unwrap_err();
    assert!(refused.contains("another backup is writing "), "{refused}");
    assert_eq!(fs::read_to_string(&unfinished).unwrap(), "half of it");
    drop(writing);

    let said = bimip(&data, &["backup", path]).await.unwrap();
    assert!(said.contains(" rows, "), "{said}");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(&file).unwrap()) & 0o777, 0o600);
    let refused = bimip(&data, &["backup", path]).await.unwrap_err();
    assert!(refused.contains(" exists: give another name"), "{refused}");
    let refused = bimip(&data, &["restore", path]).await.unwrap_err();
    assert!(refused.contains("restore into an empty data directory"), "{refused}");
    let other = folder.path().join("other");
    let said = bimip(&other, &["restore", path]).await.unwrap();
    assert!(said.contains("1 messages, 0 of them not released yet, in the logs of 2 users"), "{said}");
    for made in [&other, &other.join("store")] {
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(made).unwrap()) & 0o777, 0o700, "{made:?}");
    }

    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let third = folder.path().join("third");
    let refused = bimip(&third, &["restore", path]).await.unwrap_err();
    assert!(refused.contains("its checksum is another"), "{refused}");
    assert!(!third.join("store").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_client_goes_away_is_in_the_log() {
    let folder = scratch();
    let mut server = Process::start(folder.path(), &[]).await;
    let mut client = UnixStream::connect(folder.path().join("control.sock")).unwrap();
    // Nothing can be written to it any more.
    client.shutdown(Shutdown::Read).unwrap();
    client.write_all(b"{\"do\":\"backup\"}\n").unwrap();
    server.logs("a backup was cut off").await;
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
#[allow(unsafe_code)]
async fn root_leaves_nothing_in_a_store_of_another_user() {
    // SAFETY: it takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return skip_outside_ci("it takes root to be kept from it");
    }
    // A user id that this machine does not know.
    const OTHER: u32 = 4_000_017;
    let folder = scratch();
    let (data, empty, file) = (folder.path().join("data"), folder.path().join("empty"), folder.path().join("backup"));
    let path = file.to_str().unwrap();
    let mut server = Process::start(&data, &[]).await;
    let store = data.join("store");
    std::os::unix::fs::chown(&store, Some(OTHER), None).unwrap();
    bimip(&data, &["backup", path]).await.expect("a running server reads its store itself");
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());

    fs::create_dir(&empty).unwrap();
    std::os::unix::fs::chown(&empty, Some(OTHER), None).unwrap();
    let second = folder.path().join("second");
    let refused = bimip(&data, &["backup", second.to_str().unwrap()]).await.unwrap_err();
    assert!(refused.contains("hint: sudo -u '#4000017' bimip "), "{refused}");
    let refused = bimip(&empty, &["restore", path]).await.unwrap_err();
    assert!(refused.contains("hint: sudo -u '#4000017' bimip "), "{refused}");
    assert!(!second.exists() && fs::read_dir(&empty).unwrap().next().is_none(), "nothing is left behind");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_cannot_be_restored_beside_itself_says_why() {
    // The folder itself and the backup are all the files that there may be.
    const SCRIPT: &str = "mount -t tmpfs -o nr_inodes=2 small \"$0\" && exec \"$@\"";
    let folder = scratch();
    let (data, small) = (folder.path().join("data"), folder.path().join("small"));
    fs::create_dir(&small).unwrap();
    let run = |program: &[&str]| {
        let mut shell = tokio::process::Command::new("unshare");
        shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT]).arg(&small).args(program);
        shell.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).kill_on_drop(true);
        async move { within_bound("a command", shell.output()).await.unwrap() }
    };
    if !run(&["true"]).await.status.success() {
        return skip_outside_ci("no file system can be mounted here");
    }
    let mut server = Process::start(&data, &[]).await;
    let (data, file) = (data.to_str().unwrap(), small.join("backup"));
    let backup = [env!("CARGO_BIN_EXE_bimip"), "backup", "--verify", "--data-dir", data, file.to_str().unwrap()];
    let output = run(&backup).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("No space left on device"), "{said}");
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
}
