//! Threads that work for later and should not keep waiting those for whom somebody waits now.

/// How much less of a busy processor they get, as `nice` counts it: a tenth of what the others have.
#[cfg(target_os = "linux")]
const NICE: libc::c_int = 10;

/// From here on the calling thread gives way to the others, and so do the threads that it starts.
///
/// Only on Linux, where this is a thread's own; elsewhere it would be the whole process.
#[allow(unsafe_code)]
pub(super) fn give_way() {
    // SAFETY: no pointers. Going down is allowed to everybody, but for a filter of system calls. (-1 is also a priority,
    // to which it comes from -11.)
    #[cfg(target_os = "linux")]
    if unsafe { libc::nice(NICE) } == -1 {
        let error = std::io::Error::last_os_error();
        tracing::info!(%error, "the store's threads for files do not give way: everybody else waits for them now and then");
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn who_gives_way_hands_it_down_and_leaves_others_alone() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // The 19th field; the second is the name in parentheses, which may hold anything.
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        let child = std::thread::spawn(move || {
            super::give_way();
            (nice(), std::thread::spawn(nice).join().unwrap())
        });
        let lower = (before + super::NICE).min(19);
        assert_eq!(child.join().unwrap(), (lower, lower));
        assert_eq!(nice(), before);
    }
}
