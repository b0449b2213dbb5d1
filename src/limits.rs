//! Every bound of the server in one place, each with its reason. What an operator may want to change is a
//! configuration field whose default stands here; the rest is the protocol's or the house's own.

use std::time::Duration;

// --- The protocol's (profile) ---------------------------------------------------------------------------------------

/// Longest frame (profile 2): a 16 KiB text with its envelope fits four times.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Longest text (profile 7).
pub const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Longest media caption (profile 7).
pub const CAPTION_BYTES_MAX: usize = 1024;
/// Longest media or thumbnail address: what browsers and proxies take without trouble.
pub const URL_BYTES_MAX: usize = 2048;
/// Largest media file that metadata may speak of (profile 7): 4 GiB.
pub const MEDIA_BYTES_MAX: i64 = 4 * 1024 * 1024 * 1024;
/// Devices of one user (profile 3).
pub const DEVICES_PER_USER_MAX: usize = 16;
/// Revoked devices of one user that are remembered, each for ten years: a new phone each month. Beyond it a user's tokens can
/// only be revoked all together.
pub const REVOKED_DEVICES_PER_USER_MAX: usize = 128;
/// Entries of one user's subscriber list (profile 6); blocks count beside it.
pub const SUBSCRIBERS_PER_USER_MAX: usize = 5_000;
/// `SessionOpen` must have come by then (profile 3).
pub const SESSION_OPEN_WITHIN: Duration = Duration::from_secs(10);
/// A sender that does not answer its VersionUpdate holds its message back no longer (profile 7).
pub const RELEASE_WITHIN: Duration = Duration::from_secs(1);
/// Silence after which the server pings (profile 4).
pub const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Clock difference that token times forgive (profile 3).
pub const TOKEN_LEEWAY: Duration = Duration::from_secs(30);
/// A page of history (profile 8).
pub const HISTORY_PAGE_MAX: usize = 200;
/// A page of history when the client does not say (profile 8).
pub const HISTORY_PAGE_DEFAULT: usize = 50;
/// `message_id_local`s are remembered at least as long (profile 7).
pub const LOCAL_IDS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

// --- Sessions -------------------------------------------------------------------------------------------------------

/// Store calls that one session may have under way; at the bound chat and media are not read until one returns.
/// 64 fill a commit group from a single busy sender, and cost at most 64 frames of memory.
pub const SESSION_CALLS_MAX: usize = 64;
/// Calls beyond these that only control and presence may make: a full chat lane does not delay a ping (profile 2).
pub const SESSION_CALLS_RESERVED: usize = 16;
/// Messages of one session that wait for their VersionUpdate's answer; at the bound chat is not read further.
pub const SESSION_UNRELEASED_MAX: usize = 256;
/// Bytes queued on one lane before its sources (tail, replies) pause. One frame may go over it.
pub const LANE_QUEUE_BYTES: usize = 64 * 1024;
/// Characters of a refused request's `message_id_local` that its error echoes: as many as a legal one may have.
pub const LOCAL_ID_ECHO_MAX: usize = 64;
/// A connection's path is looked at for the metrics no more often: a lock or a system call each time.
pub const PATH_SAMPLED_EVERY: Duration = Duration::from_secs(10);
/// Paths of a connection that are remembered, so that a return to one from another that does not answer is known as such:
/// so many moves in a row may go unanswered.
pub const PATHS_REMEMBERED: usize = 4;
/// How often a path is looked at after the device moved to it, so that a return from one that does not answer is noticed
/// before the device's next packet undoes it.
pub const MOVE_LOOKED_AT_EVERY: Duration = Duration::from_millis(100);
/// How often at most: longer than QUIC waits for the answer (three probe time-outs, 1.9 s where nothing was measured yet).
pub const MOVE_LOOKED_AT_TIMES: u32 = 50;
/// Pings that one device may leave unanswered before the oldest is forgotten.
pub const PINGS_ASKED_MAX: usize = 16;
/// Pings to other devices that one session may have under way.
pub const PINGS_RELAYED_MAX: usize = 16;
/// A relayed ping is answered TIMEOUT after this (profile 4).
pub const PING_RELAY_WITHIN: Duration = Duration::from_secs(5);
/// Longest nickname and group of a list's entry.
pub const LIST_TEXT_BYTES_MAX: usize = 256;
/// No token lives longer: what a revoked device or user could still present has run out by then, and so has the
/// revocation.
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Frames taken from one connection before others get their turn.
pub const FRAMES_PER_TURN: usize = 64;
/// Turns of one session before its thread serves others.
pub const TURNS_PER_POLL: usize = 4;
/// Entries that one tail reads from the store at once: amortises the read, and bounds what a session holds.
pub const TAIL_READ_ENTRIES: usize = 128;
/// Bytes of messages at which such a read ends before that: two lanes' worth. A device that does not read holds them.
pub const TAIL_READ_BYTES: usize = 2 * LANE_QUEUE_BYTES;
/// Pages of history that one session has under way. Each reads as much as a frame holds, and the store's readers serve everybody.
pub const SESSION_HISTORY_CALLS_MAX: usize = 4;
/// Notices (replaced, revoked, relayed pings) that wait for one session; they are acted on at once, so few suffice.
pub const SESSION_NOTICES_MAX: usize = 64;
/// How long a closing connection may take to hand over its last error.
pub const CLOSE_LINGER: Duration = Duration::from_millis(500);

