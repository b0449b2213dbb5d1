//! *Store and log*: commits, the logs of users, and the disk.

use serde_json::Value;

use super::{Panel, Row, dashboard as make, quantile, quantiles, rate, rate_by, ratio, select};

pub(super) fn dashboard() -> Value {
    let free = ratio(&select("bimip_disk_free_bytes", ""), &select("bimip_disk_size_bytes", ""));
    let reserve = format!("clamp_max({} / 8, 512 * 1024^2)", select("bimip_disk_size_bytes", ""));
    let passes = format!("sum by (result) (increase({}[1h]))", select("bimip_retention_passes_total", ""));
    let hits = ratio(
        &rate_by("cache", "bimip_cache_requests_total", r#"result="hit""#),
        &rate_by("cache", "bimip_cache_requests_total", ""),
    );
    let writes = r#"queue="store_writes""#;
    let now = vec![
        Panel::stat("Commit, p99", "s", "One durable commit; everything waits for it.")
            .query(quantile(0.99, "bimip_commit_seconds", ""), "")
            .warn(0.1)
            .bad(0.25)
            .runbook("commits-are-slow"),
        Panel::stat("Commits", "ops", "A second.")
            .query(format!("sum({})", rate("bimip_commit_seconds_count", "")), ""),
        Panel::stat("Operations that wait", "short", "For the store's writer, which takes up to 1,024 at once.")
            .query(format!("sum({})", select("bimip_queue_depth", writes)), "")
            .bad(6_500.0)
            .runbook("a-bound-is-near"),
        Panel::stat("Entries behind", "short", "Log entries that connected devices have still to be sent.")
            .query(format!("sum({})", select("bimip_tail_lag_entries", "")), "")
            .bad(20_000.0)
            .runbook("devices-fall-behind"),
        Panel::stat("Store on disk", "bytes", "Files and journal.")
            .query(format!("sum({})", select("bimip_store_disk_bytes", "")), ""),
        Panel::stat("Disk free", "percentunit", "Of the data directory's file system.")
            .query(format!("min({free})"), "")
            .bad_below(0.1)
            .runbook("the-disk-fills"),
    ];
    let commits = vec![
        Panel::lines("Commit time", "s", "The disk's fdatasync, mostly.")
            .queries(quantiles("bimip_commit_seconds", ""))
            .bad(0.25)
            .runbook("commits-are-slow"),
        Panel::heatmap("Commits by time", "s", "Two bands: a disk that stalls now and then.")
            .query(format!("sum by (le) ({})", rate("bimip_commit_seconds_bucket", "")), "{{le}}"),
        Panel::lines(
            "Batch",
            "short",
            "Operations and messages in one commit: grows with load, and is what makes it cheap.",
        )
        .query(
            ratio(
                &format!("sum({})", rate("bimip_commit_batch_operations_sum", "")),
                &format!("sum({})", rate("bimip_commit_batch_operations_count", "")),
            ),
            "operations, mean",
        )
        .query(
            ratio(
                &format!("sum({})", rate("bimip_commit_batch_messages_sum", "")),
                &format!("sum({})", rate("bimip_commit_batch_messages_count", "")),
            ),
            "messages, mean",
        )
        .query(quantile(0.99, "bimip_commit_batch_operations", ""), "operations, p99"),
        Panel::lines("What waits", "short", "Operations for the writer, reads, and messages for their release.")
            .query(
                format!(
                    "sum by (queue) ({})",
                    select("bimip_queue_depth", r#"queue=~"store_writes|store_reads|unreleased""#)
                ),
                "{{queue}}",
            )
            .runbook("a-bound-is-near"),
    ];
    let log = vec![
        Panel::lines("Entries behind", "short", "All connected devices together, and the one furthest behind.")
            .query(format!("sum({})", select("bimip_tail_lag_entries", "")), "all")
            .query(format!("max({})", select("bimip_tail_lag_max_entries", "")), "furthest")
            .bad(20_000.0)
            .runbook("devices-fall-behind"),
        Panel::lines("Devices behind", "short", "Further than the hub remembers: they read the store.")
            .query(format!("sum({})", select("bimip_tail_behind_sessions", "")), "devices")
            .query(format!("sum({})", rate("bimip_tail_reads_total", "")), "reads a second"),
        Panel::lines("Backlog deliveries", "mps", "To devices that had been away or fell behind.").query(
            format!("sum({})", rate("bimip_delivery_latency_seconds_count", r#"kind="backlog""#)),
            "messages a second",
        ),
        Panel::lines("Found in memory", "percentunit", "Of what was looked for; below, it is read from the store.")
            .query(hits, "{{cache}}"),
    ];
    let disk = vec![
        Panel::lines("Store on disk", "bytes", "Grows until the retention takes as much as comes.")
            .query(select("bimip_store_disk_bytes", ""), "{{instance}}")
            .query(select("bimip_store_journal_bytes", ""), "{{instance}}, journal"),
        Panel::lines("Disk free", "bytes", "Below the reserve no new messages are taken. A full disk stops the store.")
            .query(select("bimip_disk_free_bytes", ""), "{{instance}}")
            .query(reserve, "{{instance}}, reserve")
            .runbook("the-disk-fills"),
        Panel::lines("Retention", "ops", "Entries of logs, and messages, deleted a second; passes come once an hour.")
            .query(format!("sum({})", rate("bimip_retention_entries_total", "")), "entries")
            .query(format!("sum({})", rate("bimip_retention_messages_total", "")), "messages"),
        Panel::lines(
            "Refused for the disk, and passes",
            "short",
            "New messages refused at the reserve, a second, and how the retention's passes of the last hour ended.",
        )
        .query(format!("sum({})", rate("bimip_disk_refused_messages_total", "")), "messages refused a second")
        .query(passes, "passes, {{result}}")
        .runbook("the-disk-fills"),
    ];
    make(
        "bimip-store-and-log",
        "bimip: Store and log",
        "Commits, batches, lag, caches, disk.",
        vec![Row("Now", now), Row("Commits", commits), Row("Log", log), Row("Disk", disk)],
    )
}
