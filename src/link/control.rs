//! The handle that changes a network while it runs, and the other end of it in the link's thread.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::counters::{Counters, Path};
use super::limits::ORDER_WITHIN;
use super::router::Router;
use super::routes::Routes;
use super::{Error, Profile, sys};

/// Changes a network while it runs, and reads its counters. Each call returns when the change is in effect, within a
/// millisecond, with the instant at which it took effect. Clones are the same handle; it may outlive the network, and
/// then every call says that the link has ended.
#[derive(Debug, Clone)]
pub struct Control {
    orders: SyncSender<Order>,
    wake: Arc<OwnedFd>,
}

/// A handover under way.
#[derive(Debug)]
pub struct Handover {
    /// From then on the old path carries nothing.
    pub dead_at: Instant,
    /// From then on the new path does.
    pub works_at: Instant,
    switched: oneshot::Receiver<Instant>,
}

/// What the thread is to do; nothing is to stop.
type Order = Option<Box<dyn FnOnce(&mut Router, &mut Switch, Instant) + Send>>;

impl Control {
    pub(super) fn new(orders: SyncSender<Order>, wake: Arc<OwnedFd>) -> Control {
        Control { orders, wake }
    }

    /// Changes what a path does to packets that come from now on; those on their way keep their time, and so does the
    /// line what it had begun.
    ///
    /// # Errors
    /// [`Error::Profile`] for one that contradicts itself.
    pub fn set_profile(&self, path: Path, profile: Profile) -> Result<Instant, Error> {
        profile.check()?;
        self.change(move |router| router.set_profile(path, profile))
    }

    /// Turns the phone's radio on a path off, as in a tunnel, or on again. Dark, it loses what the phone sends at once,
    /// and what comes to the phone at the time at which it would arrive.
    ///
    /// # Errors
    /// When the link has ended; so for all others here.
    pub fn black_out(&self, path: Path, dark: bool) -> Result<Instant, Error> {
        self.change(move |router| router.black_out(path, dark))
    }

    /// Drops all UDP on both paths, as some networks do, or lets it pass again.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn block_udp(&self, blocked: bool) -> Result<Instant, Error> {
        self.change(move |router| router.block_udp(blocked))
    }

    /// Makes the NAT of a path forget its mappings. The phone's next packets appear from other ports; what the server
    /// sends to the old ones before is dropped. TCP does not survive it, as with carriers.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn rebind_nat(&self, path: Path) -> Result<Instant, Error> {
        self.change(move |router| router.rebind_nat(path))
    }

    /// Moves the phone to a path: the one in use is dead from now on, this one works after the gap, and the phone's
    /// default route changes then. Returns at once; [`Handover::wait`] and [`Handover::switched`] wait for the route.
    /// The phone's sockets are told nothing. With the path that is in use it is a gap, and a new start of nothing.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn hand_over(&self, to: Path, gap: Duration) -> Result<Handover, Error> {
        self.order(move |router, switch, now| {
            let works_at = router.hand_over(to, gap, now);
            let (done, switched) = oneshot::channel();
            switch.pending = Some((works_at, to, done));
            Handover { dead_at: now, works_at, switched }
        })
    }

    /// Makes TCP connections that begin from now on, on both sides, use this congestion control, as in `cubic` or `bbr`.
    /// Before, it is the machine's default.
    ///
    /// # Errors
    /// [`Error::System`] where the kernel does not have it; `net.ipv4.tcp_available_congestion_control` is what it has.
    pub fn set_congestion_control(&self, algorithm: &str) -> Result<(), Error> {
        let algorithm = algorithm.to_owned();
        self.order(move |_, switch, _| {
            switch.phone.set_congestion_control(&algorithm)?;
            switch.server.set_congestion_control(&algorithm)
        })?
    }

    /// All that was counted so far; subtract an earlier one.
    ///
    /// # Errors
    /// When the link has ended.
    pub fn counters(&self) -> Result<Counters, Error> {
        self.order(|router, _, now| router.counters(now))
    }

    /// Tells the thread to end, if it has not.
    pub(super) fn stop(&self) {
        if self.orders.send(None).is_ok() {
            self.wake();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Router) + Send + 'static) -> Result<Instant, Error> {
        self.order(|router, _, now| {
            change(router);
            now
        })
    }

    fn order<T: Send + 'static>(
        &self,
        order: impl FnOnce(&mut Router, &mut Switch, Instant) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = sync_channel(1);
        let order: Order = Some(Box::new(move |router, switch, now| {
            // Who asked waits for it, or has given up.
            let _ = answer.send(order(router, switch, now));
        }));
        let ended = || Error::Ended("its network was dropped, or its log says why".to_owned());
        self.orders.send(order).map_err(|_| ended())?;
        self.wake();
        answered.recv_timeout(ORDER_WITHIN).map_err(|error| match error {
            RecvTimeoutError::Disconnected => ended(),
            RecvTimeoutError::Timeout => Error::Ended("its thread does not answer".to_owned()),
        })
    }

    fn wake(&self) {
        // It fails only where the counter is full, and then the thread is being woken already.
        let _ = sys::write(self.wake.as_fd(), &1u64.to_ne_bytes());
    }
}

impl Handover {
    /// Waits until the phone's route goes by the new path, and tells when. It blocks.
    ///
    /// # Errors
    /// [`Error::HandedOverAgain`], or that the link has ended, as for [`Handover::switched`].
    ///
    /// # Panics
    /// In asynchronous code, which is not to block.
    pub fn wait(self) -> Result<Instant, Error> {
        self.switched.blocking_recv().map_err(|_| Error::HandedOverAgain)
    }

    /// The same for asynchronous code.
    ///
    /// # Errors
    /// [`Error::HandedOverAgain`].
    pub async fn switched(self) -> Result<Instant, Error> {
        self.switched.await.map_err(|_| Error::HandedOverAgain)
    }
}

/// The thread's end: orders that come, and the change of route that is due.
pub(super) struct Orders {
    orders: Receiver<Order>,
    wake: Arc<OwnedFd>,
    switch: Switch,
}

/// The routes of both sides, and where the phone's will go.
pub(super) struct Switch {
    phone: Routes,
    server: Routes,
    pending: Option<(Instant, Path, oneshot::Sender<Instant>)>,
}

impl Orders {
    pub(super) fn new(orders: Receiver<Order>, control: &Control, phone: Routes, server: Routes) -> Orders {
        let switch = Switch { phone, server, pending: None };
        Orders { orders, wake: control.wake.clone(), switch }
    }

    /// Can be read when an order waits.
    pub(super) fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// Carries out what waits; false when it is to stop.
    pub(super) fn take(&mut self, router: &mut Router) -> bool {
        // What is read is a number of orders; they are counted by the channel.
        let _ = sys::read(self.wake.as_fd(), &mut [0; 8]);
        for order in self.orders.try_iter() {
            match order {
                Some(order) => order(router, &mut self.switch, Instant::now()),
                None => return false,
            }
        }
        true
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.switch.pending.as_ref().map(|(due, ..)| *due)
    }

    /// Changes the phone's route if its time has come.
    pub(super) fn fall_due(&mut self, now: Instant) -> Result<(), Error> {
        let Some((_, to, done)) = self.switch.pending.take_if(|(due, ..)| *due <= now) else { return Ok(()) };
        self.switch.phone.go_by(to.name())?;
        // Whoever handed over need not wait for it.
        let _ = done.send(Instant::now());
        Ok(())
    }
}
