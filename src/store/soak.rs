//! Checks that the disk space of a store levels off under a retention: a small run in every test, a long one on request
//! (`BIMIP_SOAK_MESSAGES=30000 cargo test --lib store::soak -- --nocapture`).

use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;

use super::testing::{Nobody, text};
use super::*;

const DAY_MS: i64 = 24 * 3600 * 1000;
/// A round is longer than `message_id_local`s are remembered (7 days), so the messages of one round can be deleted in
/// the next.
const ROUND_MS: i64 = 8 * DAY_MS;
const ROUNDS: i64 = 8;
const USERS: u64 = 20;

fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| if entry.path().is_dir() { bytes_in(&entry.path()) } else { entry.metadata().unwrap().len() })
        .sum()
}

#[tokio::test]
async fn what_was_trimmed_takes_no_disk_for_long() {
    let asked = std::env::var("BIMIP_SOAK_MESSAGES").ok().map(|text| text.parse::<u64>().unwrap());
    let messages = asked.unwrap_or(300);
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Options::default(), Arc::new(Nobody)).unwrap();
    let mut number = 0;
    for round in 1..=ROUNDS {
        let now = round * ROUND_MS;
        let began = std::time::Instant::now();
        for _ in 0..messages / 300 {
            let group = (0..300).map(|_| {
                number += 1;
                let (sender, recipient) = (format!("user{}", number % USERS), format!("peer{}", number % USERS));
                let content = Content::Text(format!("{number} {}", random_text(number)));
                let message = NewMessage { content, received_at: now, ..text(&sender, &recipient, number) };
                store.accept(message, true)
            });
            join_all(group).await.into_iter().for_each(|accepted| drop(accepted.unwrap()));
        }
        let wrote = began.elapsed();
        let began = std::time::Instant::now();
        let retention = Retention { older_than_ms: now, entries_max_per_user: u64::MAX };
        let trimmed = store.trim(retention, now).await.unwrap();
        if round > 2 {
            assert_eq!(trimmed, Trimmed { entries: 2 * messages, messages });
        }
        let tables = bytes_in(&dir.path().join("keyspaces"));
        println!(
            "round {round}: {} MB of tables, {} MB of journal, {trimmed:?} in {:.1} s, {messages} written in {:.1} s",
            tables / 1_000_000,
            (bytes_in(dir.path()) - tables) / 1_000_000,
            began.elapsed().as_secs_f64(),
            wrote.as_secs_f64()
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
