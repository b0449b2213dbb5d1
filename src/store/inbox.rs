//! Writes for callers with many under way: submitted without a future for each, and answered into one inbox.
//!
//! When a message finds no place in the store, the messages that the same caller submitted behind it, before it knew of
//! the refusal, are refused, too. Otherwise one of them could find a place and overtake it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;

use super::ledger::{Op, Outcome};
use super::queue::Turn;
use super::types::{Acknowledgment, NewMessage};
use super::{StoreError, ledger};
use crate::wire::{Eid, MessageId};

/// A write for [`super::Store::submit`].
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
    /// The user in whose turn the write is applied.
    pub(crate) fn turn(&self) -> Turn {
        Some(match self {
            Write::Accept(message, _) => message.sender.clone(),
            Write::Release(sender, _) => sender.clone(),
            Write::Acknowledge(acknowledgment) => acknowledgment.reader.clone(),
        })
    }

    pub(crate) fn into_op(self) -> Op {
        match self {
            Write::Accept(message, release) => Op::Accept { message, release },
            Write::Release(_, message) => Op::Release(message),
            Write::Acknowledge(acknowledgment) => Op::Acknowledge(*acknowledgment),
        }
    }
}

/// A write that found no place in the queue, and its promise.
pub type Unplaced = (Write, Promise);

/// The answer to a write: the number that its caller gave it, and the outcome.
pub type Answer = (u32, Result<ledger::Reply, StoreError>);

/// Collects the answers to one caller's writes, each once. It holds at most as many as the caller has writes under way.
#[derive(Default)]
pub struct Inbox {
    answers: Mutex<Vec<Answer>>,
    /// Whether an answer was added since the inbox was last emptied.
    filled: AtomicBool,
    /// Number of messages that the store refused when it came to them.
    refused: AtomicU32,
    /// How many of these the caller has seen, less the refusals of [`Promise::refuse`] that it has not seen. What is submitted
    /// while the two differ is behind a refusal.
    known: AtomicU32,
    waker: AtomicWaker,
}

impl Inbox {
    /// Registers the waker. Call this before [`Inbox::take`], so that no wake-up is lost.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Removes and returns all answers, in the order in which they were added.
    pub fn take(&self) -> Vec<Answer> {
        if !self.filled.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        let answers = std::mem::take(&mut *self.answers());
        let refused = answers.iter().filter(|(_, outcome)| is_refusal(outcome)).count() as u32;
        self.known.fetch_add(refused, Ordering::Relaxed);
        answers
    }

    /// Adds an answer. Returns `true` if the caller must follow with [`Inbox::wake`], because no earlier [`Inbox::put`]
    /// will.
    fn put(&self, answer: Answer) -> bool {
        self.answers().push(answer);
        !self.filled.swap(true, Ordering::AcqRel)
    }

    /// Wakes the inbox's owner, unless it has emptied the inbox since.
    pub(super) fn wake(&self) {
        if self.filled.load(Ordering::Acquire) {
            self.waker.wake();
        }
    }

    fn answers(&self) -> MutexGuard<'_, Vec<Answer>> {
        // A poisoned lock can be used: nothing panics half-way through a change while holding it.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_refusal(outcome: &Outcome) -> bool {
    matches!(outcome, Err(StoreError::Overloaded | StoreError::DiskFull | StoreError::ChatFull))
}

/// The receiver of an operation's outcome.
pub(super) enum ReplyTo {
    Nobody,
    /// A caller that no longer waits does not get the outcome, which is harmless.
    Caller(oneshot::Sender<Outcome>),
    Inbox(Promise),
}

impl ReplyTo {
    /// Whether a write of the same caller was refused for lack of a place, and the caller did not know that when it
    /// submitted this one.
    pub(super) fn is_behind_refusal(&self) -> bool {
        match self {
            ReplyTo::Inbox(Promise { inbox: Some(inbox), known, .. }) => {
                inbox.refused.load(Ordering::Relaxed) != *known
            }
            _ => false,
        }
    }

