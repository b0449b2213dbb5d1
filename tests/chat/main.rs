//! A text that one device sends reaches another one, durably and in order (protocol.md §7, §9).
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod conversation;
mod copies;
mod history;
mod log;
mod media;
mod receipts;
mod release;
mod repeats;
mod restart;

const ALICE: &str = "alice@localhost";
const BOB: &str = "bob@localhost";
const CAROL: &str = "carol@localhost";
