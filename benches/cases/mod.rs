//! The cases that the benches measure, in time and in instructions. Each case repeats one thing a given number of times.

mod link;
mod session;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bimip::auth::{Grant, Signer, Verifier, dev};
use bimip::clock::Now;
use bimip::config::AuthConfig;
use bimip::hub::{Hub, Signal};
use bimip::store::{
    Content, Embedded, EntryBody, HistoryQuery, LogEntry, LogObserver, Memory, Message, NewMessage, Options, Store,
};
use bimip::wire::proto::TextPayloadRequest;
use bimip::wire::{
    ChatId, DeviceId, Eid, FrameDecoder, LocalId, MessageId, Payload, Sequence, Version, encode_frame, envelope,
    open_envelope,
};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::runtime::Runtime;

/// Bytes of a text, as in `bimip bench load`.
const TEXT_BYTES: usize = 150;
/// Messages that the writer gets at once in the group case.
const GROUP: usize = 64;
/// Entries in the log that is read.
const LOG_ENTRIES: u64 = 4096;
/// Entries read at once, as a tail does.
const TAIL: usize = 128;
/// Devices of one user: the maximum.
const DEVICES: usize = 16;

/// Runs the case this many times.
pub(super) type Run = Box<dyn FnMut(u64)>;

/// How meaningful a case's instruction count is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// The count is the same each time.
    Exactly,
    /// Threads hand work to each other. How often one sleeps varies, and changes the count by a few hundredths.
    WithThreads,
    /// Not counted, because the case waits for the disk.
    No,
}

/// One thing to measure.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Messages, entries or the like that one run processes.
    pub(super) elements: u64,
    /// Whether its instructions are counted, and with which tolerance.
    pub(super) counted: Counted,
    /// Prepares the case, in memory or in a folder.
    pub(super) make: fn(&Path) -> Run,
}

pub(super) const CASES: [Case; 13] = [
    Case { name: "frame_encode", elements: 1, counted: Counted::Exactly, make: frame_encode },
    Case { name: "frame_decode", elements: 1, counted: Counted::Exactly, make: frame_decode },
    Case { name: "token_check", elements: 1, counted: Counted::Exactly, make: token_check },
    Case {
        name: "accept_released_memory",
        elements: 1,
        counted: Counted::WithThreads,
        make: |_| accept_released(memory()),
    },
    Case {
        name: "accept_then_release_memory",
        elements: 1,
        counted: Counted::WithThreads,
        make: |_| accept_then_release(memory()),
    },
    Case {
        name: "accept_group_memory",
        elements: GROUP as u64,
        counted: Counted::WithThreads,
        make: |_| accept_group(memory()),
    },
    Case { name: "tail_memory", elements: TAIL as u64, counted: Counted::WithThreads, make: |_| tail(memory()) },
    Case { name: "accept_released_disk", elements: 1, counted: Counted::No, make: |path| accept_released(disk(path)) },
    Case {
        name: "accept_group_disk",
        elements: GROUP as u64,
        counted: Counted::No,
        make: |path| accept_group(disk(path)),
    },
    Case { name: "tail_disk", elements: TAIL as u64, counted: Counted::No, make: |path| tail(disk(path)) },
    Case { name: "history_disk", elements: 50, counted: Counted::No, make: |path| history(disk(path)) },
    Case { name: "hub_fan_out", elements: DEVICES as u64, counted: Counted::Exactly, make: |_| hub_fan_out() },
    Case {
        name: "text_through_sessions",
        elements: session::AT_ONCE as u64,
        counted: Counted::WithThreads,
        make: session::text_through,
    },
];

/// A folder on the disk where the crate is built. In memory, cases that wait for the disk would look too fast.
pub(super) fn folder() -> tempfile::TempDir {
    let place = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&place).expect("the build folder takes files");
    tempfile::tempdir_in(place).expect("the build folder takes files")
}

fn eid(name: &str) -> Eid {
    Eid::parse(&format!("{name}@localhost")).expect("a name")
}

