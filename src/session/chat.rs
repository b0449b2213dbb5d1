//! The chat family: texts, version updates, acknowledgments, synchronisation (BIMip-Foundation 4.8, 5.9 and 5.10; protocol.md
//! §7 to §9).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::limits::{LOCAL_ID_ECHO_MAX, SESSION_UNRELEASED_MAX};
use crate::observe::ContentKind;
use crate::store::{
    AcceptOutcome, Accepted, AckTarget, Acknowledged, Acknowledgment, Content, NewMessage, StoreError, Write,
};
use crate::wire::proto::{AcknowledgmentRequest, SyncAck, TextPayloadRequest, VersionUpdate};
use crate::wire::{
    AckStatus, ChatId, DeviceId, Eid, ErrorCode, Exchange, Identity, Lane, LocalId, MessageId, Sequence,
    TEXT_BYTES_MAX, Version, encode_frame,
};

use super::fault::{Fault, require_own};
use super::flood;
use super::order::Why;
use super::{Asked, Now, Open, Origin, Output, Phase, Session, render};

/// The session's own messages that are still being processed.
pub(super) struct Chat {
    /// The sender chose that its messages are released without waiting for its answers to VersionUpdates.
    pipelined: bool,
    /// Messages that are accepted but not released, oldest first. Bounded: at the bound the oldest is released at once.
    unreleased: VecDeque<(Instant, MessageId)>,
    /// Request ids of sends whose VersionUpdate was not sent yet, oldest first; bounded by [`Session::wanted`].
    requests: VecDeque<(LocalId, i64)>,
    /// Repeated answers for a message. They are sent once the tail has sent the first answer, so that sequences stay in order.
    owed: VecDeque<(Sequence, Bytes)>,
}

impl Chat {
    pub(super) fn new(pipelined: bool) -> Chat {
        Chat { pipelined, unreleased: VecDeque::new(), requests: VecDeque::new(), owed: VecDeque::new() }
    }

    /// Number of sends that wait for their answer.
    pub(super) fn unanswered(&self) -> usize {
        self.requests.len() + self.owed.len()
    }

    /// When the oldest unreleased message has waited long enough.
    pub(super) fn release_due(&self) -> Option<Instant> {
        self.unreleased.front().map(|(due, _)| *due)
    }

    /// Takes all unreleased messages.
    pub(super) fn unreleased(&mut self) -> impl Iterator<Item = MessageId> + use<> {
        std::mem::take(&mut self.unreleased).into_iter().map(|(_, message)| message)
    }

    /// The request id that the VersionUpdate of this message answers; zero: none.
    pub(super) fn answer(&mut self, local_id: &LocalId) -> i64 {
        // Nearly always the first: sends are answered in the order in which they came.
        let place = self.requests.iter().position(|(name, _)| name == local_id);
        place.and_then(|place| self.requests.remove(place)).map_or(0, |(_, id)| id)
    }

    /// The next owed answer that may be sent now that the tail is at `position`.
    pub(super) fn pop_owed(&mut self, position: Sequence) -> Option<Bytes> {
        let (_, frame) = self.owed.pop_front_if(|(sequence, _)| *sequence <= position)?;
        Some(frame)
    }

    /// Whether [`Chat::pop_owed`] would return an answer.
    pub(super) fn is_owed(&self, position: Sequence) -> bool {
        self.owed.front().is_some_and(|(sequence, _)| *sequence <= position)
    }

    /// Adds a message that waits for its release. Returns the message that must be released now to stay within the bound.
    pub(super) fn wait_for_answer(&mut self, message: MessageId, due: Instant) -> Option<MessageId> {
        // A pipelined message only waits for an earlier one of the chat. The store releases it together with that one.
        if self.pipelined || self.unreleased.iter().any(|(_, waiting)| *waiting == message) {
            return None;
        }
        self.unreleased.push_back((due, message));
        if self.unreleased.len() <= SESSION_UNRELEASED_MAX {
            return None;
        }
        self.unreleased.pop_front().map(|(_, message)| message)
    }
}

