//! What an operator does with a running server.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod backup;
mod control;
mod descriptors;
mod doctor;
mod keys;
mod log;
mod packaging;
mod reload;
mod retention;
mod start;
