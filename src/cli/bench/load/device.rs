//! One device of a run: it sends what is due, reads what arrives, disconnects as planned, and checks everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use tokio::task::JoinSet;

use super::check::{Inbox, Index, Way};
use super::fleet::{Course, device_name};
use super::outbox::{Outbox, Stamp};
use super::presence;
use crate::cli::bench::alarm::Alarm;
use crate::cli::bench::bounds::SECOND_COPIES_WITHIN;
use crate::cli::bench::connection::{Device, Reader, SignIn, Writer, answer, answer_pings, receipt};
use crate::cli::bench::report::record;
use crate::random::Random;
use crate::wire::proto::{AcknowledgmentResponse, ChatMessage, ErrorMessage, VersionUpdate, chat_message};
use crate::wire::{Lane, MessageScheme, Payload};

/// Frames collected before they are written.
const BATCH_MAX: usize = 64;
/// Frames queued while the connection accepts none; if the run allows it, further ones are not sent.
const HELD_MAX: usize = 512;
/// Timeout for the last answers once sending has stopped, and again for the last messages.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);
/// Longest time that a device stays disconnected.
const AWAY_MAX: Duration = Duration::from_secs(1);
/// Delay before a device whose sign-in failed tries again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Why a device left its connection.
enum Left {
    /// All messages are sent and received.
    Done,
    /// A disconnect was due.
    Cut,
    /// The connection failed.
    Lost(anyhow::Error),
}

struct Phone {
    course: Arc<Course>,
    user: usize,
    number: usize,
    /// Only the first device of a sender has one.
    outbox: Option<Outbox>,
    /// Whether the fates of the outbox's messages are published.
    published: bool,
    inbox: Inbox,
    /// The last messages to arrive, once all senders are done.
    last_due: Option<Vec<(Way, Index)>>,
    /// When to leave, once everything is done.
    done_at: Option<Instant>,
    /// Receipts without an answer, by request id.
    receipts: BTreeMap<i64, Bytes>,
    receipts_sent: i64,
    /// Sequence of the newest log entry that was handled.
    handled: i64,
    next_cut: Option<Instant>,
}

/// Drives a signed-in device to the end of the run.
pub(super) async fn run(course: Arc<Course>, user: usize, number: usize, device: Device) -> anyhow::Result<()> {
    let mut phone = Phone::new(course, user, number);
    let name = format!("{}, {}", phone.course.plan.user(user), device_name(number));
    phone.live(device).await.context(name)
}

impl Phone {
    fn new(course: Arc<Course>, user: usize, number: usize) -> Phone {
        let schedule = (number == 0).then(|| course.plan.schedule(user)).flatten();
        let next_cut = course.plan.first_cut(user, number).map(|after| course.clock.measure_from + after);
        Phone {
            outbox: schedule.map(|schedule| Outbox::new(user, schedule)),
            inbox: Inbox::new(user, number > 0, course.plan.sheds),
            course,
            user,
            number,
            published: false,
            last_due: None,
            done_at: None,
            receipts: BTreeMap::new(),
            receipts_sent: 0,
            handled: 0,
            next_cut,
        }
    }

    async fn live(&mut self, mut device: Device) -> anyhow::Result<()> {
        let mut away = Random::new(((self.user as u64) << 8) + self.number as u64);
        loop {
            let chat = device.chat.take().context("the chat lane")?;
            // These tasks end with the connection.
            let mut beside = JoinSet::new();
            if self.course.plan.presence.is_some() {
                let lane = device.open(Lane::Presence).await?;
                beside.spawn(presence::run(self.course.clone(), self.user, self.number, lane));
            }
            let Device { connection, control, .. } = device;
            beside.spawn(answer_pings(control, || ()));
            let left = self.talk(chat).await?;
            let pause = match left {
                Left::Done => {
                    connection.close();
                    return Ok(());
                }
                Left::Cut => {
                    self.course.tally(self.user).cuts += 1;
                    AWAY_MAX.mul_f64(away.share())
                }
                Left::Lost(_) if self.course.plan.sheds => {
                    let code = connection.closed_with().await;
                    *self.course.tally(self.user).lost.entry(code).or_default() += 1;
                    // A repeat would arrive behind other messages that were accepted meanwhile.
                    self.outbox.iter_mut().for_each(Outbox::forget_waiting);
                    AGAIN_AFTER
                }
                Left::Lost(error) => return Err(error),
            };
            connection.close();
            drop(beside);
            tokio::time::sleep(pause).await;
            device = self.come_back().await?;
        }
    }

