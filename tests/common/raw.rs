//! A client of lanes and bytes: it can say anything, and checks what holds for every frame that it gets.

use bimip::wire::proto::{
    AcknowledgmentRequest, ChatMessage, PingPong, SessionAccept, SyncAck, TextPayloadRequest, VersionUpdate,
};
use bimip::wire::{
    AckStatus, CloseCode, ErrorMessage, Exchange, FrameDecoder, Identity, Lane, MessageScheme, Payload, PingStatus,
    VersionStatus, encode_frame, envelope, open_envelope, route_of,
};

use super::link::Link;
use super::{Body, Got, now_ms, within_bound};

/// One connection.
pub struct Raw {
    /// Who it signed in as, or wants to.
    pub eid: String,
    /// From which device.
    pub device: String,
    /// What the server said to that.
    pub accept: SessionAccept,
    /// Highest sequence seen.
    pub last_sequence: i64,
    link: Link,
    decoders: [FrameDecoder; 4],
    last_request: i64,
}

impl Raw {
    /// A connection that has said nothing. A frame over `max_frame_bytes` is refused by this side too (profile 2).
    pub fn new(link: Link, max_frame_bytes: usize) -> Raw {
        Raw {
            eid: String::new(),
            device: String::new(),
            accept: SessionAccept::default(),
            last_sequence: 0,
            link,
            decoders: std::array::from_fn(|_| FrameDecoder::new(max_frame_bytes)),
            last_request: 0,
        }
    }

    // --- Saying ---

    /// Opens a lane.
    pub async fn open(&mut self, lane: Lane) {
        self.open_byte(lane.byte()).await;
    }

    /// Opens a lane of any byte.
    pub async fn open_byte(&mut self, byte: u8) {
        within_bound("a lane to open", self.link.open(byte)).await;
    }

    /// Writes any bytes.
    pub async fn write(&mut self, lane: Lane, bytes: &[u8]) {
        self.try_write(lane, bytes).await.unwrap_or_else(|end| panic!("writing to {lane:?}: {end}"));
    }

    /// The same, unless the connection is gone.
    pub async fn try_write(&mut self, lane: Lane, bytes: &[u8]) -> Result<(), String> {
        within_bound("a lane to take bytes", self.link.write(lane, bytes)).await
    }

    /// Writes a frame of any content.
    pub async fn write_frame(&mut self, lane: Lane, content: &[u8]) {
        let mut frame = length_prefix(content.len());
        frame.extend_from_slice(content);
        self.write(lane, &frame).await;
    }

    /// Sends an envelope as it is.
    pub async fn send_scheme(&mut self, lane: Lane, scheme: &MessageScheme) {
        self.write(lane, &encode_frame(scheme)).await;
    }

    /// Sends a payload under a request id of its own, which is returned.
    pub async fn send(&mut self, lane: Lane, payload: Payload) -> i64 {
        let request_id = self.request_id();
        self.send_scheme(lane, &MessageScheme { request_id, ..envelope(payload) }).await;
        request_id
    }

    /// A request id that this connection has not used.
    pub fn request_id(&mut self) -> i64 {
        self.last_request += 1;
        self.last_request
    }

    /// What it travels over.
    pub fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Leaves without a word.
    pub fn leave(self) {
        self.link.close();
    }

    // --- Hearing ---

    /// The next frame of a lane.
    pub async fn recv(&mut self, lane: Lane) -> MessageScheme {
        let what = format!("a frame on {lane:?} for {} {}", self.eid, self.device);
        within_bound(&what, self.try_recv(lane)).await.unwrap_or_else(|end| panic!("no frame on {lane:?}: {end}"))
    }

    /// The next frame of a lane, which carries a `T`.
    pub async fn expect<T: Body + Clone>(&mut self, lane: Lane) -> Got<T> {
        Got::from_scheme(&self.recv(lane).await)
    }

    /// The next frame of a lane, which is an error with this code in answer to this request.
    pub async fn expect_error(&mut self, lane: Lane, code: i32, request_id: i64) -> ErrorMessage {
        let error = self.expect::<ErrorMessage>(lane).await;
        assert_eq!((error.code, error.request_id, error.sequence), (code, request_id, 0), "{error:?}");
        error.into_body()
    }

    /// The server closes with this code. What it still says before is not looked at.
    pub async fn expect_close(&mut self, code: CloseCode) {
        assert_eq!(within_bound("the server to close", self.link.closed()).await, code);
    }

    /// Nothing is left to read on the lane: the next frame answers what is sent now.
    pub async fn expect_nothing_more(&mut self, lane: Lane) {
        let request_id = self.request_id();
        self.send_scheme(lane, &MessageScheme { request_id, ..MessageScheme::default() }).await;
        self.expect_error(lane, 501, request_id).await;
    }

