//! A signal while the server starts.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::common::{program, scratch, within_bound};

/// Makes a pipe, which behaves like a file on a file system that hangs.
pub(crate) fn make_pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
#[allow(unsafe_code)]
async fn a_signal_ends_a_start_that_waits_for_a_file() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let folder = scratch();
        let pipe = folder.path().join("certificate.pem");
        make_pipe(&pipe);
        let mut server = program(&folder.path().join("data"))
            .env("BIMIP_TLS__CERTIFICATE", &pipe)
            .env("BIMIP_TLS__KEY", &pipe)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // Opening the pipe for writing returns when the server reads it. While the writer is open, the server's read hangs.
        let writer = tokio::task::spawn_blocking(move || fs::File::options().write(true).open(pipe));
        let writer = within_bound("the server to read it", writer).await.unwrap().unwrap();
        let id = server.id().and_then(|id| i32::try_from(id).ok()).unwrap();
        // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
        let status = within_bound("its end", server.wait()).await.unwrap();
        let said = server.wait_with_output().await.unwrap();
        let log = String::from_utf8(said.stderr).unwrap();
        assert_eq!((status.code(), said.stdout.is_empty()), (Some(0), true), "{log}");
        assert!(log.contains("stopped during the start"), "{log}");
        drop(writer);
    }
}
