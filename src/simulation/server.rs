//! The server without threads: the real hub, ledger and sessions. What the driver and the writer do between them is split into
//! moves, each of which may come at any time.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use crate::auth::{Grant, Signer, Verifier, dev};
use crate::clock::Now;
use crate::config::{AuthConfig, LimitsConfig, Rate};
use crate::hub::Hub;
use crate::hub::presence::Timing;
use crate::observe::{Metrics, TransportKind};
use crate::session::{Asked, Call, Done, Flood, Origin, Output, Services, Session, Settings};
use crate::store::{
    Change, HistoryQuery, Kv, Ledger, LogEntry, LogObserver, Memory, Op, Outcome, Reply, StoreError, read_history,
    read_log,
};
use crate::wire::{DeviceId, Eid, Sequence};

use crate::random::Random;

/// The first moment of every story in Unix milliseconds: September 2026.
pub(super) const BEGINNING_MS: i64 = 1_788_000_000_000;
pub(super) const RELEASE_WITHIN: Duration = crate::limits::RELEASE_WITHIN;

/// The story's clock: it moves only when the story says so.
#[derive(Clone)]
pub(super) struct Time {
    base: Instant,
    passed_ms: Arc<AtomicU64>,
}

impl Time {
    pub(super) fn new() -> Time {
        Time { base: Instant::now(), passed_ms: Arc::default() }
    }

    pub(super) fn now(&self) -> Now {
        let passed = self.passed_ms.load(Ordering::Relaxed);
        Now { at: self.base + Duration::from_millis(passed), unix_ms: BEGINNING_MS + passed as i64 }
    }

