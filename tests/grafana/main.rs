//! Tests of what an operator looks at: the rules with `promtool`, every query of the dashboards against a real Prometheus
//! that scrapes the real server under load, and the status page in a real browser.
//!
//! These tests need Debian's `prometheus` and `chromium`, and fail where they are missing.
//! `cargo test --test grafana -- --ignored` writes the generated files: `grafana/dashboards`, and `grafana/preview` from a
//! run over the emulated network.
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
