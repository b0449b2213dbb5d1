//! The retention of a running server.

use crate::common::{TestServer, within_bound};

#[tokio::test(flavor = "multi_thread")]
async fn a_started_server_deletes_what_it_need_not_keep() {
    // Nothing is kept, and there is no pause between two passes: no operator may set these.
    let server = TestServer::with(|config| (config.retention.days, config.retention.interval_minutes) = (0, 0)).await;
    let mut alice = server.session("alice@localhost", "phone").pipelined().open().await;
    alice.post("bob@localhost", "local-1", "hello").await;
    let deleted = async { while server.metric("bimip_retention_entries_total").await < 2.0 {} };
    within_bound("the entries of both users to go", deleted).await;
    assert!(server.metric("bimip_retention_passes_total{result=\"done\"}").await >= 1.0);
}