impl Session {
    /// The link is closed, and nobody reads answers any more. What was sent behind the requests for them still counts, so it
    /// does not wait for them.
    pub(super) fn give_up_answers(&mut self) {
        self.unread = true;
        if let Phase::Open(open) = &mut self.phase {
            open.chat.requests.clear();
            open.chat.owed.clear();
            open.listing.take_if(|listing| listing.is_held());
        }
    }

    /// 5.9.1 TextPayloadRequest.
    pub(super) fn text_payload(&mut self, origin: Origin, text: TextPayloadRequest, now: Now) -> Result<(), Fault> {
        let local = echo(&text.message_id_local);
        self.check_text(text, now).map_err(|fault| fault.details(local)).map(|message| self.accept(origin, message))
    }

    fn check_text(&self, text: TextPayloadRequest, now: Now) -> Result<NewMessage, Fault> {
        let (sender, device, recipient) = self.check_parties(text.from.as_ref(), &text.to)?;
        let local_id = LocalId::parse(&text.message_id_local)?;
        if text.content.is_empty() {
            return Err(Fault::malformed("content is empty"));
        }
        if text.content.len() > TEXT_BYTES_MAX {
            return Err(Fault::new(ErrorCode::TooLarge, "content is longer than 16 KiB"));
        }
        if !is_plausible_size(&text.text_size_count, text.content.len()) {
            return Err(Fault::malformed("text_size_count is empty, or a decimal number up to the content's bytes"));
        }
        Ok(self.new_message((sender, device, recipient), local_id, Content::Text(text.content), text.created_at, now))
    }

    /// Checks that `from` is the session's own user, and that there is exactly one recipient: another user, in a served domain.
    pub(super) fn check_parties(
        &self,
        from: Option<&Identity>,
        to: &[Identity],
    ) -> Result<(Eid, DeviceId, Eid), Fault> {
        let Phase::Open(open) = &self.phase else {
            return Err(Fault::new(ErrorCode::Unauthenticated, "not signed in"));
        };
        require_own(from, &open.user, open.device.as_str())?;
        let [to] = to else { return Err(Fault::malformed("exactly one recipient is needed")) };
        let recipient = Eid::parse(&to.eid)?;
        if recipient == open.user {
            return Err(Fault::malformed("a message to oneself"));
        }
        if !self.services.settings.serves(&recipient) {
            return Err(Fault::new(ErrorCode::NotFound, "the recipient's domain is not served here"));
        }
        Ok((open.user.clone(), open.device.clone(), recipient))
    }

    pub(super) fn new_message(
        &self,
        (sender, device, recipient): (Eid, DeviceId, Eid),
        local_id: LocalId,
        content: Content,
        created_at: i64,
        now: Now,
    ) -> NewMessage {
        let mut entropy = [0; 10];
        (self.services.random)(&mut entropy);
        let Now { at: received, unix_ms: received_at } = now;
        NewMessage { sender, device, recipient, local_id, content, created_at, received_at, received, entropy }
    }

    pub(super) fn accept(&mut self, origin: Origin, message: NewMessage) {
        let Phase::Open(open) = &mut self.phase else { return };
        if !self.unread {
            open.chat.requests.push_back((message.local_id.clone(), origin.request_id));
        }
        let release = open.chat.pipelined;
        let asked = Asked::Accept(origin, message.local_id.clone());
        self.write(asked, Write::Accept(Box::new(message), release));
    }

