//! The transports of a connection, and which of them a device may use.

/// The transport of a connection (protocol.md §1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// QUIC: one stream per lane; the connection can move between networks.
    Quic,
    /// TLS over TCP: for networks that drop UDP.
    Tcp,
}

impl Transport {
    /// Name for logs and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Quic => "quic",
            Transport::Tcp => "tcp",
        }
    }
}

/// Which transports a device may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transports {
    /// QUIC first, and TCP beside it if QUIC has not connected after 1 s. The device remembers for each network which
    /// of them worked, and tries QUIC again later.
    #[default]
    Auto,
    /// Only this one.
    Only(Transport),
}

impl Transports {
    /// Whether this transport may be used.
    pub fn allow(self, transport: Transport) -> bool {
        match self {
            Transports::Auto => true,
            Transports::Only(only) => only == transport,
        }
    }
}
