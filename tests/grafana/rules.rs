//! The rules checked with `promtool`: they are valid, and each alert fires when it should and only then.

use std::collections::BTreeSet;

use crate::common::scratch;
use crate::prometheus::{grafana, promtool};

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
        assert!(fires(name), "{name}: no test in which it fires");
        assert!(quiet(name), "{name}: no test in which it does not fire");
    }
}
