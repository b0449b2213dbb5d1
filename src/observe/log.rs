//! Sets up tracing: human on a terminal, JSON otherwise; what is said can be changed while it runs.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// How log lines look.
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

/// The log is the process's, and so is what changes it.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging to standard error with a filter such as `info` or `bimip=debug,quinn=warn`.
///
/// # Errors
/// A sentence about the filter, or that logging was started before.
pub fn start_log(filter: &str, format: LogFormat) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let terminal = io::stderr().is_terminal();
    let human = match format {
        LogFormat::Auto => terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(terminal);
    // There is one span, a session's, and no list of them is needed.
    let lines = if human { lines.boxed() } else { lines.json().with_span_list(false).boxed() };
    // What the console wants to know is not the log's to filter.
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    #[cfg(feature = "tokio-console")]
    let subscriber = subscriber.with(console_subscriber::spawn());
    subscriber.try_init().map_err(|error| error.to_string())?;
    let _ = FILTER.set(handle);
    Ok(())
}

/// From here on logs what another filter lets through.
///
/// # Errors
/// A sentence about the filter, or that logging was not started.
pub fn set_log(filter: &str) -> Result<(), String> {
    let handle = FILTER.get().ok_or("nothing is logged by this process")?;
    handle.reload(parse(filter)?).map_err(|error| error.to_string())
}

/// The filter in use, if logging was started.
pub fn log_filter() -> Option<String> {
    FILTER.get()?.with_current(ToString::to_string).ok()
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter).map_err(|error| format!("log.level {filter:?}: {error}"))
}