    async fn come_back(&self) -> anyhow::Result<Device> {
        let (name, device) = (self.course.plan.user(self.user), device_name(self.number));
        loop {
            let who = SignIn {
                name: &name,
                device: &device,
                pipelined: !self.course.plan.answering,
                resume_from: (self.handled > 0).then_some(self.handled),
            };
            match self.course.target.sign_in(who).await {
                Ok(device) => return Ok(device),
                Err(error) if Instant::now() > self.give_up() => return Err(error.context("it could not come back")),
                Err(_) => tokio::time::sleep(AGAIN_AFTER).await,
            }
        }
    }

    fn give_up(&self) -> Instant {
        self.course.clock.until + 2 * SETTLE_WITHIN
    }

    /// Runs until the connection ends, a disconnect is due, or everything is done.
    async fn talk(&mut self, (mut writer, mut reader): (Writer, Reader)) -> anyhow::Result<Left> {
        let course = self.course.clone();
        let (plan, clock) = (&course.plan, &course.clock);
        // Repeat what has no answer from an earlier connection.
        let again = self.outbox.iter_mut().flat_map(|outbox| outbox.again(&course));
        again.chain(self.receipts.values().cloned()).for_each(|frame| writer.queue(frame));

        let mut open = course.board.watch();
        let by_schedule = self.outbox.is_some() && plan.rate > 0.0;
        let mut alarm = if by_schedule { Alarm::fine(clock.until)? } else { Alarm::coarse(clock.until) };
        loop {
            let now = Instant::now();
            self.send_due(now, &mut writer);
            if self.next_cut.is_some_and(|at| at <= now) {
                let every = plan.cuts.map_or(SETTLE_WITHIN, |cuts| cuts.every);
                self.next_cut = self.next_cut.map(|at| at + every).filter(|at| *at < clock.until);
                return Ok(Left::Cut);
            }
            self.publish_once_settled(now)?;
            if self.last_due.is_none() && *open.borrow() == 0 {
                self.last_due = Some(self.inbox.last_due(&course.board));
            }
            if self.last_due.as_ref().is_some_and(|last_due| self.inbox.has(last_due)) && self.receipts.is_empty() {
                if now >= *self.done_at.get_or_insert(now + SECOND_COPIES_WITHIN) {
                    self.inbox.close(&course.board)?;
                    return Ok(Left::Done);
                }
            } else if now > self.give_up() {
                let missing = self.inbox.missing(&course.board);
                bail!("{missing} messages and {} answers to receipts are missing", self.receipts.len());
            }
            alarm.set(self.wake(now))?;
            let has_room =
                self.outbox.is_some() && plan.rate == 0.0 && now < clock.until && writer.queued() < BATCH_MAX;
            tokio::select! {
                scheme = reader.next() => {
                    let mut scheme = match scheme {
                        Ok(scheme) => Some(scheme),
                        Err(error) => return Ok(Left::Lost(error)),
                    };
                    while let Some(taken) = scheme.take() {
                        self.take(taken, &mut writer)?;
                        scheme = reader.ready()?;
                    }
                }
                written = writer.advance(), if writer.queued() > 0 => {
                    if let Err(error) = written {
                        return Ok(Left::Lost(error));
                    }
                }
                place = course.places[self.user].acquire(), if has_room => {
                    place?.forget();
                    self.send(Instant::now(), &mut writer);
                    // Send also for all other permits that are available now.
                    while writer.queued() < BATCH_MAX && let Ok(place) = course.places[self.user].try_acquire() {
                        place.forget();
                        self.send(Instant::now(), &mut writer);
                    }
                }
                rung = alarm.rung() => rung?,
                _ = open.changed(), if self.last_due.is_none() => {}
            }
        }
    }

