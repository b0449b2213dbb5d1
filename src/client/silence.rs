//! Decides when silence means that a path is dead: first ask for a sign of life, then move to another socket, then give
//! the connection up. Pure; time is an argument.

use std::time::{Duration, Instant};

use super::limits::{
    IDLE_THIRDS_UNASKED, KNOCKS_BEFORE_DOUBT, KNOCKS_BEFORE_MOVING, KNOCKS_MAX, MOVED_KNOCKS_MAX, MOVED_SILENCE_MIN,
    MOVED_SILENCE_RTTS,
};

/// Measures how long nothing has arrived while something should.
#[derive(Debug)]
pub(crate) struct Silence {
    bound: Duration,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    since: Instant,
    bound: Duration,
    /// The count of arrivals at `since`.
    arrivals: u64,
    knocks: u32,
    /// The device moved to a new socket: something must arrive whether or not an answer is owed, and yet another socket
    /// would not help.
    moved: bool,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing.
    Life,
    /// Ask for a sign of life ("knock"). New data is sent at once, whereas QUIC waits twice as long before each
    /// repetition. So the device notices within one knock that the path is back.
    Knock,
    /// Continue from another socket, and ask there, because a NAT on the path may have lost the binding.
    Move,
    /// The path is dead.
    Dead,
}

impl Silence {
    /// A path is dead after `bound` of silence.
    pub(crate) fn new(bound: Duration) -> Silence {
        Silence { bound, watch: None }
    }

    /// Starts over for a new connection.
    pub(crate) fn reset(&mut self) {
        self.watch = None;
    }

    /// The device has moved to another socket because its network has changed, and has asked for a sign of life. If the
    /// new network lets nothing through, a new connection may succeed, so that is tried soon.
    pub(crate) fn moved(&mut self, now: Instant, rtt: Option<Duration>, arrivals: u64) {
        let bound = rtt.map_or(MOVED_SILENCE_MIN, |rtt| (MOVED_SILENCE_RTTS * rtt).max(MOVED_SILENCE_MIN));
        let bound = bound.min(self.bound);
        self.watch = Some(Watch { since: now, bound, arrivals, knocks: 0, moved: true });
    }

    /// Whether the path was asked for life in vain, so that more than one exchange is lost. QUIC's window may then be
    /// full of lost data, so that everything new, including the packets of a move, waits for QUIC's next repetition.
    pub(crate) fn is_in_doubt(&self, arrivals: u64) -> bool {
        let in_doubt = |watch: &Watch| watch.knocks >= KNOCKS_BEFORE_DOUBT && !watch.moved;
        self.watch.as_ref().is_some_and(|watch| in_doubt(watch) && watch.arrivals == arrivals)
    }

    /// Whether the path was asked for life in vain, so that it is cut, if the connection is over.
    pub(crate) fn was_in_vain(&self, arrivals: u64) -> bool {
        let in_vain = |watch: &Watch| watch.knocks >= KNOCKS_BEFORE_DOUBT && watch.arrivals == arrivals;
        self.watch.as_ref().is_some_and(in_vain)
    }

    /// When to call `look` again.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.watch.as_ref().map(|watch| watch.since + watch.due())
    }

    /// Judges the silence. `owed` says whether an answer is owed; `arrivals` counts what has arrived so far.
    pub(crate) fn look(&mut self, owed: bool, now: Instant, arrivals: impl FnOnce() -> u64) -> Heard {
        let Some(watch) = self.watch.as_mut().filter(|watch| owed || watch.moved) else {
            self.watch =
                owed.then(|| Watch { since: now, bound: self.bound, arrivals: arrivals(), knocks: 0, moved: false });
            return Heard::Life;
        };
        if now < watch.since + watch.due() {
            return Heard::Life;
        }
        let arrived = arrivals();
        if arrived != watch.arrivals {
            *watch = Watch { since: now, bound: self.bound, arrivals: arrived, knocks: 0, moved: false };
            return Heard::Life;
        }
        if now >= watch.since + watch.bound {
            let asleep = now >= watch.since + watch.bound + watch.bound / 2;
            if !asleep && (watch.knocks > 0 || watch.moved) {
                return Heard::Dead;
            }
            // The process did not run meanwhile. What has arrived may not have been read yet, so it asks first.
            (watch.since, watch.knocks) = (now, 0);
        }
        watch.knocks += 1;
        if watch.knocks == KNOCKS_BEFORE_MOVING && !watch.moved { Heard::Move } else { Heard::Knock }
    }
}

