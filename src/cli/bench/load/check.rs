//! Records what was sent and what happened to it, and checks that each device got all of it once and in order.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{bail, ensure};
use tokio::sync::watch;

/// A message's number among those from one user to another: 0, 1, 2 …
pub(super) type Index = usize;
/// The direction of a message: from one user to another.
pub(super) type Way = (usize, usize);

/// What happened to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Sent or about to be sent, without an answer yet.
    Waiting,
    /// Accepted by the server, with this version.
    Accepted(i64),
    /// Refused with an error.
    Refused,
    /// The connection ended before the answer: the message may or may not arrive.
    Uncertain,
}

/// Shared by all devices: the fates of all messages, at the end of a run.
pub(super) struct Board {
    fates: Mutex<HashMap<Way, Vec<Fate>>>,
    /// Senders whose messages do not all have a known fate.
    open: watch::Sender<usize>,
}

impl Board {
    pub(super) fn new(senders: usize) -> Board {
        Board { fates: Mutex::default(), open: watch::Sender::new(senders) }
    }

    /// Publishes the fates of a sender's messages, once it is done.
    pub(super) fn publish(&self, sender: usize, fates: impl Iterator<Item = (usize, Vec<Fate>)>) {
        self.fates().extend(fates.map(|(recipient, fates)| ((sender, recipient), fates)));
        // Wake the waiters only after the last sender.
        self.open.send_if_modified(|open| {
            *open -= 1;
            *open == 0
        });
    }

    pub(super) fn watch(&self) -> watch::Receiver<usize> {
        self.open.subscribe()
    }

    fn fates(&self) -> MutexGuard<'_, HashMap<Way, Vec<Fate>>> {
        self.fates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the messages with this fate.
    pub(super) fn count(&self, of: impl Fn(Fate) -> bool) -> u64 {
        self.fates().values().flatten().filter(|fate| of(**fate)).count() as u64
    }
}

/// What one device received.
pub(super) struct Inbox {
    user: usize,
    /// Whether the device gets copies of what the user's first device sends.
    copies: bool,
    /// Whether messages may be missing in between, because the server refused some.
    gaps: bool,
    /// The versions with which messages have arrived; 0: not.
    arrived: HashMap<Way, Vec<i64>>,
    chats: HashMap<usize, Versions>,
}

#[derive(Default)]
struct Versions {
    seen: Vec<bool>,
    newest_arrived: i64,
}

impl Versions {
    fn see(&mut self, version: i64) -> anyhow::Result<()> {
        ensure!(version >= 1, "version {version}");
        let place = version as usize - 1;
        if place >= self.seen.len() {
            self.seen.resize(place + 1, false);
        }
        ensure!(!std::mem::replace(&mut self.seen[place], true), "version {version} of a chat came twice");
        Ok(())
    }
}

impl Inbox {
    pub(super) fn new(user: usize, copies: bool, gaps: bool) -> Inbox {
        Inbox { user, copies, gaps, arrived: HashMap::new(), chats: HashMap::new() }
    }

    /// Records a received message.
    ///
    /// # Errors
    /// If the message came before, is out of order, or is not this user's to see.
    pub(super) fn arrive(&mut self, (from, to): Way, index: Index, version: i64) -> anyhow::Result<()> {
        let peer = match () {
            () if to == self.user => from,
            () if from == self.user && self.copies => to,
            () => bail!("a message from {from} to {to} came to {}", self.user),
        };
        let arrived = self.arrived.entry((from, to)).or_default();
        let next = arrived.len();
        ensure!(index >= next, "message {index} from {from} to {to} came again or late: {next} was due");
        ensure!(index == next || self.gaps, "message {index} from {from} to {to} came where {next} was due");
        arrived.resize(index, 0);
        arrived.push(version);
        let chat = self.chats.entry(peer).or_default();
        let newest = chat.newest_arrived;
        ensure!(version > newest, "version {version} of the chat of {from} and {to} came after {newest}");
        chat.newest_arrived = version;
        chat.see(version)
    }

    /// Records that a message of this device was accepted, with this version in the chat with `peer`.
    ///
    /// # Errors
    /// If another message had that version.
    pub(super) fn accepted(&mut self, peer: usize, version: i64) -> anyhow::Result<()> {
        self.chats.entry(peer).or_default().see(version)
    }

    fn is_for_it(&self, (from, to): Way) -> bool {
        to == self.user || self.copies && from == self.user
    }

    /// The last message due from each sender to each recipient, once all senders are done.
    pub(super) fn last_due(&self, board: &Board) -> Vec<(Way, Index)> {
        let accepted = |fates: &[Fate]| fates.iter().rposition(|fate| matches!(fate, Fate::Accepted(_)));
        let all = board.fates();
        let ways = all.iter().filter(|(way, _)| self.is_for_it(**way));
        ways.filter_map(|(way, fates)| Some((*way, accepted(fates)?))).collect()
    }

    /// Whether these last messages have arrived. All messages arrive in order, so none comes after them.
    pub(super) fn has(&self, last_due: &[(Way, Index)]) -> bool {
        last_due.iter().all(|(way, last)| self.arrived.get(way).is_some_and(|arrived| arrived.len() > *last))
    }

    /// How many accepted messages have not arrived, once all senders are done.
    pub(super) fn missing(&self, board: &Board) -> usize {
        let mut missing = 0;
        for (way, fates) in board.fates().iter().filter(|(way, _)| self.is_for_it(**way)) {
            let arrived = self.arrived.get(way).map_or(&[][..], Vec::as_slice);
            let accepted = fates.iter().enumerate().filter(|(_, fate)| matches!(fate, Fate::Accepted(_)));
            missing += accepted.filter(|(index, _)| arrived.get(*index).is_none_or(|version| *version == 0)).count();
        }
        missing
    }

