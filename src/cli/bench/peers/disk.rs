//! The speed of the disk alone: appends of one block, each synced before the next.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Long enough for hundreds of writes on any disk that suits a server.
const FOR: Duration = Duration::from_secs(2);

/// Appends of 4 KiB a second to a file in `folder`, each followed by `fdatasync`.
pub(super) fn synced_writes(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join("disk");
    let mut file = File::create(&path)?;
    let (block, began, mut writes) = ([7; 4096], Instant::now(), 0u32);
    while began.elapsed() < FOR {
        file.write_all(&block)?;
        file.sync_data()?;
        writes += 1;
    }
    let per_second = f64::from(writes) / began.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(per_second)
}
