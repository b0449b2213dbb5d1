//! A server for one test, with free ports, a temporary directory and development keys.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bimip::auth::dev::DevFiles;
use bimip::auth::{Grant, Signer};
use bimip::config::Config;
use bimip::server::Server;
use bimip::wire::proto::{SessionAccept, SessionOpen};
use bimip::wire::{DeviceId, Eid, Identity, Lane, Payload, encode_frame, envelope};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::link::{Dialer, Transport};
use super::{Raw, now_s, within_bound};

/// A running server.
pub struct TestServer {
    server: Server,
    config: Config,
    door: Door,
    /// Removed when the test ends.
    _directory: TempDir,
}

impl TestServer {
    /// Starts with the default configuration.
    pub async fn start() -> TestServer {
        TestServer::with(|_| ()).await
    }

    /// Starts with a changed configuration.
    pub async fn with(change: impl FnOnce(&mut Config)) -> TestServer {
        let directory = scratch();
        let mut config = Config {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            metrics_listen: (Ipv4Addr::LOCALHOST, 0).into(),
            data_dir: directory.path().to_owned(),
            dev: true,
            ..Config::default()
        };
        change(&mut config);
        config.check().expect("a configuration that an operator could have");
        let server = start(&config).await;
        let door = Door::new(&config.data_dir, server.quic_address, config.session.max_frame_bytes);
        TestServer { server, config, door, _directory: directory }
    }

    /// Stops it gracefully and starts it again on the same directory, on other ports.
    pub async fn restart(mut self) -> TestServer {
        within_bound("the server to stop", self.server.shutdown()).await;
        self.server = start(&self.config).await;
        self.door.address = self.server.quic_address;
        self
    }

    /// Makes it reload its certificate and key files. Returns whether it took them.
    pub async fn reload(&self) -> bool {
        within_bound("the server to reload", self.server.reload()).await
    }

    /// Stops it gracefully.
    pub async fn shutdown(self) {
        within_bound("the server to stop", self.server.shutdown()).await;
    }

    /// Where it listens for QUIC.
    pub fn quic_address(&self) -> SocketAddr {
        self.server.quic_address
    }

    /// Where it listens for TLS over TCP: the same port number.
    pub fn tcp_address(&self) -> SocketAddr {
        self.server.tcp_address.expect("nothing here switches it off")
    }

    /// Where metrics, health and the status page are.
    pub fn metrics_address(&self) -> SocketAddr {
        self.server.metrics_address
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its keys and certificates.
    pub fn files(&self) -> DevFiles {
        self.door.files.clone()
    }

    /// A token that is valid for an hour. With `device`, only that device may use it.
    pub fn token(&self, eid: &str, device: Option<&str>) -> String {
        self.door.token(eid, device)
    }

    /// A token that was signed at `at` (Unix seconds) and is valid for `ttl`.
    pub fn token_at(&self, eid: &str, device: Option<&str>, at: i64, ttl: Duration) -> String {
        sign(&self.files().token_key, eid, device, at, ttl)
    }

    /// A connection that has sent nothing yet.
    pub async fn connect(&self) -> Raw {
        self.try_connect().await.expect("a handshake")
    }

    /// A connection that has sent nothing yet.
    ///
    /// # Errors
    /// The server refuses the connection, or the handshake fails.
    pub async fn try_connect(&self) -> Result<Raw, String> {
        self.door.try_connect(Transport::HERE).await
    }

    /// Prepares a sign-in with the lanes control and chat.
    pub fn session(&self, eid: &str, device: &str) -> SignIn<'_> {
        self.door.session(eid, device)
    }

    /// A signed-in device with the lanes control and chat.
    pub async fn sign_in(&self, eid: &str, device: &str) -> Raw {
        self.session(eid, device).open().await
    }

    /// Signs a device in that writes frames and closes at once. The server, which must run on the test's thread alone,
    /// stands meanwhile, so that it finds the frames and the close together.
    pub async fn leave_behind(
        &self,
        eid: &'static str,
        token: String,
        lane: Lane,
        frames: impl FnOnce(&Raw) -> Vec<Payload> + Send + 'static,
    ) {
        let door = (self.config.data_dir.clone(), self.quic_address(), self.config.session.max_frame_bytes);
        let (signed_in, is_signed_in) = oneshot::channel();
        let client = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let door = Door::new(&door.0, door.1, door.2);
                let device = door.session(eid, "phone").token(token).open().await;
                signed_in.send(()).expect("the test waits");
                let frames = frames(&device).into_iter().flat_map(|payload| encode_frame(&envelope(payload)));
                device.write_and_leave(lane, &frames.collect::<Vec<_>>()).await;
            });
        });
        within_bound("the sign-in", is_signed_in).await.expect("it signs in");
        client.join().expect("it writes and leaves");
    }

    /// The body of a plain HTTP GET from the metrics listener.
    pub async fn get(&self, path: &str) -> String {
        get(self.server.metrics_address, path).await
    }

    /// The value of a metric's series, named with its labels as on the metrics page; zero if the series does not exist.
    pub async fn metric(&self, series: &str) -> f64 {
        metric(self.server.metrics_address, series).await
    }
}

