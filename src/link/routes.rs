//! Addresses and routes of one namespace, set over sockets that belong to it, so that any thread can do it.

use std::fmt::Display;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

use super::limits::{DEVICE_QUEUE_PACKETS, MTU};
use super::{Error, Namespace, sys};

/// Metric of the default route in use; lower metrics win.
const METRIC: u32 = 10;
/// Metric of the first device's route for sockets that are bound to it; each further device's is one higher.
const METRIC_OF_BOUND: u32 = 1_000;

#[derive(Debug)]
pub(super) struct Routes {
    /// Socket for ioctl requests about devices.
    devices: OwnedFd,
    /// Netlink socket for routes.
    routes: OwnedFd,
    /// Interface indices of the devices that are up.
    up: Vec<u32>,
    /// Interface index of the default route.
    used: Option<u32>,
    /// Congestion control of new TCP connections; `None` is the system's default.
    congestion_control: Option<String>,
}

impl Routes {
    pub(super) fn new(namespace: &Namespace) -> Result<Routes, Error> {
        let open = || Ok((sys::control_socket()?, sys::route_socket()?));
        let (devices, routes) = namespace.run(open)?.map_err(failed("open a socket"))?;
        Ok(Routes { devices, routes, up: Vec::new(), used: None, congestion_control: None })
    }

    /// Sets a device's MTU, queue and address, brings it up, and adds the route for sockets bound to it.
    pub(super) fn bring_up(&mut self, device: &str, address: Ipv4Addr) -> Result<(), Error> {
        let socket = self.devices.as_fd();
        let set = || {
            let index = sys::index(socket, device)?;
            self.ask(&queue(index, DEVICE_QUEUE_PACKETS))?;
            sys::set_mtu(socket, device, MTU)?;
            sys::set_address(socket, device, address)?;
            sys::set_up(socket, device)?;
            Ok(index)
        };
        self.up.push(set().map_err(failed(format!("set the device {device} up")))?);
        self.write()
    }

    /// Sends everything that is not bound to a device through this one. There is a route at every moment.
    pub(super) fn go_by(&mut self, device: &str) -> Result<(), Error> {
        let index = sys::index(self.devices.as_fd(), device);
        self.used = Some(index.map_err(failed(format!("find the device {device}")))?);
        self.write()
    }

    /// Sets the congestion control of TCP connections made from now on. It is set per route, because the namespace's
    /// default accepts only algorithms that the machine allows to everybody.
    pub(super) fn set_congestion_control(&mut self, algorithm: &str) -> Result<(), Error> {
        let old = self.congestion_control.replace(algorithm.to_owned());
        self.write().inspect_err(|_| self.congestion_control = old)
    }

    /// Writes all routes in their present state.
    fn write(&self) -> Result<(), Error> {
        let bound = self.up.iter().zip(METRIC_OF_BOUND..).map(|(device, metric)| (*device, metric));
        for (device, metric) in bound.chain(self.used.map(|device| (device, METRIC))) {
            let message = default_route(device, metric, self.congestion_control.as_deref());
            self.ask(&message).map_err(failed("set a default route"))?;
        }
        Ok(())
    }

    /// Sends a netlink message and reads its answer.
    fn ask(&self, message: &[u8]) -> io::Result<()> {
        sys::write(self.routes.as_fd(), message)?;
        let mut answer = [0; 256];
        let length = sys::read(self.routes.as_fd(), &mut answer)?;
        // The answer is a header and then the negative error number; 0 means success.
        let number = answer[..length].get(16..20).and_then(|number| number.first_chunk());
        match number.map(|number| i32::from_ne_bytes(*number)) {
            Some(0) => Ok(()),
            Some(number) => Err(io::Error::from_raw_os_error(-number)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn failed(what: impl Display) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::system(what, error)
}

/// A netlink message that sets the default route of this metric to a device, replacing an earlier one.
fn default_route(device: u32, metric: u32, congestion_control: Option<&str>) -> Vec<u8> {
    let mut body = vec![libc::AF_INET as u8, 0, 0, 0];
    body.extend([libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, libc::RT_SCOPE_LINK, libc::RTN_UNICAST]);
    body.extend([0; 4]);
    body.extend(attribute(libc::RTA_OIF, &device.to_ne_bytes()));
    body.extend(attribute(libc::RTA_PRIORITY, &metric.to_ne_bytes()));
    if let Some(algorithm) = congestion_control {
        let name = [algorithm.as_bytes(), &[0]].concat();
        body.extend(attribute(libc::RTA_METRICS, &attribute(RTAX_CC_ALGO, &name)));
    }
    message(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &body)
}

/// A netlink message that sets a device's queue length in packets. The ioctl for this would need privileges outside the
/// namespace.
fn queue(device: u32, packets: u32) -> Vec<u8> {
    // Address family and device type do not matter; then the index; no change of flags.
    let mut body = vec![0; 4];
    body.extend(device.to_ne_bytes());
    body.extend([0; 8]);
    body.extend(attribute(libc::IFLA_TXQLEN, &packets.to_ne_bytes()));
    message(libc::RTM_NEWLINK, 0, &body)
}

/// An rtnetlink(7) message that asks for an answer.
fn message(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let mut message = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16).to_ne_bytes());
    // Sequence number, which the sender may choose, and port id, which the kernel knows.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Congestion control among a route's metrics (linux/rtnetlink.h).
const RTAX_CC_ALGO: u16 = 16;

/// A netlink attribute: length, type and value, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
