//! Helpers for tests of sessions: services of their own, and a link whose other end the test plays.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::calls::Calls;
use super::{Asked, Call, Flood, LaneSet, Link, LinkEvent, Now, Output, PathStats, Services, Session, Settings, drive};
use crate::auth::{Grant, Signer, Verifier, dev};
use crate::config::{AuthConfig, LimitsConfig};
use crate::hub::Hub;
use crate::observe::{CloseReason, Metrics, TransportKind};
use crate::store::{Embedded, Memory, Options, Store, Write};
use crate::wire::proto::SessionOpen;
use crate::wire::{
    CloseCode, DeviceId, Eid, FrameDecoder, Lane, MessageScheme, Payload, encode_frame, envelope, open_envelope,
};

/// A server without a network. Its timeouts are an hour, so that none of them wakes a session during a test.
pub(crate) struct House {
    pub(crate) services: Arc<Services>,
    pub(crate) store: Arc<dyn Store>,
    signer: Signer,
    _files: tempfile::TempDir,
}

impl House {
    pub(crate) fn new(change: impl FnOnce(&mut Settings, &mut LimitsConfig)) -> House {
        let files = tempfile::tempdir().unwrap();
        let made = dev::ensure(files.path(), &[]).unwrap();
        let auth = AuthConfig { keys: vec![made.token_public], ..AuthConfig::default() };
        let long = Duration::from_secs(3600);
        let mut settings = Settings {
            server_name: "tested".into(),
            domains: Vec::new(),
            media_base: None,
            open_within: long,
            release_within: long,
            ping_interval: long,
            frame_bytes_max: crate::limits::FRAME_BYTES_MAX,
            idle_timeout: long,
        };
        let mut limits = LimitsConfig::default();
        change(&mut settings, &mut limits);
        let hub = Arc::new(Hub::default());
        let services = Services {
            hub: hub.clone(),
            flood: Flood::new(limits),
            verifier: Verifier::from_config(&auth, None).unwrap(),
            metrics: Arc::new(Metrics::new()),
            settings,
            random: Box::new(|bytes| bytes.fill(7)),
        };
        House {
            services: Arc::new(services),
            store: Arc::new(Embedded::open_memory(Memory::new(), Options::default(), hub).unwrap()),
            signer: Signer::from_pem_file(&made.token_key).unwrap(),
            _files: files,
        }
    }

    /// A token of the user's; `at`: Unix seconds.
    pub(super) fn token(&self, user: &Eid, at: i64, ttl: Duration) -> String {
        self.signer.sign(&Grant { eid: user.clone(), device: None, ttl, scope: None }, at).unwrap()
    }

    pub(super) fn open(&self, user: &Eid, device: &DeviceId) -> Payload {
        self.open_with(user, device, self.token(user, Now::system().unix_ms / 1000, Duration::from_secs(3600)))
    }

    pub(super) fn open_with(&self, user: &Eid, device: &DeviceId, token: String) -> Payload {
        Payload::SessionOpen(SessionOpen {
            identity: Some(user.device_identity(device)),
            token,
            pipelined: true,
            ..SessionOpen::default()
        })
    }

    /// A session that has received nothing yet, without a driver.
    pub(super) fn visitor(&self) -> Bare {
        let session =
            Session::new(self.services.clone(), TransportKind::Quic, Ipv4Addr::LOCALHOST.into(), Now::system());
        Bare { session, calls: Calls::new(self.store.clone()) }
    }

    /// A session that is signed in, with every lane open and presence ready, without a driver.
    pub(super) async fn bare(&self, user: &Eid, device: &DeviceId) -> Bare {
        self.bare_with(user, device, |_| ()).await
    }

    /// The same with another `SessionOpen`.
    pub(super) async fn bare_with(&self, user: &Eid, device: &DeviceId, change: impl FnOnce(&mut SessionOpen)) -> Bare {
        let mut bare = self.visitor();
        for lane in Lane::ALL {
            bare.session.event(LinkEvent::Opened(lane), Now::system());
        }
        let mut open = self.open(user, device);
        if let Payload::SessionOpen(open) = &mut open {
            change(open);
        }
        bare.hear(Lane::Control, open);
        bare.settle().await;
        bare
    }

