//! Every bound of the server in one place, each with its reason. Where an operator may want another value, the constant is the
//! default of a configuration field; the other bounds are set by the protocol or by this implementation. Those that devices
//! keep, too, are in `wire/limits.rs`.

use std::time::Duration;

// --- The protocol's (docs/protocol.md) ------------------------------------------------------------------------------

/// Longest frame in bytes (protocol.md §2): four of the longest texts, which leaves ample room for an envelope.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Largest media file in bytes that metadata may state (protocol.md §7): 4 GiB.
pub const MEDIA_BYTES_MAX: i64 = 4 * 1024 * 1024 * 1024;
/// Devices of one user (protocol.md §5).
pub const DEVICES_PER_USER_MAX: usize = 16;
/// Individually revoked devices of one user (protocol.md §13). Each is remembered for ten years and [`REVOCATIONS_KEPT`], which
/// allows a new phone a month. At the bound only a revocation of all of the user's tokens makes room.
pub const REVOKED_DEVICES_PER_USER_MAX: usize = 128;
/// Entries of one user's subscriber list (protocol.md §11); blocks are counted separately.
pub const SUBSCRIBERS_PER_USER_MAX: usize = 5_000;
/// How long a new connection may take to send `SessionOpen` (protocol.md §5).
pub const SESSION_OPEN_WITHIN: Duration = Duration::from_secs(10);
/// How long a message waits for its sender's answer to the VersionUpdate before it is released anyway (protocol.md §7).
pub const RELEASE_WITHIN: Duration = Duration::from_secs(1);
/// Time without a frame from the client after which the server pings it (protocol.md §6).
pub const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Clock difference that is tolerated in the times of tokens (protocol.md §5).
pub const TOKEN_LEEWAY: Duration = Duration::from_secs(30);
/// Messages in a page of history at most (protocol.md §10).
pub const HISTORY_PAGE_MAX: usize = 200;
/// Messages in a page of history if the client gives no limit (protocol.md §10).
pub const HISTORY_PAGE_DEFAULT: usize = 50;
/// How long `message_id_local`s are remembered at least (protocol.md §7).
pub const LOCAL_IDS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

// --- Sessions -------------------------------------------------------------------------------------------------------

/// Store calls besides releases that one session may have under way; at the bound chat and media are not read until one
/// returns. 64 let a single busy sender fill its commits well, and cost at most 64 frames of memory.
pub const SESSION_CALLS_MAX: usize = 64;
/// Calls beyond these that only control and presence may make: a full chat lane does not delay a ping (protocol.md §1).
pub const SESSION_CALLS_RESERVED: usize = 16;
/// Sends of one session without a VersionUpdate yet; at the bound chat and media are not read further. Also its messages that
/// wait for the answer to their VersionUpdate; at the bound the oldest is released.
pub const SESSION_UNRELEASED_MAX: usize = 256;
/// Bytes queued on one lane at which its tail or presence pauses and its requests are not read. One frame may exceed it, and
/// the pages of history that were asked for before.
pub const LANE_QUEUE_BYTES: usize = 64 * 1024;
/// Characters of a refused request's `message_id_local` that its error echoes: as many as a valid one may have.
pub const LOCAL_ID_ECHO_MAX: usize = 64;
/// Least time between two samples of a connection's path for the metrics: each costs a lock or a system call.
pub const PATH_SAMPLED_EVERY: Duration = Duration::from_secs(10);
/// Paths of a connection that are remembered, so that its return to one of them from a path that does not answer is recognised:
/// so many moves in a row may go unanswered.
pub const PATHS_REMEMBERED: usize = 4;
/// How often the path is looked at after the device moved to it, so that QUIC's return from a path that does not answer is
/// noticed before the device's next packet undoes it.
pub const MOVE_LOOKED_AT_EVERY: Duration = Duration::from_millis(100);
/// How many times it is looked at then: together longer than QUIC waits for the answer (three probe timeouts, 1.9 s if nothing
/// was measured yet).
pub const MOVE_LOOKED_AT_TIMES: u32 = 50;
/// Pings that one device may leave unanswered before the oldest is forgotten, and with it who asked for it.
pub const PINGS_ASKED_MAX: usize = 16;
/// Pings of other devices that wait for the answer to one ping on the wire: as many as a session may be told of at once. One
/// more is another ping.
pub const PING_ASKERS_MAX: usize = SESSION_NOTICES_MAX;
/// Pings to other devices that one session may have under way.
pub const PINGS_RELAYED_MAX: usize = 16;
/// How long a relayed ping waits for its answer before it is answered TIMEOUT (protocol.md §6).
pub const PING_RELAY_WITHIN: Duration = Duration::from_secs(5);
/// Longest nickname and group of a list's entry, in bytes each.
pub const LIST_TEXT_BYTES_MAX: usize = 256;
/// Longest lifetime of a token. After it, every token of a revoked device or user has expired, and the revocation is kept for
/// [`REVOCATIONS_KEPT`] more.
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a revocation is kept after every token that it refuses has expired: a clock that is ahead for so long does not bring
/// one of them back when it is set right.
pub const REVOCATIONS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Frames taken from one connection before the session writes its answers.
pub const FRAMES_PER_TURN: usize = 64;
/// Turns of one session before its thread serves others: up to four times [`FRAMES_PER_TURN`] frames.
pub const TURNS_PER_POLL: usize = 4;
/// Entries that one tail reads from the store at once: amortises the read, and bounds what a session holds.
pub const TAIL_READ_ENTRIES: usize = 128;
/// Bytes of messages after which such a read stops early: what two lanes hold. A session keeps them while its device does not
/// read.
pub const TAIL_READ_BYTES: usize = 2 * LANE_QUEUE_BYTES;
/// Pages of history that one session may have under way. Each reads up to a frame's worth of messages with one of the store's
/// readers, which all sessions share.
pub const SESSION_HISTORY_CALLS_MAX: usize = 4;
/// Notices (replaced, revoked, relayed pings) that wait for one session; it handles them at once, so few suffice.
pub const SESSION_NOTICES_MAX: usize = 64;
/// How long a closing connection may take to deliver its last error.
pub const CLOSE_LINGER: Duration = Duration::from_millis(500);

