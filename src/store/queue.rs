//! The writer's queue: bounded, and served in turns of the users, so that a user with few operations does not wait
//! behind all operations of a busy one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};
use tokio::time::timeout;

use super::StoreError;
use super::inbox::ReplyTo;
use super::ledger::Op;
use crate::limits;
use crate::wire::Eid;

/// An operation, and the receiver of its outcome.
pub(super) struct Job {
    pub(super) op: Op,
    pub(super) reply: ReplyTo,
}

/// The user in whose turn an operation is applied. `None` is the server itself, which has turns like a user.
pub(crate) type Turn = Option<Eid>;

/// The callers' end of the queue.
pub(crate) struct Queue {
    shared: Arc<Shared>,
}

/// The writer's end of the queue. Once it is dropped, the queue accepts nothing more, and callers that wait for an
/// outcome get [`StoreError::Closed`].
pub(crate) struct Waiting {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Free places; closed with the queue.
    places: Semaphore,
    /// Free places for users with few operations, while there are no others: some users with all their devices and sessions can take
    /// all of those.
    kept: Semaphore,
    filled: Condvar,
}

struct State {
    turns: Turns<Job>,
    closed: bool,
    /// The writer waits for a job, and nobody has woken it yet.
    asleep: bool,
    /// The last place that became free was one of those that are kept.
    to_kept: bool,
}

/// The result of waiting for a job.
pub(crate) enum Next {
    Job(Job),
    /// The given time passed without a job.
    Late,
    /// The queue is closed and empty.
    End,
}

pub(crate) fn queue() -> (Queue, Waiting) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State { turns: Turns::new(), closed: false, asleep: false, to_kept: false }),
        places: Semaphore::new(limits::STORE_QUEUE_MAX - limits::STORE_QUEUE_KEPT),
        kept: Semaphore::new(limits::STORE_QUEUE_KEPT),
        filled: Condvar::new(),
    });
    (Queue { shared: shared.clone() }, Waiting { shared })
}

impl Queue {
    /// Queues a job once there is a free place.
    ///
    /// # Errors
    ///
    /// [`StoreError::Overloaded`] if no place became free within `wait`; [`StoreError::Closed`] if the queue is closed.
    pub(crate) async fn push(&self, turn: Turn, job: Job, wait: Duration) -> Result<(), StoreError> {
        let place = self.place(&turn, wait).await?;
        self.put(place, turn, job)
    }

    /// Queues a job that may be lost. It is dropped if no place is free at once, or if [`limits::STORE_OFFERED_MAX`]
    /// operations of the user are queued: no caller waits for such a job, so nothing else bounds their number.
    pub(crate) fn offer(&self, turn: Turn, job: Job) {
        let Ok(place) = self.try_place(&turn) else { return };
        if self.shared.state().turns.waiting_for(&turn) < limits::STORE_OFFERED_MAX {
            // If the queue was closed meanwhile, the job is lost as well.
            let _ = self.put(place, turn, job);
        }
    }

    /// Reserves a place for [`Queue::put`], once there is one.
    ///
    /// # Errors
    ///
    /// [`StoreError::Overloaded`] if no place became free within `wait`; [`StoreError::Closed`] if the queue is closed.
    pub(crate) async fn place(&self, turn: &Turn, wait: Duration) -> Result<SemaphorePermit<'_>, StoreError> {
        let Shared { places, kept, .. } = &*self.shared;
        let free = async {
            match self.has_few(turn) {
                true => tokio::select! {
                    place = kept.acquire() => place,
                    place = places.acquire() => place,
                },
                false => places.acquire().await,
            }
        };
        match self.try_place(turn) {
            Err(StoreError::Overloaded) => match timeout(wait, free).await {
                Ok(place) => place.map_err(|_| StoreError::Closed),
                Err(_) => Err(StoreError::Overloaded),
            },
            place => place,
        }
    }

    /// Reserves a place for [`Queue::put`], if there is one now.
    ///
    /// # Errors
    ///
    /// [`StoreError::Overloaded`] if no place is free or other callers wait for one, and none is kept for this user;
    /// [`StoreError::Closed`] if the queue is closed.
    pub(crate) fn try_place(&self, turn: &Turn) -> Result<SemaphorePermit<'_>, StoreError> {
        let place = match self.shared.places.try_acquire() {
            Err(TryAcquireError::NoPermits) if self.has_few(turn) => self.shared.kept.try_acquire(),
            place => place,
        };
        place.map_err(|error| match error {
            TryAcquireError::NoPermits => StoreError::Overloaded,
            TryAcquireError::Closed => StoreError::Closed,
        })
    }

    /// Whether places are kept for this user.
    fn has_few(&self, turn: &Turn) -> bool {
        self.shared.state().turns.waiting_for(turn) < limits::STORE_TURN_MAX
    }

    /// Queues a job in a reserved place.
    ///
    /// # Errors
    ///
    /// [`StoreError::Closed`] if the queue is closed; the job is dropped.
    pub(crate) fn put(&self, place: SemaphorePermit<'_>, turn: Turn, job: Job) -> Result<(), StoreError> {
        place.forget();
        self.shared.put(turn, job)
    }

    pub(crate) fn len(&self) -> usize {
        self.shared.state().turns.len
    }

    /// Stops accepting jobs; the writer finishes the queued ones, and ends.
    pub(crate) fn close(&self) {
        self.shared.close();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.close();
    }
}