    /// When to wake up if nothing arrives.
    fn wake(&self, now: Instant) -> Instant {
        let until = self.course.clock.until;
        let due = self.outbox.as_ref().and_then(|outbox| outbox.due(&self.course)).filter(|due| *due < until);
        // A text that is overdue already waits for room in the queue.
        let due = due.filter(|due| *due > now);
        let end = if now < until { until } else { self.give_up() };
        [due, self.next_cut, self.done_at, self.settled_by().filter(|at| *at > now)]
            .into_iter()
            .flatten()
            .fold(end, Instant::min)
    }

    /// When a sender stops waiting for answers.
    fn settled_by(&self) -> Option<Instant> {
        (self.outbox.is_some() && !self.published).then(|| self.course.clock.until + SETTLE_WITHIN)
    }

    /// Queues the texts that are due by the schedule, as long as there is room.
    fn send_due(&mut self, now: Instant, writer: &mut Writer) {
        let course = self.course.clone();
        while let Some(outbox) = &mut self.outbox
            && let Some(due) = outbox.due(&course)
            && due <= now
            && due < course.clock.until
        {
            match writer.queued() {
                HELD_MAX.. if course.plan.sheds => {
                    outbox.skip(&course);
                    course.tally(self.user).held_back += 1;
                }
                BATCH_MAX.. if !course.plan.sheds => return,
                _ => self.send(due, writer),
            }
        }
    }

    fn send(&mut self, due: Instant, writer: &mut Writer) {
        if let Some(outbox) = &mut self.outbox {
            writer.queue(outbox.next(&self.course, due));
        }
    }

    /// Publishes the fates of this user's messages once they are final.
    fn publish_once_settled(&mut self, now: Instant) -> anyhow::Result<()> {
        let course = &self.course;
        let Some(outbox) = self.outbox.as_mut().filter(|_| !self.published) else { return Ok(()) };
        let over = now >= course.clock.until
            && outbox.due(course).is_none_or(|due| course.plan.sheds || due >= course.clock.until);
        if !over {
            return Ok(());
        }
        let late = now >= course.clock.until + SETTLE_WITHIN;
        if late && course.plan.sheds {
            outbox.forget_waiting();
        }
        ensure!(!late || outbox.waiting == 0, "{} answers are missing", outbox.waiting);
        ensure!(!late || outbox.is_receipted(), "receipts are missing");
        if outbox.waiting == 0 && outbox.is_receipted() {
            course.tally(self.user).sent += outbox.count;
            course.board.publish(self.user, outbox.fates());
            self.published = true;
        }
        Ok(())
    }

    fn take(&mut self, scheme: MessageScheme, writer: &mut Writer) -> anyhow::Result<()> {
        let MessageScheme { sequence, request_id, payload, .. } = scheme;
        match payload {
            Some(Payload::ChatMessage(message)) => {
                self.handle(sequence)?;
                self.take_message(message, writer)
            }
            Some(Payload::VersionUpdate(update)) => self.take_update(sequence, update, writer),
            Some(Payload::AcknowledgmentResponse(_)) if request_id != 0 => {
                self.receipts.remove(&request_id);
                Ok(())
            }
            Some(Payload::AcknowledgmentResponse(response)) => {
                self.handle(sequence)?;
                self.take_receipt(&response)
            }
            Some(Payload::ErrorMessage(error)) => self.take_error(request_id, &error),
            _ => Ok(()),
        }
    }

