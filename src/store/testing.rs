//! Users, devices and messages for the store's tests.

#[cfg(target_os = "linux")]
use std::fs::File;
#[cfg(target_os = "linux")]
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use super::types::{
    AckTarget, Acknowledgment, Bearer, Contact, Content, EntryBody, LogEntry, NewMessage, Revocation, RevocationTarget,
};
use super::{Embedded, LogObserver, Op, Store};
use crate::limits;
use crate::wire::{AckStatus, DeviceId, Eid, LocalId, Sequence};

/// A temporary folder among the build's files, because the system's own is often in memory.
#[cfg(target_os = "linux")]
pub(crate) fn beside_the_build() -> tempfile::TempDir {
    let program = std::env::current_exe().unwrap();
    tempfile::tempdir_in(program.parent().unwrap()).unwrap()
}

/// Pages of a file.
#[cfg(target_os = "linux")]
pub(crate) struct Pages {
    /// Those in memory.
    pub(crate) cached: u64,
    /// Those in memory alone: a power failure would lose them.
    pub(crate) dirty: u64,
}

#[cfg(target_os = "linux")]
impl Pages {
    /// `None` if the kernel cannot tell (cachestat(2), Linux 6.5).
    #[allow(unsafe_code)]
    pub(crate) fn of(file: &File) -> Option<Pages> {
        use std::os::fd::AsRawFd;
        const CACHESTAT: libc::c_long = 451;
        let range = [0u64; 2];
        // Cached, dirty, under write-back, evicted, recently evicted.
        let mut figures = [0u64; 5];
        // SAFETY: both arrays have the layout that the call expects, and live through it.
        let done = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), figures.as_mut_ptr(), 0) };
        (done == 0).then_some(Pages { cached: figures[0], dirty: figures[1] + figures[2] })
    }
}

/// An observer that ignores everything.
pub(crate) struct Nobody;

impl LogObserver for Nobody {
    fn appended(&self, _: &Eid, _: &Arc<LogEntry>) {}
}

/// An observer that blocks the writer at each entry until the test sends a signal or drops the sender.
pub(crate) struct Gate {
    told: Mutex<mpsc::Receiver<()>>,
    reached: tokio::sync::Semaphore,
}

impl Gate {
    pub(crate) fn new() -> (Arc<Gate>, mpsc::Sender<()>) {
        let (go_on, told) = mpsc::channel();
        (Arc::new(Gate { told: Mutex::new(told), reached: tokio::sync::Semaphore::new(0) }), go_on)
    }

    /// Waits until the writer has reached one more entry.
    pub(crate) async fn reached(&self) {
        self.reached.acquire().await.unwrap().forget();
    }
}

impl LogObserver for Gate {
    fn appended(&self, _: &Eid, _: &Arc<LogEntry>) {
        self.reached.add_permits(1);
        let _ = self.told.lock().unwrap().recv();
    }
}

/// Fills `places` places in the queue of a store whose writer is blocked, with cursor moves: so few of each user that it gets
/// those that are kept for such users, too.
pub(crate) fn take_places(store: &Embedded, places: usize) {
    for place in 0..places {
        let user = eid(&format!("user-{}", place / limits::STORE_TURN_MAX));
        store.advance_cursor(&user, &device("phone"), Sequence::from(1));
    }
}

/// Set where a test runs once more, on a disk of its own.
#[cfg(target_os = "linux")]
const SMALL_DISK: &str = "BIMIP_TEST_SMALL_DISK";

