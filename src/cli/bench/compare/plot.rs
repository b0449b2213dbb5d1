//! Plots of the comparison as SVG and PNG: latency distributions, the timeline of a handover, and the time to the first
//! message after each event.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

use super::figures::Cell;
use super::scenario::Event;
use super::trial::{Carrier, Outcome};

/// Common fonts; the first that exists is used.
const FONTS: [&str; 4] = [
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/TTF/DejaVuSans.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
    "/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf",
];

/// Colours that colour-blind readers can distinguish, too: blue, vermilion and a light orange (after Okabe and Ito).
fn colour(carrier: Carrier) -> RGBColor {
    match carrier {
        Carrier::Quic => RGBColor(0, 114, 178),
        Carrier::TcpCubic => RGBColor(213, 94, 0),
        Carrier::TcpBbr => RGBColor(230, 159, 0),
    }
}

/// Draws each plot for which there are figures.
pub(super) fn draw(cells: &[Cell], folder: &Path) -> anyhow::Result<()> {
    let font = FONTS.iter().find_map(|path| std::fs::read(path).ok());
    let font = font.context("plots need a font: install DejaVu Sans (Debian's fonts-dejavu-core)")?;
    // Registered once per process, so it may live as long.
    let font: &'static [u8] = font.leak();
    register_font("sans-serif", FontStyle::Normal, font).map_err(|_| anyhow!("the font cannot be read"))?;

    let steady: Vec<&Cell> = cells.iter().filter(|cell| cell.scenario.event == Event::Nothing).collect();
    if !steady.is_empty() {
        let pictures: [(&str, &str, Samples); 2] = [
            ("ping-cdf", "Share of pings answered within …", |outcome| &outcome.pings),
            ("delivery-cdf", "Share of texts at the other application within …", |outcome| &outcome.deliveries),
        ];
        for (name, title, samples) in pictures {
            both(folder, name, (1200, 760), |area| distributions(area, title, &steady, samples))?;
        }
    }
    for (name, title, until) in [
        ("handover", "Wi-Fi to LTE, 300 ms apart, and the application is told: how long each text took", 3.0),
        ("handover-untold", "Wi-Fi to LTE, 300 ms apart, and nobody is told: how long each text took", 16.0),
    ] {
        let moved: Vec<&Cell> = cells.iter().filter(|cell| cell.scenario.name == name).collect();
        if !moved.is_empty() {
            both(folder, &format!("{name}-timeline"), (1200, 760), |area| time_line(area, title, &moved, until))?;
        }
    }
    let events: Vec<&Cell> = cells.iter().filter(|cell| cell.scenario.event != Event::Nothing).collect();
    if !events.is_empty() {
        both(folder, "recovery", (1200, 560), |area| recovery(area, &events))?;
    }
    Ok(())
}

/// A canvas of either format. A closure cannot be generic, so it takes this enum of both.
enum Canvas<'a> {
    Svg(DrawingArea<SVGBackend<'a>, Shift>),
    Png(DrawingArea<BitMapBackend<'a>, Shift>),
}

fn both(
    folder: &Path,
    name: &str,
    size: (u32, u32),
    draw: impl Fn(&Canvas<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let path = |ending: &str| -> PathBuf { folder.join(format!("{name}.{ending}")) };
    let (svg, png) = (path("svg"), path("png"));
    draw(&Canvas::Svg(SVGBackend::new(&svg, size).into_drawing_area()))?;
    draw(&Canvas::Png(BitMapBackend::new(&png, size).into_drawing_area()))
}

/// Calls a drawing function that is generic over the backend.
macro_rules! on {
    ($canvas:expr, $draw:ident($($argument:expr),*)) => {
        match $canvas {
            Canvas::Svg(area) => $draw(area, $($argument),*),
            Canvas::Png(area) => $draw(area, $($argument),*),
        }
    };
}

type Samples = fn(&Outcome) -> &[(f64, Duration)];

fn distributions(canvas: &Canvas<'_>, title: &str, cells: &[&Cell], samples: Samples) -> anyhow::Result<()> {
    on!(canvas, distributions_on(title, cells, samples))
}

fn time_line(canvas: &Canvas<'_>, title: &str, cells: &[&Cell], until: f64) -> anyhow::Result<()> {
    on!(canvas, time_line_on(title, cells, until))
}

fn recovery(canvas: &Canvas<'_>, cells: &[&Cell]) -> anyhow::Result<()> {
    on!(canvas, recovery_on(cells))
}

fn failed<E: std::fmt::Display>(error: E) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

/// An axis label, for round milliseconds.
fn time(ms: &f64) -> String {
    if *ms >= 1000.0 { format!("{} s", ms / 1000.0) } else { format!("{ms} ms") }
}

fn distributions_on<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    cells: &[&Cell],
    samples: Samples,
) -> anyhow::Result<()> {
    area.fill(&WHITE).map_err(failed)?;
    let area = area.titled(title, ("sans-serif", 24)).map_err(failed)?;
    let names: Vec<&str> = {
        let mut names: Vec<&str> = cells.iter().map(|cell| cell.scenario.name).collect();
        names.dedup();
        names
    };
    let columns = names.len().min(3);
    let panels = area.split_evenly((names.len().div_ceil(columns), columns));
    for (panel, name) in panels.iter().zip(&names) {
        let own: Vec<&&Cell> = cells.iter().filter(|cell| cell.scenario.name == *name).collect();
        let words = own.first().map_or("", |cell| cell.scenario.words);
        let latencies: Vec<(Carrier, Vec<f64>)> = own.iter().map(|cell| (cell.carrier, cell.pooled(samples))).collect();
        let longest = latencies
            .iter()
            .filter_map(|(_, sorted)| sorted.iter().rfind(|ms| ms.is_finite()))
            .fold(100.0, |a: f64, b| a.max(*b));
        let shortest = latencies.iter().filter_map(|(_, sorted)| sorted.first()).fold(longest, |a: f64, b| a.min(*b));
        let mut chart = ChartBuilder::on(panel)
            .caption(words, ("sans-serif", 17))
            .margin(10)
            .x_label_area_size(34)
            .y_label_area_size(52)
            .build_cartesian_2d((shortest * 0.9..longest * 1.1).log_scale(), 0.0..100.0)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_labels(6)
            .x_label_formatter(&|ms| time(&(ms.round())))
            .y_label_formatter(&|share| format!("{share:.0} %"))
            .label_style(("sans-serif", 14))
            .draw()
            .map_err(failed)?;
        for (carrier, sorted) in latencies {
            let count = sorted.len() as f64;
            let answered = sorted.iter().take_while(|ms| ms.is_finite());
            let steps = answered.enumerate().map(|(rank, ms)| (*ms, (rank + 1) as f64 / count * 100.0));
            let line = chart.draw_series(LineSeries::new(steps, colour(carrier).stroke_width(2))).map_err(failed)?;
            line.label(carrier.name())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour(carrier).stroke_width(3)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 14))
            .draw()
            .map_err(failed)?;
    }
    area.present().map_err(failed)
}