impl Watch {
    /// The silence at which the next step is due.
    fn due(&self) -> Duration {
        let steps = if self.moved { MOVED_KNOCKS_MAX } else { KNOCKS_MAX };
        (self.bound * (self.knocks + 1) / steps).min(self.bound)
    }
}

/// Judges whether an idle TCP connection is alive. QUIC detects that by itself.
#[derive(Debug)]
pub(crate) struct Idle {
    timeout: Duration,
    /// When a sign of life was last asked for.
    asked: Option<Instant>,
}

/// What a link knows about its silence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quiet {
    /// When something last arrived.
    pub(crate) since: Instant,
    /// This device is not reading, so that what the server sends is not noticed.
    pub(crate) held: bool,
}

impl Idle {
    /// A connection is dead after `timeout` of silence, if it was asked for life in vain.
    pub(crate) fn new(timeout: Duration) -> Idle {
        Idle { timeout, asked: None }
    }

    /// Starts over for a new connection.
    pub(crate) fn reset(&mut self) {
        self.asked = None;
    }

    /// When to call `look` again.
    pub(crate) fn next_look(&self, quiet: Quiet) -> Instant {
        let unasked = self.timeout / 3 * IDLE_THIRDS_UNASKED;
        match self.asked.filter(|asked| *asked >= quiet.since) {
            // This ping is also a sign of life to the server.
            Some(asked) if quiet.held => asked + unasked,
            Some(asked) => asked + (self.timeout - unasked),
            None => quiet.since + unasked,
        }
    }

