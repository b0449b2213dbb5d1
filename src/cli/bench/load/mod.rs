//! `bimip bench load`: users write to each other, at a given rate or as fast as possible.
//!
//! With a rate, latency counts from the time at which a message was due, even if the generator was late (no coordinated
//! omission). The run checks that every message arrives at every device once, and in order in its chat.

mod check;
mod device;
mod fleet;
mod outbox;
mod plan;
mod presence;
mod report;
mod tally;

pub(super) use fleet::{Course, Fleet};
pub(super) use plan::{Clock, Contacts, Cuts, Plan, Presence, run_name, user_name};
pub(super) use tally::Tally;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::task::JoinSet;

use self::report::Outcome;
use super::bounds::{self, number};
use super::connection::{Device, Target, answer_pings};
use super::process::{Subject, SubjectFlags};
use super::progress::Progress;
use crate::cli::{Failure, Usage};

/// Concurrent sign-ins of the idle devices.
const CONCURRENT: usize = 64;

/// Texts between users: rate, latency, CPU, memory
#[derive(clap::Args)]
pub(super) struct Args {
    /// Pairs of users; one user of each pair sends
    #[arg(long, default_value_t = 10, value_parser = bounds::devices())]
    pairs: usize,
    /// Who writes to whom: pairs, or everybody to everybody, with some users more popular than others
    #[arg(long, value_enum, default_value_t = Shape::Pairs)]
    contacts: Shape,
    /// Number of users, who all send; with --contacts zipf [default: two per pair]
    #[arg(long, value_parser = bounds::two_or_more())]
    users: Option<usize>,
    /// With --contacts zipf: the k-th user gets a share of the messages in proportion to 1 / k^EXPONENT
    #[arg(long, default_value_t = 1.0, value_name = "EXPONENT", value_parser = exponent)]
    exponent: f64,
    /// Devices of each user; the first one sends, and all must get everything
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    devices: u32,
    /// Messages a second over all users; 0 for as fast as possible, with --in-flight
    #[arg(long, default_value_t = 0, value_parser = bounds::rate())]
    rate: u64,
    /// Messages of a sender in flight, if there is no rate
    #[arg(long, default_value_t = 16, value_parser = bounds::count())]
    in_flight: usize,
    /// Bytes of text; a few more if its number does not fit
    #[arg(long, default_value_t = 150, value_parser = bounds::text_bytes())]
    size: usize,
    /// Recipients acknowledge each message, and it counts once its sender has the receipt
    #[arg(long)]
    receipts: bool,
    /// Senders answer each VersionUpdate instead of pipelining
    #[arg(long)]
    answering: bool,
    /// Share of the devices that disconnect repeatedly and come back within a second
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    reconnects: f64,
    /// Interval of these disconnects, for each device
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS", value_parser = seconds)]
    reconnect_every: f64,
    /// Share of the users who change their presence, while all watch their contacts
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    presence: f64,
    /// Interval of these changes, for each user; the server passes a contact's changes on twice a second at most
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS", value_parser = seconds)]
    presence_every: f64,
    /// Additional signed-in devices, which only answer pings
    #[arg(long, default_value_t = 0, value_name = "DEVICES", value_parser = bounds::count_or_none())]
    idle: usize,
    /// Seconds to measure
    #[arg(long = "for", default_value_t = 10, value_name = "SECONDS", value_parser = bounds::seconds())]
    seconds: u64,
    /// Seconds of warm-up before that
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = bounds::seconds_or_none())]
    warm_up: u64,
    #[command(flatten)]
    subject: SubjectFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Who writes to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    /// One user of a pair to the other
    Pairs,
    /// Everybody to everybody, by Zipf's law
    Zipf,
}

fn share(text: &str) -> Result<f64, String> {
    number(text, 0.0, 1.0)
}

fn exponent(text: &str) -> Result<f64, String> {
    number(text, 0.0, 4.0)
}

fn seconds(text: &str) -> Result<f64, String> {
    number(text, 0.1, 3600.0)
}

impl Args {
    fn users(&self) -> usize {
        match self.contacts {
            Shape::Pairs => 2 * self.pairs,
            Shape::Zipf => self.users.unwrap_or(2 * self.pairs),
        }
    }

