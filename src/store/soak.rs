//! Checks that the disk space of a store levels off under a retention: a small run in every test, a long one on request
//! (`BIMIP_SOAK_MESSAGES=30000 cargo test --lib store::soak -- --nocapture`).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::fjall::Fjall;
use super::testing::{Nobody, text};
use super::*;
use crate::limits;

const DAY_MS: i64 = 24 * 3600 * 1000;
/// A round is longer than `message_id_local`s are remembered (7 days), so the messages of one round can be deleted in
/// the next.
const ROUND_MS: i64 = 8 * DAY_MS;
const ROUNDS: i64 = 10;
const USERS: u64 = 20;
/// Messages that are written together.
const GROUP: u64 = 300;
/// Bytes that a message takes in the tables, at most: the text, which does not compress, and its other rows.
const MESSAGE_BYTES: u64 = 1_500;
/// Files in the first level with which the engine begins to merge.
const FIRST_LEVEL_FILES: u64 = 4;
/// Far longer than the engine takes for its merges.
const PATIENCE: Duration = Duration::from_secs(120);

fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    // The engine may delete a file meanwhile.
    let bytes = |path: &Path| if path.is_dir() { bytes_in(path) } else { path.metadata().map_or(0, |file| file.len()) };
    entries.map(|entry| bytes(&entry.path())).sum()
}

#[tokio::test]
async fn what_was_trimmed_takes_no_disk_for_long() {
    let asked = std::env::var("BIMIP_SOAK_MESSAGES").ok().map(|text| text.parse::<u64>().unwrap());
    let messages = asked.unwrap_or(4 * GROUP);
    // The messages that fill a memtable. A small run closes it long before, and so has as many files and merges as a long one.
    let in_a_memtable = if asked.is_some() { limits::STORE_MEMTABLE_BYTES_MAX / 1_000 } else { GROUP };
    // There are: the messages that are kept; those trimmed just now; and those trimmed before of which the engine has not merged
    // the deletions, because these are in the memtable or in too few files of the first level.
    let rounds_there = 2 + ((FIRST_LEVEL_FILES + 1) * in_a_memtable).div_ceil(messages);
    assert!(2 * rounds_there <= ROUNDS as u64, "so few messages show nothing");
    let bound = rounds_there * messages * MESSAGE_BYTES;

    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(Fjall::open(dir.path(), limits::STORE_CACHE_BYTES).unwrap());
    let store = Embedded::start(engine.clone(), Options::default(), Arc::new(Nobody)).unwrap();
    let tables = || bytes_in(&dir.path().join("keyspaces"));
    let mut number = 0;
    for round in 1..=ROUNDS {
        let now = round * ROUND_MS;
        let began = Instant::now();
        for _ in 0..messages / GROUP {
            let group = (0..GROUP).map(|_| {
                number += 1;
                let (sender, recipient) = (format!("user{}", number % USERS), format!("peer{}", number % USERS));
                let content = Content::Text(format!("{number} {}", random_text(number)));
                let message = NewMessage { content, received_at: now, ..text(&sender, &recipient, number) };
                store.accept(message, true)
            });
            join_all(group).await.into_iter().for_each(|accepted| drop(accepted.unwrap()));
            if asked.is_none() {
                engine.close_memtables();
            }
        }
        let wrote = began.elapsed();
        let began = Instant::now();
        let retention = Retention { older_than_ms: now, entries_max_per_user: u64::MAX };
        let trimmed = store.trim(retention, now).await.unwrap();
        if round > 2 {
            assert_eq!(trimmed, Trimmed { entries: 2 * messages, messages, unreadable: 0 });
        }
        let (took, most) = (began.elapsed(), tables());
        let began = Instant::now();
        while tables() > bound {
            assert!(began.elapsed() < PATIENCE, "round {round}: {} bytes stay, of {bound} that may be there", tables());
            // The engine deletes what it has merged when it next closes a memtable, whichever it is.
            store.check().await.unwrap();
            engine.close_memtables();
        }
        println!(
            "round {round}: {} of {bound} bytes of tables, {most} before merges, {} of journal; {trimmed:?} in {:.1} s, \
             {messages} written in {:.1} s, merged in {:.1} s",
            tables(),
            bytes_in(dir.path()) - tables(),
            took.as_secs_f64(),
            wrote.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
    }
    store.close().await;
}

/// A kilobyte that does not compress.
fn random_text(seed: u64) -> String {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + ((state >> 33) % 95) as u8)
    };
    std::iter::repeat_with(next).take(1000).collect()
}
