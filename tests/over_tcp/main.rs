//! The tests of the families once more, over TLS on TCP (issue 5, profile 2): the same files, and what only TCP has.
//!
//! `Transport::HERE` in `tests/common/link.rs` knows this program by its name. Of QUIC alone are, besides single tests
//! that say so: `tests/client` and `tests/families_client.rs`, whose subject is the client library; `tests/kill.rs`, whose
//! subject is the store.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]
// Each family brings the common part, as it does where it is a program of its own.
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