/// Most bytes taken from a lane at once; a packet holds far less.
pub const READ_CHUNK_BYTES: usize = 16 * 1024;

/// Users and addresses whose rates are remembered; the longest quiet are forgotten first.
pub const ADDRESSES_LIMITED_MAX: u64 = 100_000;
/// A user's or address's rate is forgotten after this long a quiet: every burst has filled up again by then.
pub const ADDRESS_LIMIT_KEPT: Duration = Duration::from_secs(600);
/// A session that writes looks for its user's rate so often: well within the time after which that is forgotten.
pub const USER_LIMIT_LOOKED_FOR_EVERY: Duration = Duration::from_secs(300);
/// Times that a session may be told to wait, without a request within its limits in between, before it is closed with
/// ABUSE: a client whose pipeline is full when it is first told has so many answers still to come.
pub const STRIKES_MAX: u32 = 2_000;
/// Who sends messages over the rate is told to wait for so long at least (unless all of the burst is there before), and what
/// comes behind one that the store had no place for waits for so long: what is on the wire behind the first comes within it
/// and is put off, too, so that all of it comes again in its order. And the client library's full outbox of 1,024, sent
/// again each time while the rate lets a part of it through, stays within the frames' rate.
pub const SEND_BEHIND_WAIT: Duration = Duration::from_millis(250);
/// The same in round trips, where these are long: what was sent just before the refusal arrived comes within one, or later if a
/// queue has grown on the way.
pub const SEND_BEHIND_ROUND_TRIPS: u32 = 2;
/// But no longer than this: a second each way is a path on which nobody sends in a pipeline.
pub const SEND_BEHIND_WAIT_MAX: Duration = Duration::from_secs(2);

// --- Rates, each a field of `[limits]`: per second, and at once ----------------------------------------------------------

/// Frames of one session: a busy device needs tens; a full outbox of 10,000 messages with their answers fits the burst.
pub const FRAMES_RATE: (u32, u32) = (5_000, 50_000);
/// Messages of one user over all devices: a person writes one a second; the burst holds two of the client library's
/// full outboxes.
pub const MESSAGES_RATE: (u32, u32) = (500, 20_000);
/// Awareness requests and changes of one session: the burst asks once about every contact of a large list.
pub const AWARENESS_RATE: (u32, u32) = (50, 5_000);
/// Sign-ins from one address (IPv6: one /64): a mobile carrier puts thousands of phones behind one, which all come back
/// at once after an outage.
pub const SIGN_INS_RATE: (u32, u32) = (500, 10_000);
/// Connections from one address at once, for the same reason.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 20_000;

// --- Hub ------------------------------------------------------------------------------------------------------------

/// Entries of one connected user that are kept in memory for live tails; who falls behind reads the store.
pub const RECENT_ENTRIES_MAX: usize = 64;
/// Bytes of the same.
pub const RECENT_BYTES_MAX: usize = 128 * 1024;

// --- Presence (profile 5) --------------------------------------------------------------------------------------------

