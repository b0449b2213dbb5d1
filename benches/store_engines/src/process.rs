//! What the operating system knows about this process and its files.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// User and system time of all threads of this process. Other processes do not affect it.
pub fn cpu() -> Duration {
    // SAFETY: getrusage fills the struct it is given; all zeroes is a valid value of it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let time = |t: libc::timeval| {
        Duration::new(t.tv_sec as u64, 0) + Duration::from_micros(t.tv_usec as u64)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Waits until background threads are idle, so that their work is counted in the phase that caused it.
pub fn wait_for_idle() {
    const SAMPLE: Duration = Duration::from_millis(250);
    const BOUND: Duration = Duration::from_secs(120);
    let start = Instant::now();
    let mut quiet = 0;
    while quiet < 3 && start.elapsed() < BOUND {
        let before = cpu();
        std::thread::sleep(SAMPLE);
        quiet = if cpu() - before < SAMPLE / 50 {
            quiet + 1
        } else {
            0
        };
    }
}

/// The machine's load average over the last minute: how busy it was during a measurement.
pub fn load_average() -> Result<f64> {
    let loads = std::fs::read_to_string("/proc/loadavg")?;
    Ok(loads
        .split_whitespace()
        .next()
        .context("no load average")?
        .parse()?)
}

/// Present resident memory in bytes.
pub fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find(|l| l.starts_with("VmRSS:"))
        .context("no VmRSS")?;
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .context("no figure")?
        .parse()?;
    Ok(kib << 10)
}

/// Bytes that the files under `dir` occupy on disk, without holes.
pub fn disk_size(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for file in files(dir)? {
        bytes += file.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

/// Asks the kernel to drop the cached pages of the files under `dir` only.
pub fn drop_page_cache(dir: &Path) -> Result<()> {
    for file in files(dir)? {
        let file = File::open(file)?;
        file.sync_all()?;
        // SAFETY: a plain system call on a descriptor that is open.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
    Ok(())
}

pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(self::files(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// Microseconds of each of `count` writes of 4 KiB with fdatasync, which append to the file or overwrite its content.
pub fn fdatasync_us(dir: &Path, count: usize, append: bool) -> Result<Vec<u64>> {
    const BLOCK: usize = 4096;
    let path = dir.join("fdatasync.tmp");
    let mut file = File::create(&path)?;
    if !append {
        file.write_all(&vec![1; BLOCK * count])?;
        file.sync_all()?;
        file.seek(SeekFrom::Start(0))?;
    }
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let start = Instant::now();
        file.write_all(&[n as u8; BLOCK])?;
        file.sync_data()?;
        times.push(start.elapsed().as_micros() as u64);
    }
    std::fs::remove_file(path)?;
    Ok(times)
}
