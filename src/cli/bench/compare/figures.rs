//! All trials of a scenario and carrier as figures: medians over the seeds with their ranges, as a table and as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::book::Wrong;
use super::scenario::{Event, Scenario};
use super::trial::{Carrier, Outcome, UNANSWERED};

/// The trials of one scenario over one carrier, one per seed.
pub(super) struct Cell {
    pub(super) scenario: Scenario,
    pub(super) carrier: Carrier,
    pub(super) trials: Vec<Outcome>,
}

/// The median, lowest and highest of a figure over the seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let (low, high) = (*figures.first()?, *figures.last()?);
        let middle = figures.len() / 2;
        let median = if figures.len().is_multiple_of(2) {
            (figures[middle - 1] + figures[middle]) / 2.0
        } else {
            figures[middle]
        };
        Some(Spread { median, low, high })
    }

    fn text(self) -> String {
        format!("{} ({}–{})", number(self.median), number(self.low), number(self.high))
    }

    fn json(self) -> Value {
        json!({ "median": as_json(self.median), "low": as_json(self.low), "high": as_json(self.high) })
    }
}

/// JSON has no infinity, and `null` is what was not measured.
fn as_json(figure: f64) -> Value {
    if figure == f64::INFINITY { "infinite".into() } else { figure.into() }
}

fn number(figure: f64) -> String {
    match figure {
        f64::INFINITY => "∞".to_owned(),
        _ if figure < 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

/// Infinite if there was no answer.
fn ms(time: Duration) -> f64 {
    if time == UNANSWERED { f64::INFINITY } else { time.as_secs_f64() * 1000.0 }
}

fn unanswered(trial: &Outcome) -> usize {
    trial.pings.iter().filter(|(_, took)| *took == UNANSWERED).count()
}

/// The value below which this share lies, by the nearest-rank method.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

fn sorted(latencies: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut latencies: Vec<f64> = latencies.map(ms).collect();
    latencies.sort_by(f64::total_cmp);
    latencies
}

type Samples = fn(&Outcome) -> &[(f64, Duration)];

/// The kinds of latency: name, and where an outcome has the samples.
const LATENCIES: [(&str, Samples); 2] =
    [("ping", |outcome| &outcome.pings), ("delivery", |outcome| &outcome.deliveries)];
const SHARES: [(&str, f64); 3] = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)];
/// Beyond this many round trips of the path, a packet was lost or the message waited for one that was.
const LATE_TRIPS: f64 = 1.5;
/// Computed over all seeds together, as one seed has too few samples.
const RARE: (&str, f64) = ("p99.9", 0.999);

impl Cell {
    /// The latencies of all seeds together in milliseconds, ascending.
    pub(super) fn pooled(&self, samples: Samples) -> Vec<f64> {
        sorted(self.trials.iter().flat_map(samples).map(|(_, took)| *took))
    }

    fn spread(&self, samples: Samples, share: f64) -> Option<Spread> {
        let of_each = |trial: &Outcome| quantile(&sorted(samples(trial).iter().map(|(_, took)| *took)), share);
        Spread::of(self.trials.iter().filter_map(of_each))
    }

    /// Percentage of samples that took longer than [`LATE_TRIPS`].
    fn late(&self, samples: Samples) -> Option<Spread> {
        let bound = ms(self.scenario.round_trip()) * LATE_TRIPS;
        let share = |trial: &Outcome| {
            let late = samples(trial).iter().filter(|(_, took)| ms(*took) > bound).count();
            late as f64 * 100.0 / samples(trial).len().max(1) as f64
        };
        self.each(share)
    }

    fn each(&self, figure: impl Fn(&Outcome) -> f64) -> Option<Spread> {
        Spread::of(self.trials.iter().map(figure))
    }

    fn recoveries(&self, which: impl Fn(&super::book::Recovery) -> Duration) -> Option<Spread> {
        Spread::of(self.trials.iter().flat_map(|trial| &trial.recoveries).map(|recovery| ms(which(recovery))))
    }

    /// Time to the first message after the event, in milliseconds: lowest, median and highest.
    pub(super) fn first(&self) -> Option<(f64, f64, f64)> {
        self.recoveries(|recovery| recovery.first).map(|spread| (spread.low, spread.median, spread.high))
    }

    /// Number of trials for whose packets the link was too slow: they say nothing of the carriers.
    pub(super) fn spoiled(&self) -> usize {
        self.count(|trial| usize::from(trial.overrun > 0))
    }

    fn count(&self, count: impl Fn(&Outcome) -> usize) -> usize {
        self.trials.iter().map(count).sum()
    }

