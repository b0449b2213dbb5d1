//! A road between devices and a server on loopback: for UDP a NAT that can forget, a tunnel that can swallow, and a record
//! of what went by; for TCP just a way through, on the same port number.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// Longest datagram.
const DATAGRAM_MAX: usize = 64 * 1024;

/// The road; it is closed when this is dropped.
pub struct Road {
    /// Where devices find the server.
    pub address: SocketAddr,
    state: Arc<State>,
    _traffic: JoinSet<()>,
}

struct State {
    entrance: UdpSocket,
    inner: Mutex<Inner>,
}

struct Inner {
    server: SocketAddr,
    dark: bool,
    strays: Strays,
    /// Device by device, the public socket that the server sees.
    exits: HashMap<SocketAddr, Arc<UdpSocket>>,
    recorded: Vec<(SocketAddr, Vec<u8>)>,
}

/// What becomes of what a device sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strays {
    Nothing,
    /// The next datagram comes from a place without a way back.
    Next,
    /// And nothing after it comes at all.
    All,
}

impl Road {
    /// To this server.
    pub async fn to(server: SocketAddr) -> Road {
        let (entrance, listener) = loop {
            let entrance = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free UDP port");
            if let Ok(listener) = TcpListener::bind(entrance.local_addr().expect("a bound socket")).await {
                break (entrance, listener);
            }
        };
        let address = entrance.local_addr().expect("a bound socket");
        let inner = Inner { server, dark: false, strays: Strays::Nothing, exits: HashMap::new(), recorded: Vec::new() };
        let state = Arc::new(State { entrance, inner: Mutex::new(inner) });
        let mut traffic = JoinSet::new();
        traffic.spawn(state.clone().run());
        traffic.spawn(state.clone().run_tcp(listener));
        Road { address, state, _traffic: traffic }
    }

    /// The server is elsewhere now.
    pub fn lead_to(&self, server: SocketAddr) {
        self.state.inner.lock().unwrap().server = server;
    }

    /// Whether UDP is swallowed, both ways.
    pub fn drop_udp(&self, dark: bool) {
        self.state.inner.lock().unwrap().dark = dark;
    }

    /// The NAT forgets its bindings: what comes next leaves by another port, and answers to the old one go nowhere.
    pub fn forget_bindings(&self) {
        self.state.inner.lock().unwrap().exits.clear();
    }

    /// The next UDP datagram of a device reaches the server from another port, through which nothing comes back; those
    /// after it are swallowed, until `false`. What the server sends to the old port arrives.
    pub fn lead_astray(&self, astray: bool) {
        self.state.inner.lock().unwrap().strays = if astray { Strays::Next } else { Strays::Nothing };
    }

    /// What devices sent so far, with the address that each sent from.
    pub fn recorded(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.state.inner.lock().unwrap().recorded.clone()
    }
}

impl State {
    async fn run(self: Arc<Self>) {
        let mut returns = JoinSet::new();
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            let Ok((length, device)) = self.entrance.recv_from(&mut datagram).await else { continue };
            let (known, server, strays) = {
                let mut inner = self.inner.lock().unwrap();
                inner.recorded.push((device, datagram[..length].to_vec()));
                if inner.dark || inner.strays == Strays::All {
                    continue;
                }
                let strays = inner.strays == Strays::Next;
                if strays {
                    inner.strays = Strays::All;
                }
                (inner.exits.get(&device).cloned(), inner.server, strays)
            };
            if strays {
                let elsewhere = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free UDP port");
                let _ = elsewhere.send_to(&datagram[..length], server).await;
                continue;
            }
            let exit = match known {
                Some(exit) => exit,
                None => {
                    let exit = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free UDP port");
                    let exit = Arc::new(exit);
                    self.inner.lock().unwrap().exits.insert(device, exit.clone());
                    returns.spawn(self.clone().bring_back(exit.clone(), device));
                    exit
                }
            };
            let _ = exit.send_to(&datagram[..length], server).await;
        }
    }

    async fn run_tcp(self: Arc<Self>, listener: TcpListener) {
        let mut streams = JoinSet::new();
        loop {
            let Ok((mut device, _)) = listener.accept().await else { continue };
            let address = self.inner.lock().unwrap().server;
            streams.spawn(async move {
                let mut server = TcpStream::connect(address).await?;
                tokio::io::copy_bidirectional(&mut device, &mut server).await
            });
        }
    }

    async fn bring_back(self: Arc<Self>, exit: Arc<UdpSocket>, device: SocketAddr) {
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            let Ok((length, _)) = exit.recv_from(&mut datagram).await else { continue };
            {
                let inner = self.inner.lock().unwrap();
                if inner.dark || !inner.exits.get(&device).is_some_and(|current| Arc::ptr_eq(current, &exit)) {
                    continue;
                }
            }
            let _ = self.entrance.send_to(&datagram[..length], device).await;
        }
    }
}