/// Most bytes taken from a lane at once; a packet holds far less.
pub const READ_CHUNK_BYTES: usize = 16 * 1024;

/// Users, and addresses, whose rates are remembered: so many of each. If there are more, rates are forgotten early.
pub const ADDRESSES_LIMITED_MAX: u64 = 100_000;
/// A user's or address's rate that is not used for so long is forgotten: by then, its burst has refilled (`config::check`).
pub const ADDRESS_LIMIT_KEPT: Duration = Duration::from_secs(600);
/// How often a session that sends messages looks up its user's rate: well within the time after which an unused rate is
/// forgotten.
pub const USER_LIMIT_LOOKED_FOR_EVERY: Duration = Duration::from_secs(300);
/// Refusals of a session for going too fast, of which each request within its rates takes one off, before it is closed with
/// ABUSE: a client whose pipeline is full when it is first refused still has so many answers to come.
pub const STRIKES_MAX: u32 = 2_000;
/// Least time that a sender over the messages' rate is told to wait, unless its full burst is available sooner. Messages behind
/// one that the store had no place for wait as long. What is on the wire behind the first message arrives within this time and
/// is put off, too, so that everything is sent again in order. The wait also keeps the client library's full outbox of 1,024
/// within the frames' rate if it is sent again each time the rate lets a part of it through.
pub const SEND_BEHIND_WAIT: Duration = Duration::from_millis(250);
/// The same in round trips, where these are longer: what was sent just before the refusal arrived comes within one round trip,
/// or later if a queue has grown on the path.
pub const SEND_BEHIND_ROUND_TRIPS: u32 = 2;
/// The longest such wait: on a path that takes a second each way nobody sends in a pipeline.
pub const SEND_BEHIND_WAIT_MAX: Duration = Duration::from_secs(2);

// --- Rates, each a field of `[limits]`: per second, and at once ----------------------------------------------------------

