//! Checks that the ports are free, that datagrams reach the server, and that a handshake with it works.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::finding::{Finding, of_files};
use crate::cli::connect::{FULL, is_full};
use crate::cli::limits::{PROBE_TRIES, PROBE_WITHIN, REACH_WITHIN};
use crate::config::Config;
use crate::server::control::Status;
use crate::wire::ALPN;

const PORTS: &str = "ports";
const UDP: &str = "udp";
const QUIC: &str = "quic";
const TCP: &str = "tcp";

/// Checks that the server could listen as configured. Addresses that the `running` server has already need no check.
pub(in crate::cli) fn ports(config: &Config, running: Option<&Status>) -> Vec<Finding> {
    // A server of an earlier version does not say where it serves metrics.
    let has = |own: &str, configured: SocketAddr| own.is_empty() || own.parse() == Ok(configured);
    let has_devices = running.is_some_and(|status| has(&status.quic, config.listen));
    let has_metrics = running.is_some_and(|status| has(&status.metrics, config.metrics_listen));
    let taken = |what: &str, address: SocketAddr, error: std::io::Error| {
        let advice = match error.kind() {
            ErrorKind::AddrInUse => {
                "another program has it, or listen and metrics_listen are the same: choose another port"
            }
            ErrorKind::AddrNotAvailable => "this machine does not have the address",
            ErrorKind::PermissionDenied => "ports below 1024 want CAP_NET_BIND_SERVICE",
            _ => "choose another address",
        };
        Finding::fail(PORTS, format!("{what} {address}: {error}"), advice)
    };
    let runs = |status: &Status| {
        Finding::ok(PORTS, format!("a server runs on {}, and listens at {}", config.data_dir.display(), status.quic))
    };
    let mut findings: Vec<_> = running.map(runs).into_iter().collect();
    let listen = config.listen;
    if !has_devices {
        findings.push(match UdpSocket::bind(listen) {
            Ok(_) => Finding::ok(PORTS, format!("UDP {listen} is free")),
            Err(error) => taken("UDP", listen, error),
        });
    }
    // Keep each listener open until all are checked, because two of the addresses may be the same.
    let mut held = Vec::new();
    let devices = Some(listen).filter(|_| config.tcp.enabled && !has_devices);
    for (what, address) in [("TCP", devices), ("metrics", Some(config.metrics_listen).filter(|_| !has_metrics))] {
        let Some(address) = address else { continue };
        findings.push(match TcpListener::bind(address) {
            Ok(listener) => {
                held.push(listener);
                Finding::ok(PORTS, format!("{what} {address} is free"))
            }
            Err(error) => taken(what, address, error),
        });
    }
    findings
}

/// Checks that the running server answers over UDP; without one, that datagrams pass on this machine at all.
pub(super) fn udp(listen: SocketAddr, serving: Option<SocketAddr>) -> Finding {
    let (outcome, good, bad) = match serving.map(near) {
        Some(server) => {
            (negotiate(server), format!("the server answers at {server}"), format!("the server is silent at {server}"))
        }
        None => {
            let ip = near(listen).ip();
            let good = format!("datagrams pass at {ip}; from outside, run this elsewhere with --server once it serves");
            (echo(listen), good, format!("datagrams do not pass at {ip}"))
        }
    };
    match outcome {
        Ok(()) => Finding::ok(UDP, good),
        Err(error) => {
            let advice = "a firewall on this machine may drop UDP: allow it on the port, both ways";
            Finding::fail(UDP, format!("{bad}: {error}"), advice)
        }
    }
}

