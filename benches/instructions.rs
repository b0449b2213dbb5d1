//! Instructions of the hot path's parts, counted by callgrind and compared with the baseline in `benches/instructions.txt`.
//!
//! `cargo bench --bench instructions` compares, and fails if a count differs by more than the tolerance; `-- --renew`
//! writes the baseline anew. Without valgrind it reports that and exits with 77: nothing was compared.

// Some items are used only by the benches that measure time.
#[allow(dead_code)]
mod cases;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use cases::Counted;

/// A count above the baseline by more than this share is a regression. One as far below it means that the case does less than
/// it did, or that a regression to the baseline would pass: if there is a reason for either, the baseline is renewed with it.
const TOLERANCE: f64 = 0.05;
/// The tolerance of cases whose threads hand work to each other: two runs of one build differed by up to 5 %.
const TOLERANCE_OF_THREADS: f64 = 0.10;
/// Each case runs this often, and in another process twice as often. The difference leaves out the preparation.
const TIMES: u64 = 200;
/// Exit code if nothing was compared.
const SKIPPED: u8 = 77;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--run") {
        let (name, times) = (&arguments[at + 1], arguments[at + 2].parse().expect("a number of times"));
        let case = cases::CASES.into_iter().find(|case| case.name == name).expect("a case of that name");
        let folder = cases::folder();
        (case.make)(folder.path())(times);
        return ExitCode::SUCCESS;
    }
    let Ok(valgrind) = Command::new("valgrind").arg("--version").output() else {
        eprintln!("SKIPPED: there is no valgrind here, so NO INSTRUCTIONS WERE COUNTED AND NOTHING WAS COMPARED.");
        eprintln!("         Debian: apt-get install valgrind");
        return SKIPPED.into();
    };
    let toolchain = toolchain(&valgrind.stdout);
    let (before_with, before) = read_baseline();
    let counted: BTreeMap<_, _> = cases::CASES.iter().map(|case| (case.name, case.counted)).collect();
    let names = counted.iter().filter(|(_, counted)| **counted != Counted::No).map(|(name, _)| *name);
    let counts: BTreeMap<_, _> = names.map(|name| (name.to_owned(), count(name))).collect();
    if arguments.iter().any(|argument| argument == "--renew") {
        return renew(&toolchain, &counts);
    }
    if before_with != toolchain {
        println!("note: the baseline is of {before_with}\n      this is            {toolchain}");
    }
    println!("{:<32}{:>14}{:>14}{:>10}", "instructions of one time", "baseline", "now", "change");
    let mut failed = Vec::new();
    for (name, now) in &counts {
        let Some(base) = before.get(name) else {
            println!("{name:<32}{:>14}{now:>14}", "none");
            failed.push(name.as_str());
            continue;
        };
        let change = *now as f64 / *base as f64 - 1.0;
        println!("{name:<32}{base:>14}{now:>14}{:>9.1}%", change * 100.0);
        let threads = counted.get(name.as_str()) == Some(&Counted::WithThreads);
        let tolerance = if threads { TOLERANCE_OF_THREADS } else { TOLERANCE };
        // A case that counts nothing has not run, whatever the baseline says.
        if *now == 0 || !(-tolerance..=tolerance).contains(&change) {
            failed.push(name);
        }
    }
    let gone = before.keys().filter(|name| !counts.contains_key(*name)).map(String::as_str);
    failed.extend(gone);
    if failed.is_empty() {
        let [least, most] = [TOLERANCE, TOLERANCE_OF_THREADS].map(|share| share * 100.0);
        println!(
            "none differs by more than {least:.0} % of its instructions from the baseline, {most:.0} % where there are threads"
        );
        return ExitCode::SUCCESS;
    }
    eprintln!("REGRESSION, or another baseline is due: {}", failed.join(", "));
    eprintln!("if that has a reason: cargo bench --bench instructions -- --renew, and say it in the commit");
    ExitCode::FAILURE
}

fn baseline() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches").join("instructions.txt")
}

fn toolchain(valgrind: &[u8]) -> String {
    let rustc = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into())).arg("--version").output();
    let rustc = rustc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    format!("{rustc}, {}, {}", String::from_utf8_lossy(valgrind).trim(), std::env::consts::ARCH)
}

/// The tools that the baseline was counted with, and its counts.
fn read_baseline() -> (String, BTreeMap<String, u64>) {
    let text = std::fs::read_to_string(baseline()).unwrap_or_default();
    let with = text.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or("nothing").to_owned();
    let counts = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, count) = line.split_once(' ')?;
        Some((name.to_owned(), count.trim().parse().ok()?))
    });
    (with, counts.collect())
}

fn renew(toolchain: &str, counts: &BTreeMap<String, u64>) -> ExitCode {
    let mut text = format!("# {toolchain}\n# cargo bench --bench instructions -- --renew\n");
    for (name, count) in counts {
        let _ = writeln!(text, "{name:<32}{count:>12}");
    }
    print!("{text}");
    match std::fs::write(baseline(), text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the baseline was not written: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Instructions of one run of the case.
fn count(name: &str) -> u64 {
    let [once, twice] = [TIMES, 2 * TIMES].map(|times| run_counted(name, times));
    twice.saturating_sub(once) / TIMES
}

/// Instructions of all threads of a process that runs the case `times` times.
fn run_counted(name: &str, times: u64) -> u64 {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--fair-sched=yes"])
        .arg(program)
        .args(["--run", name, &times.to_string()])
        .output()
        .expect("valgrind was there a moment ago");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed under valgrind:\n{said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, count)| count.trim());
    collected.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count of {name}:\n{said}"))
}
