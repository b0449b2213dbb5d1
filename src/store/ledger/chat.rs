//! Accepting and releasing messages (protocol.md §7).

use std::sync::Arc;

use super::books::{Books, Ready, Stored, Waiting};
use super::txn::Txn;
#[cfg(test)]
use crate::planted;
use crate::store::kv::Space;
use crate::store::record::{self, ChatRecord, ContactRecord, LocalRecord, MessageRecord, PendingRecord, corrupt};
use crate::store::types::{AcceptOutcome, Accepted, EntryBody, Message, NewMessage};
use crate::store::{StoreError, key};
use crate::wire::{ChatId, MessageId, Sequence, Version};

impl Books {
    pub(super) fn accept(&mut self, txn: &mut Txn, new: NewMessage, release: bool) -> Result<Accepted, StoreError> {
        let digest = record::digest(&new);
        let local_key = key::local(&new.sender, &new.local_id);
        if let Some(known) = record::read::<LocalRecord>(txn, &local_key)? {
            #[cfg(test)]
            if planted::is(planted::Bug::VersionGap) {
                let chat = ChatId::between(&new.sender, &new.recipient);
                let early = self.version(txn, chat, &new.sender, &new.recipient)?.next();
                self.advance_chat(chat, early);
            }
            return accepted_before(txn, &local_key, &known, &digest);
        }
        let block = record::read::<ContactRecord>(txn, &key::pair(&new.recipient, &new.sender))?;
        if block.is_some_and(|contact| contact.blocked) {
            return Err(StoreError::Blocked);
        }
        if self.reserve.is_touched() {
            return Err(StoreError::DiskFull);
        }
        let chat = ChatId::between(&new.sender, &new.recipient);
        let now = release && !self.unreleased.waits_in(chat);
        if !now {
            self.unreleased.check_room(chat)?;
        }
        let version = self.version(txn, chat, &new.sender, &new.recipient)?.next();
        let received = Some(new.received);
        let message = numbered(new, chat, version);
        let (origin, at) = (Some(message.device.clone()), message.received_at);

        let (sequence, recipient_sequence) = if now {
            let sequence = self.append(txn, &message.sender, origin, at, EntryBody::Sent(message.clone()))?;
            let recipient_sequence = self.append_received(txn, &message, received)?;
            (sequence, recipient_sequence.get())
        } else {
            let place = PendingRecord { chat: chat.as_bytes().to_vec(), version: version.get() };
            txn.put(&key::message(message.id), &place);
            #[cfg(test)]
            if planted::is(planted::Bug::LostRelease) {
                txn.delete(Space::Pending, &key::message(message.id));
            }
            (self.append(txn, &message.sender, origin, at, EntryBody::Accepted(message.clone()))?, 0)
        };
        let id = message.id.as_bytes().to_vec();
        let row = ChatRecord {
            message: id.clone(),
            from_high: message.sender > message.recipient,
            sender_sequence: sequence.get(),
            recipient_sequence,
            ..ChatRecord::default()
        };
        let local = LocalRecord { message: id, digest: digest.to_vec(), sender_sequence: sequence.get() };
        txn.put(&key::message(message.id), &MessageRecord::from(&*message));
        txn.put(&key::chat(chat, version), &row);
        txn.put(&local_key, &local);
        // From here on nothing can fail.
        self.keep(message.clone(), row);
        self.advance_chat(chat, version);
        if !now {
            self.unreleased.insert(chat, version, Waiting { id: message.id, received, ready: release });
        }
        let outcome = if now { AcceptOutcome::Released } else { AcceptOutcome::Waiting };
        Ok(Accepted { message, sequence, outcome })
    }

    pub(super) fn release(&mut self, txn: &mut Txn, id: MessageId) -> Result<(), StoreError> {
        let ready = self.unreleased.make_ready(id);
        for message in &ready {
            self.release_one(txn, message)?;
        }
        // From here on nothing can fail.
        for message in ready {
            self.unreleased.remove(message.id);
        }
        Ok(())
    }

    fn release_one(&mut self, txn: &mut Txn, ready: &Ready) -> Result<(), StoreError> {
        let Ready { chat, version, id, received } = *ready;
        let Some(Stored { message, mut row }) = self.stored(txn, id)? else {
            return Err(corrupt(Space::Messages, id.as_bytes(), "it waits for its release, and it is not there"));
        };
        let (origin, at) = (Some(message.device.clone()), message.received_at);
        let recipient_sequence = self.append_received(txn, &message, received)?;
        let copied = self.append(txn, &message.sender, origin, at, EntryBody::Copy(message.clone()))?;
        row.copy_sequence = copied.get();
        row.recipient_sequence = recipient_sequence.get();
        self.put_row(txn, &key::chat(chat, version), &row)?;
        txn.delete(Space::Pending, &key::message(id));
        Ok(())
    }
}

/// The answer to a message whose sender has already used the `message_id_local`.
fn accepted_before(txn: &Txn, key: &[u8], known: &LocalRecord, digest: &[u8]) -> Result<Accepted, StoreError> {
    if known.digest != digest {
        return Err(StoreError::Conflict);
    }
    let id = known.message().map_err(|why| corrupt(Space::Locals, key, why))?;
    let message = record::message_named(txn, id)?;
    let sequence = Sequence::from(known.sender_sequence);
    Ok(Accepted { message, sequence, outcome: AcceptOutcome::Known })
}

fn numbered(new: NewMessage, chat: ChatId, version: Version) -> Arc<Message> {
    Arc::new(Message {
        id: MessageId::new(new.received_at, new.entropy),
        chat,
        version,
        sender: new.sender,
        device: new.device,
        recipient: new.recipient,
        local_id: new.local_id,
        content: new.content,
        created_at: new.created_at,
        received_at: new.received_at,
    })
}
