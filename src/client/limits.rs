//! Every bound of the device's side in one place, each with its reason. What an application may want to change is an
//! option of the builder whose default stands here; the rest is the protocol's or the house's own.

use std::time::Duration;

// --- The protocol's (profile) ---------------------------------------------------------------------------------------

/// Longest text (profile 7), checked before it takes a place in the outbox.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Longest caption of a media message (profile 7).
pub const CAPTION_BYTES_MAX: usize = 1024;
/// Longest address of a media file or its thumbnail.
pub const URL_BYTES_MAX: usize = 2048;
/// Longest frame that a device takes. Four times what a server sends at its default, for one that was configured
/// larger; more than that a phone should not be made to hold for one frame.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;

// --- The outbox -----------------------------------------------------------------------------------------------------

/// Messages that may wait for their VersionUpdate. Two hours in a tunnel, a message every seven seconds.
pub const OUTBOX_MESSAGES_MAX: usize = 1024;
/// Bytes of the same, as frames: what a phone can spare, and what comes back in under a minute over 3G.
pub const OUTBOX_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Other requests (acknowledgments, pings, lists) that may wait for their answer. At the bound automatic
/// acknowledgments of a chat become one up to its newest message.
pub const REQUESTS_MAX: usize = 256;
/// Places beyond these for what the application asks itself: its own acknowledgments do not refuse it a ping.
pub const REQUESTS_RESERVED: usize = 16;
/// Chats with such an acknowledgment that waits for a place. At the bound the events behind wait too, for
/// [`REQUEST_WITHIN`] at most, when the requests that took the places are over. Far more people than write to one.
pub const HELD_CHATS_MAX: usize = 4 * REQUESTS_MAX;
/// An answer to such a request that has not come within this is not going to: its waiter is told. Nor do messages behind one
/// that was put off wait any longer for the answers to those on the way.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// Entries of a list of subscribers that comes in several frames: three times what a server admits (profile 6), as it
/// lists blocked users too.
pub const LIST_ENTRIES_MAX: usize = 15_000;
/// The age at which the server forgets a location (profile 5), and from which a reconnect does not tell it anew.
pub const LOCATION_KEPT: Duration = Duration::from_secs(10 * 60);
/// Commands on their way from the handles to the device's task. It empties them at every turn.
pub const COMMANDS_MAX: usize = 256;
/// Commands taken in one turn, before frames get theirs.
pub const COMMANDS_PER_TURN: usize = 64;

/// Bytes of a journal's records that are no longer wanted before it is written anew, beyond as many as are wanted: a
/// thousand short messages, which makes the rewrite rare and the file small.
pub const JOURNAL_DEAD_BYTES_MAX: u64 = 256 * 1024;
/// Longest journal that is read. What an outbox may hold fits several times.
pub const JOURNAL_BYTES_MAX: u64 = 8 * OUTBOX_BYTES_MAX as u64;

// --- Lanes ----------------------------------------------------------------------------------------------------------

/// Bytes that wait on one lane of the link before its sources pause; whatever is ready goes out in one write.
pub const LANE_QUEUE_BYTES: usize = 64 * 1024;
/// Answers to the server's pings and version updates that wait on one lane. Neither is owed: the server pings again,
/// and releases a message whose VersionUpdate was not answered (profile 7). So at the bound they are dropped, which
/// keeps a server that does not read from growing the queue, and from being waited for.
pub const ANSWERS_MAX: usize = 1024;
/// Frames taken from the link in one turn, before commands and events get theirs.
pub const FRAMES_PER_TURN: usize = 64;
/// Bytes taken from a stream at once.
pub const READ_CHUNK_BYTES: usize = 64 * 1024;
/// Bytes given to a TCP connection, or taken from it, at once: a TLS record's. An urgent frame waits behind no more.
pub const TCP_CHUNK_BYTES: usize = 16 * 1024;

// --- Events ---------------------------------------------------------------------------------------------------------