/// Frames of one session: a busy device needs tens; the client library's full outbox of 1,024 messages with their answers fits
/// the burst many times.
pub const FRAMES_RATE: (u32, u32) = (5_000, 50_000);
/// Messages of one user over all devices: a person writes one a second; the burst holds nearly twenty of the client
/// library's full outboxes.
pub const MESSAGES_RATE: (u32, u32) = (500, 20_000);
/// Awareness requests and changes of one session: the burst asks once about every contact of a large list.
pub const AWARENESS_RATE: (u32, u32) = (50, 5_000);
/// Sign-ins from one address (IPv6: one /64): a mobile carrier puts thousands of phones behind one, which all come back
/// at once after an outage.
pub const SIGN_INS_RATE: (u32, u32) = (500, 10_000);
/// Renewals and revocations of one open session. They also count as sign-ins from its address. A back end that revokes for
/// many users waits as it is told, or does it through several sessions.
pub const TOKENS_RATE: (u32, u32) = (10, 100);
/// Sign-ins of one user over all devices: the burst lets each of 16 return six times at once on a bad network. A program in an
/// endless loop would write hundreds of lines a second into the log, and as many rows into the store.
pub const USER_SIGN_INS_RATE: (u32, u32) = (2, 100);
/// Connections from one address at once, for the same reason as its sign-ins.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 20_000;

// --- Hub ------------------------------------------------------------------------------------------------------------

/// Entries of one connected user that are kept in memory for live tails; a tail that falls behind reads the store.
pub const RECENT_ENTRIES_MAX: usize = 64;
/// Bytes of the same.
pub const RECENT_BYTES_MAX: usize = 128 * 1024;

// --- Presence (protocol.md §12) --------------------------------------------------------------------------------------

/// How long a lost connection still counts, so that presence does not flap in a tunnel or a lift.
pub const OFFLINE_GRACE: Duration = Duration::from_secs(15);
/// A device is told about a contact's changes at most once in this time, and only of the newest state.
pub const PRESENCE_INTERVAL: Duration = Duration::from_millis(500);
/// Notifications a second of one owner's changes, to all who watch. Where more than a thousand do, changes wait longer than
/// [`PRESENCE_INTERVAL`]: 2.5 s if everybody on the longest list watches. So many take a sixteenth of a core.
pub const PRESENCE_TOLD_PER_SECOND: u32 = 2_000;
/// How long a location is held.
pub const LOCATION_KEPT: Duration = Duration::from_secs(10 * 60);
/// Users whose notifications to one user alone wait for one presence lane: of each the newest one.
pub const DIRECTED_MAX: usize = 64;
/// Notices of one session to one user alone that wait for the store, which is asked about one after the other; at the bound
/// presence is not read. It answers from memory nearly always, so few suffice.
pub const DIRECTED_ASKED_MAX: usize = 16;
/// Users without a connection whose choice and last time are remembered: some 30 MB.
pub const PRESENCE_KEPT_MAX: usize = 100_000;
/// Watches that are marked before the task yields to others.
pub const FAN_OUT_CHUNK: usize = 256;

// --- Store ----------------------------------------------------------------------------------------------------------