    /// The same with a driver. Returns the other end of its link.
    pub(super) async fn device(&self, user: &Eid, device: &DeviceId) -> Peer {
        self.device_at(Peer::default(), user, device).await
    }

    /// The same on a given link.
    pub(super) async fn device_at(&self, peer: Peer, user: &Eid, device: &DeviceId) -> Peer {
        self.device_with(peer, self.open(user, device)).await
    }

    /// The same with a given `SessionOpen`.
    pub(super) async fn device_with(&self, peer: Peer, open: Payload) -> Peer {
        tokio::spawn(drive(Played(peer.0.clone()), self.services.clone(), self.store.clone()));
        Lane::ALL.into_iter().for_each(|lane| peer.play(|played| played.coming.push_back(LinkEvent::Opened(lane))));
        peer.say(Lane::Control, open);
        assert!(matches!(peer.next(Lane::Control).await.payload, Some(Payload::SessionAccept(_))));
        peer
    }
}

/// A session without a driver: the test chooses its inputs and examines its outputs.
pub(super) struct Bare {
    pub(super) session: Session,
    calls: Calls,
}

impl Bare {
    /// Passes a frame to the session.
    pub(super) fn hear(&mut self, lane: Lane, payload: Payload) {
        self.hear_at(lane, payload, Now::system());
    }

    /// The same at a given time.
    pub(super) fn hear_at(&mut self, lane: Lane, payload: Payload, now: Now) {
        let frame = content(&encode_frame(&MessageScheme { request_id: 1, ..envelope(payload) }));
        self.session.event(LinkEvent::Frame(lane, frame), now);
    }

    /// Takes the session's outputs.
    pub(super) fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.session.poll_output()).collect()
    }

    /// Runs calls and pumps until nothing is left to do. Returns the frames sent, and the close code if the session closed.
    pub(super) async fn settle(&mut self) -> (Vec<(Lane, Payload)>, Option<CloseCode>) {
        let (mut sent, mut closed) = (Vec::new(), None);
        loop {
            self.session.pump(|_| 0, Now::system());
            let outputs = self.outputs();
            if outputs.is_empty() {
                return (sent, closed);
            }
            for output in outputs {
                match output {
                    Output::Send(lane, frame) => sent.push((lane, payload(&frame))),
                    Output::Call(call) => self.answer(call).await,
                    Output::Write(asked, write) => self.write(asked, write).await,
                    Output::Synced(..) => {}
                    Output::Close(code, _) => closed = Some(code),
                }
            }
        }
    }

    /// Runs a call and passes its result to the session.
    pub(super) async fn answer(&mut self, call: Call) {
        self.calls.start(call);
        self.answered().await;
    }

    /// The same with a write.
    pub(super) async fn write(&mut self, asked: Asked, write: Write) {
        self.calls.write(asked, write);
        self.answered().await;
    }

    /// Passes the result of what is under way to the session.
    async fn answered(&mut self) {
        let done = self.calls.next().await.unwrap();
        self.session.done(done, Now::system());
    }
}

pub(super) fn payload(frame: &Bytes) -> Payload {
    open_envelope(&content(frame)).unwrap().payload.unwrap()
}

/// A frame without its length.
pub(super) fn content(frame: &Bytes) -> Bytes {
    let mut decoder = FrameDecoder::new(usize::MAX);
    decoder.feed(frame.clone());
    decoder.next_frame().unwrap().unwrap()
}

/// The other end of a link.
#[derive(Clone, Default)]
pub(super) struct Peer(Arc<Mutex<State>>);

#[derive(Default)]
pub(super) struct State {
    coming: VecDeque<LinkEvent>,
    queues: [VecDeque<Bytes>; 4],
    /// Frames that the peer has received, by lane.
    arrived: [VecDeque<Bytes>; 4],
    /// Lanes from which the peer takes nothing.
    pub(super) unread: [bool; 4],
    /// Called once, right before the session sends presence notifications.
    pub(super) before_presence: Option<Box<dyn FnOnce() + Send>>,
    pub(super) path: PathStats,
    looked_at: Option<Lane>,
    pub(super) closed: Option<CloseCode>,
    server: Option<Waker>,
    peer: Option<Waker>,
}

