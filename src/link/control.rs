//! The handle that changes a network while it runs, and its receiving end in the link's thread.

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

/// Changes a network while it runs, and reads its counters. Each call returns within a millisecond, once the change is
/// in effect, with the instant at which it took effect. Clones share one link. A handle may outlive the network; every
/// call then fails with [`Error::Ended`].
#[derive(Debug, Clone)]
pub struct Control {
    orders: SyncSender<Order>,
    wake: Arc<OwnedFd>,
}

/// A handover under way.
#[derive(Debug)]
pub struct Handover {
    /// From this instant on the old path carries nothing.
    pub dead_at: Instant,
    /// From this instant on the new path carries packets.
    pub works_at: Instant,
    switched: oneshot::Receiver<Instant>,
}

/// Work for the link's thread; `None` tells it to stop.
type Order = Option<Box<dyn FnOnce(&mut Router, &mut Switch, Instant) + Send>>;

impl Control {
    pub(super) fn new(orders: SyncSender<Order>, wake: Arc<OwnedFd>) -> Control {
        Control { orders, wake }
    }

    /// Changes a path's profile for packets sent from now on. Packets already on the way keep their arrival times, and
    /// the line keeps its backlog.
    ///
    /// # Errors
    /// [`Error::Profile`] for a profile that contradicts itself; [`Error::Ended`] when the link has ended.
    pub fn set_profile(&self, path: Path, profile: Profile) -> Result<Instant, Error> {
        profile.check()?;
        self.change(move |router| router.set_profile(path, profile))
    }

    /// Turns the phone's radio on a path off, as in a tunnel, or on again. While it is off, packets from the phone are
    /// lost at once, and packets to the phone are lost at the time they would arrive.
    ///
    /// # Errors
    /// [`Error::Ended`] when the link has ended.
    pub fn black_out(&self, path: Path, dark: bool) -> Result<Instant, Error> {
        self.change(move |router| router.black_out(path, dark))
    }

    /// Drops all UDP on both paths, as some networks do, or lets it pass again.
    ///
    /// # Errors
    /// [`Error::Ended`] when the link has ended.
    pub fn block_udp(&self, blocked: bool) -> Result<Instant, Error> {
        self.change(move |router| router.block_udp(blocked))
    }

    /// Makes a path's NAT forget its mappings. The phone's next packets come from other ports, and what the server
    /// sends to the old ports is dropped. TCP connections do not survive it, as with real carriers.
    ///
    /// # Errors
    /// [`Error::Ended`] when the link has ended.
    pub fn rebind_nat(&self, path: Path) -> Result<Instant, Error> {
        self.change(move |router| router.rebind_nat(path))
    }

    /// Moves the phone to a path. The path in use is dead from now on; the new path works after the gap, and then the
    /// phone's default route changes. Returns at once; [`Handover::wait`] and [`Handover::switched`] wait for the
    /// route. The phone's sockets are not notified. A handover to the path in use is just a gap in it.
    ///
    /// # Errors
    /// [`Error::Ended`] when the link has ended.
    pub fn hand_over(&self, to: Path, gap: Duration) -> Result<Handover, Error> {
        self.order(move |router, switch, now| {
            let works_at = router.hand_over(to, gap, now);
            let (done, switched) = oneshot::channel();
            switch.pending = Some((works_at, to, done));
            Handover { dead_at: now, works_at, switched }
        })
    }

    /// Sets the congestion control, such as `cubic` or `bbr`, of TCP connections that either side makes from now on.
    /// Until this is called, they use the machine's default.
    ///
    /// # Errors
    /// [`Error::System`] if the kernel does not have it (`net.ipv4.tcp_available_congestion_control` lists what it
    /// has); [`Error::Ended`] when the link has ended.
    pub fn set_congestion_control(&self, algorithm: &str) -> Result<(), Error> {
        let algorithm = algorithm.to_owned();
        self.order(move |_, switch, _| {
            switch.phone.set_congestion_control(&algorithm)?;
            switch.server.set_congestion_control(&algorithm)
        })?
    }

    /// Everything counted so far; subtract earlier counters to get an interval.
    ///
    /// # Errors
    /// [`Error::Ended`] when the link has ended.
    pub fn counters(&self) -> Result<Counters, Error> {
        self.order(|router, _, now| router.counters(now))
    }

    /// Tells the thread to stop, if it still runs.
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
            // The caller waits for the answer, or has given up.
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
        // The write fails only if the counter is full, and then the thread has a wake-up pending already.
        let _ = sys::write(self.wake.as_fd(), &1u64.to_ne_bytes());
    }
}

impl Handover {
    /// Blocks until the phone's default route uses the new path, and returns the instant of that.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if another handover began or the network was dropped.
    ///
    /// # Panics
    /// If called in asynchronous code, which must not block.
    pub fn wait(self) -> Result<Instant, Error> {
        self.switched.blocking_recv().map_err(|_| Error::Interrupted)
    }

    /// As [`Handover::wait`], for asynchronous code.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if another handover began or the network was dropped.
    pub async fn switched(self) -> Result<Instant, Error> {
        self.switched.await.map_err(|_| Error::Interrupted)
    }
}

/// The receiving end in the link's thread: pending orders, and the pending change of route.
pub(super) struct Orders {
    orders: Receiver<Order>,
    wake: Arc<OwnedFd>,
    switch: Switch,
}

/// The routes of both sides, and the phone's pending change of route.
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

    /// Readable when an order waits.
    pub(super) fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// Executes all pending orders; false if one of them is to stop.
    pub(super) fn take(&mut self, router: &mut Router) -> bool {
        // The value read is how often the thread was woken; the channel holds the orders themselves.
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

    /// Changes the phone's route if the time has come.
    pub(super) fn fall_due(&mut self, now: Instant) -> Result<(), Error> {
        let Some((_, to, done)) = self.switch.pending.take_if(|(due, ..)| *due <= now) else { return Ok(()) };
        self.switch.phone.go_by(to.name())?;
        // The caller may have dropped its `Handover`.
        let _ = done.send(Instant::now());
        Ok(())
    }
}
