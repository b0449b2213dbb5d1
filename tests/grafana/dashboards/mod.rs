//! The dashboards as code: makes Grafana's JSON from panels. The files under `grafana/dashboards` are its output.

mod abuse_and_auth;
mod mobile_network;
mod overview;
mod store_and_log;

use serde_json::{Value, json};

/// The beginning of every selector: the variables of all dashboards.
const HERE: &str = r#"job=~"$job",instance=~"$instance""#;

/// File name and content of each dashboard.
pub fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("overview.json", overview::dashboard()),
        ("mobile-network.json", mobile_network::dashboard()),
        ("store-and-log.json", store_and_log::dashboard()),
        ("abuse-and-auth.json", abuse_and_auth::dashboard()),
    ]
}

/// A selector of the chosen jobs and instances and of `labels`.
fn select(name: &str, labels: &str) -> String {
    let comma = if labels.is_empty() { "" } else { "," };
    format!("{name}{{{HERE}{comma}{labels}}}")
}

/// The rate per second over Grafana's rate interval, which depends on the zoom.
fn rate(name: &str, labels: &str) -> String {
    format!("rate({}[$__rate_interval])", select(name, labels))
}

/// `sum by (label) (rate)`.
fn rate_by(label: &str, name: &str, labels: &str) -> String {
    format!("sum by ({label}) ({})", rate(name, labels))
}

fn quantile(quantile: f64, name: &str, labels: &str) -> String {
    quantile_by(quantile, "", name, labels)
}

/// A quantile of a histogram for each value of a label.
fn quantile_by(quantile: f64, label: &str, name: &str, labels: &str) -> String {
    let by = if label.is_empty() { "le".to_owned() } else { format!("le, {label}") };
    format!("histogram_quantile({quantile}, sum by ({by}) ({}))", rate(&format!("{name}_bucket"), labels))
}

/// The 50th, 95th and 99th percentile of a histogram.
fn quantiles(name: &str, labels: &str) -> Vec<(String, &'static str)> {
    [(0.5, "p50"), (0.95, "p95"), (0.99, "p99")].map(|(q, legend)| (quantile(q, name, labels), legend)).into()
}

/// A ratio, as of hits to look-ups. 0/0 is NaN and draws nothing.
fn ratio(part: &str, whole: &str) -> String {
    format!("{part} / {whole}")
}

/// How a panel displays its queries.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Stat,
    Lines,
    /// Stacked lines.
    Stack,
    Heatmap,
}