    /// The next frame of a lane, however long it takes; the reason if there are no more. May be given up and called again.
    pub async fn try_recv(&mut self, lane: Lane) -> Result<MessageScheme, String> {
        let decoder = &mut self.decoders[lane.index()];
        let frame = loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => break frame,
                Ok(None) => decoder.feed(self.link.read(lane).await?),
                Err(error) => panic!("the server broke its own bound: {error}"),
            }
        };
        let scheme = open_envelope(&frame).unwrap_or_else(|(error, _)| panic!("the server sent a bad frame: {error}"));
        self.check(&scheme);
        Ok(scheme)
    }

    /// What holds for all frames: the route is set (profile 1), and sequences ascend (profile 8). Only the second
    /// answer to a message that was sent again carries the sequence of the first.
    fn check(&mut self, scheme: &MessageScheme) {
        assert_eq!(Some(scheme.route), scheme.payload.as_ref().map(route_of), "{scheme:?}");
        let again = matches!(scheme.payload, Some(Payload::VersionUpdate(_))) && scheme.request_id != 0;
        if scheme.sequence > self.last_sequence {
            self.last_sequence = scheme.sequence;
        } else {
            assert!(scheme.sequence == 0 || again, "sequence after {}: {scheme:?}", self.last_sequence);
        }
    }

    // --- Phrases ---

    /// The user.
    pub fn user(&self) -> Identity {
        identity(&self.eid)
    }

    /// The user on this device.
    pub fn identity(&self) -> Identity {
        Identity { eid: self.eid.clone(), connection_resource_id: self.device.clone() }
    }

    /// A round trip of the control lane, on which nothing else is left to read.
    pub async fn ping(&mut self) {
        let ping = PingPong {
            r#type: Exchange::Request.code(),
            status: PingStatus::Pending.code(),
            request_time: now_ms(),
            ..PingPong::default()
        };
        let request_id = self.send(Lane::Control, Payload::PingpongMessage(ping)).await;
        let pong = self.expect::<PingPong>(Lane::Control).await;
        assert_eq!((pong.r#type, pong.status, pong.request_id), (2, 2, request_id));
    }

    /// A legal text.
    pub fn text(&self, to: &str, local: &str, content: &str) -> TextPayloadRequest {
        TextPayloadRequest {
            from: Some(self.identity()),
            to: vec![identity(to)],
            content: content.to_owned(),
            message_id_local: local.to_owned(),
            text_size_count: content.chars().count().to_string(),
            created_at: now_ms(),
        }
    }

    /// Sends a text; returns the request id.
    pub async fn post(&mut self, to: &str, local: &str, content: &str) -> i64 {
        let text = self.text(to, local, content);
        self.send(Lane::Chat, Payload::TextPayloadRequest(text)).await
    }

    /// Sends a text whose VersionUpdate comes next, and leaves that unanswered.
    pub async fn say(&mut self, to: &str, local: &str, content: &str) -> Got<VersionUpdate> {
        let request_id = self.post(to, local, content).await;
        let update = self.expect::<VersionUpdate>(Lane::Chat).await;
        assert_eq!((update.request_id, update.message_id_local.as_str()), (request_id, local));
        update
    }

    /// Answers a VersionUpdate.
    pub async fn answer(&mut self, update: &VersionUpdate) {
        let answer = VersionUpdate {
            r#type: Exchange::Response.code(),
            status: VersionStatus::Updated.code(),
            ..update.clone()
        };
        self.send(Lane::Chat, Payload::VersionUpdate(answer)).await;
    }

    /// The next frame of chat, which is a message.
    pub async fn hear(&mut self) -> Got<ChatMessage> {
        self.expect(Lane::Chat).await
    }

    /// Acknowledges a message; returns the request id.
    pub async fn acknowledge(&mut self, message: &ChatMessage, status: AckStatus) -> i64 {
        let request = AcknowledgmentRequest {
            from: Some(self.identity()),
            to: message.from.clone(),
            message_id: message.message_id.clone(),
            status: status.code(),
            timestamp: now_ms(),
            ..AcknowledgmentRequest::default()
        };
        self.send(Lane::Chat, Payload::AcknowledgmentRequest(request)).await
    }

    /// Everything up to `sequence` is safe on this device. Returns once the server knows, if chat has nothing to read.
    pub async fn sync(&mut self, sequence: i64) {
        self.send(Lane::Chat, Payload::SyncAck(SyncAck { sequence })).await;
        self.expect_nothing_more(Lane::Chat).await;
    }
}

/// A user, whichever device.
pub fn identity(eid: &str) -> Identity {
    Identity { eid: eid.to_owned(), connection_resource_id: String::new() }
}

/// The varint in front of a frame.
pub fn length_prefix(length: usize) -> Vec<u8> {
    let mut prefix = Vec::new();
    prost::encode_length_delimiter(length, &mut prefix).expect("a Vec grows as needed");
    prefix
}
