//! Checks the machine: UDP socket buffers, limit of open files, clock.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::finding::{Finding, of_folder};
use crate::cli::limits::{FILES_FAIL, FILES_WARN};
use crate::cli::udp;
use crate::config::Config;
use crate::limits::UDP_BUFFER_BYTES;

const BUFFERS: &str = "udp buffers";
const FILES: &str = "open files";
const CLOCK: &str = "clock";

/// Leaves out what this system does not report. `server` is the process id of a running server.
pub(super) fn all(config: &Config, server: Option<u32>) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse().ok();
    let mut findings = Vec::new();
    for (name, path) in [("rmem_max", "/proc/sys/net/core/rmem_max"), ("wmem_max", "/proc/sys/net/core/wmem_max")] {
        findings.extend(number(path).map(|bytes| buffer(name, bytes)));
    }
    findings.extend(udp::dropped().map(drops));
    let (whose, limits, of) = match server {
        Some(process) => ("the running server", format!("/proc/{process}/limits"), Limit::Soft),
        // A server raises its soft limit to the hard limit.
        None => ("a server from this shell, not from systemd", "/proc/self/limits".to_owned(), Limit::Hard),
    };
    let limit = read(&limits).as_deref().and_then(|limits| open_files(limits, of));
    findings.extend(limit.map(|limit| files(limit, whose, config)));
    findings
}

fn buffer(name: &str, bytes: u64) -> Finding {
    let found = format!("net.core.{name} is {bytes}");
    if bytes >= UDP_BUFFER_BYTES as u64 {
        return Finding::ok(BUFFERS, found);
    }
    let advice = format!("a burst of many devices does not fit: sysctl -w net.core.{name}={UDP_BUFFER_BYTES}");
    Finding::warn(BUFFERS, found, advice)
}

fn drops(count: u64) -> Finding {
    match count {
        0 => Finding::ok(BUFFERS, "no datagram was dropped because of a full buffer"),
        count => Finding::warn(
            BUFFERS,
            format!("{count} datagrams of all programs were dropped because of full buffers since the machine started"),
            "if it grows while the server runs: larger buffers (above), or more CPU",
        ),
    }
}

/// One of a process's two limits.
#[derive(Clone, Copy)]
enum Limit {
    /// The limit in effect.
    Soft,
    /// The limit up to which the process may raise it.
    Hard,
}

/// `None` if there is no limit or it is not known.
fn open_files(limits: &str, of: Limit) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut both = line.split_whitespace();
    let limit = match of {
        Limit::Soft => both.next(),
        Limit::Hard => both.nth(1),
    };
    limit?.parse().ok()
}

fn files(limit: u64, whose: &str, config: &Config) -> Finding {
    let found = format!("{limit} for {whose}");
    let advice = "each device over TCP takes one: LimitNOFILE=131072 in the unit, or ulimit -n";
    match limit {
        limit if limit < FILES_FAIL => Finding::fail(FILES, found, advice),
        limit if limit < FILES_WARN && config.tcp.enabled => Finding::warn(FILES, found, advice),
        _ => Finding::ok(FILES, found),
    }
}

/// Checks the clock, which decides whether tokens and certificates are valid.
pub(super) fn clock(config: &Config) -> Finding {
    let store = config.data_dir.join("store");
    let look = {
        let store = store.clone();
        move || newest(&store)
    };
    match of_folder(CLOCK, "when it was written", &store, look) {
        Ok(newest) => right(SystemTime::now(), newest, synchronized()),
        Err(hangs) => hangs,
    }
}

fn right(now: SystemTime, newest: Option<SystemTime>, synchronized: Option<bool>) -> Finding {
    let ahead = newest.and_then(|newest| newest.duration_since(now).ok()).filter(|by| *by > Duration::from_secs(1));
    match (ahead, synchronized) {
        (Some(by), _) => Finding::fail(
            CLOCK,
            format!("the store was written {} s in the future", by.as_secs()),
            "the clock has gone back: set it before the server starts, or tokens and ids will be wrong",
        ),
        (None, Some(false)) => Finding::warn(
            CLOCK,
            "the kernel says that nothing keeps it right",
            "run chrony or systemd-timesyncd: tokens forgive 30 s",
        ),
        (None, Some(true)) => Finding::ok(CLOCK, "kept right from outside"),
        (None, None) => Finding::ok(CLOCK, "not before what the store holds"),
    }
}

/// When the store was last written.
fn newest(store: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(store).ok()?;
    entries.filter_map(|entry| entry.ok()?.metadata().ok()?.modified().ok()).max()
}

/// Whether something keeps the kernel's clock synchronized; `None` if this system does not report it.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn synchronized() -> Option<bool> {
    let mut timex = std::mem::MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: all zeroes is a request that changes nothing, and the kernel writes no more than the structure.
    match unsafe { libc::adjtimex(timex.as_mut_ptr()) } {
        -1 => None,
        state => Some(state != libc::TIME_ERROR),
    }
}

#[cfg(not(target_os = "linux"))]
fn synchronized() -> Option<bool> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Grade;

    #[test]
    fn what_the_kernel_says_is_read() {
        let limits = "Limit       Soft Limit Hard Limit Units\nMax open files       1024      524288     files\n";
        assert_eq!([Limit::Soft, Limit::Hard].map(|of| open_files(limits, of)), [Some(1024), Some(524_288)]);
        assert_eq!(open_files("Max open files  unlimited unlimited files", Limit::Soft), None);
    }

    #[test]
    fn too_little_is_told_with_what_to_do() {
        assert_eq!(buffer("rmem_max", UDP_BUFFER_BYTES as u64).grade, Grade::Ok);
        let small = buffer("rmem_max", 212_992);
        assert_eq!(small.grade, Grade::Warn);
        assert!(small.advice.unwrap().contains("sysctl -w net.core.rmem_max="));
        assert_eq!((drops(0).grade, drops(1).grade), (Grade::Ok, Grade::Warn));
        let mut config = Config::default();
        let grade = |limit, config: &Config| files(limit, "nobody", config).grade;
        assert_eq!([256, 1024, 131_072].map(|limit| grade(limit, &config)), [Grade::Fail, Grade::Warn, Grade::Ok]);
        config.tcp.enabled = false;
        assert_eq!(grade(1024, &config), Grade::Ok, "QUIC needs one");
    }

    #[test]
    fn a_clock_that_went_back_is_told() {
        let now = SystemTime::now();
        let later = Some(now + Duration::from_secs(60));
        assert_eq!(right(now, later, Some(true)).grade, Grade::Fail);
        assert_eq!(right(now, Some(now), Some(false)).grade, Grade::Warn);
        assert_eq!(right(now, None, Some(true)).grade, Grade::Ok);
        assert_eq!(right(now, None, None).grade, Grade::Ok);
    }
}
