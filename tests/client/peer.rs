//! A small server that speaks just enough of the protocol for one device, over real QUIC on loopback: sign-in, one log,
//! idempotent texts, acknowledgments, pings. It can lose connections, refuse, and be killed and started again.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bimip::wire::proto::{
    AcknowledgmentRequest, AcknowledgmentResponse, AwarenessNotification, ChatMessage, ErrorMessage, Logout, PingPong,
    SessionAccept, SessionOpen, TextPayloadRequest, VersionUpdate, chat_message,
};
use bimip::wire::{
    ALPN, ChatId, CloseCode, Eid, FrameDecoder, Identity, Lane, MessageId, MessageScheme, Payload, encode_frame,
    envelope, open_envelope,
};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig, TokioRuntime, VarInt};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// A user's log and what the peer has received. Survives a kill of the peer, like a disk.
#[derive(Default)]
pub struct Seen {
    /// Entry `n` has sequence `n + 1`.
    pub log: Vec<Payload>,
    /// `message_id_local`s in the order in which they were accepted.
    pub accepted: Vec<String>,
    known: HashMap<String, u64>,
    /// Number of texts received, with repetitions.
    pub texts: usize,
    pub opens: Vec<SessionOpen>,
    /// The lanes that were opened, over all connections.
    pub lanes: Vec<Lane>,
    pub acknowledged: Vec<(String, i32)>,
    pub synced: i64,
    pub pongs: usize,
    pub media: usize,
    pub logouts: usize,
    /// Revocations received; none is answered.
    pub revocations: usize,
    /// Log entries written to chat lanes.
    pub tailed: usize,
    pub connections: Vec<Connection>,
    pub closes: Vec<u64>,
    pub token: String,
    /// How long a token is valid, in milliseconds; 0: for ever.
    pub token_lives: i64,
    /// For each number in turn: when `texts` reaches it, the connection is lost without an answer.
    pub lose_after: Vec<usize>,
    /// How many `SessionOpen`s to refuse with 429, as when too many come from one address.
    pub put_off: usize,
    /// How many acknowledgments of a whole chat to refuse with 503, as while the store has no room.
    pub busy: usize,
    /// Accepts texts without answering.
    pub mute: bool,
    /// Payloads to write on the control lane.
    to_control: Vec<Payload>,
    /// Notifications to write on the presence lane.
    pub to_presence: usize,
    /// Notifications that were written.
    pub noticed: usize,
}

pub struct Peer {
    pub address: SocketAddr,
    pub roots: RootCertStore,
    /// Its own certificate, as PEM, for commands.
    #[cfg_attr(not(feature = "cli"), allow(dead_code))]
    pub certificate: String,
    state: Arc<State>,
    config: ServerConfig,
    runtime: Option<Runtime>,
}

pub struct State {
    seen: Mutex<Seen>,
    /// Counts changes of `seen`. Tails and tests wait on it.
    changed: watch::Sender<u64>,
}

impl State {
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Changes `seen` and wakes all waiters.
    pub fn change<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        let result = change(&mut self.seen());
        self.changed.send_modify(|count| *count += 1);
        result
    }
}

impl Peer {
    pub fn start() -> Peer {
        Peer::with(|_| ())
    }

    /// One that takes 0-RTT data.
    pub fn with_early_data() -> Peer {
        Peer::with(|tls| tls.max_early_data_size = u32::MAX)
    }

