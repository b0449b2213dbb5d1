//! Compares embedded storage engines on the work of a messaging log.
//!
//! Every message is one dedup lookup and four puts; a group of messages is one durable commit. Each engine runs in its own
//! processes. Run it with `cargo run --release` in this folder: it takes some minutes per engine, with `--quick` some
//! seconds.

mod crash;
mod engine;
mod measure;
mod process;
mod report;
mod workload;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use engine::Kind;
use measure::{Load, Sizes, ms};
use report::{Latency, Report, Row};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The server's allocator. It affects the engines in Rust; those in C and C++ keep their own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about)]
struct Args {
    /// Engines to compare; by default all that were compiled in
    #[arg(long, value_delimiter = ',')]
    engines: Vec<Kind>,
    /// Folder for the stores, on the disk to be measured; emptied for each engine
    #[arg(long, default_value = "target/stores")]
    dir: PathBuf,
    /// Messages in the store before the small groups and the reads
    #[arg(long, default_value_t = 500_000)]
    fill: u64,
    /// Messages in the store at the end
    #[arg(long, default_value_t = 2_000_000)]
    large: u64,
    /// How often a loading process is killed
    #[arg(long, default_value_t = 10)]
    kills: u32,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Run everything at a tenth of the size
    #[arg(long)]
    quick: bool,
    /// Also write the figures to this file
    #[arg(long)]
    json: Option<PathBuf>,

    /// Run one phase on one engine in this process
    #[arg(long, hide = true)]
    phase: Option<Phase>,
    #[arg(long, hide = true, default_value_t = 0)]
    skip: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Phase {
    Load,
    Reopen,
    Crash,
    Torn,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.engines.is_empty() {
        args.engines = Kind::value_variants().to_vec();
    }
    match args.phase {
        None => compare(&args),
        Some(phase) => run_phase(phase, args.engines[0], &args),
    }
}

fn compare(args: &Args) -> Result<()> {
    std::fs::create_dir_all(&args.dir)?;
    let syncs = if args.quick { 200 } else { 2_000 };
    let mut report = Report {
        seed: args.seed,
        fdatasync_append: Latency::of(process::fdatasync_us(&args.dir, syncs, true)?),
        fdatasync_overwrite: Latency::of(process::fdatasync_us(&args.dir, syncs, false)?),
        engines: Vec::new(),
    };
    for &kind in &args.engines {
        eprintln!("{kind:?} …");
        report.engines.push(row(kind, args)?);
        // Write after each engine, so that a failure of the next one loses nothing.
        if let Some(json) = &args.json {
            std::fs::write(json, serde_json::to_vec_pretty(&report)?)?;
        }
    }
    println!("{}", report.markdown());
    Ok(())
}

fn row(kind: Kind, args: &Args) -> Result<Row> {
    let dir = args.dir.join(format!("{kind:?}").to_lowercase());
    empty(&dir)?;
    let mut command = crash::phase(kind, &dir.join("load"), args.seed);
    let (fill, large) = (args.fill.to_string(), args.large.to_string());
    command.args(["--phase", "load", "--fill", &fill, "--large", &large]);
    if args.quick {
        command.arg("--quick");
    }
    let load_before = process::load_average()?;
    let load: Load = crash::report_of(command)?;
    let load_average = [load_before, process::load_average()?];
    let mut row = Row {
        engine: kind,
        load_average,
        load,
        killed_open_ms: 0.0,
        reopen_ms: 0.0,
        crash: None,
        torn: Vec::new(),
    };
    if kind != Kind::None {
        for open_ms in [&mut row.killed_open_ms, &mut row.reopen_ms] {
            let mut command = crash::phase(kind, &dir.join("load"), args.seed);
            command.args(["--phase", "reopen"]);
            *open_ms = crash::report_of(command)?;
        }
        let kills = if args.quick { 3 } else { args.kills };
        row.crash = Some(crash::rounds(kind, &dir.join("crash"), args.seed, kills)?);
        row.torn = crash::torn_tail(kind, &dir.join("torn"), args.seed)?;
    }
    empty(&dir)?;
    Ok(row)
}

fn run_phase(phase: Phase, kind: Kind, args: &Args) -> Result<()> {
    match phase {
        Phase::Load => {
            let (report, engine) = measure::load(kind, &args.dir, args.seed, sizes(args))?;
            println!("{}", serde_json::to_string(&report)?);
            // So that the next open is one after a crash, with whatever the journal holds.
            std::mem::forget(engine);
            crash::die()
        }
        Phase::Reopen => {
            let start = Instant::now();
            let engine = kind.open(&args.dir)?;
            println!("{}", ms(start.elapsed()));
            drop(engine);
            Ok(())
        }
        Phase::Crash => crash::load_until_killed(kind, &args.dir, args.seed, args.skip),
        Phase::Torn => crash::write_and_die(kind, &args.dir, args.seed),
    }
}

fn sizes(args: &Args) -> Sizes {
    let part = if args.quick { 10 } else { 1 };
    Sizes {
        fill: args.fill / part,
        large: args.large / part,
        groups: [(100, 3_000 / part), (10, 20_000 / part), (1, 20_000 / part)],
        small_reads: (500 / part) as usize,
        point_gets: (200_000 / part) as usize,
    }
}

fn empty(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
