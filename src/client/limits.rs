//! Every bound of the device library in one place, each with its reason.
//!
//! A bound that an application may want to change is a [`Builder`](super::Builder) option, and its default is here. The
//! others are fixed by the protocol or by this library. Those that the server keeps, too, are in `wire/limits.rs`. Sizes are in
//! bytes.

use std::time::Duration;

// --- The outbox -----------------------------------------------------------------------------------------------------

/// Messages that may wait in the outbox for their VersionUpdate. Enough for two hours in a tunnel with one message
/// every seven seconds.
pub const OUTBOX_MESSAGES_MAX: usize = 1024;
/// Bytes that these messages may take, as encoded frames; once reached, the outbox refuses further messages. A phone
/// can spare this much, and 3G transfers it in under a minute.
pub const OUTBOX_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Other requests (acknowledgments, pings, lists) that may wait for their answer. At the bound, further automatic
/// acknowledgments of one chat are merged into one acknowledgment up to its newest message.
pub const REQUESTS_MAX: usize = 256;
/// Additional places for requests that the application makes itself, so that automatic acknowledgments cannot block,
/// for example, a ping.
pub const REQUESTS_RESERVED: usize = 16;
/// Chats whose merged acknowledgment may wait for a place among the requests; far more people than write to one user.
/// At this bound the device stops handling taken events, and so stops delivering new ones, until a place is free: when
/// a request is answered, or when one of the application's requests times out after [`REQUEST_WITHIN`].
pub const HELD_CHATS_MAX: usize = 4 * REQUESTS_MAX;
/// Time after which a request that was sent but not answered has failed, and its caller gets an error; an automatic
/// acknowledgment is sent again instead. It also bounds how long messages wait for the answers to earlier ones when the
/// server has put a message off (error 429 or 503).
pub const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// Entries of a subscriber list that arrives in several frames: three times the server's bound for subscribers
/// (protocol.md §11), because the list also contains blocked users.
pub const LIST_ENTRIES_MAX: usize = 15_000;
/// Bytes of the frames of such a list: more than that many entries take with the longest identifier, name and group each.
pub const LIST_BYTES_MAX: usize = 1024 * LIST_ENTRIES_MAX;
/// Age at which the server forgets a location (protocol.md §12). The device does not repeat an older one after a
/// reconnect.
pub const LOCATION_KEPT: Duration = Duration::from_secs(10 * 60);
/// Commands queued from the handles to the device's task, which takes up to [`COMMANDS_PER_TURN`] of them per turn.
pub const COMMANDS_MAX: usize = 256;
/// Commands taken in one turn before frames are handled.
pub const COMMANDS_PER_TURN: usize = 64;

/// A [`FileOutbox`](super::FileOutbox) rewrites its file when the bytes of obsolete records exceed the bytes of the
/// live records by this much. This is about a thousand short messages: rewrites stay rare and the file small.
pub const JOURNAL_DEAD_BYTES_MAX: u64 = 256 * 1024;
/// Longest outbox file that is read, in bytes: several times what an outbox may hold.
pub const JOURNAL_BYTES_MAX: u64 = 8 * OUTBOX_BYTES_MAX as u64;

// --- Lanes ----------------------------------------------------------------------------------------------------------

/// Bytes that may be queued on one lane of a connection before the device stops adding frames to it. All queued frames
/// go out in one write.
pub const LANE_QUEUE_BYTES: usize = 64 * 1024;
/// Frames that the server can do without (replies to its pings and VersionUpdates, SyncAcks, liveness pings) that may
/// be queued on one lane; beyond this they are dropped, so that a server that does not read cannot make the queue grow.
/// Dropping is harmless: the server pings again, and releases a message whose VersionUpdate was not answered
/// (protocol.md §7).
pub const ANSWERS_MAX: usize = 1024;
/// Bytes that these frames may take on one lane before further ones are dropped: ten times what so many usual ones take. Some
/// repeat what the server has sent, which may be as long as a frame.
pub const ANSWERS_BYTES_MAX: usize = 1024 * 1024;
/// Frames taken from the connection in one turn, before commands and events are handled.
pub const FRAMES_PER_TURN: usize = 64;
/// Bytes read from a QUIC stream at once.
pub const READ_CHUNK_BYTES: usize = 64 * 1024;
/// Bytes written to or read from a TCP connection at once. A frame of an urgent lane waits behind no more than this.
pub const TCP_CHUNK_BYTES: usize = 16 * 1024;

// --- Events ---------------------------------------------------------------------------------------------------------