impl Waiting {
    /// Begins a commit: waits for its first job, until `until` at the latest.
    pub(crate) fn next(&self, until: Option<Instant>) -> Next {
        let mut state = self.shared.state();
        state.turns.begin();
        loop {
            if let Some(job) = self.take(&mut state) {
                return Next::Job(job);
            }
            if state.closed {
                return Next::End;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Next::Late;
            }
            state.asleep = true;
            let filled = &self.shared.filled;
            state = match left {
                Some(left) => filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => filled.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.asleep = false;
        }
    }

    /// The next job of this commit, if there is one.
    pub(crate) fn try_next(&self) -> Option<Job> {
        self.take(&mut self.shared.state())
    }

    fn take(&self, state: &mut State) -> Option<Job> {
        let job = state.turns.pop()?;
        // By turns, so that neither who waits for one of all places nor who has few operations waits for ever.
        state.to_kept = !state.to_kept && self.shared.kept.available_permits() < limits::STORE_QUEUE_KEPT;
        if state.to_kept {
            self.shared.kept.add_permits(1)
        } else {
            self.shared.places.add_permits(1)
        }
        Some(job)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.close();
        // Their reply channels are dropped with the jobs, which tells the callers.
        self.shared.state().turns = Turns::new();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock can be used: nothing panics half-way through a change while holding it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, turn: Turn, job: Job) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.closed {
            return Err(StoreError::Closed);
        }
        state.turns.push(turn, job);
        // One wake-up is enough, however long the writer takes to run.
        if std::mem::take(&mut state.asleep) {
            self.filled.notify_one();
        }
        Ok(())
    }

    fn close(&self) {
        self.places.close();
        self.kept.close();
        self.state().closed = true;
        self.filled.notify_one();
    }
}

/// First in, first out for each user, and some operations of each user in a round. A commit takes one round, or as many
/// as it takes to become large enough.
struct Turns<T> {
    /// The users' queues. None is empty, and each user is in `order` or in `again`.
    waiting: HashMap<Turn, VecDeque<T>>,
    /// Users who have or will have their turn in this round.
    order: VecDeque<Turn>,
    /// Users who had their turn in this round and have more operations.
    again: VecDeque<Turn>,
    /// Operations taken in the current turn.
    taken: usize,
    /// Operations taken for this commit.
    together: usize,
    len: usize,
}

impl<T> Turns<T> {
    fn new() -> Turns<T> {
        Turns { waiting: HashMap::new(), order: VecDeque::new(), again: VecDeque::new(), taken: 0, together: 0, len: 0 }
    }

    fn push(&mut self, turn: Turn, item: T) {
        self.len += 1;
        if let Some(waiting) = self.waiting.get_mut(&turn) {
            waiting.push_back(item);
        } else {
            self.order.push_back(turn.clone());
            self.waiting.insert(turn, VecDeque::from([item]));
        }
    }

    fn waiting_for(&self, turn: &Turn) -> usize {
        self.waiting.get(turn).map_or(0, VecDeque::len)
    }

