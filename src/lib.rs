//! BIMip over QUIC: a 1:1 messaging and presence server for mobile networks, and the device's side of it.
//!
//! Floors, from the ground up; a module uses only floors below its own (`tests/tidy.rs` checks it): [`wire`], `congestion` and
//! `random`, then `store`, `auth`, `observe` and `link`, then `hub`, `session`, `transport` and [`client`], `server`, `cli`.
//!
//! Comments cite docs/protocol.md by section, as in "protocol.md §7", and the BIMip-Foundation specification by its own
//! numbers, as in "BIMip-Foundation 5.9.1" (then only "5.9.1" in the rest of the file).
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
#[cfg(any(feature = "client", feature = "link", feature = "cli", test))]
mod random;
#[cfg(feature = "server")]
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod skip;
pub mod wire;
