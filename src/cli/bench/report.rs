//! Latency figures for people, and as JSON.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency that the histogram can represent; nothing here waits for so long.
pub(super) const LATENCY_MAX: Duration = Duration::from_secs(86_400);

/// A histogram of latencies in microseconds, with three significant digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX.as_micros() as u64, 3).expect("the bounds are in order")
}

/// Records a latency, clamped to the histogram's bounds.
pub(super) fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
}

/// A row of percentiles, in milliseconds; `none` if there is nothing.
pub(super) fn percentiles(histogram: &Histogram<u64>) -> String {
    if histogram.is_empty() {
        return "none".to_owned();
    }
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    format!(
        "p50 {:>8.2}  p95 {:>8.2}  p99 {:>8.2}  p99.9 {:>8.2}  max {:>8.2} ms",
        at(0.5),
        at(0.95),
        at(0.99),
        at(0.999),
        histogram.max() as f64 / 1000.0
    )
}

/// The percentiles as JSON, in microseconds; `null` if there is nothing.
pub(super) fn json(histogram: &Histogram<u64>) -> serde_json::Value {
    let at = |quantile| (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile));
    serde_json::json!({
        "count": histogram.len(),
        "p50_us": at(0.5),
        "p95_us": at(0.95),
        "p99_us": at(0.99),
        "p999_us": at(0.999),
        "max_us": at(1.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_no_good_latency() {
        let mut latencies = histogram();
        assert_eq!((percentiles(&latencies).as_str(), &json(&latencies)["p99_us"]), ("none", &serde_json::Value::Null));
        record(&mut latencies, Duration::from_micros(7));
        assert_eq!((&json(&latencies)["p99_us"], &json(&latencies)["max_us"]), (&7.into(), &7.into()));
    }

    #[test]
    fn a_latency_of_minutes_is_told_as_it_is() {
        let mut latencies = histogram();
        record(&mut latencies, Duration::from_secs(110));
        assert!((109_000_000..=111_000_000).contains(&latencies.max()), "{}", latencies.max());
    }
}
