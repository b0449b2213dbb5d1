//! The store calls of a session that are under way.
//!
//! Most are writes of chat. They need no future each: the store answers them into one inbox. When the store has no place for a
//! write, that write waits for one, and the writes behind it wait their turn, so that a sender's messages stay in order. After
//! a while all of them are refused (503), except releases, because no client would request those again. Releases wait for as
//! long as the store lives, even after their session has ended. There are no more of them than the session has unreleased
//! messages.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::{FutureExt, future::BoxFuture};

use super::call::run;
use super::{Asked, Call, Done};
use crate::store::{Answer, Inbox, Promise, Store, Unplaced, Write};
use crate::wire::{DeviceId, Eid, Sequence};

pub(super) struct Calls {
    store: Arc<dyn Store>,
    inbox: Arc<Inbox>,
    /// Taken out of the inbox, and not processed yet.
    answers: std::vec::IntoIter<Answer>,
    /// The writes under way by the number that their answer carries, oldest first; answers mostly come in that order.
    asked: VecDeque<(u32, Asked)>,
    last: u32,
    /// A write for which the store had no place, and those behind it.
    stalled: Option<Box<Stalled>>,
    /// `None` when idle: even an empty one takes memory.
    others: Option<FuturesUnordered<BoxFuture<'static, Done>>>,
}

struct Stalled {
    waiting: BoxFuture<'static, Result<(), Unplaced>>,
    /// The writes behind it.
    held: VecDeque<Unplaced>,
}

impl Calls {
    pub(super) fn new(store: Arc<dyn Store>) -> Calls {
        Calls {
            store,
            inbox: Arc::default(),
            answers: Vec::new().into_iter(),
            asked: VecDeque::new(),
            last: 0,
            stalled: None,
            others: None,
        }
    }

    /// Starts a call. It must be polled before it does anything.
    pub(super) fn start(&mut self, call: Call) {
        self.others.get_or_insert_default().push(run(self.store.clone(), call).boxed());
    }

    /// Submits a write. Returns `true` if it must be polled before it does anything.
    pub(super) fn write(&mut self, asked: Asked, write: Write) -> bool {
        self.last = self.last.wrapping_add(1);
        self.asked.push_back((self.last, asked));
        // Created here even for a write that waits: the promise records which refusals were known when it was requested.
        let promise = Promise::new(self.inbox.clone(), self.last);
        match &mut self.stalled {
            Some(stalled) => {
                stalled.held.push_back((write, promise));
                false
            }
            None => self.submit((write, promise), VecDeque::new()),
        }
    }

    /// Moves the device's cursor; there is no answer.
    pub(super) fn synced(&self, user: &Eid, device: &DeviceId, sequence: Sequence) {
        self.store.advance_cursor(user, device, sequence);
    }

    /// Submits the writes one after the other. Returns `true` if one has to wait for a place; those behind it then wait, too.
    fn submit(&mut self, first: Unplaced, mut behind: VecDeque<Unplaced>) -> bool {
        let mut next = Some(first);
        while let Some((write, promise)) = next {
            if let Err((write, promise)) = self.store.submit(write, promise) {
                let store = self.store.clone();
                let waiting = async move { store.submit_later(write, promise).await }.boxed();
                self.stalled = Some(Box::new(Stalled { waiting, held: behind }));
                return true;
            }
            next = behind.pop_front();
        }
        false
    }

