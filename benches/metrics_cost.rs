//! What the metrics cost per message: every metric update that one message causes, nothing else.
//!
//! `cargo bench --bench metrics_cost`

use std::hint::black_box;
use std::time::{Duration, Instant};

use bimip::observe::{ContentKind, DeliveryKind, Direction, Metrics};
use bimip::wire::Lane;

const MESSAGES: u32 = 1_000_000;
/// Messages between two scrapes. The exporter aggregates its samples on a scrape, and a server under full load has this many
/// by then.
const FOLDED_EVERY: u32 = 100_000;
const ROUNDS: u32 = 5;

/// The updates for a text, its answer, the sender's answer, the delivery, the receipt and its forwarding. Message and receipt
/// have a commit each, which is the worst case: under load dozens share one.
fn message(metrics: &Metrics) {
    for direction in [Direction::In, Direction::Out, Direction::In, Direction::Out, Direction::In, Direction::Out] {
        black_box(metrics).frames[(black_box(Lane::Chat), direction)].increment(1);
    }
    metrics.accepted[black_box(ContentKind::Text)].increment(1);
    metrics.delivery[black_box(DeliveryKind::Live)].record(black_box(Duration::from_micros(1_200)));
    metrics.receipt.record(black_box(Duration::from_micros(2_400)));
    for _ in 0..2 {
        metrics.commit.record(black_box(Duration::from_micros(900)));
        metrics.commit_operations.record(black_box(1.0));
        metrics.commit_messages.record(black_box(1.0));
    }
}

fn main() {
    let metrics = Metrics::new();
    let mut best = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        let (mut counting, mut folding) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..MESSAGES / FOLDED_EVERY {
            let begun = Instant::now();
            (0..FOLDED_EVERY).for_each(|_| message(&metrics));
            counting += begun.elapsed();
            let begun = Instant::now();
            metrics.run_upkeep();
            folding += begun.elapsed();
        }
        best = [best[0].min(counting), best[1].min(folding)];
    }
    let each = |all: Duration| all.as_nanos() as f64 / f64::from(MESSAGES);
    println!("a message: {:.0} ns to count, {:.0} ns to fold later (best of {ROUNDS})", each(best[0]), each(best[1]));
    let begun = Instant::now();
    let page = metrics.render();
    println!("a scrape: {:.2} ms for {} KiB", begun.elapsed().as_secs_f64() * 1000.0, page.len() / 1024);
}
