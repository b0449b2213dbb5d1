//! What an operator looks at, proved: rules by `promtool`, dashboards query by query against a real Prometheus that
//! scrapes the real server under load, the status page in a real browser.
//!
//! Needs Debian's `prometheus` and `chromium`; where they are missing these tests fail and say so.
//! `cargo test --test grafana -- --ignored` writes what is made: `grafana/dashboards`, and `grafana/preview` from a run
//! over the emulated network.
#![cfg(all(feature = "server", feature = "client"))]
#![allow(clippy::unwrap_used, unreachable_pub)]

mod browser;
#[path = "../common/mod.rs"]
mod common;
mod dashboards;
mod documents;
#[cfg(all(target_os = "linux", feature = "link"))]
mod plot;
#[cfg(all(target_os = "linux", feature = "link"))]
mod preview;
mod prometheus;
mod queries;
mod rules;
mod status_page;
mod traffic;