/// Runs the test with this name once more, on a disk of its own with so many MiB. There it returns the disk's folder; `None`: it
/// has passed there, or no disk can be mounted here.
#[cfg(target_os = "linux")]
pub(crate) fn small_disk(mib: u32, itself: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(SMALL_DISK) {
        return Some(folder.into());
    }
    let script = format!("mount -t tmpfs -o size={mib}m small \"$0\" && exec \"$@\"");
    let folder = tempfile::tempdir().unwrap();
    let run = |program: &[&std::ffi::OsStr]| {
        let mut shell = std::process::Command::new("unshare");
        shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).arg(folder.path()).args(program);
        shell.env(SMALL_DISK, folder.path()).output()
    };
    if !run(&["true".as_ref()]).is_ok_and(|output| output.status.success()) {
        crate::skip::skip_outside_ci("no file system can be mounted here");
        return None;
    }
    let this = std::env::current_exe().unwrap();
    let output = run(&[this.as_ref(), itself.as_ref(), "--exact".as_ref(), "--nocapture".as_ref()]).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    None
}

pub(crate) fn eid(name: &str) -> Eid {
    Eid::parse(&format!("{name}@x")).unwrap()
}

/// A token that no revocation of a test refuses.
pub(crate) const LATER: Bearer = Bearer { fingerprint: [0xff; 32], issued_at: i64::MAX };

pub(crate) fn device(name: &str) -> DeviceId {
    DeviceId::parse(name).unwrap()
}

/// A text from the sender's phone; `number` makes it unique and is its time in Unix milliseconds.
pub(crate) fn text(sender: &str, recipient: &str, number: u64) -> NewMessage {
    let mut entropy = [0; 10];
    entropy[..8].copy_from_slice(&number.to_be_bytes());
    NewMessage {
        sender: eid(sender),
        device: device("phone"),
        recipient: eid(recipient),
        local_id: LocalId::parse(&format!("local-{number}")).unwrap(),
        content: Content::Text(format!("text {number}")),
        created_at: number as i64,
        received_at: number as i64,
        received: Instant::now(),
        entropy,
    }
}

/// An acknowledgment from the reader's phone.
pub(crate) fn ack(reader: &str, target: AckTarget, status: AckStatus, at: i64) -> Acknowledgment {
    Acknowledgment { reader: eid(reader), device: device("phone"), target, status, at, received_at: at }
}

pub(crate) fn contact(subscriber: &str) -> Contact {
    Contact {
        subscriber: eid(subscriber),
        subscribed: true,
        nickname: format!("nick of {subscriber}"),
        group: "friends".into(),
        resource_id: "r1".into(),
        share_location: true,
        blocked: false,
        added_at: 5,
    }
}

/// Signs the device out: revokes a token and forgets the device.
pub(crate) fn sign_out(user: &str, device: DeviceId) -> Op {
    let target = RevocationTarget::Token(eid(user), [9; 32]);
    Op::Revoke(Revocation { target, issued_until: 0, expires_at: 0 }, Some(device))
}

/// An entry in one line: sequence, kind, subject, origin.
pub(crate) fn told(entry: &LogEntry) -> String {
    let body = match &entry.body {
        EntryBody::Received(message) => format!("received {}", message.id),
        EntryBody::Accepted(message) => format!("accepted {}", message.id),
        EntryBody::Copy(message) => format!("copy {}", message.id),
        EntryBody::Sent(message) => format!("sent {}", message.id),
        EntryBody::Acknowledged(ack) => {
            format!("{} {} {:?} by {} of {}", ack.status.name(), ack.at, ack.target, ack.reader, ack.sender)
        }
    };
    let origin = entry.origin.as_ref().map_or("none", |device| device.as_str());
    format!("{} {body} from {origin}", entry.sequence)
}

/// The kinds of the entries.
pub(crate) fn kinds<'a>(entries: impl IntoIterator<Item = &'a LogEntry>) -> Vec<&'static str> {
    let kind = |entry: &LogEntry| match &entry.body {
        EntryBody::Received(_) => "received",
        EntryBody::Accepted(_) => "accepted",
        EntryBody::Copy(_) => "copy",
        EntryBody::Sent(_) => "sent",
        EntryBody::Acknowledged(_) => "acknowledged",
    };
    entries.into_iter().map(kind).collect()
}