/// Events that wait for the application, plus events that it took but whose acknowledgments the device has not handled
/// yet. At the bound the device reads only the control lane, and the rest stays at the server.
pub const EVENTS_MAX: usize = 256;
/// Bytes that are read beyond [`EVENTS_MAX`] while the server owes an answer, because the answer may lie behind messages
/// that the application has not taken. Without this the device would wait for an answer that it does not read. Each
/// frame counts as its bytes and an event's, so this is about what it takes of memory. The count is reset only when the
/// application has taken every event, so the bound has to hold a whole backlog: some 100,000 short texts.
pub const AHEAD_BYTES_MAX: usize = 48 * 1024 * 1024;
/// If [`AHEAD_BYTES_MAX`] is reached and the application takes no event for this long, pending calls fail with an
/// `Unread` error, and so do new ones until the application has taken all events. Calls that are answered on the
/// control lane are not affected. This is longer than any write to a phone's storage should take.
pub const UNREAD_WITHIN: Duration = Duration::from_secs(5);
/// Bound of the device's own queue behind a full event queue. There, for each new event about the connection, the oldest
/// `Connected`, `Disconnected` or `Presence`, or `Refused` that is about no message, is dropped; a `Connected` that tells of
/// a gap in the log goes last. [`Device::state`](super::Device::state) is always exact. Beyond both queues together a
/// `NotSent` is dropped: each is about a message whose caller has gone, and there can be any number.
pub const EVENTS_HELD_MAX: usize = EVENTS_MAX;
/// Log positions remembered from direct replies that arrived ahead of the log's tail. Beyond this bound a VersionUpdate
/// may be reported a second time after a reconnect; a message never is.
pub const AHEAD_MAX: usize = 1024;
/// Positions in the log by which what is safe may be ahead of what the server and the outbox were told, before they are told
/// at once. A new process may get more again: what was told last may not have arrived, and with
/// [`auto_deliver`](super::Builder::auto_deliver) everything comes again from the oldest unanswered acknowledgment on.
pub const SYNC_EVERY: u64 = 32;
/// Longest time until a SyncAck is sent for a taken entry, so that a quiet conversation is not repeated either.
pub const SYNC_WITHIN: Duration = Duration::from_secs(1);

// --- Connecting -----------------------------------------------------------------------------------------------------

/// First upper bound of the random wait before a reconnect. Short, so that a brief interruption is not noticed. It
/// doubles with each failure, up to [`BACKOFF_MAX`].
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Largest upper bound of that wait: about as long as a person waits before looking at the phone again, and few enough
/// handshakes to spare the battery.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Upper bound of the random first wait when the server is shutting down (DRAINING), so that its devices do not all
/// reconnect at once.
pub const DRAIN_JITTER: Duration = Duration::from_millis(500);
/// Age from which a session that the server ended, not the network, counts as a success and resets the backoff. Without
/// it, the device would reconnect ten times a second to a server that accepts sessions and then closes them.
pub const STABLE_AFTER: Duration = Duration::from_secs(5);
/// Age from which a session that the network ended counts as a success. It is shorter, because networks do cut
/// connections. Without it, a middlebox that cuts right after the sign-in would cause ten sign-ins a second.
pub const WORKED_AFTER: Duration = Duration::from_secs(1);
/// How long after an abandoned 0-RTT connection its data may still reach the server, for example from a modem's queue.
/// The server takes such late data for a newer session of this device and closes the one in use with REPLACED; within
/// this time the device reconnects instead of stopping. How late early data may be is the server's choice (RFC 8446, 8.3);
/// rustls takes it for 60 s, and the handshake that it begins ends within [`HANDSHAKE_MAX`].
pub const EARLY_LINGERS: Duration = Duration::from_secs(60 + HANDSHAKE_MAX.as_secs());
/// Shortest wait after the server closed with ABUSE; a random time of up to as much again is added.
pub const ABUSE_WAIT: Duration = BACKOFF_MAX;
/// Sign-ins that may fail in a row because of the token; at this count the device stops. Without it, a token source
/// that signs each new token with the wrong key would go on for ever.
pub const REFUSALS_MAX: u32 = 3;
/// Timeout of the first handshake; it doubles with each attempt, up to [`HANDSHAKE_MAX`]. QUIC repeats its first packet
/// after 1 and 3 s. If the server came back in the meantime, starting over is faster than waiting for the next
/// repetition.
pub const HANDSHAKE_MIN: Duration = Duration::from_secs(4);
/// Longest timeout of a handshake: the server's own.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Addresses of the server's name that are tried in one attempt.
pub const ADDRESSES_MAX: usize = 4;
/// Timeout of the DNS look-up, and of each call of the token source.
pub const LOOKUP_WITHIN: Duration = Duration::from_secs(10);
/// Time within which the server must answer `SessionOpen`: the same as the server's own bound for receiving it
/// (protocol.md §5).
pub const ACCEPT_WITHIN: Duration = Duration::from_secs(10);
/// Default of [`Builder::silence`](super::Builder::silence): while an answer is owed and nothing arrives for this long,
/// the device gives the connection up. Most tunnels and lifts take less time, and a connection that survives them needs
/// no new handshake. When no answer is owed, the idle timeout applies instead.
pub const SILENCE_MAX: Duration = Duration::from_secs(12);
/// Number of steps into which that time is divided (0.75 s each by default). At each step but the last the device sends
/// a small ping (a "knock"), so that it notices within one step that the path is back. This costs the battery little: a
/// mobile radio stays awake for longer than a step after each packet, and there are at most fifteen.
pub const KNOCKS_MAX: u32 = 16;
/// Unanswered knocks after which more than one exchange must have been lost: the path is in doubt.
pub const KNOCKS_BEFORE_DOUBT: u32 = 2;
/// The knock at which the device moves to another socket. If a NAT has forgotten the binding, all packets after that
/// arrive.
pub const KNOCKS_BEFORE_MOVING: u32 = 4;
/// After the application has reported a network change, the device waits only this long for a sign of life. A network
/// that drops UDP looks like a dead one, and a new connection attempt races QUIC with TCP.
pub const MOVED_SILENCE_MIN: Duration = Duration::from_secs(2);
/// The same bound in round trips, which applies where it is longer: enough for a lost packet and its repetition.
pub const MOVED_SILENCE_RTTS: u32 = 6;
/// Number of steps into which that shorter time is divided: every 250 ms, or every three quarters of a round trip where
/// [`MOVED_SILENCE_RTTS`] decides.
pub const MOVED_KNOCKS_MAX: u32 = 8;
/// Padded frames that a device sends first from another address, one per packet. Two, because one may be lost.
pub const MOVED_FRAMES: usize = 2;
/// Padding of each, in bytes. It fills the 1,200-byte packet that every path carries, and so allows the server to send
/// 3,600 bytes before it has validated the path.
pub const MOVED_PADDING_BYTES: usize = 1_100;
/// Default of [`Builder::keep_alive`](super::Builder::keep_alive). NAT bindings of mobile networks live 20 to 30 s; one
/// packet every 15 s keeps them and lets the radio sleep most of the time.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Default of [`Builder::idle_timeout`](super::Builder::idle_timeout): four keep-alives lost in a row.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Thirds of the idle timeout (40 of 60 s) without a byte after which the device sends a ping on a TCP connection,
/// which has no keep-alives. The server has the last third to answer. By then the server has usually sent its own ping
/// to a device that is quiet too (after 30 s), so that this costs nothing.
pub const IDLE_THIRDS_UNASKED: u32 = 2;
/// A token is renewed at least this long before it expires, or one tenth of its remaining life where that is shorter.
pub const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// A random time of up to this much, or of another tenth of a short life, is added to [`RENEW_BEFORE`]. Devices that
/// all signed in within seconds, as after a restart of the server, then renew over minutes: one in a hundred every
/// three seconds.
pub const RENEW_SPREAD: Duration = Duration::from_secs(5 * 60);
/// Wait before the token source is asked again when it failed or returned no new token, and the shortest time between two
/// renewals on one session.
pub const RENEW_RETRY: Duration = Duration::from_secs(10);

