//! An emulated mobile network in user space, for experiments and tests: a phone with two paths, a server, and between
//! them delay, loss, limited bandwidth, blackouts, NATs and handovers. Linux only, feature `link`.
//!
//! Phone and server are network namespaces in this process. Each path is a TUN device in the phone's namespace; the
//! server's namespace has one TUN device. A thread reads IP packets from one side, decides whether and when each
//! arrives, and writes it to the other side. Kernel TCP and QUIC pass through unchanged and are treated alike: the
//! thread looks at addresses and ports only.
//!
//! ```text
//! phone ── wifi ── radio, line, loss ── NAT ──┐
//!      └── lte ─── radio, line, loss ── NAT ──┴── server
//! ```
//!
//! ```no_run
//! use bimip::link::{Network, Path, Plan, Profile};
//!
//! # fn main() -> Result<(), bimip::link::Error> {
//! let net = Network::start(Plan { wifi: Profile::WIFI, lte: Profile::LTE, seed: 1 })?;
//! net.control().set_congestion_control("bbr")?;
//! let (phone, server) = (net.phone().runtime(1)?, net.server().runtime(1)?);
//! let before = net.control().counters()?;
//! // Bind to net.server_address() with server.spawn(…), connect to it with phone.block_on(…), and then:
//! let handover = net.control().hand_over(Path::Lte, std::time::Duration::from_millis(300))?;
//! handover.wait()?;
//! let sent = net.control().counters()? - before;
//! # Ok(())
//! # }
//! ```
//!
//! Limits: the link carries no IPv6, no ICMP and no fragments (it counts them in [`Counters::not_carried`]). It does
//! not notify the phone's sockets of a change of network, as Android does for TCP. A fair comparison therefore notifies
//! both transports or neither.

mod chance;
mod check;
mod control;
mod counters;
mod device;
mod limits;
mod namespace;
mod nat;
mod network;
mod packet;
mod pipe;
mod profile;
mod router;
mod routes;
mod sys;
#[cfg(test)]
mod testing;

use std::fmt::Display;
use std::io;

pub use check::{Report, Row, check};
pub use control::{Control, Handover};
pub use counters::{Count, Counters, Path, Tally, Way};
pub use limits::MTU;
pub use namespace::{Namespace, Runtime};
pub use network::{Network, Plan};
pub use packet::Protocol;
pub use profile::{Conditions, Loss, PROFILES, Profile, Rate, Reordering};

/// Why the link could not be made, or stopped working.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine, or the user that runs this process, cannot have a link.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The profile contradicts itself; the text says how.
    #[error("there can be no such path: {0}")]
    Profile(&'static str),
    /// A system call failed unexpectedly.
    #[error("could not {what}: {reason}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        reason: io::Error,
    },
    /// The link's thread has ended; an earlier error, or its log, says why.
    #[error("the link has ended: {0}")]
    Ended(String),
    /// The handover was cut short.
    #[error("the handover was cut short: another one began, or the network was dropped")]
    Interrupted,
}

/// What a machine lacks for a link, and how to get it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// No network namespace can be made.
    #[error(
        "no network namespace can be made ({0}): it takes CAP_SYS_ADMIN; run as root, or prefix the command with \
         `unshare --user --map-root-user --net`, or start the container with --privileged"
    )]
    Namespaces(String),
    /// There is no TUN driver.
    #[error(
        "there is no /dev/net/tun ({0}): load the kernel's module with `modprobe tun`, or start the container with \
         --device /dev/net/tun"
    )]
    Tun(String),
    /// Namespaces can be made, but nothing in them.
    #[error(
        "no network device can be made ({0}): it takes CAP_NET_ADMIN and access to /dev/net/tun; run as root, or start \
         the container with --cap-add NET_ADMIN --device /dev/net/tun"
    )]
    Devices(String),
}

impl Error {
    fn system(what: impl Display, reason: io::Error) -> Error {
        Error::System { what: what.to_string(), reason }
    }
}

/// Tests whether a link can be made here, by making one and dropping it.
///
/// # Errors
/// [`Error::Missing`] where the machine cannot have one; any other error means that the link itself does not work.
pub fn available() -> Result<(), Error> {
    Network::start(Plan { wifi: Profile::CLEAN, lte: Profile::CLEAN, seed: 0 }).map(drop)
}
