//! The emulated network: the kernel's TCP and UDP cross it, and black-outs, blocks, NATs and handovers have their effects.
#![cfg(all(target_os = "linux", feature = "link"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use bimip::link::{
    Conditions, Control, Counters, Error, Loss, Namespace, Network, Path, Plan, Profile, Protocol, Rate, Tally, Way,
    check,
};
use common::link_is_possible;
use tokio::net::UdpSocket as AsyncUdpSocket;

/// Timeout of every wait. It only ends a test that has failed.
const WITHIN: Duration = Duration::from_secs(30);
/// Interval between two attempts at something that may not work yet.
const TRY_EVERY: Duration = Duration::from_millis(5);

/// Conditions with a short delay, because tests wait for the packets.
fn quick() -> Conditions {
    Conditions::delayed(Duration::from_millis(2))
}

fn start(conditions: Conditions, seed: u64) -> Network {
    let profile = Profile::both(conditions);
    Network::start(Plan { wifi: profile, lte: profile, seed }).unwrap()
}

/// A network. Where none can be made, reports that and returns `None`.
fn network() -> Option<Network> {
    link_is_possible().then(|| start(quick(), 1))
}

fn udp(namespace: &Namespace, address: IpAddr) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(WITHIN)).unwrap();
    socket
}

/// A socket bound to no address: the route decides its source address.
fn any(namespace: &Namespace) -> UdpSocket {
    udp(namespace, IpAddr::from([0, 0, 0, 0]))
}

/// Sends a datagram to the server. Returns the source address that the server saw.
fn seen_from(phone: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    phone.send_to(b"who am I?", server.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"who am I?");
    from
}

/// A TCP connection: the phone's end, the server's end, and the client's address as the server sees it.
fn connect(net: &Network, listener: &TcpListener) -> (TcpStream, TcpStream, SocketAddr) {
    let address = listener.local_addr().unwrap();
    let phone = net.phone().run(|| TcpStream::connect_timeout(&address, WITHIN)).unwrap().unwrap();
    let (server, from) = listener.accept().unwrap();
    for end in [&phone, &server] {
        end.set_read_timeout(Some(WITHIN)).unwrap();
    }
    (phone, server, from)
}

fn listen(net: &Network) -> TcpListener {
    let address = (net.server_address(), 0);
    net.server().run(|| TcpListener::bind(address)).unwrap().unwrap()
}

/// Polls the counters until `says` holds, and returns them.
fn until(control: &Control, says: impl Fn(&Counters) -> bool) -> Counters {
    let begin = Instant::now();
    loop {
        let counters = control.counters().unwrap();
        if says(&counters) {
            return counters;
        }
        assert!(begin.elapsed() < WITHIN, "still {counters:#?}");
        std::thread::sleep(TRY_EVERY);
    }
}

fn settled(control: &Control) -> Counters {
    until(control, |counters| counters.total().in_flight().packets == 0)
}

fn of_udp(counters: &Counters, path: Path, way: Way) -> Tally {
    counters.of(path, way, Protocol::Udp)
}

#[test]
fn tcp_carries_a_megabyte_each_way_and_every_packet_is_accounted_for() {
    let Some(net) = network() else { return };
    let listener = listen(&net);
    let (phone, server, from) = connect(&net, &listener);
    assert_eq!(from.ip(), net.public_address(Path::Wifi));
    assert_eq!(phone.local_addr().unwrap().ip(), net.phone_address(Path::Wifi));
    let data: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    for (mut from, mut to) in [(&phone, &server), (&server, &phone)] {
        std::thread::scope(|scope| {
            scope.spawn(|| from.write_all(&data).unwrap());
            let mut read = vec![0; data.len()];
            to.read_exact(&mut read).unwrap();
            assert!(read == data, "what came is what was sent");
        });
    }
    let counters = settled(net.control());
    for way in Way::BOTH {
        let tally = counters.of(Path::Wifi, way, Protocol::Tcp);
        assert!(tally.delivered.bytes > 1_000_000 && tally.delivered.packets > 600, "{tally:?}");
        assert_eq!(tally.delivered, tally.offered);
    }
    assert_eq!(counters.protocol(Protocol::Udp), Tally::default());
    assert_eq!((counters.not_carried.packets, net.missed().unwrap()), (0, 0));
}