    fn begin(&mut self) {
        self.order.append(&mut self.again);
        // The last commit ended within this user's turn, for it was full. The rest comes behind the others: otherwise a user
        // whose few operations fill a commit would be first in each.
        if self.taken > 0
            && let Some(turn) = self.order.pop_front()
        {
            self.order.push_back(turn);
        }
        (self.taken, self.together) = (0, 0);
    }

    /// The next operation of this commit, if there is one.
    fn pop(&mut self) -> Option<T> {
        if self.order.is_empty() && self.together < limits::STORE_ROUNDS_UNTIL {
            self.order.append(&mut self.again);
        }
        let waiting = self.waiting.get_mut(self.order.front()?)?;
        let item = waiting.pop_front()?;
        self.len -= 1;
        self.taken += 1;
        self.together += 1;
        let empty = waiting.is_empty();
        if (empty || self.taken == limits::STORE_TURN_MAX)
            && let Some(turn) = self.order.pop_front()
        {
            self.taken = 0;
            if empty {
                self.waiting.remove(&turn);
            } else {
                self.again.push_back(turn);
            }
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> Turn {
        Some(Eid::parse(&format!("{name}@localhost")).unwrap())
    }

    fn check() -> Job {
        Job { op: Op::Check, reply: ReplyTo::Nobody }
    }

    fn put(queue: &Queue, turn: Turn, job: Job) -> Result<(), StoreError> {
        queue.put(queue.try_place(&turn)?, turn, job)
    }

    /// Takes so many places, those that are kept last.
    fn fill(queue: &Queue, places: usize) {
        for place in 0..places {
            put(queue, user(&format!("user-{}", place / limits::STORE_TURN_MAX)), check()).unwrap();
        }
    }

    #[tokio::test]
    async fn who_has_few_operations_finds_a_place_when_busy_users_have_taken_all_that_they_get() {
        let (queue, waiting) = queue();
        for _ in 0..limits::STORE_QUEUE_MAX - limits::STORE_QUEUE_KEPT {
            put(&queue, user("much"), check()).unwrap();
        }
        assert_eq!(put(&queue, user("much"), check()), Err(StoreError::Overloaded));
        for _ in 0..limits::STORE_TURN_MAX {
            put(&queue, user("little"), check()).unwrap();
        }
        assert_eq!(put(&queue, user("little"), check()), Err(StoreError::Overloaded), "now it has many, too");
        queue.offer(user("other"), check());
        assert_eq!(queue.len(), limits::STORE_QUEUE_MAX - limits::STORE_QUEUE_KEPT + limits::STORE_TURN_MAX + 1);
        // Of two places that become free, one is for all.
        waiting.shared.state().turns.begin();
        for _ in 0..2 {
            assert!(waiting.try_next().is_some());
        }
        put(&queue, user("much"), check()).unwrap();
        assert_eq!(put(&queue, user("much"), check()), Err(StoreError::Overloaded));
        // All of them are there again in the end.
        while queue.len() > 0 {
            waiting.shared.state().turns.begin();
            while waiting.try_next().is_some() {}
        }
        fill(&queue, limits::STORE_QUEUE_MAX);
        assert_eq!(put(&queue, user("other"), check()), Err(StoreError::Overloaded));
    }

    #[test]
    fn who_sends_little_does_not_wait_behind_all_of_who_sends_much() {
        const MUCH: usize = 2 * limits::STORE_ROUNDS_UNTIL;
        let mut turns = Turns::new();
        for number in 0..MUCH {
            turns.push(user("much"), ("much", number));
        }
        turns.push(user("little"), ("little", 0));
        turns.push(None, ("itself", 0));
        turns.push(user("little"), ("little", 1));
        turns.begin();
        let commit: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        let (first, others) = commit.split_at(limits::STORE_TURN_MAX);
        assert!(first.iter().all(|(who, _)| *who == "much"));
        assert_eq!(others[..3], [("little", 0), ("little", 1), ("itself", 0)]);
        let large_enough = limits::STORE_ROUNDS_UNTIL..limits::STORE_ROUNDS_UNTIL + limits::STORE_TURN_MAX;
        assert!(large_enough.contains(&commit.len()), "the rest waits for the next: {}", commit.len());
        turns.push(user("little"), ("little", 2));
        assert_eq!(turns.pop(), Some(("little", 2)), "who comes in time is in it");
        let mut much: Vec<_> = first.iter().chain(&others[3..]).copied().collect();
        while turns.len > 0 {
            turns.begin();
            much.extend(std::iter::from_fn(|| turns.pop()));
        }
        assert!(much.into_iter().eq((0..MUCH).map(|number| ("much", number))), "each one's own in order");
        assert_eq!((turns.waiting.len(), turns.order.len(), turns.again.len()), (0, 0, 0));
    }

    #[test]
    fn who_fills_a_commit_with_little_comes_behind_the_others_in_the_next() {
        let mut turns = Turns::new();
        for number in 0..limits::STORE_TURN_MAX {
            turns.push(user("much"), ("much", number));
        }
        turns.push(user("little"), ("little", 0));
        turns.push(user("other"), ("other", 0));
        let commit = |turns: &mut Turns<_>, full: usize| {
            turns.begin();
            std::iter::from_fn(|| turns.pop()).take(full).collect::<Vec<_>>()
        };
        assert_eq!(commit(&mut turns, 2), [("much", 0), ("much", 1)]);
        turns.push(user("late"), ("late", 0));
        assert_eq!(commit(&mut turns, 4), [("little", 0), ("other", 0), ("late", 0), ("much", 2)]);
        assert_eq!(commit(&mut turns, 1), [("much", 3)], "alone it goes on");
        // Who had the whole turn is behind the others as it is.
        turns.push(user("little"), ("little", 1));
        let rest = commit(&mut turns, usize::MAX);
        assert_eq!(rest[..2], [("little", 1), ("much", 4)]);
        assert_eq!((rest.len(), turns.len), (limits::STORE_TURN_MAX - 3, 0));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_a_place_that_is_free_again_is_given() {
        let (queue, waiting) = queue();
        fill(&queue, limits::STORE_QUEUE_MAX);
        assert_eq!(put(&queue, None, check()), Err(StoreError::Overloaded));
        assert_eq!(queue.push(None, check(), Duration::ZERO).await, Err(StoreError::Overloaded));
        let (pushed, ()) = tokio::join!(queue.push(None, check(), Duration::from_secs(60)), async {
            assert!(waiting.try_next().is_some());
        });
        pushed.unwrap();
        assert_eq!(queue.len(), limits::STORE_QUEUE_MAX);
    }

    #[test]
    fn what_nobody_waits_for_takes_few_places_of_a_user() {
        let (queue, waiting) = queue();
        for _ in 0..2 * limits::STORE_OFFERED_MAX {
            queue.offer(user("much"), check());
        }
        assert_eq!(queue.len(), limits::STORE_OFFERED_MAX);
        put(&queue, user("much"), check()).unwrap();
        queue.offer(user("little"), check());
        assert_eq!(queue.len(), limits::STORE_OFFERED_MAX + 2, "what is waited for, and others, find theirs");
        while waiting.try_next().is_some() {}
        waiting.shared.state().turns.begin();
        while waiting.try_next().is_some() {}
        queue.offer(user("much"), check());
        assert_eq!(queue.len(), 1);
        fill(&queue, limits::STORE_QUEUE_MAX - 1);
        queue.offer(user("little"), check());
        assert_eq!(queue.len(), limits::STORE_QUEUE_MAX);
    }

    #[tokio::test]
    async fn a_closed_queue_gives_what_it_has_and_takes_nothing() {
        let (queue, waiting) = queue();
        put(&queue, user("one"), check()).unwrap();
        assert!(matches!(waiting.next(None), Next::Job(_)));
        assert!(matches!(waiting.next(Some(Instant::now())), Next::Late));
        put(&queue, user("one"), check()).unwrap();
        queue.close();
        assert_eq!(put(&queue, None, check()), Err(StoreError::Closed));
        assert_eq!(queue.push(None, check(), Duration::from_secs(60)).await, Err(StoreError::Closed));
        assert!(matches!(waiting.next(None), Next::Job(_)));
        assert!(matches!(waiting.next(None), Next::End));
    }

    #[tokio::test]
    async fn without_the_writer_nobody_waits() {
        let (queue, waiting) = queue();
        let (reply, outcome) = tokio::sync::oneshot::channel();
        put(&queue, None, Job { op: Op::Check, reply: ReplyTo::Caller(reply) }).unwrap();
        drop(waiting);
        assert!(outcome.await.is_err());
        assert_eq!(put(&queue, None, check()), Err(StoreError::Closed));
    }
}
