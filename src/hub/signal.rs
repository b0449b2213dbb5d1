//! How the rest of the server gets a session's attention without waiting for it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;

use crate::limits::SESSION_NOTICES_MAX;
use crate::wire::CloseCode;

/// What a session is told by somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Close with this code.
    Close(CloseCode),
    /// The server is shutting down: finish what is under way, then close.
    Drain,
    /// Ping the device for somebody else (profile 4).
    Ping(Relay),
    /// The device that somebody was asked to ping answered after this time.
    Pong(u64, Duration),
}

/// Who wants a device pinged, and under which number.
#[derive(Clone)]
pub struct Relay {
    /// The asker's own number for it.
    pub number: u64,
    /// Whom to tell.
    pub asker: Arc<Signal>,
    /// One of the devices has answered: the others' answers would only fill the asker's queue.
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

/// One session's mailbox: a flag that its log has advanced, and a bounded queue of notices.
#[derive(Default)]
pub struct Signal {
    advanced: AtomicBool,
    notices: Mutex<VecDeque<Notice>>,
    waker: AtomicWaker,
}

impl Signal {
    /// There is something new for the session to look at.
    pub fn advanced(&self) {
        if self.mark() {
            self.waker.wake();
        }
    }

    /// The same, for who has more to say first: `true` if a [`Signal::wake`] has to follow, as nobody else's does.
    #[must_use]
    pub fn mark(&self) -> bool {
        !self.advanced.swap(true, Ordering::AcqRel)
    }

    /// Has the session look, unless it has done so since [`Signal::mark`].
    pub fn wake(&self) {
        if self.advanced.load(Ordering::Acquire) {
            self.waker.wake();
        }
    }

    /// Queues a notice. When the queue is full the newest is dropped, unless it ends the session: a close makes everything
    /// before it void, and takes the oldest's place; a drain takes that of a ping.
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

    /// Whether the log has advanced since the last call.
    pub fn take_advanced(&self) -> bool {
        self.advanced.swap(false, Ordering::AcqRel)
    }

    /// Whether there is anything to look at, for who polls instead of being woken.
    #[cfg(test)]
    pub(crate) fn is_set(&self) -> bool {
        self.advanced.load(Ordering::Acquire) || !self.notices.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The oldest notice.
    pub fn take_notice(&self) -> Option<Notice> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Whom to wake; register before looking.
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