    fn plan(&self) -> Plan {
        let users = self.users();
        let every = |seconds: f64| Duration::from_secs_f64(seconds);
        let cuts = Cuts { share: self.reconnects, every: every(self.reconnect_every) };
        let presence = Presence { share: self.presence, every: every(self.presence_every) };
        Plan {
            name: run_name(),
            users,
            contacts: match self.contacts {
                Shape::Pairs => Contacts::Pairs,
                Shape::Zipf => Contacts::zipf(users, self.exponent),
            },
            devices: self.devices as usize,
            rate: self.rate as f64,
            in_flight: self.in_flight,
            size: self.size,
            receipts: self.receipts,
            answering: self.answering,
            sheds: false,
            keeps_timeline: false,
            cuts: (self.reconnects > 0.0).then_some(cuts),
            presence: (self.presence > 0.0).then_some(presence),
        }
    }

    pub(super) async fn run(self) -> Result<(), Failure> {
        if self.users.is_some() && self.contacts == Shape::Pairs {
            return Err(Usage("--users needs --contacts zipf; --pairs says how many pairs there are").into());
        }
        let subject = self.subject.find()?;
        let target = Arc::new(Target::new(&subject)?);
        let progress = Progress::new(self.json);
        progress.note("signing in");
        // Exclude what the server allocates once, for its first session.
        let first = target.device(&format!("first-{}", crate::clock::Now::system().unix_ms), true).await?;
        let before = subject.usage();
        let idle = idle(&target, self.idle).await?;
        let fleet = Fleet::sign_in(self.plan(), target.clone()).await?;
        let signed_in = subject.usage();
        let clock = Clock::begin(Duration::from_secs(self.warm_up), Duration::from_secs(self.seconds));
        let running = fleet.start(clock)?;
        let course = running.course.clone();
        let shown = async {
            let count = || course.done.load(Ordering::Relaxed) as f64;
            let figure = || format!("{:.0} messages a second", count() / clock.start.elapsed().as_secs_f64());
            progress.run((clock.start, clock.until), figure).await;
        };
        // A failed check ends the run at once.
        let measured =
            async { tokio::try_join!(running.join(), async { Ok(measure(&subject, &course, clock).await) }) };
        let (tally, (messages, [at_first, at_last])) = tokio::select! {
            measured = measured => measured?,
            () = shown => unreachable!("progress is shown until it is dropped"),
        };
        drop(progress);
        check_idle(idle)?;
        drop(first);
        let usage = (|| Some([before?, signed_in?, at_first?, at_last?]))();
        let sessions = self.idle + self.users() * self.devices as usize;
        Outcome { messages, sessions, tally, usage }.tell(&self)
    }
}

type Usages = [Option<super::process::Usage>; 2];

/// The number of messages in the measured time, and the server's usage at its start and end.
async fn measure(subject: &Subject, course: &Course, clock: Clock) -> (u64, Usages) {
    let look = || (course.done.load(Ordering::Relaxed), subject.usage());
    tokio::time::sleep_until(clock.measure_from.into()).await;
    let (before, usage_before) = look();
    tokio::time::sleep_until(clock.until.into()).await;
    let (after, usage_after) = look();
    (after - before, [usage_before, usage_after])
}

/// Signs in devices that only answer pings.
async fn idle(target: &Target, devices: usize) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let run = crate::clock::Now::system().unix_ms;
    let mut signing_in = stream::iter((0..devices).map(|n| async move {
        let name = format!("idle-{run}-{n}");
        target.device(&name, true).await
    }))
    .buffer_unordered(CONCURRENT);
    let mut idle = JoinSet::new();
    while let Some(device) = signing_in.next().await {
        let Device { connection, control, chat, .. } = device?;
        idle.spawn(async move {
            let _open = (connection, chat);
            answer_pings(control, || ()).await
        });
    }
    Ok(idle)
}

/// Checks that no idle device lost its connection.
fn check_idle(mut idle: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut lost = 0;
    while idle.try_join_next().is_some() {
        lost += 1;
    }
    anyhow::ensure!(lost == 0, "{lost} idle devices lost their connections");
    Ok(())
}
