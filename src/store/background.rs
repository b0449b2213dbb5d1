//! Threads that work for later and should not keep waiting those for whom somebody waits now.

/// How much less of a busy processor they get, as `nice` counts it: a tenth of what the others have.
#[cfg(target_os = "linux")]
const NICE: libc::c_int = 10;

/// From here on the calling thread gives way to the others, and so do the threads that it starts.
///
/// Only on Linux, where this is a thread's own; elsewhere it would be the whole process.
#[allow(unsafe_code)]
pub(super) fn give_way() {
    // SAFETY: no pointers. Going down is allowed to everybody, so that there is nothing to look at in what it returns.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::nice(NICE);
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
