//! Whether this machine can run tests that need the emulated network.

use std::io::{Write, stderr};

/// Whether network namespaces and their devices can be made here. If not, writes `SKIPPED`, the test's name and what is
/// missing to standard error. The line bypasses the test runner's capture, because the runner counts a skipped test as
/// passed.
pub fn link_is_possible() -> bool {
    let Err(missing) = bimip::link::available() else { return true };
    assert!(std::env::var_os("CI").is_none(), "CI runs every test, and this one cannot run here: {missing}");
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {missing}\n", thread.name().unwrap_or("a test"));
    stderr().write_all(line.as_bytes()).expect("standard error takes a line");
    false
}
