//! Receipts for whole conversations. One request is under way at a time; the next one covers all progress made
//! meanwhile.

use std::collections::HashMap;
use std::future::pending;

use tokio::task::JoinHandle;

use crate::client::{Device, RequestError};
use crate::clock::Now;
use crate::wire::proto::AcknowledgmentRequest;
use crate::wire::{AckStatus, ChatId, Eid, Payload, Version};

/// Receipts that are still to be sent. It has at most one entry for each conversation of the device.
pub(super) struct Receipts {
    device: Device,
    status: AckStatus,
    due: HashMap<ChatId, (Eid, Version)>,
    /// Per conversation, the newest version that is due, under way or acknowledged.
    said: HashMap<ChatId, Version>,
    under_way: Option<UnderWay>,
    /// The connection was lost during the last request; what is due waits for the next connection.
    paused: bool,
}

struct UnderWay {
    chat: ChatId,
    peer: Eid,
    version: Version,
    answer: JoinHandle<Result<Payload, RequestError>>,
}

impl Receipts {
    /// Makes an empty set of receipts of one kind.
    pub(super) fn new(device: Device, status: AckStatus) -> Receipts {
        Receipts { device, status, due: HashMap::new(), said: HashMap::new(), under_way: None, paused: false }
    }

    /// Notes that this chat with this peer was received or read up to a version.
    pub(super) fn reached(&mut self, chat: ChatId, peer: &Eid, version: Version) {
        if self.said.get(&chat).is_some_and(|said| *said >= version) {
            return;
        }
        self.said.insert(chat, version);
        self.due.insert(chat, (peer.clone(), version));
        self.next();
    }

    /// Continues after a connection was made.
    pub(super) fn resume(&mut self) {
        self.paused = false;
        self.next();
    }

    /// Waits for the request under way and then sends the next one. Cancel safe.
    pub(super) async fn turn(&mut self) {
        let answer = match &mut self.under_way {
            Some(request) => (&mut request.answer).await,
            None => pending().await,
        };
        let Some(UnderWay { chat, peer, version, .. }) = self.under_way.take() else { return };
        if let Ok(Err(RequestError::NotConnected | RequestError::TimedOut | RequestError::Busy)) = answer {
            self.due.entry(chat).or_insert((peer, version));
            self.paused = true;
        }
        self.next();
    }

    /// Waits until all receipts are sent, or the connection is lost.
    pub(super) async fn finish(&mut self) {
        while self.under_way.is_some() {
            self.turn().await;
        }
    }

    fn next(&mut self) {
        if self.under_way.is_some() || self.paused {
            return;
        }
        let Some(chat) = self.due.keys().next().copied() else { return };
        let Some((peer, version)) = self.due.remove(&chat) else { return };
        let request = Payload::AcknowledgmentRequest(AcknowledgmentRequest {
            from: Some(self.device.eid().device_identity(self.device.device_id())),
            to: Some(peer.identity()),
            status: self.status.code(),
            timestamp: Now::system().unix_ms,
            chat_id: chat.to_string(),
            up_to_version: version.wire(),
            ..AcknowledgmentRequest::default()
        });
        let device = self.device.clone();
        let answer = tokio::spawn(async move { device.request(request).await });
        self.under_way = Some(UnderWay { chat, peer, version, answer });
    }
}