    pub(super) fn pass(&self, ms: u64) {
        self.passed_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

/// Created once for all stories: keys, and metrics that nobody reads.
struct Fixtures {
    signer: Signer,
    auth: AuthConfig,
    metrics: Arc<Metrics>,
    tokens: Mutex<BTreeMap<(Eid, DeviceId), String>>,
    _files: tempfile::TempDir,
}

static FIXTURES: LazyLock<Fixtures> = LazyLock::new(|| {
    let files = tempfile::tempdir().unwrap();
    let made = dev::ensure(files.path(), &[]).unwrap();
    Fixtures {
        signer: Signer::from_pem_file(&made.token_key).unwrap(),
        auth: AuthConfig { keys: vec![made.token_public], ..AuthConfig::default() },
        metrics: Arc::new(Metrics::new()),
        tokens: Mutex::default(),
        _files: files,
    }
});

/// The device's token, signed once.
pub(super) fn token(user: &Eid, device: &DeviceId) -> String {
    let sign = || {
        let ttl = Duration::from_secs(9 * 365 * 24 * 3600);
        let grant = Grant { eid: user.clone(), device: Some(device.clone()), ttl, scope: None };
        FIXTURES.signer.sign(&grant, BEGINNING_MS / 1000).unwrap()
    };
    let mut tokens = FIXTURES.tokens.lock().unwrap();
    tokens.entry((user.clone(), device.clone())).or_insert_with(sign).clone()
}

/// Frees the samples that the metrics have collected.
pub(super) fn upkeep() {
    FIXTURES.metrics.run_upkeep();
}

pub(super) type LinkId = usize;

/// A store call of a session on its way to the writer or back.
enum Tag {
    OpenDevice,
    Write(Asked),
}

enum Read {
    History(Origin, Box<HistoryQuery>),
    Log(Eid, Sequence, usize),
}

/// A session and what its driver holds for it.
pub(super) struct Conn {
    pub(super) session: Session,
    /// The connection is gone; only its store calls are still completed.
    pub(super) ended: bool,
    /// Calls that are requested and not yet at the store.
    pub(super) unsubmitted: VecDeque<Output>,
    /// Number of calls at the store.
    pub(super) under_way: usize,
    /// Calls that have come back.
    pub(super) ready: VecDeque<Done>,
}

impl Conn {
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.unsubmitted.is_empty() && self.under_way == 0 && self.ready.is_empty()
    }

    pub(super) fn calls(&self) -> usize {
        self.unsubmitted.len() + self.under_way + self.ready.len()
    }
}

pub(super) struct Server {
    pub(super) services: Arc<Services>,
    /// Operations of the retention that wait for the writer.
    pub(super) trims: usize,
    pub(super) conns: BTreeMap<LinkId, Conn>,
    pub(super) ledger: Ledger,
    /// What waits for the writer.
    queue: VecDeque<(Op, Option<(LinkId, Tag)>)>,
    /// Entries that are durable, and that the hub was not told of yet.
    publishing: VecDeque<(Eid, Arc<LogEntry>)>,
    changes: VecDeque<Change>,
    /// Results that their callers were not told of yet.
    replies: VecDeque<(LinkId, Tag, Outcome)>,
    reads: Vec<(LinkId, Read)>,
}

impl Server {
    /// Starts from what a crash has left. `time` is the story's clock.
    pub(super) fn start(memory: &Memory, time: &Time, seed: u64) -> Result<Server, StoreError> {
        let ledger = Ledger::open(Arc::new(memory.clone()), time.now().at, |_| ())?;
        let entropy = Mutex::new(Random::new(seed));
        let clock = time.clone();
        let hub = Hub::with_clock(Timing::default(), Box::new(move || clock.now()));
        let unlimited = Rate { per_second: 0, burst: 0 };
        let services = Services {
            flood: Flood::new(LimitsConfig {
                frames: unlimited,
                messages: unlimited,
                awareness: unlimited,
                sign_ins: unlimited,
                connections_per_address: 0,
            }),
            hub: Arc::new(hub),
            verifier: Verifier::from_config(&FIXTURES.auth, None).unwrap(),
            metrics: FIXTURES.metrics.clone(),
            settings: Settings {
                server_name: "simulated".into(),
                domains: Vec::new(),
                media_base: None,
                open_within: crate::limits::SESSION_OPEN_WITHIN,
                release_within: RELEASE_WITHIN,
                ping_interval: crate::limits::PING_INTERVAL,
                frame_bytes_max: crate::limits::FRAME_BYTES_MAX,
                idle_timeout: crate::limits::IDLE_TIMEOUT,
            },
            random: Box::new(move |bytes| entropy.lock().unwrap().fill(bytes)),
        };
        Ok(Server {
            services: Arc::new(services),
            trims: 0,
            conns: BTreeMap::new(),
            ledger,
            queue: VecDeque::new(),
            publishing: VecDeque::new(),
            changes: VecDeque::new(),
            replies: VecDeque::new(),
            reads: Vec::new(),
        })
    }

    pub(super) fn connect(&mut self, link: LinkId, now: Now) {
        let session = Session::new(self.services.clone(), TransportKind::Quic, Ipv4Addr::LOCALHOST.into(), now);
        let conn = Conn { session, ended: false, unsubmitted: VecDeque::new(), under_way: 0, ready: VecDeque::new() };
        self.conns.insert(link, conn);
    }

    pub(super) fn enqueue(&mut self, op: Op) {
        self.trims += usize::from(is_trim(&op));
        self.queue.push_back((op, None));
    }

    /// The oldest call of a session reaches the store.
    pub(super) fn submit(&mut self, link: LinkId) {
        let Some(conn) = self.conns.get_mut(&link) else { return };
        let Some(call) = conn.unsubmitted.pop_front() else { return };
        conn.under_way += 1;
        let (op, tag) = match call {
            Output::Write(asked, write) => (write.into_op(), Tag::Write(asked)),
            Output::Call(Call::OpenDevice(user, device, bearer)) => {
                (Op::OpenDevice(user, device, bearer), Tag::OpenDevice)
            }
            Output::Call(Call::History(origin, query)) => return self.reads.push((link, Read::History(origin, query))),
            Output::Call(Call::ReadLog(user, after, limit)) => {
                return self.reads.push((link, Read::Log(user, after, limit)));
            }
            other => unreachable!("no device asks for it: {other:?}"),
        };
        self.queue.push_back((op, Some((link, tag))));
    }

