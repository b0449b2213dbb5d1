//! The status page: what an operator wants to know at a glance about the last minutes, without any other program.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::{METRICS_UPKEEP, STATUS_POINTS};
use crate::observe::{Metrics, Snapshot};

/// The figures of the last minutes, in memory.
pub(super) struct Status {
    name: String,
    began: Instant,
    history: Mutex<History>,
}

/// At most [`STATUS_POINTS`] points, the oldest first.
#[derive(Default)]
struct History {
    before: Option<(Instant, Snapshot)>,
    points: VecDeque<Point>,
}

/// What happened between two samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Point {
    sessions_quic: f64,
    sessions_tcp: f64,
    /// Per second, as are the next two.
    accepted: f64,
    delivered: f64,
    errors: f64,
    /// Median and 99th percentile in seconds; `None`: nothing was delivered live.
    live: Option<(f64, f64)>,
    commit: Option<f64>,
}

impl Point {
    fn between(before: &Snapshot, now: &Snapshot, passed: Duration) -> Point {
        let rate = |now: f64, before: f64| (now - before).max(0.0) / passed.as_secs_f64().max(0.001);
        let live = now.live.since(&before.live);
        Point {
            sessions_quic: now.sessions_quic,
            sessions_tcp: now.sessions_tcp,
            accepted: rate(now.accepted, before.accepted),
            delivered: rate(now.delivered, before.delivered),
            errors: rate(now.errors, before.errors),
            live: live.quantile(0.5).zip(live.quantile(0.99)),
            commit: now.commits.since(&before.commits).quantile(0.99),
        }
    }
}

impl Status {
    /// A server of this name that has just started.
    pub(super) fn new(name: &str) -> Status {
        Status { name: name.to_owned(), began: Instant::now(), history: Mutex::default() }
    }

    /// Adds a point: what happened since the last call.
    pub(super) fn take(&self, snapshot: Snapshot) {
        let now = Instant::now();
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, before)) = &history.before {
            let point = Point::between(before, &snapshot, now - *at);
            if history.points.len() >= STATUS_POINTS {
                history.points.pop_front();
            }
            history.points.push_back(point);
        }
        history.before = Some((now, snapshot));
    }

    /// Renders the page.
    pub(super) fn page(&self, metrics: &Metrics, ready: &Result<(), String>, unix_s: i64) -> String {
        let points: Vec<Point> =
            self.history.lock().unwrap_or_else(PoisonError::into_inner).points.iter().copied().collect();
        let (state, class) = match ready {
            Ok(()) => ("ready".to_owned(), "ready"),
            Err(reason) => (format!("not ready: {reason}"), "unready"),
        };
        let certificate = match metrics.certificate_expires.get() {
            Some(at) if at as i64 <= unix_s => "has run out".to_owned(),
            Some(at) => format!("good for {}", span((at as i64 - unix_s).unsigned_abs())),
            None => "unknown".to_owned(),
        };
        let filled = [
            ("{{name}}", escaped(&self.name)),
            ("{{state}}", escaped(&state)),
            ("{{class}}", class.to_owned()),
            ("{{version}}", env!("CARGO_PKG_VERSION").to_owned()),
            ("{{uptime}}", span(self.began.elapsed().as_secs())),
            ("{{certificate}}", certificate),
            ("{{interval}}", METRICS_UPKEEP.as_secs().to_string()),
            ("{{tiles}}", tiles(metrics, points.last().copied().unwrap_or_default())),
            ("{{charts}}", charts(&points)),
        ];
        filled.iter().fold(include_str!("status.html").to_owned(), |page, (what, with)| page.replace(what, with))
    }
}

fn tiles(metrics: &Metrics, last: Point) -> String {
    let bytes = |reading: Option<f64>| reading.map_or("unknown".to_owned(), sized);
    let time = |seconds: Option<f64>| seconds.map_or("none".to_owned(), timed);
    let shown = [
        ("QUIC sessions", counted(last.sessions_quic)),
        ("TCP sessions", counted(last.sessions_tcp)),
        ("accepted a second", counted(last.accepted)),
        ("delivered a second", counted(last.delivered)),
        ("delivery, median", time(last.live.map(|(median, _)| median))),
        ("delivery, 99&nbsp;%", time(last.live.map(|(_, p99)| p99))),
        ("commit, 99&nbsp;%", time(last.commit)),
        ("errors a second", counted(last.errors)),
        ("entries to be sent", counted(metrics.tail_lag.get().unwrap_or(0.0))),
        ("store on disk", bytes(metrics.store_disk.get())),
        ("disk free", bytes(metrics.disk_free.get())),
        ("memory", bytes(metrics.process_resident.get())),
    ];
    shown.iter().fold(String::new(), |mut html, (what, value)| {
        // Writing to a string does not fail.
        let _ = write!(html, "<div class=card><div class=value>{value}</div><div class=faint>{what}</div></div>");
        html
    })
}

