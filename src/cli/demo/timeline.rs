//! The demo's output: who did what, and when.

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use super::super::say;

/// A participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    Server,
    AlicePhone,
    BobPhone,
    BobTablet,
}

impl Who {
    pub(super) const DEVICES: [Who; 3] = [Who::AlicePhone, Who::BobPhone, Who::BobTablet];

    pub(super) fn user(self) -> &'static str {
        match self {
            Who::Server => "",
            Who::AlicePhone => "alice@localhost",
            Who::BobPhone | Who::BobTablet => "bob@localhost",
        }
    }

    pub(super) fn device(self) -> &'static str {
        match self {
            Who::Server => "",
            Who::AlicePhone | Who::BobPhone => "phone",
            Who::BobTablet => "tablet",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Who::Server => "server",
            Who::AlicePhone => "alice's phone",
            Who::BobPhone => "bob's phone",
            Who::BobTablet => "bob's tablet",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Who::Server => "90",
            Who::AlicePhone => "35",
            Who::BobPhone => "36",
            Who::BobTablet => "34",
        }
    }
}

/// Writes to standard output, in colour if that is a terminal.
pub(super) struct Timeline {
    began: Instant,
    coloured: bool,
}

impl Timeline {
    pub(super) fn begin() -> Timeline {
        let coloured = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Timeline { began: Instant::now(), coloured }
    }

    /// A heading.
    pub(super) fn scene(&self, title: &str) -> io::Result<()> {
        say("")?;
        say(&self.paint("1", title))
    }

    /// A line for something that happened now.
    pub(super) fn line(&self, who: Who, what: impl Display) -> io::Result<()> {
        let at = format!("{:>9.1}", self.began.elapsed().as_secs_f64() * 1e3);
        say(&format!(
            "{} ms  {}  {what}",
            self.paint("90", &at),
            self.paint(who.colour(), &format!("{:<13}", who.name()))
        ))
    }

    /// A row of the summary.
    pub(super) fn row(&self, what: &str, value: &str) -> io::Result<()> {
        say(&format!("  {}  {value}", self.paint("90", &format!("{what:<22}"))))
    }

    pub(super) fn verdict(&self, good: bool, text: &str) -> io::Result<()> {
        say("")?;
        say(&self.paint(if good { "1;32" } else { "1;31" }, text))
    }

    /// Text in a fainter colour.
    pub(super) fn faint(&self, text: impl Display) -> String {
        self.paint("90", &text.to_string())
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A latency, formatted for people.
pub(super) fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
