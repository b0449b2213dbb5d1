//! The disk alone: appends of one block, each synced before the next. What one costs is a floor for every durable message.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Long enough for hundreds of writes on any disk that suits a server.
const FOR: Duration = Duration::from_secs(2);

/// What the disk takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct SyncedWrites {
    /// How many fit into a second, one after the other.
    pub(super) per_second: f64,
    /// CPU time of each in microseconds, all of it the kernel's.
    pub(super) cpu_us: f64,
}

/// Appends 4 KiB to a file in `folder` again and again, each time followed by `fdatasync`.
pub(super) fn synced_writes(folder: &Path) -> anyhow::Result<SyncedWrites> {
    let path = folder.join("disk");
    let mut file = File::create(&path)?;
    let (block, began, cpu_before, mut writes) = ([7; 4096], Instant::now(), cpu_seconds(), 0u32);
    while began.elapsed() < FOR {
        file.write_all(&block)?;
        file.sync_data()?;
        writes += 1;
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu_before);
    std::fs::remove_file(path)?;
    let writes = f64::from(writes);
    Ok(SyncedWrites { per_second: writes / seconds, cpu_us: cpu * 1e6 / writes })
}

/// CPU time that this thread has used.
fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}
