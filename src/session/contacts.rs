//! Subscribers and blocks (BIMip-Foundation 4.4, 4.5, 5.5 and 5.6; protocol.md §11).

use prost::{Message, length_delimiter_len};

use crate::limits::{LANE_QUEUE_BYTES, LIST_TEXT_BYTES_MAX};
use crate::store::{Contact, ContactsPage, StoreError};
use crate::wire::proto::{
    BlockSubscriber, Subscriber, SubscriberAddRequest, SubscriberAddResponse, SubscriberList, SubscriberListRequest,
    SubscriberRemove,
};
use crate::wire::{
    ChatId, DeviceId, Eid, ErrorCode, Exchange, Identity, Lane, Payload, RevokeStatus, SubscriberStatus, encode_frame,
    envelope,
};

use super::call::ListChange;
use super::fault::{Fault, require_own};
use super::{Call, Now, Origin, Phase, Session};

/// By how many bytes at most the lengths of a frame, of its payload and of its list grow with the entries.
const LIST_LENGTHS_BYTES: usize = 8;

/// A list that is being told. What a frame holds is read once control has room for it, so that a peer that does not read
/// takes little memory.
pub(super) struct Listing {
    origin: Origin,
    /// The last user who was told.
    after: Option<Eid>,
    /// Whether the next frame's users are being read.
    reading: bool,
}

impl Listing {
    /// Whether the next frame waits for room on the lane.
    pub(super) fn is_held(&self) -> bool {
        !self.reading
    }
}

impl Session {
    /// 5.5 SubscriberAddRequest: the owner lets somebody see the owner's presence.
    pub(super) fn subscriber_add(&mut self, origin: Origin, add: SubscriberAddRequest, now: Now) -> Result<(), Fault> {
        let (owner, subscriber) = self.check_pair(add.owner.as_ref(), add.subscriber.as_ref())?;
        if !self.services.settings.serves(&subscriber) {
            return Err(Fault::new(ErrorCode::NotFound, "the subscriber's domain is not served here"));
        }
        if add.nickname.len() > LIST_TEXT_BYTES_MAX || add.group.len() > LIST_TEXT_BYTES_MAX {
            return Err(Fault::new(ErrorCode::TooLarge, "nickname and group are at most 256 bytes"));
        }
        let resource_id = if add.subscriber_resource_id.is_empty() {
            // Derived, so that a repeated request changes nothing.
            ChatId::between(&owner, &subscriber).to_string()[..16].to_owned()
        } else {
            DeviceId::parse(&add.subscriber_resource_id)?.to_string()
        };
        let response = SubscriberAddResponse {
            owner: Some(owner.identity()),
            subscriber: Some(subscriber.identity()),
            subscriber_resource_id: resource_id.clone(),
            timestamp: now.unix_ms,
            ..SubscriberAddResponse::default()
        };
        let contact = Contact {
            subscriber,
            subscribed: true,
            nickname: add.nickname,
            group: add.group,
            resource_id,
            share_location: add.share_location.unwrap_or(true),
            blocked: false,
            added_at: now.unix_ms,
        };
        let change = ListChange::Put(Box::new(contact));
        self.call(Call::ChangeList(origin, owner, change, Box::new(Payload::SubscriberAddResponse(response))));
        Ok(())
    }

