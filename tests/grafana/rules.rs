//! The rules checked with `promtool`: they are valid, and each alert fires when it should and only then.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::common::scratch;
use crate::prometheus::{grafana, promtool};
use crate::queries::{panels, without_variables, written};

fn passes(arguments: &[&str]) {
    let output = promtool(arguments, "");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {}:\n{out}{err}", arguments.join(" "));
}

#[test]
fn promtool_finds_nothing_wrong_with_configuration_and_rules() {
    passes(&["check", "config", "prometheus.yml"]);
    passes(&["check", "rules", "rules/recording.yml", "rules/alerts.yml"]);
}

/// What promtool computes for an expression, as a dashboard sends it, from `series` (name and values) with a scrape every 15 s.
fn computes(expr: &str, window: &str, at: &str, series: &[(&str, &str)], samples: &Value) {
    let series = series.iter().map(|(series, values)| json!({ "series": series, "values": values }));
    let test = json!({
        "interval": "15s",
        "input_series": series.collect::<Vec<_>>(),
        "promql_expr_test": [{ "expr": without_variables(expr, window), "eval_time": at, "exp_samples": samples }],
    });
    let folder = scratch();
    let file = folder.path().join("test.yml");
    std::fs::write(&file, json!({ "tests": [test] }).to_string()).unwrap();
    passes(&["test", "rules", file.to_str().unwrap()]);
}

/// The expression of a panel of the overview.
fn on_the_overview(title: &str) -> String {
    let (_, overview) = written().into_iter().find(|(name, _)| *name == "overview.json").unwrap();
    let panel = panels(&overview).find(|panel| panel["title"] == title).unwrap();
    panel["targets"][0]["expr"].as_str().unwrap().to_owned()
}

#[test]
fn the_overview_is_not_ready_where_one_of_two_servers_is_not() {
    let servers =
        |b| [(r#"bimip_ready{job="bimip",instance="a"}"#, "1x4"), (r#"bimip_ready{job="bimip",instance="b"}"#, b)];
    let ready = on_the_overview("Ready");
    computes(&ready, "1m", "1m", &servers("0x4"), &json!([{ "value": 0 }]));
    computes(&ready, "1m", "1m", &servers("1x4"), &json!([{ "value": 1 }]));
}

#[test]
fn the_overview_counts_alerts_of_bimip_alone() {
    let firing = |name: &str| format!(r#"ALERTS{{alertname="{name}",alertstate="firing",instance="a"}}"#);
    let (own, foreign) = (firing("BimipDown"), firing("NodeDown"));
    let counted = on_the_overview("Alerts firing");
    computes(&counted, "1m", "1m", &[(&own, "1x4"), (&foreign, "1x4")], &json!([{ "value": 1 }]));
    computes(&counted, "1m", "1m", &[(&foreign, "1x4")], &json!([{ "value": 0 }]));
}

#[test]
fn a_start_between_two_steps_of_a_dashboard_is_marked() {
    let expr = written()[0].1["annotations"]["list"][0]["expr"].as_str().unwrap().to_owned();
    // In steps of a minute Grafana's interval is 60 s, and its rate interval a scrape more. Scrapes at 45 s and 60 s saw the
    // process before and after its start, and a step ends between them.
    let window = if expr.contains("$__rate_interval") { "75s" } else { "60s" };
    let started = r#"{job="bimip",instance="a"}"#;
    let series = format!("process_start_time_seconds{started}");
    computes(&expr, window, "50s", &[(&series, "100x3 150x8")], &json!([]));
    computes(&expr, window, "110s", &[(&series, "100x3 150x8")], &json!([{ "labels": started, "value": 1 }]));
}

/// Prometheus does not start if the pattern finds a file that holds no rules, such as tests of rules.
#[test]
fn the_pattern_that_the_operations_guide_gives_finds_rules_alone() {
    let guide = std::fs::read_to_string(grafana().with_file_name("docs").join("operations.md")).unwrap();
    assert!(guide.contains("give Prometheus `grafana/rules/*.yml`"), "the guide has another pattern than this test");
    let configuration = scratch();
    let file = configuration.path().join("prometheus.yml");
    std::fs::write(&file, format!("rule_files: [\"{}/rules/*.yml\"]\n", grafana().display())).unwrap();
    passes(&["check", "config", file.to_str().unwrap()]);
}

#[test]
fn each_alert_fires_when_it_should_and_not_when_it_should_not() {
    passes(&["test", "rules", "alerts_test.yml"]);
    let read = |name: &str| std::fs::read_to_string(grafana().join(name)).unwrap();
    let (alerts, tests) = (read("rules/alerts.yml"), read("alerts_test.yml"));
    let named: BTreeSet<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(named.len() > 10, "alerts are where this test looks for them");
    // A case that expects no alert is written on one line. Otherwise the alert's name is on a line of its own.
    let one_line = |name: &str| format!("{{ alertname: {name}, ");
    let quiet =
        |name: &str| tests.lines().any(|line| line.contains(&one_line(name)) && line.contains("exp_alerts: [] }"));
    let fires = |name: &str| {
        let mut cases = tests.split("- alertname: ").skip(1).filter(|case| case.lines().next() == Some(name));
        cases.any(|case| case.contains("exp_labels:"))
    };
    for name in named {
        assert!(name.starts_with("Bimip"), "{name}: the overview counts alerts by their name's beginning");
        assert!(fires(name), "{name}: no test in which it fires");
        assert!(quiet(name), "{name}: no test in which it does not fire");
    }
}
