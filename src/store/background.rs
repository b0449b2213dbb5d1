//! Threads that work for later and should not keep waiting those for whom somebody waits now.

/// How much less of a busy processor they get, as `nice` counts it: a tenth of what the others have. With less they fall behind
/// in a flood, and then the writer waits for them.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;
#[cfg(target_os = "linux")]
const NICE_MAX: i32 = 19;
/// What they ask for at a time, the most that Linux gives (6.12 and later; before, nothing changes): who wakes up and wants less
/// has the processor at once, and does not wait until the time of the one that runs is up.
#[cfg(target_os = "linux")]
const SLICE: std::time::Duration = std::time::Duration::from_millis(100);

/// From here on the calling thread gives way to the others, and so do the threads that it starts.
///
/// Only on Linux, where this is a thread's own; elsewhere it would be the whole process.
#[allow(unsafe_code)]
pub(super) fn give_way() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: no pointers. Zero is the calling thread, which is there.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        // SAFETY: an integer structure, which zeros are valid for.
        let mut wanted: libc::sched_attr = unsafe { std::mem::zeroed() };
        wanted.size = std::mem::size_of::<libc::sched_attr>() as u32;
        // A batch thread takes the processor from nobody when it wakes up.
        wanted.sched_policy = libc::SCHED_BATCH.unsigned_abs();
        wanted.sched_nice = (nice + NICE).min(NICE_MAX);
        wanted.sched_runtime = SLICE.as_nanos() as u64;
        // SAFETY: the structure lives through the call and says its own size. Going down is allowed to everybody, but for a
        // filter of system calls.
        if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) } == -1 {
            let error = std::io::Error::last_os_error();
            tracing::info!(%error, "the store's threads for files do not give way: everybody else waits for them now and then");
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn who_gives_way_hands_it_down_and_leaves_others_alone() {
        let scheduled = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // The 19th field and the 41st; the second is the name in parentheses, which may hold anything.
            let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            [16, 38].map(|field| fields[field].parse::<i32>().unwrap())
        };
        let before = scheduled();
        let child = std::thread::spawn(move || {
            super::give_way();
            (scheduled(), std::thread::spawn(scheduled).join().unwrap())
        });
        let lower = [(before[0] + super::NICE).min(super::NICE_MAX), libc::SCHED_BATCH];
        assert_eq!(child.join().unwrap(), (lower, lower));
        assert_eq!(scheduled(), before);
        assert_ne!(before, lower);
    }
}
