//! Bounds of the client commands, each with its reason. The server's bounds are in `src/limits.rs`, the device's in
//! `src/client/limits.rs`.

use std::time::Duration;

/// How long `bimip send` tries before it gives up.
pub(super) const SEND_WITHIN: Duration = Duration::from_secs(15);
/// How long a command with one request (contacts, block, presence, revoke) waits for the answer.
pub(super) const ASK_WITHIN: Duration = Duration::from_secs(15);
/// How long `bimip listen --read` waits for the answers to its receipts before it leaves.
pub(super) const RECEIPTS_WITHIN: Duration = Duration::from_secs(15);
/// Pause before a receipt that got no answer is sent again, so that what fails at once is not tried in a circle.
pub(super) const RECEIPT_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Longest wait that a user can ask for: a day.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Lines that wait for the thread that prints. Each is waited for, so that what was not printed is not taken.
pub(super) const PRINT_QUEUE_MAX: usize = 1;
/// How long a command that is told to stop waits for a reader that does not take its current line: long for a reader that
/// reads, and short for a person who pressed ctrl-c.
pub(super) const PRINT_ENDS_WITHIN: Duration = Duration::from_millis(500);

/// Timeout for one step of `bimip demo`. On one machine each takes milliseconds; a longer one means a fault.
pub(super) const DEMO_STEP_WITHIN: Duration = Duration::from_secs(10);
/// Queue from the demo's actors to its director.
pub(super) const DEMO_NEWS_MAX: usize = 256;

/// Queue of key presses and answers to the chat screen.
pub(super) const CHAT_QUEUE_MAX: usize = 256;
/// Messages of one conversation that the chat screen keeps; older ones are fetched again from the server's history.
pub(super) const CHAT_MESSAGES_MAX: usize = 2_000;
/// Conversations that the chat screen keeps; beyond that, those with the oldest activity are evicted for others in which
/// something happens. Contacts with whom nothing happened yet are listed as long as there is room.
pub(super) const CHAT_CONVERSATIONS_MAX: usize = 500;
/// Messages in one page of history: a screenful on a tall terminal.
pub(super) const CHAT_PAGE: i32 = 50;
/// Sent lines that the arrow keys can recall.
pub(super) const CHAT_RECALL_MAX: usize = 100;
/// How often the chat screen measures the round-trip time while it is connected.
pub(super) const CHAT_PING_EVERY: Duration = Duration::from_secs(10);
/// Events that the chat screen handles before it draws again, so that a long log is not drawn message by message.
pub(super) const CHAT_EVENTS_PER_DRAW: usize = 256;
/// Concurrent requests for pages of history: well below a device's bound for pending requests.
pub(super) const CHAT_HISTORIES_MAX: usize = 4;
/// How long the chat waits for a refusal of a new status; the server does not confirm an accepted one.
pub(super) const CHAT_CONSENT_AFTER: Duration = Duration::from_secs(1);
/// Longest sleep of the keyboard's thread before it checks whether the screen is closed.
pub(super) const CHAT_KEY_POLL: Duration = Duration::from_millis(100);

/// Timeout for the server's answer over its control socket, and between two pieces of a backup: longer than the
/// server's own timeout.
pub(super) const CONTROL_ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Longest answer over the control socket, without the backup that may follow it.
pub(super) const CONTROL_ANSWER_BYTES_MAX: u64 = 64 * 1024;

// --- bimip doctor: thresholds of warnings and failures ---------------------------------------------------------------

/// How long a check waits for files that are read, as a reload does.
pub(super) const READ_WITHIN: Duration = crate::limits::RELOAD_WITHIN;
/// A certificate with less time left should have been renewed: authorities' tools renew when a third of its lifetime is
/// left.
pub(super) const CERTIFICATE_WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);
/// How many syncs to disk are timed; the median is reported.
pub(super) const DISK_SYNCS: usize = 21;
/// A slower disk adds noticeable latency to every message.
pub(super) const DISK_SYNC_SLOW: Duration = Duration::from_millis(10);
/// A slower disk cannot serve many users.
pub(super) const DISK_SYNC_STALLED: Duration = Duration::from_millis(200);
/// Space for the journal and one day of a busy server.
pub(super) const DISK_WARN_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// File descriptors for about ten thousand devices over TCP.
pub(super) const FILES_WARN: u64 = 16 * 1024;
/// The store alone needs a few hundred.
pub(super) const FILES_FAIL: u64 = 512;
/// Datagrams sent before the probe concludes that none returns; [`PROBE_WITHIN`] is the wait for each.
pub(super) const PROBE_TRIES: usize = 5;
/// A datagram within this machine takes microseconds.
pub(super) const PROBE_WITHIN: Duration = Duration::from_millis(400);
/// Enough for a handshake in which two flights are lost.
pub(super) const REACH_WITHIN: Duration = Duration::from_secs(8);
