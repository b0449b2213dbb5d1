//! What a store still has after its process was killed, and after the end of its journal was damaged.

use crate::engine::{Engine, Kind};
use crate::measure::ms;
use crate::process::files;
use crate::workload::{Message, Put, Space, SplitMix64, Workload};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Messages per commit in the load that is killed.
const GROUP: usize = 10;

/// Commits before the last one in the torn-tail store. So few that no engine has started its journal over, and the last
/// commit is at the journal's end.
const GROUPS_BEFORE_TAIL: u64 = 50;

/// Far larger than a page of the disk, so that a whole page inside the value can be missing.
const TAIL_VALUE_BYTES: usize = 16 << 10;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Crash {
    pub rounds: u32,
    pub messages: u64,
    pub worst_open_ms: f64,
    /// Groups found complete after the last reported one: durable, but the process was killed before it reported them.
    pub unreported_groups: u64,
    /// Acknowledged groups that are missing, and groups that are partly there. Must be empty.
    pub faults: Vec<String>,
}

/// Kills a loading process again and again at moments drawn from the seed, and checks what the store still has.
pub fn rounds(kind: Kind, dir: &Path, seed: u64, rounds: u32) -> Result<Crash> {
    let mut rng = SplitMix64(seed ^ 2);
    let mut report = Crash {
        rounds,
        ..Crash::default()
    };
    let mut groups = 0;
    for round in 0..rounds {
        let bound = Duration::from_millis(200 + rng.below(1_500));
        let reported = kill_while_loading(kind, dir, seed, groups, bound)?;
        let start = Instant::now();
        let engine = kind
            .open(dir)
            .with_context(|| format!("open after round {round}"))?;
        report.worst_open_ms = report.worst_open_ms.max(ms(start.elapsed()));
        let mut workload = Workload::new(seed);
        let mut found = 0;
        loop {
            let puts = present(&*engine, &workload.group(GROUP))?;
            match (puts, found < reported) {
                (p, _) if p == GROUP * 4 => found += 1,
                (0, false) => break,
                (p, true) => {
                    report.faults.push(format!(
                        "round {round}: {p} puts of acknowledged group {found}"
                    ));
                    break;
                }
                (p, false) => {
                    report
                        .faults
                        .push(format!("round {round}: {p} puts of group {found}"));
                    break;
                }
            }
        }
        if found > reported + 1 {
            report.faults.push(format!(
                "round {round}: {found} groups where {reported} were reported"
            ));
        }
        report.unreported_groups += found.saturating_sub(reported);
        groups = found;
    }
    report.messages = groups * GROUP as u64;
    Ok(report)
}

