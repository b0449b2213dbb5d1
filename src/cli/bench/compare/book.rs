//! Records what was sent and what arrived, and computes latencies, losses, repeats and recovery times from it.

use std::time::{Duration, Instant};

/// A one-way stream of numbered messages; each must arrive once and in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    TextUp,
    TextDown,
    MediaUp,
    MediaDown,
}

impl Stream {
    const ALL: [Stream; 4] = [Stream::TextUp, Stream::TextDown, Stream::MediaUp, Stream::MediaDown];
    /// The texts, on which the report is based.
    pub(super) const TEXTS: [Stream; 2] = [Stream::TextUp, Stream::TextDown];
}

/// The times of all messages of one trial.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// When each message was due, even if it was sent later.
    said: [Vec<Instant>; 4],
    arrived: [Vec<(usize, Instant)>; 4],
    /// When each ping was due, and how long its answer took from then; [`super::trial::UNANSWERED`] until then.
    pub(super) pings: Vec<(Instant, Duration)>,
    pub(super) presence_heard: usize,
    /// Sessions of the phone; `early` counts those that began with 0-RTT.
    pub(super) sessions: usize,
    pub(super) early: usize,
}

/// Messages that were lost, doubled or out of order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) lost: usize,
    pub(super) doubled: usize,
    pub(super) disordered: usize,
}

/// Recovery times after the network came back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recovery {
    /// Until the first text arrived, in either direction.
    pub(super) first: Duration,
    /// Until a text had arrived in each direction.
    pub(super) both: Duration,
    /// Until all texts due before the network's return had arrived.
    pub(super) caught_up: Duration,
}

impl Book {
    /// Records a message and returns its number.
    pub(super) fn say(&mut self, stream: Stream, due: Instant) -> usize {
        self.said[stream as usize].push(due);
        self.said[stream as usize].len() - 1
    }

    /// Removes the last message, which could not be sent.
    pub(super) fn unsay(&mut self, stream: Stream) {
        self.said[stream as usize].pop();
    }

    pub(super) fn arrive(&mut self, stream: Stream, number: usize, at: Instant) {
        self.arrived[stream as usize].push((number, at));
    }

    /// Whether no message is missing.
    pub(super) fn is_complete(&self) -> bool {
        self.wrong().lost == 0
    }

    pub(super) fn wrong(&self) -> Wrong {
        let mut wrong = Wrong::default();
        for stream in Stream::ALL {
            let arrived = &self.arrived[stream as usize];
            let mut came = vec![0usize; self.said[stream as usize].len()];
            for (number, _) in arrived {
                match came.get_mut(*number) {
                    Some(times) => *times += 1,
                    None => wrong.doubled += 1,
                }
            }
            wrong.lost += came.iter().filter(|times| **times == 0).count();
            wrong.doubled += came.iter().map(|times| times.saturating_sub(1)).sum::<usize>();
            wrong.disordered += arrived.windows(2).filter(|pair| pair[1].0 < pair[0].0).count();
        }
        wrong
    }

    /// Number of messages of all streams that arrived between two instants.
    pub(super) fn arrivals(&self, from: Instant, until: Instant) -> usize {
        self.arrived.iter().flatten().filter(|(_, at)| (from..until).contains(at)).count()
    }

    /// The texts that were due between two instants, each with its due time and its latency.
    pub(super) fn deliveries(&self, from: Instant, until: Instant) -> Vec<(Instant, Duration)> {
        let texts = Stream::TEXTS.into_iter().flat_map(|stream| {
            let said = &self.said[stream as usize];
            self.arrived[stream as usize].iter().filter_map(|(number, at)| Some((*said.get(*number)?, *at)))
        });
        let due = texts.filter(|(due, _)| (from..until).contains(due));
        due.map(|(due, at)| (due, at.saturating_duration_since(due))).collect()
    }

    /// Recovery times from `works_at` on. Texts due before `since` do not count as the first message, because they may
    /// have been on the way already.
    pub(super) fn recovery(&self, since: Instant, works_at: Instant) -> Option<Recovery> {
        let after = |stream: Stream| {
            let said = &self.said[stream as usize];
            let counts = |(number, at): &&(usize, Instant)| {
                *at >= works_at && said.get(*number).is_some_and(|due| *due >= since)
            };
            let first = self.arrived[stream as usize].iter().filter(counts).map(|(_, at)| *at).min()?;
            Some(first.saturating_duration_since(works_at))
        };
        let (up, down) = (after(Stream::TextUp)?, after(Stream::TextDown)?);
        let waiting = Stream::TEXTS.into_iter().flat_map(|stream| {
            let said = &self.said[stream as usize];
            let late = self.arrived[stream as usize].iter();
            late.filter(move |(number, _)| said.get(*number).is_some_and(|due| *due < works_at)).map(|(_, at)| *at)
        });
        let caught_up = waiting.max().map_or(Duration::ZERO, |last| last.saturating_duration_since(works_at));
        Some(Recovery { first: up.min(down), both: up.max(down), caught_up })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_lost_doubled_or_out_of_order_is_told() {
        let (mut book, now) = (Book::default(), Instant::now());
        for _ in 0..4 {
            book.say(Stream::TextUp, now);
        }
        for number in [0, 2, 1, 1] {
            book.arrive(Stream::TextUp, number, now);
        }
        assert_eq!(book.wrong(), Wrong { lost: 1, doubled: 1, disordered: 1 });
        assert!(!book.is_complete());
        book.unsay(Stream::TextUp);
        assert!(book.is_complete());
    }

    #[test]
    fn a_recovery_counts_from_the_networks_return() {
        let (mut book, began) = (Book::default(), Instant::now());
        for stream in Stream::TEXTS {
            for number in 0..3 {
                book.say(stream, began + MS * 10 * number);
            }
        }
        let works_at = began + MS * 15;
        assert!(book.recovery(began, works_at).is_none());
        // Due before the network went and still on the way: it does not count, as `since` is later.
        book.arrive(Stream::TextUp, 0, works_at + MS);
        book.arrive(Stream::TextUp, 1, works_at + MS * 30);
        book.arrive(Stream::TextDown, 0, works_at - MS);
        book.arrive(Stream::TextDown, 1, works_at + MS * 40);
        book.arrive(Stream::TextDown, 2, works_at + MS * 90);
        let recovery = book.recovery(began + MS, works_at).unwrap();
        assert_eq!((recovery.first, recovery.both, recovery.caught_up), (MS * 30, MS * 40, MS * 40));
    }
}
