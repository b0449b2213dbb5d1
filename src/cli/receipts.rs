//! Receipts for whole conversations. One request is under way at a time; the next one covers all progress made
//! meanwhile.

use std::collections::HashMap;
use std::future::pending;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::limits::{RECEIPT_AGAIN_AFTER, RECEIPTS_WITHIN};
use crate::client::{Device, RequestError, State};
use crate::wire::{AckStatus, ChatId, Eid, Version};

/// Receipts that are still to be sent. It has at most one entry for each conversation of the device.
pub(super) struct Receipts {
    device: Device,
    status: AckStatus,
    due: HashMap<ChatId, (Eid, Version)>,
    /// Per conversation, the newest version that is due, under way or acknowledged.
    said: HashMap<ChatId, Version>,
    under_way: Option<UnderWay>,
    /// The last request got no answer, so the next one waits a moment.
    failed: bool,
    /// The device has stopped; what is due waits for the next connection.
    paused: bool,
}

struct UnderWay {
    chat: ChatId,
    peer: Eid,
    version: Version,
    answer: JoinHandle<Result<AckStatus, RequestError>>,
}

impl Receipts {
    /// Makes an empty set of receipts of one kind.
    pub(super) fn new(device: Device, status: AckStatus) -> Receipts {
        let (due, said) = (HashMap::new(), HashMap::new());
        Receipts { device, status, due, said, under_way: None, failed: false, paused: false }
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
        let error = answer.ok().and_then(Result::err);
        // The server was restored from a backup: versions of before are no longer those of these messages.
        if error == Some(RequestError::NotConnected) {
            self.due.clear();
            self.said.clear();
        }
        // A receipt that was refused would be refused again: the device itself repeats what the server puts off.
        let unanswered = error.filter(|error| {
            use RequestError::{Busy, Closed, TimedOut, Unread};
            matches!(error, TimedOut | Busy | Unread | Closed(_))
        });
        self.failed = unanswered.is_some();
        if let Some(error) = unanswered {
            self.due.entry(chat).or_insert((peer, version));
            self.paused = matches!(error, RequestError::Closed(_));
        }
        self.next();
    }

    /// Waits until all receipts are sent, the connection is lost, or [`RECEIPTS_WITHIN`] is over.
    pub(super) async fn finish(&mut self) {
        let mut state = self.device.state();
        let sent = async {
            while self.under_way.is_some() {
                self.turn().await;
            }
        };
        tokio::select! {
            () = sent => {}
            _ = state.wait_for(|state| !matches!(state, State::Connected(_))) => {}
            () = sleep(RECEIPTS_WITHIN) => {}
        }
    }

    fn next(&mut self) {
        if self.under_way.is_some() || self.paused {
            return;
        }
        let Some(chat) = self.due.keys().next().copied() else { return };
        let Some((peer, version)) = self.due.remove(&chat) else { return };
        let (device, to, status) = (self.device.clone(), peer.clone(), self.status);
        let failed = std::mem::take(&mut self.failed);
        let answer = tokio::spawn(async move {
            if failed {
                sleep(RECEIPT_AGAIN_AFTER).await;
            }
            device.acknowledge_up_to(chat, version, &to, status).await
        });
        self.under_way = Some(UnderWay { chat, peer, version, answer });
    }
}
