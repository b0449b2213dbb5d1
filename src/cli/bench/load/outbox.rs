//! The texts that one user sends, and what happened to each.

use std::collections::{HashMap, HashSet};
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
    /// Number of messages sent, over all recipients.
    pub(super) count: u64,
    /// Number of messages without an answer yet.
    pub(super) waiting: usize,
    /// The message of each request id; kept only if the server may refuse messages.
    requests: HashMap<i64, (usize, Index)>,
    /// Accepted messages without a receipt, by `message_id`, with their due time; kept only if receipts are on.
    unreceipted: HashMap<String, u64>,
    /// Messages that were sent again over this connection, and whose answer to that has not come.
    repeated: HashSet<(usize, Index)>,
}

#[derive(Clone, Copy)]
struct Sent {
    fate: Fate,
    /// When the text was due, in microseconds since the start.
    due: u64,
    /// Its number among all texts of this user.
    number: u64,
}

/// The data inside a text, with which each receiving device can check and time it without help.
pub(super) struct Stamp {
    pub(super) from: usize,
    pub(super) index: Index,
    /// When the text was due, in microseconds since the start.
    pub(super) due: u64,
}

impl Stamp {
    /// The text: the stamp, padded to `size` bytes.
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
            repeated: HashSet::new(),
        }
    }

    /// When the next text is due; `None` if it is sent as soon as there is a permit.
    pub(super) fn due(&self, course: &Course) -> Option<Instant> {
        self.schedule.due(course.clock.start)
    }

    /// Skips the next text.
    pub(super) fn skip(&mut self, course: &Course) {
        self.schedule.draw(&course.plan.contacts);
    }

    /// Takes the next text and returns its frame.
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

    /// Records that a text was accepted. Returns its recipient and when it was due; `None` if that was known already.
    /// `is_new` tells that the log had come less far: else only the answer to a text that was sent again is left.
    ///
    /// # Errors
    /// If it was never sent, or was accepted twice, or refused before.
    pub(super) fn accept(
        &mut self,
        update: &VersionUpdate,
        is_new: bool,
        receipts: bool,
    ) -> anyhow::Result<Option<(usize, u64)>> {
        let local = update
            .message_id_local
            .split_once('-')
            .and_then(|(recipient, index)| Some((recipient.parse::<usize>().ok()?, index.parse::<Index>().ok()?)));
        let (recipient, index) = local.context("a VersionUpdate of what was never sent")?;
        let sent = self.sent.get_mut(&recipient).and_then(|texts| texts.get_mut(index));
        let sent = sent.context("a VersionUpdate of what was never sent")?;
        let is_due = is_new || self.repeated.remove(&(recipient, index));
        ensure!(is_due, "the VersionUpdate of text {index} to {recipient} came again");
        let accepted = Fate::Accepted(update.version);
        match std::mem::replace(&mut sent.fate, accepted) {
            before @ Fate::Accepted(_) => {
                ensure!(before == accepted, "text {index} to {recipient} was {before:?}, then {accepted:?}");
                ensure!(!is_new, "text {index} to {recipient} was accepted by two entries of the log");
                return Ok(None);
            }
            Fate::Waiting => self.waiting -= 1,
            // The connection ended before the answer, but the log shows that the text was accepted.
            Fate::Uncertain => {}
            Fate::Refused => anyhow::bail!("text {index} to {recipient} was refused, then accepted"),
        }
        let due = sent.due;
        if receipts {
            self.unreceipted.insert(update.message_id.clone(), due);
        }
        Ok(Some((recipient, due)))
    }

    /// Records a receipt; returns when its text was due.
    ///
    /// # Errors
    /// If the text was never sent, or has a receipt already.
    pub(super) fn receipt(&mut self, message_id: &str) -> anyhow::Result<u64> {
        self.unreceipted.remove(message_id).context("a receipt came twice, or of what was never sent")
    }

    /// Records that a request was refused.
    pub(super) fn refuse(&mut self, request_id: i64) {
        let Some((recipient, index)) = self.requests.remove(&request_id) else { return };
        if let Some(sent) = self.sent.get_mut(&recipient).and_then(|texts| texts.get_mut(index))
            && sent.fate == Fate::Waiting
        {
            sent.fate = Fate::Refused;
            self.waiting -= 1;
        }
    }

    /// Marks all texts without an answer as uncertain.
    pub(super) fn forget_waiting(&mut self) {
        self.requests.clear();
        self.waiting = 0;
        let all = self.sent.values_mut().flatten().filter(|sent| sent.fate == Fate::Waiting);
        all.for_each(|sent| sent.fate = Fate::Uncertain);
    }

    /// On a new connection: the frames of all texts without an answer, in their original order.
    pub(super) fn again(&mut self, course: &Course) -> Vec<Bytes> {
        let mut again = Vec::with_capacity(self.waiting);
        for (recipient, texts) in &self.sent {
            let waiting = texts.iter().enumerate().filter(|(_, sent)| sent.fate == Fate::Waiting);
            again.extend(waiting.map(|(index, sent)| (sent.number, *recipient, index, *sent)));
        }
        again.sort_unstable_by_key(|(number, ..)| *number);
        self.repeated = again.iter().map(|(_, recipient, index, _)| (*recipient, *index)).collect();
        again.into_iter().map(|(_, recipient, index, sent)| self.frame(course, recipient, index, sent)).collect()
    }

    /// Whether each accepted text has its receipt; always true if receipts are off.
    pub(super) fn is_receipted(&self) -> bool {
        self.unreceipted.is_empty()
    }

    /// The fates of all texts, by recipient.
    pub(super) fn fates(&self) -> impl Iterator<Item = (usize, Vec<Fate>)> {
        self.sent.iter().map(|(recipient, texts)| (*recipient, texts.iter().map(|sent| sent.fate).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::load::plan::{Contacts, Plan};

    /// An outbox with two texts to user 1 that have no answer.
    fn outbox() -> Outbox {
        let plan = Plan {
            name: "load".to_owned(),
            users: 2,
            contacts: Contacts::Pairs,
            devices: 1,
            rate: 0.0,
            in_flight: 2,
            size: 10,
            receipts: false,
            answering: false,
            sheds: false,
            keeps_timeline: false,
            cuts: None,
            presence: None,
        };
        let mut outbox = Outbox::new(0, plan.schedule(0).unwrap());
        let text = |number| Sent { fate: Fate::Waiting, due: number, number };
        outbox.sent.insert(1, vec![text(0), text(1)]);
        outbox.waiting = 2;
        outbox
    }

    fn update(index: Index, version: i64) -> VersionUpdate {
        VersionUpdate { message_id_local: format!("1-{index}"), version, ..VersionUpdate::default() }
    }

    #[test]
    fn a_doubled_version_update_is_seen() {
        let mut outbox = outbox();
        assert_eq!(outbox.accept(&update(0, 1), true, false).unwrap(), Some((1, 0)));
        let complaint =
            |outbox: &mut Outbox, is_new| outbox.accept(&update(0, 1), is_new, false).unwrap_err().to_string();
        assert!(complaint(&mut outbox, false).contains("came again"));
        assert!(complaint(&mut outbox, true).contains("two entries of the log"));
    }

    #[test]
    fn a_text_that_was_sent_again_is_answered_once_more_and_not_twice() {
        let mut outbox = outbox();
        outbox.repeated = HashSet::from([(1, 0), (1, 1)]);
        // From the log, then as an answer; and as an answer alone.
        assert!(outbox.accept(&update(0, 1), true, false).unwrap().is_some());
        assert!(outbox.accept(&update(0, 1), false, false).unwrap().is_none());
        assert!(outbox.accept(&update(0, 1), false, false).is_err());
        assert!(outbox.accept(&update(1, 2), false, false).unwrap().is_some());
        assert_eq!(outbox.waiting, 0);
    }
}