/// Events that wait for the application, and that it took without their consequences (acknowledgment, SyncAck) being
/// drawn. At the bound no lane but control is read: the server keeps the rest.
pub const EVENTS_MAX: usize = 256;
/// Bytes read beyond that bound while the server owes an answer, which may lie behind messages: it is what keeps a device
/// from waiting for an answer that it does not read. Counted until the application has taken everything, so it has to be
/// what a backlog may be: some 100,000 texts.
pub const AHEAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// At that bound, an application that takes no event for this long while it waits for an answer waits for what will not
/// be read: it is told so, and from then on at once, until it has taken what lies here. Longer than any write to a phone's
/// storage should last.
pub const UNREAD_WITHIN: Duration = Duration::from_secs(5);
/// Events of the connection itself that wait behind a full queue; older ones are dropped, `Device::state` is exact.
pub const EVENTS_HELD_MAX: usize = EVENTS_MAX;
/// Positions of direct replies that came ahead of the log's tail. Beyond it a VersionUpdate that was handled may be
/// reported a second time after a reconnect; no message is ever.
pub const AHEAD_MAX: usize = 1024;
/// Entries taken after which a SyncAck goes out: a resumed tail repeats no more than these to a new process.
pub const SYNC_EVERY: u64 = 32;
/// Time after which it goes out all the same, so that a quiet conversation is not repeated.
pub const SYNC_WITHIN: Duration = Duration::from_secs(1);

// --- Connecting -----------------------------------------------------------------------------------------------------

/// Shortest upper bound of the wait before a reconnect: a hiccup should not be felt.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest one: what a person waits before looking at the phone again, and one handshake a half minute for a battery.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The wait for a server that is draining: a fleet's worth of devices must not arrive at once.
pub const DRAIN_JITTER: Duration = Duration::from_millis(500);
/// A session that was ended by the server, and not by the network, counts as a success from this age on. Otherwise
/// a server that accepts and then throws out would be called ten times a second.
pub const STABLE_AFTER: Duration = Duration::from_secs(5);
/// One that the network ended counts from this age on: networks do end them. Otherwise a box on the way that cuts right after
/// the sign-in would have it repeated ten times a second.
pub const WORKED_AFTER: Duration = Duration::from_secs(1);
/// How long data of a connection that was given up in its first flight may yet arrive, as from a modem's queue: the server
/// takes it for the newest session of this device, and closes the one in use.
pub const EARLY_LINGERS: Duration = Duration::from_secs(30);
/// The least wait after the server closed for abuse; up to as much again is added, by chance.
pub const ABUSE_WAIT: Duration = BACKOFF_MAX;
/// Tokens that may be refused one after the other before the device gives up: a source that signs anew at each call
/// with the wrong key would go on for ever.
pub const REFUSALS_MAX: u32 = 3;
/// First bound of a handshake. QUIC sends its first packet again after 1 and 3 s; starting over is cheaper than its
/// next wait when the server came back meanwhile. Doubles with each attempt.
pub const HANDSHAKE_MIN: Duration = Duration::from_secs(4);
/// Last bound of a handshake: the server's own.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Addresses of the server's name that are tried in one attempt.
pub const ADDRESSES_MAX: usize = 4;
/// Bound of the look-up of the server's name, and of the token source.
pub const LOOKUP_WITHIN: Duration = Duration::from_secs(10);
/// `SessionAccept` or a refusal must have come by then: the server's own bound for the other half of it (profile 3).
pub const ACCEPT_WITHIN: Duration = Duration::from_secs(10);
/// While something waits for an answer and nothing arrives for this long, the path or the server is gone: most tunnels
/// and lifts are shorter, and a connection that outlives them costs no handshake. Without anything to wait for, the idle
/// time-out decides.
pub const SILENCE_MAX: Duration = Duration::from_secs(12);
/// Steps of that silence, each a small packet that asks for life: 0.75 s apart, so that a path that comes back is noticed
/// that soon. A mobile radio stays awake for longer than that after a packet, so a battery pays for fifteen packets and no
/// more; where there is no network, not for those.
pub const KNOCKS_MAX: u32 = 16;
/// Steps asked in vain after which more than an exchange has been lost.
pub const KNOCKS_BEFORE_DOUBT: u32 = 2;
/// The step that goes on from another socket: where a NAT has forgotten the binding, all packets after that arrive.
pub const KNOCKS_BEFORE_MOVING: u32 = 4;
/// After the application has said that the network is another one, silence is judged sooner: a network that drops UDP
/// looks like a dead one, and a new connection races QUIC with TCP.
pub const MOVED_SILENCE_MIN: Duration = Duration::from_secs(2);
/// The same in round trips, where they are long: a lost packet and its repetition fit in.
pub const MOVED_SILENCE_RTTS: u32 = 6;
/// Steps of that silence: not closer than a round trip.
pub const MOVED_KNOCKS_MAX: u32 = 8;
/// Frames that a device sends first from another address, a packet each: one may be lost.
pub const MOVED_FRAMES: usize = 2;
/// Padding of each: with it the packet fills the 1,200 bytes that every path carries, and lets the server send 3,600.
pub const MOVED_PADDING_BYTES: usize = 1_100;
/// NAT bindings of mobile networks live 20 to 30 s; one packet each 15 s keeps them, and the radio mostly asleep.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Four keep-alives lost in a row.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Thirds of it after which a TCP connection, on which nothing is heard of keep-alives, is asked for life; the answer has the
/// last third. A server's own ping to a device that is quiet too has come by then (30 s), so that this costs nothing.
pub const IDLE_THIRDS_UNASKED: u32 = 2;
/// How long before its expiry a token is renewed, at the latest; a short-lived one at nine tenths of its life.
pub const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// And by up to this earlier, or another tenth of a short life: a fleet that signed in within seconds, as after a restart of
/// the server, renews over minutes, one in a hundred of them every three seconds.
pub const RENEW_SPREAD: Duration = Duration::from_secs(5 * 60);
/// Pause before the token source is asked again when it failed or had nothing new.
pub const RENEW_RETRY: Duration = Duration::from_secs(10);

