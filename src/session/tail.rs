//! The tail: delivers the user's log to the device in order, from the device's cursor on (protocol.md §9).
//!
//! Live delivery, the returning phone and the second device are all this one loop: take the next entries from the hub's memory,
//! or from the store when the hub no longer has them, for as long as the chat lane takes frames. A full lane simply stops the
//! loop; nothing is queued for it.
//!
//! The critical moment is the hand-over from reading the store to following live. No entry is lost there because the session
//! joins the hub before the store tells it the head, and because every wake-up makes the loop look again: an entry is either in
//! what the store returned, or announced after it.

use std::sync::Arc;

use bytes::Bytes;

use crate::hub::Recent;
use crate::limits::{LANE_QUEUE_BYTES, RECENT_ENTRIES_MAX, TAIL_READ_ENTRIES};
use crate::observe::DeliveryKind;
use crate::store::{EntryBody, LogEntry, Message, StoreError};
use crate::wire::{self, Author, DeviceId, Lane, MessageScheme, Sequence, encode_frame};

use super::chat::millis;
use super::{Call, Now, Open, Phase, Session, render};

/// How far the delivery to a device has come.
pub(super) struct Tail {
    /// Everything up to here was sent, or is not for this device.
    position: Sequence,
    /// The log's newest entry as far as this session knows.
    head: Sequence,
    /// Entries taken from the store or the hub and not sent yet; at most one read's worth.
    fetched: std::collections::VecDeque<Arc<LogEntry>>,
    /// A store read is under way.
    reading: bool,
    /// There may be new entries.
    look: bool,
}

impl Tail {
    pub(super) fn new(position: Sequence, head: Sequence) -> Tail {
        Tail { position, head, fetched: Default::default(), reading: false, look: true }
    }

    pub(super) fn look(&mut self) {
        self.look = true;
    }

    pub(super) fn position(&self) -> Sequence {
        self.position
    }

    /// Whether it may have something to send now.
    pub(super) fn is_held(&self) -> bool {
        !self.fetched.is_empty() || self.look && !self.reading
    }

    fn head(&self) -> Sequence {
        self.head.max(self.position)
    }
}

impl Session {
    pub(super) fn pump_tail(&mut self, queued: usize, now: Now) {
        if !self.lanes.contains(Lane::Chat) {
            return;
        }
        let mut room = LANE_QUEUE_BYTES.saturating_sub(queued);
        while room > 0 {
            let Phase::Open(open) = &mut self.phase else { return };
            if let Some(frame) = open.chat.pop_owed(open.tail.position) {
                room = room.saturating_sub(frame.len());
                self.send_frame(Lane::Chat, frame);
                continue;
            }
            match next_entry(open) {
                Next::Entry(entry) => room = room.saturating_sub(self.deliver(&entry, now)),
                Next::Read => {
                    let (user, after) = (open.user.clone(), open.tail.position);
                    self.services.metrics.tail_reads.increment(1);
                    return self.call(Call::ReadLog(user, after, TAIL_READ_ENTRIES));
                }
                Next::Nothing => return,
            }
        }
    }

    pub(super) fn log_read(&mut self, entries: Result<Vec<Arc<LogEntry>>, StoreError>) {
        let Phase::Open(open) = &mut self.phase else { return };
        open.tail.reading = false;
        match entries {
            // The announced entries were trimmed meanwhile.
            Ok(entries) if entries.is_empty() => open.tail.position = open.tail.head(),
            Ok(entries) => open.tail.fetched.extend(entries),
            Err(_) => return self.close(wire::CloseCode::Internal, "storage is unavailable"),
        }
        open.tail.look = true;
        #[cfg(test)]
        if crate::planted::is(crate::planted::Bug::LostWakeUp) {
            open.tail.look = false;
        }
    }

    /// Sends the device's form of an entry, if it has one; returns the frame's bytes.
    fn deliver(&mut self, entry: &Arc<LogEntry>, now: Now) -> usize {
        let within = self.services.settings.release_within;
        let Phase::Open(open) = &mut self.phase else { return 0 };
        open.tail.position = entry.sequence;
        let mut pushed_out = None;
        let frame = match form(entry, &open.device) {
            Form::Nothing => return 0,
            Form::Shared(encode) => entry.frame.get_or_init(|| encode_frame(&encode())).clone(),
            Form::VersionUpdate(message) => {
                if matches!(entry.body, EntryBody::Accepted(_)) && entry.committed.is_some() {
                    let waiting = open.chat.wait_for_answer(message.id, now.at + within);
                    pushed_out = waiting.map(|message| (open.user.clone(), message));
                }
                let mut scheme = render::version_update(message, entry.sequence);
                scheme.request_id = open.chat.answer(&message.local_id);
                encode_frame(&scheme)
            }
        };
        if let EntryBody::Received(message) = &entry.body {
            let (kind, took) = match entry.received {
                Some(received) => (DeliveryKind::Live, now.at.saturating_duration_since(received)),
                None => (DeliveryKind::Backlog, millis(now.unix_ms.saturating_sub(message.received_at))),
            };
            self.services.metrics.delivery[kind].record(took);
        }
        if let Some((sender, message)) = pushed_out {
            self.release(&sender, [message]);
        }
        self.emit(frame)
    }