fn time_line_on<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    cells: &[&Cell],
    until: f64,
) -> anyhow::Result<()> {
    area.fill(&WHITE).map_err(failed)?;
    let area = area.titled(title, ("sans-serif", 24)).map_err(failed)?;
    for (panel, cell) in area.split_evenly((cells.len(), 1)).iter().zip(cells) {
        let mut chart = ChartBuilder::on(panel)
            .caption(format!("{}, all seeds", cell.carrier.name()), ("sans-serif", 17))
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(64)
            .build_cartesian_2d(-1.5..until, (5.0..30_000.0).log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("when the text was written: seconds from when the new path worked")
            .x_label_formatter(&|seconds| format!("{seconds:.1}"))
            .y_labels(4)
            .y_label_formatter(&time)
            .label_style(("sans-serif", 14))
            .draw()
            .map_err(failed)?;
        // Shade the gap in which there is no network.
        chart
            .draw_series([Rectangle::new([(-0.3, 5.0), (0.0, 30_000.0)], BLACK.mix(0.12).filled())])
            .map_err(failed)?;
        let points = cell.trials.iter().flat_map(|trial| &trial.deliveries);
        let points = points.filter(|(at, _)| (-1.5..until).contains(at));
        let points = points.map(|(at, took)| {
            Circle::new((*at, took.as_secs_f64() * 1000.0), 3, colour(cell.carrier).mix(0.7).filled())
        });
        chart.draw_series(points).map_err(failed)?;
    }
    area.present().map_err(failed)
}

fn recovery_on<B: DrawingBackend>(area: &DrawingArea<B, Shift>, cells: &[&Cell]) -> anyhow::Result<()> {
    area.fill(&WHITE).map_err(failed)?;
    let mut names: Vec<&str> = cells.iter().map(|cell| cell.scenario.name).collect();
    names.dedup();
    let rows = names.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(
            "From the network's return to the first message (median, and from lowest to highest)",
            ("sans-serif", 22),
        )
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(150)
        .build_cartesian_2d((5.0..30_000.0).log_scale(), 0.0..rows)
        .map_err(failed)?;
    let label = |at: &f64| {
        let row = (rows - at).floor() as usize;
        if at.fract() == 0.5 { names.get(row).map_or(String::new(), |name| (*name).to_owned()) } else { String::new() }
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(WHITE)
        .y_labels(names.len() * 2 + 1)
        .y_label_formatter(&label)
        .x_label_formatter(&time)
        .label_style(("sans-serif", 16))
        .draw()
        .map_err(failed)?;
    for (number, carrier) in Carrier::ALL.into_iter().enumerate() {
        let mut bars = Vec::new();
        let mut dots = Vec::new();
        for (row, name) in names.iter().enumerate() {
            let cell = cells.iter().find(|cell| cell.scenario.name == *name && cell.carrier == carrier);
            let Some((low, median, high)) = cell.and_then(|cell| cell.first()) else { continue };
            let y = rows - row as f64 - 0.25 - 0.25 * number as f64;
            bars.push(PathElement::new([(low.max(5.0), y), (high.max(5.0), y)], colour(carrier).stroke_width(4)));
            dots.push(Circle::new((median.max(5.0), y), 7, colour(carrier).filled()));
        }
        chart.draw_series(bars).map_err(failed)?;
        let drawn = chart.draw_series(dots).map_err(failed)?;
        drawn.label(carrier.name()).legend(move |(x, y)| Circle::new((x + 9, y), 6, colour(carrier).filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 16))
        .draw()
        .map_err(failed)?;
    area.present().map_err(failed)
}
