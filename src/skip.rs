//! Tests that cannot run on this machine: tells of them, because the test runner counts them as passed. The integration tests
//! use it as well (`tests/common/mod.rs`).

use std::fmt::Display;
use std::io::{Write, stderr};

/// Writes `SKIPPED`, the test's name and the reason to standard error, past the test runner's capture. For what the machine
/// that runs the gate may lack, too.
pub(crate) fn skip(why: impl Display) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {why}\n", thread.name().unwrap_or("a test"));
    stderr().write_all(line.as_bytes()).expect("standard error takes a line");
}

/// The same for what only a developer's machine may lack.
///
/// # Panics
/// Where `CI` is set, as by `.ci/run`: there the test has to run.
pub(crate) fn skip_outside_ci(why: impl Display) {
    assert!(std::env::var_os("CI").is_none(), "CI runs this test, and it cannot run here: {why}");
    skip(why);
}