/// How long QUIC is alone in the race before TCP starts. A first packet that was lost has been repeated by then, so that
/// one lost packet does not cost the better transport.
pub const RACE_DELAY: Duration = Duration::from_secs(1);
/// Where TCP won, QUIC is tried again after this: it may have been bad luck.
pub const QUIC_RETRY_MIN: Duration = Duration::from_secs(30);
/// It doubles up to this: a handshake an hour in a network that drops UDP for good.
pub const QUIC_RETRY_MAX: Duration = Duration::from_secs(3600);
/// Networks of which it is remembered.
pub const NETWORKS_MAX: usize = 16;
/// Round-trip time assumed before the first measurement: a mobile network's. A lost first packet is repeated after three
/// of these, where QUIC's cautious 333 ms would make it a second.
pub const INITIAL_RTT: Duration = Duration::from_millis(150);
/// Tickets kept for 0-RTT, each for one attempt. A server gives two with every connection.
pub const TICKETS_MAX: usize = 8;
/// Attempts in a row that may use the last tickets up.
pub const ATTEMPTS_WITH_ALL_TICKETS: u32 = 2;
/// What later ones leave for the attempt that somebody asks for who knows that there is a network.
pub const TICKETS_SPARED: usize = 1;

// --- QUIC windows ---------------------------------------------------------------------------------------------------

/// What the server may have on the way on one lane: 25 Mbit/s at 150 ms. A lane that is not read costs this much.
pub const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
/// The same over all lanes: each its own, as all but control may be full at once while the application takes no events, and
/// a ping has to come through. Memory goes to what lies unread, which is 512 KiB on each lane that the server fills: chat and
/// presence with ours.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 * STREAM_WINDOW_BYTES;
/// What quinn keeps of what the device sends until it is acknowledged.
pub const SEND_WINDOW_BYTES: u64 = 512 * 1024;

// --- Closing --------------------------------------------------------------------------------------------------------

/// How long `close` waits for answers that are under way, and for what was written to arrive.
pub const CLOSE_WITHIN: Duration = Duration::from_secs(3);
/// How long it waits for the close itself to be on its way.
pub const CLOSE_LINGER: Duration = Duration::from_millis(500);

/// A server that ends the control lane closes the connection right after it; one that does not has broken the protocol.
pub const CLOSE_FOLLOWS_WITHIN: Duration = Duration::from_secs(2);