    /// The store has accepted or refused a message. The tail sends the VersionUpdate, in its place among the sender's other
    /// entries.
    pub(super) fn accepted(
        &mut self,
        origin: Origin,
        local: &LocalId,
        accepted: Result<Accepted, StoreError>,
        now: Now,
    ) {
        let within = self.services.settings.release_within;
        if let Ok(Accepted { message, outcome: AcceptOutcome::Released | AcceptOutcome::Waiting, .. }) = &accepted {
            let content = match message.content {
                Content::Text(_) => ContentKind::Text,
                Content::Media { .. } => ContentKind::Media,
            };
            self.services.metrics.accepted[content].increment(1);
        }
        let Phase::Open(open) = &mut self.phase else { return self.release_orphan(accepted) };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                forget_request(open, local, origin.request_id);
                if error == StoreError::DiskFull {
                    self.services.metrics.disk_refused.increment(1);
                }
                let fault = Fault::from(&error);
                let wait = self.behind_wait();
                if matches!(fault.code, ErrorCode::Unavailable | ErrorCode::TooFast) {
                    self.put_off(local.as_str(), wait, Why::Store, now);
                }
                let details =
                    if fault.code == ErrorCode::TooFast { flood::wait_details(wait) } else { local.to_string() };
                return self.refuse(origin, fault.details(details));
            }
        };
        match accepted.outcome {
            AcceptOutcome::Released => {}
            AcceptOutcome::Waiting => {
                let pushed_out = open.chat.wait_for_answer(accepted.message.id, now.at + within);
                let sender = open.user.clone();
                self.release(&sender, pushed_out);
            }
            AcceptOutcome::Known => self.answer_again(origin, local, &accepted),
        }
    }

    /// The session has ended, and released only what was accepted until then. A message that was accepted later must not wait.
    fn release_orphan(&mut self, accepted: Result<Accepted, StoreError>) {
        if let Ok(Accepted { message, outcome: AcceptOutcome::Waiting, .. }) = accepted {
            self.release(&message.sender, [message.id]);
        }
    }

    /// The same message was sent again: repeats the same VersionUpdate, and does nothing else (protocol.md §7).
    fn answer_again(&mut self, origin: Origin, local: &LocalId, accepted: &Accepted) {
        let Phase::Open(open) = &mut self.phase else { return };
        let passed = accepted.sequence <= open.tail.position();
        let first_still_comes = !passed && accepted.message.device == open.device;
        if first_still_comes && open.chat.requests.iter().filter(|(name, _)| name == local).count() == 1 {
            return; // The tail answers it.
        }
        if !forget_request(open, local, origin.request_id) {
            return; // The tail passed it while the store was asked, and has answered it.
        }
        let mut scheme = render::version_update(&accepted.message, accepted.sequence);
        scheme.request_id = origin.request_id;
        let frame = encode_frame(&scheme);
        // A frame for a lane that is not open would be dropped.
        if passed && self.lanes.contains(Lane::Chat) {
            self.send_frame(Lane::Chat, frame);
        } else {
            open.chat.owed.push_back((accepted.sequence, frame));
            open.tail.look();
        }
    }

    /// 5.10 VersionUpdate RESPONSE: the sender knows its message's version.
    pub(super) fn version_update(&mut self, update: VersionUpdate) -> Result<(), Fault> {
        if update.r#type != Exchange::Response.code() {
            return Err(Fault::malformed("a client answers a VersionUpdate with type 2"));
        }
        let message = MessageId::parse(&update.message_id)?;
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        let waiting = open.chat.unreleased.iter().position(|(_, waiting)| *waiting == message);
        // Not found: it was released meanwhile, or accepted in an earlier connection.
        let answered = waiting.and_then(|index| open.chat.unreleased.remove(index)).map(|(_, message)| message);
        let sender = open.user.clone();
        self.release(&sender, answered);
        Ok(())
    }

    pub(super) fn release_overdue(&mut self, now: Now) {
        let Phase::Open(open) = &mut self.phase else { return };
        let mut overdue = Vec::new();
        while let Some((_, message)) = open.chat.unreleased.pop_front_if(|(due, _)| *due <= now.at) {
            overdue.push(message);
        }
        self.services.metrics.releases_overdue.increment(overdue.len() as u64);
        let sender = open.user.clone();
        self.release(&sender, overdue);
    }

    pub(super) fn release(&mut self, sender: &Eid, messages: impl IntoIterator<Item = MessageId>) {
        for message in messages {
            self.releases += 1;
            self.out.push_back(Output::Write(Asked::Release(message), Write::Release(sender.clone(), message)));
        }
    }

    /// 5.9.3 AcknowledgmentRequest.
    pub(super) fn acknowledgment(
        &mut self,
        origin: Origin,
        request: AcknowledgmentRequest,
        now: Now,
    ) -> Result<(), Fault> {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        require_own(request.from.as_ref(), &open.user, open.device.as_str())?;
        Eid::from_identity(request.to.as_ref())?;
        let status = AckStatus::from_code(request.status)
            .filter(|status| matches!(status, AckStatus::Delivered | AckStatus::Read))
            .ok_or_else(|| Fault::malformed("status is 2 delivered or 3 read"))?;
        let target = match (request.message_id.is_empty(), request.chat_id.is_empty()) {
            (false, _) => AckTarget::Message(MessageId::parse(&request.message_id)?),
            (true, false) if request.up_to_version > 0 => {
                AckTarget::UpTo(ChatId::parse(&request.chat_id)?, Version::from_wire(request.up_to_version))
            }
            _ => return Err(Fault::malformed("message_id, or chat_id with up_to_version, is needed")),
        };
        // The user may have read it earlier, while the device was offline. A time in the future means that the device's clock
        // is ahead.
        let received_at = now.unix_ms;
        let at = if request.timestamp > 0 { request.timestamp.min(received_at) } else { received_at };
        let (reader, device) = (open.user.clone(), open.device.clone());
        let acknowledgment = Acknowledgment { reader, device, target, status, at, received_at };
        self.write(Asked::Acknowledge(origin), Write::Acknowledge(Box::new(acknowledgment)));
        Ok(())
    }

    pub(super) fn acknowledged(&mut self, origin: Origin, acknowledged: Result<Acknowledged, StoreError>, now: Now) {
        match acknowledged {
            Ok(state) => {
                // A receipt for many messages does not tell when the last of them was accepted.
                if let (AckTarget::Message(id), AckStatus::Delivered, true) =
                    (&state.target, state.status, state.changed)
                {
                    let latency = now.unix_ms.saturating_sub(id.unix_ms());
                    self.services.metrics.receipt.record(millis(latency));
                }
                self.send(Lane::Chat, origin.request_id, render::acknowledgment(&state));
            }
            Err(error) => self.refuse(origin, Fault::from(&error)),
        }
    }

    /// SyncAck (protocol.md §9): everything up to this sequence is safe on the device.
    pub(super) fn sync_ack(&mut self, ack: &SyncAck) -> Result<(), Fault> {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        if ack.sequence < 0 {
            return Err(Fault::malformed("sequence is negative"));
        }
        let synced = Output::Synced(open.user.clone(), open.device.clone(), Sequence::from_wire(ack.sequence));
        self.out.push_back(synced);
        Ok(())
    }
}

