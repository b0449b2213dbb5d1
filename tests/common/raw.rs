//! A client of lanes and bytes: it can send anything, and checks every frame that it receives.

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
    /// The user that it signs in as.
    pub eid: String,
    /// The device that it signs in as.
    pub device: String,
    /// The server's answer to the sign-in.
    pub accept: SessionAccept,
    /// Highest sequence seen.
    pub last_sequence: i64,
    link: Link,
    decoders: [FrameDecoder; 4],
    last_request: i64,
}

impl Raw {
    /// A client that has sent nothing yet. It fails the test when it gets a frame over `max_frame_bytes` (protocol.md §2).
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

    // --- Sending ---

    /// Opens a lane.
    pub async fn open(&mut self, lane: Lane) {
        self.open_byte(lane.byte()).await;
    }

    /// Opens a lane with any lane byte.
    pub async fn open_byte(&mut self, byte: u8) {
        within_bound("a lane to open", self.link.open(byte)).await;
    }

    /// Writes any bytes.
    pub async fn write(&mut self, lane: Lane, bytes: &[u8]) {
        self.try_write(lane, bytes).await.unwrap_or_else(|end| panic!("writing to {lane:?}: {end}"));
    }

    /// Writes any bytes.
    ///
    /// # Errors
    /// The reason why the lane or the connection takes no more bytes.
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

    /// Sends a payload with a new request id, and returns that id.
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

    /// Its connection.
    pub fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Closes the connection without a `Logout`.
    pub fn leave(self) {
        self.link.close();
    }

    /// Writes any bytes and closes right behind them. Returns once all have left: they must fit in QUIC's first window, some
    /// 12 KB.
    pub async fn write_and_leave(mut self, lane: Lane, bytes: &[u8]) {
        let before = if let Link::Quic(link) = &self.link { link.sent() } else { 0 };
        self.write(lane, bytes).await;
        // Over TCP what is written goes before the close in any case; QUIC drops what it has not sent.
        let Link::Quic(link) = &self.link else { return self.leave() };
        within_bound("all that was written to leave", link.rest(before)).await;
        let before = link.sent();
        link.close();
        within_bound("the close to leave", link.rest(before)).await;
    }

    // --- Receiving ---

    /// The next frame of a lane.
    pub async fn recv(&mut self, lane: Lane) -> MessageScheme {
        let what = format!("a frame on {lane:?} for {} {}", self.eid, self.device);
        within_bound(&what, self.try_recv(lane)).await.unwrap_or_else(|end| panic!("no frame on {lane:?}: {end}"))
    }

    /// The next frame of a lane; it must carry a `T`.
    pub async fn expect<T: Body + Clone>(&mut self, lane: Lane) -> Got<T> {
        Got::from_scheme(&self.recv(lane).await)
    }

    /// The next frame of a lane; it must be an error with this code in answer to this request.
    pub async fn expect_error(&mut self, lane: Lane, code: i32, request_id: i64) -> ErrorMessage {
        let error = self.expect::<ErrorMessage>(lane).await;
        assert_eq!((error.code, error.request_id, error.sequence), (code, request_id, 0), "{error:?}");
        error.into_body()
    }

    /// Asserts that the server closes with this code. Frames that arrive before the close are discarded.
    pub async fn expect_close(&mut self, code: CloseCode) {
        assert_eq!(within_bound("the server to close", self.link.closed()).await, code);
    }

    /// Asserts that nothing is left to read on the lane: the next frame answers the empty envelope that this sends.
    pub async fn expect_nothing_more(&mut self, lane: Lane) {
        let request_id = self.request_id();
        self.send_scheme(lane, &MessageScheme { request_id, ..MessageScheme::default() }).await;
        self.expect_error(lane, 501, request_id).await;
    }

    /// The next frame of a lane, without a timeout. The future may be dropped and the method called again.
    ///
    /// # Errors
    /// The reason why no more frames will come.
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

    /// Checks what holds for all frames: the route is set (protocol.md §3), and sequences ascend (protocol.md §9). The one
    /// exception is the answer to a repeated message, which carries the sequence of the first answer.
    fn check(&mut self, scheme: &MessageScheme) {
        assert_eq!(Some(scheme.route), scheme.payload.as_ref().map(route_of), "{scheme:?}");
        let again = matches!(scheme.payload, Some(Payload::VersionUpdate(_))) && scheme.request_id != 0;
        if scheme.sequence > self.last_sequence {
            self.last_sequence = scheme.sequence;
        } else {
            assert!(scheme.sequence == 0 || again, "sequence after {}: {scheme:?}", self.last_sequence);
        }
    }

    // --- Common requests ---

    /// The user.
    pub fn user(&self) -> Identity {
        identity(&self.eid)
    }

    /// The user on this device.
    pub fn identity(&self) -> Identity {
        Identity { eid: self.eid.clone(), connection_resource_id: self.device.clone() }
    }

    /// A ping and its pong, which must be the next frame on the control lane.
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

    /// A valid text request.
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

    /// Sends a text and returns its VersionUpdate, which must be the next frame of chat. Does not answer it.
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

    /// The next frame of chat; it must be a message.
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

    /// Sends a SyncAck up to `sequence` and returns once the server has processed it. Chat must have nothing to read.
    pub async fn sync(&mut self, sequence: i64) {
        self.send(Lane::Chat, Payload::SyncAck(SyncAck { sequence })).await;
        self.expect_nothing_more(Lane::Chat).await;
    }
}

/// The identity of a user, without a device.
pub fn identity(eid: &str) -> Identity {
    Identity { eid: eid.to_owned(), connection_resource_id: String::new() }
}

/// The varint in front of a frame.
pub fn length_prefix(length: usize) -> Vec<u8> {
    let mut prefix = Vec::new();
    prost::encode_length_delimiter(length, &mut prefix).expect("a Vec grows as needed");
    prefix
}
