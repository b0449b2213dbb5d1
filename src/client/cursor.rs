//! The device's position in its user's log (protocol.md §9): what it has seen, and what is safe with the application.

use std::collections::BTreeSet;
use std::time::Instant;

use super::limits::{AHEAD_MAX, SYNC_EVERY, SYNC_WITHIN};
use crate::wire::Sequence;

/// The device's position in the log.
///
/// Entries of the tail come in order, so the highest sequence decides what is new. A direct reply may arrive before the
/// tail reaches it: the VersionUpdate of a resent message comes at once, while older entries are still being delivered.
/// Taking its sequence as the tail's position would skip those. It is therefore remembered separately until the tail
/// gets there.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// Every entry up to here was seen. `None` until a server or the application has set a starting position.
    seen: Option<Sequence>,
    /// Entries beyond `seen` that came as direct replies.
    ahead: BTreeSet<Sequence>,
    /// Number of entries that were handed out and that the application has not taken.
    outstanding: usize,
    /// How many of these are of another log; they are taken first.
    stale: usize,
    /// The newest entry that the application took.
    taken: Sequence,
    /// What the server was told is safe on this device.
    synced: Told,
    /// What the application said is safe (`Device::sync`).
    said: Sequence,
    /// The position that the outbox keeps for the next process.
    kept: Told,
    /// What the outbox has to keep at once, instead of a position in another log.
    instead: Option<Sequence>,
    /// The log that this device had seen is gone, and no session has said where the tail starts in the present one.
    anew: bool,
}

/// What an accepted session says about the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    /// It is the one that this device knows, or the first one.
    Same,
    /// It is another log, and the tail starts where this device has to start in it.
    Another,
    /// It is another log. The server took the position in the old one for a position in this one, so the tail skips
    /// entries that this device has not seen: another session has to be opened, which asks for none.
    Skipped,
}

/// How far a receiver was told what is safe here, and since when there is more.
#[derive(Debug, Default)]
struct Told {
    /// `None`: nothing of this log was told.
    up_to: Option<Sequence>,
    /// When something untold became safe.
    since: Option<Instant>,
}

impl Told {
    fn that(up_to: Option<Sequence>) -> Told {
        Told { up_to, since: None }
    }

    fn is_news(&self, safe: Sequence) -> bool {
        self.up_to.is_none_or(|up_to| up_to < safe)
    }

    /// When to report that everything up to `safe` is safe; `None` if that was reported.
    fn due(&mut self, safe: Sequence, now: Instant) -> Option<Instant> {
        if !self.is_news(safe) {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        let untold = safe.get() - self.up_to.unwrap_or(Sequence::ZERO).get();
        Some(if untold >= SYNC_EVERY { now } else { since + SYNC_WITHIN })
    }

    /// What to report now, if anything.
    fn tell(&mut self, safe: Sequence) -> Option<Sequence> {
        self.is_news(safe).then(|| {
            *self = Told::that(Some(safe));
            safe
        })
    }
}

impl Cursor {
    pub(crate) fn starting_at(seen: Option<Sequence>) -> Cursor {
        // Up to there the application of an earlier process had everything.
        Cursor { seen, kept: Told::that(seen), said: seen.unwrap_or_default(), ..Cursor::default() }
    }

    /// The position from which the server is asked to resume.
    pub(crate) fn resume_from(&self) -> Option<Sequence> {
        self.seen
    }

    /// Handles an accepted session: the tail starts after `start`, and the log ends at `head`. If the log ends before
    /// an entry that this device has seen, it is another log, as of a server that lost its data or was restored from a
    /// backup: its numbers start over, and the remembered position would hide new entries.
    pub(crate) fn accepted(&mut self, start: Sequence, head: Sequence) -> Log {
        let log = match self.seen {
            Some(seen) if seen <= head => {
                self.seen = Some(seen.max(start));
                // The last SyncAck may have been lost; repeating it costs one small frame.
                self.synced.up_to = Some(Sequence::ZERO);
                Log::Same
            }
            Some(_) if start > Sequence::ZERO => {
                self.start_over(None, Some(Sequence::ZERO));
                Log::Skipped
            }
            seen => {
                let another = seen.is_some() || self.anew;
                self.start_over(Some(start), another.then_some(start));
                if another { Log::Another } else { Log::Same }
            }
        };
        self.absorb();
        log
    }

