//! The thread that writes: takes what waits, commits it as one, tells the observer, then answers.

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use super::LogObserver;
use super::embedded::{Commit, OnCommit};
use super::ledger::{Committed, Ledger, Op, Outcome, Reply};
use super::types::AcceptOutcome;
use crate::limits;

/// What waits for the writer.
pub(crate) enum Job {
    /// An operation, and who waits for its outcome.
    Do(Op, Option<oneshot::Sender<Outcome>>),
    /// Finish what waits, and end.
    Close,
}

pub(crate) struct Writer {
    pub(crate) ledger: Ledger,
    pub(crate) jobs: mpsc::Receiver<Job>,
    pub(crate) observer: Arc<dyn LogObserver>,
    pub(crate) on_commit: OnCommit,
    /// Of this thread alone: to wait for a job with a time limit.
    pub(crate) runtime: Runtime,
}

/// What came of waiting for a job.
enum Next {
    Job(Job),
    /// It is time to write the cursors.
    Flush,
    /// Nobody is left who could send one.
    End,
}

impl Writer {
    /// Runs until [`Job::Close`], or until nobody is left who could send anything.
    pub(crate) fn run(mut self) {
        let mut flush_at = None;
        loop {
            match self.next(flush_at) {
                Next::Job(job) => {
                    if !self.turn(job) {
                        break;
                    }
                }
                Next::Flush => {
                    if let Err(error) = self.ledger.flush_cursors() {
                        tracing::error!(%error, "the store failed; restart the server once the disk is well again");
                    }
                }
                Next::End => break,
            }
            flush_at = match (self.ledger.has_unwritten_cursors(), flush_at) {
                (false, _) => None,
                (true, Some(at)) => Some(at),
                (true, None) => Some(Instant::now() + limits::CURSOR_WRITTEN_WITHIN),
            };
        }
        self.close();
    }

    fn next(&mut self, flush_at: Option<Instant>) -> Next {
        if flush_at.is_some_and(|at| at <= Instant::now()) {
            return Next::Flush;
        }
        if let Ok(job) = self.jobs.try_recv() {
            return Next::Job(job);
        }
        let jobs = &mut self.jobs;
        let received = self.runtime.block_on(async {
            match flush_at {
                Some(at) => timeout_at(at.into(), jobs.recv()).await.map_err(|_| Next::Flush),
                None => Ok(jobs.recv().await),
            }
        });
        match received {
            Ok(Some(job)) => Next::Job(job),
            Ok(None) => Next::End,
            Err(flush) => flush,
        }
    }

    /// One commit, of `first` and what waits behind it; `false`: it was the last one.
    fn turn(&mut self, first: Job) -> bool {
        let mut waiting = Vec::new();
        let mut job = first;
        let goes_on = loop {
            let Job::Do(op, reply) = job else { break false };
            self.ledger.apply(op);
            waiting.push(reply);
            if self.ledger.is_full() {
                break true;
            }
            match self.jobs.try_recv() {
                Ok(next) => job = next,
                Err(_) => break true,
            }
        };
        self.commit(waiting);
        goes_on
    }

    fn commit(&mut self, waiting: Vec<Option<oneshot::Sender<Outcome>>>) {
        if waiting.is_empty() {
            return;
        }
        let began = Instant::now();
        let was_failed = self.ledger.has_failed();
        let committed = self.ledger.commit(Instant::now);
        if self.ledger.has_failed() && !was_failed {
            tracing::error!(outcome = ?committed.outcomes.first(), "the store failed and takes no more; restart the server");
        }
        if committed.synced {
            let commit = Commit { operations: waiting.len(), messages: messages(&committed), took: began.elapsed() };
            (self.on_commit)(commit);
        }
        for (user, entry) in &committed.appended {
            self.observer.appended(user, entry);
        }
        for change in &committed.changes {
            self.observer.changed(change);
        }
        for (reply, outcome) in waiting.into_iter().zip(committed.outcomes) {
            if let Some(reply) = reply {
                // Who does not wait any more does not mind.
                let _ = reply.send(outcome);
            }
        }
        self.observer.announced();
    }

    fn close(mut self) {
        self.jobs.close();
        while let Ok(job) = self.jobs.try_recv() {
            if let Job::Do(..) = job {
                self.turn(job);
            }
        }
        if let Err(error) = self.ledger.close() {
            tracing::error!(%error, "closing the store");
        }
    }
}

/// Messages that a commit has accepted, and not known before.
fn messages(committed: &Committed) -> usize {
    let accepted = |outcome: &&Outcome| matches!(outcome, Ok(Reply::Accepted(accepted)) if accepted.outcome != AcceptOutcome::Known);
    committed.outcomes.iter().filter(accepted).count()
}

/// Nothing: for those who do not measure.
pub(crate) fn unobserved(_commit: Commit) {}