fn device(name: &str) -> DeviceId {
    DeviceId::parse(name).expect("a device")
}

fn text() -> String {
    "x".repeat(TEXT_BYTES)
}

fn text_frame(number: u64) -> Bytes {
    let text = TextPayloadRequest {
        from: Some(eid("alice").identity()),
        to: vec![eid("bob").identity()],
        content: text(),
        message_id_local: format!("local-{number}"),
        created_at: 1_788_000_000_000,
        ..TextPayloadRequest::default()
    };
    encode_frame(&envelope(Payload::TextPayloadRequest(text)))
}

fn frame_encode(_: &Path) -> Run {
    let mut decoder = FrameDecoder::new(bimip::limits::FRAME_BYTES_MAX);
    decoder.feed(text_frame(1));
    let frame = decoder.next_frame().expect("a frame").expect("a whole one");
    let scheme = open_envelope(&frame).expect("an envelope");
    Box::new(move |times| (0..times).for_each(|_| _ = black_box(encode_frame(black_box(&scheme)))))
}

fn frame_decode(_: &Path) -> Run {
    let bytes = text_frame(1);
    let mut decoder = FrameDecoder::new(bimip::limits::FRAME_BYTES_MAX);
    Box::new(move |times| {
        for _ in 0..times {
            decoder.feed(bytes.clone());
            let frame = decoder.next_frame().expect("a frame").expect("a whole one");
            black_box(open_envelope(black_box(&frame)).expect("an envelope"));
        }
    })
}

/// A verifier with keys made for this run, and a token for each user.
fn credentials(folder: &Path, users: &[Eid]) -> (Verifier, Vec<String>) {
    let files = dev::ensure(folder, &[]).expect("development keys");
    let signer = Signer::from_pem_file(&files.token_key).expect("the key that was just made");
    let now = Now::system().unix_ms / 1000;
    let sign = |user: &Eid| {
        let grant = Grant { eid: user.clone(), device: None, ttl: Duration::from_secs(3600), scope: None };
        signer.sign(&grant, now).expect("a token")
    };
    let config = AuthConfig { keys: vec![files.token_public.clone()], ..AuthConfig::default() };
    (Verifier::from_config(&config, None).expect("a verifier"), users.iter().map(sign).collect())
}

fn token_check(folder: &Path) -> Run {
    let (verifier, tokens) = credentials(folder, &[eid("alice")]);
    let now = Now::system().unix_ms / 1000;
    Box::new(move |times| {
        for _ in 0..times {
            black_box(verifier.verify(black_box(&tokens[0]), now).expect("a good token"));
        }
    })
}

struct Nobody;

