//! `bimip serve`: the server, until a signal ends it.

use tokio::signal::unix::{SignalKind, signal};

use super::options::{ConfigFile, ServerFlags};
use super::{Failure, say};
use crate::config::{Config, LogFormat};
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
        observe::start_log(&config.log.level, format).map_err(anyhow::Error::msg)?;
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(config))
    }
}

/// Serves until SIGTERM or SIGINT, then drains; SIGHUP reloads. A second signal ends the process at once.
async fn serve(config: Config) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let server = Server::start(config).await?;
    let tcp = server.tcp_address.map(|address| format!(" tcp={address}")).unwrap_or_default();
    say(&format!("bimip ready quic={} metrics={}{tcp}", server.quic_address, server.metrics_address))?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => {
                // The log has said what came of it.
                server.reload().await;
            }
        }
    }
    tokio::select! {
        () = server.shutdown() => Ok(()),
        _ = terminate.recv() => Err(anyhow::anyhow!("stopped at once by a second signal").into()),
        _ = interrupt.recv() => Err(anyhow::anyhow!("stopped at once by a second signal").into()),
    }
}
