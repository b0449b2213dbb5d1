//! Probes: numbered datagrams between two plain sockets, one in each namespace.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::{Error, Namespace, Network, Path, Protocol, Tally, Way, sys};
use super::measure::Stream;

/// IP bytes of the smallest probe: headers and the number.
pub(super) const PROBE_BYTES: usize = HEADER_BYTES + NUMBER_BYTES;
/// Headers of IPv4 and UDP.
const HEADER_BYTES: usize = 28;
const NUMBER_BYTES: usize = 8;
/// Holds what arrives while the receiver is not scheduled: half a second of small probes, by the kernel's accounting.
const RECEIVE_BUFFER: usize = 64 * 1024 * 1024;
/// How long a receiver waits for a packet before it checks whether the train has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often, and for how long, the phone sends first packets to open the NAT; some may be lost.
const MEET_EVERY: Duration = Duration::from_millis(50);
const MEET_WITHIN: Duration = Duration::from_secs(20);
/// Longest wait, after the last probe was sent, until none is in flight.
const END_WITHIN: Duration = Duration::from_secs(60);

/// A number of probes to send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Train {
    pub(super) count: usize,
    pub(super) spacing: Duration,
    /// IP bytes of each probe, header included.
    pub(super) bytes: usize,
}

/// A socket on each side; each can reach the other.
pub(super) struct Ends {
    phone: UdpSocket,
    server: UdpSocket,
    phone_from_outside: SocketAddr,
}

impl Ends {
    /// Makes the sockets and opens the NAT.
    pub(super) fn meet(net: &Network) -> Result<Ends, Error> {
        let phone = socket(net.phone(), (net.phone_address(Path::Wifi), 0).into())?;
        let server = socket(net.server(), (net.server_address(), 0).into())?;
        let failed = |error| Error::system("send a first probe", error);
        let to = server.local_addr().map_err(failed)?;
        let begin = Instant::now();
        server.set_read_timeout(Some(MEET_EVERY)).map_err(failed)?;
        let phone_from_outside = loop {
            phone.send_to(&[0; NUMBER_BYTES], to).map_err(failed)?;
            match server.recv_from(&mut [0; NUMBER_BYTES]) {
                Ok((_, from)) => break from,
                Err(error) if is_silence(&error) && begin.elapsed() < MEET_WITHIN => {}
                Err(error) => return Err(failed(error)),
            }
        };
        server.set_read_timeout(Some(LOOK_EVERY)).map_err(failed)?;
        phone.set_read_timeout(Some(LOOK_EVERY)).map_err(failed)?;
        // Drain the first packets, so that no later train receives them.
        settle(net, Way::Up)?;
        while server.recv_from(&mut [0; NUMBER_BYTES]).is_ok() {}
        Ok(Ends { phone, server, phone_from_outside })
    }

    /// Sends a train one way and waits until none of it is in flight.
    pub(super) fn send(&self, net: &Network, way: Way, train: Train) -> Result<Stream, Error> {
        let (from, to, at) = match way {
            Way::Up => (&self.phone, &self.server, self.server.local_addr()),
            Way::Down => (&self.server, &self.phone, Ok(self.phone_from_outside)),
        };
        let at = at.map_err(|error| Error::system("read a socket's address", error))?;
        let before = tally(net, way)?;
        let ended = AtomicBool::new(false);
        let (sent, arrived) = thread::scope(|scope| {
            let receiving = scope.spawn(|| receive(to, train.count, &ended));
            let sent = send(from, at, train).and_then(|sent| settle(net, way).map(|()| sent));
            ended.store(true, Ordering::Relaxed);
            let arrived = receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (sent, arrived)
        });
        Ok(Stream { sent: sent?, arrived: arrived?, tally: tally(net, way)? - before })
    }
}

fn socket(namespace: &Namespace, address: SocketAddr) -> Result<UdpSocket, Error> {
    let made = namespace.run(|| {
        let socket = UdpSocket::bind(address)?;
        sys::set_receive_buffer(&socket, RECEIVE_BUFFER)?;
        Ok(socket)
    })?;
    made.map_err(|error| Error::system("make a socket for probes", error))
}

fn send(socket: &UdpSocket, to: SocketAddr, train: Train) -> Result<Vec<Instant>, Error> {
    let mut sent = Vec::with_capacity(train.count);
    let mut payload = vec![0; train.bytes - HEADER_BYTES];
    let mut due = Instant::now();
    for number in 0..train.count as u64 {
        payload[..NUMBER_BYTES].copy_from_slice(&number.to_be_bytes());
        let wait = due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        sent.push(Instant::now());
        socket.send_to(&payload, to).map_err(|error| Error::system("send a probe", error))?;
        due += train.spacing;
    }
    Ok(sent)
}

/// Receives until the train has ended and nothing waits in the socket.
fn receive(socket: &UdpSocket, count: usize, ended: &AtomicBool) -> Result<Vec<(usize, Instant)>, Error> {
    let mut arrived = Vec::with_capacity(count);
    let mut buffer = [0; super::super::MTU];
    loop {
        // Read before the wait: a packet that came between the end of the wait and a later read would be missed.
        let last = ended.load(Ordering::Relaxed);
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let at = Instant::now();
                let number = buffer[..length].first_chunk().map(|number| u64::from_be_bytes(*number));
                let number = number.and_then(|number| usize::try_from(number).ok()).filter(|number| *number < count);
                arrived.extend(number.map(|number| (number, at)));
            }
            Err(error) if is_silence(&error) && last => return Ok(arrived),
            Err(error) if is_silence(&error) => {}
            Err(error) => return Err(Error::system("receive a probe", error)),
        }
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Waits until nothing is in flight.
fn settle(net: &Network, way: Way) -> Result<(), Error> {
    let begin = Instant::now();
    while tally(net, way)?.in_flight().packets > 0 {
        if begin.elapsed() > END_WITHIN {
            return Err(Error::Ended("probes did not come to their end".to_owned()));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn tally(net: &Network, way: Way) -> Result<Tally, Error> {
    Ok(net.control().counters()?.of(Path::Wifi, way, Protocol::Udp))
}
