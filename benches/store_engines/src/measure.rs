//! The measured phases. Each runs in a separate process, so that CPU time and memory are those of one engine.

use crate::engine::{Engine, Kind};
use crate::process::{cpu, disk_size, drop_page_cache, resident, wait_for_idle};
use crate::workload::{HEAVY_USER, Space, SplitMix64, USERS, Workload, log_key};
use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};

/// Messages per group in the fills. Their figures are those of this group size.
pub const FILL_GROUP: usize = 1_000;
const RANGE_ENTRIES: usize = 10_000;
const SMALL_READ_ENTRIES: usize = 50;

#[derive(Clone, Copy)]
pub struct Sizes {
    /// Messages of the first fill.
    pub fill: u64,
    /// Messages in the store after the second fill.
    pub large: u64,
    /// Group size and number of groups, committed to the filled store.
    pub groups: [(usize, u64); 3],
    pub small_reads: usize,
    pub point_gets: usize,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Commits {
    pub group: usize,
    pub messages: u64,
    pub commits_per_s: f64,
    pub messages_per_s: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    /// CPU time of all threads in microseconds, until background work has settled.
    pub cpu_us_per_message: f64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reads {
    pub clean_open_ms: f64,
    /// Reads of a log's last 50 entries with their messages, one log after the other, with nothing cached at the start.
    pub small_cold_p50_us: u64,
    pub small_cold_p99_us: u64,
    /// 10,000 consecutive entries with their messages, read for the second time.
    pub range_entries_per_s: f64,
    pub hits_per_s: f64,
    pub misses_per_s: f64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Load {
    /// First the group size [`FILL_GROUP`], then those of [`Sizes::groups`].
    pub commits: Vec<Commits>,
    pub bytes_per_message: f64,
    pub resident_bytes: u64,
    pub reads: Reads,
    /// From [`Sizes::fill`] to [`Sizes::large`].
    pub second_fill: Commits,
    pub large_messages: u64,
    pub large_bytes_per_message: f64,
    pub large_resident_bytes: u64,
}

/// Fills the store, commits small groups, reads, and fills on. Returns the open engine, because the caller kills the process.
pub fn load(kind: Kind, dir: &Path, seed: u64, sizes: Sizes) -> Result<(Load, Box<dyn Engine>)> {
    let small: u64 = sizes
        .groups
        .iter()
        .map(|&(size, count)| size as u64 * count)
        .sum();
    ensure!(
        sizes.fill > 0 && sizes.large >= sizes.fill + small + FILL_GROUP as u64,
        "the second fill starts after {} messages: raise --large",
        sizes.fill + small
    );
    let mut report = Load::default();
    let mut workload = Workload::new(seed);
    let mut engine = kind.open(dir)?;

    let fill = sizes.fill / FILL_GROUP as u64;
    report.commits.push(commits(
        &mut *engine,
        &mut workload,
        FILL_GROUP,
        fill,
        true,
    )?);
    report.bytes_per_message = disk_size(dir)? as f64 / workload.made() as f64;
    report.resident_bytes = resident()?;
    for (size, count) in sizes.groups {
        report
            .commits
            .push(commits(&mut *engine, &mut workload, size, count, false)?);
    }

    if kind != Kind::None {
        drop(engine);
        drop_page_cache(dir)?;
        let start = Instant::now();
        engine = kind.open(dir)?;
        let clean_open_ms = ms(start.elapsed());
        report.reads = Reads {
            clean_open_ms,
            ..reads(&*engine, &workload, seed, sizes)?
        };
    }

    let fill = sizes.large.saturating_sub(workload.made()) / FILL_GROUP as u64;
    report.second_fill = commits(&mut *engine, &mut workload, FILL_GROUP, fill, false)?;
    report.large_messages = workload.made();
    report.large_bytes_per_message = disk_size(dir)? as f64 / workload.made() as f64;
    report.large_resident_bytes = resident()?;
    Ok((report, engine))
}

fn commits(
    engine: &mut dyn Engine,
    workload: &mut Workload,
    size: usize,
    count: u64,
    flush: bool,
) -> Result<Commits> {
    let mut latency = Histogram::<u64>::new(3)?;
    let mut committing = Duration::ZERO;
    let cpu_before = cpu();
    for _ in 0..count {
        let group = workload.group(size);
        let start = Instant::now();
        engine.commit(&group)?;
        let took = start.elapsed();
        committing += took;
        latency.record(took.as_micros() as u64)?;
    }
    if flush {
        engine.flush()?;
    }
    wait_for_idle();
    let messages = count * size as u64;
    Ok(Commits {
        group: size,
        messages,
        commits_per_s: count as f64 / committing.as_secs_f64(),
        messages_per_s: messages as f64 / committing.as_secs_f64(),
        p50_us: latency.value_at_quantile(0.5),
        p99_us: latency.value_at_quantile(0.99),
        max_us: latency.max(),
        cpu_us_per_message: (cpu() - cpu_before).as_micros() as f64 / messages as f64,
    })
}

fn reads(engine: &dyn Engine, workload: &Workload, seed: u64, sizes: Sizes) -> Result<Reads> {
    let mut rng = SplitMix64(seed ^ 1);
    let mut read_bytes = 0;
    let mut count_bytes = |entry: &[u8], message: &[u8]| read_bytes += entry.len() + message.len();

    let mut latency = Histogram::<u64>::new(3)?;
    for _ in 0..sizes.small_reads {
        let user = 1 + rng.below(USERS - 1);
        let from = workload
            .last_sequence(user)
            .saturating_sub(SMALL_READ_ENTRIES as u64 - 1)
            .max(1);
        let start = Instant::now();
        engine.tail(&log_key(user, from), SMALL_READ_ENTRIES, &mut count_bytes)?;
        latency.record(start.elapsed().as_micros() as u64)?;
    }

    let entries = RANGE_ENTRIES.min(workload.last_sequence(HEAVY_USER) as usize);
    let mut range = Duration::ZERO;
    for _ in 0..2 {
        let start = Instant::now();
        let read = engine.tail(&log_key(HEAVY_USER, 1), entries, &mut count_bytes)?;
        range = start.elapsed();
        ensure!(read == entries, "read {read} of {entries} log entries");
    }

    let log_keys: Vec<_> = (0..sizes.point_gets)
        .map(|_| {
            let user = rng.below(USERS);
            log_key(user, 1 + rng.below(workload.last_sequence(user).max(1)))
        })
        .collect();
    let mut value = Vec::new();
    let start = Instant::now();
    let mut found = 0;
    for key in &log_keys {
        found += usize::from(engine.get(Space::Logs, key, &mut value)?);
    }
    let hits = start.elapsed();
    ensure!(
        found + 1 >= log_keys.len(),
        "found {found} of {} log entries",
        log_keys.len()
    );

    let start = Instant::now();
    for _ in 0..sizes.point_gets {
        let mut key = [0; 32];
        key.chunks_mut(8)
            .for_each(|part| part.copy_from_slice(&rng.next().to_be_bytes()));
        ensure!(
            !engine.get(Space::Dedup, &key, &mut value)?,
            "found what was never written"
        );
    }
    let misses = start.elapsed();
    ensure!(read_bytes > 0, "read nothing");

    Ok(Reads {
        clean_open_ms: 0.0,
        small_cold_p50_us: latency.value_at_quantile(0.5),
        small_cold_p99_us: latency.value_at_quantile(0.99),
        range_entries_per_s: entries as f64 / range.as_secs_f64(),
        hits_per_s: sizes.point_gets as f64 / hits.as_secs_f64(),
        misses_per_s: sizes.point_gets as f64 / misses.as_secs_f64(),
    })
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
