//! Lanes: one stream for each family of the protocol (protocol.md §1).

/// One of the four lanes of a connection. The discriminant is the lane byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Lane {
    /// Signing in, pings, tokens, subscribers, blocks, logout, connection-wide errors.
    Control = 0,
    /// Awareness.
    Presence = 1,
    /// Texts, version updates, delivered messages, acknowledgments, SyncAck, history.
    Chat = 2,
    /// Metadata of media messages, from the client.
    Media = 3,
}

impl Lane {
    /// Every lane, ordered by its byte.
    pub const ALL: [Lane; 4] = [Lane::Control, Lane::Presence, Lane::Chat, Lane::Media];

    /// Every lane in the order in which lanes are served (protocol.md §1).
    pub const BY_PRIORITY: [Lane; 4] = [Lane::Control, Lane::Chat, Lane::Presence, Lane::Media];

    /// The lane that a lane byte names; `None` for an unknown one.
    pub fn from_byte(byte: u8) -> Option<Lane> {
        Lane::ALL.get(usize::from(byte)).copied()
    }

    /// The lane byte.
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// Index into arrays over [`Lane::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The same order as a number for QUIC: a higher one goes first.
    pub fn priority(self) -> i32 {
        Lane::BY_PRIORITY.iter().rev().take_while(|lane| **lane != self).count() as i32
    }

    /// Name for logs and metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Lane::Control => "control",
            Lane::Presence => "presence",
            Lane::Chat => "chat",
            Lane::Media => "media",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quic_serves_the_lanes_in_the_same_order() {
        let priorities = Lane::BY_PRIORITY.map(Lane::priority);
        assert!(priorities.is_sorted_by(|first, then| first > then), "{priorities:?}");
        assert_eq!(Lane::BY_PRIORITY.map(Lane::name), ["control", "chat", "presence", "media"]);
    }
}
