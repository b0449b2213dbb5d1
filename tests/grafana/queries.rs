//! Every query of every panel is answered by a Prometheus that scrapes a server under load, and so is every rule.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::common::{TestServer, now_s};
use crate::documents::{anchors, runbook_anchor};
use crate::prometheus::{Prometheus, promtool};
use crate::traffic::{Crowd, Place};
use crate::{common, dashboards};

/// Timeout for the answers to all queries.
const BOUND: Duration = Duration::from_secs(180);

/// A query as Grafana would send it, and its place.
#[derive(Clone, Debug)]
pub struct Query {
    /// Dashboard and panel.
    pub of: String,
    /// The expression without variables.
    pub expr: String,
}

/// Replaces the variables as Grafana does when all jobs and instances are selected. `window` replaces the rate interval.
pub fn without_variables(expr: &str, window: &str) -> String {
    let expr = expr.replace("$__rate_interval", window).replace("$__interval", window);
    let expr = expr.replace("$job", ".*").replace("$instance", ".*");
    assert!(!expr.contains('$'), "a variable that Grafana does not know: {expr}");
    expr
}

/// All panels of a dashboard except the rows.
pub fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

/// File name and content of each dashboard in `grafana/dashboards`.
pub fn written() -> Vec<(&'static str, Value)> {
    let read = |name: &str| std::fs::read_to_string(crate::prometheus::grafana().join("dashboards").join(name));
    let names = dashboards::all().into_iter().map(|(name, _)| name);
    names.map(|name| (name, serde_json::from_str(&read(name).unwrap()).unwrap())).collect()
}

fn queries_of_panels() -> Vec<Query> {
    let mut queries = Vec::new();
    for (file, dashboard) in written() {
        for panel in panels(&dashboard) {
            for target in panel["targets"].as_array().unwrap() {
                let of = format!("{file}, {}", panel["title"].as_str().unwrap());
                queries.push(Query { of, expr: without_variables(target["expr"].as_str().unwrap(), "10s") });
            }
        }
    }
    queries
}

/// Rules as Prometheus has loaded them.
async fn rules(prometheus: &Prometheus) -> Vec<Value> {
    let data = prometheus.get("/api/v1/rules").await.unwrap();
    let groups = data["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_and_every_rule_gets_an_answer_from_a_server_under_load() {
    let server = TestServer::with(|config| config.session.ping_interval_ms = 1000).await;
    let prometheus = Prometheus::start(Command::new("prometheus"), server.metrics_address());
    let place = Place { address: server.quic_address().to_string(), files: server.files() };
    let mut crowd = Crowd::sign_in(place).await;

    let recorded = rules(&prometheus).await.into_iter().filter(|rule| rule["type"] == "recording");
    let recorded = recorded.map(|rule| rule["name"].as_str().unwrap().to_owned());
    let mut waiting = queries_of_panels();
    assert!(waiting.len() > 60, "panels are where this test looks for them");
    waiting.extend(recorded.map(|expr| Query { of: "a recording rule".to_owned(), expr }));
    let all = waiting.clone();

    let from = now_s() as f64;
    let begun = tokio::time::Instant::now();
    while !waiting.is_empty() {
        assert!(begun.elapsed() < BOUND, "never answered with a number:\n{}", list(&waiting));
        crowd.live().await;
        let mut unanswered = Vec::new();
        for query in waiting {
            let answer = prometheus.range(&query.expr, from, now_s() as f64, 1.0).await;
            let answer = answer.unwrap_or_else(|error| panic!("{}: {error}\n{}", query.of, query.expr));
            if !answer.iter().any(|series| series.says_something()) {
                unanswered.push(query);
            }
        }
        waiting = unanswered;
    }
    // A panel of kind stat shows the present value.
    for query in all {
        assert!(!prometheus.now(&query.expr).await.unwrap().is_empty(), "nothing now: {query:?}");
    }
    for (file, dashboard) in written() {
        for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
            let expr = without_variables(annotation["expr"].as_str().unwrap(), "10s");
            prometheus.now(&expr).await.unwrap_or_else(|error| panic!("{file}, annotation: {error}"));
        }
    }
    let jobs = prometheus.get("/api/v1/label/job/values?match[]=bimip_build_info").await.unwrap();
    assert_eq!(jobs, serde_json::json!(["bimip"]), "what the dashboards' variable offers");

    let anchors = anchors();
    for rule in rules(&prometheus).await {
        assert_eq!(rule["health"], "ok", "{rule}");
        if rule["type"] == "alerting" {
            assert!(rule["duration"].as_f64().unwrap() > 0.0, "for: {rule}");
            assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{rule}");
            assert!(rule["annotations"]["summary"].is_string(), "{rule}");
            let runbook = rule["annotations"]["runbook"].as_str().unwrap();
            assert!(anchors.contains(runbook_anchor(runbook)), "{runbook}: no such paragraph");
        }
    }
    let page = server.get("/metrics").await;
    let output = promtool(&["check", "metrics"], &page);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "promtool check metrics: {said}");
    common::within_bound("the server to stop", server.shutdown()).await;
}

fn list(queries: &[Query]) -> String {
    queries.iter().map(|query| format!("{}: {}\n", query.of, query.expr)).collect()
}