/// Operations that wait for the store's writer. If the queue is full, a caller waits for a place, and then gets 503.
pub const STORE_QUEUE_MAX: usize = 8 * 1024;
/// Places of these for users of whom fewer than [`STORE_TURN_MAX`] operations wait, when all others are taken.
pub const STORE_QUEUE_KEPT: usize = STORE_QUEUE_MAX / 8;
/// Operations of one user that the writer takes before it is the next user's turn. A sender's operations under way mostly go
/// into one commit then, which saves wake-ups: each commit with one of them wakes its session.
pub const STORE_TURN_MAX: usize = 16;
/// Operations of one user that may wait for the writer before it drops those whose result nobody waits for: moves of cursors,
/// which a device may send as fast as its frames' rate allows. A full queue drops them, too.
pub const STORE_OFFERED_MAX: usize = SESSION_CALLS_MAX;
/// A commit with fewer operations is filled with another round of turns.
pub const STORE_ROUNDS_UNTIL: usize = 256;
/// How long a caller waits for a place in the writer's queue.
pub const STORE_QUEUE_WAIT: Duration = Duration::from_secs(2);
/// Operations in one durable commit: bounds the commit's memory and the latency of its first operation.
pub const COMMIT_OPERATIONS_MAX: usize = 1024;
/// Reads of the store that run at once; others wait. Reads are short, and mostly served from memory.
pub const STORE_READERS_MAX: usize = 4;
/// Of these for one user, whose further reads wait: half, so that a user's devices that come back together are served side by
/// side, and never all of them.
pub const STORE_READS_PER_USER_MAX: usize = STORE_READERS_MAX / 2;
/// Rows, written or read in ranges, at which a commit takes no further operation: a bulk acknowledgment may touch very many.
pub const COMMIT_ROWS_MAX: usize = 16 * 1024;
/// Rows that one bulk acknowledgment looks at; its answer says how far it came. This takes the writer a few tens of
/// milliseconds.
pub const ACKNOWLEDGED_ROWS_MAX: usize = 10_000;
/// Rows on each side that a bulk acknowledgment which changes nothing looks at, to report what is stored. A client may repeat
/// it at will, and the writer does nothing else meanwhile. If more rows were written since, the report says less.
pub const ACKNOWLEDGED_LOOK_MAX: usize = 64;
/// Messages of all sessions that wait for their release; further ones get 503. They take some ten MiB of memory.
pub const STORE_UNRELEASED_MAX: usize = 128 * 1024;
/// The same for one chat, whose further ones get 429. One operation may release them all, together with the message that
/// they waited for.
pub const STORE_UNRELEASED_CHAT_MAX: usize = 1024;
/// Time after which a moved cursor is written even if nothing else is.
pub const CURSOR_WRITTEN_WITHIN: Duration = Duration::from_millis(200);
/// Moved cursors that are kept in memory before they are written.
pub const CURSORS_UNWRITTEN_MAX: usize = 8 * 1024;
/// Logs, and chats, whose newest number the writer keeps in memory: so many of each. Any other costs one read.
pub const STORE_ENDS_CACHED: usize = 64 * 1024;
/// Bytes for the newest messages, which the writer reads again when they are released and acknowledged.
pub const STORE_NEWEST_BYTES: usize = 8 * 1024 * 1024;
/// Subscriber lists whose length the writer keeps in memory; others are counted again.
pub const STORE_LISTS_CACHED: usize = 4 * 1024;
/// Lists that are read to find whom one user may see. Others put the user on their lists, so the user cannot keep this number
/// small; a user on more lists misses the presence of some owners.
pub const OWNERS_READ_MAX: usize = 4 * SUBSCRIBERS_PER_USER_MAX;
/// Rows read at once where everything of a kind is read.
pub const STORE_PAGE_ROWS: usize = 512;
/// Rows that one step of the retention looks at or deletes: a few milliseconds of a reader, and less of the writer.
pub const TRIM_ROWS: usize = 256;
/// Pause between two steps of the retention, in which the store serves others: at most some ten thousand rows are deleted a
/// second.
pub const TRIM_PAUSE: Duration = Duration::from_millis(10);
/// Bytes of memory that each large space of the embedded engine fills before it writes a file (docs/decisions/0001).
pub const STORE_MEMTABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes of the embedded engine's journal, the least that it accepts: bounds the disk and the replay at start-up (the same
/// record).
pub const STORE_JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Closed memtables of a space that may wait to be written to files. With one more, the engine's commits wait for as long as it
/// takes, also if the engine has failed.
pub const MEMTABLES_CLOSED_MAX: usize = 3;
/// How long a memtable may stay in memory after the engine has dropped its last reference.
pub const MEMTABLE_FREED_WITHIN: Duration = Duration::from_secs(1);
/// How often a commit that waits for the engine's files looks for them.
pub const STORE_FILES_LOOKED_AT_EVERY: Duration = Duration::from_millis(10);
/// How long the engine's lock is waited for at the start: fjall's thread may hold it for a moment longer than the database that
/// was closed.
pub const STORE_LOCK_RELEASED_WITHIN: Duration = Duration::from_secs(1);
/// Entries of a log in one row. A user's entries of one commit are read and written together, and the row stays small.
pub const LOG_ROW_ENTRIES_MAX: usize = 16;
/// Pause between two looks at the files that the engine writes: what they grew by is then written to disk.
pub const STORE_FILES_PAUSE: Duration = Duration::from_millis(2);
/// The engine's tables that are kept open for reading, each of which is a file descriptor; others are opened for each read.
pub const STORE_TABLES_OPEN_MAX: usize = 512;
/// Files of the engine that are kept open, so that they can be freed bit by bit when they are deleted: those of some 10 GiB.
/// Other files are freed at once, and a commit may wait for it.
pub const STORE_FILES_OPEN_MAX: usize = 256;
/// Deleted files that wait to be freed bit by bit, as many as a large merge deletes; further ones are freed at once.
pub const STORE_FILES_FREED_MAX: usize = 16;
/// Bytes freed at a time, before a pause of [`STORE_FREED_PAUSE`]: they are a third of a millisecond's work for the disk, and a
/// file of 64 MiB is gone within a sixth of a second.
pub const STORE_FREED_BYTES: u64 = 1024 * 1024;
/// See [`STORE_FREED_BYTES`].
pub const STORE_FREED_PAUSE: Duration = Duration::from_millis(2);
/// Threads of the embedded engine that write and merge files behind the writer's back. With two, one of them spins while
/// the other merges (docs/decisions/0001).
pub const STORE_WORKERS: usize = 1;

