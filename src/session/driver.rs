//! Connects a session to a link and a store: one task, one loop, nothing shared.
//!
//! A turn takes in everything that is ready (notices, finished store calls, a bounded number of frames, the time), lets the
//! session respond, and flushes once. It never waits for a single lane, call or frame.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::{Sleep, sleep_until, timeout};
use tracing::Instrument;
use tracing::field::Empty;

use crate::limits::{CLOSE_LINGER, FRAMES_PER_TURN, LANE_QUEUE_BYTES, TURNS_PER_POLL};
use crate::observe::CloseReason;
use crate::store::{Store, Write};
use crate::wire::{CloseCode, Lane};

use super::calls::Calls;
use super::path::PathMeter;
use super::{Asked, LaneSet, Link, LinkEvent, Now, Output, PathStats, Services, Session};

/// Serves one connection to its end, and returns the reason for the end. Everything that the session accepted is released
/// before it returns.
///
/// The driver is boxed and this is not an `async fn`: every `async fn` that a value is moved through keeps another copy of it
/// in its future, and idle sessions would pay for the memory.
pub fn drive<L: Link>(
    link: L,
    services: Arc<Services>,
    store: Arc<dyn Store>,
) -> impl Future<Output = CloseReason> + use<L> {
    let (transport, path) = (link.kind().name(), link.remote());
    // Session, user and device are recorded once the session has signed in.
    let span = tracing::info_span!("session", session = Empty, user = Empty, device = Empty, transport, %path);
    let now = Now::system();
    let session = span.in_scope(|| Session::new(services.clone(), link.kind(), link.remote().ip(), now));
    let (calls, path) = (Calls::new(store), PathMeter::new(now));
    let driver = Driver { link, session, calls, called: false, timer: None, path, services };
    serve(Box::new(driver)).instrument(span)
}

async fn serve<L: Link>(mut driver: Box<Driver<L>>) -> CloseReason {
    let ending = poll_fn(|cx| driver.poll_or_catch(cx)).await;
    // Boxed, so that a running session reserves no memory for its end.
    Box::pin(leave(driver, ending)).await
}

async fn leave<L: Link>(mut driver: Box<Driver<L>>, ending: Ending) -> CloseReason {
    let signed_in = driver.session.signed_in_since();
    let remaining = driver.session.end();
    let Driver { link, session, calls, path, services, .. } = &mut *driver;
    let kind = link.kind();
    let farewell = async {
        match ending {
            Ending::Theirs(reason) => reason,
            Ending::Ours(code, reason) => {
                link.announce(code, reason);
                // The last error must arrive before the close does.
                let _ = timeout(CLOSE_LINGER, poll_fn(|cx| link.poll_drained(cx))).await;
                link.close(code, reason);
                code.into()
            }
        }
    };
    // The sender's remaining messages are released without waiting until its last frames are delivered.
    let (reason, ()) = tokio::join!(farewell, finish(session, calls, remaining));
    let stats = link.path();
    path.look(&stats, kind, &services.metrics, Now::system());
    if let Some(since) = signed_in {
        services.metrics.sessions[kind].decrement(1);
        services.metrics.closes[reason].increment(1);
        let PathStats { rtt, packets_sent, packets_lost, bytes_in, bytes_out, migrations } = stats;
        let rtt_ms = rtt.map(|rtt| rtt.as_secs_f64() * 1000.0);
        let (reason, seconds, last) = (reason.name(), since.elapsed().as_secs_f64(), link.remote());
        tracing::info!(
            reason, seconds, rtt_ms, bytes_in, bytes_out, packets_sent, packets_lost, migrations, %last, "session closed"
        );
    }
    reason
}

/// Runs the calls that are still under way to their end, so that no accepted message waits for a sender that is gone.
async fn finish(session: &mut Session, calls: &mut Calls, remaining: Vec<(Asked, Write)>) {
    for (asked, write) in remaining {
        calls.write(asked, write);
    }
    loop {
        while let Some(output) = session.poll_output() {
            match output {
                Output::Call(call) => calls.start(call),
                Output::Write(asked, write) => _ = calls.write(asked, write),
                Output::Send(..) | Output::Synced(..) | Output::Close(..) => {}
            }
        }
        let Some(done) = calls.next().await else { return };
        session.done(done, Now::system());
    }
}