    /// Records a log entry; it must not come again.
    fn handle(&mut self, sequence: i64) -> anyhow::Result<()> {
        ensure!(sequence > self.handled, "entry {sequence} of the log came after {}", self.handled);
        self.handled = sequence;
        Ok(())
    }

    fn take_message(&mut self, message: ChatMessage, writer: &mut Writer) -> anyhow::Result<()> {
        let course = self.course.clone();
        let Some(chat_message::Payload::Text(text)) = &message.payload else { bail!("not a text") };
        let stamp = Stamp::read(text).context("a text of somebody else's")?;
        let from = course.user_of(message.from.as_ref()).context("a text of nobody")?;
        ensure!(from == stamp.from, "a text of user {} comes in the name of {from}", stamp.from);
        let to = course.user_of(message.to.first()).context("a text to nobody")?;
        let to_me = to == self.user;
        self.inbox.arrive((from, to), stamp.index, message.version)?;
        let due = course.clock.at(stamp.due);
        let mut tally = course.tally(self.user);
        tally.arrivals += 1;
        if to_me && due >= course.clock.measure_from {
            let latency = due.elapsed();
            record(&mut tally.delivered, latency);
            if course.plan.keeps_timeline {
                tally.timeline.push((stamp.due, latency.as_micros() as u64));
            }
        }
        drop(tally);
        if !to_me || self.number > 0 {
            return Ok(());
        }
        if course.plan.receipts {
            self.receipts_sent += 1;
            let (reader, sender) = (&course.eids[self.user], &course.eids[from]);
            let receipt = receipt(reader, sender, message.message_id, self.receipts_sent);
            self.receipts.insert(self.receipts_sent, receipt.clone());
            writer.queue(receipt);
        } else {
            self.count_done(stamp.from);
        }
        Ok(())
    }

    /// A message of this sender was delivered or receipted, so it may send another one.
    fn count_done(&self, sender: usize) {
        self.course.done.fetch_add(1, Ordering::Relaxed);
        if self.course.plan.rate == 0.0 {
            self.course.places[sender].add_permits(1);
        }
    }

    fn take_update(&mut self, sequence: i64, update: VersionUpdate, writer: &mut Writer) -> anyhow::Result<()> {
        let course = &self.course;
        let outbox = self.outbox.as_mut().context("a VersionUpdate came to a device that sends nothing")?;
        // The answer to a text that was sent again carries its entry's old sequence (protocol.md §9).
        let is_new = sequence > self.handled;
        self.handled = self.handled.max(sequence);
        let Some((recipient, due)) = outbox.accept(&update, is_new, course.plan.receipts)? else { return Ok(()) };
        self.inbox.accepted(recipient, update.version)?;
        let due = course.clock.at(due);
        if due >= course.clock.measure_from {
            record(&mut course.tally(self.user).accepted, due.elapsed());
        }
        if course.plan.answering {
            writer.queue(answer(update));
        }
        Ok(())
    }

    fn take_receipt(&mut self, response: &AcknowledgmentResponse) -> anyhow::Result<()> {
        let course = &self.course;
        let own = course.user_of(response.from.as_ref()) == Some(self.user);
        let Some(outbox) = self.outbox.as_mut().filter(|_| !own) else { return Ok(()) };
        let due = course.clock.at(outbox.receipt(&response.message_id)?);
        if due >= course.clock.measure_from {
            record(&mut course.tally(self.user).receipted, due.elapsed());
        }
        self.count_done(self.user);
        Ok(())
    }

    fn take_error(&mut self, request_id: i64, error: &ErrorMessage) -> anyhow::Result<()> {
        ensure!(self.course.plan.sheds, "the server refused: {} {}", error.code, error.message);
        *self.course.tally(self.user).refused.entry(error.code).or_default() += 1;
        self.outbox.iter_mut().for_each(|outbox| outbox.refuse(request_id));
        Ok(())
    }
}