/// While the disk is at its reserve: pause between two memtables that are closed though they are nearly empty, so that the engine
/// deletes what its merges have replaced. Each is a file of some kilobytes.
pub const MEMTABLE_CLOSED_EARLY_EVERY: Duration = Duration::from_secs(30);

/// Free bytes of the store's disk below which it takes no new messages or subscribers. What goes on meanwhile (receipts, releases, revocations,
/// the retention) writes little; most of this is for the engine: a merge of full memtables with the tables below them writes some
/// 320 MiB before it frees them, and the journal takes up to twice [`STORE_JOURNAL_BYTES_MAX`].
pub const STORE_DISK_RESERVE_BYTES: u64 = 512 * 1024 * 1024;
/// The reserve is at most this part of the disk: a small one, as of a container, holds a small store.
pub const STORE_DISK_RESERVE_SHARE: u64 = 8;

/// Longest key or value in bytes that is read back from a backup: far above a frame, and a damaged length cannot take all
/// memory.
pub const ARCHIVE_ROW_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// Bytes by which the engine's memtables may grow during a backup: it keeps all that were closed since the backup's view began.
/// Half a minute of the fastest writing, and some ten minutes of a thousand messages a second.
pub const ARCHIVE_MEMORY_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Bytes of a backup that are restored with one commit, and one row more.
pub const ARCHIVE_COMMIT_BYTES: u64 = 1024 * 1024;

// --- Transport ------------------------------------------------------------------------------------------------------

/// Empty frames of open lanes on a connection over TCP, which say nothing and so count for no rate. Nobody needs one.
pub const TCP_EMPTY_FRAMES_MAX: u32 = 10_000;

/// Bidirectional streams a client may have open: four lanes, and one more so that a lane opened twice is seen and
/// answered instead of stalling. quinn allocates stream state up to this limit at once (quinn issue 2600).
pub const STREAMS_MAX: u32 = 5;
/// Bytes that the kernel may hold for the server's one UDP socket, and for the load generator's, each way: some thousand
/// packets, which arrive while every thread is busy for a few milliseconds. The kernel grants no more than its own bound
/// (net.core.rmem_max, wmem_max).
pub const UDP_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Packets of one connection that are sent with one system call. quinn keeps a buffer for so many with each connection that
/// ever sent two together: 5.8 KiB instead of the 14.5 KiB of its default, ten. Only the backlog of a returning phone fills
/// more.
pub const PACKETS_AT_ONCE: usize = 4;
/// Bytes handed to a TCP connection at once, and bytes that its kernel keeps unsent: few, so that an urgent frame does not wait
/// behind much. Measured with 300 messages of 10 KB for a device that does not read: without this bound in the kernel, a pong
/// waited behind all 3 MB of them; with it, behind 160 to 180 KB, of which the device's own kernel holds 128.
pub const TCP_WRITE_BYTES: usize = 16 * 1024;
/// Pause after a failed accept: some file descriptors are released in less time.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Ports that are tried, if any port will do, until one is free for both UDP and TCP.
pub const PORT_TRIES: usize = 32;
/// Handshakes under way at once over each transport. With all places taken, a newcomer has that of the network with the most.
pub const HANDSHAKES_MAX: usize = 512;
/// How long a handshake keeps its place also from newcomers whose network has no fewer than its own: four round trips of a
/// mobile network. With less, a fleet that comes back would finish none; with more, many networks that begin handshakes
/// and finish none would keep others out with fewer of them.
pub const HANDSHAKE_SPARED: Duration = Duration::from_secs(1);
/// File descriptors that connections over TCP leave to the rest: the store's ([`STORE_TABLES_OPEN_MAX`], [`STORE_FILES_OPEN_MAX`]), the
/// metrics listener's ([`PAGES_CONNECTIONS_MAX`]), and whatever is opened for a moment. Where the system allows few, TCP has a quarter all the same.
pub const DESCRIPTORS_RESERVED: usize = 1024;
/// Number of handshakes under way from which on a new client must prove its address first (stateless retry).
pub const HANDSHAKES_BEFORE_RETRY: usize = 128;
/// Handshakes a second with clients that have not proved their address; further ones must prove it first. They take a
/// quarter of a core. Without this bound, forged packets that begin a handshake and end it at once would cost the server all of
/// its time; with it, the devices of a fleet that comes back at once pay one more round trip.
pub const HANDSHAKES_UNPROVEN_PER_SECOND: u32 = 500;
/// TLS sessions that devices may resume over each transport, for each connection that the server may have at once
/// (`quic.max_connections`): as many as a handshake gives out. Some 350 bytes each.
pub const TICKETS_PER_CONNECTION: usize = 2;
/// How long a handshake may take: two lost flights on a slow mobile path.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Least time between two packets that tell a device that the server does not know its connection, as after a crash: 10,000 of
/// these a second cost a tenth of a core. They are smaller than what they answer, so they amplify nothing. Nobody can collect the
/// tokens of ids that others will get: an id is answered only if it bears the server's mark ([`CID_MARK_BYTES`]). quinn's own 20 ms
/// would leave most of a fleet waiting for its idle timeout.
pub const RESET_INTERVAL: Duration = Duration::from_micros(100);
/// Bytes of the encrypted mark by which a server of no pool recognises its connection ids: one of 2^32 ids that somebody makes up
/// bears it by chance.
pub const CID_MARK_BYTES: usize = 4;
/// Bytes that distinguish these ids from each other, counted up from a random start. Who wants the reset tokens of all 2^48 would
/// find one an hour with a million packets a second. With more bytes each packet from a device would be longer.
pub const CID_NONCE_BYTES: usize = 6;

