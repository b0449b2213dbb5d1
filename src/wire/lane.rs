//! Lanes: one stream for each protocol family (profile 2).

/// One of the four streams of a connection. The discriminant is the lane's first byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Lane {
    /// Signing in, pings, tokens, subscribers, blocks, logout, connection-wide errors.
    Control = 0,
    /// Awareness.
    Presence = 1,
    /// Texts, version updates, acknowledgments, synchronisation, history.
    Chat = 2,
    /// Media metadata.
    Media = 3,
}

impl Lane {
    /// Every lane, by its byte.
    pub const ALL: [Lane; 4] = [Lane::Control, Lane::Presence, Lane::Chat, Lane::Media];

    /// The lane that a stream's first byte names.
    pub fn from_byte(byte: u8) -> Option<Lane> {
        Lane::ALL.get(usize::from(byte)).copied()
    }

    /// The byte that opens this lane.
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// Position in arrays over [`Lane::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Send priority: control, then chat, then presence, then media (profile 2). Higher goes first.
    pub fn priority(self) -> i32 {
        match self {
            Lane::Control => 3,
            Lane::Chat => 2,
            Lane::Presence => 1,
            Lane::Media => 0,
        }
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