    /// The next call that is done; `None` if none is under way.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Done>> {
        if let Some(done) = self.answered(cx) {
            return Poll::Ready(Some(done));
        }
        if let Some(stalled) = &mut self.stalled
            && let Poll::Ready(placed) = stalled.waiting.poll_unpin(cx)
        {
            if self.go_on(placed) {
                // Another write waits now, and must be polled.
                cx.waker().wake_by_ref();
            }
            // Reported at once: a message that the session accepts before it knows of the refusals would overtake them.
            if let Some(done) = self.answered(cx) {
                return Poll::Ready(Some(done));
            }
        }
        if let Some(others) = &mut self.others {
            match others.poll_next_unpin(cx) {
                Poll::Ready(Some(done)) => return Poll::Ready(Some(done)),
                Poll::Ready(None) => self.others = None,
                Poll::Pending => {}
            }
        }
        // A write that waits for a place is in `asked`, too.
        if self.asked.is_empty() && self.others.is_none() { Poll::Ready(None) } else { Poll::Pending }
    }

    pub(super) async fn next(&mut self) -> Option<Done> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Gives back the memory of what is empty.
    pub(super) fn rest(&mut self) {
        if self.asked.is_empty() {
            self.asked = VecDeque::new();
        }
    }

    fn answered(&mut self, cx: &Context<'_>) -> Option<Done> {
        if self.answers.as_slice().is_empty() {
            self.inbox.register(cx.waker());
            self.answers = self.inbox.take().into_iter();
        }
        let (number, outcome) = self.answers.next()?;
        let place = self.asked.iter().position(|(asked, _)| *asked == number)?;
        let (_, asked) = self.asked.remove(place)?;
        Some(asked.done(outcome))
    }

    /// The write that waited has got a place, or has waited too long. In the latter case it is refused with all writes behind
    /// it, except releases. Returns `true` if another write has to wait.
    fn go_on(&mut self, placed: Result<(), Unplaced>) -> bool {
        let Some(stalled) = self.stalled.take() else { return false };
        let mut held = stalled.held;
        if let Err(late) = placed {
            held.push_front(late);
            let (releases, refused): (VecDeque<_>, VecDeque<_>) =
                held.into_iter().partition(|(write, _)| matches!(write, Write::Release(..)));
            refused.into_iter().for_each(|(_, promise)| promise.refuse());
            held = releases;
        }
        held.pop_front().is_some_and(|first| self.submit(first, held))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::limits::{STORE_QUEUE_MAX, STORE_UNRELEASED_CHAT_MAX};
    use crate::session::Origin;
    use crate::store::testing::{Gate, Nobody, eid, take_places, text};
    use crate::store::{Embedded, Memory, Options, StoreError};
    use crate::wire::{ChatId, Lane, MessageId, Version};

    fn accept(number: u64) -> (Asked, Write) {
        let message = text("alice", "bob", number);
        let origin = Origin { lane: Lane::Chat, request_id: 0, payload: "text_payload_request" };
        (Asked::Accept(origin, message.local_id.clone()), Write::Accept(Box::new(message), true))
    }

    fn write(calls: &mut Calls, (asked, write): (Asked, Write)) -> bool {
        calls.write(asked, write)
    }

    /// A store whose writer is blocked at message 1 and whose queue is full. Dropping the sender unblocks the writer.
    async fn stalled(queue_wait: Duration) -> (Calls, mpsc::Sender<()>) {
        let (gate, go_on) = Gate::new();
        let options = Options { queue_wait, ..Options::default() };
        let store = Arc::new(Embedded::open_memory(Memory::new(), options, gate.clone()).unwrap());
        let mut calls = Calls::new(store.clone());
        assert!(!write(&mut calls, accept(1)), "the store has it");
        gate.reached().await;
        take_places(&store, STORE_QUEUE_MAX);
        (calls, go_on)
    }

    async fn all(calls: &mut Calls) -> Vec<(String, Result<u64, StoreError>)> {
        let mut all = Vec::new();
        while let Some(done) = calls.next().await {
            let Done::Accept(_, local, accepted) = done else { panic!("{done:?}") };
            all.push((local.to_string(), accepted.map(|accepted| accepted.message.version.get())));
        }
        all
    }

    #[tokio::test]
    async fn writes_that_wait_for_a_place_stay_in_order() {
        let (mut calls, go_on) = stalled(Duration::from_secs(60)).await;
        assert!(write(&mut calls, accept(2)), "it waits for a place");
        for number in 3..=20 {
            assert!(!write(&mut calls, accept(number)), "it waits for that one");
        }
        assert!(futures_util::poll!(std::pin::pin!(calls.next())).is_pending());
        drop(go_on);
        let expected: Vec<_> = (1..=20).map(|number| (format!("local-{number}"), Ok(number))).collect();
        assert_eq!(all(&mut calls).await, expected);
        assert_eq!(calls.store.chat_version(ChatId::between(&eid("alice"), &eid("bob"))).await, Ok(Version::from(20)));
    }

    #[tokio::test]
    async fn what_has_no_place_in_time_is_refused_and_so_is_what_waits_behind_it() {
        let (mut calls, go_on) = stalled(Duration::ZERO).await;
        for number in 2..=4 {
            write(&mut calls, accept(number));
        }
        let id = MessageId::from_bytes([7; 16]);
        calls.write(Asked::Release(id), Write::Release(eid("alice"), id));
        let mut refused = Vec::new();
        for _ in 0..3 {
            let Some(Done::Accept(_, local, Err(StoreError::Overloaded))) = calls.next().await else { panic!() };
            refused.push(local.to_string());
        }
        assert_eq!(refused, ["local-2", "local-3", "local-4"]);
        assert!(futures_util::poll!(std::pin::pin!(calls.next())).is_pending());
        write(&mut calls, accept(5));
        drop(go_on);
        let (mut released, mut accepted) = (0, Vec::new());
        while let Some(done) = calls.next().await {
            match done {
                Done::Release(_, Ok(())) => released += 1,
                Done::Accept(_, local, _) => accepted.push(local.to_string()),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(released, 1, "nobody would ask for it again");
        accepted.sort();
        assert_eq!(accepted, ["local-1", "local-5"], "each is answered");
    }

    #[tokio::test]
    async fn what_is_refused_behind_a_release_that_goes_on_waiting_is_told_before_anything_else_is_taken() {
        let (mut calls, _stand) = stalled(Duration::ZERO).await;
        let id = MessageId::from_bytes([7; 16]);
        calls.write(Asked::Release(id), Write::Release(eid("alice"), id));
        (2..=3).for_each(|number| _ = write(&mut calls, accept(number)));
        let name = |done| match done {
            Some(Done::Accept(_, local, Err(StoreError::Overloaded))) => local.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(name(calls.next().await), "local-2");
        let Poll::Ready(next) = futures_util::poll!(std::pin::pin!(calls.next())) else {
            panic!("the session would go on")
        };
        assert_eq!(name(next), "local-3");
    }

    #[tokio::test]
    async fn what_waits_for_a_place_does_not_go_before_a_message_that_is_refused_meanwhile() {
        let (gate, go_on) = Gate::new();
        let store = Arc::new(Embedded::open_memory(Memory::new(), Options::default(), gate.clone()).unwrap());
        let mut calls = Calls::new(store.clone());
        let unreleased = |number| {
            let (asked, Write::Accept(message, _)) = accept(number) else { unreachable!() };
            (asked, Write::Accept(message, false))
        };
        let full = STORE_UNRELEASED_CHAT_MAX as u64;
        write(&mut calls, unreleased(1));
        gate.reached().await;
        go_on.send(()).unwrap();
        let Some(Done::Accept(_, _, Ok(oldest))) = calls.next().await else { panic!("it is the first") };
        // The writer blocks at the second message. The last of the others is one too many, but only until the release behind
        // it.
        (2..=full + 1).for_each(|number| assert!(!write(&mut calls, unreleased(number)), "{number} has a place"));
        gate.reached().await;
        assert!(!calls.write(Asked::Release(oldest.message.id), Write::Release(eid("alice"), oldest.message.id)));
        take_places(&store, STORE_QUEUE_MAX);
        assert!(write(&mut calls, unreleased(full + 2)), "it waits for a place");
        drop(go_on);
        // Alice's writes are done in turn: the refusal is there, and known, before a place becomes free.
        store.release(&eid("alice"), oldest.message.id).await.unwrap();
        let mut refused = Vec::new();
        while let Some(done) = calls.next().await {
            match done {
                Done::Accept(_, local, Err(StoreError::Overloaded | StoreError::ChatFull)) => {
                    refused.push(local.to_string())
                }
                Done::Accept(_, _, Ok(_)) | Done::Release(_, Ok(())) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(refused, [full + 1, full + 2].map(|number| format!("local-{number}")));
    }

    #[tokio::test]
    async fn what_has_a_place_is_not_refused_for_what_came_behind_it() {
        let (gate, go_on) = Gate::new();
        let options = Options { queue_wait: Duration::ZERO, ..Options::default() };
        let store = Arc::new(Embedded::open_memory(Memory::new(), options, gate.clone()).unwrap());
        let mut calls = Calls::new(store.clone());
        assert!(!write(&mut calls, accept(1)));
        gate.reached().await;
        // 2 and 3 have a place in the queue, behind the commit that the disk holds up. 4 finds none in time.
        assert!(!write(&mut calls, accept(2)));
        assert!(!write(&mut calls, accept(3)));
        take_places(&store, STORE_QUEUE_MAX - 2);
        assert!(write(&mut calls, accept(4)));
        let mut told = Vec::new();
        let Some(Done::Accept(_, local, outcome)) = calls.next().await else { panic!() };
        told.push((local.to_string(), outcome.is_ok()));
        drop(go_on);
        told.extend(all(&mut calls).await.into_iter().map(|(local, outcome)| (local, outcome.is_ok())));
        let expected = [("local-4", false), ("local-1", true), ("local-2", true), ("local-3", true)];
        assert_eq!(told, expected.map(|(local, ok)| (local.to_owned(), ok)));
    }

    #[tokio::test]
    async fn a_closed_store_answers_everything() {
        let store = Arc::new(Embedded::open_memory(Memory::new(), Options::default(), Arc::new(Nobody)).unwrap());
        let mut calls = Calls::new(store.clone());
        store.close().await;
        (1..=3).for_each(|number| _ = write(&mut calls, accept(number)));
        let answers = all(&mut calls).await;
        assert!(answers.iter().all(|(_, answer)| *answer == Err(StoreError::Closed)), "{answers:?}");
        assert_eq!(answers.len(), 3);
    }
}
