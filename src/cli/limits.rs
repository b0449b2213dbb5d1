//! Bounds of the client commands, each with its reason. The server's stand in `src/limits.rs`, the device's in
//! `src/client/limits.rs`.

use std::time::Duration;

/// How long `bimip send` tries before it says that it could not.
pub(super) const SEND_WITHIN: Duration = Duration::from_secs(15);
/// How long a command that asks one thing (contacts, block, presence, revoke) waits for the answer.
pub(super) const ASK_WITHIN: Duration = Duration::from_secs(15);
/// Longest wait that a person can ask for: a day.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// One step of `bimip demo`. On one machine each takes milliseconds; past this something is wrong.
pub(super) const DEMO_STEP_WITHIN: Duration = Duration::from_secs(10);
/// What the demo's actors may tell ahead of the director's listening.
pub(super) const DEMO_NEWS_MAX: usize = 256;

/// Keys and answers on their way to the chat screen.
pub(super) const CHAT_QUEUE_MAX: usize = 256;
/// Messages of one conversation that the chat screen keeps; older ones come from the server's history again.
pub(super) const CHAT_MESSAGES_MAX: usize = 2_000;
/// Conversations that the chat screen keeps; the ones that were quiet for longest go.
pub(super) const CHAT_CONVERSATIONS_MAX: usize = 500;
/// Messages of one page of history: what a tall terminal shows.
pub(super) const CHAT_PAGE: i32 = 50;
/// Lines that were sent and can be recalled with the arrow keys.
pub(super) const CHAT_RECALL_MAX: usize = 100;
/// How often the chat screen measures the round-trip time while it is connected.
pub(super) const CHAT_PING_EVERY: Duration = Duration::from_secs(10);
/// Events that the chat screen takes between two drawings: a long log is not shown message by message.
pub(super) const CHAT_EVENTS_PER_DRAW: usize = 256;
/// Pages of history that the chat screen asks for at once: well below the requests that a device may have waiting.
pub(super) const CHAT_HISTORIES_MAX: usize = 4;
/// The server says nothing to a new status unless it refuses it; this long the chat waits for that.
pub(super) const CHAT_CONSENT_AFTER: Duration = Duration::from_secs(1);
/// How long the keyboard's thread sleeps at most before it looks whether the screen is gone.
pub(super) const CHAT_KEY_POLL: Duration = Duration::from_millis(100);

/// How long a server may take to answer over its control socket, and between two pieces of a backup: longer than the
/// server's own bound.
pub(super) const CONTROL_ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Longest answer over it; a backup comes after it.
pub(super) const CONTROL_ANSWER_BYTES_MAX: u64 = 64 * 1024;

// --- bimip doctor: from where on something is worth a word ---------------------------------------------------------------

/// A certificate that has less left should have been renewed: authorities' tools do that at a third of its life.
pub(super) const CERTIFICATE_WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);
/// Times that the disk is asked to make something durable: the middle one of them is told.
pub(super) const DISK_SYNCS: usize = 21;
/// A disk that takes longer makes itself felt in every message.
pub(super) const DISK_SYNC_SLOW: Duration = Duration::from_millis(10);
/// One that takes longer cannot serve many.
pub(super) const DISK_SYNC_STALLED: Duration = Duration::from_millis(200);
/// Room for the journal and a day of a busy server.
pub(super) const DISK_WARN_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Less than the journal takes.
pub(super) const DISK_FAIL_BYTES: u64 = 256 * 1024 * 1024;
/// File descriptors for some ten thousand devices over TCP.
pub(super) const FILES_WARN: u64 = 16 * 1024;
/// The store alone needs some hundred.
pub(super) const FILES_FAIL: u64 = 512;
/// Datagrams sent before it is believed that none comes back, and how long each is waited for.
pub(super) const PROBE_TRIES: usize = 5;
/// On this machine it takes microseconds.
pub(super) const PROBE_WITHIN: Duration = Duration::from_millis(400);
/// A handshake takes no longer, with two lost flights.
pub(super) const REACH_WITHIN: Duration = Duration::from_secs(8);
