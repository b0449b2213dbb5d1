//! Headless Chromium: what it makes of a page.

use std::path::Path;
use std::process::{Command, Output};

use crate::common::scratch;
use crate::prometheus::missing;

/// As Debian calls it.
pub const PROGRAM: &str = "chromium";

/// The page as it stands once it is loaded, as HTML.
pub fn document(url: &str) -> String {
    let output = run(Command::new(PROGRAM), url, &["--dump-dom"]);
    String::from_utf8(output.stdout).unwrap()
}

/// A picture of the page in a window of this size.
pub fn screenshot(url: &str, size: (u32, u32), into: &Path) {
    screenshot_with(Command::new(PROGRAM), url, size, into);
}

/// The same, by a command that runs [`PROGRAM`] in some place of its own.
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
        // What it shows is our own page, and root may not have its sandbox.
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
