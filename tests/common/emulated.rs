//! Whether a test can have an emulated network.

use std::io::{Write, stderr};

/// Whether there can be one here. Where not, standard error says what is missing, past the test runner's capture: a test
/// that was skipped is not one that passed.
pub fn link_is_possible() -> bool {
    let Err(missing) = bimip::link::available() else { return true };
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {missing}\n", thread.name().unwrap_or("a test"));
    stderr().write_all(line.as_bytes()).expect("standard error takes a line");
    false
}
