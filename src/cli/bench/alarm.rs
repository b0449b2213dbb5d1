//! A timer for messages that are sent by a schedule.
//!
//! Tokio's timers fire at whole milliseconds, and all that are due within one fire together. A message would be half a
//! millisecond late on average before the server got it, and would arrive together with others. On Linux a schedule
//! uses a timer of the kernel instead.

use std::io;
use std::pin::Pin;
use std::time::Instant;

use tokio::time::{Sleep, sleep_until};

/// Fires once at the time to which it is set.
pub(super) struct Alarm {
    /// `None` once it has fired.
    at: Option<Instant>,
    timer: Timer,
}

enum Timer {
    /// Millisecond resolution.
    Coarse(Pin<Box<Sleep>>),
    #[cfg(target_os = "linux")]
    Fine(fine::Timer),
}

impl Alarm {
    /// An alarm that need not be exact.
    pub(super) fn coarse(at: Instant) -> Alarm {
        Alarm { at: Some(at), timer: Timer::Coarse(Box::pin(sleep_until(at.into()))) }
    }

    /// An alarm with the best resolution of the system. It uses a file descriptor.
    ///
    /// # Errors
    /// If no file descriptor is left.
    pub(super) fn fine(at: Instant) -> io::Result<Alarm> {
        #[cfg(target_os = "linux")]
        return Ok(Alarm { at: Some(at), timer: Timer::Fine(fine::Timer::new(at)?) });
        #[cfg(not(target_os = "linux"))]
        return Ok(Alarm::coarse(at));
    }

    /// Sets the alarm to another time. A time in the past fires at once.
    pub(super) fn set(&mut self, at: Instant) -> io::Result<()> {
        if self.at.replace(at) == Some(at) {
            return Ok(());
        }
        match &mut self.timer {
            Timer::Coarse(sleep) => sleep.as_mut().reset(at.into()),
            #[cfg(target_os = "linux")]
            Timer::Fine(timer) => timer.set(at)?,
        }
        Ok(())
    }

    /// Waits until the alarm fires. Cancel safe.
    pub(super) async fn rung(&mut self) -> io::Result<()> {
        match &mut self.timer {
            Timer::Coarse(sleep) => sleep.as_mut().await,
            #[cfg(target_os = "linux")]
            Timer::Fine(timer) => timer.rung().await?,
        }
        self.at = None;
        Ok(())
    }
}

#[cfg(target_os = "linux")]
mod fine {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::time::{Duration, Instant};

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    /// Readable once the time to which it is set has come.
    pub(super) struct Timer(AsyncFd<OwnedFd>);

    impl Timer {
        pub(super) fn new(at: Instant) -> io::Result<Timer> {
            let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            // SAFETY: it owns the descriptor, which nobody else has, and a descriptor that is owned stays the same.
            #[allow(unsafe_code)]
            let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
            let mut timer = Timer(registered?);
            timer.set(at)?;
            Ok(timer)
        }

        pub(super) fn set(&mut self, at: Instant) -> io::Result<()> {
            // Zero would disarm the timer.
            let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
            let once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let it_value = Timespec::try_from(left).map_err(io::Error::other)?;
            timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: once, it_value })?;
            Ok(())
        }

        pub(super) async fn rung(&mut self) -> io::Result<()> {
            let read = |fd: &OwnedFd| Ok(rustix::io::read(fd, &mut [0; size_of::<u64>()])?);
            self.0.async_io(Interest::READABLE, read).await?;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn goes_off_when_it_is_due_and_not_before() {
        let now = Instant::now();
        let soon = |after: u64| now + Duration::from_micros(after);
        for mut alarm in [Alarm::coarse(now), Alarm::fine(now).unwrap()] {
            alarm.rung().await.unwrap();
            for at in [soon(300), soon(700), soon(100)] {
                alarm.set(at).unwrap();
                alarm.rung().await.unwrap();
                assert!(Instant::now() >= at);
            }
        }
    }

    #[tokio::test]
    async fn goes_off_at_the_time_that_it_was_set_to_last() {
        let (now, never) = (Instant::now(), Duration::from_secs(3600));
        for mut alarm in [Alarm::coarse(now + never), Alarm::fine(now + never).unwrap()] {
            alarm.set(now).unwrap();
            alarm.rung().await.unwrap();
            alarm.set(now).unwrap();
            alarm.rung().await.unwrap();
            alarm.set(now).unwrap();
            // It has fired, but nobody has awaited it.
            alarm.set(now + never).unwrap();
            let at_once = std::future::poll_fn(|cx| {
                let rung = std::pin::pin!(alarm.rung());
                std::task::Poll::Ready(rung.poll(cx).is_ready())
            });
            assert!(!at_once.await);
        }
    }
}
