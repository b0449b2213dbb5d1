//! Draws a dashboard as a page: each panel from the answers to its own queries. The page says that it is not from Grafana.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::element::Rectangle;
use plotters::prelude::{
    AreaSeries, ChartBuilder, IntoDrawingArea, LineSeries, PathElement, RGBColor, SVGBackend, ShapeStyle,
};
use plotters::style::{Color, FontStyle, IntoFont, register_font};
use serde_json::Value;

use crate::prometheus::Series;

/// Width of the page in CSS pixels.
pub const WIDTH: u64 = 1240;
const ROW: u64 = 30;
const HEAD: u64 = 96;
/// Space between panels in CSS pixels.
const GAP: u64 = 8;

const COLORS: [RGBColor; 10] = [
    RGBColor(37, 99, 235),
    RGBColor(217, 119, 6),
    RGBColor(22, 163, 74),
    RGBColor(220, 38, 38),
    RGBColor(124, 58, 237),
    RGBColor(8, 145, 178),
    RGBColor(219, 39, 119),
    RGBColor(101, 163, 13),
    RGBColor(120, 113, 108),
    RGBColor(180, 83, 9),
];
const INK: RGBColor = RGBColor(71, 84, 103);
const GRID: RGBColor = RGBColor(226, 230, 236);

/// Draws grid and labels. A macro, because the chart's type is too long to write out.
macro_rules! mesh {
    ($chart:ident, $span:ident, $label:expr) => {
        $chart
            .configure_mesh()
            .axis_style(GRID)
            .bold_line_style(GRID)
            .light_line_style(plotters::style::TRANSPARENT)
            .disable_x_mesh()
            .label_style(("sans-serif", 12).into_font().color(&INK))
            .x_labels(20)
            .y_labels(12)
            .x_label_formatter(&|at: &f64| clock(at - $span.from))
            .y_label_formatter(&$label)
            .draw()
            .unwrap()
    };
}
/// The time range that is shown, in Unix seconds.
#[derive(Clone, Copy)]
pub struct Span {
    /// The left edge.
    pub from: f64,
    /// The right edge.
    pub to: f64,
    /// Seconds between points.
    pub step: f64,
}

impl Span {
    /// An axis with a label for each whole minute since the left edge.
    fn axis(self) -> Axis {
        let minutes = ((self.to - self.from) / 60.0) as u32;
        let labels = (0..=minutes).map(|minute| self.from + 60.0 * f64::from(minute)).collect();
        Axis { range: self.from..self.to, labels }
    }
}

