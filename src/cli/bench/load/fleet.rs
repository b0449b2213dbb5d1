//! All devices of a run: signs them in, starts them together and waits for them.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::check::{Board, Fate};
use super::device;
use super::plan::{Clock, Plan};
use super::tally::Tally;
use crate::cli::bench::connection::{Device, SignIn, Target};
use crate::wire::{Eid, Identity};

/// Concurrent sign-ins.
const CONCURRENT: usize = 64;
/// Number of tallies; several, so that devices rarely contend for one. One per device would take half a megabyte each.
const TALLIES: usize = 8;

/// The shared state of a run.
pub(in crate::cli::bench) struct Course {
    pub(in crate::cli::bench) plan: Plan,
    pub(in crate::cli::bench) clock: Clock,
    pub(super) target: Arc<Target>,
    pub(super) eids: Vec<Eid>,
    pub(super) board: Board,
    /// Per user, permits for messages in flight.
    pub(super) places: Vec<Semaphore>,
    /// Each user's last change of status: microseconds since the start, shifted left by one bit, with the lowest bit
    /// set for AWAY; 0 if there was none.
    pub(super) changes: Vec<AtomicU64>,
    /// Messages that were delivered, or receipted if receipts are on.
    pub(in crate::cli::bench) done: AtomicU64,
    tallies: Vec<Mutex<Tally>>,
}

impl Course {
    /// The index of a user of this run.
    pub(super) fn user_of(&self, identity: Option<&Identity>) -> Option<usize> {
        let name = identity?.eid.strip_prefix(&self.plan.name)?.strip_prefix('-')?;
        let user = name.split_once('@')?.0.parse().ok()?;
        (user < self.plan.users).then_some(user)
    }

    pub(super) fn tally(&self, user: usize) -> MutexGuard<'_, Tally> {
        self.tallies[user % TALLIES].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Signed-in devices that wait for the start.
pub(in crate::cli::bench) struct Fleet {
    plan: Plan,
    target: Arc<Target>,
    /// Each device with its user and number.
    devices: Vec<(usize, usize, Device)>,
}

pub(super) fn device_name(device: usize) -> String {
    format!("device-{device}")
}

impl Fleet {
    /// Signs all devices in, and adds subscribers for the users who will change their presence.
    pub(in crate::cli::bench) async fn sign_in(plan: Plan, target: Arc<Target>) -> anyhow::Result<Fleet> {
        let all = (0..plan.users).flat_map(|user| (0..plan.devices).map(move |device| (user, device)));
        let (plan_of, target_of) = (&plan, &target);
        let mut signing_in = stream::iter(all.map(|(user, number)| async move {
            let who = SignIn {
                name: &plan_of.user(user),
                device: &device_name(number),
                pipelined: !plan_of.answering,
                resume_from: None,
            };
            let mut device = target_of.sign_in(who).await?;
            if number == 0 && plan_of.first_change(user).is_some() {
                device.admit(plan_of.watchers(user).into_iter().map(|watcher| plan_of.user(watcher))).await?;
            }
            anyhow::Ok((user, number, device))
        }))
        .buffer_unordered(CONCURRENT);
        let mut devices = Vec::with_capacity(plan.users * plan.devices);
        while let Some(signed_in) = signing_in.next().await {
            devices.push(signed_in?);
        }
        drop(signing_in);
        Ok(Fleet { plan, target, devices })
    }

    /// Starts all devices.
    pub(in crate::cli::bench) fn start(self, clock: Clock) -> anyhow::Result<Running> {
        let Fleet { plan, target, devices } = self;
        let course = Arc::new(Course {
            clock,
            target,
            eids: (0..plan.users).map(|user| plan.eid(user)).collect::<Result<_, _>>()?,
            board: Board::new(plan.senders()),
            places: (0..plan.users).map(|_| Semaphore::new(plan.in_flight)).collect(),
            changes: (0..plan.users).map(|_| AtomicU64::new(0)).collect(),
            done: AtomicU64::new(0),
            tallies: (0..TALLIES).map(|_| Mutex::new(Tally::new())).collect(),
            plan,
        });
        let mut tasks = JoinSet::new();
        for (user, number, device) in devices {
            tasks.spawn(device::run(course.clone(), user, number, device));
        }
        Ok(Running { course, tasks })
    }
}

/// Devices that run.
pub(in crate::cli::bench) struct Running {
    pub(in crate::cli::bench) course: Arc<Course>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Running {
    /// Waits until each device has received everything, and returns the sum of all tallies.
    ///
    /// # Errors
    /// If a message was lost, doubled or out of order, or a device failed; the other devices are then stopped.
    pub(in crate::cli::bench) async fn join(mut self) -> anyhow::Result<Tally> {
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        let mut total = Tally::new();
        for tally in &self.course.tallies {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            total.add(std::mem::replace(&mut tally, Tally::new()))?;
        }
        total.acknowledged = self.course.board.count(|fate| matches!(fate, Fate::Accepted(_)));
        total.uncertain = self.course.board.count(|fate| fate == Fate::Uncertain);
        Ok(total)
    }
}
