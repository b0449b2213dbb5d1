//! *Mobile network*: the quality of the paths to the devices, and its effects.

use serde_json::Value;

use super::{Panel, Row, dashboard as make, quantile, quantile_by, quantiles, rate, rate_by, ratio, select};

pub(super) fn dashboard() -> Value {
    // A loss is counted when it is detected, possibly after the last packet was sent. Without the clamp the share could
    // exceed 1.
    let at_most_all = |share: String| format!("clamp_max({share}, 1)");
    let lost = |by: &str| {
        let (lost, sent) = ("bimip_path_packets_lost_total", "bimip_path_packets_sent_total");
        at_most_all(ratio(&rate_by(by, lost, ""), &rate_by(by, sent, "")))
    };
    let tcp = format!("sum({})", select("bimip_sessions", r#"transport="tcp""#));
    let fallback = ratio(&tcp, &format!("sum({})", select("bimip_sessions", "")));
    let migrations = |kind: &str| format!("sum({})", rate("bimip_path_migrations_total", kind));
    // One that fails was counted before, when the new address was first seen.
    let failing = ratio(&migrations(r#"kind="failed""#), &migrations(r#"kind!="failed""#));
    let early = |result: &str| format!("sum({})", select("bimip_zero_rtt_total", result));
    let now = vec![
        Panel::stat("Path round trip, p50", "s", "As QUIC and TCP measure it, sampled for each connection.")
            .query(quantile(0.5, "bimip_path_rtt_seconds", ""), "")
            .warn(0.3)
            .bad(1.0),
        Panel::stat("Lost packets", "percentunit", "Of those sent to devices; over TCP those sent again.")
            .query(
                at_most_all(ratio(
                    &format!("sum({})", rate("bimip_path_packets_lost_total", "")),
                    &format!("sum({})", rate("bimip_path_packets_sent_total", "")),
                )),
                "",
            )
            .warn(0.02)
            .bad(0.1),
        Panel::stat("Fallback to TCP", "percentunit", "Sessions over TCP of all.")
            .query(fallback.clone(), "")
            .warn(0.1)
            .bad(0.3)
            .runbook("many-devices-fall-back-to-tcp"),
        Panel::stat("Migrations", "ops", "Connections that went on over another path, a second.")
            .query(migrations(r#"kind!="failed""#), ""),
        Panel::stat("Migrations failing", "percentunit", "New addresses that did not answer.")
            .query(failing, "")
            .warn(0.1)
            .bad(0.2)
            .runbook("migrations-fail"),
        Panel::stat(
            "0-RTT accepted",
            "percentunit",
            "Connections whose early data was taken, of these and the tickets that were not known, since the start.",
        )
        .query(ratio(&early(r#"result="accepted""#), &early("")), ""),
    ];
    let path = vec![
        Panel::lines("Path round trip", "s", "By transport: the median, and the slowest in twenty.")
            .query(quantile_by(0.5, "transport", "bimip_path_rtt_seconds", ""), "{{transport}}, p50")
            .query(quantile_by(0.95, "transport", "bimip_path_rtt_seconds", ""), "{{transport}}, p95"),
        Panel::lines("Ping round trip", "s", "What the application sees; far above the path's: devices asleep.")
            .queries(quantiles("bimip_ping_rtt_seconds", ""))
            .bad(3.0)
            .runbook("pings-are-slow"),
        Panel::lines("Lost packets", "percentunit", "Share of the packets to devices, by when it was noticed.")
            .query(lost("transport"), "{{transport}}")
            .bad(0.1),
        Panel::lines("Packets", "pps", "Sent to devices.")
            .query(rate_by("transport", "bimip_path_packets_sent_total", ""), "{{transport}}"),
    ];
    let moving = vec![
        Panel::stack("Migrations by kind", "ops", "nat_rebinding: another port. address_change: another network.")
            .query(rate_by("kind", "bimip_path_migrations_total", ""), "{{kind}}")
            .runbook("migrations-fail"),
        Panel::stack("0-RTT", "ops", "Connections that came with early data.")
            .query(rate_by("result", "bimip_zero_rtt_total", ""), "{{result}}"),
        Panel::lines("Fallback share", "percentunit", "Sessions over TCP of all.")
            .query(fallback, "TCP")
            .bad(0.3)
            .runbook("many-devices-fall-back-to-tcp"),
        Panel::lines("Handshake", "s", "First packet to established connection.")
            .query(quantile_by(0.5, "transport", "bimip_handshake_seconds", ""), "{{transport}}, p50")
            .query(quantile_by(0.95, "transport", "bimip_handshake_seconds", ""), "{{transport}}, p95"),
    ];
    let sessions = vec![
        Panel::stack("Ends of sessions by reason", "ops", "timed_out and reset are the network's.")
            .query(rate_by("reason", "bimip_session_closes_total", ""), "{{reason}}"),
        Panel::lines(
            "Releases overdue",
            "mps",
            "Messages whose sender did not answer in time: lost answers, or clients that never do.",
        )
        .query(format!("sum({})", rate("bimip_releases_overdue_total", "")), "overdue"),
        Panel::stack("Frames by lane", "ops", "Both directions.")
            .query(rate_by("lane, direction", "bimip_frames_total", ""), "{{lane}}, {{direction}}"),
        Panel::stack("Presence notifications", "ops", "Coalesced ones save the phone's radio.")
            .query(rate_by("result", "bimip_presence_notifications_total", ""), "{{result}}"),
    ];
    make(
        "bimip-mobile-network",
        "bimip: Mobile network",
        "Round trips, loss, changes of network, 0-RTT, fallback.",
        vec![Row("Now", now), Row("Path", path), Row("Moving", moving), Row("Sessions", sessions)],
    )
}