    /// Forgets everything about the log before. What the application has not taken of it remains to be counted.
    fn start_over(&mut self, seen: Option<Sequence>, instead: Option<Sequence>) {
        let (synced, kept, outstanding) = (Told::that(seen), Told::that(seen), self.outstanding);
        let (stale, anew) = (outstanding, seen.is_none());
        *self = Cursor { seen, synced, kept, outstanding, stale, instead, anew, ..Cursor::default() };
    }

    /// Handles an entry from the tail. Returns whether it is new.
    pub(crate) fn tailed(&mut self, sequence: Sequence) -> bool {
        if sequence == Sequence::ZERO || self.seen.is_some_and(|seen| sequence <= seen) {
            return false;
        }
        let new = !self.ahead.contains(&sequence);
        self.seen = Some(sequence);
        self.absorb();
        new
    }

    /// Handles an entry that came as a direct reply. Returns whether it is new.
    pub(crate) fn replied(&mut self, sequence: Sequence) -> bool {
        let Some(seen) = self.seen else { return false };
        if sequence <= seen.next() {
            return self.tailed(sequence);
        }
        if self.ahead.len() >= AHEAD_MAX {
            return !self.ahead.contains(&sequence);
        }
        self.ahead.insert(sequence)
    }

    /// Counts a new entry that is handed to the application.
    pub(crate) fn handed_out(&mut self) {
        self.outstanding += 1;
    }

    /// The application took an entry that was handed out. Returns whether it is of this log.
    pub(crate) fn taken(&mut self, sequence: Sequence) -> bool {
        self.outstanding = self.outstanding.saturating_sub(1);
        match self.stale.checked_sub(1) {
            Some(left) => self.stale = left,
            None => {
                self.taken = self.taken.max(sequence);
                return true;
            }
        }
        false
    }

    /// An acknowledgment tells the server that everything up to here is safe (protocol.md §9), so that no SyncAck is
    /// needed.
    pub(crate) fn covered(&mut self, sequence: Sequence) {
        self.synced.up_to = self.synced.up_to.max(Some(sequence.min(self.safe())));
    }

    /// When a SyncAck is due, if there is anything to report.
    pub(crate) fn sync_due(&mut self, now: Instant) -> Option<Instant> {
        self.synced.due(self.safe(), now)
    }

    /// What to report to the server now, if anything.
    pub(crate) fn sync(&mut self) -> Option<Sequence> {
        self.synced.tell(self.safe())
    }

    /// The application says that everything up to here is safe. Entries that it has not taken do not count. Returns the
    /// furthest position that it has confirmed so far, if any, or the one that the outbox has if that is further: this
    /// one replaces it.
    pub(crate) fn say(&mut self, sequence: Sequence) -> Option<Sequence> {
        self.said = self.said.max(sequence.min(self.safe())).max(self.kept.up_to.unwrap_or_default());
        self.said()?;
        self.kept.up_to = Some(self.said);
        self.said()
    }

    /// The furthest position that the application has confirmed, if any.
    pub(crate) fn said(&self) -> Option<Sequence> {
        (self.said != Sequence::ZERO).then_some(self.said)
    }

    /// The tail's last entry at or before this one. Once the application has taken everything that was handed out up to
    /// that entry, it has taken everything before it.
    pub(crate) fn tail_at(&self, sequence: Sequence) -> Sequence {
        self.seen.map_or(sequence, |seen| seen.min(sequence))
    }

    /// When the outbox has to be told the position, if it is new. Entries from the oldest `unacknowledged` one on must
    /// be delivered again to a later process, which then acknowledges them.
    pub(crate) fn keep_due(&mut self, unacknowledged: Option<Sequence>, now: Instant) -> Option<Instant> {
        self.kept.due(self.done(unacknowledged)?, now)
    }

    /// The position that replaces the outbox's, which is one in another log; returned once.
    pub(crate) fn keep_instead(&mut self) -> Option<Sequence> {
        self.instead.take()
    }

