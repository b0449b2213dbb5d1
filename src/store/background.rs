//! Low priority for background threads, so that they do not delay threads whose work somebody waits for.

/// Added to the thread's `nice` value: on a busy core the thread gets a tenth of the time that others get. With less,
/// background threads fall behind under a flood of writes, and the writer waits for them.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;
#[cfg(target_os = "linux")]
const NICE_MAX: i32 = 19;
/// Requested time slice, the longest that Linux grants (6.12 and later; earlier versions ignore it). A thread that
/// wakes up with a shorter slice preempts this one at once, instead of waiting for the end of its slice.
#[cfg(target_os = "linux")]
const SLICE: std::time::Duration = std::time::Duration::from_millis(100);

/// Lowers the priority of the calling thread, and of the threads that it starts from then on.
///
/// Linux only, where priority belongs to a thread; elsewhere it would apply to the whole process.
#[allow(unsafe_code)]
pub(super) fn give_way() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the call takes no pointers. Zero is the calling thread, which exists.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        // SAFETY: the structure has integer fields only, for which zeros are valid.
        let mut wanted: libc::sched_attr = unsafe { std::mem::zeroed() };
        wanted.size = std::mem::size_of::<libc::sched_attr>() as u32;
        // A batch thread does not preempt others when it wakes up.
        wanted.sched_policy = libc::SCHED_BATCH.unsigned_abs();
        wanted.sched_nice = (nice + NICE).min(NICE_MAX);
        wanted.sched_runtime = SLICE.as_nanos() as u64;
        // SAFETY: the structure lives through the call and states its own size. Everybody may lower a priority; only a
        // system-call filter can refuse it.
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
            // Fields 19 (nice) and 41 (policy). The second field is the name in parentheses, which may contain
            // anything.
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