/// A lost connection still counts for so long: a tunnel or a lift does not flap.
pub const OFFLINE_GRACE: Duration = Duration::from_secs(15);
/// A contact's changes reach a device at most once in it, the newest state only.
pub const PRESENCE_INTERVAL: Duration = Duration::from_millis(500);
/// A location is held no longer.
pub const LOCATION_KEPT: Duration = Duration::from_secs(10 * 60);
/// Notices to one user alone that wait for one presence lane.
pub const DIRECTED_MAX: usize = 64;
/// Users that are not connected and whose choice and last time are remembered: some 30 MB.
pub const PRESENCE_KEPT_MAX: usize = 100_000;
/// Watches that are marked before others get their turn.
pub const FAN_OUT_CHUNK: usize = 256;

// --- Store ----------------------------------------------------------------------------------------------------------

/// Operations that wait for the store's writer; a caller that finds it full waits, then is told 503.
pub const STORE_QUEUE_MAX: usize = 8 * 1024;
/// Operations of one user that the writer takes before it is the next one's turn: what a sender has under way at once
/// mostly goes into one commit, since each commit that it is in wakes its session.
pub const STORE_TURN_MAX: usize = 16;
/// Operations of one user that wait for the writer, up to which it takes those that nobody waits for: moves of cursors,
/// which a device may send as fast as its frames may come. Beyond, they are lost, as in a full queue.
pub const STORE_OFFERED_MAX: usize = SESSION_CALLS_MAX;
/// A commit with fewer operations goes on with another round of turns.
pub const STORE_ROUNDS_UNTIL: usize = 256;
/// How long a caller waits for a place in the writer's queue.
pub const STORE_QUEUE_WAIT: Duration = Duration::from_secs(2);
/// Operations in one durable commit: bounds the commit's memory and the latency of its first.
pub const COMMIT_OPERATIONS_MAX: usize = 1024;
/// Reads of the store that run at once; more wait their turn. They are short, and mostly from memory.
pub const STORE_READERS_MAX: usize = 4;
/// Rows from which on a commit takes no further operation: a bulk acknowledgment may touch very many.
pub const COMMIT_ROWS_MAX: usize = 16 * 1024;
/// Rows that one bulk acknowledgment looks at; it reports how far it came. A few ten milliseconds of the writer.
pub const ACKNOWLEDGED_ROWS_MAX: usize = 10_000;
/// Rows on each side that one which changes nothing looks at, to say what is stored. It may be repeated at will, and the
/// writer does nothing else meanwhile; who wrote more since then is told less.
pub const ACKNOWLEDGED_LOOK_MAX: usize = 64;
/// Messages that wait for their release over all sessions; more are told 503. Some ten MiB of memory.
pub const STORE_UNRELEASED_MAX: usize = 128 * 1024;
/// The same of one chat. They may all be released by one operation, when what they waited for is.
pub const STORE_UNRELEASED_CHAT_MAX: usize = 1024;
/// A moved cursor is written by then even if nothing else is.
pub const CURSOR_WRITTEN_WITHIN: Duration = Duration::from_millis(200);
/// Moved cursors that are kept in memory before they are written.
pub const CURSORS_UNWRITTEN_MAX: usize = 8 * 1024;
/// Logs and chats each whose newest number the writer keeps in memory; others cost one read.
pub const STORE_ENDS_CACHED: usize = 64 * 1024;
/// Memory for the newest messages, which the writer looks at again when they are released and acknowledged.
pub const STORE_NEWEST_BYTES: usize = 8 * 1024 * 1024;
/// Subscriber lists whose length the writer keeps in memory; others are counted again.
pub const STORE_LISTS_CACHED: usize = 4 * 1024;
/// Lists read in which one user stands. Others put a user into their lists, so the user cannot keep it small; who
/// stands in more lists misses the presence of some.
pub const OWNERS_READ_MAX: usize = 4 * SUBSCRIBERS_PER_USER_MAX;
/// Rows read in one go where all of something is read.
pub const STORE_PAGE_ROWS: usize = 512;
/// Rows that one step of the retention looks at or deletes: a few milliseconds of a reader, and less of the writer.
pub const TRIM_ROWS: usize = 256;
/// Between two of its steps the store is others': at most some ten thousand rows go in a second.
pub const TRIM_PAUSE: Duration = Duration::from_millis(10);
/// Memory that each large space of the embedded engine fills before it writes a file (docs/decisions/0001).
pub const STORE_MEMTABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Journal of the embedded engine, the least it takes: bounds the disk and the replay at start-up (the same record).
pub const STORE_JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Between two looks at the files that the engine writes: what has grown meanwhile begins to be written to disk.
pub const STORE_FILES_PAUSE: Duration = Duration::from_millis(2);
/// Files of the engine that are kept open, so that they are freed bit by bit when they are deleted: those of some 10 GiB.
/// Others are freed at once, and a commit may wait for it.
pub const STORE_FILES_OPEN_MAX: usize = 256;
/// Deleted ones that wait for it; what is more is freed at once. As many as a large merge deletes.
pub const STORE_FILES_FREED_MAX: usize = 16;
/// Freed at a time, and the pause after it: the disk has a third of a millisecond's work, and a file of 64 MiB is gone within a
/// sixth of a second.
pub const STORE_FREED_BYTES: u64 = 1024 * 1024;
/// See [`STORE_FREED_BYTES`].
pub const STORE_FREED_PAUSE: Duration = Duration::from_millis(2);
/// Threads of the embedded engine that write and merge files behind the writer's back. With two, one of them spins while
/// the other merges (docs/decisions/0001).
pub const STORE_WORKERS: usize = 1;

