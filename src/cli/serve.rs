//! `bimip serve`: runs the server until a signal ends it.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::options::{ConfigFile, ServerFlags};
use super::{Failure, open_files, say};
use crate::config::{Config, LogFormat};
use crate::limits::DRAIN_WITHIN;
use crate::observe;
use crate::server::Server;

/// Run the server
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    flags: ServerFlags,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.file.load(self.flags)?;
        let format = match config.log.format {
            LogFormat::Auto => observe::LogFormat::Auto,
            LogFormat::Human => observe::LogFormat::Human,
            LogFormat::Json => observe::LogFormat::Json,
        };
        let _logging = observe::start_log(&config.log.level, format).map_err(anyhow::Error::msg)?;
        open_files::raise_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let served = runtime.block_on(serve(config));
        // A thread that reads a file, such as a certificate on a network file system, may hang forever.
        runtime.shutdown_timeout(if served.is_ok() { DRAIN_WITHIN } else { Duration::ZERO });
        served
    }
}

/// Serves until SIGTERM or SIGINT, then drains; SIGHUP reloads. A second signal ends the process at once, and so does the first
/// one during the start.
async fn serve(config: Config) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    // The start reads files, and one that never ends, such as a pipe or one on a file system that hangs, blocks its thread: so it
    // has one of its own.
    let starting = tokio::task::spawn_blocking(|| tokio::runtime::Handle::current().block_on(Server::start(config)));
    let server = tokio::select! {
        biased;
        started = starting => started??,
        _ = terminate.recv() => end_start(),
        _ = interrupt.recv() => end_start(),
    };
    let tcp = server.tcp_address.map(|address| format!(" tcp={address}")).unwrap_or_default();
    say(&format!("bimip ready quic={} metrics={}{tcp}", server.quic_address, server.metrics_address))?;
    // Runs beside the wait for a signal, so that a file that cannot be read does not block the shutdown.
    let reloads = async {
        while hang_up.recv().await.is_some() {
            // The result is in the log.
            server.reload().await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = reloads => {}
    }
    tokio::select! {
        () = server.shutdown() => Ok(()),
        _ = terminate.recv() => Err(anyhow::anyhow!("stopped at once by a second signal").into()),
        _ = interrupt.recv() => Err(anyhow::anyhow!("stopped at once by a second signal").into()),
    }
}

/// Ends the process without waiting for the start, which may never end. The next start continues it, as after a power loss.
fn end_start() -> ! {
    tracing::info!("stopped during the start: nothing was served");
    observe::end_log();
    std::process::exit(0)
}
