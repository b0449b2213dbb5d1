//! What is refused is refused with the right code, and nobody else is harmed (issue 2, profile 2, 3, 7 and 9).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod framing;
mod lanes;
mod payloads;
mod requests;
mod tokens;