    pub(super) fn wrong(&self) -> Wrong {
        let add = |sum: Wrong, trial: &Outcome| Wrong {
            lost: sum.lost + trial.wrong.lost,
            doubled: sum.doubled + trial.wrong.doubled,
            disordered: sum.disordered + trial.wrong.disordered,
        };
        self.trials.iter().fold(Wrong::default(), add)
    }

    pub(super) fn json(&self) -> Value {
        let mut latencies = serde_json::Map::new();
        for (name, samples) in LATENCIES {
            let mut of = serde_json::Map::new();
            let pooled = self.pooled(samples);
            of.insert("count".to_owned(), json!(pooled.len()));
            for (share_name, share) in SHARES {
                of.insert(format!("{share_name}_ms"), self.spread(samples, share).map_or(Value::Null, Spread::json));
            }
            of.insert("late_percent".to_owned(), self.late(samples).map_or(Value::Null, Spread::json));
            of.insert("p99.9_ms_of_all".to_owned(), json!(quantile(&pooled, RARE.1).map(as_json)));
            of.insert("max_ms".to_owned(), json!(pooled.last().copied().map(as_json)));
            latencies.insert(name.to_owned(), of.into());
        }
        let spread = |spread: Option<Spread>| spread.map_or(Value::Null, Spread::json);
        let wrong = self.wrong();
        json!({
            "scenario": self.scenario.name,
            "words": self.scenario.words,
            "wifi": self.scenario.wifi,
            "lte": self.scenario.lte,
            "carrier": self.carrier.name(),
            "trials": self.trials.len(),
            "latencies": latencies,
            "first_message_ms": spread(self.recoveries(|recovery| recovery.first)),
            "each_way_ms": spread(self.recoveries(|recovery| recovery.both)),
            "caught_up_ms": spread(self.recoveries(|recovery| recovery.caught_up)),
            "packets_per_message": spread(self.each(|trial| trial.packets_per_message)),
            "bytes_per_message": spread(self.each(|trial| trial.bytes_per_message)),
            "packets_lost_share": spread(self.each(|trial| trial.lost_packets)),
            "messages_lost": wrong.lost,
            "messages_doubled": wrong.doubled,
            "messages_out_of_order": wrong.disordered,
            "pings_without_answer": self.count(unanswered),
            "sessions": self.count(|trial| trial.sessions),
            "sessions_with_0rtt": self.count(|trial| trial.early),
            "presence_changes_heard": self.count(|trial| trial.presence_heard),
        })
    }
}

/// All figures as Markdown.
pub(super) fn markdown(cells: &[Cell]) -> String {
    let mut text = String::new();
    let steady: Vec<&Cell> = cells.iter().filter(|cell| cell.scenario.event == Event::Nothing).collect();
    for ((_, samples), title) in
        LATENCIES.into_iter().zip(["Ping round trip, ms", "Text from one application to the other, ms"])
    {
        if steady.is_empty() {
            continue;
        }
        let _ = writeln!(
            text,
            "| {title} | carrier | p50 | p95 | p99 | p99.9 of all | × QUIC at p99 | over {LATE_TRIPS} RTT, % | without answer |"
        );
        text.push_str("|---|---|--:|--:|--:|--:|--:|--:|--:|\n");
        for cell in &steady {
            let of_quic = cells
                .iter()
                .find(|other| other.scenario.name == cell.scenario.name && other.carrier == Carrier::Quic)
                .and_then(|quic| quic.spread(samples, 0.99));
            let quantiles = SHARES.map(|(_, share)| cell.spread(samples, share).map_or("–".to_owned(), Spread::text));
            let rare = quantile(&cell.pooled(samples), RARE.1).map_or("–".to_owned(), number);
            let ratio = cell.spread(samples, 0.99).zip(of_quic).map(|(own, quic)| own.median / quic.median);
            let ratio = match ratio {
                None => "–".to_owned(),
                Some(f64::INFINITY) => number(f64::INFINITY),
                Some(ratio) => format!("{ratio:.2}"),
            };
            let late = cell.late(samples).map_or("–".to_owned(), Spread::text);
            let _ = writeln!(
                text,
                "| {} | {} | {} | {rare} | {ratio} | {late} | {} of {} |",
                place(cell),
                cell.carrier.name(),
                quantiles.join(" | "),
                cell.trials.iter().flat_map(samples).filter(|(_, took)| *took == UNANSWERED).count(),
                cell.trials.iter().flat_map(samples).count()
            );
        }
        text.push('\n');
    }
    if !steady.is_empty() {
        text.push_str("| On the wire, both directions | carrier | packets per message | bytes per message | packets lost, % | messages lost | doubled | out of order |\n|---|---|--:|--:|--:|--:|--:|--:|\n");
        for cell in &steady {
            let wrong = cell.wrong();
            let shown = |figure: Option<Spread>| figure.map_or("–".to_owned(), Spread::text);
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                place(cell),
                cell.carrier.name(),
                shown(cell.each(|trial| trial.packets_per_message)),
                shown(cell.each(|trial| trial.bytes_per_message)),
                shown(cell.each(|trial| trial.lost_packets * 100.0)),
                wrong.lost,
                wrong.doubled,
                wrong.disordered
            );
        }
        text.push('\n');
    }
    let events = cells.iter().filter(|cell| cell.scenario.event != Event::Nothing);
    let mut first = true;
    for cell in events {
        if std::mem::take(&mut first) {
            text.push_str("| After the event, ms | carrier | first message | one each way | caught up | sessions (0-RTT) in trials | pings without answer | messages lost | doubled | out of order |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
        }
        let shown = |figure: Option<Spread>| figure.map_or("–".to_owned(), Spread::text);
        let wrong = cell.wrong();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} ({}) in {} | {} | {} | {} | {} |",
            place(cell),
            cell.carrier.name(),
            shown(cell.recoveries(|recovery| recovery.first)),
            shown(cell.recoveries(|recovery| recovery.both)),
            shown(cell.recoveries(|recovery| recovery.caught_up)),
            cell.count(|trial| trial.sessions),
            cell.count(|trial| trial.early),
            cell.trials.len(),
            cell.count(unanswered),
            wrong.lost,
            wrong.doubled,
            wrong.disordered
        );
    }
    text.push('\n');
    text
}

