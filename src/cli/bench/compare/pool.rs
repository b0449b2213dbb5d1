//! Runs trials, some at once.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// From the beginning of one trial to that of the next: the moments that are measured are short, and trials of one kind
/// would otherwise reach theirs together and wait for the processor.
pub(super) const APART: Duration = Duration::from_millis(400);

/// Each job with what came of it, begun at least so far `apart` at first, in the order in which they ended.
///
/// # Errors
///
/// The first that a job gave. No further job is begun then.
pub(super) fn run<J: Send, O: Send>(
    jobs: impl IntoIterator<Item = J>,
    at_once: u8,
    apart: Duration,
    trial: impl Fn(&J) -> anyhow::Result<O> + Sync,
) -> anyhow::Result<Vec<(J, O)>> {
    let jobs = Mutex::new(jobs.into_iter().collect::<VecDeque<J>>());
    let done = Mutex::new(Ok(Vec::new()));
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || {
        while let Some(job) = next() {
            let outcome = trial(&job);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            match (outcome, &mut *done) {
                (Ok(outcome), Ok(done)) => done.push((job, outcome)),
                (Err(error), Ok(_)) => {
                    jobs.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    *done = Err(error);
                }
                (_, Err(_)) => {}
            }
        }
    };
    std::thread::scope(|scope| {
        for index in 0..u32::from(at_once) {
            scope.spawn(move || {
                std::thread::sleep(apart * index);
                work();
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_is_done_once_and_the_first_error_ends_it() {
        let mut done = run(0..10, 3, Duration::ZERO, |job| Ok(job * 2)).unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..10).map(|job| (job, job * 2)).collect::<Vec<_>>());

        let first_three = |job: &i32| if *job < 3 { Ok(()) } else { Err(anyhow::anyhow!("job {job}")) };
        let error = run(0..10, 1, Duration::ZERO, first_three).unwrap_err();
        assert_eq!(error.to_string(), "job 3", "the fourth, and none after it");
    }
}