    /// Records a refusal as soon as the outcome is known, because the next writes of the caller may be applied before
    /// it is sent.
    pub(super) fn note(&self, outcome: &Outcome) {
        if let ReplyTo::Inbox(Promise { inbox: Some(inbox), .. }) = self
            && is_refusal(outcome)
        {
            inbox.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends the outcome. A returned inbox has to be woken, best after all other outcomes are sent.
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

/// An answer owed to an inbox. If the promise is dropped, the answer is [`StoreError::Closed`].
pub struct Promise {
    inbox: Option<Arc<Inbox>>,
    number: u32,
    /// [`Inbox::known`] when the write was submitted.
    known: u32,
}

impl Promise {
    /// The promise for a write that the inbox's owner submits now, under this number.
    pub fn new(inbox: Arc<Inbox>, number: u32) -> Promise {
        let known = inbox.known.load(Ordering::Relaxed);
        Promise { inbox: Some(inbox), number, known }
    }

    /// Answers with [`StoreError::Overloaded`]: the write found no place.
    pub fn refuse(self) {
        // What was submitted before has a place in front of it. Only what is submitted from now on, until the caller knows,
        // is behind it: `Inbox::take` counts this refusal, too.
        if let Some(inbox) = &self.inbox {
            inbox.known.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(inbox) = self.keep(Err(StoreError::Overloaded)) {
            inbox.wake();
        }
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
    use std::task::Poll;

    use futures_util::task::{ArcWake, waker};

    use super::*;
    use crate::limits::STORE_UNRELEASED_CHAT_MAX;
    use crate::store::ledger::Reply;
    use crate::store::testing::{Gate, eid, text};
    use crate::store::types::Accepted;
    use crate::store::{Embedded, Memory, Options, Store};

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

    /// Waits for `count` answers: the accepted message, or `None` for other operations.
    async fn answers(inbox: &Inbox, count: usize) -> Vec<Result<Option<Accepted>, StoreError>> {
        let mut all = Vec::new();
        while all.len() < count {
            let some = std::future::poll_fn(|cx| {
                inbox.register(cx.waker());
                Some(inbox.take()).filter(|some| !some.is_empty()).map_or(Poll::Pending, Poll::Ready)
            });
            all.extend(some.await.into_iter().map(|(_, outcome)| match outcome? {
                Reply::Accepted(accepted) => Ok(Some(accepted)),
                _ => Ok(None),
            }));
        }
        all
    }

    #[tokio::test]
    async fn what_is_behind_a_message_without_a_place_does_not_go_before_it() {
        let (gate, go_on) = Gate::new();
        let store = Embedded::open_memory(Memory::new(), Options::default(), gate.clone()).unwrap();
        let (inbox, full) = (Arc::new(Inbox::default()), STORE_UNRELEASED_CHAT_MAX as u64);
        let accept = |number| {
            let write = Write::Accept(Box::new(text("alice", "bob", number)), false);
            assert!(store.submit(write, Promise::new(inbox.clone(), number as u32)).is_ok());
        };
        accept(1);
        gate.reached().await;
        go_on.send(()).unwrap();
        let Ok(Some(oldest)) = answers(&inbox, 1).await.remove(0) else { panic!("it is the first") };
        // The writer is blocked at the second message while all others are submitted.
        (2..=full + 1).for_each(accept);
        gate.reached().await;
        let release = Write::Release(eid("alice"), oldest.message.id);
        assert!(store.submit(release, Promise::new(inbox.clone(), 0)).is_ok());
        accept(full + 2);
        drop(go_on);
        let told = answers(&inbox, full as usize + 2).await.into_iter();
        let told: Vec<_> = told.map(|told| told.map(|accepted| accepted.map(|it| it.message.version.get()))).collect();
        let mut expected: Vec<_> = (2..=full).map(|version| Ok(Some(version))).collect();
        let refused = || Err(StoreError::ChatFull);
        expected.extend([refused(), Ok(None), refused()]);
        assert_eq!(told, expected, "there was a place again for the last one");
        // The sender knows of the refusal now, and sends the message again.
        accept(full + 1);
        let Ok(Some(again)) = answers(&inbox, 1).await.remove(0) else { panic!("there is a place") };
        assert_eq!(again.message.version.get(), full + 1);
    }
}
