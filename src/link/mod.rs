//! An emulated mobile network in user space, for experiments and tests: a phone with two paths, a server, and between
//! them delay, loss, narrow lines, black-outs, NATs and handovers. Linux only, feature `link`.
//!
//! Phone and server are network namespaces in this process. Each path is a TUN device in the phone's; the server has
//! one. A thread reads IP packets from one side and writes them to the other when, and if, they arrive. Kernel TCP and
//! QUIC cross it unchanged and are treated alike: it looks at addresses and ports only.
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
//! What it does not do: IPv6, ICMP, fragments (counted as [`Counters::not_carried`]); a change of network is not told
//! to the phone's sockets, which Android for one does to TCP's: whoever compares tells both sides alike.

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

/// Why there is no link, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This machine, or who runs this, cannot have one.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A profile that cannot be; it says why.
    #[error("there can be no such path: {0}")]
    Profile(&'static str),
    /// The system refused something that it should not have.
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
    /// Another handover began before this one's path worked.
    #[error("another handover began before this one was over")]
    HandedOverAgain,
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
    /// The TUN driver does not let us.
    #[error(
        "no TUN device can be made ({0}): it takes CAP_NET_ADMIN and access to /dev/net/tun; run as root, or start the \
         container with --cap-add NET_ADMIN --device /dev/net/tun"
    )]
    TunDenied(String),
}

impl Error {
    fn system(what: impl Display, reason: io::Error) -> Error {
        Error::System { what: what.to_string(), reason }
    }
}

/// Whether a link is possible here: makes a namespace with a device in it, and lets them go.
///
/// # Errors
/// What is missing, and how to get it.
pub fn available() -> Result<(), Missing> {
    match Namespace::new().and_then(|namespace| device::Device::new(&namespace, "probe")) {
        Ok(_) => Ok(()),
        Err(Error::Missing(missing)) => Err(missing),
        Err(error) => Err(Missing::Namespaces(error.to_string())),
    }
}
