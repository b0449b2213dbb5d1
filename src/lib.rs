//! BIMip over QUIC: a 1:1 messaging and presence server for mobile networks, and the device's side of it.
//!
//! Floors, from the ground up; a module uses only floors below its own (`tests/tidy.rs` holds it):
//! [`wire`], then `store`, `auth` and `observe`, then `hub`, `session`, `transport` and [`client`], `server`, `cli`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "server")]
pub mod store;

#[cfg(feature = "client")]
pub mod client;

pub mod limits;
pub mod wire;