    /// Judges the silence.
    pub(crate) fn look(&mut self, quiet: Quiet, now: Instant) -> Heard {
        if now < self.next_look(quiet) {
            return Heard::Life;
        }
        if !quiet.held && self.asked.is_some_and(|asked| asked >= quiet.since) {
            return Heard::Dead;
        }
        self.asked = Some(now);
        Heard::Knock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_asked_before_it_is_given_up_and_what_is_not_read_is_no_silence() {
        let start = Instant::now();
        let unasked = BOUND / 3 * IDLE_THIRDS_UNASKED;
        let since = |since: Instant| Quiet { since, held: false };
        let mut idle = Idle::new(BOUND);
        assert_eq!(idle.next_look(since(start)), start + unasked);
        assert_eq!(idle.look(since(start), start + unasked - Duration::from_millis(1)), Heard::Life);
        assert_eq!(idle.look(since(start), start + unasked), Heard::Knock);
        assert_eq!(idle.next_look(since(start)), start + BOUND);
        assert_eq!(idle.look(since(start), start + unasked), Heard::Life, "asked once");
        // The server answers.
        let heard = start + unasked + Duration::from_millis(40);
        assert_eq!(idle.look(since(heard), start + BOUND), Heard::Life);
        // A device that slept all that time asks first.
        let late = heard + 10 * BOUND;
        assert_eq!(idle.look(since(heard), late), Heard::Knock);
        assert_eq!(idle.look(since(heard), late + BOUND - unasked), Heard::Dead);
        idle.reset();
        assert_eq!(idle.look(since(late), late + BOUND / 3), Heard::Life);

        let mut idle = Idle::new(BOUND);
        let held = Quiet { since: start, held: true };
        for asked in 1..10 {
            let at = start + unasked * asked;
            assert_eq!(idle.next_look(held), at);
            assert_eq!(idle.look(held, at), Heard::Knock, "the server does not hear us else");
        }
        // Counted from when the device reads again.
        let again = start + unasked * 9 + Duration::from_millis(1);
        assert_eq!(idle.next_look(since(again)), again + unasked);
    }

    const BOUND: Duration = Duration::from_secs(8);

    /// The device's steps during silence, and when each is due.
    fn steps(silence: &mut Silence, start: Instant) -> Vec<(Duration, Heard)> {
        let mut steps = Vec::new();
        loop {
            let at = silence.next_look().unwrap();
            let heard = silence.look(true, at, || 7);
            let dead = heard == Heard::Dead;
            steps.push((at - start, heard));
            if dead {
                return steps;
            }
        }
    }

    #[test]
    fn it_knocks_a_bounded_number_of_times_moves_once_and_gives_up() {
        let start = Instant::now();
        let mut silence = Silence::new(BOUND);
        assert_eq!(silence.look(true, start, || 7), Heard::Life);
        let steps = steps(&mut silence, start);
        assert_eq!(steps.len(), KNOCKS_MAX as usize);
        let moves: Vec<_> = steps.iter().filter(|(_, heard)| *heard == Heard::Move).collect();
        assert_eq!(moves.len(), 1);
        assert!(moves[0].0 < BOUND / 2);
        assert_eq!(steps.last(), Some(&(BOUND, Heard::Dead)));
    }

    #[test]
    fn a_device_that_slept_asks_before_it_gives_up() {
        let start = Instant::now();
        let mut silence = Silence::new(BOUND);
        silence.look(true, start, || 7);
        let awake = start + 10 * BOUND;
        assert_eq!(silence.look(true, awake, || 7), Heard::Knock);
        assert_eq!(silence.next_look(), Some(awake + 2 * BOUND / KNOCKS_MAX));
        // Also in the midst of it, and after a move.
        let again = awake + 10 * BOUND;
        assert_eq!(silence.look(true, again, || 7), Heard::Knock);
        assert_eq!(silence.look(true, again + BOUND, || 7), Heard::Dead);
        silence.moved(again, None, 7);
        assert_eq!(silence.look(false, again + BOUND, || 7), Heard::Knock);
        assert_eq!(silence.look(false, again + BOUND + MOVED_SILENCE_MIN, || 7), Heard::Dead);
    }

    #[test]
    fn whatever_arrives_is_life_and_nothing_owed_is_no_silence() {
        let start = Instant::now();
        let mut silence = Silence::new(BOUND);
        assert_eq!(silence.look(false, start, || panic!("not asked")), Heard::Life);
        assert_eq!(silence.next_look(), None);
        silence.look(true, start, || 7);
        assert_eq!(silence.look(true, start + BOUND, || 8), Heard::Life);
        assert_eq!(silence.look(true, start + BOUND + BOUND / 2, || 8), Heard::Knock);
        assert_eq!(silence.look(false, start + 9 * BOUND, || 8), Heard::Life);
        assert_eq!(silence.next_look(), None);
    }

    #[test]
    fn a_path_is_in_doubt_from_the_second_knock_until_something_arrives() {
        let start = Instant::now();
        let mut silence = Silence::new(BOUND);
        assert!(!silence.is_in_doubt(7));
        silence.look(true, start, || 7);
        assert!(!silence.is_in_doubt(7));
        assert_eq!(silence.look(true, start + BOUND / 2, || 7), Heard::Knock);
        assert!(!silence.is_in_doubt(7), "one packet may be lost");
        assert_eq!(silence.look(true, start + BOUND / 2, || 7), Heard::Knock);
        assert!(silence.is_in_doubt(7) && !silence.is_in_doubt(8));
        // An application that reports two changes in a row moves twice.
        silence.moved(start, None, 7);
        silence.look(false, start + MOVED_SILENCE_MIN / 2, || 7);
        assert!(!silence.is_in_doubt(7));
    }

    #[test]
    fn after_a_move_silence_is_judged_sooner_whatever_is_owed() {
        let start = Instant::now();
        let mut silence = Silence::new(BOUND);
        silence.moved(start, Some(Duration::from_millis(40)), 7);
        assert_eq!(silence.look(false, start + MOVED_SILENCE_MIN / 2, || 7), Heard::Knock);
        assert_eq!(silence.look(false, start + MOVED_SILENCE_MIN, || 7), Heard::Dead);
        silence.moved(start, Some(Duration::from_secs(60)), 7);
        assert_eq!(silence.look(false, start + BOUND, || 7), Heard::Dead);
        silence.moved(start, None, 7);
        assert_eq!(silence.look(false, start + MOVED_SILENCE_MIN, || 8), Heard::Life);
        assert_eq!(silence.look(false, start + 2 * MOVED_SILENCE_MIN, || 8), Heard::Life);
    }
}