fn kill_while_loading(
    kind: Kind,
    dir: &Path,
    seed: u64,
    groups: u64,
    bound: Duration,
) -> Result<u64> {
    let mut child = phase(kind, dir, seed)
        .args(["--phase", "crash", "--skip", &groups.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("no pipe")?;
    let reader = std::thread::spawn(move || {
        BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .filter_map(|l| l.parse().ok())
            .last()
    });
    std::thread::sleep(bound);
    ensure!(
        child.try_wait()?.is_none(),
        "the loading process ended by itself"
    );
    child.kill()?;
    child.wait()?;
    // The pipe still holds what was written before the kill. No line is cut short, because each is one write.
    let last: Option<u64> = reader.join().expect("the reader does not panic");
    Ok(last.map_or(groups, |last| last + 1))
}

/// In the child: commits until killed, and prints the number of each group once it is durable.
pub fn load_until_killed(kind: Kind, dir: &Path, seed: u64, skip: u64) -> Result<()> {
    let mut workload = Workload::resume(seed, skip * GROUP as u64);
    let mut engine = kind.open(dir)?;
    let mut output = std::io::stdout().lock();
    for group in skip.. {
        engine.commit(&workload.group(GROUP))?;
        output.write_all(format!("{group}\n").as_bytes())?;
        output.flush()?;
    }
    Ok(())
}

/// How many puts of the group are in the store with the right value.
fn present(engine: &dyn Engine, group: &[Message]) -> Result<usize> {
    let mut value = Vec::new();
    let mut present = 0;
    for put in group.iter().flat_map(|message| &message.puts) {
        if engine.get(put.space, &put.key, &mut value)? {
            ensure!(
                value == put.value,
                "a {} record has another value than was written",
                put.space.name()
            );
            present += 1;
        }
    }
    Ok(present)
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Torn {
    pub damage: String,
    pub outcome: String,
}

/// Damages a journal, given its bytes and the end of its written part.
type Damage = fn(&mut Vec<u8>, usize);

/// Applies each kind of damage to the journal in a copy of a killed store, and reports the outcome.
///
/// Killing a process never leaves such a journal, but a loss of power before a commit has returned can.
pub fn torn_tail(kind: Kind, dir: &Path, seed: u64) -> Result<Vec<Torn>> {
    let store = dir.join("store");
    let status = phase(kind, &store, seed)
        .args(["--phase", "torn"])
        .status()?;
    ensure!(!status.success(), "the process was to kill itself");
    let Some(journal) = kind.journal(&store)? else {
        return Ok(Vec::new());
    };
    let journal = journal.strip_prefix(&store)?;

    let damages: [(&str, Damage); 5] = [
        ("cut short by 100 bytes", |bytes, end| {
            bytes.truncate(end - 100)
        }),
        ("last 100 bytes are zero", |bytes, end| {
            bytes[end - 100..end].fill(0)
        }),
        (
            "one 4 KiB page inside the last value is zero",
            |bytes, end| {
                let page = (end - TAIL_VALUE_BYTES / 2) / 4096 * 4096;
                bytes[page..page + 4096].fill(0);
            },
        ),
        (
            "one 4 KiB page in the middle of the earlier commits is zero",
            |bytes, end| {
                let page = (end - TAIL_VALUE_BYTES) / 2 / 4096 * 4096;
                bytes[page..page + 4096].fill(0);
            },
        ),
        ("100 bytes of noise after the end", |bytes, end| {
            let mut rng = SplitMix64(3);
            bytes.truncate(end);
            bytes.extend((0..100).map(|_| rng.next() as u8));
        }),
    ];
    let mut outcomes = Vec::new();
    for (n, (damage, apply)) in damages.into_iter().enumerate() {
        let copy = dir.join(format!("copy-{n}"));
        copy_dir(&store, &copy)?;
        let path = copy.join(journal);
        let mut bytes = std::fs::read(&path)?;
        // Journals are preallocated: the written part ends at the last byte that is not zero.
        let end = bytes
            .iter()
            .rposition(|&byte| byte != 0)
            .context("empty journal")?
            + 1;
        apply(&mut bytes, end);
        std::fs::write(&path, bytes)?;
        outcomes.push(Torn {
            damage: damage.into(),
            outcome: outcome(kind, &copy, seed)?,
        });
    }
    Ok(outcomes)
}

fn outcome(kind: Kind, dir: &Path, seed: u64) -> Result<String> {
    let engine = match kind.open(dir) {
        Ok(engine) => engine,
        Err(error) => return Ok(format!("does not open: {error:#}")),
    };
    let mut workload = Workload::new(seed);
    for group in 0..GROUPS_BEFORE_TAIL {
        let puts = present(&*engine, &workload.group(GROUP))?;
        if puts != GROUP * 4 {
            return Ok(format!(
                "opens, lost earlier commits from {group} of {GROUPS_BEFORE_TAIL}"
            ));
        }
    }
    Ok(match present(&*engine, &[tail(&mut workload)])? {
        0 => "opens without the last commit".into(),
        4 => "opens with everything".into(),
        puts => format!("opens with {puts} of 4 puts of the last commit"),
    })
}

/// In the child: makes some commits, then one with a large value, then kills itself.
pub fn write_and_die(kind: Kind, dir: &Path, seed: u64) -> Result<()> {
    let mut workload = Workload::new(seed);
    let mut engine = kind.open(dir)?;
    for _ in 0..GROUPS_BEFORE_TAIL {
        engine.commit(&workload.group(GROUP))?;
    }
    engine.commit(&[tail(&mut workload)])?;
    die()
}

/// A message with a large, incompressible value. That value is put last, so that the journal ends with it.
fn tail(workload: &mut Workload) -> Message {
    let mut message = workload.message();
    let mut rng = SplitMix64(4);
    let value = (0..TAIL_VALUE_BYTES)
        .map(|_| 1 | rng.next() as u8)
        .collect();
    message.puts[0] = Put {
        space: Space::Messages,
        key: message.message_key().to_vec(),
        value,
    };
    message.puts.rotate_left(1);
    message
}

/// Ends this process as `kill -9` does: nothing is flushed, nothing is closed.
pub fn die() -> ! {
    // SAFETY: signals this very process.
    unsafe { libc::kill(std::process::id() as i32, libc::SIGKILL) };
    unreachable!("SIGKILL cannot be caught")
}

/// A command that runs one phase in a separate process of this program.
pub fn phase(kind: Kind, dir: &Path, seed: u64) -> Command {
    use clap::ValueEnum;
    let name = kind.to_possible_value().expect("no kind is skipped");
    let mut command = Command::new(std::env::current_exe().expect("a running program has a path"));
    command
        .args([
            "--engines",
            name.get_name(),
            "--seed",
            &seed.to_string(),
            "--dir",
        ])
        .arg(dir);
    command
}

/// Runs a phase and reads the report that it prints, whatever its exit status.
pub fn report_of<T: serde::de::DeserializeOwned>(mut command: Command) -> Result<T> {
    let child: Child = command.stdout(Stdio::piped()).spawn()?;
    let output = child.wait_with_output()?;
    match serde_json::from_slice(&output.stdout) {
        Ok(report) => Ok(report),
        Err(error) => bail!("no report from {command:?} ({}): {error}", output.status),
    }
}

fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        let target = to.join(file.strip_prefix(from)?);
        std::fs::create_dir_all(target.parent().context("a file is in a folder")?)?;
        std::fs::copy(&file, target)?;
    }
    // Empty folders count too: some engines expect to find theirs.
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::create_dir_all(to.join(entry.file_name()))?;
            copy_dir(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
