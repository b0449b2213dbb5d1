//! What carries a connection, and which of the two a device may use.

/// What carries a connection (profile 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// QUIC: a stream for each lane, moves between networks.
    Quic,
    /// TLS over TCP: for networks that drop UDP.
    Tcp,
}

impl Transport {
    /// For logs and reports.
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
    /// QUIC first, and TCP a moment later where QUIC stays silent. What worked is remembered for each network, and QUIC
    /// is tried again later.
    #[default]
    Auto,
    /// One of them alone.
    Only(Transport),
}

impl Transports {
    /// Whether it is among them.
    pub fn allow(self, transport: Transport) -> bool {
        match self {
            Transports::Auto => true,
            Transports::Only(only) => only == transport,
        }
    }
}
