//! Two servers behind a load balancer. By the server id in its connection id a phone that moves still reaches its own server
//! (docs/operations.md); by its address it does not.
#![cfg(all(feature = "server", feature = "client"))]
#![allow(clippy::unwrap_used, unreachable_pub)]

mod balancer;
#[path = "../common/mod.rs"]
mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bimip::auth::dev::DevFiles;
use bimip::auth::lb_key;
use bimip::client::{Device, Event, Events, Session, State};
use bimip::config::{Config, LbConfig, ServerId};
use bimip::transport::quic_lb::Layout;
use bimip::wire::{DeviceId, Eid};

use balancer::{Arrival, Balancer};
use common::{TestServer, scratch, within_bound};

const KEY: &str = "8f95f09245765f80256934e50c66207f\n";
const ROUNDS: usize = 4;
/// Pairs of users who talk to each other, one pair at each node.
const PAIRS: [(&str, &str); 2] = [("alice@localhost", "bob@localhost"), ("carol@localhost", "dave@localhost")];

/// Settings that all nodes of a test share.
struct Pool {
    server_ids: [&'static str; 2],
    nonce_bytes: usize,
    encrypted: bool,
    /// Whether every new client must validate its address first (QUIC Retry).
    retry: bool,
}

struct Node {
    server: TestServer,
    id: ServerId,
}

impl Node {
    fn address(&self) -> SocketAddr {
        self.server.quic_address()
    }
}

impl Pool {
    /// Starts the nodes, with one authority and one token key. Also returns the layout of their connection ids.
    async fn start(&self) -> ([Node; 2], Layout) {
        let first = self.node(0, None).await;
        let files = first.server.files();
        let second = self.node(1, Some(&files)).await;
        let lb = &first.server.config().quic.lb;
        let key = lb.key_file.as_deref().map(|path| lb_key(path).unwrap());
        let layout = Layout::new(lb.config_id, first.id.len(), lb.nonce_bytes, key.as_ref()).unwrap();
        ([first, second], layout)
    }