/// The address at which this machine reaches its own listener.
fn near(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn echo(listen: SocketAddr) -> std::io::Result<()> {
    let socket = UdpSocket::bind(SocketAddr::new(listen.ip(), 0))?;
    socket.set_read_timeout(Some(PROBE_WITHIN))?;
    let to = SocketAddr::new(near(listen).ip(), socket.local_addr()?.port());
    for _ in 0..PROBE_TRIES {
        socket.send_to(b"bimip doctor", to)?;
        let mut answer = [0; 64];
        match socket.recv_from(&mut answer) {
            Ok((length, _)) if &answer[..length] == b"bimip doctor" => return Ok(()),
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::TimedOut.into())
}

/// Offers a QUIC version that does not exist: any server answers with its versions (RFC 9000, 6.1) and keeps no state.
fn negotiate(server: SocketAddr) -> std::io::Result<()> {
    let socket = UdpSocket::bind(SocketAddr::new(
        if server.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) },
        0,
    ))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PROBE_WITHIN))?;
    // A long header, a version reserved for this (15), and two connection ids; as long as a first packet.
    let mut packet = vec![0; 1200];
    packet[..5].copy_from_slice(&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a]);
    packet[5] = 8;
    packet[6..14].copy_from_slice(b"bimipdoc");
    packet[14] = 8;
    packet[15..23].copy_from_slice(b"asksonly");
    for _ in 0..PROBE_TRIES {
        socket.send(&packet)?;
        let mut answer = [0; 256];
        match socket.recv(&mut answer) {
            // Version zero means version negotiation; our own id is the destination.
            Ok(length) if length > 14 && answer[1..5] == [0; 4] && &answer[6..14] == b"asksonly" => return Ok(()),
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::TimedOut.into())
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Makes a QUIC handshake with a server as a client does, and checks that the fallback's TCP port is open.
pub(super) async fn server(server: &str, name: &str, ca: &Path) -> Vec<Finding> {
    let authority = ca.to_owned();
    let config = match of_files(QUIC, &[ca.to_owned()], move || client(&authority)) {
        Ok(Ok(config)) => config,
        Err(hangs) => return vec![hangs],
        Ok(Err(error)) => {
            let found = format!("{} cannot be used: {error}", ca.display());
            return vec![Finding::fail(QUIC, found, "give the authority of the server's certificate with --ca")];
        }
    };
    let addresses: Vec<_> = match tokio::net::lookup_host(server).await {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            return vec![Finding::fail(
                QUIC,
                format!("cannot resolve {server}: {error}"),
                "correct the name, or the resolver",
            )];
        }
    };
    let mut findings = Vec::new();
    for address in addresses {
        findings.push(quic(&config, address, name).await);
        findings.push(tcp(address).await);
    }
    findings
}

fn client(ca: &Path) -> Result<quinn::ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca).map_err(|error| error.to_string())? {
        roots.add(root.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

async fn quic(config: &quinn::ClientConfig, address: SocketAddr, name: &str) -> Finding {
    let began = Instant::now();
    let connect = async {
        let any = if address.is_ipv6() { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
        let endpoint = quinn::Endpoint::client(SocketAddr::new(any, 0)).map_err(|error| error.to_string())?;
        let connecting = endpoint.connect_with(config.clone(), address, name).map_err(|error| error.to_string())?;
        let connection = connecting.await.map_err(|error| error.to_string())?;
        let (took, rtt) = (began.elapsed(), connection.rtt());
        connection.close(0u8.into(), b"");
        endpoint.wait_idle().await;
        Ok::<(Duration, Duration), String>((took, rtt))
    };
    match timeout(REACH_WITHIN, connect).await {
        Ok(Ok((took, rtt))) => {
            Finding::ok(QUIC, format!("{address}: a handshake for {name} in {took:.1?}, round trip {rtt:.1?}"))
        }
        Ok(Err(error)) if is_full(&error) => Finding::fail(QUIC, format!("{address}: {error}"), FULL),
        Ok(Err(error)) => Finding::fail(
            QUIC,
            format!("{address}: {error}"),
            "the server answers: its certificate must be for the name, valid now, by the authority of --ca, and its ALPN bimip/1",
        ),
        Err(_) => Finding::fail(
            QUIC,
            format!("{address}: no answer within {} s", REACH_WITHIN.as_secs()),
            "UDP is dropped on the way, or nobody listens: allow UDP on the port in firewalls and security groups",
        ),
    }
}

async fn tcp(address: SocketAddr) -> Finding {
    match timeout(REACH_WITHIN, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Finding::ok(TCP, format!("{address} takes connections")),
        other => {
            let why = match other {
                Ok(Err(error)) => error.to_string(),
                _ => format!("no answer within {} s", REACH_WITHIN.as_secs()),
            };
            let advice =
                "phones in networks without UDP do not reach it: allow TCP on the port, unless tcp.enabled is false";
            Finding::warn(TCP, format!("{address}: {why}"), advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Grade;

    #[test]
    fn a_socket_of_both_families_is_in_the_way_of_metrics_on_its_port() {
        let any = TcpListener::bind("[::]:0").and_then(|both| both.local_addr());
        let Ok(port) = any.map(|address| address.port()) else {
            // As in many containers.
            return crate::skip::skip("this machine has no IPv6");
        };
        let (listen, metrics_listen) = ((Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::LOCALHOST, port).into());
        let findings = ports(&Config { listen, metrics_listen, ..Config::default() }, None);
        let metrics = findings.last().unwrap();
        assert!(metrics.grade == Grade::Fail && metrics.found.starts_with("metrics 127.0.0.1:"), "{findings:?}");
    }
}