/// Traces of QUIC connections in their folder (`quic.qlog_dir`): the newest few hundred show what is going on.
pub const QLOG_FILES_MAX: usize = 512;
/// Bytes of one trace: a hundred thousand packets, for which a phone takes days. All traces take at most 4 GiB, and usually a
/// hundredth.
pub const QLOG_FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

// --- Transport defaults, each a field of `[quic]` --------------------------------------------------------------------

/// Silence after which a connection is given up: four of the server's pings are unanswered then. With a shorter timeout, a
/// phone that sleeps or rides through a tunnel would pay a handshake each time; with a longer one, a dead connection would hold
/// its memory for nothing.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of one lane that a client may send ahead of the server's reading: two of the longest frames, so that the next one
/// arrives while the last is processed. At 100 ms round trip that is 10 Mbit/s of text upwards.
pub const STREAM_RECEIVE_WINDOW: u32 = 2 * 64 * 1024;
/// Lanes of a connection, each of which may have its whole window unread: when chat and media are not read, control still has
/// room.
pub const LANES: u32 = 4;
/// The same over all lanes of a connection: what a client that outruns the server can make it hold.
pub const CONNECTION_RECEIVE_WINDOW: u32 = LANES * STREAM_RECEIVE_WINDOW;
/// Bytes sent to a device and not yet acknowledged: what a slow or dead device can make the server hold. At 100 ms
/// round trip it lets a returning device catch up at 20 Mbit/s.
pub const SEND_WINDOW: u32 = 256 * 1024;
/// Connections at once: about 3 GiB when all of them are idle, since an idle QUIC session takes 31.7 KiB.
pub const CONNECTIONS_MAX: usize = 100_000;
/// Round-trip time assumed before the first measurement: a mobile network's, below QUIC's cautious 333 ms, so that a
/// lost first flight is repeated sooner.
pub const INITIAL_RTT: Duration = Duration::from_millis(200);
/// Bytes of the nonce in a connection id that carries a server id; this is also the least that is accepted. Encrypted ids count
/// up from a random start, and others are random: 64 bits keep both from repeating over all restarts that a key sees
/// (docs/decisions/0006-quic-lb.md).
pub const LB_NONCE_BYTES: usize = 8;

// --- Store defaults, each a field of `[store]` -----------------------------------------------------------------------

/// Bytes of the store's cache of blocks that were read.
pub const STORE_CACHE_BYTES: u64 = 64 * 1024 * 1024;

// --- Retention defaults, each a field of `[retention]` ---------------------------------------------------------------

/// Days for which entries of a log are kept (protocol.md §9).
pub const RETENTION_DAYS: u32 = 30;
/// Entries of one user's log that are kept: those of 30 days with a thousand messages a day, of which each has up to four
/// entries, and more. Some 60 MB on disk.
pub const RETENTION_ENTRIES_PER_USER: u64 = 200_000;
/// Time from one pass of the retention to the next: what is too old is deleted within an hour.
pub const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);

