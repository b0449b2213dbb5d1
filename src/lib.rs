//! BIMip over QUIC: a 1:1 messaging and presence server for mobile networks, and the device's side of it.
//!
//! Floors, from the ground up; a module uses only floors below its own (`tests/tidy.rs` holds it):
//! [`wire`] and `congestion`, then `store`, `auth`, `observe` and `link`, then `hub`, `session`, `transport` and [`client`], `server`, `cli`.
//!
//! "Profile N" in comments is a part of the design that docs/protocol.md now holds, in these sections: 1 in 3 and
//! 17, 2 in 1, 2 and 14, 3 in 4, 5 and (0-RTT) 1, 4 in 6, 5 in 12, 6 in 11 and 13, 7 in 7 and 8, 8 in 9 and 10, 9 in 15
//! and 16; 10 is what README.md promises. Plain numbers, as in 5.9.1, are the BIMip-Foundation specification's.
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "server")]
pub mod auth;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "server")]
pub mod clock;
#[cfg(feature = "config")]
pub mod config;
#[cfg(feature = "server")]
pub mod hub;
#[cfg(feature = "server")]
pub mod observe;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod session;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod transport;

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "link")]
#[cfg(target_os = "linux")]
pub mod link;

#[cfg(any(feature = "client", feature = "server"))]
mod congestion;
pub mod limits;
#[cfg(feature = "server")]
#[cfg(test)]
mod planted;
#[cfg(any(feature = "link", feature = "cli"))]
mod random;
#[cfg(feature = "server")]
#[cfg(test)]
mod simulation;
pub mod wire;
