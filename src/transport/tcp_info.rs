//! What the kernel knows about the path of a TCP connection.

use tokio::net::TcpStream;

use crate::session::PathStats;

/// Round trip, segments sent, and segments sent again; nothing if the kernel does not report them.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub(super) fn path(stream: &TcpStream) -> PathStats {
    use std::mem::{MaybeUninit, size_of};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is the stream's, which is borrowed; the kernel writes at most `length` bytes into `info`.
    let failed = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if failed != 0 {
        return PathStats::default();
    }
    // SAFETY: all fields are integers, for which zeroes are valid where an older kernel wrote less.
    let info = unsafe { info.assume_init() };
    PathStats {
        rtt: (info.tcpi_rtt > 0).then(|| Duration::from_micros(info.tcpi_rtt.into())),
        packets_sent: info.tcpi_segs_out.into(),
        packets_lost: info.tcpi_total_retrans.into(),
        ..PathStats::default()
    }
}

/// Other systems report nothing.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn path(_stream: &TcpStream) -> PathStats {
    PathStats::default()
}