    fn with(change: impl FnOnce(&mut rustls::ServerConfig)) -> Peer {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let pem = key.cert.pem();
        let certificate = CertificateDer::from(key.cert);
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap())
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        change(&mut tls);
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let seen = Seen { token: "good".into(), ..Seen::default() };
        let state = Arc::new(State { seen: Mutex::new(seen), changed: watch::Sender::new(0) });
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut peer = Peer { address, roots, certificate: pem, state, config, runtime: None };
        peer.revive();
        peer
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Stops as after `kill -9`: no connection gets a close.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            self.state.seen().connections.clear();
            // On another thread, because a runtime may not block on the shutdown of another one.
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(10))).join().unwrap();
        }
    }

    /// Starts again on the same address, with the log but without the connections.
    pub fn revive(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let socket = loop {
            // The previous socket may not be closed yet.
            match UdpSocket::bind(self.address) {
                Ok(socket) => break socket,
                Err(_) => std::thread::yield_now(),
            }
        };
        self.address = socket.local_addr().unwrap();
        let guard = runtime.enter();
        let endpoint =
            Endpoint::new(EndpointConfig::default(), Some(self.config.clone()), socket, Arc::new(TokioRuntime))
                .unwrap();
        drop(guard);
        let state = self.state.clone();
        runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let state = state.clone();
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        serve(connection, state).await;
                    }
                });
            }
        });
        self.runtime = Some(runtime);
    }

    /// Waits until `fits` holds for `seen`.
    pub async fn until(&self, fits: impl Fn(&Seen) -> bool) {
        let mut changed = self.state.changed.subscribe();
        while !fits(&self.state.seen()) {
            changed.changed().await.unwrap();
        }
    }

    /// Appends a message from bob to the log.
    pub fn push(&self, text: &str) {
        self.state.change(|seen| {
            let sequence = seen.log.len() as u64 + 1;
            let message = ChatMessage {
                message_id: message_id(sequence).to_string(),
                version: sequence as i64,
                chat_id: chat_id().to_string(),
                from: Some(eid("bob@x").identity()),
                to: vec![eid("alice@x").identity()],
                author: "receiver".into(),
                acknowledgment: 1,
                payload: Some(chat_message::Payload::Text(text.to_owned())),
                ..Default::default()
            };
            seen.log.push(Payload::ChatMessage(message));
        });
    }

    /// Restores a backup: the log has this many entries, of which the device had said that so many are safe.
    pub fn restore(&self, entries: usize, synced: i64) {
        self.state.change(|seen| {
            seen.log.truncate(entries);
            seen.synced = synced;
        });
    }

    /// Closes every connection with this code.
    pub fn close_all(&self, code: CloseCode) {
        for connection in std::mem::take(&mut self.state.seen().connections) {
            connection.close(VarInt::from_u32(code.code() as u32), b"");
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn eid(text: &str) -> Eid {
    Eid::parse(text).unwrap()
}

fn chat_id() -> ChatId {
    ChatId::between(&eid("alice@x"), &eid("bob@x"))
}

fn message_id(number: u64) -> MessageId {
    let mut entropy = [0; 10];
    entropy[2..].copy_from_slice(&number.to_be_bytes());
    MessageId::new(1_000, entropy)
}

async fn serve(connection: Connection, state: Arc<State>) {
    state.change(|seen| seen.connections.push(connection.clone()));
    let (session, _) = watch::channel(None);
    let session = Arc::new(session);
    while let Ok((send, mut recv)) = connection.accept_bi().await {
        let mut byte = [0];
        if recv.read_exact(&mut byte).await.is_err() {
            break;
        }
        let lane = Lane::from_byte(byte[0]).unwrap();
        state.change(|seen| seen.lanes.push(lane));
        let of_lane = OfLane {
            lane,
            connection: connection.clone(),
            state: state.clone(),
            session: session.clone(),
            send: Arc::new(tokio::sync::Mutex::new(send)),
        };
        match lane {
            Lane::Chat => drop(tokio::spawn(of_lane.clone().tail())),
            Lane::Control => drop(tokio::spawn(of_lane.clone().push())),
            Lane::Presence => drop(tokio::spawn(of_lane.clone().notify())),
            Lane::Media => {}
        }
        tokio::spawn(of_lane.read(recv));
    }
    if let quinn::ConnectionError::ApplicationClosed(close) = connection.closed().await {
        state.change(|seen| seen.closes.push(close.error_code.into_inner()));
    }
}

#[derive(Clone)]
struct OfLane {
    lane: Lane,
    connection: Connection,
    state: Arc<State>,
    /// Where the tail starts; `None` until the session is accepted.
    session: Arc<watch::Sender<Option<usize>>>,
    send: Arc<tokio::sync::Mutex<SendStream>>,
}

impl OfLane {
    async fn read(self, mut recv: RecvStream) {
        let mut decoder = FrameDecoder::new(64 * 1024);
        while let Ok(Some(chunk)) = recv.read_chunk(64 * 1024, true).await {
            decoder.feed(chunk.bytes);
            while let Some(frame) = decoder.next_frame().unwrap() {
                if self.lane != Lane::Control {
                    let mut session = self.session.subscribe();
                    if session.wait_for(Option::is_some).await.is_err() {
                        return;
                    }
                }
                self.frame(open_envelope(&frame).unwrap()).await;
            }
        }
    }

    async fn frame(&self, scheme: MessageScheme) {
        let id = scheme.request_id;
        match scheme.payload.unwrap() {
            Payload::SessionOpen(open) => self.session_open(open, id).await,
            _ if self.session.borrow().is_none() => self.unauthenticated("the first frame is SessionOpen", id).await,
            Payload::PingpongMessage(ping) if ping.r#type == 1 => {
                self.write(Payload::PingpongMessage(PingPong { r#type: 2, status: 2, ..ping }), 0, id).await;
            }
            Payload::PingpongMessage(_) => self.state.change(|seen| seen.pongs += 1),
            Payload::TextPayloadRequest(text) => self.text(text, id).await,
            Payload::VersionUpdate(update) => assert_eq!((update.r#type, update.status), (2, 2)),
            Payload::AcknowledgmentRequest(ack) => self.acknowledge(ack, id).await,
            Payload::Logout(logout) => {
                self.write(Payload::Logout(Logout { r#type: 2, status: 3, ..logout }), 0, id).await;
                self.state.change(|seen| seen.logouts += 1);
            }
            Payload::TokenRevokeRequest(_) => self.state.change(|seen| seen.revocations += 1),
            Payload::SyncAck(sync) => {
                self.state.change(|seen| seen.synced = seen.synced.max(sync.sequence).min(seen.log.len() as i64));
            }
            Payload::AwarenessRequest(_) => {
                let error = ErrorMessage { code: 503, message: "no presence".into(), ..Default::default() };
                self.write(Payload::ErrorMessage(error), 0, id).await;
            }
            Payload::MediaPayloadRequest(_) => {
                self.state.change(|seen| seen.media += 1);
                let error = ErrorMessage { code: 501, message: "no media".into(), ..Default::default() };
                self.write(Payload::ErrorMessage(error), 0, id).await;
            }
            other => panic!("{other:?}"),
        }
    }

    async fn unauthenticated(&self, why: &str, id: i64) {
        let error = ErrorMessage { code: 401, message: why.into(), ..Default::default() };
        self.write(Payload::ErrorMessage(error), 0, id).await;
        let mut send = self.send.lock().await;
        // Wait until the error has arrived, or the close would overtake it.
        if send.finish().is_ok() {
            let _ = send.stopped().await;
        }
        self.connection.close(VarInt::from_u32(2), b"unauthenticated");
    }

    async fn session_open(&self, open: SessionOpen, id: i64) {
        let put_off = self.state.change(|seen| {
            let left = seen.put_off.checked_sub(1);
            seen.put_off = left.unwrap_or(0);
            left.is_some()
        });
        if put_off {
            let error =
                ErrorMessage { code: 429, message: "too fast".into(), details: "2".into(), ..Default::default() };
            self.state.change(|seen| seen.opens.push(open));
            self.write(Payload::ErrorMessage(error), 0, id).await;
            return;
        }
        let (good, head, synced, lives) = self.state.change(|seen| {
            seen.opens.push(open.clone());
            (seen.token == open.token, seen.log.len(), seen.synced, seen.token_lives)
        });
        if !good {
            return self.unauthenticated("not a good token", id).await;
        }
        // Never beyond the log, as protocol.md §9 says.
        let start = open.resume_from.unwrap_or(synced).clamp(0, head as i64);
        let accept = SessionAccept {
            identity: open.identity,
            session_id: "s".into(),
            log_head: head as i64,
            resume_from: start,
            token_expires_at: lives,
            ..Default::default()
        };
        self.write(Payload::SessionAccept(accept), 0, id).await;
        self.session.send_replace(Some(start as usize));
    }

    async fn text(&self, text: TextPayloadRequest, id: i64) {
        let local_id = text.message_id_local;
        let (sequence, update, lost) = self.state.change(|seen| {
            seen.texts += 1;
            let sequence = match seen.known.get(&local_id) {
                Some(sequence) => *sequence,
                None => {
                    let sequence = seen.log.len() as u64 + 1;
                    seen.known.insert(local_id.clone(), sequence);
                    seen.accepted.push(local_id.clone());
                    seen.log.push(Payload::VersionUpdate(VersionUpdate {
                        message_id: message_id(sequence).to_string(),
                        message_id_local: local_id,
                        r#type: 1,
                        status: 1,
                        version: seen.accepted.len() as i64,
                        chat_id: chat_id().to_string(),
                        ..Default::default()
                    }));
                    sequence
                }
            };
            let lost = seen.lose_after.first().is_some_and(|after| seen.texts >= *after);
            if lost {
                seen.lose_after.remove(0);
            }
            (sequence, seen.log[sequence as usize - 1].clone(), lost || seen.mute)
        });
        if self.state.seen().mute {
            return;
        }
        if lost {
            self.connection.close(VarInt::from_u32(7), b"lost");
            return;
        }
        // The direct answer may overtake the tail.
        self.write(update, sequence, id).await;
    }

    async fn acknowledge(&self, ack: AcknowledgmentRequest, id: i64) {
        let is_refused = self.state.change(|seen| {
            seen.acknowledged.push((ack.message_id.clone(), ack.status));
            let left = seen.busy.checked_sub(1).filter(|_| ack.message_id.is_empty());
            seen.busy = left.unwrap_or(seen.busy);
            left.is_some()
        });
        if is_refused {
            let error = ErrorMessage { code: 503, message: "no room".into(), ..Default::default() };
            self.write(Payload::ErrorMessage(error), 0, id).await;
            return;
        }
        let stored = AcknowledgmentResponse {
            from: ack.from,
            to: ack.to,
            message_id: ack.message_id,
            chat_id: ack.chat_id,
            up_to_version: ack.up_to_version,
            status: ack.status,
            ..Default::default()
        };
        self.write(Payload::AcknowledgmentResponse(stored), 0, id).await;
    }

    /// Writes the log's entries from the session's start, also those that were answered directly.
    async fn tail(self) {
        let mut session = self.session.subscribe();
        let mut changed = self.state.changed.subscribe();
        let Ok(start) = session.wait_for(Option::is_some).await.map(|start| *start) else { return };
        let mut next = start.unwrap();
        loop {
            let entry = self.state.seen().log.get(next).cloned();
            let entry = entry.filter(|entry| !self.state.seen().mute || matches!(entry, Payload::ChatMessage(_)));
            match entry {
                Some(entry) => {
                    next += 1;
                    if !self.write(entry, next as u64, 0).await {
                        return;
                    }
                    self.state.change(|seen| seen.tailed += 1);
                }
                None => {
                    tokio::select! {
                        changed = changed.changed() => changed.unwrap(),
                        _ = self.connection.closed() => return,
                    }
                }
            }
        }
    }

    /// Writes the test's payloads on control.
    async fn push(self) {
        let mut changed = self.state.changed.subscribe();
        while changed.changed().await.is_ok() {
            let payloads = std::mem::take(&mut self.state.seen().to_control);
            for payload in payloads {
                self.write(payload, 0, 0).await;
            }
        }
    }

    /// Writes as many presence notifications as the test asks for, 8 KiB each.
    async fn notify(self) {
        let mut changed = self.state.changed.subscribe();
        loop {
            let wanted = {
                let seen = self.state.seen();
                seen.noticed < seen.to_presence
            };
            if wanted {
                let from = Some(Identity { eid: "b".repeat(8 * 1024), ..Identity::default() });
                let presence = AwarenessNotification { from, status: 1, ..Default::default() };
                if !self.write(Payload::AwarenessNotification(presence), 0, 0).await {
                    return;
                }
                self.state.change(|seen| seen.noticed += 1);
            } else if changed.changed().await.is_err() {
                return;
            }
        }
    }

    async fn write(&self, payload: Payload, sequence: u64, request_id: i64) -> bool {
        let scheme = MessageScheme { sequence: sequence as i64, request_id, ..envelope(payload) };
        self.send.lock().await.write_chunk(encode_frame(&scheme)).await.is_ok()
    }
}

/// Pings the device on the control lane, as a server does, and waits for the pong.
pub async fn ping(peer: &Peer) {
    let ping = Payload::PingpongMessage(PingPong { r#type: 1, status: 1, request_time: 1, ..Default::default() });
    let before = peer.state().seen().pongs;
    peer.state().change(|seen| seen.to_control.push(ping));
    peer.until(|seen| seen.pongs > before).await;
}