/// A linear axis with labels at given values.
struct Axis {
    range: Range<f64>,
    labels: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        low + (share * f64::from(high - low)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.labels.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// About four round values up to `top`.
fn ticks(top: f64, unit: &str) -> Vec<f64> {
    let base = match unit {
        "bytes" if top >= (1_u64 << 30) as f64 => (1_u64 << 30) as f64,
        "bytes" => (1 << 20) as f64,
        "s" if top >= 2.0 * 86_400.0 => 86_400.0,
        _ => 1.0,
    };
    let least = top / base / 5.0;
    let tenth = 10_f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * tenth).into_iter().find(|step| *step >= least).unwrap_or(least);
    (0..=5).map(|number| f64::from(number) * step * base).filter(|value| *value <= top).collect()
}

/// A line with its legend.
struct Line {
    legend: String,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

/// An event on the time axis.
pub struct Mark {
    /// Unix seconds.
    pub at: f64,
    /// A word or two.
    pub what: &'static str,
}

/// Registers Debian's DejaVu Sans. The browser draws the labels, but plotters needs a font's measures to place them.
fn take_font() {
    let file = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
    let font = std::fs::read(file).unwrap_or_else(|reason| panic!("{file}: {reason}; install fonts-dejavu-core"));
    // `register_font` wants a `'static` font. It leaks once for each dashboard.
    let taken = register_font("sans-serif", FontStyle::Normal, font.leak());
    assert!(taken.is_ok(), "{file} is no font");
}

/// Height of a dashboard's page in CSS pixels.
pub fn height(dashboard: &Value) -> u64 {
    let bottom = |panel: &Value| panel["gridPos"]["y"].as_u64().unwrap() + panel["gridPos"]["h"].as_u64().unwrap();
    HEAD + ROW * dashboard["panels"].as_array().unwrap().iter().map(bottom).max().unwrap() + 2 * GAP
}

/// The page as HTML. `answers`: for each panel id, the answers to its queries.
pub fn page(
    dashboard: &Value,
    answers: &BTreeMap<u64, Vec<Vec<Series>>>,
    span: Span,
    marks: &[Mark],
    caption: &str,
) -> String {
    take_font();
    let mut html = format!(
        "<!doctype html><meta charset=utf-8><style>\
         body {{ margin: 0; background: #f6f7f9; color: #1c2330; font: 13px sans-serif; width: {WIDTH}px; }}\
         header {{ position: absolute; left: 12px; top: 12px; right: 12px; }} h1 {{ font-size: 20px; margin: 0 0 4px; }}\
         header div {{ color: #667085; line-height: 1.4; }}\
         .panel {{ position: absolute; background: #fff; border: 1px solid #e2e6ec; border-radius: 6px; box-sizing: border-box; overflow: hidden; }}\
         .title {{ font-weight: 600; padding: 6px 10px 0; }} .row {{ position: absolute; left: 12px; font-weight: 600; color: #667085; padding-top: 8px; }}\
         .stat {{ font-size: 30px; font-weight: 600; text-align: center; padding-top: 18px; }}\
         .legend {{ padding: 0 10px; color: #475467; font-size: 11.5px; line-height: 1.35; }} .legend b {{ font-weight: 400; margin-right: 10px; white-space: nowrap; }}\
         </style><header><h1>{}</h1><div>{}</div></header>",
        dashboard["title"].as_str().unwrap(),
        caption,
    );
    for panel in dashboard["panels"].as_array().unwrap() {
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        let (x, y) = (place("x") * (WIDTH - 16) / 24 + 8, HEAD + place("y") * ROW);
        let (w, h) = (place("w") * (WIDTH - 16) / 24 - GAP, place("h") * ROW - GAP);
        let title = panel["title"].as_str().unwrap();
        if panel["type"] == "row" {
            let _ = write!(html, "<div class=row style='top:{y}px'>{title}</div>");
            continue;
        }
        let lines = lines(panel, &answers[&panel["id"].as_u64().unwrap()]);
        let body = match panel["type"].as_str().unwrap() {
            "stat" => stat(panel, &lines),
            "heatmap" => heatmap(panel, &answers[&panel["id"].as_u64().unwrap()][0], span, (w, h - 28)),
            _ => graph(panel, lines, span, marks, (w, h - 28)),
        };
        let _ = write!(
            html,
            "<div class=panel style='left:{x}px;top:{y}px;width:{w}px;height:{h}px'><div class=title>{title}</div>{body}</div>"
        );
    }
    html
}

fn lines(panel: &Value, answers: &[Vec<Series>]) -> Vec<Line> {
    let mut lines = Vec::new();
    for (target, answer) in panel["targets"].as_array().unwrap().iter().zip(answers) {
        for series in answer {
            let legend = target["legendFormat"].as_str().unwrap();
            let legend = series
                .labels
                .iter()
                .fold(legend.to_owned(), |legend, (name, value)| legend.replace(&format!("{{{{{name}}}}}"), value));
            let color = COLORS[lines.len() % COLORS.len()];
            lines.push(Line { legend, color, points: series.points.clone() });
        }
    }
    lines
}

fn stat(panel: &Value, lines: &[Line]) -> String {
    let last = lines.first().and_then(|line| line.points.iter().rev().find(|(_, value)| value.is_finite()));
    let Some((_, value)) = last else { return "<div class=stat style='color:#98a2b3'>no data</div>".to_owned() };
    let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().unwrap();
    let reached = steps.iter().rfind(|step| step["value"].as_f64().is_none_or(|from| *value >= from));
    let color = match reached.and_then(|step| step["color"].as_str()) {
        Some("red") => "#b91c1c",
        Some("orange") => "#b45309",
        _ => "#15803d",
    };
    format!("<div class=stat style='color:{color}'>{}</div>", shown(*value, unit(panel)))
}

fn graph(panel: &Value, mut lines: Vec<Line>, span: Span, marks: &[Mark], (w, h): (u64, u64)) -> String {
    let stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal";
    let all = lines.len();
    lines.retain(|line| line.points.iter().any(|(_, value)| value.is_finite()));
    let (with_numbers, without_numbers) = (lines.len(), all - lines.len());
    lines.retain(|line| line.points.iter().any(|(_, value)| value.is_finite() && *value != 0.0));
    let mut quiet = Vec::new();
    match with_numbers - lines.len() {
        0 => {}
        zeros if zeros == all => quiet.push("all at zero".to_owned()),
        zeros => quiet.push(format!("{zeros} more at zero")),
    }
    if without_numbers > 0 {
        quiet.push(format!("{without_numbers} of nothing yet"));
    }
    let quiet = quiet.join(", ");
    for (number, line) in lines.iter_mut().enumerate() {
        line.color = COLORS[number % COLORS.len()];
    }
    let mut legend: String = lines.iter().fold(String::new(), |mut html, line| {
        let RGBColor(r, g, b) = line.color;
        let _ = write!(html, "<b><span style='color:rgb({r},{g},{b})'>&#9644;</span> {}</b> ", line.legend);
        html
    });
    let _ = write!(legend, "<b style='color:#98a2b3'>{quiet}</b>");
    // Estimate the width of the legend at 7 pixels a letter.
    let letters: usize = lines.iter().map(|line| line.legend.chars().count() + 6).sum::<usize>() + quiet.len();
    let rows = (letters as u64 * 7 / (w - 20) + 1).min(4);
    if stacked {
        stack(&mut lines);
    }
    let values = lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value).filter(|value| value.is_finite());
    let top = values.fold(0.0, f64::max);
    let top = if top > 0.0 { top * 1.08 } else { 1.0 };
    let size = (w as u32, (h - rows * 16 - 4) as u32);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let unit = unit(panel);
        let mut chart = ChartBuilder::on(&root)
            .margin_right(12)
            .margin_top(8)
            .x_label_area_size(20)
            .y_label_area_size(64)
            .build_cartesian_2d(span.axis(), Axis { range: 0.0..top, labels: ticks(top, unit) })
            .unwrap();
        mesh!(chart, span, |value: &f64| shown(*value, unit));
        for mark in marks {
            let style = ShapeStyle { color: INK.mix(0.5), filled: false, stroke_width: 1 };
            chart.draw_series([PathElement::new([(mark.at, 0.0), (mark.at, top)], style)]).unwrap();
        }
        let thresholds = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().unwrap();
        for from in thresholds.iter().filter_map(|step| step["value"].as_f64()).filter(|from| *from < top) {
            let style = ShapeStyle { color: RGBColor(220, 38, 38).mix(0.5), filled: false, stroke_width: 1 };
            chart.draw_series([PathElement::new([(span.from, from), (span.to, from)], style)]).unwrap();
        }
        // Draw the highest of a stack first, so that the lower ones lie over it.
        for line in lines.iter().rev() {
            for stretch in stretches(&line.points, span.step) {
                let style = ShapeStyle { color: line.color.to_rgba(), filled: false, stroke_width: 2 };
                if stacked {
                    let pale = RGBColor(pale(line.color.0), pale(line.color.1), pale(line.color.2));
                    chart.draw_series(AreaSeries::new(stretch, 0.0, pale).border_style(style)).unwrap();
                } else {
                    chart.draw_series(LineSeries::new(stretch, style)).unwrap();
                }
            }
        }
        root.present().unwrap();
    }
    format!("{svg}<div class=legend>{legend}</div>")
}