struct Panel {
    kind: Kind,
    title: &'static str,
    description: &'static str,
    unit: &'static str,
    width: u64,
    queries: Vec<(String, &'static str)>,
    /// Values from which a colour applies; green below the first.
    thresholds: Vec<(f64, &'static str)>,
    /// Anchor of a heading in docs/operations.md.
    runbook: Option<&'static str>,
}

impl Panel {
    fn new(kind: Kind, title: &'static str, unit: &'static str, description: &'static str) -> Panel {
        let width = if kind == Kind::Stat { 4 } else { 12 };
        Panel { kind, title, description, unit, width, queries: Vec::new(), thresholds: Vec::new(), runbook: None }
    }

    fn stat(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
        Panel::new(Kind::Stat, title, unit, description)
    }

    fn lines(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
        Panel::new(Kind::Lines, title, unit, description)
    }

    fn stack(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
        Panel::new(Kind::Stack, title, unit, description)
    }

    fn heatmap(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
        Panel::new(Kind::Heatmap, title, unit, description)
    }

    fn query(mut self, query: String, legend: &'static str) -> Panel {
        self.queries.push((query, legend));
        self
    }

    fn queries(mut self, queries: Vec<(String, &'static str)>) -> Panel {
        self.queries.extend(queries);
        self
    }

    fn warn(mut self, from: f64) -> Panel {
        self.thresholds.push((from, "orange"));
        self
    }

    fn bad(mut self, from: f64) -> Panel {
        self.thresholds.push((from, "red"));
        self
    }

    /// Red below this value, green from it on.
    fn bad_below(mut self, below: f64) -> Panel {
        self.thresholds.push((f64::NEG_INFINITY, "red"));
        self.thresholds.push((below, "green"));
        self
    }

    fn runbook(mut self, anchor: &'static str) -> Panel {
        self.runbook = Some(anchor);
        self
    }

    fn height(&self) -> u64 {
        if self.kind == Kind::Stat { 4 } else { 8 }
    }

    fn json(&self, id: usize, x: u64, y: u64) -> Value {
        let targets = self.queries.iter().zip('A'..).map(|((expr, legend), id)| {
            let format = if self.kind == Kind::Heatmap { "heatmap" } else { "time_series" };
            let mut target = json!({
                "refId": id.to_string(), "expr": expr, "legendFormat": legend, "format": format, "datasource": source(),
            });
            if self.kind == Kind::Stat {
                target["instant"] = json!(true);
                target["range"] = json!(false);
            }
            target
        });
        let links = self.runbook.iter().map(
            |anchor| json!({ "title": "What to do", "url": format!("${{runbook}}#{anchor}"), "targetBlank": true }),
        );
        json!({
            "id": id,
            "type": match self.kind {
                Kind::Stat => "stat",
                Kind::Lines | Kind::Stack => "timeseries",
                Kind::Heatmap => "heatmap",
            },
            "title": self.title,
            "description": self.description,
            "datasource": source(),
            "gridPos": { "x": x, "y": y, "w": self.width, "h": self.height() },
            "links": links.collect::<Vec<_>>(),
            "targets": targets.collect::<Vec<_>>(),
            "fieldConfig": { "defaults": self.defaults(), "overrides": [] },
            "options": self.options(),
        })
    }

    fn defaults(&self) -> Value {
        let mut steps = self.thresholds.clone();
        if steps.first().is_none_or(|(from, _)| from.is_finite()) {
            steps.insert(0, (f64::NEG_INFINITY, "green"));
        }
        let step = |(from, color): &(f64, &str)| json!({ "value": from.is_finite().then_some(*from), "color": color });
        let mut defaults = json!({
            "unit": self.unit,
            "thresholds": { "mode": "absolute", "steps": steps.iter().map(step).collect::<Vec<_>>() },
        });
        if matches!(self.kind, Kind::Lines | Kind::Stack) {
            let stacking = if self.kind == Kind::Stack { "normal" } else { "none" };
            let fill = if self.kind == Kind::Stack { 25 } else { 8 };
            let shown = if self.thresholds.is_empty() { "off" } else { "dashed" };
            defaults["min"] = json!(0);
            defaults["color"] = json!({ "mode": "palette-classic" });
            defaults["custom"] = json!({
                "drawStyle": "line", "lineWidth": 1, "fillOpacity": fill, "showPoints": "never", "spanNulls": false,
                "stacking": { "mode": stacking, "group": "A" }, "thresholdsStyle": { "mode": shown },
            });
        }
        defaults
    }

    fn options(&self) -> Value {
        match self.kind {
            Kind::Stat => json!({
                "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                "colorMode": "value", "graphMode": "none", "textMode": "auto",
            }),
            Kind::Lines | Kind::Stack => json!({
                "legend": { "displayMode": "list", "placement": "bottom" },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
            Kind::Heatmap => json!({
                "calculate": false, "yAxis": { "unit": self.unit }, "color": { "mode": "scheme", "scheme": "Oranges" },
                "cellGap": 0, "legend": { "show": true }, "tooltip": { "mode": "single", "yHistogram": true },
            }),
        }
    }
}

fn source() -> Value {
    json!({ "type": "prometheus", "uid": "bimip-prometheus" })
}

struct Row(&'static str, Vec<Panel>);

fn dashboard(uid: &str, title: &str, description: &str, rows: Vec<Row>) -> Value {
    let mut panels = Vec::new();
    let (mut y, mut id) = (0, 0);
    for Row(title, row) in rows {
        id += 1;
        panels.push(json!({
            "id": id, "type": "row", "title": title, "collapsed": false, "panels": [],
            "gridPos": { "x": 0, "y": y, "w": 24, "h": 1 },
        }));
        y += 1;
        let (mut x, mut highest) = (0, 0);
        for panel in row {
            if x + panel.width > 24 {
                (x, y, highest) = (0, y + highest, 0);
            }
            id += 1;
            panels.push(panel.json(id, x, y));
            x += panel.width;
            highest = highest.max(panel.height());
        }
        y += highest;
    }
    let variable = |name: &str, label: &str, query: &str| {
        json!({
            "name": name, "label": label, "type": "query", "datasource": source(), "refresh": 2, "sort": 1,
            "query": { "query": query, "refId": name }, "definition": query,
            "multi": true, "includeAll": true, "allValue": ".*", "current": { "text": ["All"], "value": ["$__all"] },
        })
    };
    json!({
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["bimip"],
        "schemaVersion": 39,
        "version": 1,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": { "from": "now-3h", "to": "now" },
        "timezone": "",
        "links": [{
            "title": "bimip", "type": "dashboards", "tags": ["bimip"], "asDropdown": true, "includeVars": true,
            "keepTime": true,
        }],
        "annotations": { "list": [{
            "name": "Starts", "datasource": source(), "enable": true, "iconColor": "blue",
            // Longer than a step by a scrape: the samples before and after a start may lie on either side of a step's boundary.
            "expr": format!("changes({}[$__rate_interval]) > 0", select("process_start_time_seconds", "")),
            "titleFormat": "{{instance}} started",
        }] },
        "templating": { "list": [
            variable("job", "Job", "label_values(bimip_build_info, job)"),
            variable("instance", "Instance", r#"label_values(bimip_build_info{job=~"$job"}, instance)"#),
            // Address of docs/operations.md. With docker-compose.yml Grafana itself serves it.
            { "name": "runbook", "type": "constant", "hide": 2, "query": "/public/bimip/operations.md",
              "current": { "value": "/public/bimip/operations.md" } },
        ] },
        "panels": panels,
    })
}
