//! `bimip bench`: repeatable measurements.

mod alarm;
mod backlog;
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
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        match self.what {
            What::Load(args) => runtime.block_on(args.run()),
            What::Idle(args) => runtime.block_on(args.run()),
            What::Backlog(args) => runtime.block_on(args.run()),
            What::Neighbours(args) => runtime.block_on(args.run()),
            What::FanOut(args) => runtime.block_on(args.run()),
            What::Growth(args) => runtime.block_on(args.run()),
            What::Overload(args) => runtime.block_on(args.run()),
            What::Storm(args) => runtime.block_on(args.run()),
            What::Peers(args) => runtime.block_on(args.run()),
            What::Relay(args) => runtime.block_on(args.run()),
            #[cfg(target_os = "linux")]
            What::Compare(args) => args.run(),
            #[cfg(target_os = "linux")]
            What::Settings(args) => args.run(),
            #[cfg(target_os = "linux")]
            What::Link(args) => args.run(),
        }
    }
}