    pub(super) fn writer_has_work(&self) -> bool {
        !self.publishing.is_empty() || !self.changes.is_empty() || !self.replies.is_empty() || !self.queue.is_empty()
    }

    pub(super) fn reads_under_way(&self) -> usize {
        self.reads.len()
    }

    /// The writer's next move: tell the hub of one entry or change, answer one caller, or commit up to `group` operations,
    /// with the moved cursors if they are due. Also returns the entries that a commit appended.
    pub(super) fn write(&mut self, group: usize, cursors_due: bool, now: Instant) -> (Move, Vec<(Eid, Arc<LogEntry>)>) {
        if let Some((user, entry)) = self.publishing.pop_front() {
            self.services.hub.appended(&user, &entry);
            self.services.hub.announced();
            return (Move::Published(user, entry.sequence), Vec::new());
        }
        if let Some(change) = self.changes.pop_front() {
            self.services.hub.changed(&change);
            return (Move::Changed, Vec::new());
        }
        if let Some((link, tag, outcome)) = self.replies.pop_front() {
            self.finished(link, done(tag, outcome));
            return (Move::Answered(link), Vec::new());
        }
        let group = group.min(self.queue.len());
        let mut waiting = Vec::with_capacity(group);
        for (op, reply) in self.queue.drain(..group) {
            self.trims -= usize::from(is_trim(&op));
            self.ledger.apply(op);
            waiting.push(reply);
        }
        if cursors_due {
            self.ledger.add_cursors();
        }
        let committed = self.ledger.commit(|| now);
        committed.outcomes.iter().for_each(|outcome| _ = sane(outcome.as_ref().map_err(Clone::clone)));
        self.publishing = committed.appended.iter().cloned().collect();
        self.changes = committed.changes.into();
        let outcomes = waiting.into_iter().zip(committed.outcomes);
        self.replies = outcomes.filter_map(|(reply, outcome)| reply.map(|(link, tag)| (link, tag, outcome))).collect();
        (Move::Committed(group), committed.appended)
    }

    /// One read beside the writer. It may return fewer entries than requested: the tail asks again.
    pub(super) fn read(&mut self, index: usize, memory: &Memory, entries_max: usize) {
        let (link, read) = self.reads.swap_remove(index);
        let view = memory.view();
        let done = match read {
            Read::History(origin, query) => {
                let page = sane(read_history(&*view, &query));
                Done::History(origin, query, page)
            }
            Read::Log(user, after, limit) => {
                Done::ReadLog(sane(read_log(&*view, &user, after, limit.min(entries_max), usize::MAX)))
            }
        };
        self.finished(link, done);
    }

    fn finished(&mut self, link: LinkId, done: Done) {
        if let Some(conn) = self.conns.get_mut(&link) {
            conn.under_way -= 1;
            conn.ready.push_back(done);
        }
    }
}

fn is_trim(op: &Op) -> bool {
    matches!(op, Op::TrimLog { .. } | Op::TrimChat { .. })
}

/// Disks fail on purpose, but a row that makes no sense is a bug.
fn sane<T>(result: Result<T, StoreError>) -> Result<T, StoreError> {
    if let Err(StoreError::Engine(why)) = &result {
        assert!(!why.contains("corrupt"), "{why}");
    }
    result
}

/// What the writer did, for the trace.
#[derive(Debug)]
pub(super) enum Move {
    Published(#[allow(dead_code)] Eid, #[allow(dead_code)] Sequence),
    Changed,
    Answered(#[allow(dead_code)] LinkId),
    Committed(#[allow(dead_code)] usize),
}

fn done(tag: Tag, outcome: Outcome) -> Done {
    match tag {
        Tag::OpenDevice => Done::OpenDevice(outcome.and_then(Reply::device)),
        Tag::Write(asked) => asked.done(outcome),
    }
}