    /// After the last message: checks that all accepted messages and all versions of each chat have arrived, with the versions that
    /// their senders were told, and nothing that was refused.
    ///
    /// # Errors
    /// If something is missing, or is another than it should be.
    pub(super) fn close(&self, board: &Board) -> anyhow::Result<()> {
        let missing = self.missing(board);
        ensure!(missing == 0, "{missing} accepted messages never came to {}", self.user);
        for ((from, to), fates) in board.fates().iter().filter(|(way, _)| self.is_for_it(**way)) {
            let arrived = self.arrived.get(&(*from, *to)).map_or(&[][..], Vec::as_slice);
            for (index, (fate, version)) in
                fates.iter().zip(arrived).enumerate().filter(|(_, (_, version))| **version != 0)
            {
                match fate {
                    Fate::Accepted(told) => ensure!(
                        told == version,
                        "message {index} from {from} to {to} was accepted as version {told} and came as {version}"
                    ),
                    Fate::Refused => bail!("message {index} from {from} to {to} was refused and came"),
                    Fate::Waiting | Fate::Uncertain => {}
                }
            }
        }
        // Where answers were lost, it is not known whether a refused message took a version.
        for (peer, chat) in self.chats.iter().filter(|_| !self.gaps) {
            if let Some(place) = chat.seen.iter().position(|seen| !seen) {
                bail!("version {} of the chat of {} and {peer} never came", place + 1, self.user);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAY: Way = (0, 1);

    fn inbox(arrivals: &[(Index, i64)]) -> anyhow::Result<Inbox> {
        let mut inbox = Inbox::new(1, false, false);
        arrivals.iter().try_for_each(|(index, version)| inbox.arrive(WAY, *index, *version))?;
        Ok(inbox)
    }

    fn board(fates: &[Fate]) -> Board {
        let board = Board::new(1);
        board.publish(0, [(1, fates.to_vec())].into_iter());
        board
    }

    fn complaint(arrivals: &[(Index, i64)]) -> String {
        inbox(arrivals).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn once_and_in_order_is_well() {
        let inbox = inbox(&[(0, 1), (1, 2), (2, 3)]).unwrap();
        let board = board(&[Fate::Accepted(1), Fate::Accepted(2), Fate::Accepted(3)]);
        assert_eq!(*board.watch().borrow(), 0);
        assert!(inbox.has(&inbox.last_due(&board)));
        inbox.close(&board).unwrap();
    }

    #[test]
    fn a_doubled_a_late_and_a_skipped_message_are_seen() {
        assert!(complaint(&[(0, 1), (0, 2)]).contains("came again or late"));
        assert!(complaint(&[(0, 1), (2, 2)]).contains("came where 1 was due"));
        assert!(complaint(&[(0, 2), (1, 1)]).contains("came after 2"));
        assert!(complaint(&[(0, 1), (1, 1)]).contains("came after 1"));
        assert!(complaint(&[(0, 0)]).contains("came after 0"));
    }

    #[test]
    fn a_lost_message_is_missed() {
        let inbox = inbox(&[(0, 1)]).unwrap();
        let board = board(&[Fate::Accepted(1), Fate::Refused, Fate::Accepted(2), Fate::Uncertain]);
        assert_eq!(inbox.last_due(&board), [(WAY, 2)]);
        assert!(!inbox.has(&inbox.last_due(&board)));
        assert!(inbox.close(&board).unwrap_err().to_string().contains("1 accepted messages never came"));
    }

    #[test]
    fn a_version_that_nobody_got_is_missed() {
        let mut inbox = inbox(&[(0, 1), (1, 3)]).unwrap();
        let board = board(&[Fate::Accepted(1), Fate::Accepted(3)]);
        assert!(inbox.close(&board).unwrap_err().to_string().contains("version 2"));
        inbox.accepted(0, 2).unwrap();
        inbox.close(&board).unwrap();
        assert!(inbox.accepted(0, 3).unwrap_err().to_string().contains("came twice"));
    }

    #[test]
    fn a_version_that_is_another_for_its_sender_and_a_refused_message_that_comes_are_seen() {
        let other = inbox(&[(0, 1), (1, 2)]).unwrap();
        let told = other.close(&board(&[Fate::Accepted(2), Fate::Accepted(1)])).unwrap_err().to_string();
        assert!(told.contains("was accepted as version 2 and came as 1"), "{told}");
        let told = other.close(&board(&[Fate::Accepted(1), Fate::Refused])).unwrap_err().to_string();
        assert!(told.contains("message 1 from 0 to 1 was refused and came"), "{told}");
        other.close(&board(&[Fate::Accepted(1), Fate::Uncertain])).unwrap();
    }

    #[test]
    fn a_message_of_others_is_noticed_and_so_is_a_copy_for_the_device_that_sent() {
        assert!(Inbox::new(2, true, false).arrive(WAY, 0, 1).is_err());
        assert!(Inbox::new(0, false, false).arrive(WAY, 0, 1).is_err());
        Inbox::new(0, true, false).arrive(WAY, 0, 1).unwrap();
    }

    #[test]
    fn gaps_are_allowed_where_messages_are_refused_and_nothing_else() {
        let mut inbox = Inbox::new(1, false, true);
        inbox.arrive(WAY, 3, 1).unwrap();
        assert!(inbox.arrive(WAY, 3, 2).is_err());
        assert!(inbox.arrive(WAY, 2, 2).is_err());
        inbox.arrive(WAY, 7, 2).unwrap();
    }
}
