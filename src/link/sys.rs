//! The system calls that the standard library lacks, each behind a safe function.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_ulong};
use std::io;
use std::mem;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Takes the calling thread, alone of its process, into a network namespace of its own.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: no pointers; it changes the calling thread's namespace only.
    done(unsafe { libc::unshare(libc::CLONE_NEWNET) })
}

/// Takes the calling thread into that network namespace. Async-signal-safe, as a child needs it before its program.
pub(super) fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open while it is borrowed.
    done(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Makes a TUN device in the calling thread's namespace; it ends with the descriptor, which does not block.
pub(super) fn make_tun(name: &str) -> io::Result<OwnedFd> {
    let path = c"/dev/net/tun";
    // SAFETY: the path is a C string, the descriptor is checked before it is owned, and nobody else has it.
    let tun = unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC);
        done(fd)?;
        OwnedFd::from_raw_fd(fd)
    };
    let mut request = request(name)?;
    // No prefix of its own before a packet; no offloads, so that the kernel cuts what is larger than the MTU and fills
    // in checksums before it hands a packet over.
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    control(tun.as_raw_fd(), libc::TUNSETIFF as c_ulong, &request)?;
    Ok(tun)
}

/// A socket through which devices of the calling thread's namespace are set, from whichever thread.
pub(super) fn control_socket() -> io::Result<OwnedFd> {
    socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
}

/// A socket that takes messages about routes of the calling thread's namespace, from whichever thread.
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

/// Gives a device its address; a point-to-point device, as TUN is, has no others on it.
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

pub(super) fn set_queue(socket: BorrowedFd<'_>, device: &str, packets: i32) -> io::Result<()> {
    let mut request = request(device)?;
    request.ifr_ifru.ifru_metric = packets;
    control(socket.as_raw_fd(), libc::SIOCSIFTXQLEN, &request).map(drop)
}

/// Brings a device up, without ARP, broadcasts and multicasts: there are only two ends.
pub(super) fn set_up(socket: BorrowedFd<'_>, device: &str) -> io::Result<()> {
    let mut request = request(device)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_NOARP) as i16;
    control(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request).map(drop)
}

/// The number by which routes know a device.
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
    // SAFETY: as for reading.
    let written = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// A counter that wakes whoever polls it: any write of eight bytes does.
pub(super) fn event() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is checked before it is owned, and nobody else has it.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        done(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Waits until one of these can be read, at most so long; a signal ends it as well.
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

/// Makes the calling thread the first to run when its time has come, and its timers exact.
pub(super) fn become_real_time() -> io::Result<()> {
    // SAFETY: the parameters live to the end of the call; both calls change the calling thread only.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as c_ulong);
        let mut parameters: libc::sched_param = mem::zeroed();
        parameters.sched_priority = 1;
        done(libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters))
    }
}

/// Gives a socket a receive buffer beyond what the system allows others.
pub(super) fn set_receive_buffer(socket: &UdpSocket, bytes: usize) -> io::Result<()> {
    let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    // SAFETY: the value lives to the end of the call and is as long as it says.
    done(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            mem::size_of::<c_int>() as libc::socklen_t,
        )
    })
}

/// An `ioctl` about a device; returns the request as the kernel left it.
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
    // The port, and then the address.
    for (to, from) in socket.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from as c_char;
    }
    socket
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
