//! Bounds that several measurements have, and those of their options, for which there is a figure, and memory and time to get it.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::builder::{RangedU64ValueParser, TypedValueParser};

use super::report::LATENCY_MAX;

/// Devices, pairs or sessions: more than one process has sockets for.
const DEVICES_MAX: u64 = 1_000_000;
/// Messages in flight or in a backlog, changes, waves: what is kept of each fits into memory.
const COUNT_MAX: u64 = 10_000_000;
/// Bytes of a text: more than a server takes, which refuses it.
const TEXT_BYTES_MAX: u64 = 2 * crate::wire::TEXT_BYTES_MAX as u64;

/// How long receivers wait for second copies, once everything has arrived.
pub(super) const SECOND_COPIES_WITHIN: Duration = Duration::from_millis(500);
/// Texts that a sender writes before it reads answers, which have to wait in windows and buffers meanwhile.
const AT_ONCE_MAX: u64 = 1_024;

/// A number of devices, pairs or sessions.
pub(super) fn devices() -> impl TypedValueParser<Value = usize> {
    from(1..=DEVICES_MAX)
}

/// A number of users who write to each other.
pub(super) fn two_or_more() -> impl TypedValueParser<Value = usize> {
    from(2..=DEVICES_MAX)
}

/// How many there are of something that is measured.
pub(super) fn count() -> impl TypedValueParser<Value = usize> {
    from(1..=COUNT_MAX)
}

/// Texts that are written in one go.
pub(super) fn at_once() -> impl TypedValueParser<Value = usize> {
    from(1..=AT_ONCE_MAX)
}

/// How many there are of something that may be left out.
pub(super) fn count_or_none() -> impl TypedValueParser<Value = usize> {
    from(0..=COUNT_MAX)
}

/// Messages a second, or one of several rates; 0 for as fast as possible.
pub(super) fn rate() -> impl TypedValueParser<Value = u64> {
    RangedU64ValueParser::<u64>::new().range(0..=COUNT_MAX)
}

/// As [`rate`], without 0.
pub(super) fn some_rate() -> impl TypedValueParser<Value = u64> {
    RangedU64ValueParser::<u64>::new().range(1..=COUNT_MAX)
}

/// Bytes of a text.
pub(super) fn text_bytes() -> impl TypedValueParser<Value = usize> {
    from(1..=TEXT_BYTES_MAX)
}

/// Seconds of a measurement. Its latencies are no longer than it, and have to fit into a report.
pub(super) fn seconds() -> impl TypedValueParser<Value = u64> {
    RangedU64ValueParser::<u64>::new().range(1..=LATENCY_MAX.as_secs() / 2)
}

/// As [`seconds`], for a time that may be left out.
pub(super) fn seconds_or_none() -> impl TypedValueParser<Value = u64> {
    RangedU64ValueParser::<u64>::new().range(0..=LATENCY_MAX.as_secs() / 2)
}

fn from(range: RangeInclusive<u64>) -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::<usize>::new().range(range)
}

/// A number in this range, which may have a fraction.
pub(super) fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "it is a number".to_owned())?;
    if (least..=most).contains(&number) { Ok(number) } else { Err(format!("it is from {least} to {most}")) }
}
