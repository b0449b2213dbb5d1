//! A renewed certificate and changed token keys, while devices are signed in.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bimip::auth::dev::{self, DevFiles};
use bimip::limits::CONTROL_CONNECTIONS_MAX;
use bimip::wire::ALPN;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, HandshakeKind, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::control::bimip;
use super::start::make_pipe;
use crate::common::{Door, Process, TestServer, metric, now_s, scratch, sign, within_bound};

const ALICE: &str = "alice@localhost";
const HOUR: Duration = Duration::from_secs(3600);

/// Verifies certificates as clients do, and counts how often. A resumed connection verifies none.
#[derive(Debug)]
struct Counting(Arc<WebPkiServerVerifier>, AtomicUsize);

impl ServerCertVerifier for Counting {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.verify_server_cert(end, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 alone")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A client that keeps sessions for resumption, and its counting verifier.
fn client(ca: &Path) -> (rustls::ClientConfig, Arc<Counting>) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
    let counting = Arc::new(Counting(verifier, AtomicUsize::new(0)));
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(counting.clone())
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.enable_early_data = true;
    (tls, counting)
}

fn certificate_in(file: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file).unwrap()
}

/// Replaces the server's certificate by another one of the same authority, as a renewal does; returns the new one.
fn renew(files: &DevFiles) -> CertificateDer<'static> {
    let folder = scratch();
    for file in ["ca.pem", "ca.key"] {
        fs::copy(files.ca.with_file_name(file), folder.path().join(file)).unwrap();
    }
    let fresh = dev::certificates(folder.path(), &[]).unwrap();
    put(&fresh.key, &files.key);
    put(&fresh.certificate, &files.certificate);
    certificate_in(&files.certificate)
}

/// Replaces a file atomically by a copy of another.
fn put(from: &Path, to: &Path) {
    let beside = to.with_extension("new");
    fs::copy(from, &beside).unwrap();
    fs::rename(beside, to).unwrap();
}

/// Connects over QUIC as the same client each time.
struct Quic {
    endpoint: quinn::Endpoint,
    looks: Arc<Counting>,
    address: SocketAddr,
}

impl Quic {
    fn new(ca: &Path, address: SocketAddr) -> Quic {
        let (tls, looks) = client(ca);
        let mut endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let crypto = QuicClientConfig::try_from(tls).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        Quic { endpoint, looks, address }
    }

    /// Whether the server accepts early data of a new connection; `None`: the client has no ticket.
    async fn early_data(&self) -> Option<bool> {
        let connecting = self.endpoint.connect(self.address, "localhost").unwrap();
        let (connection, taken) = connecting.into_0rtt().ok()?;
        let taken = within_bound("a handshake", taken).await;
        until_refused(&connection).await;
        Some(taken)
    }

    /// The certificate of a new connection, and how many certificates this client has verified so far.
    async fn connect(&self) -> (CertificateDer<'static>, usize) {
        let connecting = self.endpoint.connect(self.address, "localhost").unwrap();
        let connection = within_bound("a handshake", connecting).await.unwrap();
        until_refused(&connection).await;
        let chain = connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
        (chain[0].clone(), self.looks.1.load(Ordering::Relaxed))
    }
}

/// Opens a lane that does not exist and waits for the close. The server sends its tickets before that.
async fn until_refused(connection: &quinn::Connection) {
    let (mut send, _recv) = within_bound("a stream", connection.open_bi()).await.unwrap();
    send.write_all(&[77]).await.unwrap();
    within_bound("the end", connection.closed()).await;
}

