//! What the operating system says about this process and its disk.

use std::path::Path;

use super::Metrics;

impl Metrics {
    /// Reads the process's current figures; does nothing if the system does not provide them as Linux does.
    pub fn read_process(&self) {
        if let Some(stat) = read("/proc/self/stat").as_deref().and_then(Stat::parse) {
            self.process_cpu.set(stat.cpu_seconds);
            self.process_threads.set(stat.threads);
            self.process_resident.set(stat.resident_bytes);
            // Once for a process: the time of the boot follows each step of the clock.
            if self.process_start.get().is_none() {
                let booted = read("/proc/stat").as_deref().and_then(|text| number_after(text, "btime "));
                if let Some(booted) = booted {
                    self.process_start.set(booted + stat.started_after_seconds);
                }
            }
        }
        if let Some(open) = open_descriptors() {
            self.process_fds.set(open as f64);
        }
        if let Some(max) = read("/proc/self/limits").as_deref().and_then(|text| number_after(text, "Max open files")) {
            self.process_fds_max.set(max);
        }
    }

    /// Reads the size of a folder's file system, and how much of it this process may still use.
    pub fn read_disk(&self, folder: &Path) {
        let Ok(figures) = rustix::fs::statvfs(folder) else { return };
        let block = figures.f_frsize as f64;
        self.disk_free.set(figures.f_bavail as f64 * block);
        self.disk_size.set(figures.f_blocks as f64 * block);
    }
}

fn open_descriptors() -> Option<usize> {
    const FOLDER: &str = "/proc/self/fd";
    // Linux says the number as the folder's size since 6.2. To count a hundred thousand takes tenths of a second.
    match std::fs::metadata(FOLDER).ok()?.len() {
        // One of them is open for reading the folder.
        0 => Some(std::fs::read_dir(FOLDER).ok()?.count().saturating_sub(1)),
        known => usize::try_from(known).ok(),
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The first number after a text.
fn number_after(text: &str, what: &str) -> Option<f64> {
    let (_, rest) = text.split_once(what)?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Ticks per second in /proc: fixed for programs, whatever the kernel counts in.
const TICKS: f64 = 100.0;

/// Fields of /proc/self/stat.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    threads: f64,
    started_after_seconds: f64,
    resident_bytes: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The second field is the program's name in parentheses, and may hold anything.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<f64> = rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
        // Numbered as in proc(5), where the state is field 3.
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Stat {
            cpu_seconds: (field(14)? + field(15)?) / TICKS,
            threads: field(20)?,
            started_after_seconds: field(22)? / TICKS,
            resident_bytes: field(24)? * page_bytes(),
        })
    }
}

fn page_bytes() -> f64 {
    rustix::param::page_size() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_read_whatever_the_program_is_called() {
        let text = "12 (a ) b) S 1 1 1 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 7 0 123400 5000 10 18446744073709551615";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.cpu_seconds, stat.threads, stat.started_after_seconds), (3.0, 7.0, 1234.0));
        assert_eq!(stat.resident_bytes, 10.0 * page_bytes());
        assert_eq!(Stat::parse("12 (short) S 1"), None);
        assert_eq!(
            number_after("x\nMax open files            1024                 4096", "Max open files"),
            Some(1024.0)
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_figures() {
        let metrics = Metrics::new();
        metrics.read_process();
        metrics.read_disk(Path::new("/"));
        let started = metrics.process_start.get().unwrap();
        assert!(started > 1.6e9 && metrics.process_resident.get().unwrap() > 1e6);
        assert!(metrics.process_fds.get().unwrap() >= 3.0);
        assert!(metrics.process_fds_max.get().unwrap() >= metrics.process_fds.get().unwrap());
        assert!(metrics.disk_size.get().unwrap() >= metrics.disk_free.get().unwrap());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_step_of_the_clock_is_no_other_start() {
        let metrics = Metrics::new();
        metrics.read_process();
        // As if the clock had been an hour behind at the first reading.
        let started = metrics.process_start.get().unwrap() - 3600.0;
        metrics.process_start.set(started);
        metrics.read_process();
        assert_eq!(metrics.process_start.get(), Some(started));
    }
}
