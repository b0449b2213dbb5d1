//! The families' tests once more, over TLS on TCP (protocol.md §1): the same files, and tests of what only TCP has.
//!
//! `Transport::HERE` in `tests/common/link.rs` recognizes this program by its name. Only over QUIC run, besides single tests
//! that say so: `tests/client` and `tests/families_client.rs`, which test the client library; and `tests/kill.rs`, which
//! tests the store.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]
// Each family declares the module `common` itself, because it is also a program of its own.
#![allow(clippy::duplicate_mod)]

#[path = "../common/mod.rs"]
mod common;

mod alone;
#[path = "../chat/main.rs"]
mod chat;
#[path = "../contacts.rs"]
mod contacts;
#[path = "../drain.rs"]
mod drain;
#[path = "../limits.rs"]
mod limits;
#[path = "../logout.rs"]
mod logout;
#[path = "../pings.rs"]
mod pings;
#[path = "../presence/main.rs"]
mod presence;
#[path = "../refusals/main.rs"]
mod refusals;
#[path = "../relayed_pings.rs"]
mod relayed_pings;
#[path = "../revocation.rs"]
mod revocation;
#[path = "../sign_in.rs"]
mod sign_in;
#[path = "../spoofing.rs"]
mod spoofing;
