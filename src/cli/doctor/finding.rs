//! The result of a check: what was found, how bad it is and what to do. Printed as lines for people or JSON for
//! programs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use anyhow::anyhow;
use serde::Serialize;

use crate::cli::limits::READ_WITHIN;
use crate::cli::{Failure, say};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Grade {
    /// Nothing to do.
    Ok,
    /// It works, but may not for long or under load.
    Warn,
    /// It does not work.
    Fail,
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct Finding {
    /// What was checked.
    pub(in crate::cli) check: &'static str,
    pub(in crate::cli) grade: Grade,
    /// What was found.
    pub(in crate::cli) found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) advice: Option<String>,
}

impl Finding {
    pub(in crate::cli) fn ok(check: &'static str, found: impl Into<String>) -> Finding {
        Finding { check, grade: Grade::Ok, found: found.into(), advice: None }
    }

    pub(in crate::cli) fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { check, grade: Grade::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    pub(in crate::cli) fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { check, grade: Grade::Fail, found: found.into(), advice: Some(advice.into()) }
    }

    /// The same finding, as a warning if it was a failure.
    pub(in crate::cli) fn at_most_warn(self) -> Finding {
        Finding { grade: self.grade.min(Grade::Warn), ..self }
    }
}

/// Looks at files on a thread of its own. A file that never ends, such as a pipe or one on a file system that hangs, holds up
/// that thread alone, and is a failure.
pub(in crate::cli) fn of_files<T: Send + 'static>(
    check: &'static str,
    files: &[PathBuf],
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Finding> {
    in_time(look).ok_or_else(|| {
        let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        let found = format!("not read to the end within {} s: {}", READ_WITHIN.as_secs(), names.join(", "));
        Finding::fail(check, found, "is it a pipe, or does its file system hang? A server waits for it as well")
    })
}

/// Looks at a folder as [`of_files`] does at files. A folder on a file system that hangs is a failure,
/// which says `what` was asked.
pub(in crate::cli) fn of_folder<T: Send + 'static>(
    check: &'static str,
    what: &str,
    folder: &Path,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Finding> {
    in_time(look).ok_or_else(|| {
        let found = format!("no answer within {} s on {what}: {}", READ_WITHIN.as_secs(), folder.display());
        Finding::fail(
            check,
            found,
            "does its file system hang, as one of a network that is gone? A server waits for it as well",
        )
    })
}

fn in_time<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, result) = mpsc::channel();
    std::thread::spawn(move || sender.send(look()));
    result.recv_timeout(READ_WITHIN).ok()
}

/// Prints findings as they come, so that they are seen even if a later check takes long.
pub(in crate::cli) struct Report {
    json: bool,
    pub(in crate::cli) findings: Vec<Finding>,
}

impl Report {
    pub(in crate::cli) fn new(json: bool) -> Report {
        Report { json, findings: Vec::new() }
    }

    pub(in crate::cli) fn add(&mut self, findings: impl IntoIterator<Item = Finding>) -> io::Result<()> {
        for finding in findings {
            self.print(&finding)?;
            self.findings.push(finding);
        }
        Ok(())
    }

    fn print(&self, finding: &Finding) -> io::Result<()> {
        if self.json {
            return say(&serde_json::to_string(finding)?);
        }
        let grade = match finding.grade {
            Grade::Ok => "ok",
            Grade::Warn => "WARN",
            Grade::Fail => "FAIL",
        };
        say(&format!("{grade:<4}  {:<12}  {}", finding.check, finding.found))?;
        finding.advice.as_ref().map_or(Ok(()), |advice| say(&format!("{:20}-> {advice}", "")))
    }

    /// An error if one of the findings is a failure.
    pub(in crate::cli) fn end(&self) -> Result<(), Failure> {
        let count = |grade| self.findings.iter().filter(|finding| finding.grade == grade).count();
        match (count(Grade::Fail), count(Grade::Warn)) {
            (0, _) => Ok(()),
            (fails, warns) => {
                Err(anyhow!("{fails} of {} checks failed, {warns} more warn", self.findings.len()).into())
            }
        }
    }
}
