//! A server that may open few files.

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::common::{Process, Transport, metric, scratch, within_bound};

#[tokio::test(flavor = "multi_thread")]
async fn devices_over_tcp_leave_the_store_its_files() {
    const OPEN_FILES: usize = 160;
    let folder = scratch();
    let server = Process::with_open_files(folder.path(), OPEN_FILES).await;
    let mut devices = Vec::new();
    for number in 0..OPEN_FILES / 4 {
        devices.push(server.door.session(&format!("u{number}@localhost"), "phone").over(Transport::Tcp).open().await);
    }
    assert_eq!(metric(server.pages, "bimip_queue_depth_max{queue=\"connections_tcp\"}").await, devices.len() as f64);
    let mut refused = TcpStream::connect(server.door.address).await.unwrap();
    within_bound("the end of a refused connection", refused.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(metric(server.pages, "bimip_handshakes_refused_total{reason=\"load\"}").await, 1.0);
    // Over QUIC there is room, those over TCP go on, and one that leaves makes room.
    server.door.session("quic@localhost", "phone").over(Transport::Quic).open().await.ping().await;
    for device in &mut devices {
        device.ping().await;
    }
    devices.pop().unwrap().leave();
    let freed = async {
        while metric(server.pages, "bimip_queue_depth{queue=\"connections_tcp\"}").await as usize > devices.len() {}
    };
    within_bound("the place of one that left", freed).await;
    server.door.session("last@localhost", "phone").over(Transport::Tcp).open().await.ping().await;
    let open = metric(server.pages, "process_open_fds").await;
    assert!(open < OPEN_FILES as f64, "{open}");
}
