//! The system calls that the standard library lacks, each behind a safe function.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_ulong};
use std::io;
use std::mem;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Moves the calling thread, and no other of its process, into a new network namespace.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: no pointers; it changes the calling thread's namespace only.
    done(unsafe { libc::unshare(libc::CLONE_NEWNET) })
}

/// Moves the calling thread into an existing network namespace. Async-signal-safe, as a child process calls it before
/// exec.
pub(super) fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open while it is borrowed.
    done(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Makes a TUN device in the calling thread's namespace. The descriptor does not block; closing it removes the device.
pub(super) fn make_tun(name: &str) -> io::Result<OwnedFd> {
    let path = c"/dev/net/tun";
    // SAFETY: the path is a C string, the descriptor is checked before it is owned, and nobody else has it.
    let tun = unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC);
        done(fd)?;
        OwnedFd::from_raw_fd(fd)
    };
    let mut request = request(name)?;
    // No extra header before a packet. No offloads, so that the kernel splits what is larger than the MTU and fills in
    // checksums before it hands a packet over.
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    control(tun.as_raw_fd(), libc::TUNSETIFF as c_ulong, &request)?;
    Ok(tun)
}

/// A socket that configures devices of the calling thread's namespace; any thread may use it.
pub(super) fn control_socket() -> io::Result<OwnedFd> {
    socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
}

/// A netlink socket for routes of the calling thread's namespace; any thread may use it.
pub(super) fn route_socket() -> io::Result<OwnedFd> {
    socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is checked before it is owned, and nobody else has it.
    unsafe {
        let fd = libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol);
        done(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sets a device's address. A TUN device is point-to-point, so the address brings no subnet with it.
pub(super) fn set_address(socket: BorrowedFd<'_>, device: &str, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(device)?;
    request.ifr_ifru.ifru_addr = socket_address(address);
    control(socket.as_raw_fd(), libc::SIOCSIFADDR, &request).map(drop)
}

pub(super) fn set_mtu(socket: BorrowedFd<'_>, device: &str, bytes: usize) -> io::Result<()> {
    let mut request = request(device)?;
    request.ifr_ifru.ifru_mtu = bytes as c_int;
    control(socket.as_raw_fd(), libc::SIOCSIFMTU, &request).map(drop)
}

/// Brings a device up without ARP, broadcast and multicast, as it connects two ends only.
pub(super) fn set_up(socket: BorrowedFd<'_>, device: &str) -> io::Result<()> {
    let mut request = request(device)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_NOARP) as i16;
    control(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request).map(drop)
}

/// The interface index that routes use for a device.
pub(super) fn index(socket: BorrowedFd<'_>, device: &str) -> io::Result<u32> {
    let request = control(socket.as_raw_fd(), libc::SIOCGIFINDEX, &request(device)?)?;
    // SAFETY: the request that succeeded wrote this field of the union.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    Ok(index.unsigned_abs())
}

pub(super) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is as long as it says and borrowed for the call.
    let read = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

pub(super) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: as for `read`.
    let written = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// An eventfd: any write of eight bytes wakes a thread that polls it.
pub(super) fn event() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is checked before it is owned, and nobody else has it.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        done(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Waits until one of the descriptors is readable or the timeout has passed; a signal ends the wait, too.
pub(super) fn wait<const N: usize>(fds: [BorrowedFd<'_>; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut time: libc::timespec = unsafe { mem::zeroed() };
    let timeout = timeout.map_or(std::ptr::null(), |timeout| {
        time.tv_sec = libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX);
        time.tv_nsec = timeout.subsec_nanos() as _;
        &raw const time
    });
    // SAFETY: the list is as long as it says, and the time lives to the end of the call.
    match done(unsafe { libc::ppoll(polled.as_mut_ptr(), N as libc::nfds_t, timeout, std::ptr::null()) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
        result => result.map(|()| polled.map(|polled| polled.revents != 0)),
    }
}

/// Gives the calling thread real-time priority and exact timers.
pub(super) fn become_real_time() -> io::Result<()> {
    // SAFETY: the parameters live to the end of the call; both calls change the calling thread only.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as c_ulong);
        let mut parameters: libc::sched_param = mem::zeroed();
        parameters.sched_priority = 1;
        done(libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters))
    }
}

/// Sets a socket's receive buffer. Root outside the namespace may exceed the system's limit; other users get as much as
/// the limit allows.
pub(super) fn set_receive_buffer(socket: &UdpSocket, bytes: usize) -> io::Result<()> {
    let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    let set = |option| {
        let size = mem::size_of::<c_int>() as libc::socklen_t;
        // SAFETY: the value lives to the end of the call and is as long as it says.
        done(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const bytes).cast(), size) })
    };
    set(libc::SO_RCVBUFFORCE).or_else(|_| set(libc::SO_RCVBUF))
}

/// An `ioctl` about a device; returns the request as the kernel changed it.
fn control(fd: c_int, request: c_ulong, argument: &libc::ifreq) -> io::Result<libc::ifreq> {
    let mut argument = *argument;
    // SAFETY: all requests made here take this structure; the copy may be written to.
    done(unsafe { libc::ioctl(fd, request as _, &raw mut argument) })?;
    Ok(argument)
}

fn request(device: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device_name(device)?.as_bytes()) {
        *to = *from as c_char;
    }
    Ok(request)
}

fn device_name(device: &str) -> io::Result<CString> {
    let fits = device.len() < libc::IFNAMSIZ;
    CString::new(device).ok().filter(|_| fits).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut socket: libc::sockaddr = unsafe { mem::zeroed() };
    socket.sa_family = libc::AF_INET as libc::sa_family_t;
    // The port comes first, then the address.
    for (to, from) in socket.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from as c_char;
    }
    socket
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