    /// The position to give to the outbox now, if it is new.
    pub(crate) fn keep(&mut self, unacknowledged: Option<Sequence>) -> Option<Sequence> {
        self.kept.tell(self.done(unacknowledged)?)
    }

    /// The last entry up to which nothing is left to do. `None` before a server or the application has set a starting
    /// position.
    fn done(&self, unacknowledged: Option<Sequence>) -> Option<Sequence> {
        let before = unacknowledged.map(|oldest| Sequence::from(oldest.get().saturating_sub(1)));
        self.seen.map(|_| before.map_or(self.safe(), |before| before.min(self.safe())))
    }

    /// The last entry up to which everything was taken by the application or needed nothing from it.
    fn safe(&self) -> Sequence {
        let seen = self.seen.unwrap_or(Sequence::ZERO);
        if self.outstanding == 0 { seen } else { self.taken.min(seen) }
    }

    fn absorb(&mut self) {
        let Some(mut seen) = self.seen else { return };
        while let Some(first) = self.ahead.first().copied() {
            if first > seen.next() {
                break;
            }
            self.ahead.pop_first();
            seen = seen.max(first);
        }
        self.seen = Some(seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(number: u64) -> Sequence {
        Sequence::from(number)
    }

    fn at(start: u64) -> Cursor {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.accepted(seq(start), seq(100)), Log::Same);
        cursor
    }

    #[test]
    fn an_entry_is_new_once() {
        enum Came {
            Tail(u64),
            Reply(u64),
        }
        use Came::{Reply, Tail};
        // What came, whether it was new, the position to resume from afterwards.
        let steps = [
            (Tail(0), false, 5),
            (Tail(5), false, 5),
            (Tail(6), true, 6),
            (Tail(6), false, 6),
            (Tail(9), true, 9),
            // A reply that is next in line counts as the tail's entry.
            (Reply(10), true, 10),
            // A reply ahead of the tail must not hide the entries in between.
            (Reply(14), true, 10),
            (Reply(14), false, 10),
            (Reply(12), true, 10),
            (Tail(11), true, 12),
            (Tail(12), false, 12),
            (Tail(13), true, 14),
            (Tail(14), false, 14),
            (Reply(20), true, 14),
            (Tail(20), false, 20),
            (Reply(3), false, 20),
        ];
        let mut cursor = at(5);
        for (index, (came, new, resume)) in steps.into_iter().enumerate() {
            let was_new = match came {
                Tail(number) => cursor.tailed(seq(number)),
                Reply(number) => cursor.replied(seq(number)),
            };
            assert_eq!(was_new, new, "step {index}");
            assert_eq!(cursor.resume_from(), Some(seq(resume)), "step {index}");
        }
    }

    #[test]
    fn the_memory_of_replies_ahead_is_bounded() {
        let mut cursor = at(0);
        for number in 0..2 * AHEAD_MAX as u64 {
            assert!(cursor.replied(seq(10 + 2 * number)));
        }
        assert_eq!(cursor.ahead.len(), AHEAD_MAX);
        assert_eq!(cursor.resume_from(), Some(seq(0)));
    }

    #[test]
    fn a_log_that_ends_before_what_was_seen_is_another_log() {
        let mut cursor = at(5);
        cursor.tailed(seq(50));
        assert_eq!(cursor.accepted(seq(50), seq(50)), Log::Same);
        assert_eq!(cursor.keep_instead(), None);
        assert!(!cursor.tailed(seq(2)));
        assert_eq!(cursor.accepted(seq(0), seq(3)), Log::Another);
        assert_eq!(cursor.keep_instead(), Some(seq(0)));
        assert!(cursor.tailed(seq(2)));
    }

    #[test]
    fn a_tail_that_starts_at_the_end_of_another_log_is_asked_for_anew_without_a_position() {
        let mut cursor = at(5);
        cursor.tailed(seq(50));
        // The server was restored, and has accepted three messages since. It takes 50 for its log's end.
        assert_eq!(cursor.accepted(seq(43), seq(43)), Log::Skipped);
        assert_eq!(cursor.resume_from(), None);
        assert_eq!(cursor.say(seq(50)), None);
        assert_eq!(cursor.keep_instead(), Some(seq(0)), "the next process must not skip them either");
        // Once only: whatever the next session says is where this device starts.
        assert_eq!(cursor.accepted(seq(38), seq(43)), Log::Another);
        assert_eq!(cursor.keep_instead(), Some(seq(38)));
        assert!((39..=43).all(|number| cursor.tailed(seq(number))));
        assert_eq!(cursor.accepted(seq(43), seq(43)), Log::Same);
    }

    #[test]
    fn a_tail_that_starts_later_moves_the_cursor() {
        let mut cursor = Cursor::starting_at(Some(seq(5)));
        assert_eq!(cursor.accepted(seq(40), seq(60)), Log::Same);
        assert_eq!(cursor.resume_from(), Some(seq(40)));
    }

    #[test]
    fn only_what_the_application_took_is_synchronised() {
        let now = Instant::now();
        let mut cursor = at(5);
        assert_eq!(cursor.sync_due(now), None);
        for number in 6..=8 {
            assert!(cursor.tailed(seq(number)));
            cursor.handed_out();
        }
        assert_eq!(cursor.sync(), None);
        cursor.taken(seq(6));
        assert_eq!(cursor.sync_due(now), Some(now + SYNC_WITHIN));
        // Further entries do not restart the wait.
        cursor.taken(seq(7));
        assert_eq!(cursor.sync_due(now + SYNC_WITHIN / 2), Some(now + SYNC_WITHIN));
        assert_eq!(cursor.sync(), Some(seq(7)));
        assert_eq!(cursor.sync(), None);
        cursor.taken(seq(8));
        cursor.covered(seq(8));
        assert_eq!(cursor.sync(), None);
        // An entry that needs nothing from the application is safe once the application has taken everything handed
        // out.
        assert!(cursor.tailed(seq(9)));
        assert_eq!(cursor.sync(), Some(seq(9)));
        // Many entries at once are reported without a wait.
        assert!(cursor.tailed(seq(9 + SYNC_EVERY)));
        assert_eq!(cursor.sync_due(now), Some(now));
        // After a reconnect the last position is reported again.
        assert_eq!(cursor.sync(), Some(seq(9 + SYNC_EVERY)));
        assert_eq!(cursor.accepted(seq(9 + SYNC_EVERY), seq(100)), Log::Same);
        assert_eq!(cursor.sync(), Some(seq(9 + SYNC_EVERY)));
    }

    #[test]
    fn a_position_that_is_said_before_any_session_takes_nothing_back() {
        let mut cursor = Cursor::starting_at(None);
        assert_eq!(cursor.say(seq(3)), None, "it is not known yet where the tail starts");
        let mut cursor = Cursor::starting_at(Some(seq(10)));
        assert_eq!(cursor.say(seq(3)), Some(seq(10)), "an earlier process had said so");
    }

    #[test]
    fn what_the_application_says_takes_nothing_back_of_what_the_outbox_has() {
        let mut cursor = at(5);
        for number in 6..=9 {
            assert!(cursor.tailed(seq(number)));
            cursor.handed_out();
            cursor.taken(seq(number));
        }
        assert_eq!(cursor.keep(Some(seq(9))), Some(seq(8)));
        assert_eq!(cursor.say(seq(6)), Some(seq(8)));
        assert_eq!(cursor.say(seq(9)), Some(seq(9)));
        assert_eq!(cursor.keep(Some(seq(9))), None, "it has nine");
    }

    #[test]
    fn what_was_taken_of_another_log_is_not_taken_of_this_one() {
        let mut cursor = at(5);
        for number in 40..=50 {
            assert!(cursor.tailed(seq(number)));
            cursor.handed_out();
        }
        // The server lost its data: another log, which has three entries.
        assert_eq!(cursor.accepted(seq(0), seq(3)), Log::Another);
        for number in 1..=3 {
            assert!(cursor.tailed(seq(number)));
            cursor.handed_out();
        }
        // The application takes the first event of those that it had not taken of the log before.
        assert!(!cursor.taken(seq(40)));
        assert_eq!(cursor.sync(), None, "it has taken none of the new log's");
        assert_eq!(cursor.keep(None).unwrap_or(seq(0)), seq(0));
    }
}