impl Peer {
    /// Changes how the link behaves.
    pub(super) fn play<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.lock().unwrap();
        let result = change(&mut state);
        state.server.take().into_iter().for_each(Waker::wake);
        result
    }

    pub(super) fn say(&self, lane: Lane, payload: Payload) {
        let frame = content(&encode_frame(&envelope(payload)));
        self.play(|played| played.coming.push_back(LinkEvent::Frame(lane, frame)));
    }

    /// Bytes of a lane that the peer has not taken.
    pub(super) fn untaken(&self, lane: Lane) -> usize {
        self.0.lock().unwrap().queues[lane.index()].iter().map(Bytes::len).sum()
    }

    /// The next frame of a lane. The test fails if none comes within 20 s, far longer than any should take.
    pub(super) async fn next(&self, lane: Lane) -> MessageScheme {
        let next = poll_fn(|cx| {
            let mut state = self.0.lock().unwrap();
            state.peer = Some(cx.waker().clone());
            state.arrived[lane.index()].pop_front().map_or(Poll::Pending, Poll::Ready)
        });
        let frame = tokio::time::timeout(Duration::from_secs(20), next).await;
        let frame = frame.unwrap_or_else(|_| panic!("nothing came on {lane:?}"));
        open_envelope(&content(&frame)).unwrap()
    }

    /// The code with which the server closes the link. The test fails if it does not within 20 s.
    pub(super) async fn end(&self) -> CloseCode {
        let end = poll_fn(|cx| {
            let mut state = self.0.lock().unwrap();
            state.peer = Some(cx.waker().clone());
            state.closed.map_or(Poll::Pending, Poll::Ready)
        });
        tokio::time::timeout(Duration::from_secs(20), end).await.expect("the link is closed")
    }
}

struct Played(Arc<Mutex<State>>);

impl Played {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl Link for Played {
    fn kind(&self) -> TransportKind {
        TransportKind::Quic
    }

    fn remote(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 1).into()
    }

    fn path(&self) -> PathStats {
        self.state().path
    }

    fn poll_event(&mut self, cx: &mut Context<'_>, wanted: LaneSet) -> Poll<LinkEvent> {
        let mut state = self.state();
        state.server = Some(cx.waker().clone());
        let is_wanted = |event: &LinkEvent| !matches!(event, LinkEvent::Frame(lane, _) if !wanted.contains(*lane));
        let next = state.coming.iter().position(is_wanted).and_then(|next| state.coming.remove(next));
        let closed = state.closed.map(|code| LinkEvent::Closed(CloseReason::from(code)));
        next.or(closed).map_or(Poll::Pending, Poll::Ready)
    }

    fn push(&mut self, lane: Lane, frame: Bytes) {
        self.state().queues[lane.index()].push_back(frame);
    }

    fn queued(&self, lane: Lane) -> usize {
        let before = self.state().looked_at.replace(lane);
        // Only the pump asks for presence right after chat, so the first such call comes from it.
        let pumped = (before, lane) == (Some(Lane::Chat), Lane::Presence);
        let hook = pumped.then(|| self.state().before_presence.take()).flatten();
        hook.into_iter().for_each(|hook| hook());
        self.state().queues[lane.index()].iter().map(Bytes::len).sum()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        state.server = Some(cx.waker().clone());
        for lane in Lane::ALL.map(Lane::index) {
            if state.closed.is_some() {
                state.queues[lane].clear();
            } else if !state.unread[lane] {
                let frames = std::mem::take(&mut state.queues[lane]);
                state.arrived[lane].extend(frames);
            }
        }
        state.peer.take().into_iter().for_each(Waker::wake);
        if state.queues.iter().all(VecDeque::is_empty) { Poll::Ready(()) } else { Poll::Pending }
    }

    fn announce(&mut self, _code: CloseCode, _reason: &str) {}

    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_flush(cx)
    }

    fn close(&mut self, code: CloseCode, _reason: &str) {
        let mut state = self.state();
        state.closed = Some(code);
        state.peer.take().into_iter().for_each(Waker::wake);
    }
}
