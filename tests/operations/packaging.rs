//! The packages: the systemd unit and the container image use only commands and options that exist.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use crate::common::{scratch, skip};

const BIMIP: &str = env!("CARGO_BIN_EXE_bimip");
const INSTALLED: &str = "/usr/local/bin/bimip";

fn text(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// Whether the program knows the command with its options. Does not run the command.
fn is_known(arguments: &[&str]) -> bool {
    // An unknown option is an error even with --help.
    Command::new(BIMIP).env_clear().args(arguments).arg("--help").output().unwrap().status.success()
}

#[test]
fn the_unit_asks_for_what_there_is() {
    assert!(is_known(&["reload", "--config", "x"]) && !is_known(&["reload", "--confg", "x"]) && !is_known(&["relod"]));
    let unit = text("packaging/systemd/bimip.service");
    let commands: Vec<_> = unit.lines().filter(|line| line.starts_with("Exec")).collect();
    assert_eq!(commands.len(), 3, "{unit}");
    for line in commands {
        let arguments = line.split_once(INSTALLED).unwrap().1.split_whitespace().collect::<Vec<_>>();
        assert!(is_known(&arguments), "{line}");
    }
}

#[test]
fn a_server_that_cannot_start_is_tried_for_ten_minutes_and_then_left() {
    let unit = text("packaging/systemd/bimip.service");
    let seconds = |key: &str| -> u32 {
        let value = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.unwrap().parse().unwrap()
    };
    // Shortest time until the unit gives up: each attempt fails at once.
    let tried = seconds("RestartSec") * seconds("StartLimitBurst");
    assert!(tried >= 600, "{tried} s");
    assert!(seconds("StartLimitIntervalSec") >= 2 * tried, "tries that take a moment do come to their end");
    assert!(seconds("RestartSec") <= 2, "the first comes soon");
}

#[test]
fn systemd_takes_the_unit_as_it_is() {
    let folder = scratch();
    let unit = folder.path().join("bimip.service");
    // systemd-analyze wants the program to exist at the unit's path, and it is not installed here.
    fs::write(&unit, text("packaging/systemd/bimip.service").replace(INSTALLED, BIMIP)).unwrap();
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output();
    let output = match verify {
        // A container has no systemd.
        Err(error) if error.kind() == ErrorKind::NotFound => return skip("there is no systemd-analyze"),
        verified => verified.unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let about_it: Vec<_> = said.lines().filter(|line| line.contains("bimip")).collect();
    assert!(about_it.is_empty() && output.status.success(), "{said}");
}

#[test]
fn the_image_asks_for_what_there_is() {
    let image = text("Dockerfile");
    let health = image.lines().find_map(|line| line.split_once("CMD [\"bimip\", ")).unwrap().1;
    let default = image.lines().find_map(|line| line.strip_prefix("CMD [")).unwrap();
    for list in [health, default] {
        let arguments: Vec<_> = list.trim_end_matches(']').split(", ").map(|word| word.trim_matches('"')).collect();
        assert!(is_known(&arguments), "{list}");
    }
    // Everything that the build needs must be allowed by .dockerignore.
    let (ignored, manifest) = (text(".dockerignore"), text("Cargo.toml"));
    for needed in ["Cargo.toml", "Cargo.lock", "build.rs", "src", "proto", "benches", "README.md"] {
        assert!(ignored.lines().any(|line| line == format!("!{needed}")), "{needed}");
    }
    assert!(ignored.lines().any(|line| line == "*") && manifest.contains("readme = \"README.md\""));
}
