//! Signals to a session from the rest of the server, which never wait for the session.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;

use crate::limits::SESSION_NOTICES_MAX;
use crate::wire::CloseCode;

/// A notice to a session from another part of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Close with this code.
    Close(CloseCode),
    /// The server is shutting down: finish what is under way, then close.
    Drain,
    /// Ping the device on behalf of another session (protocol.md §6).
    Ping(Relay),
    /// A device has answered a ping that this session asked for: the session's number for the ping, and the measured
    /// time.
    Pong(u64, Duration),
}

/// A ping on behalf of another session: who asked, and under which number.
#[derive(Clone)]
pub struct Relay {
    /// The asker's own number for the ping.
    pub number: u64,
    /// The asker's mailbox.
    pub asker: Arc<Signal>,
    /// Whether one of the pinged devices has answered: further answers would only fill the asker's queue.
    pub answered: Arc<AtomicBool>,
}

impl PartialEq for Relay {
    fn eq(&self, other: &Relay) -> bool {
        self.number == other.number && Arc::ptr_eq(&self.asker, &other.asker)
    }
}

impl Eq for Relay {}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Relay({})", self.number)
    }
}

/// One session's mailbox: a flag that says that its log has advanced, and a bounded queue of notices.
#[derive(Default)]
pub struct Signal {
    advanced: AtomicBool,
    notices: Mutex<VecDeque<Notice>>,
    waker: AtomicWaker,
}

impl Signal {
    /// Sets the flag and wakes the session: its log has advanced.
    pub fn advanced(&self) {
        if self.mark() {
            self.waker.wake();
        }
    }

    /// Sets the flag without waking the session. Returns `true` if the caller must follow with [`Signal::wake`],
    /// because no other caller will.
    #[must_use]
    pub fn mark(&self) -> bool {
        !self.advanced.swap(true, Ordering::AcqRel)
    }

    /// Wakes the session, unless it has taken the flag since [`Signal::mark`].
    pub fn wake(&self) {
        if self.advanced.load(Ordering::Acquire) {
            self.waker.wake();
        }
    }

    /// Queues a notice and wakes the session. If the queue is full, the new notice is dropped. Only a close replaces
    /// the oldest notice and goes to the front instead, because it makes everything before it void.
    pub fn notify(&self, notice: Notice) {
        {
            let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
            if notices.len() < SESSION_NOTICES_MAX {
                notices.push_back(notice);
            } else if matches!(notice, Notice::Close(_)) {
                notices.pop_front();
                notices.push_front(notice);
            } else if notice == Notice::Drain
                && let Some(ping) = notices.iter_mut().rfind(|held| matches!(held, Notice::Ping(_) | Notice::Pong(..)))
            {
                *ping = notice;
            }
        }
        self.waker.wake();
    }

    /// Takes the flag: whether the log has advanced since the last call.
    pub fn take_advanced(&self) -> bool {
        self.advanced.swap(false, Ordering::AcqRel)
    }

    /// Whether there is anything to look at, for tests that poll instead of being woken.
    #[cfg(test)]
    pub(crate) fn is_set(&self) -> bool {
        self.advanced.load(Ordering::Acquire) || !self.notices.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Removes and returns the oldest notice.
    pub fn take_notice(&self) -> Option<Notice> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Registers the waker. Call this before taking the flag and notices, so that no wake-up is lost.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::{ArcWake, waker};

    use super::*;

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl ArcWake for Count {
        fn wake_by_ref(count: &Arc<Count>) {
            count.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_full_mailbox_still_takes_what_ends_the_session() {
        let signal = Signal::default();
        (0..=SESSION_NOTICES_MAX as u64).for_each(|number| signal.notify(Notice::Pong(number, Duration::ZERO)));
        signal.notify(Notice::Drain);
        signal.notify(Notice::Close(CloseCode::Replaced));
        let notices: Vec<_> = std::iter::from_fn(|| signal.take_notice()).collect();
        assert_eq!(notices.len(), SESSION_NOTICES_MAX);
        assert_eq!(
            (notices.first(), notices.last()),
            (Some(&Notice::Close(CloseCode::Replaced)), Some(&Notice::Drain))
        );
    }

    #[test]
    fn a_session_that_has_seen_its_log_advance_is_not_woken_for_it_again() {
        let (signal, count) = (Signal::default(), Arc::new(Count::default()));
        let woken = || count.0.load(Ordering::Relaxed);
        signal.register(&waker(count.clone()));
        assert!(signal.mark() && !signal.mark(), "one of them has to wake it");
        signal.wake();
        assert_eq!(woken(), 1);

        signal.register(&waker(count.clone()));
        assert!(signal.take_advanced());
        signal.wake();
        assert_eq!(woken(), 1);
        signal.advanced();
        assert_eq!(woken(), 2, "the next entry counts again");
    }
}