fn charts(points: &[Point]) -> String {
    let all = |of: fn(&Point) -> Option<f64>| points.iter().map(of).collect::<Vec<_>>();
    let latency = chart(
        ("Live delivery latency", timed),
        ("median", all(|point| point.live.map(|(median, _)| median))),
        ("99 %", all(|point| point.live.map(|(_, p99)| p99))),
    );
    let messages = chart(
        ("Messages a second", counted),
        ("accepted", all(|point| Some(point.accepted))),
        ("delivered", all(|point| Some(point.delivered))),
    );
    let sessions = chart(
        ("Sessions", counted),
        ("QUIC", all(|point| Some(point.sessions_quic))),
        ("TCP", all(|point| Some(point.sessions_tcp))),
    );
    latency + &messages + &sessions
}

type Line<'a> = (&'a str, Vec<Option<f64>>);

/// A chart of two lines over the last minutes, from zero to the highest value of both.
fn chart((title, shown): (&str, fn(f64) -> String), one: Line<'_>, two: Line<'_>) -> String {
    let highest = one.1.iter().chain(&two.1).flatten().copied().fold(0.0, f64::max);
    let scale = if highest > 0.0 { highest } else { 1.0 };
    let drawn = [(&one, "one"), (&two, "two")].map(|((_, values), class)| line(values, scale, class)).concat();
    format!(
        "<div class=card><div class=head><h2>{title}</h2><span class=faint>\
         <span class=key-one>{}</span>, <span class=key-two>{}</span>; top: {}</span></div>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=none role=img aria-label=\"{title}\">\
         <line class=grid x1=0 y1=1 x2={WIDTH} y2=1 /><line class=grid x1=0 y1=50 x2={WIDTH} y2=50 />\
         <line class=grid x1=0 y1=99 x2={WIDTH} y2=99 />{drawn}</svg></div>",
        one.0,
        two.0,
        shown(highest),
    )
}

const WIDTH: usize = 600;
const HEIGHT: usize = 100;

/// A line with the newest value at the right edge, broken where there is no value.
fn line(values: &[Option<f64>], scale: f64, class: &str) -> String {
    let first = STATUS_POINTS.saturating_sub(values.len());
    let place = |(index, value): (usize, f64)| {
        let x = (first + index) as f64 * WIDTH as f64 / (STATUS_POINTS - 1) as f64;
        format!("{x:.1},{:.1}", 99.0 - value / scale * 98.0)
    };
    let numbered: Vec<_> = values.iter().copied().enumerate().collect();
    let stretches = numbered.split(|(_, value)| value.is_none());
    stretches.filter(|stretch| !stretch.is_empty()).fold(String::new(), |mut svg, stretch| {
        let mut points: Vec<_> =
            stretch.iter().filter_map(|(index, value)| Some((*index, (*value)?))).map(place).collect();
        if let [only] = points.as_slice() {
            // A line of one point would be invisible.
            points.push(only.clone());
        }
        let _ = write!(svg, "<polyline class={class} stroke-linecap=round points=\"{}\"/>", points.join(" "));
        svg
    })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn counted(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => format!("{:.1} k", value / 1000.0),
        value if value >= 10.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

fn timed(seconds: f64) -> String {
    match seconds {
        seconds if seconds >= 10.0 => format!("{seconds:.0} s"),
        seconds if seconds >= 1.0 => format!("{seconds:.1} s"),
        seconds if seconds >= 0.01 => format!("{:.0} ms", seconds * 1000.0),
        seconds => format!("{:.1} ms", seconds * 1000.0),
    }
}

fn sized(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if value < 10.0 && unit > 0 { format!("{value:.1} {}", units[unit]) } else { format!("{value:.0} {}", units[unit]) }
}

/// A time as its two largest units.
fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!([0.0, 0.25, 9.96, 12.4, 12_345.0].map(counted), ["0", "0.2", "10.0", "12", "12.3 k"]);
        assert_eq!([0.0004, 0.0123, 1.25, 61.0].map(timed), ["0.4 ms", "12 ms", "1.2 s", "61 s"]);
        assert_eq!([0.0, 2048.0, 5e9].map(sized), ["0 B", "2.0 KiB", "4.7 GiB"]);
        assert_eq!([5, 65, 7_260, 90_000].map(span), ["5 s", "1 min 5 s", "2 h 1 min", "1 d 1 h"]);
        assert_eq!(escaped("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }

    #[test]
    fn the_page_keeps_so_many_points_and_leaves_nothing_unfilled() {
        let status = Status::new("<bimip>");
        let metrics = Metrics::new();
        for count in 0..STATUS_POINTS + 10 {
            status.take(Snapshot { accepted: count as f64, ..Snapshot::default() });
        }
        assert_eq!(status.history.lock().unwrap().points.len(), STATUS_POINTS);
        metrics.certificate_expires.set(200_000.0);
        let page = status.page(&metrics, &Err("draining".to_owned()), 100_000);
        assert!(page.contains("not ready: draining") && page.contains("&lt;bimip&gt;"));
        assert!(page.contains("good for 1 d 3 h") && !page.contains("{{"));
        let none_live = page.split("aria-label=\"Live delivery latency\"").nth(1).unwrap();
        assert!(none_live.split("</svg>").next().unwrap().matches("<polyline").count() == 0);
    }

    #[test]
    fn a_line_is_broken_where_there_was_nothing() {
        let svg = line(&[Some(1.0), None, Some(2.0), Some(0.0)], 2.0, "one");
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.ends_with("595.0,1.0 600.0,99.0\"/>"), "{svg}");
    }
}