impl LogObserver for Nobody {
    fn appended(&self, _: &Eid, _: &Arc<LogEntry>) {}
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn memory() -> Embedded {
    Embedded::open_memory(Memory::new(), Options::default(), Arc::new(Nobody)).expect("a store")
}

fn disk(folder: &Path) -> Embedded {
    Embedded::open(&folder.join("store"), Options::default(), Arc::new(Nobody)).expect("a store")
}

fn message(number: u64) -> NewMessage {
    let mut entropy = [0; 10];
    entropy[2..].copy_from_slice(&number.to_be_bytes());
    NewMessage {
        sender: eid("alice"),
        device: device("phone"),
        recipient: eid("bob"),
        local_id: LocalId::parse(&format!("local-{number}")).expect("a name"),
        content: Content::Text(text()),
        created_at: 1_788_000_000_000,
        received_at: 1_788_000_000_000,
        received: Instant::now(),
        entropy,
    }
}

fn accept_released(store: Embedded) -> Run {
    let (runtime, mut number) = (runtime(), 0);
    Box::new(move |times| {
        for _ in 0..times {
            number += 1;
            black_box(runtime.block_on(store.accept(message(number), true)).expect("accepted"));
        }
    })
}

fn accept_then_release(store: Embedded) -> Run {
    let (runtime, mut number) = (runtime(), 0);
    Box::new(move |times| {
        for _ in 0..times {
            number += 1;
            runtime.block_on(async {
                let accepted = store.accept(message(number), false).await.expect("accepted");
                store.release(&accepted.message.sender, accepted.message.id).await.expect("released");
            });
        }
    })
}

fn accept_group(store: Embedded) -> Run {
    let (runtime, mut number) = (runtime(), 0);
    Box::new(move |times| {
        for _ in 0..times {
            let texts = (0..GROUP as u64).map(|step| store.accept(message(number + step), true));
            runtime.block_on(join_all(texts)).into_iter().for_each(|accepted| _ = accepted.expect("accepted"));
            number += GROUP as u64;
        }
    })
}

/// A store with `LOG_ENTRIES` messages, and the runtime to use it with.
fn filled(store: Embedded) -> (Runtime, Embedded) {
    let runtime = runtime();
    for from in (0..LOG_ENTRIES).step_by(GROUP) {
        let texts = (from..from + GROUP as u64).map(|number| store.accept(message(number), true));
        runtime.block_on(join_all(texts)).into_iter().for_each(|accepted| _ = accepted.expect("accepted"));
    }
    (runtime, store)
}

fn tail(store: Embedded) -> Run {
    let (runtime, store) = filled(store);
    let (user, mut after) = (eid("bob"), 0);
    Box::new(move |times| {
        for _ in 0..times {
            let read = runtime.block_on(store.read_log(&user, Sequence::from(after), TAIL)).expect("entries");
            assert_eq!(black_box(read).len(), TAIL);
            after = (after + TAIL as u64) % (LOG_ENTRIES - TAIL as u64);
        }
    })
}

fn history(store: Embedded) -> Run {
    let (runtime, store) = filled(store);
    let query = HistoryQuery {
        reader: eid("bob"),
        peer: eid("alice"),
        before: None,
        after: None,
        limit: 50,
        bytes_max: usize::MAX,
    };
    Box::new(move |times| {
        for _ in 0..times {
            assert_eq!(black_box(runtime.block_on(store.history(query.clone())).expect("a page")).len(), 50);
        }
    })
}

/// Announces one entry to all devices of a user, and each of them takes it.
fn hub_fan_out() -> Run {
    let hub = Arc::new(Hub::default());
    let user = eid("bob");
    let members: Vec<_> = (0..DEVICES)
        .map(|number| {
            let claims = bimip::auth::Claims {
                eid: user.clone(),
                device: None,
                fingerprint: [0; 32],
                issued_at: None,
                expires_at: i64::MAX / 1000,
                admin: false,
            };
            let signal = Arc::new(Signal::default());
            let member = hub.join(&device(&format!("device-{number}")), claims, signal.clone());
            member.recent(Sequence::ZERO, TAIL);
            (member, signal)
        })
        .collect();
    let message = Arc::new(Message {
        id: MessageId::new(1_788_000_000_000, [1; 10]),
        chat: ChatId::between(&eid("alice"), &user),
        version: Version::from(1),
        sender: eid("alice"),
        device: device("phone"),
        recipient: user.clone(),
        local_id: LocalId::parse("local-1").expect("a name"),
        content: Content::Text(text()),
        created_at: 1_788_000_000_000,
        received_at: 1_788_000_000_000,
    });
    let mut sequence = Sequence::ZERO;
    Box::new(move |times| {
        for _ in 0..times {
            let before = sequence;
            sequence = sequence.next();
            let body = EntryBody::Received(message.clone());
            let at = 1_788_000_000_000;
            let (received, committed) = (None, None);
            let entry = LogEntry { sequence, origin: None, at, body, received, committed, frame: Default::default() };
            hub.appended(&user, &Arc::new(entry));
            for (member, signal) in &members {
                assert!(signal.take_advanced());
                black_box(member.recent(before, TAIL));
            }
        }
    })
}