    fn emit(&mut self, frame: Bytes) -> usize {
        let len = frame.len();
        self.send_frame(Lane::Chat, frame);
        len
    }
}

enum Next {
    Entry(Arc<LogEntry>),
    Read,
    Nothing,
}

/// The entry after the tail's position, from what was fetched, the hub's memory, or the store.
fn next_entry(open: &mut Open) -> Next {
    let tail = &mut open.tail;
    if let Some(entry) = tail.fetched.pop_front() {
        return Next::Entry(entry);
    }
    if tail.reading || !tail.look {
        return Next::Nothing;
    }
    match open.membership.recent(tail.position, RECENT_ENTRIES_MAX) {
        Recent::Entries(entries) => {
            // If there are fewer, these are all there are, and the next one is announced.
            tail.look = entries.len() == RECENT_ENTRIES_MAX;
            tail.fetched.extend(entries);
            return tail.fetched.pop_front().map_or(Next::Nothing, Next::Entry);
        }
        Recent::Nothing if tail.position >= tail.head => {
            tail.look = false;
            return Next::Nothing;
        }
        Recent::Nothing => {}
        // If all of them were trimmed meanwhile, the tail continues after this head.
        Recent::Behind(head) => tail.head = tail.head.max(head),
    }
    tail.reading = true;
    Next::Read
}

/// What a device sees of an entry: the table at [`EntryBody`].
enum Form<'a> {
    Nothing,
    VersionUpdate(&'a Message),
    /// The same frame for every device that sees the entry.
    Shared(Box<dyn FnOnce() -> MessageScheme + 'a>),
}

fn form<'a>(entry: &'a LogEntry, device: &DeviceId) -> Form<'a> {
    let own = entry.origin.as_ref() == Some(device);
    let sequence = entry.sequence;
    match &entry.body {
        EntryBody::Received(m) => Form::Shared(Box::new(move || render::chat_message(m, Author::Receiver, sequence))),
        EntryBody::Accepted(m) | EntryBody::Sent(m) if own => Form::VersionUpdate(m),
        EntryBody::Accepted(_) => Form::Nothing,
        EntryBody::Copy(_) | EntryBody::Acknowledged(_) if own => Form::Nothing,
        EntryBody::Copy(m) | EntryBody::Sent(m) => {
            Form::Shared(Box::new(move || render::chat_message(m, Author::Sender, sequence)))
        }
        EntryBody::Acknowledged(state) => Form::Shared(Box::new(move || MessageScheme {
            sequence: sequence.wire(),
            ..wire::envelope(render::acknowledgment(state))
        })),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::Output;
    use crate::session::testing::House;
    use crate::store::testing::{device, eid};
    use crate::wire::Payload;
    use crate::wire::proto::TextPayloadRequest;

    #[tokio::test]
    async fn a_live_delivery_is_measured_below_a_millisecond_and_whatever_the_wall_clock_does() {
        for pipelined in [true, false] {
            let house = House::new(|_, _| ());
            let (alice, bob) = (eid("alice"), eid("bob"));
            let mut sender = house.bare_with(&alice, &device("phone"), |open| open.pipelined = pipelined).await;
            let mut recipient = house.bare(&bob, &device("phone")).await;
            let hour = 3_600_000;
            let now = Now::system();
            let received = Now { unix_ms: now.unix_ms - hour, ..now };
            let request = TextPayloadRequest {
                from: Some(alice.identity()),
                to: vec![bob.identity()],
                content: "hello".into(),
                message_id_local: "local-1".into(),
                ..TextPayloadRequest::default()
            };
            sender.hear_at(Lane::Chat, Payload::TextPayloadRequest(request), received);
            sender.settle().await;
            for (asked, write) in sender.session.end() {
                sender.write(asked, write).await;
            }
            recipient.session.advanced();
            recipient.session.pump(|_| 0, Now { at: received.at + Duration::from_micros(400), ..now });
            let sent = recipient.outputs();
            assert!(matches!(&sent[..], [Output::Send(Lane::Chat, _)]), "{sent:?}");
            // A device that comes later reads the message from the store, where only the wall clock's time is.
            house.bare(&bob, &device("desk")).await;
            let page = house.services.metrics.render();
            let value = |series: &str| -> f64 {
                let name = format!("bimip_delivery_latency_seconds_{series} ");
                page.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
            };
            assert_eq!((value("count{kind=\"live\"}"), value("sum{kind=\"live\"}")), (1.0, 0.0004));
            let hours = value("sum{kind=\"backlog\"}") / 3600.0;
            assert!((1.0..1.1).contains(&hours), "{hours}");
        }
    }
}
