//! *Abuse and auth*: refused sign-ins and requests, and the reasons.

use serde_json::Value;

use super::{Panel, Row, dashboard as make, rate, rate_by, ratio, select};

pub(super) fn dashboard() -> Value {
    let refused = r#"result!~"accepted|renewed""#;
    let total = |name: &str, labels: &str| format!("sum({})", rate(name, labels));
    let left = format!("{} - time()", select("bimip_certificate_expires_timestamp_seconds", ""));
    let now = vec![
        Panel::stat("Sign-ins refused", "percentunit", "Of all, renewals included.")
            .query(ratio(&total("bimip_session_opens_total", refused), &total("bimip_session_opens_total", "")), "")
            .warn(0.1)
            .bad(0.3)
            .runbook("sign-ins-fail"),
        Panel::stat("Bad tokens", "ops", "Expired, of an unknown key, or for somebody else; a second.")
            .query(total("bimip_session_opens_total", r#"result="bad_token""#), "")
            .runbook("sign-ins-fail"),
        Panel::stat("Rate limited", "ops", "Refusals for being too fast or too many, a second.")
            .query(total("bimip_rate_limited_total", ""), ""),
        Panel::stat("Closed for abuse", "ops", "Sessions that went on after being told to wait.")
            .query(total("bimip_session_closes_total", r#"reason="abuse""#), ""),
        Panel::stat("Connections refused", "ops", "Before a handshake, for load or for their address.")
            .query(total("bimip_handshakes_refused_total", ""), "")
            .runbook("connections-are-refused"),
        Panel::stat("Certificate runs out in", "s", "The one that runs out first.")
            .query(format!("min({left})"), "")
            .bad_below(14.0 * 86_400.0)
            .runbook("the-certificate-runs-out"),
    ];
    let sign_in = vec![
        Panel::stack("Sign-ins refused by reason", "ops", "late: scanners. too_many_devices: made-up device ids.")
            .query(rate_by("result", "bimip_session_opens_total", refused), "{{result}}")
            .runbook("sign-ins-fail"),
        Panel::stack("Sign-ins accepted", "ops", "By transport.")
            .query(rate_by("transport", "bimip_session_opens_total", r#"result="accepted""#), "{{transport}}"),
        Panel::stack(
            "Sessions ended by us",
            "ops",
            "replaced: two installations share a device id, or phones that reconnect.",
        )
        .query(
            rate_by(
                "reason",
                "bimip_session_closes_total",
                r#"reason=~"protocol_violation|unauthenticated|revoked|replaced|abuse|internal""#,
            ),
            "{{reason}}",
        ),
        Panel::lines("Certificate", "s", "Time that is left.")
            .query(left, "{{instance}}")
            .runbook("the-certificate-runs-out"),
    ];
    let pressure = vec![
        Panel::stack(
            "Rate limited by limit",
            "ops",
            "frames, awareness, pings: one session. messages: a user. connections: an address. sign_ins: any of these.",
        )
        .query(rate_by("limit", "bimip_rate_limited_total", ""), "{{limit}}"),
        Panel::stack("Errors by code and payload", "ops", "The ten most frequent: bugs of clients show here first.")
            .query(format!("topk(10, {})", rate_by("code, payload", "bimip_errors_total", "")), "{{code}} {{payload}}"),
        Panel::lines(
            "Handshakes",
            "ops",
            "Refused, ended for a newcomer's sake, told to prove their address, and those that failed.",
        )
        .query(rate_by("transport", "bimip_handshakes_failed_total", ""), "failed, {{transport}}")
        .query(rate_by("reason", "bimip_handshakes_refused_total", ""), "refused, {{reason}}")
        .query(total("bimip_handshakes_evicted_total", ""), "evicted")
        .query(total("bimip_handshakes_retried_total", ""), "retried")
        .runbook("handshakes-fail"),
        Panel::lines("Connections and handshakes", "short", "Under way now.")
            .query(
                format!(
                    "sum by (queue) ({})",
                    select("bimip_queue_depth", r#"queue=~"connections|handshakes_quic|handshakes_tcp""#)
                ),
                "{{queue}}",
            )
            .runbook("a-bound-is-near"),
    ];
    make(
        "bimip-abuse-and-auth",
        "bimip: Abuse and auth",
        "Sign-ins, refusals, limits, the certificate.",
        vec![Row("Now", now), Row("Signing in", sign_in), Row("Pressure", pressure)],
    )
}