/// Longest key or value of a backup that is read back: far above a frame, and a damaged length does not take all memory.
pub const ARCHIVE_ROW_BYTES_MAX: u32 = 4 * 1024 * 1024;

// --- Transport ------------------------------------------------------------------------------------------------------

/// Bidirectional streams a client may have open: four lanes, and one more so that a lane opened twice is seen and
/// answered instead of stalling. quinn allocates stream state up to this limit at once (quinn issue 2600).
pub const STREAMS_MAX: u32 = 5;
/// Bytes that the kernel may hold for the server's one UDP socket, and for the load generator's, each way: some thousand
/// packets, which come while every thread is busy for a few milliseconds. The kernel gives no more than its own bound
/// (net.core.rmem_max, wmem_max).
pub const UDP_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Packets of one connection that go out with one system call. quinn keeps a buffer for so many with each connection that
/// ever sent two: 5.8 KiB instead of the 14.5 KiB of its ten. A returning phone's backlog is the only thing that fills more.
pub const PACKETS_AT_ONCE: usize = 4;
/// Bytes handed to a TCP connection at once, and that its kernel keeps unsent: small, so that an urgent frame does not
/// wait behind much. With 300 messages of 10 KB for a device that does not read, a pong waited behind all 3 MB of them
/// without this bound in the kernel, and waits behind 160 to 180 KB with it, of which the device's own kernel has 128.
pub const TCP_WRITE_BYTES: usize = 16 * 1024;
/// Pause after a failed accept: file descriptors are given back in less.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Ports tried when any will do, until one is free for both UDP and TCP.
pub const PORT_TRIES: usize = 32;
/// Handshakes under way at once, of which one address may have half; further connection attempts are refused until one is
/// through.
pub const HANDSHAKES_MAX: usize = 512;
/// Handshakes under way from which on a newcomer has to prove its address first (stateless retry).
pub const HANDSHAKES_BEFORE_RETRY: usize = 128;
/// TLS sessions that devices may resume with 0-RTT data: two for each connection that there may be. Some 350 bytes each.
pub const TICKETS_MAX: usize = 2 * CONNECTIONS_MAX;
/// A handshake takes no longer: two lost flights on a slow mobile path.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Traces of QUIC connections in their folder (`quic.qlog_dir`): the newest few hundred show what is going on.
pub const QLOG_FILES_MAX: usize = 512;
/// Bytes of one trace: a hundred thousand packets, which a phone takes days for. In all 4 GiB, and usually a hundredth.
pub const QLOG_FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

// --- Transport defaults, each a field of `[quic]` --------------------------------------------------------------------

