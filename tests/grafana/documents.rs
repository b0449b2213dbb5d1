//! The dashboard files are what the code makes, describe what they show, and name only metrics and links that exist.

use std::collections::{BTreeMap, BTreeSet};

use bimip::observe::{DECLARED, MetricType};

use crate::dashboards;
use crate::prometheus::grafana;
use crate::queries::{panels, written};

/// Anchors of the headings in docs/operations.md.
pub fn anchors() -> BTreeSet<String> {
    let file = grafana().with_file_name("docs").join("operations.md");
    let text = std::fs::read_to_string(file).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: char| c.is_alphanumeric() || c == ' ' || c == '-' || c == '_';
    headings
        .map(|heading| heading.to_lowercase().chars().filter(|c| kept(*c)).collect::<String>().replace(' ', "-"))
        .collect()
}

/// The part of a link after the file.
pub fn runbook_anchor(link: &str) -> &str {
    link.strip_prefix("docs/operations.md#").unwrap_or_else(|| panic!("{link}: not in docs/operations.md"))
}

fn text_of(dashboard: &serde_json::Value) -> String {
    serde_json::to_string_pretty(dashboard).unwrap() + "\n"
}

#[test]
#[ignore = "writes grafana/dashboards"]
fn write_the_dashboards() {
    let folder = grafana().join("dashboards");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, dashboard) in dashboards::all() {
        std::fs::write(folder.join(name), text_of(&dashboard)).unwrap();
    }
}

#[test]
fn the_dashboards_that_are_provisioned_are_those_that_the_code_makes() {
    for (name, made) in dashboards::all() {
        let file = std::fs::read_to_string(grafana().join("dashboards").join(name)).unwrap_or_default();
        assert!(
            file == text_of(&made),
            "grafana/dashboards/{name} is not what tests/grafana/dashboards makes: run \
             `cargo test --test grafana -- --ignored write_the_dashboards`"
        );
    }
    let files = std::fs::read_dir(grafana().join("dashboards")).unwrap().count();
    assert_eq!(files, dashboards::all().len(), "a dashboard that nothing makes");
}

#[test]
fn every_panel_is_described_has_a_unit_and_follows_the_variables() {
    let anchors = anchors();
    let mut uids = BTreeSet::new();
    for (file, dashboard) in written() {
        assert!(uids.insert(dashboard["uid"].to_string()), "{file}: another one has its uid");
        let mut places = BTreeMap::new();
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().unwrap();
            assert!(panel["description"].as_str().unwrap().ends_with('.'), "{file}, {title}: what does it show?");
            assert!(
                !panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap().is_empty(),
                "{file}, {title}: in what?"
            );
            for link in panel["links"].as_array().unwrap() {
                let anchor = link["url"].as_str().unwrap().strip_prefix("${runbook}#").unwrap();
                assert!(anchors.contains(anchor), "{file}, {title}: docs/operations.md has no paragraph {anchor}");
            }
            for target in panel["targets"].as_array().unwrap() {
                let expr = target["expr"].as_str().unwrap();
                let follows = expr.contains("job=~\"$job\"") && expr.contains("instance=~\"$instance\"");
                assert!(follows || expr.contains("ALERTS{"), "{file}, {title}: {expr}");
            }
            let place = &panel["gridPos"];
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|name| place[name].as_u64().unwrap());
            for (x, y) in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(x < 24, "{file}, {title}: wider than the page");
                assert_eq!(places.insert((x, y), title), None, "{file}, {title}: lies over another panel");
            }
        }
    }
}

/// The selectors `name{label="value",…}` of an expression: each name with the content of its braces.
fn selectors(expr: &str) -> Vec<(&str, &str)> {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    for prefix in ["bimip_", "process_"] {
        for (at, _) in expr.match_indices(prefix) {
            if expr[..at].chars().next_back().is_some_and(part_of_name) {
                continue;
            }
            let rest = &expr[at..];
            let end = rest.find(|c| !part_of_name(c)).unwrap_or(rest.len());
            let labels = rest[end..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
            found.push((&rest[..end], labels.map_or("", |(labels, _)| labels)));
        }
    }
    found
}

/// What is wrong with a selector, compared with the declared metrics; `None`: nothing.
fn wrong(name: &str, labels: &str) -> Option<String> {
    let suffixes = ["", "_bucket", "_count", "_sum"];
    let declared = DECLARED.iter().find(|declared| {
        let histogram = declared.kind == MetricType::Histogram;
        let mut known = suffixes.iter().filter(|suffix| histogram != suffix.is_empty());
        known.any(|suffix| name.strip_suffix(suffix) == Some(declared.name))
    });
    let Some(declared) = declared else { return Some(format!("{name} is not declared")) };
    let series = (declared.series)();
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (label, value) = label.split_at(label.find(['=', '!']).expect("a matcher"));
        let value = value.trim_start_matches(['=', '!', '~']).trim_matches('"');
        if ["job", "instance", "le"].contains(&label) {
            continue;
        }
        for value in value.split('|') {
            if !series.iter().flatten().any(|known| *known == (label, value)) {
                return Some(format!("{name} has no {label}=\"{value}\""));
            }
        }
    }
    None
}

#[test]
fn dashboards_and_rules_select_only_series_that_are_declared() {
    let mut expressions = Vec::new();
    for (file, dashboard) in written() {
        for target in panels(&dashboard).flat_map(|panel| panel["targets"].as_array().unwrap()) {
            expressions.push((file, target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for file in ["rules/recording.yml", "rules/alerts.yml"] {
        let text = std::fs::read_to_string(grafana().join(file)).unwrap();
        // The name of a recording rule contains a metric's name but does not select that metric.
        let code = text.lines().filter(|line| !line.trim_start().starts_with("- record:") && !line.contains("- name:"));
        let code = code.filter(|line| !line.contains("runbook:")).collect::<Vec<_>>().join("\n");
        expressions.push((file, code));
    }
    let mut checked = 0;
    for (file, expr) in &expressions {
        for (name, labels) in selectors(expr) {
            checked += 1;
            assert_eq!(wrong(name, labels), None, "{file}: {expr}");
        }
    }
    assert!(checked > 100, "selectors are where this test looks for them");
}

#[test]
fn these_checks_would_see_a_metric_or_a_label_that_does_not_exist() {
    let expr = "sum(rate(bimip_sessions_total{a=\"b\"}[1m])) / job:bimip_x:y + bimip_sessions{transport=~\"quic|udp\"}";
    let found = selectors(expr);
    assert_eq!(found, [("bimip_sessions_total", "a=\"b\""), ("bimip_sessions", "transport=~\"quic|udp\"")]);
    assert!(found.iter().all(|(name, labels)| wrong(name, labels).is_some()));
    assert!(wrong("bimip_commit_seconds", "").is_some(), "a histogram has no series of its own name");
    assert_eq!(wrong("bimip_commit_seconds_bucket", "le=\"1\""), None);
}

#[test]
fn every_metric_is_explained_in_the_operations_guide() {
    let text = std::fs::read_to_string(grafana().with_file_name("docs").join("operations.md")).unwrap();
    for metric in DECLARED {
        assert!(text.contains(&format!("`{}`", metric.name)), "docs/operations.md does not explain {}", metric.name);
    }
}