#[test]
fn datagrams_go_and_come_back_on_runtimes_of_both_sides() {
    let Some(net) = network() else { return };
    let (phone, server) = (net.phone().runtime(1).unwrap(), net.server().runtime(2).unwrap());
    let address = net.server_address();
    let (tell, told) = std::sync::mpsc::channel();
    let echo = server.spawn(async move {
        let socket = AsyncUdpSocket::bind((address, 0)).await.unwrap();
        tell.send(socket.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            socket.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    let to = told.recv_timeout(WITHIN).unwrap();
    phone.block_on(async {
        let socket = AsyncUdpSocket::bind("0.0.0.0:0").await.unwrap();
        let mut buffer = [0; 1500];
        for number in 0..20u8 {
            socket.send_to(&[number; 1472], to).await.unwrap();
            let (length, from) = tokio::time::timeout(WITHIN, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
            assert_eq!((&buffer[..length], from), (&[number; 1472][..], to));
        }
    });
    // A blocking thread of the runtime is inside the namespace too. Outside it the server's address does not exist.
    let inside = phone.handle().spawn_blocking(move || UdpSocket::bind("10.77.1.2:0").map(drop));
    phone.block_on(inside).unwrap().unwrap();
    assert!(UdpSocket::bind((net.server_address(), 0)).is_err());
    echo.abort();
    let counters = settled(net.control());
    for way in Way::BOTH {
        let tally = of_udp(&counters, Path::Wifi, way);
        assert_eq!((tally.delivered.packets, tally.delivered.bytes), (20, 20 * 1500));
    }
}

#[test]
#[allow(unsafe_code)]
fn segmented_datagrams_are_cut_by_the_kernel_before_they_come_to_the_link() {
    let Some(net) = network() else { return };
    let (phone, server) = (any(net.phone()), udp(net.server(), net.server_address()));
    let segment: libc::c_int = 1_200;
    // SAFETY: the value lives to the end of the call and is as long as it says.
    let set = unsafe {
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(phone.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const segment).cast(), size)
    };
    assert_eq!(set, 0);
    let data: Vec<u8> = (0..10 * 1_200 + 7).map(|n| (n % 251) as u8).collect();
    phone.send_to(&data, server.local_addr().unwrap()).unwrap();
    let (mut all, mut buffer) = (Vec::<u8>::new(), [0; 65_535]);
    while all.len() < data.len() {
        let length = server.recv(&mut buffer).unwrap();
        assert!(length == 1_200 || length == 7, "{length}");
        all.extend(&buffer[..length]);
    }
    assert!(all == data);
    let tally = of_udp(&settled(net.control()), Path::Wifi, Way::Up);
    assert_eq!((tally.delivered.packets, tally.delivered.bytes), (11, data.len() as u64 + 11 * 28));
}

#[test]
fn rebinding_moves_the_phone_to_another_port_and_ends_what_hung_on_the_old_one() {
    let Some(net) = network() else { return };
    let (phone, server) = (any(net.phone()), udp(net.server(), net.server_address()));
    let listener = listen(&net);
    let (mut tcp, mut accepted, _) = connect(&net, &listener);
    let old = seen_from(&phone, &server);
    assert_eq!(seen_from(&phone, &server), old);
    let asked = Instant::now();
    let at = net.control().rebind_nat(Path::Wifi).unwrap();
    assert!(asked <= at && at <= Instant::now());

    server.send_to(b"lost", old).unwrap();
    until(net.control(), |counters| of_udp(counters, Path::Wifi, Way::Down).unmapped.packets == 1);
    let new = seen_from(&phone, &server);
    assert!(new.ip() == old.ip() && new.port() != old.port(), "{old} {new}");
    server.send_to(b"found", new).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(phone.recv(&mut buffer).unwrap(), 5);

    // The server's TCP does not know the phone's new port and resets the connection.
    tcp.write_all(b"who am I?").unwrap();
    let error = tcp.read(&mut buffer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    accepted.set_nonblocking(true).unwrap();
    assert_eq!(accepted.read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    connect(&net, &listener);
}

#[test]
fn a_handover_ends_one_path_and_moves_what_is_bound_to_no_address_to_the_other() {
    let Some(net) = network() else { return };
    let (phone, server) = (any(net.phone()), udp(net.server(), net.server_address()));
    let bound = udp(net.phone(), net.phone_address(Path::Wifi));
    let listener = listen(&net);
    let old = seen_from(&phone, &server);
    assert_eq!(old.ip(), net.public_address(Path::Wifi));

    // Long enough for what is to be lost in it, then cut short.
    let handover = net.control().hand_over(Path::Lte, WITHIN).unwrap();
    assert_eq!(handover.works_at - handover.dead_at, WITHIN);
    phone.send_to(b"lost", server.local_addr().unwrap()).unwrap();
    server.send_to(b"lost", old).unwrap();
    let counters = until(net.control(), |counters| of_udp(counters, Path::Wifi, Way::Down).blacked_out.packets == 1);
    assert_eq!(of_udp(&counters, Path::Wifi, Way::Up).blacked_out.packets, 1);
    let gap = Duration::from_millis(200);
    let handover = net.control().hand_over(Path::Lte, gap).unwrap();
    let works_at = handover.works_at;
    assert!(handover.wait().unwrap() >= works_at);

    let new = seen_from(&phone, &server);
    assert_eq!(new.ip(), net.public_address(Path::Lte));
    server.send_to(b"found", new).unwrap();
    assert_eq!(phone.recv(&mut [0; 16]).unwrap(), 5);
    let (_, _, from) = connect(&net, &listener);
    assert_eq!(from.ip(), net.public_address(Path::Lte));
    // A socket bound to the old address sends over the new path, where the NAT has no mapping for that address.
    bound.send_to(b"lost", server.local_addr().unwrap()).unwrap();
    until(net.control(), |counters| of_udp(counters, Path::Lte, Way::Up).unmapped.packets == 1);

    // Hand over back to Wi-Fi. A handover that another one interrupts reports that.
    let interrupted = net.control().hand_over(Path::Wifi, WITHIN).unwrap();
    net.control().hand_over(Path::Wifi, Duration::ZERO).unwrap().wait().unwrap();
    assert!(matches!(interrupted.wait(), Err(Error::Interrupted)));
    assert_eq!(seen_from(&phone, &server), old, "the NAT of the old path has not forgotten");
}

#[test]
fn a_black_out_loses_both_ways_and_tcp_and_udp_go_on_after_it() {
    let Some(net) = network() else { return };
    let (phone, server) = (any(net.phone()), udp(net.server(), net.server_address()));
    let listener = listen(&net);
    let (mut tcp, mut accepted, _) = connect(&net, &listener);
    let seen = seen_from(&phone, &server);
    net.control().black_out(Path::Wifi, true).unwrap();
    for _ in 0..3 {
        phone.send_to(b"lost", server.local_addr().unwrap()).unwrap();
        server.send_to(b"lost", seen).unwrap();
    }
    tcp.write_all(b"late").unwrap();
    let counters = until(net.control(), |counters| of_udp(counters, Path::Wifi, Way::Down).blacked_out.packets == 3);
    assert_eq!(of_udp(&counters, Path::Wifi, Way::Up).blacked_out.packets, 3);
    until(net.control(), |counters| counters.of(Path::Wifi, Way::Up, Protocol::Tcp).blacked_out.packets > 0);
    net.control().black_out(Path::Wifi, false).unwrap();
    assert_eq!(seen_from(&phone, &server), seen);
    let mut buffer = [0; 4];
    accepted.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"late");
}

#[test]
fn where_udp_is_blocked_tcp_works() {
    let Some(net) = network() else { return };
    let (phone, server) = (any(net.phone()), udp(net.server(), net.server_address()));
    let seen = seen_from(&phone, &server);
    net.control().block_udp(true).unwrap();
    phone.send_to(b"lost", server.local_addr().unwrap()).unwrap();
    server.send_to(b"lost", seen).unwrap();
    connect(&net, &listen(&net));
    let counters = until(net.control(), |counters| counters.protocol(Protocol::Udp).blocked.packets == 2);
    assert_eq!(counters.protocol(Protocol::Tcp).blocked.packets, 0);
    net.control().block_udp(false).unwrap();
    assert_eq!(seen_from(&phone, &server), seen);
}

#[test]
fn the_same_seed_loses_the_same_packets() {
    if !link_is_possible() {
        return;
    }
    let conditions = Conditions { loss: Loss::Bursty { mean: 0.1, burst: 3.0 }, ..quick() };
    let arrived = |seed| {
        let net = start(conditions, seed);
        let (phone, server) = (any(net.phone()), udp(net.server(), net.server_address()));
        let mut arrived = BTreeSet::new();
        // A hundred at once fit any receive buffer.
        for hundred in 0..20u32 {
            for number in hundred * 100..(hundred + 1) * 100 {
                phone.send_to(&number.to_be_bytes(), server.local_addr().unwrap()).unwrap();
            }
            let offered = u64::from(hundred + 1) * 100;
            let counters = until(net.control(), |counters| {
                let tally = of_udp(counters, Path::Wifi, Way::Up);
                tally.offered.packets == offered && tally.in_flight().packets == 0
            });
            for _ in arrived.len()..of_udp(&counters, Path::Wifi, Way::Up).delivered.packets as usize {
                let mut number = [0; 4];
                server.recv(&mut number).unwrap();
                arrived.insert(u32::from_be_bytes(number));
            }
        }
        arrived
    };
    let first = arrived(1);
    assert!((1_500..1_950).contains(&first.len()), "{}", first.len());
    assert_eq!(first, arrived(1));
    assert_ne!(first, arrived(2));
}

#[test]
fn a_profile_changes_while_packets_flow_and_one_that_cannot_be_is_refused() {
    let Some(net) = network() else { return };
    let (phone, server) = (any(net.phone()), udp(net.server(), net.server_address()));
    seen_from(&phone, &server);
    let nothing = Conditions { loss: Loss::Random(1.0), ..quick() };
    net.control().set_profile(Path::Wifi, Profile { up: nothing, ..Profile::both(quick()) }).unwrap();
    phone.send_to(b"lost", server.local_addr().unwrap()).unwrap();
    until(net.control(), |counters| of_udp(counters, Path::Wifi, Way::Up).lost.packets == 1);
    let narrow = Conditions { rate: Some(Rate { bits_per_second: 1_000, queue_bytes: 1_500 }), ..quick() };
    net.control().set_profile(Path::Wifi, Profile::both(narrow)).unwrap();
    for _ in 0..5 {
        phone.send_to(&[0; 1_000], server.local_addr().unwrap()).unwrap();
    }
    until(net.control(), |counters| of_udp(counters, Path::Wifi, Way::Up).queue_full.packets == 4);

    let stuck = Conditions { rate: Some(Rate { bits_per_second: 0, queue_bytes: 1_500 }), ..quick() };
    let refused = net.control().set_profile(Path::Wifi, Profile::both(stuck));
    assert!(matches!(refused, Err(Error::Profile(_))));
    let plan = Plan { wifi: Profile::CLEAN, lte: Profile::both(stuck), seed: 1 };
    assert!(matches!(Network::start(plan), Err(Error::Profile(_))));
}

#[test]
fn tcp_uses_the_congestion_control_that_was_chosen() {
    let Some(net) = network() else { return };
    let listener = listen(&net);
    let available = net.phone().get("net.ipv4.tcp_available_congestion_control").unwrap();
    assert!(available.split(' ').any(|algorithm| algorithm == "reno"));
    for algorithm in available.split(' ') {
        net.control().set_congestion_control(algorithm).unwrap();
        let (phone, server, _) = connect(&net, &listener);
        assert_eq!((congestion_control(&phone).as_str(), congestion_control(&server).as_str()), (algorithm, algorithm));
    }
    let last = available.split(' ').next_back().unwrap();
    net.control().hand_over(Path::Lte, Duration::ZERO).unwrap().wait().unwrap();
    assert_eq!(congestion_control(&connect(&net, &listener).0), last, "the new path's route knows it as well");
    assert!(matches!(net.control().set_congestion_control("nonesuch"), Err(Error::System { .. })));
    assert_eq!(congestion_control(&connect(&net, &listener).0), last);
}

#[allow(unsafe_code)]
fn congestion_control(stream: &TcpStream) -> String {
    let mut name = [0u8; 16];
    let mut length = name.len() as libc::socklen_t;
    // SAFETY: the buffer is as long as it says.
    let read = unsafe {
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_CONGESTION);
        libc::getsockopt(stream.as_raw_fd(), level, option, name.as_mut_ptr().cast(), &raw mut length)
    };
    assert_eq!(read, 0);
    String::from_utf8(name.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap()
}

#[test]
fn each_side_has_its_own_settings_devices_and_programs() {
    let Some(net) = network() else { return };
    const PARAMETER: &str = "net.ipv4.tcp_keepalive_time";
    net.server().set(PARAMETER, "60").unwrap();
    net.phone().set(PARAMETER, "90").unwrap();
    assert_eq!(net.server().get(PARAMETER).unwrap(), "60");
    let error = net.phone().set(PARAMETER, "soon").unwrap_err().to_string();
    assert!(error.contains(PARAMETER) && error.contains("soon"), "{error}");
    let read = |namespace: &Namespace, file: &str| {
        let output = namespace.command("cat").arg(file).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(read(net.phone(), "/proc/sys/net/ipv4/tcp_keepalive_time").trim(), "90");
    let devices = read(net.phone(), "/proc/self/net/dev");
    assert!(devices.contains("wifi:") && devices.contains("lte:"), "{devices}");
    assert!(!read(net.server(), "/proc/self/net/dev").contains("wifi:"));
}

#[test]
fn a_network_that_is_gone_says_so() {
    let Some(net) = network() else { return };
    let (phone, control) = (any(net.phone()), net.control().clone());
    let handover = control.hand_over(Path::Lte, WITHIN).unwrap();
    let server = (net.server_address(), 443);
    drop(net);
    assert!(matches!(control.counters(), Err(Error::Ended(_))));
    assert!(handover.wait().is_err());
    assert_eq!(phone.send_to(b"lost", server).unwrap_err().kind(), ErrorKind::NetworkUnreachable);
}

/// Checks only the part of the self-check that does not depend on the machine's load: the requested losses and no others.
#[test]
fn the_self_check_finds_losses_as_they_were_asked_for() {
    if !link_is_possible() {
        return;
    }
    let conditions = Conditions {
        loss: Loss::Bursty { mean: 0.05, burst: 4.0 },
        duplication: 0.1,
        rate: Some(Rate { bits_per_second: 4_000_000, queue_bytes: 20_000 }),
        ..quick()
    };
    let report = check(&Profile::both(conditions), 1, 4_000).unwrap();
    let judged = ["loss", "burst", "duplication", "reordering", "unaccounted", "unaccounted under load"];
    for what in judged {
        let rows: Vec<_> = report.rows.iter().filter(|row| row.what == what).collect();
        assert_eq!(rows.len(), 2, "{what}: one for each direction");
        assert!(rows.iter().all(|row| row.holds), "{rows:?}");
    }
    assert!(["delay", "jitter ±", "rate", "queue"].iter().all(|what| report.rows.iter().any(|row| row.what == *what)));
}