/// A time difference, which is negative only if the clock was set back; then it counts as zero.
pub(super) fn millis(difference: i64) -> Duration {
    Duration::from_millis(u64::try_from(difference).unwrap_or(0))
}

/// The client's own id as errors echo it, cut to the length of the longest valid one.
pub(super) fn echo(local_id: &str) -> String {
    local_id.chars().take(LOCAL_ID_ECHO_MAX).collect()
}

/// Removes a send from those that wait for their answer. Returns `false` if it was already answered.
fn forget_request(open: &mut Open, local_id: &LocalId, request_id: i64) -> bool {
    let place = open.chat.requests.iter().rposition(|(name, id)| name == local_id && *id == request_id);
    place.and_then(|place| open.chat.requests.remove(place)).is_some()
}

/// Clients count characters differently, so any decimal number up to the content's bytes is accepted (protocol.md §7).
fn is_plausible_size(count: &str, content_bytes: usize) -> bool {
    count.is_empty()
        || count.bytes().all(|byte| byte.is_ascii_digit())
            && count.parse().is_ok_and(|count: usize| count <= content_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{SESSION_CALLS_MAX, SESSION_CALLS_RESERVED};
    use crate::session::testing::House;
    use crate::store::testing::{device, eid};
    use crate::wire::Payload;

    #[tokio::test]
    async fn a_sender_whose_messages_are_all_overdue_is_read_on() {
        const MESSAGES: usize = SESSION_CALLS_MAX + SESSION_CALLS_RESERVED + 20;
        // Longer than the test, and shorter than the tests' other timeouts.
        let within = Duration::from_secs(600);
        let house = House::new(|settings, _| settings.release_within = within);
        let (alice, phone) = (eid("alice"), device("phone"));
        let mut bare = house.bare_with(&alice, &phone, |open| open.pipelined = false).await;
        for number in 0..MESSAGES {
            let request = TextPayloadRequest {
                from: Some(alice.identity()),
                to: vec![eid("bob").identity()],
                content: "hello".into(),
                message_id_local: format!("local-{number}"),
                ..TextPayloadRequest::default()
            };
            // The tests' randomness is always the same, so the time has to tell the messages apart.
            let now = Now { unix_ms: number as i64, ..Now::system() };
            bare.hear_at(Lane::Chat, Payload::TextPayloadRequest(request), now);
            bare.settle().await;
        }
        let before = bare.session.wanted();
        let now = Now::system();
        bare.session.tick(Now { at: now.at + within, ..now });
        let releases =
            bare.outputs().into_iter().filter(|output| matches!(output, Output::Write(Asked::Release(_), _)));
        assert_eq!(releases.count(), MESSAGES);
        assert!(bare.session.is_waiting());
        assert_eq!(bare.session.wanted(), before, "a store that stalls does not keep it from pinging or leaving");
    }

    #[tokio::test]
    async fn nothing_was_read_later_than_the_server_hears_of_it() {
        let house = House::new(|_, _| ());
        let (alice, now) = (eid("alice"), Now::system());
        let mut phone = house.bare(&alice, &device("phone")).await;
        for (says, at) in [(now.unix_ms + 3_600_000, now.unix_ms), (now.unix_ms - 5, now.unix_ms - 5), (0, now.unix_ms)]
        {
            let request = AcknowledgmentRequest {
                from: Some(alice.identity()),
                to: Some(eid("bob").identity()),
                message_id: MessageId::new(1, [0; 10]).to_string(),
                status: AckStatus::Read.code(),
                timestamp: says,
                ..AcknowledgmentRequest::default()
            };
            phone.hear_at(Lane::Chat, Payload::AcknowledgmentRequest(request), now);
            let outputs = phone.outputs();
            let [Output::Write(_, Write::Acknowledge(acknowledgment))] = &outputs[..] else { panic!("{outputs:?}") };
            assert_eq!(acknowledgment.at, at, "{says}");
        }
    }

    #[test]
    fn text_sizes_are_plausible_or_refused() {
        for good in ["", "0", "8", "08"] {
            assert!(is_plausible_size(good, 8), "{good}");
        }
        for bad in ["9", "-1", "+8", "8.0", " 8", "99999999999999999999999"] {
            assert!(!is_plausible_size(bad, 8), "{bad}");
        }
    }

    #[test]
    fn each_request_for_the_same_message_gets_its_own_answer() {
        let mut chat = Chat::new(true);
        let local = LocalId::parse("local-1").unwrap();
        let other = LocalId::parse("local-2").unwrap();
        chat.requests.extend([(local.clone(), 7), (other.clone(), 9), (local.clone(), 8)]);
        assert_eq!((chat.answer(&local), chat.answer(&local), chat.answer(&local)), (7, 8, 0));
        assert_eq!(chat.answer(&other), 9);
        assert_eq!(chat.unanswered(), 0);
    }

    #[test]
    fn the_oldest_unreleased_message_makes_room() {
        let mut chat = Chat::new(false);
        let now = Instant::now();
        let id = |n: usize| MessageId::new(n as i64, [0; 10]);
        assert!((0..SESSION_UNRELEASED_MAX).all(|n| chat.wait_for_answer(id(n), now).is_none()));
        assert_eq!(chat.wait_for_answer(id(5), now), None);
        assert_eq!(chat.wait_for_answer(id(SESSION_UNRELEASED_MAX), now), Some(id(0)));
        assert_eq!(chat.unreleased().count(), SESSION_UNRELEASED_MAX);
    }
}
