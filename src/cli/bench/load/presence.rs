//! The presence lane of one device: makes its user's changes, and times the notifications of others' changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::fleet::Course;
use crate::cli::bench::connection::{Reader, Writer};
use crate::cli::bench::report::record;
use crate::wire::proto::AwarenessNotification;
use crate::wire::{AwarenessStatus, Payload, encode_frame, envelope};

/// Runs until the connection ends.
pub(super) async fn run(
    course: Arc<Course>,
    user: usize,
    number: usize,
    (mut writer, mut reader): (Writer, Reader),
) -> anyhow::Result<()> {
    let opened = Instant::now();
    let every = course.plan.presence.map(|presence| presence.every).unwrap_or_default();
    // Only the user's first device makes changes.
    let first = course.plan.first_change(user).filter(|_| number == 0);
    let mut next = first.map(|after| course.clock.start + after);
    // After a reconnect, skip the changes that were missed.
    while let Some(at) = next.filter(|at| *at < opened) {
        next = Some(at + every);
    }
    loop {
        let due = next.filter(|at| *at < course.clock.until);
        tokio::select! {
            scheme = reader.next() => {
                if let Some(Payload::AwarenessNotification(notification)) = scheme?.payload {
                    told(&course, user, opened, &notification);
                }
            }
            () = tokio::time::sleep_until(due.unwrap_or(course.clock.until).into()), if due.is_some() => {
                next = due.map(|at| at + every);
                let now = course.clock.microseconds(Instant::now());
                let away = course.changes[user].load(Ordering::Relaxed) & 1 == 0;
                course.changes[user].store(now << 1 | u64::from(away), Ordering::Relaxed);
                let status = if away { AwarenessStatus::Away } else { AwarenessStatus::Online };
                let notification = AwarenessNotification {
                    from: Some(course.eids[user].identity()),
                    status: status.code(),
                    ..AwarenessNotification::default()
                };
                writer.send(encode_frame(&envelope(Payload::AwarenessNotification(notification)))).await?;
                course.tally(user).changes += 1;
            }
        }
    }
}

/// Handles a notification: if it shows the contact's last change, made after this lane was opened, its latency is
/// recorded.
fn told(course: &Course, user: usize, opened: Instant, notification: &AwarenessNotification) {
    let of = course.user_of(notification.from.as_ref());
    let Some(change) = of.and_then(|of| course.changes.get(of)) else { return };
    let change = change.load(Ordering::Relaxed);
    let (changed, away) = (course.clock.at(change >> 1), change & 1 == 1);
    let seen_away = notification.status == AwarenessStatus::Away.code();
    if change != 0 && away == seen_away && changed > opened && changed >= course.clock.measure_from {
        record(&mut course.tally(user).told, changed.elapsed());
    }
}
