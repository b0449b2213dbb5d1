//! Runs several trials at a time.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Delay between the starts of the first trials. What is measured takes moments; without the delay, trials of one kind
/// would reach these moments together and compete for the processor.
pub(super) const APART: Duration = Duration::from_millis(400);

/// Runs each job and returns it with its outcome, in the order of completion. The first jobs start `apart` from each
/// other.
///
/// # Errors
///
/// The first error of a job. No further job is started then.
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
