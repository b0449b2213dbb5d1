//! The main job: a text goes out on one device and comes in on another, durably and in order (issue 2, profile 7, 8).
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