/// The scenario's name, with its description for the first of its carriers.
fn place(cell: &Cell) -> String {
    if cell.carrier == Carrier::Quic {
        format!("**{}**: {}", cell.scenario.name, cell.scenario.words)
    } else {
        cell.scenario.name.to_owned()
    }
}

/// The goals, each with its figure; leaves out what was not measured.
pub(super) fn goals(cells: &[Cell]) -> String {
    let find = |name: &str, carrier| cells.iter().find(|cell| cell.scenario.name == name && cell.carrier == carrier);
    let met = |met: bool| if met { "met" } else { "MISSED" };
    let mut text = String::new();
    let p99 = |carrier| find("loss2", carrier).and_then(|cell| cell.spread(LATENCIES[0].1, 0.99));
    for carrier in [Carrier::TcpCubic, Carrier::TcpBbr] {
        if let Some((quic, tcp)) = p99(Carrier::Quic).zip(p99(carrier)) {
            let ratio = quic.median / tcp.median;
            let _ = writeln!(
                text,
                "- Ping p99 under 2 % loss: {ratio:.2} × that of {} (goal: at most 0.5): {}",
                carrier.name(),
                met(ratio <= 0.5)
            );
        }
    }
    for (name, trips) in [("handover", 2.0), ("handover-untold", 2.0), ("tunnel", 1.0), ("away", 1.0)] {
        let Some(quic) = find(name, Carrier::Quic) else { continue };
        let Some((_, median, high)) = quic.first() else { continue };
        let measured = median / ms(quic.scenario.round_trip());
        let worst = high / ms(quic.scenario.round_trip());
        let _ = writeln!(
            text,
            "- First message after `{name}` over QUIC: {measured:.2} round trips, {worst:.2} at worst (goal: at most {trips:.0}): {}",
            met(measured <= trips)
        );
        for carrier in [Carrier::TcpCubic, Carrier::TcpBbr] {
            let Some((_, tcp, _)) = find(name, carrier).and_then(Cell::first) else { continue };
            let sooner = tcp / median;
            let _ = match trips {
                2.0 => {
                    writeln!(text, "  - {sooner:.1} × sooner than {} (goal: 5): {}", carrier.name(), met(sooner >= 5.0))
                }
                _ => writeln!(text, "  - {sooner:.1} × sooner than {}", carrier.name()),
            };
        }
    }
    let wrong = cells.iter().map(Cell::wrong).fold((0, 0, 0), |(lost, doubled, disordered), wrong| {
        (lost + wrong.lost, doubled + wrong.doubled, disordered + wrong.disordered)
    });
    let _ = writeln!(
        text,
        "- Messages lost {}, doubled {}, out of order {} (goal: none): {}",
        wrong.0,
        wrong.1,
        wrong.2,
        met(wrong == (0, 0, 0))
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_nearest_rank_and_a_median_the_middle() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| quantile(&hundred, share)), [Some(50.0), Some(99.0), Some(100.0)]);
        assert_eq!(quantile(&[], 0.5), None);
        let some_answered = sorted([UNANSWERED, Duration::from_millis(5), UNANSWERED].into_iter());
        assert_eq!(
            [0.3, 0.5].map(|share| quantile(&some_answered, share).map(number)),
            ["5.0", "∞"].map(|of| Some(of.into()))
        );
        let spread = Spread::of([3.0, 1.0, 2.0, 10.0].into_iter()).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (1.0, 2.5, 10.0));
    }
}