fn pale(channel: u8) -> u8 {
    channel / 4 + 191
}

/// Adds to each line the values of the lines before it at the same times.
fn stack(lines: &mut [Line]) {
    let mut below: BTreeMap<u64, f64> = BTreeMap::new();
    for line in lines {
        for (at, value) in line.points.iter_mut().filter(|(_, value)| value.is_finite()) {
            let sum = below.entry(at.to_bits()).or_default();
            *sum += *value;
            *value = *sum;
        }
    }
}

/// Splits a line where a number or a point is missing.
fn stretches(points: &[(f64, f64)], step: f64) -> Vec<Vec<(f64, f64)>> {
    let mut stretches: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut last = f64::NEG_INFINITY;
    for (at, value) in points.iter().filter(|(_, value)| value.is_finite()) {
        match stretches.last_mut() {
            Some(stretch) if at - last < step * 1.5 => stretch.push((*at, *value)),
            _ => stretches.push(vec![(*at, *value)]),
        }
        last = *at;
    }
    for stretch in stretches.iter_mut().filter(|stretch| stretch.len() == 1) {
        // A line of one point would be invisible.
        stretch.push((stretch[0].0 + step * 0.5, stretch[0].1));
    }
    stretches
}

/// Counts by bucket over time. A darker cell has a larger count, relative to the largest of the panel.
fn heatmap(panel: &Value, buckets: &[Series], span: Span, (w, h): (u64, u64)) -> String {
    let bound = |series: &Series| series.labels["le"].parse::<f64>().unwrap();
    let mut buckets: Vec<_> = buckets.iter().map(|series| (bound(series), series.points.clone())).collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut cells = Vec::new();
    let mut below: BTreeMap<u64, f64> = BTreeMap::new();
    for (row, (_, points)) in buckets.iter().enumerate() {
        for (at, value) in points {
            let before = below.insert(at.to_bits(), *value).unwrap_or(0.0);
            cells.push((row, *at, (value - before).max(0.0)));
        }
    }
    let used = || cells.iter().filter(|(.., count)| *count > 0.0).map(|(row, ..)| *row);
    let (Some(first), Some(last)) = (used().min(), used().max()) else { return String::new() };
    let (first, last) = (first.saturating_sub(1), (last + 2).min(buckets.len()));
    let most = cells.iter().map(|(.., count)| *count).fold(0.0, f64::max);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (w as u32, h as u32)).into_drawing_area();
        let unit = unit(panel);
        let rows = (first..=last).step_by((last - first) / 6 + 1).map(|row| row as f64).collect();
        let label = |row: &f64| {
            let at = row.round() as usize;
            let bound = at.checked_sub(1).and_then(|below| buckets.get(below)).map_or(0.0, |(bound, _)| *bound);
            if bound.is_finite() { shown(bound, unit) } else { "more".to_owned() }
        };
        let mut chart = ChartBuilder::on(&root)
            .margin_right(12)
            .margin_top(8)
            .x_label_area_size(20)
            .y_label_area_size(64)
            .build_cartesian_2d(span.axis(), Axis { range: first as f64..last as f64, labels: rows })
            .unwrap();
        mesh!(chart, span, label);
        let cells = cells.iter().filter(|(.., count)| *count > 0.0).map(|(row, at, count)| {
            let color = RGBColor(194, 65, 12).mix(0.12 + 0.88 * (count / most).sqrt());
            Rectangle::new([(at - span.step, *row as f64), (*at, *row as f64 + 1.0)], color.filled())
        });
        chart.draw_series(cells).unwrap();
        root.present().unwrap();
    }
    svg
}

fn unit(panel: &Value) -> &str {
    panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap()
}

/// Seconds since the left edge as minutes and seconds.
pub fn clock(seconds: f64) -> String {
    format!("{}:{:02}", seconds as u64 / 60, seconds as u64 % 60)
}

/// A value in one of the dashboards' units.
fn shown(value: f64, unit: &str) -> String {
    let plain = |value: f64| match value {
        value if value >= 10_000.0 => format!("{:.1} k", value / 1000.0),
        value if value.fract().abs() < 1e-9 || value >= 100.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    };
    match unit {
        "s" if value >= 2.0 * 86_400.0 => format!("{:.0} d", value / 86_400.0),
        "s" if value >= 1.0 || value == 0.0 => format!("{} s", plain(value)),
        "s" => format!("{} ms", plain(value * 1000.0)),
        "percentunit" => format!("{} %", plain(value * 100.0)),
        "bytes" if value >= (1 << 30) as f64 => format!("{} GiB", plain(value / (1 << 30) as f64)),
        "bytes" => format!("{} MiB", plain(value / (1 << 20) as f64)),
        "mps" | "ops" | "pps" => format!("{}/s", plain(value)),
        _ => plain(value),
    }
}