/// How long QUIC runs alone before TCP joins the race. By then QUIC has repeated a lost first packet, so that one lost
/// packet does not cost the better transport.
pub const RACE_DELAY: Duration = Duration::from_secs(1);
/// Default of [`Builder::retry_quic_after`](super::Builder::retry_quic_after): wait before QUIC is tried again in a
/// network where TCP won the race, which may have been bad luck.
pub const QUIC_RETRY_MIN: Duration = Duration::from_secs(30);
/// Bound to which that wait doubles: one handshake an hour in a network that always drops UDP.
pub const QUIC_RETRY_MAX: Duration = Duration::from_secs(3600);
/// Networks for which the device remembers that QUIC did not get through.
pub const NETWORKS_MAX: usize = 16;
/// Round-trip time assumed before the first measurement: a mobile network's. QUIC repeats a lost first packet after
/// three of these; with its cautious default of 333 ms that would take a second.
pub const INITIAL_RTT: Duration = Duration::from_millis(150);
/// TLS tickets kept for 0-RTT; each serves one attempt. A server gives two with every connection.
pub const TICKETS_MAX: usize = 8;
/// Failed attempts in a row that may use up all tickets.
pub const ATTEMPTS_WITH_ALL_TICKETS: u32 = 2;
/// Tickets that further attempts leave unused, for an attempt that the application requests because it knows that there
/// is a network.
pub const TICKETS_SPARED: usize = 1;

// --- QUIC windows ---------------------------------------------------------------------------------------------------

/// Bytes that the server may have in flight on one lane: 25 Mbit/s at 150 ms. A lane that is not read costs this much
/// memory.
pub const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
/// The same over all lanes together: one window per lane, because all lanes but control may be full while the
/// application takes no events, and pings must still come through. Memory is used only for unread data, 512 KiB on each
/// lane that the server fills; this server fills only chat and presence.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 * STREAM_WINDOW_BYTES;
/// Bytes of sent data that quinn keeps until they are acknowledged.
pub const SEND_WINDOW_BYTES: u64 = 512 * 1024;

// --- Closing --------------------------------------------------------------------------------------------------------

/// How long [`Device::close`](super::Device::close) waits for pending answers.
pub const CLOSE_WITHIN: Duration = Duration::from_secs(3);
/// How long it then waits for written data to arrive, and after that for the connection's close to be sent.
pub const CLOSE_LINGER: Duration = Duration::from_millis(500);

/// Time within which a server that has ended the control lane must close the connection. A server that does not has
/// broken the protocol.
pub const CLOSE_FOLLOWS_WITHIN: Duration = Duration::from_secs(2);
