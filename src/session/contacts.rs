//! Subscribers and blocks (BIMip-Foundation 4.4, 4.5, 5.5 and 5.6; protocol.md §11).

use prost::{Message, length_delimiter_len};

use crate::limits::{LANE_QUEUE_BYTES, LIST_TEXT_BYTES_MAX};
use crate::store::{Contact, StoreError};
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

/// Bytes of the longest frame of a list, unless the configured limit is lower.
const LIST_FRAME_BYTES: usize = LANE_QUEUE_BYTES / 2;
/// By how many bytes at most the lengths of a frame, of its payload and of its list grow with the entries.
const LIST_LENGTHS_BYTES: usize = 8;

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
    pub(super) fn list_changed(&mut self, origin: Origin, answer: Payload, changed: Result<bool, StoreError>) {
        let changed = match changed {
            Ok(changed) => Ok(changed),
            Err(StoreError::ListFull) => Err("the list is full"),
            Err(error) => return self.refuse(origin, Fault::from(&error)),
        };
        let answer = match answer {
            Payload::SubscriberAddResponse(add) => {
                let (status, message) = match changed {
                    Ok(false) => (SubscriberStatus::Success, ""),
                    Ok(true) => (SubscriberStatus::Updated, ""),
                    Err(full) => (SubscriberStatus::Failed, full),
                };
                Payload::SubscriberAddResponse(SubscriberAddResponse {
                    status: status.code(),
                    message: message.to_owned(),
                    ..add
                })
            }
            Payload::SubscriberRemove(remove) => {
                let (status, message) = match changed {
                    Ok(true) => (RevokeStatus::Success, ""),
                    _ => (RevokeStatus::Failed, "not in the list"),
                };
                Payload::SubscriberRemove(SubscriberRemove {
                    status: status.code(),
                    message: message.to_owned(),
                    ..remove
                })
            }
            Payload::BlockSubscriber(block) => {
                let (status, message) = match changed {
                    Ok(_) => (RevokeStatus::Success, ""),
                    Err(full) => (RevokeStatus::Failed, full),
                };
                Payload::BlockSubscriber(BlockSubscriber {
                    status: status.code(),
                    message: message.to_owned(),
                    ..block
                })
            }
            other => other,
        };
        self.send(Lane::Control, origin.request_id, answer);
    }

    /// SubscriberListRequest (protocol.md §11).
    pub(super) fn subscriber_list(&mut self, origin: Origin, request: &SubscriberListRequest) -> Result<(), Fault> {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        require_own(request.owner.as_ref(), &open.user, open.device.as_str())?;
        open.listing = true;
        let owner = open.user.clone();
        self.call(Call::List(origin, owner));
        Ok(())
    }

    /// Sends the list in as many frames as it needs; all but the last set `more`.
    pub(super) fn list_read(&mut self, origin: Origin, owner: &Eid, contacts: Result<Vec<Contact>, StoreError>) {
        if let Phase::Open(open) = &mut self.phase {
            open.listing = false;
        }
        let contacts = match contacts {
            Ok(contacts) => contacts,
            Err(error) => return self.refuse(origin, Fault::from(&error)),
        };
        let most = LIST_FRAME_BYTES.min(self.services.settings.frame_bytes_max);
        let mut rest = contacts.into_iter().map(entry).peekable();
        loop {
            let list = SubscriberList { owner: Some(owner.identity()), more: true, ..SubscriberList::default() };
            let mut scheme = envelope(Payload::SubscriberList(list));
            scheme.request_id = origin.request_id;
            let mut bytes = scheme.encoded_len() + LIST_LENGTHS_BYTES;
            let mut entries = Vec::new();
            while let Some(entry) = rest.next_if(|entry| {
                let length = entry.encoded_len();
                bytes += 1 + length_delimiter_len(length) + length;
                // Even the smallest frame that can be configured holds the longest entry many times.
                bytes <= most
            }) {
                entries.push(entry);
            }
            let more = rest.peek().is_some();
            if let Some(Payload::SubscriberList(list)) = &mut scheme.payload {
                (list.entries, list.more) = (entries, more);
            }
            self.send_frame(Lane::Control, encode_frame(&scheme));
            if !more {
                return;
            }
        }
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
