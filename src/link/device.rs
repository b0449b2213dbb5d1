//! TUN devices: made in a namespace, read and written from the link's thread.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Error, Missing, Namespace, sys};

/// A TUN device; it is gone when this is dropped.
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
            _ => Missing::TunDenied(error.to_string()),
        })?;
        Ok(Device { tun })
    }

    /// The next packet that somebody sends through it, if one waits.
    pub(super) fn read<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match sys::read(self.tun.as_fd(), buffer) {
            Ok(length) => Ok(Some(&buffer[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // It is called again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hands a packet to its namespace, which may not take it.
    pub(super) fn write(&self, packet: &[u8]) -> bool {
        sys::write(self.tun.as_fd(), packet).is_ok_and(|written| written == packet.len())
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

/// Packets that devices of a namespace dropped because nobody read them in time, or took in error.
pub(super) fn dropped(namespace: &Namespace) -> Result<u64, Error> {
    let failed = |error| Error::system("read the devices' counters", error);
    let table = namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?.map_err(failed)?;
    // Two lines of heading; then a name and its columns: eight received, eight sent; the third and fourth of each are
    // errors and drops.
    let of_device = |line: &str| {
        let (_, columns) = line.split_once(':')?;
        let columns: Vec<u64> = columns.split_whitespace().map_while(|column| column.parse().ok()).collect();
        Some([2, 3, 10, 11].into_iter().filter_map(|column| columns.get(column)).sum::<u64>())
    };
    Ok(table.lines().skip(2).filter_map(of_device).sum())
}
