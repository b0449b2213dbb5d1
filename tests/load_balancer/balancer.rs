//! A small UDP load balancer on loopback. It routes by the server id in the connection id, or by the client's address alone.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use bimip::config::ServerId;
use bimip::transport::quic_lb::Layout;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// At least the length of any datagram.
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// Where the first datagram from a client's address went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub node: SocketAddr,
    /// Whether its connection id decided; otherwise it was the rule for newcomers.
    pub by_id: bool,
}

/// The balancer; dropping it stops it.
pub struct Balancer {
    /// Where clients connect.
    pub address: SocketAddr,
    table: Arc<Mutex<Table>>,
    _tasks: JoinSet<()>,
}

struct Table {
    /// Layout of the connection ids; `None`: route by addresses alone.
    layout: Option<Layout>,
    nodes: HashMap<ServerId, SocketAddr>,
    newcomers: SocketAddr,
    /// Client address to node, for datagrams without a known server id.
    flows: HashMap<SocketAddr, SocketAddr>,
    arrivals: HashMap<SocketAddr, Arrival>,
}

impl Balancer {
    /// A balancer that reads connection ids. Newcomers go to the first node.
    pub async fn by_id(layout: Layout, nodes: &[(ServerId, SocketAddr)]) -> Balancer {
        Balancer::start(Some(layout), nodes.iter().copied().collect(), nodes[0].1).await
    }

    /// A balancer that routes by address alone.
    pub async fn by_address(newcomers: SocketAddr) -> Balancer {
        Balancer::start(None, HashMap::new(), newcomers).await
    }

    async fn start(layout: Option<Layout>, nodes: HashMap<ServerId, SocketAddr>, newcomers: SocketAddr) -> Balancer {
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free UDP port");
        let address = front.local_addr().expect("it is bound");
        let table = Table { layout, nodes, newcomers, flows: HashMap::new(), arrivals: HashMap::new() };
        let table = Arc::new(Mutex::new(table));
        let mut tasks = JoinSet::new();
        tasks.spawn(forward(Arc::new(front), table.clone()));
        Balancer { address, table, _tasks: tasks }
    }

    /// Sends datagrams from unknown addresses without a known server id to this node from now on.
    pub fn newcomers_to(&self, node: SocketAddr) {
        self.table().newcomers = node;
    }

    /// Replaces a node's address everywhere.
    pub fn node_moved(&self, from: SocketAddr, to: SocketAddr) {
        let mut table = self.table();
        let Table { nodes, flows, newcomers, .. } = &mut *table;
        nodes
            .values_mut()
            .chain(flows.values_mut())
            .chain([newcomers])
            .filter(|node| **node == from)
            .for_each(|n| *n = to);
    }

    /// Where the first datagram from this client port went; `None`: there was none yet.
    pub fn arrival(&self, port: u16) -> Option<Arrival> {
        self.table().arrivals.iter().find(|(client, _)| client.port() == port).map(|(_, arrival)| *arrival)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nobody panics with it")
    }
}

impl Table {
    fn node_for(&mut self, client: SocketAddr, datagram: &[u8]) -> SocketAddr {
        let id = self.layout.as_ref().and_then(|layout| layout.server_id_of_datagram(datagram));
        let known = id.and_then(|id| self.nodes.get(&id)).copied();
        let node = known.unwrap_or_else(|| *self.flows.entry(client).or_insert(self.newcomers));
        self.arrivals.entry(client).or_insert(Arrival { node, by_id: known.is_some() });
        node
    }
}

/// Forwards datagrams to the nodes. Uses one port for each client's address, so that a node can tell clients apart.
async fn forward(front: Arc<UdpSocket>, table: Arc<Mutex<Table>>) {
    let mut back: HashMap<(SocketAddr, SocketAddr), Arc<UdpSocket>> = HashMap::new();
    let mut returning = JoinSet::new();
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // The socket reports a client that is gone as an error of the next call.
        let Ok((length, client)) = front.recv_from(&mut datagram).await else { continue };
        let node = table.lock().expect("nobody panics with it").node_for(client, &datagram[..length]);
        let socket = match back.get(&(client, node)) {
            Some(socket) => socket.clone(),
            None => {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free UDP port");
                socket.connect(node).await.expect("an address on loopback");
                let socket = Arc::new(socket);
                back.insert((client, node), socket.clone());
                returning.spawn(send_back(socket.clone(), front.clone(), client));
                socket
            }
        };
        // A datagram that cannot be sent is lost, as on any network.
        let _ = socket.send(&datagram[..length]).await;
    }
}

async fn send_back(socket: Arc<UdpSocket>, front: Arc<UdpSocket>, client: SocketAddr) {
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        if let Ok(length) = socket.recv(&mut datagram).await {
            let _ = front.send_to(&datagram[..length], client).await;
        }
    }
}