// --- Signing in -----------------------------------------------------------------------------------------------------

/// Longest token in bytes: the largest that identity providers issue, and it still leaves room in a frame.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Verification keys at most: bounds the signatures that are tried for a token without a `kid`.
pub const TOKEN_KEYS_MAX: usize = 32;
/// Largest key or JWKS file that is read, in bytes.
pub const KEY_FILE_BYTES_MAX: u64 = 256 * 1024;
/// Shortest HS256 secret: below the hash's own 256 bits it is the weakest part (RFC 7518, 3.2).
pub const HS256_SECRET_BYTES_MIN: usize = 32;
/// Shortest RSA modulus (RFC 7518, 3.3).
pub const RSA_BITS_MIN: usize = 2048;

// --- Server ---------------------------------------------------------------------------------------------------------

/// How long sessions may take to finish when the server drains: a commit, a last flight, and its acknowledgment over a
/// slow mobile path.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// How long a session that drains waits for its device to read on, while it owes answers that its lanes have no room for: so
/// much less than [`DRAIN_WITHIN`] that a device which does not read is still told why it is closed.
pub const DRAIN_ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// How often the metrics' samples are folded into their buckets, so that they do not pile up if nobody scrapes the server. A
/// point is added to the status page each time.
pub const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// Connections of the metrics listener at once, each of which is a file descriptor: a handful of Prometheus servers, probes, and
/// people. Further ones wait.
pub const PAGES_CONNECTIONS_MAX: usize = 64;
/// How long a request to the metrics listener may take to arrive, also behind another one, and an answer to be read once its
/// connection is old.
pub const PAGES_REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection of the metrics listener is kept, however many requests it brings. Then the next one needs another.
pub const PAGES_CONNECTION_KEPT: Duration = Duration::from_secs(60);
/// Lines of the log that wait to be written: what eight thousand sign-ins and ends say, some 5 MB. Further ones are dropped and
/// counted, so that nobody waits for who reads standard error.
pub const LOG_LINES_MAX: usize = 16 * 1024;
/// How long the end of the process waits for what is still to be logged, and for each of its last words.
pub const LOG_ENDS_WITHIN: Duration = Duration::from_millis(1200);
/// Points that the status page shows: ten minutes, some 10 KB.
pub const STATUS_POINTS: usize = 120;
/// Figures that must be gathered (disk, queues, lag) are gathered at most once in this time, however many ask.
pub const FIGURES_KEPT: Duration = Duration::from_millis(500);
/// How long a scrape waits for these figures; after that it shows the previous ones.
pub const FIGURES_WITHIN: Duration = Duration::from_secs(1);
/// How long an answer of `/readyz` is reused: each probe is a write to the disk.
pub const READY_KEPT: Duration = Duration::from_secs(1);
/// Time within which the store must make the probe durable; otherwise it is not ready.
pub const READY_WITHIN: Duration = Duration::from_secs(2);
/// How often the files with the certificate and the token keys are read to see whether they changed: a renewal takes effect
/// within seconds, and the files are a few kilobytes.
pub const RELOAD_POLL: Duration = Duration::from_secs(5);
/// How long a caller waits for a reload: if the files hang, only one thread does.
pub const RELOAD_WITHIN: Duration = Duration::from_secs(10);
/// Requests over the control socket at once: an operator's few commands.
pub const CONTROL_CONNECTIONS_MAX: usize = 4;
/// Longest request over the control socket, in bytes: a log filter with many modules.
pub const CONTROL_REQUEST_BYTES_MAX: u64 = 4 * 1024;
/// How long a request may take to arrive, and each piece of an answer to be taken: a backup is written to a disk that may
/// stall.
pub const CONTROL_WITHIN: Duration = Duration::from_secs(30);
/// How long a backup may take, also if its client takes each piece in time: meanwhile the engine keeps the files that it has merged.
pub const BACKUP_WITHIN: Duration = Duration::from_secs(4 * 3600);
/// Bytes of a backup that are handed over at once.
pub const CONTROL_CHUNK_BYTES: usize = 64 * 1024;
/// Pieces of a backup that wait for the client that takes it.
pub const CONTROL_CHUNKS_MAX: usize = 4;
