//! The writer thread: takes queued operations, commits them as one, notifies the observer, then answers the callers.

use std::sync::Arc;
use std::time::Instant;

use super::LogObserver;
use super::embedded::{Commit, OnCommit};
use super::inbox::ReplyTo;
use super::ledger::{Committed, Ledger, Op, Outcome, Reply};
use super::queue::{Job, Next, Waiting};
use super::types::AcceptOutcome;
use crate::limits;

pub(crate) struct Writer {
    pub(crate) ledger: Ledger,
    pub(crate) jobs: Waiting,
    pub(crate) observer: Arc<dyn LogObserver>,
    pub(crate) on_commit: OnCommit,
}

impl Writer {
    /// Runs until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        let mut cursors_due = None;
        loop {
            match self.jobs.next(cursors_due) {
                Next::Job(job) => self.turn(job, cursors_due.is_some_and(|at| at <= Instant::now())),
                Next::Late => self.flush_cursors(),
                Next::End => break,
            }
            cursors_due = match (self.ledger.has_unwritten_cursors(), cursors_due) {
                (false, _) => None,
                (true, Some(at)) => Some(at),
                (true, None) => Some(Instant::now() + limits::CURSOR_WRITTEN_WITHIN),
            };
        }
        self.flush_cursors();
    }

    fn flush_cursors(&mut self) {
        if !self.ledger.has_unwritten_cursors() {
            return;
        }
        let began = Instant::now();
        match self.ledger.flush_cursors() {
            Ok(()) => (self.on_commit)(Commit { operations: 0, messages: 0, took: began.elapsed() }),
            Err(error) => tracing::error!(%error, "the store failed; restart the server once the disk is well again"),
        }
    }

    /// Makes one commit of `first` and the operations queued behind it, and of the moved cursors if they are due.
    fn turn(&mut self, first: Job, cursors_due: bool) {
        let mut waiting = Vec::new();
        let mut next = Some(first);
        while let Some(Job { op, reply }) = next {
            let refuse = matches!(op, Op::Accept { .. }) && reply.is_behind_refusal();
            let outcome = if refuse { self.ledger.refuse() } else { self.ledger.apply(op) };
            reply.note(outcome);
            waiting.push(reply);
            next = if self.ledger.is_full() { None } else { self.jobs.try_next() };
        }
        if cursors_due {
            self.ledger.add_cursors();
        }
        self.commit(waiting);
    }

    fn commit(&mut self, waiting: Vec<ReplyTo>) {
        let began = Instant::now();
        let was_failed = self.ledger.has_failed();
        let committed = self.ledger.commit(Instant::now);
        if self.ledger.has_failed() && !was_failed {
            tracing::error!(outcome = ?committed.outcomes.first(), "the store failed and takes no more; restart the server");
        }
        if committed.written {
            let commit = Commit { operations: waiting.len(), messages: messages(&committed), took: began.elapsed() };
            (self.on_commit)(commit);
        }
        for (user, entry) in &committed.appended {
            self.observer.appended(user, entry);
        }
        for change in &committed.changes {
            self.observer.changed(change);
        }
        let told = waiting.into_iter().zip(committed.outcomes);
        let to_wake: Vec<_> = told.filter_map(|(reply, outcome)| reply.send(outcome)).collect();
        to_wake.iter().for_each(|inbox| inbox.wake());
        self.observer.announced();
    }
}

/// Number of messages that a commit newly accepted; repeats do not count.
fn messages(committed: &Committed) -> usize {
    let accepted = |outcome: &&Outcome| matches!(outcome, Ok(Reply::Accepted(accepted)) if accepted.outcome != AcceptOutcome::Known);
    committed.outcomes.iter().filter(accepted).count()
}

/// Does nothing: for callers that do not measure commits.
pub(crate) fn unobserved(_commit: Commit) {}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc;

    use futures_util::future::{join_all, join5};

    use crate::limits::COMMIT_ROWS_MAX;
    use crate::store::memory::Memory;
    use crate::store::testing::{Nobody, ack, eid, text};
    use crate::store::{AckTarget, Embedded, Options, Store};
    use crate::wire::{AckStatus, ChatId, Version};

    use super::*;

    #[tokio::test]
    async fn bulk_acknowledgments_that_fill_commits_hold_another_user_back_for_one() {
        const ROWS: u64 = COMMIT_ROWS_MAX as u64 / 2;
        let commits = Arc::new(Mutex::new(Vec::new()));
        // Holds the writer once, at the end of a commit.
        let (go_on, told) = mpsc::channel::<()>();
        let (reached, held) = mpsc::channel();
        let hold = Arc::new(Mutex::new(None));
        let on_commit = {
            let (commits, hold) = (commits.clone(), hold.clone());
            Box::new(move |commit: Commit| {
                commits.lock().unwrap().push((commit.operations, commit.messages));
                let told: Option<mpsc::Receiver<()>> = hold.lock().unwrap().take();
                if let Some(told) = told {
                    reached.send(()).unwrap();
                    let _ = told.recv();
                }
            })
        };
        let options = Options { on_commit, ..Options::default() };
        let store = Embedded::open_memory(Memory::new(), options, Arc::new(Nobody)).unwrap();
        for first in (0..ROWS).step_by(512) {
            let numbers = (first..ROWS.min(first + 512)).flat_map(|number| [(number, "ann"), (ROWS + number, "ben")]);
            let sent = join_all(numbers.map(|(number, sender)| store.accept(text(sender, "much", number), true))).await;
            sent.into_iter().for_each(|sent| drop(sent.unwrap()));
        }
        // Two of these fill a commit.
        let bulk = [AckStatus::Delivered, AckStatus::Read].into_iter().flat_map(|status| {
            ["ann", "ben"].map(|sender| {
                let target = AckTarget::UpTo(ChatId::between(&eid(sender), &eid("much")), Version::from(ROWS));
                store.acknowledge(ack("much", target, status, 1))
            })
        });
        commits.lock().unwrap().clear();
        *hold.lock().unwrap() = Some(told);
        // They are polled in this order.
        let (check, (), acknowledged, accepted, ()) = join5(
            store.check(),
            async { held.recv().unwrap() },
            join_all(bulk),
            store.accept(text("little", "other", 0), true),
            async { drop(go_on) },
        )
        .await;
        check.unwrap();
        accepted.unwrap();
        assert!(acknowledged.into_iter().all(|acknowledged| acknowledged.unwrap().changed));
        // The check, two acknowledgments that fill a commit, and then the message before the other two.
        assert_eq!(*commits.lock().unwrap(), [(1, 0), (2, 0), (3, 1)]);
    }
}
