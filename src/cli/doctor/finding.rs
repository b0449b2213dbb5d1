//! The result of a check: what was found, how bad it is and what to do. Printed as lines for people or JSON for
//! programs.

use anyhow::anyhow;
use serde::Serialize;

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

/// Prints all findings; an error if one of them is a failure.
pub(in crate::cli) fn report(findings: &[Finding], json: bool) -> Result<(), Failure> {
    for finding in findings {
        if json {
            say(&serde_json::to_string(finding)?)?;
            continue;
        }
        let grade = match finding.grade {
            Grade::Ok => "ok",
            Grade::Warn => "WARN",
            Grade::Fail => "FAIL",
        };
        say(&format!("{grade:<4}  {:<12}  {}", finding.check, finding.found))?;
        if let Some(advice) = &finding.advice {
            say(&format!("{:20}-> {advice}", ""))?;
        }
    }
    let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
    match (count(Grade::Fail), count(Grade::Warn)) {
        (0, _) => Ok(()),
        (fails, warns) => Err(anyhow!("{fails} of {} checks failed, {warns} more warn", findings.len()).into()),
    }
}
