//! The labels of metrics and all their values, which bound the number of series.

use crate::wire::{CloseCode, ErrorCode, Lane, PAYLOAD_NAMES};

/// A label with a fixed set of values.
pub trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;

    /// Every value, in the order of [`Label::position`].
    const VALUES: &'static [&'static str];

    /// Position among the values.
    fn position(self) -> usize;
}

/// None, one or two labels, which distinguish the series of a family.
pub trait Labels: Copy + 'static {
    /// Names and values of each series, in the order of [`Labels::position`].
    fn sets() -> Vec<Vec<(&'static str, &'static str)>>;

    /// Position of a series in its family.
    fn position(self) -> usize;
}

impl Labels for () {
    fn sets() -> Vec<Vec<(&'static str, &'static str)>> {
        vec![Vec::new()]
    }

    fn position(self) -> usize {
        0
    }
}

impl<A: Label> Labels for A {
    fn sets() -> Vec<Vec<(&'static str, &'static str)>> {
        A::VALUES.iter().map(|value| vec![(A::NAME, *value)]).collect()
    }

    fn position(self) -> usize {
        Label::position(self)
    }
}

impl<A: Label, B: Label> Labels for (A, B) {
    fn sets() -> Vec<Vec<(&'static str, &'static str)>> {
        let both = |a: &'static &'static str| B::VALUES.iter().map(move |b| vec![(A::NAME, *a), (B::NAME, *b)]);
        A::VALUES.iter().flat_map(both).collect()
    }

    fn position(self) -> usize {
        self.0.position() * B::VALUES.len() + self.1.position()
    }
}

/// Declares enums whose variants are the values of a label.
macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident $label:literal { $($variant:ident = $text:literal),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum $name { $($variant),* }

        impl $name {
            /// The label's value.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }

        impl Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static [&'static str] = &[$($text),*];

            fn position(self) -> usize {
                self as usize
            }
        }
    )*};
}

labels! {
    /// What a connection runs over.
    TransportKind "transport" { Quic = "quic", Tcp = "tcp" }
    /// The direction of a frame, seen from the server.
    Direction "direction" { In = "in", Out = "out" }
    /// A delivery from the hub's memory, or read back from the store.
    DeliveryKind "kind" { Live = "live", Backlog = "backlog" }
    /// What an accepted message carries.
    ContentKind "content" { Text = "text", Media = "media" }
    /// The limit that was exceeded.
    LimitKind "limit" {
        Frames = "frames", Messages = "messages", Awareness = "awareness", SignIns = "sign_ins",
        Connections = "connections", Pings = "pings",
    }
    /// Why a connection attempt was refused: the server was full, or the address had its part of the handshakes.
    RefusedFor "reason" { Load = "load", Address = "address" }
    /// The result of reading certificate and token keys again.
    ReloadResult "result" { Done = "done", Refused = "refused", Late = "late" }
    /// How a pass of the retention ended: done; partial, having passed over what it could not read; or failed.
    RetentionResult "result" { Done = "done", Partial = "partial", Failed = "failed" }
    /// The result of tracing a connection.
    TraceResult "result" { Begun = "begun", Refused = "refused", Cut = "cut" }
    /// The result of a sign-in.
    OpenResult "result" {
        Accepted = "accepted", Renewed = "renewed", BadRequest = "bad_request", BadToken = "bad_token",
        Revoked = "revoked", WrongDevice = "wrong_device", TooManyDevices = "too_many_devices", Late = "late",
        Unavailable = "unavailable",
    }
    /// Why a session ended: a close code of ours, or what the peer or the path did.
    CloseReason "reason" {
        Goodbye = "goodbye", ProtocolViolation = "protocol_violation", Unauthenticated = "unauthenticated",
        Revoked = "revoked", Replaced = "replaced", Abuse = "abuse", Draining = "draining", Internal = "internal",
        ClosedByPeer = "closed_by_peer", TimedOut = "timed_out", Reset = "reset",
    }
    /// What became of a connection's early data.
    ZeroRttResult "result" { Accepted = "accepted", Rejected = "rejected" }
    /// How a connection changed its path: another port of the same address, another address, or an attempt that the
    /// new address did not confirm.
    MigrationKind "kind" { NatRebinding = "nat_rebinding", AddressChange = "address_change", Failed = "failed" }
    /// What became of an awareness notification: sent; merged into one that was still to come; or dropped because too
    /// many waited.
    PresenceResult "result" { Sent = "sent", Coalesced = "coalesced", Dropped = "dropped" }
    /// A cache: what is kept in memory because reading it again costs more.
    CacheKind "cache" {
        RecentEntries = "recent_entries", LogEnds = "log_ends", ChatEnds = "chat_ends", Messages = "messages", Lists = "lists",
        Blocks = "blocks",
    }
    /// Whether the cache had it.
    CacheResult "result" { Hit = "hit", Miss = "miss" }
    /// What waits or is under way, up to a bound.
    QueueKind "queue" {
        StoreWrites = "store_writes", StoreReads = "store_reads", Unreleased = "unreleased",
        Connections = "connections", ConnectionsTcp = "connections_tcp", HandshakesQuic = "handshakes_quic", HandshakesTcp = "handshakes_tcp",
        PresenceKept = "presence_kept",
    }
}