/// Silence after which a connection is given up: four of the server's pings unanswered. Shorter, and a phone that
/// sleeps or rides through a tunnel pays a handshake each time; longer, and a dead one holds its memory for nothing.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of one lane that a client may send ahead of the server's reading: two of the longest frames, so that the next
/// arrives while the last is worked on. At 100 ms round trip that is 10 Mbit/s of text upwards.
pub const STREAM_RECEIVE_WINDOW: u32 = 2 * 64 * 1024;
/// Lanes of a connection, each of which may have all of its window unread: chat and media stop being read together, and
/// control has its room all the same.
pub const LANES: u32 = 4;
/// The same over all lanes of a connection: what a client that outruns the server can make it hold.
pub const CONNECTION_RECEIVE_WINDOW: u32 = LANES * STREAM_RECEIVE_WINDOW;
/// Bytes sent to a device and not yet acknowledged: what a slow or dead device can make the server hold. At 100 ms
/// round trip it lets a returning device catch up at 20 Mbit/s.
pub const SEND_WINDOW: u32 = 256 * 1024;
/// Connections at once: about 5 GiB when all of them are idle.
pub const CONNECTIONS_MAX: usize = 100_000;
/// Round-trip time assumed before the first measurement: a mobile network's, below QUIC's cautious 333 ms, so that a
/// lost first flight is repeated sooner.
pub const INITIAL_RTT: Duration = Duration::from_millis(200);
/// Nonce of a connection id that carries a server id, and the shortest that is taken: ids count up from a random start
/// when they are encrypted and are random when not, and 64 bits are what keeps either from coming a second time over all
/// restarts that a key sees (docs/decisions/0006-quic-lb.md).
pub const LB_NONCE_BYTES: usize = 8;

// --- Store defaults, each a field of `[store]` -----------------------------------------------------------------------

/// Memory for the store's cache of blocks that it read.
pub const STORE_CACHE_BYTES: u64 = 64 * 1024 * 1024;

// --- Retention defaults, each a field of `[retention]` ---------------------------------------------------------------

/// Entries of a log are kept so long (profile 8).
pub const RETENTION_DAYS: u32 = 30;
/// Entries that are kept of one user's log: a thousand messages a day with their receipts. Some 30 MB on disk.
pub const RETENTION_ENTRIES_PER_USER: u64 = 100_000;
/// From one pass of the retention to the next: what is too old goes within an hour.
pub const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);

// --- Signing in -----------------------------------------------------------------------------------------------------

/// Longest token: the largest that identity providers issue, and it still leaves room in a frame.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Verification keys at most: bounds the signatures that are tried for a token without a `kid`.
pub const TOKEN_KEYS_MAX: usize = 32;
/// Largest key or JWKS file that is read.
pub const KEY_FILE_BYTES_MAX: u64 = 256 * 1024;
/// Shortest HS256 secret: below the hash's own 256 bits it is the weakest part (RFC 7518, 3.2).
pub const HS256_SECRET_BYTES_MIN: usize = 32;
/// Shortest RSA modulus (RFC 7518, 3.3).
pub const RSA_BITS_MIN: usize = 2048;

// --- Server ---------------------------------------------------------------------------------------------------------

/// How long sessions may take to finish when the server drains: a commit, a last flight, and its acknowledgment over a
/// slow mobile path.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// How often the metrics' samples are folded into their buckets, so that a server nobody scrapes does not keep them, and
/// a point joins the status page.
pub const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// Points that the status page shows: ten minutes, some 10 KB.
pub const STATUS_POINTS: usize = 120;
/// Figures that have to be gathered (disk, queues, lag) are not gathered more often, whoever asks.
pub const FIGURES_KEPT: Duration = Duration::from_millis(500);
/// And no longer waited for: a scrape then shows those of before.
pub const FIGURES_WITHIN: Duration = Duration::from_secs(1);
/// An answer of `/readyz` is good for so long: a probe is a write to the disk.
pub const READY_KEPT: Duration = Duration::from_secs(1);
/// A store that has not made the probe durable by then is not ready.
pub const READY_WITHIN: Duration = Duration::from_secs(2);
/// How often the files with the certificate and the token keys are read, to see whether they are others: a renewal takes
/// effect within seconds, and the files are a few kilobytes.
pub const RELOAD_POLL: Duration = Duration::from_secs(5);
/// Who asks for it does not wait longer: where they hang, one thread does.
pub const RELOAD_WITHIN: Duration = Duration::from_secs(10);
/// Requests over the control socket at once: an operator's few commands.
pub const CONTROL_CONNECTIONS_MAX: usize = 4;
/// Longest request over it: a log filter with many modules.
pub const CONTROL_REQUEST_BYTES_MAX: u64 = 4 * 1024;
/// A request has come by then, and each piece of an answer is taken by then: a backup goes to a disk that may stall.
pub const CONTROL_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of a backup that are handed over at once.
pub const CONTROL_CHUNK_BYTES: usize = 64 * 1024;
/// Such pieces that wait for whoever takes the backup.
pub const CONTROL_CHUNKS_MAX: usize = 4;