enum Ending {
    Ours(CloseCode, &'static str),
    Theirs(CloseReason),
}

struct Driver<L> {
    link: L,
    session: Session,
    /// The session bounds their number.
    calls: Calls,
    /// A call was started that has not been polled yet, so nothing would wake the task for it.
    called: bool,
    timer: Option<(Instant, Pin<Box<Sleep>>)>,
    path: PathMeter,
    services: Arc<Services>,
}

impl<L: Link> Driver<L> {
    /// A panic ends this session only, and as any other end does: what waits for it is released, and the device returns.
    /// Nothing but [`leave`] sees what the panic has left behind.
    fn poll_or_catch(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        catch_unwind(AssertUnwindSafe(|| self.poll(cx))).unwrap_or_else(|_| {
            tracing::error!(
                "the session has panicked, which is a bug; please report it with the lines before this one"
            );
            Poll::Ready(Ending::Ours(CloseCode::Internal, "the server has a bug"))
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        for _ in 0..TURNS_PER_POLL {
            self.session.signal().register(cx.waker());
            let now = Now::system();
            if self.path.is_due(now) {
                let path = self.link.path();
                self.path.look(&path, self.link.kind(), &self.services.metrics, now);
                self.session.seen(&path);
            }
            self.take_notices(now);
            self.take_calls(cx, now);
            let (wanted, mut progress) = match self.take_frames(cx, now) {
                Err(ending) => return Poll::Ready(ending),
                Ok(taken) => taken,
            };
            self.session.pump(|lane| self.link.queued(lane), now);
            // Last: the steps before may have set a deadline, and nothing else would wake the task for it.
            progress |= self.take_time(cx, now);
            if let Some(ending) = self.perform() {
                return Poll::Ready(ending);
            }
            if std::mem::take(&mut self.called) {
                progress |= self.take_calls(cx, now);
            }
            let _ = self.link.poll_flush(cx);
            // Writing made room: sources that had stopped for lack of it continue, each on its own lane, and a lane whose
            // answers had piled up is read again. Nothing else would wake the task for a lane that is empty now.
            let room = self.session.has_backlog(|lane| self.link.queued(lane)) || self.wanted() != wanted;
            if !(progress || room) {
                self.session.rest();
                self.calls.rest();
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn take_notices(&mut self, now: Now) {
        while let Some(notice) = self.session.signal().take_notice() {
            self.session.notice(notice, now);
        }
        if self.session.signal().take_advanced() {
            self.session.advanced();
        }
    }

    fn take_calls(&mut self, cx: &mut Context<'_>, now: Now) -> bool {
        let mut some = false;
        while let Poll::Ready(Some(done)) = self.calls.poll_next(cx) {
            self.session.done(done, now);
            some = true;
        }
        some
    }

    /// Returns the lanes that were polled last, and whether they may hold more frames.
    fn take_frames(&mut self, cx: &mut Context<'_>, now: Now) -> Result<(LaneSet, bool), Ending> {
        for _ in 0..FRAMES_PER_TURN {
            let wanted = self.wanted();
            let Poll::Ready(event) = self.link.poll_event(cx, wanted) else { return Ok((wanted, false)) };
            if let LinkEvent::Closed(reason) = event {
                // The flush drops the answers that are queued.
                self.session.give_up_answers();
                let _ = self.link.poll_flush(cx);
                if self.wanted() != wanted {
                    continue;
                }
                // A lane that is not wanted until a call is done may hold frames that arrived before the close. Then the
                // link reports the close again.
                let some_wait = self.session.is_waiting() && Lane::ALL.iter().any(|lane| !wanted.contains(*lane));
                return if some_wait { Ok((wanted, false)) } else { Err(Ending::Theirs(reason)) };
            }
            self.session.event(event, now);
            if let Some(ending) = self.perform() {
                return Err(ending);
            }
        }
        Ok((self.wanted(), true))
    }

    /// The session's lanes, except those whose answers pile up because the peer does not read them.
    fn wanted(&self) -> LaneSet {
        let wanted = self.session.wanted();
        Lane::ALL
            .into_iter()
            .filter(|lane| wanted.contains(*lane) && self.link.queued(*lane) < LANE_QUEUE_BYTES)
            .fold(LaneSet::NONE, LaneSet::with)
    }

    /// Replaces the timer only if it would fire too late; if it fires too early, it is set again.
    fn take_time(&mut self, cx: &mut Context<'_>, now: Now) -> bool {
        let Some(deadline) = self.session.deadline() else { return false };
        if deadline <= now.at {
            self.session.tick(now);
            return true;
        }
        if self.timer.as_ref().is_none_or(|(at, _)| *at > deadline) {
            self.timer = Some((deadline, Box::pin(sleep_until(deadline.into()))));
        }
        if let Some((at, sleep)) = &mut self.timer
            && sleep.as_mut().poll(cx).is_ready()
        {
            *at = deadline;
            sleep.as_mut().reset(deadline.into());
            // The next turn polls the timer, which registers the waker for the new time.
            return true;
        }
        false
    }

    fn perform(&mut self) -> Option<Ending> {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Send(lane, frame) => self.link.push(lane, frame),
                Output::Call(call) => {
                    self.calls.start(call);
                    self.called = true;
                }
                Output::Write(asked, write) => self.called |= self.calls.write(asked, write),
                Output::Synced(user, device, sequence) => self.calls.synced(&user, &device, sequence),
                Output::Close(code, reason) => return Some(Ending::Ours(code, reason)),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
