//! `bimip bench`: repeatable measurements.

mod alarm;
mod backlog;
mod bounds;
mod child;
#[cfg(target_os = "linux")]
mod compare;
mod connection;
mod fan_out;
mod growth;
mod idle;
#[cfg(target_os = "linux")]
mod link;
mod load;
mod neighbours;
mod overload;
mod peers;
mod process;
mod progress;
mod report;
mod storm;

use super::signals::Ending;
use super::{Failure, complain, open_files, udp};

/// Measure a server
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Load(load::Args),
    Idle(idle::Args),
    Backlog(backlog::Args),
    Neighbours(neighbours::Args),
    FanOut(fan_out::Args),
    Growth(growth::Args),
    Overload(overload::Args),
    Peers(peers::Args),
    Storm(storm::Args),
    #[command(hide = true)]
    Relay(peers::RelayArgs),
    #[cfg(target_os = "linux")]
    Compare(compare::Args),
    #[cfg(target_os = "linux")]
    Settings(compare::settings::Args),
    #[cfg(target_os = "linux")]
    Link(link::Args),
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        open_files::raise_limit();
        let before = udp::dropped();
        let result = self.measure();
        if let Some((before, after)) = before.zip(udp::dropped())
            && after > before
        {
            let lost = after - before;
            let reason =
                format!("{lost} datagrams of all programs here were dropped meanwhile because of full socket buffers");
            complain(
                &reason,
                Some("the figures are those of a lossy network; `bimip doctor` says which limit to raise"),
            );
        }
        result
    }

    fn measure(self) -> Result<(), Failure> {
        match self.what {
            What::Load(args) => until_told(args.run()),
            What::Idle(args) => until_told(args.run()),
            What::Backlog(args) => until_told(args.run()),
            What::Neighbours(args) => until_told(args.run()),
            What::FanOut(args) => until_told(args.run()),
            What::Growth(args) => until_told(args.run()),
            What::Overload(args) => until_told(args.run()),
            What::Storm(args) => until_told(args.run()),
            What::Peers(args) => until_told(args.run()),
            // It ends with the comparison that started it.
            What::Relay(args) => runtime()?.block_on(args.run()),
            #[cfg(target_os = "linux")]
            What::Compare(args) => args.run(),
            #[cfg(target_os = "linux")]
            What::Settings(args) => args.run(),
            #[cfg(target_os = "linux")]
            What::Link(args) => args.run(),
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// Runs a measurement on this thread, until it is done or the process is told to end. Then the measurement is dropped, and
/// with it the processes that it started and its folders.
fn until_told(measurement: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let mut ending = Ending::listen()?;
        tokio::select! {
            result = measurement => result,
            signal = ending.next() => Err(anyhow::anyhow!("stopped by {signal}: nothing was measured").into()),
        }
    })
}
