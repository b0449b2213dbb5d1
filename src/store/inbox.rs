//! Writes of which somebody has many under way: asked for without a future for each, answered into one inbox.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;

use super::ledger::{Op, Outcome};
use super::queue::Turn;
use super::types::{Acknowledgment, NewMessage};
use super::{StoreError, ledger};
use crate::wire::{Eid, MessageId};

/// A write that [`super::Store::submit`] takes.
#[derive(Debug)]
pub enum Write {
    /// [`super::Store::accept`].
    Accept(Box<NewMessage>, bool),
    /// [`super::Store::release`].
    Release(Eid, MessageId),
    /// [`super::Store::acknowledge`].
    Acknowledge(Box<Acknowledgment>),
}

impl Write {
    /// Whose turn it is done in, and what is done.
    pub(crate) fn into_op(self) -> (Turn, Op) {
        match self {
            Write::Accept(message, release) => (Some(message.sender.clone()), Op::Accept { message, release }),
            Write::Release(sender, message) => (Some(sender), Op::Release(message)),
            Write::Acknowledge(acknowledgment) => {
                (Some(acknowledgment.reader.clone()), Op::Acknowledge(*acknowledgment))
            }
        }
    }
}

/// What came of a write: its own number, and the outcome.
pub type Answer = (u32, Result<ledger::Reply, StoreError>);

/// Where the answers to one caller's writes come in, each once. It holds no more than the caller has under way.
#[derive(Default)]
pub struct Inbox {
    answers: Mutex<Vec<Answer>>,
    /// Something was put in since it was last emptied.
    filled: AtomicBool,
    waker: AtomicWaker,
}

impl Inbox {
    /// Whom to wake; register before taking.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// All that has come in, in order.
    pub fn take(&self) -> Vec<Answer> {
        if self.filled.swap(false, Ordering::AcqRel) { std::mem::take(&mut *self.answers()) } else { Vec::new() }
    }

    /// `true` if a [`Inbox::wake`] has to follow, as nobody else's does.
    fn put(&self, answer: Answer) -> bool {
        self.answers().push(answer);
        !self.filled.swap(true, Ordering::AcqRel)
    }

    /// Has the caller look, unless it has done so since.
    pub(super) fn wake(&self) {
        if self.filled.load(Ordering::Acquire) {
            self.waker.wake();
        }
    }

    fn answers(&self) -> MutexGuard<'_, Vec<Answer>> {
        // Nothing in here panics half-way through a change.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who is told what came of an operation.
pub(super) enum ReplyTo {
    Nobody,
    /// Who does not wait any more does not mind.
    Caller(oneshot::Sender<Outcome>),
    Inbox(Promise),
}

impl ReplyTo {
    /// Tells; what comes back has to be woken, best after all others are told.
    pub(super) fn send(self, outcome: Outcome) -> Option<Arc<Inbox>> {
        match self {
            ReplyTo::Nobody => None,
            ReplyTo::Caller(caller) => {
                let _ = caller.send(outcome);
                None
            }
            ReplyTo::Inbox(promise) => promise.keep(outcome),
        }
    }
}

/// An answer that is owed to an inbox: if nobody gives it, it is that the store is closed.
pub(super) struct Promise {
    inbox: Option<Arc<Inbox>>,
    number: u32,
}

impl Promise {
    pub(super) fn new(inbox: Arc<Inbox>, number: u32) -> Promise {
        Promise { inbox: Some(inbox), number }
    }

    fn keep(mut self, outcome: Outcome) -> Option<Arc<Inbox>> {
        self.inbox.take().filter(|inbox| inbox.put((self.number, outcome)))
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(inbox) = self.inbox.take()
            && inbox.put((self.number, Err(StoreError::Closed)))
        {
            inbox.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::task::{ArcWake, waker};

    use super::*;
    use crate::store::ledger::Reply;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl ArcWake for Count {
        fn wake_by_ref(count: &Arc<Count>) {
            count.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_is_owed_several_answers_is_woken_once_and_gets_each_once() {
        let (inbox, count) = (Arc::new(Inbox::default()), Arc::new(Count::default()));
        let answer = |number| ReplyTo::Inbox(Promise::new(inbox.clone(), number)).send(Ok(Reply::Done));
        let numbers = || inbox.take().iter().map(|(number, _)| *number).collect::<Vec<_>>();
        inbox.register(&waker(count.clone()));
        let first = answer(1).expect("somebody has to wake it");
        assert!(answer(2).is_none());
        first.wake();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(numbers(), [1, 2]);
        assert!(numbers().is_empty());

        inbox.register(&waker(count.clone()));
        let second = answer(3).expect("again");
        assert_eq!(numbers(), [3]);
        second.wake();
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "it has looked already");
    }

    #[test]
    fn an_answer_that_nobody_gives_is_that_the_store_is_closed() {
        let (inbox, count) = (Arc::new(Inbox::default()), Arc::new(Count::default()));
        inbox.register(&waker(count.clone()));
        drop(Promise::new(inbox.clone(), 7));
        assert!(matches!(inbox.take()[..], [(7, Err(StoreError::Closed))]));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}
