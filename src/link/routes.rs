//! Addresses and routes of one namespace, set over sockets that belong to it, from whichever thread.

use std::fmt::Display;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

use super::limits::{DEVICE_QUEUE_PACKETS, MTU};
use super::{Error, Namespace, sys};

/// Of the default route that is used; lower ones win.
const METRIC: u32 = 10;
/// Of the first route for sockets that are bound to a device; each device's is its own.
const METRIC_OF_BOUND: u32 = 1_000;

#[derive(Debug)]
pub(super) struct Routes {
    /// Takes requests about devices.
    devices: OwnedFd,
    /// Takes messages about routes.
    routes: OwnedFd,
    /// Indices of the devices that are up.
    up: Vec<u32>,
    /// Of the default route.
    used: Option<u32>,
    /// What new TCP connections use, where it is not the system's.
    congestion_control: Option<String>,
}

impl Routes {
    pub(super) fn new(namespace: &Namespace) -> Result<Routes, Error> {
        let open = || Ok((sys::control_socket()?, sys::route_socket()?));
        let (devices, routes) = namespace.run(open)?.map_err(failed("open a socket"))?;
        Ok(Routes { devices, routes, up: Vec::new(), used: None, congestion_control: None })
    }

    /// Gives a device its address, its MTU and its queue, brings it up, and adds the route for sockets bound to it.
    pub(super) fn bring_up(&mut self, device: &str, address: Ipv4Addr) -> Result<(), Error> {
        let socket = self.devices.as_fd();
        let set = || {
            sys::set_mtu(socket, device, MTU)?;
            sys::set_queue(socket, device, DEVICE_QUEUE_PACKETS)?;
            sys::set_address(socket, device, address)?;
            sys::set_up(socket, device)
        };
        set().map_err(failed(format!("set the device {device} up")))?;
        self.up.push(self.index(device)?);
        self.write()
    }

    /// Makes everything that is bound to no device leave by this one. There is a route at every moment.
    pub(super) fn go_by(&mut self, device: &str) -> Result<(), Error> {
        self.used = Some(self.index(device)?);
        self.write()
    }

    /// Makes TCP connections from now on use this algorithm. The namespace's own default can only be one that the whole
    /// machine allows to everybody; a route may name any.
    pub(super) fn set_congestion_control(&mut self, algorithm: &str) -> Result<(), Error> {
        let old = self.congestion_control.replace(algorithm.to_owned());
        self.write().inspect_err(|_| self.congestion_control = old)
    }

    fn index(&self, device: &str) -> Result<u32, Error> {
        sys::index(self.devices.as_fd(), device).map_err(failed(format!("find the device {device}")))
    }

    /// Writes all routes as they should be.
    fn write(&self) -> Result<(), Error> {
        let bound = self.up.iter().zip(METRIC_OF_BOUND..).map(|(device, metric)| (*device, metric));
        for (device, metric) in bound.chain(self.used.map(|device| (device, METRIC))) {
            let message = default_route(device, metric, self.congestion_control.as_deref());
            self.ask(&message).map_err(failed("set a default route"))?;
        }
        Ok(())
    }

    /// Sends a message and takes the answer to it.
    fn ask(&self, message: &[u8]) -> io::Result<()> {
        sys::write(self.routes.as_fd(), message)?;
        let mut answer = [0; 256];
        let length = sys::read(self.routes.as_fd(), &mut answer)?;
        // A header, and the error's number, negative; 0 is none.
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

/// A message of rtnetlink(7) that puts a default route through a device in the place of the one with this metric.
fn default_route(device: u32, metric: u32, congestion_control: Option<&str>) -> Vec<u8> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let mut body = vec![libc::AF_INET as u8, 0, 0, 0];
    body.extend([libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, libc::RT_SCOPE_LINK, libc::RTN_UNICAST]);
    body.extend([0; 4]);
    body.extend(attribute(libc::RTA_OIF, &device.to_ne_bytes()));
    body.extend(attribute(libc::RTA_PRIORITY, &metric.to_ne_bytes()));
    if let Some(algorithm) = congestion_control {
        let name = [algorithm.as_bytes(), &[0]].concat();
        body.extend(attribute(libc::RTA_METRICS, &attribute(RTAX_CC_ALGO, &name)));
    }
    let mut message = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(libc::RTM_NEWROUTE.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    // A number of the asker's choice, and the asker, which the kernel knows.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Congestion control among a route's metrics (linux/rtnetlink.h).
const RTAX_CC_ALGO: u16 = 16;

/// Length, kind and value, filled up to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