    async fn node(&self, number: usize, files: Option<&DevFiles>) -> Node {
        let id = ServerId::try_from(self.server_ids[number].to_owned()).unwrap();
        let configure = |config: &mut Config| {
            if let Some(files) = files {
                take_over(files, &config.data_dir);
            }
            let key_file = self.encrypted.then(|| config.data_dir.join("lb.key"));
            if let Some(path) = &key_file {
                std::fs::write(path, KEY).unwrap();
            }
            config.server_name = format!("node {id}");
            config.quic.lb = LbConfig { server_id: Some(id), config_id: 3, nonce_bytes: self.nonce_bytes, key_file };
            if self.retry {
                config.quic.handshakes_before_retry = 0;
            }
        };
        Node { server: TestServer::with(configure).await, id }
    }
}

/// Copies another server's authority, certificate and keys.
fn take_over(files: &DevFiles, data_dir: &Path) {
    for folder in [files.ca.parent().unwrap(), files.token_key.parent().unwrap()] {
        let to = data_dir.join(folder.file_name().unwrap());
        std::fs::create_dir_all(&to).unwrap();
        for file in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            // Each server has its own key for stateless resets.
            if file.file_name() != "reset.key" {
                std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
    }
}

fn eid(text: &str) -> Eid {
    Eid::parse(text).unwrap()
}

/// A device that connects to the balancer, and its first session.
struct Phone {
    device: Device,
    events: Events,
    session: Session,
}

impl Phone {
    async fn connect(balancer: &Balancer, node: &Node, user: &str) -> Phone {
        balancer.newcomers_to(node.address());
        let (device, events) = Device::builder()
            .server(balancer.address.to_string())
            .server_name("localhost")
            .roots_pem(node.server.files().ca)
            .identity(eid(user), DeviceId::parse("phone").unwrap())
            .token(node.server.token(user, None))
            // The session has to last, also where an answer takes its time on a busy machine.
            .silence(Duration::from_secs(15))
            .connect()
            .unwrap();
        let session = within_bound("a session", device.connected()).await.unwrap();
        assert_eq!(session.server, format!("node {}", node.id));
        Phone { device, events, session }
    }

    /// Moves the phone to another socket; returns its port.
    async fn moves(&self, known_to: Option<Ipv4Addr>) -> u16 {
        let moved = match known_to {
            Some(address) => self.device.rebind((address, 0).into()).await,
            None => self.device.network_changed().await,
        };
        moved.unwrap().expect("a connection that moved").port()
    }

    /// The next text. Panics if the first session has ended.
    async fn hears(&mut self) -> String {
        loop {
            match within_bound("a message", self.events.next()).await.expect("a device that goes on") {
                Event::Message(message) => return message.text().unwrap().to_owned(),
                Event::Disconnected(reason) => panic!("{} lost its session: {reason}", self.device.eid()),
                _ => {}
            }
        }
    }

    fn is_in_its_first_session(&self) -> bool {
        matches!(&*self.device.state().borrow(), State::Connected(session) if *session == self.session)
    }
}

/// All phones move again and again while they talk. Routing by address would bring each to the wrong node.
async fn phones_that_move_stay_with_their_nodes(pool: Pool) {
    let (nodes, layout) = pool.start().await;
    let balancer = Balancer::by_id(layout, &nodes.each_ref().map(|node| (node.id, node.address()))).await;
    let mut pairs = Vec::new();
    for (node, (one, other)) in nodes.iter().zip(PAIRS) {
        let (one, other) = (Phone::connect(&balancer, node, one).await, Phone::connect(&balancer, node, other).await);
        pairs.push([one, other]);
    }
    for round in 0..ROUNDS {
        for number in 0..2 {
            let (own, wrong) = (&nodes[number], &nodes[1 - number]);
            for (mover, listener) in [(0, 1), (1, 0)] {
                balancer.newcomers_to(wrong.address());
                let phone = &pairs[number][mover];
                let port = phone.moves((round % 2 == 0).then_some(Ipv4Addr::LOCALHOST)).await;
                let text = format!("round {round} from {}", phone.device.eid());
                let to = pairs[number][listener].device.eid().clone();
                within_bound("an answer", phone.device.send_text(&to, text.clone())).await.unwrap();
                assert_eq!(balancer.arrival(port), Some(Arrival { node: own.address(), by_id: true }));
                assert_eq!(pairs[number][listener].hears().await, text);
            }
        }
    }
    for (node, phones) in nodes.iter().zip(&pairs) {
        assert!(phones.iter().all(Phone::is_in_its_first_session));
        let opens = r#"bimip_session_opens_total{transport="quic",result="accepted"}"#;
        assert_eq!(node.server.metric(opens).await, 2.0);
        let retried = node.server.metric("bimip_handshakes_retried_total").await;
        // At least once for each phone: a repeated first packet gets another Retry.
        assert!(if pool.retry { retried >= 2.0 } else { retried == 0.0 }, "{retried}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_phone_that_moves_stays_with_its_node_by_an_id_in_four_passes() {
    let pool = Pool { server_ids: ["00c3", "00c4"], nonce_bytes: 8, encrypted: true, retry: false };
    phones_that_move_stay_with_their_nodes(pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_phone_that_moves_stays_with_its_node_by_an_id_of_one_block_after_a_retry() {
    let pool = Pool { server_ids: ["a1", "a2"], nonce_bytes: 15, encrypted: true, retry: true };
    phones_that_move_stay_with_their_nodes(pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_phone_that_moves_stays_with_its_node_by_a_plain_id_as_long_as_they_get() {
    let pool = Pool {
        server_ids: ["0102030405060708090a0b", "0102030405060708090a0c"],
        nonce_bytes: 8,
        encrypted: false,
        retry: true,
    };
    phones_that_move_stay_with_their_nodes(pool).await;
}

/// The same servers and phones, but the balancer does not read connection ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_its_address_alone_a_phone_that_moves_loses_its_session_to_the_wrong_node() {
    let pool = Pool { server_ids: ["00c3", "00c4"], nonce_bytes: 8, encrypted: true, retry: false };
    let ([own, wrong], _) = pool.start().await;
    let balancer = Balancer::by_address(own.address()).await;
    let (alice, bob) = PAIRS[0];
    let mut alice = Phone::connect(&balancer, &own, alice).await;
    let mut bob = Phone::connect(&balancer, &own, bob).await;
    let dave = Phone::connect(&balancer, &own, PAIRS[1].1).await;
    within_bound("an answer", alice.device.send_text(bob.device.eid(), "before")).await.unwrap();
    assert_eq!(bob.hears().await, "before");

    balancer.newcomers_to(wrong.address());
    let port = alice.moves(Some(Ipv4Addr::LOCALHOST)).await;
    within_bound("an answer", alice.device.send_text(bob.device.eid(), "lost to bob")).await.unwrap();
    assert_eq!(balancer.arrival(port), Some(Arrival { node: wrong.address(), by_id: false }));
    let gone =
        async { while !matches!(alice.events.next().await.expect("a device that goes on"), Event::Disconnected(_)) {} };
    within_bound("the end of the session", gone).await;
    let session = within_bound("another session", alice.device.connected()).await.unwrap();
    assert_eq!(session.server, format!("node {}", wrong.id));
    // Alice's message is on the other node, so bob gets dave's next.
    within_bound("an answer", dave.device.send_text(bob.device.eid(), "from dave")).await.unwrap();
    assert_eq!(bob.hears().await, "from dave");
}

#[cfg(feature = "cli")]
mod restart {
    use bimip::auth::dev::DevFiles;
    use bimip::transport::quic_lb::Layout;
    use bimip::wire::ALPN;
    use common::{Process, client_endpoint, client_tls};
    use quinn::ConnectionError;

    use super::*;

    /// Kills a server and starts it on another address. It must answer the old client's next packet with a stateless reset.
    async fn a_restarted_server_tells_its_old_clients(variables: &[(&str, &str)], layout: Option<(Layout, ServerId)>) {
        let directory = scratch();
        let server = Process::start(directory.path(), variables).await;
        let node = server.door.address;
        let balancer = match layout {
            Some((layout, id)) => Balancer::by_id(layout, &[(id, node)]).await,
            None => Balancer::by_address(node).await,
        };
        let clients = client_endpoint(client_tls(&DevFiles::in_data_dir(directory.path()).ca, ALPN));
        let connection = clients.connect(balancer.address, "localhost").unwrap();
        let connection = within_bound("a handshake", connection).await.unwrap();
        let (mut lane, _) = connection.open_bi().await.unwrap();
        lane.write_all(&[0]).await.unwrap();
        // When HANDSHAKE_DONE has arrived, the handshake is complete on both sides.
        within_bound("a path in use", async {
            while connection.stats().frame_rx.handshake_done == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;

        server.kill().await;
        let server = Process::start(directory.path(), variables).await;
        balancer.node_moved(node, server.door.address);
        lane.write_all(b"are you there?").await.unwrap();
        assert_eq!(within_bound("a reset", connection.closed()).await, ConnectionError::Reset);
        server.kill().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_restarted_server_resets_the_connections_that_carry_its_id() {
        let key = scratch();
        let path = key.path().join("lb.key");
        std::fs::write(&path, KEY).unwrap();
        let variables = [
            ("BIMIP_QUIC__LB__SERVER_ID", "0012"),
            ("BIMIP_QUIC__LB__CONFIG_ID", "1"),
            ("BIMIP_QUIC__LB__KEY_FILE", path.to_str().unwrap()),
        ];
        let layout = Layout::new(1, 2, 8, Some(&lb_key(&path).unwrap())).unwrap();
        let id = ServerId::try_from("0012".to_owned()).unwrap();
        a_restarted_server_tells_its_old_clients(&variables, Some((layout, id))).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_restarted_server_without_an_id_resets_its_connections() {
        a_restarted_server_tells_its_old_clients(&[], None).await;
    }
}
