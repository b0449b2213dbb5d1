//! The retention of a running server.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use bimip::config::Config;
use bimip::hub::Hub;
use bimip::server::Server;
use bimip::store::{Content, Embedded, NewMessage, Options, Store};
use bimip::wire::{DeviceId, Eid, LocalId};

use crate::common::{metric, scratch, within_bound};

#[tokio::test(flavor = "multi_thread")]
async fn a_started_server_deletes_what_it_need_not_keep() {
    let folder = scratch();
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let data_dir = folder.path().to_owned();
    let mut config = Config { data_dir, listen: any, metrics_listen: any, dev: true, ..Config::default() };
    // No pause between two passes: no operator may set that.
    config.retention.interval_minutes = 0;

    let store = Embedded::open(&folder.path().join("store"), Options::default(), Arc::new(Hub::default())).unwrap();
    let [sender, recipient] = ["alice@localhost", "bob@localhost"].map(|user| Eid::parse(user).unwrap());
    let message = NewMessage {
        sender,
        device: DeviceId::parse("phone").unwrap(),
        recipient,
        local_id: LocalId::parse("local-1").unwrap(),
        content: Content::Text("decades old".to_owned()),
        created_at: 1,
        received_at: 1,
        received: Instant::now(),
        entropy: [7; 10],
    };
    store.accept(message, true).await.unwrap();
    store.close().await;

    let server = Server::start(config).await.unwrap();
    let deleted = async { while metric(server.metrics_address, "bimip_retention_entries_total").await < 2.0 {} };
    within_bound("the entries of both users to go", deleted).await;
    server.shutdown().await;
}