impl From<CloseCode> for CloseReason {
    fn from(code: CloseCode) -> CloseReason {
        match code {
            CloseCode::Goodbye => CloseReason::Goodbye,
            CloseCode::ProtocolViolation => CloseReason::ProtocolViolation,
            CloseCode::Unauthenticated => CloseReason::Unauthenticated,
            CloseCode::Revoked => CloseReason::Revoked,
            CloseCode::Replaced => CloseReason::Replaced,
            CloseCode::Abuse => CloseReason::Abuse,
            CloseCode::Draining => CloseReason::Draining,
            CloseCode::Internal => CloseReason::Internal,
        }
    }
}

/// The names of all values of a type of the wire, in a constant.
macro_rules! names {
    ($all:expr) => {
        &{
            let mut names = [""; $all.len()];
            let mut at = 0;
            while at < names.len() {
                names[at] = $all[at].name();
                at += 1;
            }
            names
        }
    };
}

impl Label for Lane {
    const NAME: &'static str = "lane";
    const VALUES: &'static [&'static str] = names!(Lane::ALL);

    fn position(self) -> usize {
        self.index()
    }
}

impl Label for ErrorCode {
    const NAME: &'static str = "code";
    const VALUES: &'static [&'static str] = names!(ErrorCode::ALL);

    fn position(self) -> usize {
        ErrorCode::ALL.iter().position(|code| *code == self).unwrap_or(0)
    }
}

/// A payload's field name in the schema; empty if the payload is unknown.
#[derive(Clone, Copy, Debug)]
pub struct PayloadName(pub &'static str);

impl Label for PayloadName {
    const NAME: &'static str = "payload";
    const VALUES: &'static [&'static str] = &{
        let mut values = [""; PAYLOAD_NAMES.len() + 1];
        let mut at = 0;
        while at < PAYLOAD_NAMES.len() {
            values[at + 1] = PAYLOAD_NAMES[at];
            at += 1;
        }
        values
    };

    fn position(self) -> usize {
        PAYLOAD_NAMES.iter().position(|name| *name == self.0).map_or(0, |position| position + 1)
    }
}

/// The version of this build.
#[derive(Clone, Copy, Debug)]
pub struct ThisVersion;

impl Label for ThisVersion {
    const NAME: &'static str = "version";
    const VALUES: &'static [&'static str] = &[env!("CARGO_PKG_VERSION")];

    fn position(self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_stands_where_its_labels_say() {
        let sets = <(TransportKind, OpenResult)>::sets();
        let at = Labels::position((TransportKind::Tcp, OpenResult::Late));
        assert_eq!(sets[at], [("transport", "tcp"), ("result", "late")]);
        let sets = <(ErrorCode, PayloadName)>::sets();
        for (code, payload) in [(ErrorCode::Malformed, ""), (ErrorCode::Unavailable, "subscriber_list")] {
            let at = Labels::position((code, PayloadName(payload)));
            assert_eq!(sets[at], [("code", code.name()), ("payload", payload)]);
        }
        assert_eq!(<()>::sets().len(), 1);
    }
}
