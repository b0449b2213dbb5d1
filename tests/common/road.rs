//! A proxy between devices and a server on loopback. For UDP it acts as a NAT that can forget its bindings, can drop
//! everything, and records what devices send. TCP it only forwards, on the same port number.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// Longest datagram.
const DATAGRAM_MAX: usize = 64 * 1024;

/// The bit of a packet's first byte that tells packets of the handshake from those behind it (RFC 9000, 17.2).
const LONG_HEADER: u8 = 0x80;

/// The proxy; dropping it stops it.
pub struct Road {
    /// Where devices connect.
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
    sign_ins_lost: bool,
    /// How many datagrams pass behind each handshake, if not all, and how many have.
    behind_handshake: Option<usize>,
    passed: usize,
    strays: Strays,
    /// For each device, the socket whose address the server sees.
    exits: HashMap<SocketAddr, Arc<UdpSocket>>,
    recorded: Vec<(SocketAddr, Vec<u8>)>,
    answer: Option<Answer>,
    answered: usize,
}

/// What somebody on the way says to a datagram, if anything.
type Answer = Arc<dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync>;

/// Which of the devices' datagrams go astray (see [`Road::lead_astray`]).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strays {
    Nothing,
    /// The next datagram, which the server gets from a port that returns nothing.
    Next,
    /// All of them: they are dropped.
    All,
}

impl Road {
    /// Starts a proxy to this server.
    pub async fn to(server: SocketAddr) -> Road {
        let (entrance, listener) = loop {
            let entrance = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free UDP port");
            if let Ok(listener) = TcpListener::bind(entrance.local_addr().expect("a bound socket")).await {
                break (entrance, listener);
            }
        };
        let address = entrance.local_addr().expect("a bound socket");
        let inner = Inner {
            server,
            dark: false,
            sign_ins_lost: false,
            behind_handshake: None,
            passed: 0,
            strays: Strays::Nothing,
            exits: HashMap::new(),
            recorded: Vec::new(),
            answer: None,
            answered: 0,
        };
        let state = Arc::new(State { entrance, inner: Mutex::new(inner) });
        let mut traffic = JoinSet::new();
        traffic.spawn(state.clone().run());
        traffic.spawn(state.clone().run_tcp(listener));
        Road { address, state, _traffic: traffic }
    }

    /// Forwards to another server address from now on.
    pub fn lead_to(&self, server: SocketAddr) {
        self.state.inner.lock().unwrap().server = server;
    }

    /// Drops UDP in both directions while `dark` is true.
    pub fn drop_udp(&self, dark: bool) {
        self.state.inner.lock().unwrap().dark = dark;
    }

    /// While `lost` is true, drops what devices send over QUIC after their part of the handshake: nobody signs in.
    pub fn lose_sign_ins(&self, lost: bool) {
        self.state.inner.lock().unwrap().sign_ins_lost = lost;
    }

    /// Drops UDP in both directions once so many of a device's datagrams have passed behind its handshake, whatever its port:
    /// a box that has found out by then what they are.
    pub fn cut_behind_handshake(&self, after: usize) {
        self.state.inner.lock().unwrap().behind_handshake = Some(after);
    }

    /// Makes the NAT forget its bindings: the next datagram leaves from another port, and answers to the old port are
    /// dropped.
    pub fn forget_bindings(&self) {
        self.state.inner.lock().unwrap().exits.clear();
    }

    /// With `true`, the next UDP datagram reaches the server from another port, through which nothing comes back, and all
    /// later ones are dropped until this is called with `false`. Datagrams from the server to the old port still arrive.
    pub fn lead_astray(&self, astray: bool) {
        self.state.inner.lock().unwrap().strays = if astray { Strays::Next } else { Strays::Nothing };
    }

    /// From now on nothing that devices send over UDP arrives, and somebody on the way answers it.
    pub fn answer(&self, answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) {
        self.state.inner.lock().unwrap().answer = Some(Arc::new(answer));
    }

    /// How often that was done.
    pub fn answered(&self) -> usize {
        self.state.inner.lock().unwrap().answered
    }

    /// The datagrams that devices have sent so far, dropped ones included, each with the device's address.
    pub fn recorded(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.state.inner.lock().unwrap().recorded.clone()
    }
}

impl Inner {
    fn is_cut(&self) -> bool {
        self.behind_handshake.is_some_and(|after| self.passed > after)
    }
}

impl State {
    async fn run(self: Arc<Self>) {
        let mut returns = JoinSet::new();
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            let Ok((length, device)) = self.entrance.recv_from(&mut datagram).await else { continue };
            let answer = self.inner.lock().unwrap().answer.clone();
            if let Some(answer) = answer {
                if let Some(answer) = answer(&datagram[..length]) {
                    let _ = self.entrance.send_to(&answer, device).await;
                    self.inner.lock().unwrap().answered += 1;
                }
                continue;
            }
            let (known, server, strays) = {
                let mut inner = self.inner.lock().unwrap();
                inner.recorded.push((device, datagram[..length].to_vec()));
                let is_behind_handshake = datagram[0] & LONG_HEADER == 0;
                inner.passed = if is_behind_handshake { inner.passed + 1 } else { 0 };
                let is_lost = inner.sign_ins_lost && is_behind_handshake;
                if inner.dark || inner.is_cut() || inner.strays == Strays::All || is_lost {
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
                if inner.dark
                    || inner.is_cut()
                    || !inner.exits.get(&device).is_some_and(|current| Arc::ptr_eq(current, &exit))
                {
                    continue;
                }
            }
            let _ = self.entrance.send_to(&datagram[..length], device).await;
        }
    }
}
