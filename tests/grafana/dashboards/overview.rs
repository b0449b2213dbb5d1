//! *Overview*: whether the server is healthy.

use serde_json::Value;

use super::{Panel, Row, dashboard as make, quantile, quantiles, rate, rate_by, ratio, select};

pub(super) fn dashboard() -> Value {
    let live = r#"kind="live""#;
    let within = |window: &str| {
        let of = |name: &str, labels: &str| format!("sum(rate({}[{window}]))", select(name, labels));
        let fast = of("bimip_delivery_latency_seconds_bucket", r#"kind="live",le=~"1|1[.]0""#);
        ratio(&fast, &of("bimip_delivery_latency_seconds_count", live))
    };
    let now = vec![
        Panel::stat("Ready", "none", "0: one of the servers that are scraped takes no writes, or is draining.")
            .query(format!("min({})", select("bimip_ready", "")), "")
            .bad_below(1.0)
            .runbook("the-server-is-not-ready"),
        Panel::stat("Sessions", "short", "Devices that are signed in.")
            .query(format!("sum({})", select("bimip_sessions", "")), ""),
        Panel::stat("Accepted", "mps", "Messages accepted durably, a second.")
            .query(format!("sum({})", rate("bimip_messages_accepted_total", "")), ""),
        Panel::stat("Live delivery, p99", "s", "99 of 100 messages to connected devices are handed over within this.")
            .query(quantile(0.99, "bimip_delivery_latency_seconds", live), "")
            .warn(0.5)
            .bad(1.0)
            .runbook("delivery-is-slow"),
        Panel::stat(
            "Within 1 s, last hour",
            "percentunit",
            "Share of live deliveries within a second; the objective is 99 % over 30 days.",
        )
        .query(within("1h"), "")
        .bad_below(0.99)
        .runbook("delivery-is-slow"),
        Panel::stat("Alerts firing", "none", "bimip's own, of all severities; the Prometheus page /alerts names them.")
            .query(r#"count(ALERTS{alertname=~"Bimip.*",alertstate="firing"}) or vector(0)"#.to_owned(), "")
            .bad(1.0)
            .runbook("alerts"),
    ];
    let delivery = vec![
        Panel::lines(
            "Live delivery latency",
            "s",
            "Accepted to handed to the recipient's lane. It includes the sender's answer to its VersionUpdate, for at \
             most a second, where a client does not pipeline.",
        )
        .queries(quantiles("bimip_delivery_latency_seconds", live))
        .bad(1.0)
        .runbook("delivery-is-slow"),
        Panel::lines(
            "Ping round trip",
            "s",
            "Server's ping to the device's answer: the network, and phones that are asleep.",
        )
        .queries(quantiles("bimip_ping_rtt_seconds", ""))
        .bad(3.0)
        .runbook("pings-are-slow"),
        Panel::heatmap("Live deliveries by latency", "s", "Where they are; two bands are two kinds of device.")
            .query(format!("sum by (le) ({})", rate("bimip_delivery_latency_seconds_bucket", live)), "{{le}}"),
        Panel::lines(
            "Receipt latency",
            "s",
            "Accepted to the recipient's DELIVERED; the time that a device was away counts.",
        )
        .queries(quantiles("bimip_receipt_latency_seconds", "")),
    ];
    let traffic = vec![
        Panel::stack("Sessions by transport", "short", "A rising share of TCP: UDP is dropped on the way.")
            .query(format!("sum by (transport) ({})", select("bimip_sessions", "")), "{{transport}}")
            .runbook("many-devices-fall-back-to-tcp"),
        Panel::lines("Messages", "mps", "Accepted, and handed to a recipient's device (each of them counts).")
            .query(rate_by("content", "bimip_messages_accepted_total", ""), "accepted, {{content}}")
            .query(rate_by("kind", "bimip_delivery_latency_seconds_count", ""), "delivered, {{kind}}"),
        Panel::stack("Errors by code", "ops", "Answers that refused something; unavailable and internal are ours.")
            .query(rate_by("code", "bimip_errors_total", ""), "{{code}}")
            .runbook("the-store-refuses"),
        Panel::stack("Sign-ins by result", "ops", "Renewals of a token in a running session included.")
            .query(rate_by("result", "bimip_session_opens_total", ""), "{{result}}")
            .runbook("sign-ins-fail"),
    ];
    let busy = ratio(&rate("bimip_runtime_busy_seconds_total", ""), &select("bimip_runtime_workers", ""));
    let refusing = r#"queue!="presence_kept""#;
    let full = ratio(&select("bimip_queue_depth", refusing), &select("bimip_queue_depth_max", refusing));
    let saturation = vec![
        Panel::lines(
            "How full",
            "percentunit",
            "What waits or is under way over its bound; at 100 % new ones are refused, or wait (reads).",
        )
        .query(format!("max by (queue) ({full})"), "{{queue}}")
        .bad(0.8)
        .runbook("a-bound-is-near"),
        Panel::lines("How busy", "percentunit", "Share of the time that the server's threads work.")
            .query(busy, "{{instance}}")
            .bad(0.9)
            .runbook("the-processors-are-busy"),
        Panel::lines("Memory", "bytes", "Resident memory of the process.")
            .query(select("process_resident_memory_bytes", ""), "{{instance}}"),
        Panel::lines("Open files", "short", "One for all devices over QUIC, one for each over TCP.")
            .query(select("process_open_fds", ""), "{{instance}}")
            .query(select("process_max_fds", ""), "{{instance}}, at most"),
    ];
    make(
        "bimip-overview",
        "bimip: Overview",
        "Is it well? Latency, traffic, errors, saturation.",
        vec![
            Row("Now", now),
            Row("Latency", delivery),
            Row("Traffic and errors", traffic),
            Row("Saturation", saturation),
        ],
    )
}
