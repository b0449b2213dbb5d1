//! Refusals have the right error or close code and do not affect others (protocol.md §1 to §5, §7, §14, §15).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod domains;
mod framing;
mod lanes;
mod payloads;
mod requests;
mod tokens;