/// The same over TCP: the certificate and the kind of handshake.
async fn tcp(server: &TestServer, connector: &TlsConnector) -> (CertificateDer<'static>, HandshakeKind) {
    let socket = TcpStream::connect(server.tcp_address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = within_bound("a handshake", connector.connect(name, socket)).await.unwrap();
    // Opening a lane that does not exist makes the server close. Reading to the end takes in the ticket, too.
    tokio::io::AsyncWriteExt::write_all(&mut stream, &[77, 0]).await.unwrap();
    let mut rest = Vec::new();
    let _ = within_bound("the end", stream.read_to_end(&mut rest)).await;
    let state = stream.get_ref().1;
    (state.peer_certificates().unwrap()[0].clone(), state.handshake_kind().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_looked_at_by_who_resumes_too_and_sessions_go_on() {
    let server = TestServer::start().await;
    let old = certificate_in(&server.files().certificate);
    let mut session = server.sign_in(ALICE, "phone").await;
    let quic = Quic::new(&server.files().ca, server.quic_address());
    let connector = TlsConnector::from(Arc::new(client(&server.files().ca).0));

    assert_eq!(quic.connect().await, (old.clone(), 1));
    assert_eq!(quic.connect().await, (old.clone(), 1), "resumed");
    assert_eq!(tcp(&server, &connector).await, (old.clone(), HandshakeKind::Full));
    assert_eq!(tcp(&server, &connector).await, (old.clone(), HandshakeKind::Resumed));

    // A reload without a change keeps sessions for resumption.
    assert!(server.reload().await);
    assert_eq!(quic.connect().await, (old.clone(), 1));
    assert_eq!(tcp(&server, &connector).await, (old.clone(), HandshakeKind::Resumed));

    assert_eq!(quic.early_data().await, Some(true));
    assert_eq!(quic.connect().await, (old.clone(), 1));
    let new = renew(&server.files());
    assert_ne!(new, old);
    assert!(server.reload().await);
    assert_eq!(quic.early_data().await, Some(false), "agreed on under the former certificate");
    assert_eq!(quic.looks.1.load(Ordering::Relaxed), 2, "a full handshake");
    assert_eq!(quic.connect().await, (new.clone(), 2), "resumed under the new certificate");
    assert_eq!(tcp(&server, &connector).await, (new.clone(), HandshakeKind::Full));
    assert_eq!(tcp(&server, &connector).await, (new, HandshakeKind::Resumed));
    session.ping().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_fail_for_a_certificate_of_another_authority_are_counted() {
    let folder = scratch();
    let [ours, theirs] = ["ours", "theirs"].map(|name| dev::certificates(&folder.path().join(name), &[]).unwrap());
    let [certificate, key] = [&ours.certificate, &ours.key].map(|file| file.to_str().unwrap());
    let data = folder.path().join("data");
    let server = Process::start(&data, &[("BIMIP_TLS__CERTIFICATE", certificate), ("BIMIP_TLS__KEY", key)]).await;
    put(&theirs.key, &ours.key);
    put(&theirs.certificate, &ours.certificate);
    bimip(&data, &["reload"]).await.expect("the server cannot know whom clients trust");

    let quic = Quic::new(&ours.ca, server.door.address);
    let dialing = quic.endpoint.connect(quic.address, "localhost").unwrap();
    assert!(within_bound("a refusal", dialing).await.is_err());
    let connector = TlsConnector::from(Arc::new(client(&ours.ca).0));
    let socket = TcpStream::connect(server.door.address).await.unwrap();
    let dialing = connector.connect(ServerName::try_from("localhost").unwrap(), socket);
    assert!(within_bound("a refusal", dialing).await.is_err());
    for transport in ["quic", "tcp"] {
        let failed = format!("bimip_handshakes_failed_total{{transport=\"{transport}\"}}");
        within_bound("the count", async { while metric(server.pages, &failed).await != 1.0 {} }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_does_not_belong_together_changes_nothing() {
    let server = TestServer::start().await;
    let old = certificate_in(&server.files().certificate);
    let quic = Quic::new(&server.files().ca, server.quic_address());
    let key = fs::read(&server.files().key).unwrap();
    let elsewhere = scratch();
    put(&dev::certificates(elsewhere.path(), &[]).unwrap().key, &server.files().key);
    assert!(!server.reload().await);
    assert_eq!(quic.connect().await.0, old);
    assert!(server.metric("bimip_reloads_total{result=\"refused\"}").await >= 1.0);
    assert_eq!(server.metric("bimip_reload_pending").await, 1.0);
    server.sign_in(ALICE, "phone").await.ping().await;

    fs::write(&server.files().key, key).unwrap();
    assert!(server.reload().await);
    assert_eq!(server.metric("bimip_reload_pending").await, 0.0);
    let new = renew(&server.files());
    assert!(server.reload().await);
    assert_eq!(quic.connect().await.0, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_found_without_a_signal() {
    let server = TestServer::start().await;
    let quic = Quic::new(&server.files().ca, server.quic_address());
    let new = renew(&server.files());
    let shown = async { while quic.connect().await.0 != new {} };
    within_bound("the new certificate", shown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_renewed_during_the_start_is_found() {
    let folder = scratch();
    let data = folder.path().join("data");
    let files = dev::ensure(&data, &[]).unwrap();
    // The start reads the balancer's key after the certificate, and from a pipe it waits for what the test writes.
    let pipe = folder.path().join("lb.key");
    make_pipe(&pipe);
    let variables = [("BIMIP_QUIC__LB__SERVER_ID", "a1"), ("BIMIP_QUIC__LB__KEY_FILE", pipe.to_str().unwrap())];
    let (replaced, ca) = (files.clone(), files.ca);
    let renewal = tokio::task::spawn_blocking({
        let pipe = pipe.clone();
        move || {
            let mut key = fs::File::options().write(true).open(pipe).unwrap();
            let new = renew(&replaced);
            key.write_all(&[b'0'; 32]).unwrap();
            new
        }
    });
    let mut server = Process::start(&data, &variables).await;
    let new = renewal.await.unwrap();
    let quic = Quic::new(&ca, server.door.address);
    let shown = async { while quic.connect().await.0 != new {} };
    within_bound("the new certificate", shown).await;
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_tells_that_clients_will_refuse_what_it_took_up() {
    let folder = scratch();
    let (data, made) = (folder.path().join("data"), dev::certificates(folder.path(), &[]).unwrap());
    let [certificate, key] = [&made.certificate, &made.key].map(|file| file.to_str().unwrap());
    let mut server = Process::start(&data, &[("BIMIP_TLS__CERTIFICATE", certificate), ("BIMIP_TLS__KEY", key)]).await;
    let told = bimip(&data, &["reload"]).await.unwrap();
    assert!(!told.contains("refuse"), "{told}");

    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
    let pair = rcgen::KeyPair::generate().unwrap();
    fs::write(&made.key, pair.serialize_pem()).unwrap();
    fs::write(&made.certificate, params.self_signed(&pair).unwrap().pem()).unwrap();
    let told = bimip(&data, &["reload"]).await.unwrap();
    assert!(told.contains("clients will refuse the certificate: it ran out "), "{told}");
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
    let log = server.log();
    assert!(log.contains("clients will refuse the certificate") && log.contains("certificate=\"new\""), "{log}");
}

/// A new signing key and its public key, in a folder with this name.
fn token_key(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let files = dev::ensure(&folder.join(name), &[]).unwrap();
    (files.token_key, files.token_public)
}

/// Whether a device can sign in with a token of this key.
async fn lets_in(door: &Door, key: &Path) -> bool {
    let token = sign(key, ALICE, None, now_s(), HOUR);
    let (mut raw, _) = door.session(ALICE, "phone").token(token).attempt().await;
    let answer = raw.recv(bimip::wire::Lane::Control).await;
    matches!(answer.payload, Some(bimip::wire::Payload::SessionAccept(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn token_keys_are_exchanged_at_sighup_and_sessions_go_on() {
    let folder = scratch();
    let ((first, first_public), (second, second_public)) =
        (token_key(folder.path(), "first"), token_key(folder.path(), "second"));
    let believed = folder.path().join("believed.pem");
    put(&first_public, &believed);
    let data = folder.path().join("data");
    let mut server = Process::start(&data, &[("BIMIP_AUTH__KEYS", believed.to_str().unwrap())]).await;
    let token = sign(&first, ALICE, None, now_s(), HOUR);
    let mut session = server.door.session(ALICE, "tablet").token(token).open().await;
    assert!(!lets_in(&server.door, &second).await);

    put(&second_public, &believed);
    server.signal(libc::SIGHUP);
    within_bound("the new key", async { while !lets_in(&server.door, &second).await {} }).await;
    assert!(!lets_in(&server.door, &first).await, "a key that is gone voids its tokens");
    session.ping().await;
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
    let log = server.log();
    assert!(log.contains("reloaded") && log.contains("token_keys=2"), "{log}");
}

/// A server that is reading its token keys from a pipe, which behaves like a file on a hanging file system.
async fn reading_for_ever(folder: &Path) -> (Process, PathBuf, fs::File) {
    let (_, public) = token_key(folder, "first");
    let believed = folder.join("believed.pem");
    put(&public, &believed);
    let server = Process::start(&folder.join("data"), &[("BIMIP_AUTH__KEYS", believed.to_str().unwrap())]).await;
    let pipe = folder.join("pipe");
    make_pipe(&pipe);
    fs::rename(&pipe, &believed).unwrap();
    server.signal(libc::SIGHUP);
    // Opening the pipe for writing returns when the server reads it. While the writer is open, the server's read hangs.
    let writer = tokio::task::spawn_blocking(move || fs::File::options().write(true).open(believed));
    let writer = within_bound("the server to read it", writer).await.unwrap().unwrap();
    (server, public, writer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_ends_keeps_no_server_from_ending() {
    let folder = scratch();
    let (mut server, _, writer) = reading_for_ever(folder.path()).await;
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
    drop(writer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_ends_is_told_to_who_asks_and_takes_no_place_for_good() {
    let folder = scratch();
    let data = folder.path().join("data");
    let (mut server, public, writer) = reading_for_ever(folder.path()).await;
    let reload = || bimip(&data, &["reload"]);
    let asked: [_; CONTROL_CONNECTIONS_MAX] = std::array::from_fn(|_| reload());
    for told in futures_util::future::join_all(asked).await {
        assert!(told.as_ref().is_err_and(|told| told.contains("still being read")), "{told:?}");
    }
    bimip(&data, &["status"]).await.unwrap();
    put(&public, &folder.path().join("believed.pem"));
    drop(writer);
    reload().await.unwrap();
    server.signal(libc::SIGTERM);
    assert!(server.ended().await.success());
    let log = server.log();
    assert!(log.contains("are still being read") && log.contains("reloaded"), "{log}");
}
