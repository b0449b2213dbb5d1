//! Loads pages in headless Chromium.

use std::path::Path;
use std::process::{Command, Output};

use crate::common::scratch;
use crate::prometheus::missing;

/// The program's name on Debian.
pub const PROGRAM: &str = "chromium";

/// The page's HTML after it has loaded.
pub fn document(url: &str) -> String {
    let output = run(Command::new(PROGRAM), url, &["--dump-dom"]);
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a screenshot of the page in a window of this size (width and height in pixels).
pub fn screenshot(url: &str, size: (u32, u32), into: &Path) {
    screenshot_with(Command::new(PROGRAM), url, size, into);
}

/// As [`screenshot`], by a command that runs [`PROGRAM`] elsewhere, such as in a network namespace.
pub fn screenshot_with(program: Command, url: &str, (width, height): (u32, u32), into: &Path) {
    let _ = std::fs::remove_file(into);
    run(program, url, &[&format!("--window-size={width},{height}"), &format!("--screenshot={}", into.display())]);
    let picture = std::fs::read(into).expect("Chromium writes the picture");
    assert!(picture.starts_with(b"\x89PNG"), "a picture");
    // The first chunk of a PNG begins with its size.
    let number = |at: usize| u32::from_be_bytes(picture[at..at + 4].try_into().unwrap());
    assert_eq!((number(16), number(20)), (width, height));
}

fn run(mut program: Command, url: &str, arguments: &[&str]) -> Output {
    let profile = scratch();
    let output = program
        // It shows only our own page, and its sandbox does not work for root.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"])
        .args(["--disable-background-networking", "--no-first-run"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(arguments)
        .arg(url)
        .output()
        .unwrap_or_else(|reason| panic!("{}", missing(PROGRAM, &reason)));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}
