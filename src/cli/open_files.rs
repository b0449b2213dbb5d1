//! The limit on this process's open files and sockets.

/// Raises the soft limit to the hard limit. Systems start with a lower soft limit, mostly 1,024, for programs that
/// cannot handle more descriptors; a server has one socket for each device over TCP.
///
/// On failure the limit stays as it is: `doctor` and the metric `process_max_fds` show it.
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
