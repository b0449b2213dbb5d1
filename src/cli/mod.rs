//! The command line: one file per command. This file has the parser, error reporting and what the commands share.

mod backup;
mod bench;
mod block;
mod certs;
mod chat;
mod config;
mod connect;
mod contacts;
mod control;
mod demo;
mod doctor;
mod event_line;
mod limits;
mod listen;
mod log;
mod once;
mod open_files;
mod options;
mod owner;
mod presence;
mod printer;
mod receipts;
mod reload;
mod restore;
mod revoke;
mod send;
mod serve;
mod signals;
mod status;
mod token;
mod udp;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::ConfigError;
use crate::limits::LOG_ENDS_WITHIN;
use crate::observe::within;

/// Exit code for wrong usage, on the command line or in the configuration.
const USAGE: u8 = 2;
/// Exit code for a correct command that failed.
const FAILURE: u8 = 1;
/// Exit code for what this machine does not support, such as an emulated network without the privileges for one.
#[cfg(target_os = "linux")]
const MISSING: u8 = 77;

/// 1:1 messaging and presence over QUIC
#[derive(Parser)]
#[command(
    name = "bimip",
    version,
    after_help = "Something is wrong? `bimip status` and `bimip doctor`, with the --config or --data-dir of the server and as \
                  its user.\nSettings come from flags, else BIMIP_* variables, else the TOML file: `bimip config` prints those \
                  in effect.\nExit codes: 0 done, 1 it failed, 2 asked for wrongly (command line or configuration), 77 an emulated network \
                  that this machine cannot have."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// Parsed once per process, so its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Subcommand)]
enum Command {
    Serve(serve::Args),
    Status(status::Args),
    Doctor(doctor::Args),
    Config(config::Args),
    Log(log::Args),
    Reload(reload::Args),
    Backup(backup::Args),
    Restore(restore::Args),
    Send(send::Args),
    Listen(listen::Args),
    Chat(chat::Args),
    Contacts(contacts::Args),
    Block(block::Args),
    Presence(presence::Args),
    Revoke(revoke::Args),
    Demo(demo::Args),
    Token(token::Args),
    Certs(certs::Args),
    Bench(bench::Args),
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return usage(&error),
    };
    let result = match command {
        Command::Serve(args) => args.run(),
        Command::Send(args) => args.run(),
        Command::Listen(args) => args.run(),
        Command::Contacts(args) => args.run(),
        Command::Block(args) => args.run(),
        Command::Presence(args) => args.run(),
        Command::Revoke(args) => args.run(),
        Command::Chat(args) => args.run(),
        Command::Demo(args) => args.run(),
        Command::Token(args) => args.run(),
        Command::Certs(args) => args.run(),
        Command::Config(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Status(args) => args.run(),
        Command::Log(args) => args.run(),
        Command::Reload(args) => args.run(),
        Command::Backup(args) => args.run(),
        Command::Restore(args) => args.run(),
        Command::Bench(args) => args.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.text(), failure.hint.as_deref());
            failure.code().into()
        }
    }
}

/// Why a command failed, and a hint.
#[derive(Debug)]
struct Failure {
    reason: anyhow::Error,
    hint: Option<String>,
}

impl Failure {
    fn new(reason: impl Into<anyhow::Error>, hint: impl Into<String>) -> Failure {
        Failure { reason: reason.into(), hint: Some(hint.into()) }
    }

    /// The reason with its causes. A cause that the text before already contains is left out, as most of our errors name
    /// theirs.
    fn text(&self) -> String {
        self.reason.chain().map(ToString::to_string).fold(String::new(), |text, cause| match () {
            () if text.is_empty() => cause,
            () if text.contains(&cause) => text,
            () => format!("{text}: {cause}"),
        })
    }

    fn code(&self) -> u8 {
        #[cfg(target_os = "linux")]
        if matches!(self.reason.downcast_ref(), Some(crate::link::Error::Missing(_))) {
            return MISSING;
        }
        if self.reason.is::<ConfigError>() || self.reason.is::<Usage>() { USAGE } else { FAILURE }
    }
}

/// A missing argument that clap cannot detect, because the configuration could have provided it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(&'static str);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(reason: E) -> Failure {
        Failure { reason: reason.into(), hint: None }
    }
}

/// Writes a line to standard output. A closed reader, as after `head` has ended, is not a failure.
fn say(line: &str) -> io::Result<()> {
    is_heard(line).map(drop)
}

/// As [`say`]; false if the reader is closed.
fn is_heard(line: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

fn complain(reason: &str, hint: Option<&str>) {
    let mut words = format!("bimip: {}\n", reason.replace('\n', " "));
    if let Some(hint) = hint {
        words += &format!("hint: {hint}\n");
    }
    // If standard error is closed or nobody reads it, there is nobody to tell; the process ends all the same.
    within(LOG_ENDS_WITHIN, move || _ = io::stderr().lock().write_all(words.as_bytes()));
}

/// Prints help and version as clap does, but clap's errors, which span paragraphs, as one line and a hint.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(USAGE).into();
        }
        _ => {}
    }
    let text = error.to_string();
    let mut paragraphs = text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let reason = paragraphs.next().unwrap_or_default();
    let hint = paragraphs.find_map(|paragraph| paragraph.strip_prefix("tip: ").map(str::to_owned));
    let hint = hint.unwrap_or_else(|| {
        // The innermost command that was named: its help has the options.
        let (mut command, mut named) = (Cli::command(), "bimip".to_owned());
        for name in std::env::args_os().skip(1) {
            let Some(inner) = command.find_subcommand(&name) else { break };
            named = format!("{named} {}", inner.get_name());
            command = inner.clone();
        }
        format!("see {named} --help")
    });
    complain(reason.strip_prefix("error: ").unwrap_or(&reason), Some(&hint));
    USAGE.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
