//! Shared by the tests of the running server: a server in this process, and a client that can misbehave.
//!
//! Nothing here sleeps or measures time. A test waits for events, and [`within_bound`] ends a wait that would never end. To
//! show that nothing else was sent, a test sends one more request and checks that its answer is the next frame.

// Each test binary uses its own part of this.
#![allow(dead_code, unused_imports, unreachable_pub)]

mod body;
mod bystanders;
mod dice;
#[cfg(all(target_os = "linux", feature = "link"))]
mod emulated;
mod link;
#[cfg(feature = "cli")]
mod process;
mod quic;
mod raw;
mod road;
mod server;
#[path = "../../src/skip.rs"]
mod skip;
mod tcp;

pub use body::{Body, Got, text_of};
pub use bystanders::Bystanders;
pub use dice::Dice;
#[cfg(all(target_os = "linux", feature = "link"))]
pub use emulated::link_is_possible;
pub use link::{Link, Transport, client_tls};
#[cfg(feature = "cli")]
pub use process::{Process, program};
pub use quic::{QuicLink, client_endpoint, half_open};
pub use raw::{Raw, identity, length_prefix};
pub use road::Road;
pub use server::{Door, SignIn, TestServer, metric, scratch, sign};
pub(crate) use skip::{skip, skip_outside_ci};
pub use tcp::TcpLink;

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Timeout of every wait: far longer than any event takes, also on a slow machine.
const BOUND: Duration = Duration::from_secs(20);

/// Awaits an event. Panics with `what` after `BOUND`.
pub async fn within_bound<T>(what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(BOUND, event).await {
        Ok(result) => result,
        Err(_) => panic!("waited {BOUND:?} for {what}"),
    }
}

/// Unix milliseconds.
pub fn now_ms() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(unix.as_millis()).expect("the clock is before the year 292 million")
}

/// Unix seconds.
pub fn now_s() -> i64 {
    now_ms() / 1000
}
