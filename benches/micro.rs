//! Time of the hot path's parts: `cargo bench --bench micro [NAME]`.

// Some items are used only by the bench that counts instructions.
#[allow(dead_code)]
mod cases;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn hot_path(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hot_path");
    group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    for case in cases::CASES {
        let folder = cases::folder();
        group.throughput(Throughput::Elements(case.elements));
        // Prepared once, and only if criterion runs the case.
        let mut run = None;
        group.bench_function(case.name, |bencher| {
            let run = run.get_or_insert_with(|| (case.make)(folder.path()));
            bencher.iter_custom(|times| {
                let began = Instant::now();
                run(times);
                began.elapsed()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
