//! The progress of a measurement on a terminal: one line on standard error that is overwritten.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Interval between two updates.
const EVERY: Duration = Duration::from_millis(250);
const BAR: usize = 30;

/// The progress line; shows nothing if standard error is not a terminal.
pub(super) struct Progress {
    shown: bool,
}

impl Progress {
    /// Shown on a terminal, unless JSON output is requested.
    pub(super) fn new(json: bool) -> Progress {
        Progress { shown: !json && std::io::stderr().is_terminal() }
    }

    /// Shows the share of time elapsed and the result of `figure`, until the future is dropped.
    pub(super) async fn run(&self, (from, until): (Instant, Instant), figure: impl Fn() -> String) {
        if !self.shown {
            return std::future::pending().await;
        }
        loop {
            let now = Instant::now();
            let share = now.saturating_duration_since(from).as_secs_f64() / (until - from).as_secs_f64().max(0.001);
            let left = until.saturating_duration_since(now).as_secs_f64().ceil();
            self.draw(&format!("[{}] {left:>3} s  {}", bar(share), figure()));
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Shows a text until the next one.
    pub(super) fn note(&self, what: &str) {
        if self.shown {
            self.draw(what);
        }
    }

    fn draw(&self, line: &str) {
        // A failed write does not affect the measurement.
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
        let _ = std::io::stderr().flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            self.draw("");
        }
    }
}

fn bar(share: f64) -> String {
    let full = ((share.clamp(0.0, 1.0) * BAR as f64).round() as usize).min(BAR);
    format!("{}{}", "#".repeat(full), "-".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_keeps_its_length() {
        for share in [-1.0, 0.0, 0.4, 1.0, 3.0] {
            assert_eq!(bar(share).len(), BAR);
        }
        assert!(bar(1.0).chars().all(|c| c == '#'));
    }
}
