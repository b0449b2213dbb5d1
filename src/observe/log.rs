//! Sets up tracing: lines for people on a terminal, JSON otherwise. The filter can be changed while the process runs.
//!
//! A thread of its own writes the lines. Who reads standard error may stall, such as a journal on the disk that the store
//! fills, and everybody who logs would wait for them.

use std::io::{self, IsTerminal};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::limits::{LOG_ENDS_WITHIN, LOG_LINES_MAX};

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Changes the log's filter. There is one log per process, so there is one handle.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The thread that writes the log; dropping this has it write what waits.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Writes what waits to be logged when it is dropped.
#[must_use]
pub struct Logging(());

impl Drop for Logging {
    fn drop(&mut self) {
        end_log();
    }
}

/// Writes what waits to be logged, for as long as [`LOG_ENDS_WITHIN`]. Nothing is logged afterwards. For a process that ends
/// without dropping its [`Logging`].
pub fn end_log() {
    let writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner).take();
    // With many lines waiting it would print that it gives up, and wait for who does not read that either.
    within(LOG_ENDS_WITHIN, move || drop(writer));
}

/// Does what may wait for ever, for so long at most, on a thread that ends with the process.
pub fn within(limit: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, ended) = sync_channel(1);
    let working = thread::Builder::new().spawn(move || {
        work();
        let _ = done.send(());
    });
    if working.is_ok() {
        let _ = ended.recv_timeout(limit);
    }
}

/// Number of lines that were not logged since the start, because [`LOG_LINES_MAX`] waited already.
pub fn log_lines_dropped() -> usize {
    DROPPED.get().map_or(0, ErrorCounter::dropped_lines)
}

/// Starts logging to standard error with a filter such as `info` or `bimip=debug,quinn=warn`.
///
/// # Errors
/// The filter is invalid, or logging was started before; the text says which.
pub fn start_log(filter: &str, format: LogFormat) -> Result<Logging, String> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let terminal = io::stderr().is_terminal();
    let human = match format {
        LogFormat::Auto => terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let writer = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LOG_LINES_MAX).thread_name("log");
    let (writer, guard) = writer.finish(io::stderr());
    let dropped = writer.error_counter();
    let lines = fmt::layer().with_writer(writer).with_ansi(terminal);
    // There is only one span, the session's, so no list of spans is needed.
    let lines = if human { lines.boxed() } else { lines.json().with_span_list(false).boxed() };
    // The filter applies to the log's lines, and not to what the console collects.
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    #[cfg(feature = "tokio-console")]
    let subscriber = subscriber.with(console_subscriber::spawn());
    subscriber.try_init().map_err(|error| error.to_string())?;
    let _ = (FILTER.set(handle), DROPPED.set(dropped));
    *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    Ok(Logging(()))
}

/// Changes the filter of the log, and calls `before` right before that.
///
/// # Errors
/// The filter is invalid, it names a module that does not exist, or logging was not started; the text says which.
pub fn set_log(filter: &str, before: impl FnOnce()) -> Result<(), String> {
    let handle = FILTER.get().ok_or("nothing is logged by this process")?;
    let parsed = parse(filter)?;
    // Not of `log.level`: a server of another version should start with it.
    if let Some(target) = unknown_module(filter) {
        return Err(format!(
            "{filter:?}: there is no module {target}; each line of the log names its own as its target"
        ));
    }
    before();
    handle.reload(parsed).map_err(|error| error.to_string())
}

/// The filter in use, if logging was started.
pub fn log_filter() -> Option<String> {
    FILTER.get()?.with_current(ToString::to_string).ok()
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("log.level {filter:?}: {why}");
    // The log would take it for one that lets errors through.
    if filter.trim().is_empty() {
        return Err(wrong(&"it is empty: give a level (error, warn, info, debug, trace, off)"));
    }
    if let Some(word) = crate::config::bare_target(filter) {
        return Err(wrong(&format!(
            "{word:?} is no level (error, warn, info, debug, trace, off); a target has one, as in bimip=debug"
        )));
    }
    EnvFilter::try_new(filter).map_err(|error| wrong(&error))
}

/// A target in a filter that begins no module's path. The log would take it, and it would change nothing. Only modules at the top
/// of this crate are known.
fn unknown_module(filter: &str) -> Option<&str> {
    let is_known = |target: &str| {
        let Some(path) = target.strip_prefix("bimip::") else { return true };
        let modules =
            include_str!("../lib.rs").lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
        let mut names = modules.map(|module| module.trim_end_matches(';'));
        match path.split_once("::") {
            Some((name, _)) => names.any(|known| known == name),
            // A target stands for all that begin with it.
            None => names.any(|known| known.starts_with(path)),
        }
    };
    filter.split(',').filter_map(|part| part.split(['=', '[']).next()).map(str::trim).find(|target| !is_known(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_module_is_noticed() {
        for filter in
            ["info", "bimip=debug", "info, bimip::session=debug", "bimip::sess=info", "bimip::session::leave=off"]
        {
            assert_eq!(unknown_module(filter), None, "{filter}");
        }
        // Libraries have modules that are not known here, and a span's fields are no targets.
        for filter in ["quinn_proto::connection=error", "warn,bimip::hub[session{user=a,device=b}]=trace"] {
            assert_eq!(unknown_module(filter), None, "{filter}");
        }
        assert_eq!(unknown_module("info,bimip::sesion=debug"), Some("bimip::sesion"));
        assert_eq!(unknown_module("bimip::sess::leave=debug"), Some("bimip::sess::leave"));
        assert_eq!(unknown_module("bimip::sesion[session]=debug"), Some("bimip::sesion"));
    }
}
