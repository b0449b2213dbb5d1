//! The figures as Markdown tables with one row per engine.

use crate::crash::{Crash, Torn};
use crate::engine::Kind;
use crate::measure::{Commits, Load};
use serde::Serialize;
use std::fmt::Write;

#[derive(Serialize)]
pub struct Report {
    pub seed: u64,
    pub fdatasync_append: Latency,
    pub fdatasync_overwrite: Latency,
    pub engines: Vec<Row>,
}

#[derive(Serialize)]
pub struct Latency {
    pub per_s: f64,
    pub p50_us: u64,
    pub p99_us: u64,
}

impl Latency {
    pub fn of(mut times_us: Vec<u64>) -> Self {
        times_us.sort_unstable();
        let at = |quantile: f64| times_us[((times_us.len() - 1) as f64 * quantile) as usize];
        let sum: u64 = times_us.iter().sum();
        Self {
            per_s: times_us.len() as f64 * 1e6 / sum as f64,
            p50_us: at(0.5),
            p99_us: at(0.99),
        }
    }
}

#[derive(Serialize)]
pub struct Row {
    pub engine: Kind,
    /// Load average of the machine before and after the load.
    pub load_average: [f64; 2],
    pub load: Load,
    /// Milliseconds of the first open, after the kill at the end of the load, and of the next one, after a clean close.
    pub killed_open_ms: f64,
    pub reopen_ms: f64,
    pub crash: Option<Crash>,
    pub torn: Vec<Torn>,
}

impl Report {
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        self.write(&mut out)
            .expect("writing to a string does not fail");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        for (what, l) in [
            ("append", &self.fdatasync_append),
            ("overwrite", &self.fdatasync_overwrite),
        ] {
            writeln!(
                out,
                "4 KiB {what} + fdatasync: {:.0}/s, p50 {} µs, p99 {} µs  ",
                l.per_s, l.p50_us, l.p99_us
            )?;
        }

        write!(out, "Load average of the machine before and after each:")?;
        for row in &self.engines {
            let [before, after] = row.load_average;
            write!(out, " {} {before:.1} and {after:.1};", name(row))?;
        }
        writeln!(out, "\n\n**Durable commits**\n")?;
        let groups: Vec<usize> = self
            .engines
            .first()
            .map_or(vec![], |row| sorted(row).iter().map(|c| c.group).collect());
        self.commit_table(out, &groups, "commits/s", |c| {
            format!("{:.0}", c.commits_per_s)
        })?;
        self.commit_table(out, &groups, "messages/s", |c| {
            format!("{:.0}", c.messages_per_s)
        })?;
        self.commit_table(out, &groups, "p50 / p99 / max µs", |c| {
            format!("{} / {} / {}", c.p50_us, c.p99_us, c.max_us)
        })?;
        self.commit_table(out, &groups, "CPU µs a message", |c| {
            format!("{:.1}", c.cpu_us_per_message)
        })?;

        writeln!(
            out,
            "\n**Reads**\n\n| engine | entries/s, 10,000 in a row | 50 cold, p50 / p99 µs | hits/s | misses/s |"
        )?;
        writeln!(out, "|---|--:|--:|--:|--:|")?;
        for row in self.stored() {
            let r = &row.load.reads;
            writeln!(
                out,
                "| {} | {:.0} | {} / {} | {:.0} | {:.0} |",
                name(row),
                r.range_entries_per_s,
                r.small_cold_p50_us,
                r.small_cold_p99_us,
                r.hits_per_s,
                r.misses_per_s
            )?;
        }

        writeln!(
            out,
            "\n**Size**\n\n| engine | bytes a message | RSS MiB | messages | bytes a message | RSS MiB | messages/s | CPU µs | p99 / max µs |"
        )?;
        writeln!(out, "|---|--:|--:|--:|--:|--:|--:|--:|--:|")?;
        for row in self.stored() {
            let (l, f) = (&row.load, &row.load.second_fill);
            writeln!(
                out,
                "| {} | {:.0} | {} | {} | {:.0} | {} | {:.0} | {:.1} | {} / {} |",
                name(row),
                l.bytes_per_message,
                l.resident_bytes >> 20,
                l.large_messages,
                l.large_bytes_per_message,
                l.large_resident_bytes >> 20,
                f.messages_per_s,
                f.cpu_us_per_message,
                f.p99_us,
                f.max_us
            )?;
        }

        writeln!(
            out,
            "\n**Recovery**\n\n| engine | open after kill, large, ms | after clean close, ms | kills | messages | worst open, ms | faults |"
        )?;
        writeln!(out, "|---|--:|--:|--:|--:|--:|---|")?;
        for row in self.stored() {
            let crash = row.crash.clone().unwrap_or_default();
            let faults = if crash.faults.is_empty() {
                "none".into()
            } else {
                crash.faults.join("; ")
            };
            writeln!(
                out,
                "| {} | {:.0} | {:.0} | {} | {} | {:.0} | {faults} |",
                name(row),
                row.killed_open_ms,
                row.reopen_ms,
                crash.rounds,
                crash.messages,
                crash.worst_open_ms
            )?;
        }

        writeln!(
            out,
            "\n**Damaged end of the journal**\n\n| engine | damage | what happens |\n|---|---|---|"
        )?;
        for row in self.stored() {
            for torn in &row.torn {
                writeln!(
                    out,
                    "| {} | {} | {} |",
                    name(row),
                    torn.damage,
                    torn.outcome
                )?;
            }
        }
        Ok(())
    }

    fn commit_table(
        &self,
        out: &mut String,
        groups: &[usize],
        what: &str,
        cell: impl Fn(&Commits) -> String,
    ) -> std::fmt::Result {
        write!(out, "| {what}, by messages a commit |")?;
        groups
            .iter()
            .try_for_each(|group| write!(out, " {group} |"))?;
        writeln!(out, "\n|---|{}", "--:|".repeat(groups.len()))?;
        for row in &self.engines {
            write!(out, "| {} |", name(row))?;
            sorted(row)
                .into_iter()
                .try_for_each(|commits| write!(out, " {} |", cell(commits)))?;
            writeln!(out)?;
        }
        writeln!(out)
    }

    /// All rows except the baseline's, which stores nothing.
    fn stored(&self) -> impl Iterator<Item = &Row> {
        self.engines.iter().filter(|row| row.engine != Kind::None)
    }
}

fn sorted(row: &Row) -> Vec<&Commits> {
    let mut commits: Vec<_> = row.load.commits.iter().collect();
    commits.sort_by_key(|c| c.group);
    commits
}

fn name(row: &Row) -> String {
    format!("{:?}", row.engine)
}
