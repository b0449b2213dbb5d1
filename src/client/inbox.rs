//! The bounded queue of events from the device's task to the application. It reports back which events the application
//! took.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::core::{Outgoing, Taken};
use super::event::Event;
use super::limits::{EVENTS_HELD_MAX, EVENTS_MAX};

/// The stream of events of one device.
///
/// Read it in a task of its own, or concurrently with calls that wait for the device. While [`EVENTS_MAX`] events lie
/// here untaken, the device reads only the control lane, and the server keeps the rest. The exception is while the
/// server owes an answer: the device then reads up to [`super::limits::AHEAD_BYTES_MAX`] further, because the answer
/// may lie behind events. If it does not come within that, the waiting calls fail with an `Unread` error.
///
/// Dropping it discards all further events; they are not acknowledged automatically.
#[derive(Debug)]
pub struct Events {
    inbox: Arc<Inbox>,
}

impl Events {
    /// Waits for the next event and takes it; `None` once the application has closed the device (or its task has ended
    /// otherwise) and all events were taken. The events of a device that has stopped by itself do not end, as
    /// [`Device::reconnect`](super::Device::reconnect) starts it again: watch [`Device::state`](super::Device::state), too.
    ///
    /// With [`auto_sync`](super::Builder::auto_sync) or [`auto_deliver`](super::Builder::auto_deliver), a taken event
    /// counts as safe or delivered. Cancel safe: an event is either returned or stays in the stream.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            {
                let mut state = self.inbox.lock();
                if let Some(event) = state.pop() {
                    drop(state);
                    self.inbox.taken.notify_one();
                    return Some(event);
                }
                if state.ended {
                    return None;
                }
            }
            self.inbox.ready.notified().await;
        }
    }

    /// Waits for the next event and returns a copy without taking it; `None` as for [`Events::next`]. The event counts
    /// as taken only when [`Events::next`] returns it. For an application that first stores the event and may fail at
    /// that:
    ///
    /// ```no_run
    /// # use bimip::client::{Event, Events};
    /// # fn store(_: &Event) -> std::io::Result<()> { Ok(()) }
    /// # async fn example(mut events: Events) -> std::io::Result<()> {
    /// while let Some(event) = events.peek().await {
    ///     store(&event)?; // if this fails, the event has not been taken
    ///     events.next().await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Cancel safe.
    pub async fn peek(&mut self) -> Option<Event> {
        loop {
            {
                let state = self.inbox.lock();
                let next = state.events.front().map(|outgoing| outgoing.event.clone());
                if next.is_some() || state.ended {
                    return next;
                }
            }
            self.inbox.ready.notified().await;
        }
    }

    /// Takes the next event if there is one now; does not wait.
    pub fn try_next(&mut self) -> Option<Event> {
        let event = self.inbox.lock().pop()?;
        self.inbox.taken.notify_one();
        Some(event)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut state = self.inbox.lock();
        state.unread = true;
        state.events.clear();
        drop(state);
        self.inbox.taken.notify_one();
    }
}

/// The task's end of the queue.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    ready: Notify,
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Outgoing>,
    /// Taken by the application, but not yet handled by the task (acknowledgment, SyncAck).
    taken: VecDeque<Taken>,
    /// The device is closed.
    ended: bool,
    /// The application has dropped [`Events`].
    unread: bool,
}

impl State {
    fn pop(&mut self) -> Option<Event> {
        let Outgoing { event, taken } = self.events.pop_front()?;
        self.taken.extend(taken);
        Some(event)
    }
}

impl Inbox {
    pub(crate) fn new() -> (Arc<Inbox>, Events) {
        let inbox = Arc::new(Inbox::default());
        let events = Events { inbox: inbox.clone() };
        (inbox, events)
    }

    /// Moves events in while there is room.
    pub(crate) fn fill(&self, mut next: impl FnMut() -> Option<Outgoing>) {
        let mut state = self.lock();
        let mut any = false;
        while state.unread || state.events.len() + state.taken.len() < EVENTS_MAX {
            let Some(event) = next() else { break };
            if !state.unread {
                state.events.push_back(event);
                any = true;
            }
        }
        drop(state);
        if any {
            self.ready.notify_one();
        }
    }

    /// Adds an event that is no entry of the log: at most one for each ticket that the application held. Of messages that
    /// were not sent there can be any number, so of these one is dropped at the bound.
    pub(crate) fn add(&self, event: Event) {
        let mut state = self.lock();
        if state.events.len() >= EVENTS_MAX + EVENTS_HELD_MAX && matches!(event, Event::NotSent(_)) {
            tracing::warn!(?event, "an event was dropped: the application takes none");
        } else if !state.unread {
            state.events.push_back(Outgoing { event, taken: None });
        }
        drop(state);
        self.ready.notify_one();
    }

    /// The next event that the application took and the task has not handled.
    pub(crate) fn next_taken(&self) -> Option<Taken> {
        self.lock().taken.pop_front()
    }

    /// Waits until the application has taken something.
    pub(crate) async fn wait_taken(&self) {
        self.taken.notified().await;
    }

    /// No event will follow.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.ready.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while holding the lock, and the queue is consistent at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::error::CloseReason;
    use crate::wire::Sequence;

    fn entry(number: u64) -> Outgoing {
        Outgoing {
            event: Event::Disconnected(CloseReason::Local),
            taken: Some(Taken { sequence: Sequence::from(number), deliver: None }),
        }
    }

    #[tokio::test]
    async fn the_queue_takes_no_more_than_its_bound_until_the_task_has_seen_what_was_taken() {
        let (inbox, mut events) = Inbox::new();
        let mut source = (1..=2 * EVENTS_MAX).map(|number| entry(number as u64)).collect::<VecDeque<_>>().into_iter();
        inbox.fill(|| source.next());
        assert_eq!(source.len(), EVENTS_MAX);
        assert!(events.next().await.is_some());
        inbox.fill(|| source.next());
        assert_eq!(source.len(), EVENTS_MAX);
        inbox.wait_taken().await;
        assert_eq!(inbox.next_taken().map(|taken| taken.sequence), Some(Sequence::from(1)));
        inbox.fill(|| source.next());
        assert_eq!(source.len(), EVENTS_MAX - 1);

        drop(events);
        inbox.wait_taken().await;
        inbox.fill(|| source.next());
        assert_eq!(source.len(), 0);
    }

    #[tokio::test]
    async fn what_was_only_looked_at_was_not_taken() {
        let (inbox, mut events) = Inbox::new();
        let mut source = [entry(1)].into_iter();
        inbox.fill(|| source.next());
        inbox.end();
        let looked_at = events.peek().await;
        assert!(looked_at.is_some());
        assert_eq!(events.peek().await, looked_at);
        assert_eq!(inbox.next_taken(), None);
        assert_eq!(events.next().await, looked_at);
        assert_eq!(inbox.next_taken().map(|taken| taken.sequence), Some(Sequence::from(1)));
        assert_eq!(events.peek().await, None);
    }

    #[tokio::test]
    async fn the_end_comes_after_the_last_event() {
        let (inbox, mut events) = Inbox::new();
        let mut source = [entry(1), entry(2)].into_iter();
        inbox.fill(|| source.next());
        inbox.end();
        assert!(events.next().await.is_some());
        assert!(events.try_next().is_some());
        assert!(events.next().await.is_none());
        assert!(events.next().await.is_none());
    }
}