/// The body of a plain HTTP GET from a metrics listener.
async fn get(pages: SocketAddr, path: &str) -> String {
    let exchange = async {
        let mut http = TcpStream::connect(pages).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        http.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        http.read_to_string(&mut response).await?;
        std::io::Result::Ok(response)
    };
    let response = within_bound("an HTTP response", exchange).await.expect("the metrics listener answers");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    body.to_owned()
}

/// The value of a metric's series at a metrics listener; zero if the series does not exist.
pub async fn metric(pages: SocketAddr, series: &str) -> f64 {
    let page = get(pages, "/metrics").await;
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}

/// What a device needs to connect: the server's address, the trusted authority, and the key that signs tokens.
pub struct Door {
    /// Where the server listens.
    pub address: SocketAddr,
    dialer: Dialer,
    files: DevFiles,
    max_frame_bytes: usize,
}

impl Door {
    /// For a server that runs on this data directory.
    pub fn new(data_dir: &Path, address: SocketAddr, max_frame_bytes: usize) -> Door {
        let files = DevFiles::in_data_dir(data_dir);
        Door { address, dialer: Dialer::new(&files.ca), files, max_frame_bytes }
    }

    /// Prepares a sign-in with the lanes control and chat.
    pub fn session(&self, eid: &str, device: &str) -> SignIn<'_> {
        SignIn {
            door: self,
            over: Transport::HERE,
            lanes: vec![Lane::Control, Lane::Chat],
            open: SessionOpen {
                identity: Some(Identity { eid: eid.to_owned(), connection_resource_id: device.to_owned() }),
                token: self.token(eid, None),
                client: "tests".to_owned(),
                ..SessionOpen::default()
            },
        }
    }

    /// Moves all QUIC devices to another port, as after a change of network.
    pub fn change_address(&self) {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free UDP port");
        self.dialer.rebind(socket);
    }

    fn token(&self, eid: &str, device: Option<&str>) -> String {
        sign(&self.files.token_key, eid, device, now_s(), Duration::from_secs(3600))
    }

    async fn try_connect(&self, over: Transport) -> Result<Raw, String> {
        let link = within_bound("a handshake", self.dialer.dial(over, self.address)).await?;
        Ok(Raw::new(link, self.max_frame_bytes))
    }
}

/// Signs a token with the private key in this file. `at`: Unix seconds.
pub fn sign(key: &Path, eid: &str, device: Option<&str>, at: i64, ttl: Duration) -> String {
    let grant = Grant {
        eid: Eid::parse(eid).expect("an eid"),
        device: device.map(|device| DeviceId::parse(device).expect("a device id")),
        ttl,
        scope: None,
    };
    Signer::from_pem_file(key).and_then(|signer| signer.sign(&grant, at)).expect("a token")
}

/// A temporary directory, in memory (`/dev/shm`) where possible: a test waits for a dozen commits, and does not check what
/// a disk keeps when the machine fails. `TMPDIR` chooses another place.
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let directory = if std::env::var_os("TMPDIR").is_none() && memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    directory.expect("a temporary directory")
}

async fn start(config: &Config) -> Server {
    within_bound("the server to start", Server::start(config.clone())).await.expect("a server")
}

/// Builds a sign-in.
#[derive(Clone)]
pub struct SignIn<'a> {
    door: &'a Door,
    over: Transport,
    lanes: Vec<Lane>,
    /// The `SessionOpen` that will be sent.
    pub open: SessionOpen,
}

impl SignIn<'_> {
    /// Releases messages without the answer to their VersionUpdate.
    pub fn pipelined(mut self) -> Self {
        self.open.pipelined = true;
        self
    }

    /// Starts the tail after this sequence.
    pub fn resume_from(mut self, sequence: i64) -> Self {
        self.open.resume_from = Some(sequence);
        self
    }

    /// Uses this token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.open.token = token.into();
        self
    }

    /// Uses this transport instead of [`Transport::HERE`].
    pub fn over(mut self, transport: Transport) -> Self {
        self.over = transport;
        self
    }

    /// Opens these lanes.
    pub fn lanes(mut self, lanes: &[Lane]) -> Self {
        self.lanes = lanes.to_vec();
        self
    }

    /// Connects, opens the lanes and sends SessionOpen. Also returns that frame's request id.
    pub async fn attempt(self) -> (Raw, i64) {
        let mut raw = self.door.try_connect(self.over).await.expect("a handshake");
        for lane in self.lanes {
            raw.open(lane).await;
        }
        let identity = self.open.identity.clone().unwrap_or_default();
        (raw.eid, raw.device) = (identity.eid, identity.connection_resource_id);
        let request_id = raw.send(Lane::Control, Payload::SessionOpen(self.open)).await;
        (raw, request_id)
    }

    /// Signs in and waits for SessionAccept.
    pub async fn open(self) -> Raw {
        let (mut raw, request_id) = self.attempt().await;
        let accept = raw.expect::<SessionAccept>(Lane::Control).await;
        assert_eq!(accept.request_id, request_id);
        raw.accept = accept.into_body();
        raw
    }
}
