//! How many files and sockets this process may have open.

/// Raises the limit as far as the process may itself. The lower one that systems begin with, mostly 1,024, is for programs that
/// cannot handle more; a server has a socket for each device over TCP.
///
/// Where it cannot, it stays as it is: `doctor` and the metric `process_max_fds` tell how far it reaches.
#[allow(unsafe_code)]
pub(super) fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours, and the call fills it or fails.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    if known && limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the structure lives through the call.
        let _ = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}
