//! A sign-in over TCP that the network holds up until the phone has another session.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bimip::client::{Device, Session, Transport, Transports};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Notify;

use crate::common::{TestServer, within_bound};
use crate::{ALICE, options, session};

/// More than the end of a TLS handshake, and less than that with a `SessionOpen`.
const WITH_SESSION_OPEN: usize = 256;

/// A TCP proxy whose first connection is held up by the network once TLS is done. `held` says that the phone has signed in there;
/// that arrives only when `late` says so, and then the end of the stream if it `ends`.
async fn late_first_flight(server: SocketAddr, held: Arc<Notify>, late: Arc<Notify>, ends: bool) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut phone, _) = listener.accept().await.unwrap();
        let mut there = TcpStream::connect(server).await.unwrap();
        tokio::spawn(async move {
            let (mut from, mut to) = phone.split();
            let (mut back, mut on) = there.split();
            let mut bytes = vec![0; 64 * 1024];
            // The ClientHello goes through, and the server's answer.
            let read = from.read(&mut bytes).await.unwrap();
            on.write_all(&bytes[..read]).await.unwrap();
            let read = back.read(&mut bytes).await.unwrap();
            to.write_all(&bytes[..read]).await.unwrap();
            let mut flight = Vec::new();
            while let Ok(read @ 1..) = from.read(&mut bytes).await {
                flight.extend_from_slice(&bytes[..read]);
                if flight.len() > WITH_SESSION_OPEN {
                    held.notify_one();
                }
            }
            late.notified().await;
            on.write_all(&flight).await.unwrap();
            if ends {
                on.shutdown().await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        loop {
            let (mut phone, _) = listener.accept().await.unwrap();
            let mut there = TcpStream::connect(server).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut phone, &mut there).await });
        }
    });
    address
}

/// The late sign-in takes the place of the later session, and the device comes back.
async fn comes_back(device: &Device, first: &Session, late: &Notify) {
    late.notify_one();
    session(device, "another session", |session| session.session_id != first.session_id).await;
}

async fn sign_in_late(ends: bool) {
    let server = TestServer::start().await;
    let (held, late) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let road = late_first_flight(server.quic_address(), held.clone(), late.clone(), ends).await;
    let only_tcp = Transports::Only(Transport::Tcp);
    let (alice, _events) = options(&server, ALICE, road).transports(only_tcp).connect().unwrap();
    within_bound("SessionOpen to be on its way", held.notified()).await;
    within_bound("the call", alice.network_changed()).await.unwrap();
    let first = within_bound("a session", alice.connected()).await.unwrap();
    comes_back(&alice, &first, &late).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_in_that_arrives_late_together_with_its_end_does_not_end_in_a_stop() {
    sign_in_late(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_in_that_arrives_late_before_its_end_does_not_end_in_a_stop() {
    sign_in_late(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_return_to_quic_before_the_answer_over_tcp_does_not_end_in_a_stop() {
    let server = TestServer::start().await;
    let (held, late) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let road = late_first_flight(server.quic_address(), held.clone(), late.clone(), true).await;
    // UDP leads nowhere yet, so TCP wins; its SessionOpen is lost and will be repeated by the kernel.
    let phone = options(&server, ALICE, road).silence(Duration::from_secs(12));
    let (alice, _events) = phone.retry_quic_after(Duration::from_millis(500)).connect().unwrap();
    within_bound("SessionOpen to be on its way", held.notified()).await;
    let (entrance, exit) =
        (UdpSocket::bind(road).await.unwrap(), UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
    exit.connect(server.quic_address()).await.unwrap();
    tokio::spawn(async move {
        let (mut there, mut back) = (vec![0; 65_536], vec![0; 65_536]);
        let mut phone = None;
        loop {
            tokio::select! {
                Ok((length, from)) = entrance.recv_from(&mut there) => {
                    phone = Some(from);
                    let _ = exit.send(&there[..length]).await;
                }
                Ok(length) = exit.recv(&mut back) => {
                    if let Some(phone) = phone {
                        let _ = entrance.send_to(&back[..length], phone).await;
                    }
                }
            }
        }
    });
    let first = session(&alice, "QUIC", |session| session.transport == Transport::Quic).await;
    comes_back(&alice, &first, &late).await;
}
