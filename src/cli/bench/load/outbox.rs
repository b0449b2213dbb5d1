//! What one user sends: its texts, each with its place in the run, and what became of each.

use std::collections::HashMap;
use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;

use super::check::{Fate, Index};
use super::fleet::Course;
use super::plan::Schedule;
use crate::cli::bench::connection::numbered_text;
use crate::wire::proto::VersionUpdate;

pub(super) struct Outbox {
    user: usize,
    schedule: Schedule,
    sent: HashMap<usize, Vec<Sent>>,
    /// Messages that were sent, over all recipients.
    pub(super) count: u64,
    /// Without an answer yet.
    pub(super) waiting: usize,
    /// To whom each request id went; kept only where the server may refuse.
    requests: HashMap<i64, (usize, Index)>,
    /// Accepted messages without a receipt, by `message_id`; kept only with receipts.
    unreceipted: HashMap<String, u64>,
}

#[derive(Clone, Copy)]
struct Sent {
    fate: Fate,
    /// Microseconds after the start.
    due: u64,
    /// Among all of this user's.
    number: u64,
}

/// What a text says of itself. It is in the text, so that each device that gets it can check and time it alone.
pub(super) struct Stamp {
    pub(super) from: usize,
    pub(super) index: Index,
    /// Microseconds after the start.
    pub(super) due: u64,
}

impl Stamp {
    /// The text, of `size` bytes where the stamp leaves room.
    fn text(&self, size: usize) -> String {
        let mut text = format!("{} {} {} ", self.from, self.index, self.due);
        text.extend(std::iter::repeat_n('x', size.saturating_sub(text.len())));
        text
    }

    pub(super) fn read(text: &str) -> Option<Stamp> {
        let mut numbers = text.split(' ');
        let mut number = || numbers.next()?.parse::<u64>().ok();
        Some(Stamp { from: number()? as usize, index: number()? as Index, due: number()? })
    }
}

impl Outbox {
    pub(super) fn new(user: usize, schedule: Schedule) -> Outbox {
        Outbox {
            user,
            schedule,
            sent: HashMap::new(),
            count: 0,
            waiting: 0,
            requests: HashMap::new(),
            unreceipted: HashMap::new(),
        }
    }

    /// When the next text is due; `None`: when there is a place for it.
    pub(super) fn due(&self, course: &Course) -> Option<Instant> {
        self.schedule.due(course.clock.start)
    }

    /// The next text is not sent at all.
    pub(super) fn skip(&mut self, course: &Course) {
        self.schedule.draw(&course.plan.contacts);
    }

    /// The next text's frame.
    pub(super) fn next(&mut self, course: &Course, due: Instant) -> Bytes {
        let recipient = self.schedule.draw(&course.plan.contacts);
        let sent = Sent { fate: Fate::Waiting, due: course.clock.microseconds(due), number: self.count };
        let texts = self.sent.entry(recipient).or_default();
        texts.push(sent);
        let index = texts.len() - 1;
        self.count += 1;
        self.waiting += 1;
        if course.plan.sheds {
            self.requests.insert(self.count as i64, (recipient, index));
        }
        self.frame(course, recipient, index, sent)
    }

    fn frame(&self, course: &Course, recipient: usize, index: Index, sent: Sent) -> Bytes {
        let text = Stamp { from: self.user, index, due: sent.due }.text(course.plan.size);
        let request_id = if course.plan.sheds { sent.number as i64 + 1 } else { 0 };
        let (from, to) = (&course.eids[self.user], &course.eids[recipient]);
        numbered_text(from, to, &format!("{recipient}-{index}"), &text, request_id)
    }

    /// A text was accepted: to whom it goes and when it was due, unless that was known.
    ///
    /// # Errors
    /// It was never sent, or had another version before.
    pub(super) fn accept(&mut self, update: &VersionUpdate, receipts: bool) -> anyhow::Result<Option<(usize, u64)>> {
        let local = update
            .message_id_local
            .split_once('-')
            .and_then(|(recipient, index)| Some((recipient.parse::<usize>().ok()?, index.parse::<Index>().ok()?)));
        let (recipient, index) = local.context("a VersionUpdate of what was never sent")?;
        let sent = self.sent.get_mut(&recipient).and_then(|texts| texts.get_mut(index));
        let sent = sent.context("a VersionUpdate of what was never sent")?;
        let accepted = Fate::Accepted(update.version);
        match std::mem::replace(&mut sent.fate, accepted) {
            before @ Fate::Accepted(_) => {
                ensure!(before == accepted, "text {index} to {recipient} was {before:?}, then {accepted:?}");
                return Ok(None);
            }
            Fate::Waiting => self.waiting -= 1,
            // The log says it after all.
            Fate::Uncertain => {}
            Fate::Refused => anyhow::bail!("text {index} to {recipient} was refused, then accepted"),
        }
        let due = sent.due;
        if receipts {
            self.unreceipted.insert(update.message_id.clone(), due);
        }
        Ok(Some((recipient, due)))
    }

    /// A recipient has acknowledged a text: when that was due.
    ///
    /// # Errors
    /// It was never sent, or has been acknowledged.
    pub(super) fn receipt(&mut self, message_id: &str) -> anyhow::Result<u64> {
        self.unreceipted.remove(message_id).context("a receipt came twice, or of what was never sent")
    }

    /// The request was answered with an error.
    pub(super) fn refuse(&mut self, request_id: i64) {
        let Some((recipient, index)) = self.requests.remove(&request_id) else { return };
        if let Some(sent) = self.sent.get_mut(&recipient).and_then(|texts| texts.get_mut(index))
            && sent.fate == Fate::Waiting
        {
            sent.fate = Fate::Refused;
            self.waiting -= 1;
        }
    }

    /// What has no answer will get none.
    pub(super) fn forget_waiting(&mut self) {
        self.requests.clear();
        self.waiting = 0;
        let all = self.sent.values_mut().flatten().filter(|sent| sent.fate == Fate::Waiting);
        all.for_each(|sent| sent.fate = Fate::Uncertain);
    }

    /// What has no answer, once more and in order.
    pub(super) fn again(&self, course: &Course) -> Vec<Bytes> {
        let mut again = Vec::with_capacity(self.waiting);
        for (recipient, texts) in &self.sent {
            let waiting = texts.iter().enumerate().filter(|(_, sent)| sent.fate == Fate::Waiting);
            again.extend(waiting.map(|(index, sent)| (sent.number, *recipient, index, *sent)));
        }
        again.sort_unstable_by_key(|(number, ..)| *number);
        again.into_iter().map(|(_, recipient, index, sent)| self.frame(course, recipient, index, sent)).collect()
    }

    /// Whether each text that was accepted has its receipt, where receipts are asked for.
    pub(super) fn is_receipted(&self) -> bool {
        self.unreceipted.is_empty()
    }

    /// What became of all of it, by recipient.
    pub(super) fn fates(&self) -> impl Iterator<Item = (usize, Vec<Fate>)> {
        self.sent.iter().map(|(recipient, texts)| (*recipient, texts.iter().map(|sent| sent.fate).collect()))
    }
}
