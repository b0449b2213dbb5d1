//! The whole emulated network: two namespaces, three devices, and the thread that carries packets between them.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use serde::Serialize;

use super::control::{Control, Orders};
use super::counters::Path;
use super::device::{self, Device};
use super::limits::{BATCH_PACKETS, MTU, ORDERS_MAX};
use super::router::{Addresses, Exit, Router};
use super::routes::Routes;
use super::{Error, Namespace, Profile, sys};

/// The range does not matter to networks outside, as nothing leaves the namespaces.
const ADDRESSES: Addresses = Addresses {
    server: Ipv4Addr::new(10, 77, 0, 1),
    phone: [Ipv4Addr::new(10, 77, 1, 2), Ipv4Addr::new(10, 77, 2, 2)],
    public: [Ipv4Addr::new(10, 77, 101, 1), Ipv4Addr::new(10, 77, 102, 1)],
};
/// The name of the server's device.
const SERVER_DEVICE: &str = "internet";

/// The profiles and the seed of a network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Plan {
    /// The path that the phone starts on.
    pub wifi: Profile,
    /// The other path.
    pub lte: Profile,
    /// Seeds all random decisions: the same seed and the same packets in the same order give the same losses and
    /// delays.
    pub seed: u64,
}

/// A phone, a server and the network between them, until it is dropped. Several can exist at once, also from one plan.
#[derive(Debug)]
pub struct Network {
    phone: Namespace,
    server: Namespace,
    control: Control,
    is_real_time: bool,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// Makes the namespaces and devices and starts to carry packets.
    ///
    /// # Errors
    /// [`Error::Missing`] where the machine cannot have a link, [`Error::Profile`] for a profile that contradicts
    /// itself, [`Error::System`] if a system call fails, [`Error::Ended`] if the thread does not start.
    pub fn start(plan: Plan) -> Result<Network, Error> {
        plan.wifi.check()?;
        plan.lte.check()?;
        let (phone, server) = (Namespace::new()?, Namespace::new()?);
        for namespace in [&phone, &server] {
            // With two ways out, the phone receives packets on one device for the other device's address.
            namespace.set("net.ipv4.conf.all.rp_filter", "0")?;
            namespace.set("net.ipv4.conf.default.rp_filter", "0")?;
            // The link does not carry IPv6; without addresses nothing tries it. A kernel without IPv6 has no such
            // parameter.
            let _ = namespace.set("net.ipv6.conf.default.disable_ipv6", "1");
        }
        let paths = [Device::new(&phone, Path::Wifi.name())?, Device::new(&phone, Path::Lte.name())?];
        let internet = Device::new(&server, SERVER_DEVICE)?;
        let (mut routes, mut back) = (Routes::new(&phone)?, Routes::new(&server)?);
        for path in Path::BOTH {
            routes.bring_up(path.name(), ADDRESSES.phone[path.index()])?;
        }
        routes.go_by(Path::Wifi.name())?;
        back.bring_up(SERVER_DEVICE, ADDRESSES.server)?;

        let router = Router::new(ADDRESSES, [plan.wifi, plan.lte], plan.seed, Instant::now());
        let wake = sys::event().map_err(|error| Error::system("make an event", error))?;
        let (sender, receiver) = sync_channel(ORDERS_MAX);
        let control = Control::new(sender, wake.into());
        let orders = Orders::new(receiver, &control, routes, back);
        let (started, starts) = sync_channel(1);
        let carry = move || {
            // If the receiver is gone, its network is about to be dropped.
            let _ = started.send(sys::become_real_time().is_ok());
            let carrier = Carrier { paths, internet, router, orders };
            if let Err(error) = carrier.carry() {
                tracing::error!(%error, "the link has ended");
            }
        };
        let thread = thread::Builder::new().name("link".to_owned()).spawn(carry);
        let thread = thread.map_err(|error| Error::system("start the link's thread", error))?;
        let is_real_time = starts.recv().map_err(|_| Error::Ended("its thread did not start".to_owned()))?;
        Ok(Network { phone, server, control, is_real_time, thread: Some(thread) })
    }

    /// The phone's namespace.
    pub fn phone(&self) -> &Namespace {
        &self.phone
    }

    /// The server's namespace.
    pub fn server(&self) -> &Namespace {
        &self.server
    }

    /// The address that the phone connects to.
    pub fn server_address(&self) -> IpAddr {
        ADDRESSES.server.into()
    }

    /// The phone's own address on a path.
    pub fn phone_address(&self, path: Path) -> IpAddr {
        ADDRESSES.phone[path.index()].into()
    }

    /// The address at which the server sees the phone on a path.
    pub fn public_address(&self, path: Path) -> IpAddr {
        ADDRESSES.public[path.index()].into()
    }

    /// The handle that changes the network while it runs and reads its counters.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Whether the link's thread has real-time priority, which takes CAP_SYS_NICE. Without it, delays on a busy machine
    /// are longer than configured.
    pub fn is_real_time(&self) -> bool {
        self.is_real_time
    }

    /// Packets that the kernel dropped at the devices because the link's thread did not read them in time, and datagrams that it
    /// dropped at UDP sockets because their programs did not, which TCP would have waited with. Anything but 0 invalidates a
    /// measurement.
    ///
    /// # Errors
    /// [`Error::System`] if the kernel's counters cannot be read.
    pub fn missed(&self) -> Result<u64, Error> {
        let missed = [&self.phone, &self.server].map(|side| Ok(device::dropped(side)? + device::refused(side)?));
        missed.into_iter().sum()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported already.
            let _ = thread.join();
        }
    }
}

/// What the link's thread owns.
struct Carrier {
    paths: [Device; 2],
    internet: Device,
    router: Router,
    orders: Orders,
}

impl Carrier {
    /// Carries packets and executes orders until it is told to stop.
    fn carry(mut self) -> Result<(), Error> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error| Error::system(what, error)
        };
        // One byte more than the largest packet, to detect a longer one; the devices' MTU rules that out.
        let mut buffer = [0; MTU + 1];
        loop {
            let now = Instant::now();
            self.orders.fall_due(now)?;
            self.router.deliver(now, |exit, packet| match exit {
                Exit::Server => self.internet.write(packet),
                Exit::Phone(path) => self.paths[path.index()].write(packet),
            });
            let due = [self.router.due(), self.orders.due()].into_iter().flatten().min();
            let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
            let [wifi, lte] = &self.paths;
            let fds = [wifi.fd(), lte.fd(), self.internet.fd(), self.orders.wake().as_fd()];
            let [wifi, lte, internet, order] = sys::wait(fds, timeout).map_err(failed("wait for packets"))?;
            if order && !self.orders.take(&mut self.router) {
                return Ok(());
            }
            for (path, readable) in Path::BOTH.into_iter().zip([wifi, lte]) {
                for _ in 0..if readable { BATCH_PACKETS } else { 0 } {
                    let read = self.paths[path.index()].read(&mut buffer);
                    let Some(packet) = read.map_err(failed("read from the phone"))? else { break };
                    self.router.phone_sends(path, packet, Instant::now());
                }
            }
            for _ in 0..if internet { BATCH_PACKETS } else { 0 } {
                let read = self.internet.read(&mut buffer);
                let Some(packet) = read.map_err(failed("read from the server"))? else { break };
                self.router.server_sends(packet, Instant::now());
            }
        }
    }
}