    /// SubscriberRemove (protocol.md §11): the owner withdraws that.
    pub(super) fn subscriber_remove(
        &mut self,
        origin: Origin,
        remove: SubscriberRemove,
        now: Now,
    ) -> Result<(), Fault> {
        let (owner, subscriber) = self.check_pair(remove.owner.as_ref(), remove.subscriber.as_ref())?;
        check_request(remove.r#type)?;
        let response = SubscriberRemove {
            owner: Some(owner.identity()),
            subscriber: Some(subscriber.identity()),
            r#type: Exchange::Response.code(),
            timestamp: now.unix_ms,
            ..SubscriberRemove::default()
        };
        let change = ListChange::Remove(subscriber);
        self.call(Call::ChangeList(origin, owner, change, Box::new(Payload::SubscriberRemove(response))));
        Ok(())
    }

    /// 5.6 BlockSubscriber: blocks or unblocks a user, who need not be a subscriber.
    pub(super) fn block_subscriber(&mut self, origin: Origin, block: BlockSubscriber, now: Now) -> Result<(), Fault> {
        let (owner, subscriber) = self.check_pair(block.owner.as_ref(), block.subscriber.as_ref())?;
        check_request(block.r#type)?;
        let blocked = match block.action {
            0 | 1 => true,
            2 => false,
            _ => return Err(Fault::malformed("action is 0 or 1 to block, 2 to unblock")),
        };
        let response = BlockSubscriber {
            owner: Some(owner.identity()),
            subscriber: Some(subscriber.identity()),
            r#type: Exchange::Response.code(),
            timestamp: now.unix_ms,
            action: block.action,
            ..BlockSubscriber::default()
        };
        let change = ListChange::Block(subscriber, blocked);
        self.call(Call::ChangeList(origin, owner, change, Box::new(Payload::BlockSubscriber(response))));
        Ok(())
    }

    /// A list has changed. The change is durable and already in effect for everybody: the store told its observer before it
    /// answered.
    pub(super) fn list_changed(&mut self, origin: Origin, mut answer: Payload, changed: Result<bool, StoreError>) {
        let (result, reason) = match (&answer, changed) {
            (Payload::SubscriberAddResponse(_), Ok(true)) => (SubscriberStatus::Updated.code(), ""),
            (Payload::SubscriberRemove(_), Ok(false)) => (RevokeStatus::Failed.code(), "not in the list"),
            // The answers have the same numbers for success and failure.
            (_, Ok(_)) => (RevokeStatus::Success.code(), ""),
            (_, Err(StoreError::ListFull)) => (RevokeStatus::Failed.code(), "the list is full"),
            (_, Err(error)) => return self.refuse(origin, Fault::from(&error)),
        };
        if let Payload::SubscriberAddResponse(SubscriberAddResponse { status, message, .. })
        | Payload::SubscriberRemove(SubscriberRemove { status, message, .. })
        | Payload::BlockSubscriber(BlockSubscriber { status, message, .. }) = &mut answer
        {
            (*status, *message) = (result, reason.to_owned());
        }
        self.send(Lane::Control, origin.request_id, answer);
    }

    /// SubscriberListRequest (protocol.md §11).
    pub(super) fn subscriber_list(&mut self, origin: Origin, request: &SubscriberListRequest) -> Result<(), Fault> {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        require_own(request.owner.as_ref(), &open.user, open.device.as_str())?;
        open.listing = Some(Box::new(Listing { origin, after: None, reading: false }));
        // Control was read, so it has room.
        self.pump_list(0);
        Ok(())
    }

    /// Reads the users of the list's next frame if control has room for it. `queued` is the number of bytes that control
    /// still holds.
    pub(super) fn pump_list(&mut self, queued: usize) {
        let Phase::Open(open) = &mut self.phase else { return };
        let Some(listing) = open.listing.as_deref_mut() else { return };
        if !listing.reading && queued < LANE_QUEUE_BYTES {
            listing.reading = true;
            let (user, after) = (open.user.clone(), listing.after.clone());
            let call = Call::List(listing.origin, user, after, self.services.settings.frame_bytes_max);
            self.call(call);
        }
    }

    /// Sends a frame of the list: as many users as it holds. All frames but the last set `more`.
    pub(super) fn list_read(&mut self, origin: Origin, page: Result<ContactsPage, StoreError>) {
        let Phase::Open(open) = &mut self.phase else { return };
        let listing = open.listing.take();
        let ContactsPage { contacts, mut more } = match page {
            Ok(page) => page,
            Err(error) => return self.refuse(origin, Fault::from(&error)),
        };
        let list = SubscriberList { owner: Some(open.user.identity()), more: true, ..SubscriberList::default() };
        let mut scheme = envelope(Payload::SubscriberList(list));
        scheme.request_id = origin.request_id;
        let mut bytes = scheme.encoded_len() + LIST_LENGTHS_BYTES;
        let mut entries: Vec<Subscriber> = Vec::with_capacity(contacts.len());
        let mut after = None;
        for contact in contacts {
            let subscriber = contact.subscriber.clone();
            let entry = entry(contact);
            let length = entry.encoded_len();
            bytes += 1 + length_delimiter_len(length) + length;
            // Even the smallest frame that can be configured holds the longest entry many times.
            if bytes > self.services.settings.frame_bytes_max {
                more = true;
                break;
            }
            entries.push(entry);
            after = Some(subscriber);
        }
        if more {
            open.listing = listing.map(|listing| Box::new(Listing { after, reading: false, ..*listing }));
        }
        if let Some(Payload::SubscriberList(list)) = &mut scheme.payload {
            (list.entries, list.more) = (entries, more);
        }
        self.send_frame(Lane::Control, encode_frame(&scheme));
    }

    /// Checks that the owner is the session's own user and the subscriber somebody else.
    fn check_pair(&self, owner: Option<&Identity>, subscriber: Option<&Identity>) -> Result<(Eid, Eid), Fault> {
        let Phase::Open(open) = &self.phase else {
            return Err(Fault::new(ErrorCode::Unauthenticated, "not signed in"));
        };
        require_own(owner, &open.user, open.device.as_str())?;
        let subscriber = Eid::from_identity(subscriber)?;
        if subscriber == open.user {
            return Err(Fault::malformed("the subscriber is oneself"));
        }
        Ok((open.user.clone(), subscriber))
    }
}

/// Checks the `type` of a request whose payload is also its response.
pub(super) fn check_request(kind: i32) -> Result<(), Fault> {
    match kind {
        0 | 1 => Ok(()),
        _ => Err(Fault::malformed("type of a request is 1")),
    }
}

fn entry(contact: Contact) -> Subscriber {
    Subscriber {
        subscriber: Some(contact.subscriber.identity()),
        nickname: contact.nickname,
        group: contact.group,
        subscriber_resource_id: contact.resource_id,
        share_location: contact.subscribed && contact.share_location,
        blocked: contact.blocked,
        added_at: contact.added_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Output;
    use crate::session::testing::{House, payload};
    use crate::store::testing::{device, eid};

    #[tokio::test]
    async fn a_list_that_nobody_reads_is_not_told_any_further() {
        const USERS: usize = 1000;
        let house = House::new(|_, _| ());
        let alice = eid("alice");
        for number in 0..USERS {
            let contact = Contact {
                subscriber: eid(&format!("{}-{number:03}", "s".repeat(200))),
                subscribed: true,
                nickname: "n".repeat(LIST_TEXT_BYTES_MAX),
                group: String::new(),
                resource_id: "phone".into(),
                share_location: true,
                blocked: false,
                added_at: 0,
            };
            house.store.put_contact(&alice, contact).await.unwrap();
        }
        let mut phone = house.bare(&alice, &device("phone")).await;
        let ask = SubscriberListRequest { owner: Some(alice.device_identity(&device("phone"))) };
        phone.hear(Lane::Control, Payload::SubscriberListRequest(ask.clone()));
        let (mut queued, mut names, mut stops) = (0, 0, 0);
        loop {
            phone.session.pump(|lane| if lane == Lane::Control { queued } else { 0 }, Now::system());
            let outputs = phone.outputs();
            if outputs.is_empty() {
                assert!(queued >= LANE_QUEUE_BYTES, "it goes on while there is room");
                // The queue, and two frames.
                assert!(queued <= 3 * LANE_QUEUE_BYTES, "{queued} bytes are kept for who does not read");
                assert!(!phone.session.wanted().contains(Lane::Control), "one list at a time");
                (queued, stops) = (0, stops + 1);
                assert!(phone.session.has_backlog(|_| 0), "the driver has to go on when it is read");
            }
            let mut more = true;
            for output in outputs {
                match output {
                    Output::Call(call) => phone.answer(call).await,
                    Output::Send(_, frame) => {
                        queued += frame.len();
                        let Payload::SubscriberList(list) = payload(&frame) else { panic!("not a list") };
                        names += list.entries.len();
                        more = list.more;
                    }
                    other => panic!("{other:?}"),
                }
            }
            if !more {
                break;
            }
        }
        assert_eq!(names, USERS);
        assert!(stops > 1, "it was longer than a queue");
        assert!(phone.session.wanted().contains(Lane::Control) && !phone.session.has_backlog(|_| 0));

        // When the connection ends, what was sent behind the request counts.
        phone.hear(Lane::Control, Payload::SubscriberListRequest(ask));
        let Some(Output::Call(call)) = phone.outputs().pop() else { panic!("no call") };
        phone.answer(call).await;
        assert!(!phone.session.wanted().contains(Lane::Control));
        phone.session.give_up_answers();
        assert!(phone.session.wanted().contains(Lane::Control));
    }
}
