//! TUN devices: made in a namespace, read and written by the link's thread.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Error, Missing, Namespace, sys};

/// A TUN device; dropping it removes the device.
#[derive(Debug)]
pub(super) struct Device {
    tun: OwnedFd,
}

impl Device {
    pub(super) fn new(namespace: &Namespace, name: &'static str) -> Result<Device, Error> {
        let made = namespace.run(|| sys::make_tun(name))?;
        let tun = made.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Missing::Tun(error.to_string()),
            _ if error.raw_os_error() == Some(libc::ENODEV) => Missing::Tun(error.to_string()),
            _ => Missing::Devices(error.to_string()),
        })?;
        Ok(Device { tun })
    }

    /// The next packet sent through the device, if one waits.
    pub(super) fn read<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match sys::read(self.tun.as_fd(), buffer) {
            Ok(length) => Ok(Some(&buffer[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The caller tries again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hands a packet to the device's namespace; false if it did not accept the packet.
    pub(super) fn write(&self, packet: &[u8]) -> bool {
        sys::write(self.tun.as_fd(), packet).is_ok_and(|written| written == packet.len())
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

/// Datagrams that the namespace's UDP sockets had no room for.
pub(super) fn refused(namespace: &Namespace) -> Result<u64, Error> {
    let failed = |error| Error::system("read the sockets' counters", error);
    let table = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))?.map_err(failed)?;
    // A line of names, then one of values.
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(str::split_whitespace);
    let (names, values) = (lines.next().into_iter().flatten(), lines.next().into_iter().flatten());
    let refused = names.zip(values).find(|(name, _)| *name == "RcvbufErrors");
    refused.and_then(|(_, count)| count.parse().ok()).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

/// Packets that the devices of a namespace dropped, because nobody read them in time or because of an error.
pub(super) fn dropped(namespace: &Namespace) -> Result<u64, Error> {
    let failed = |error| Error::system("read the devices' counters", error);
    let table = namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?.map_err(failed)?;
    // Two heading lines. Then per device the name, eight columns received and eight sent; columns three and four of
    // each are errors and drops.
    let of_device = |line: &str| {
        let (_, columns) = line.split_once(':')?;
        let columns: Vec<u64> = columns.split_whitespace().map_while(|column| column.parse().ok()).collect();
        Some([2, 3, 10, 11].into_iter().filter_map(|column| columns.get(column)).sum::<u64>())
    };
    Ok(table.lines().skip(2).filter_map(of_device).sum())
}
