//! Deletes what [`crate::store::retention`] has found.

use super::books::Books;
use super::txn::Txn;
use crate::store::kv::{Order, Space, View};
use crate::store::record::FloorRecord;
use crate::store::retention::Gone;
use crate::store::{StoreError, key};
use crate::wire::{ChatId, Eid, Sequence};

impl Books {
    /// Deletes the oldest rows of a log, given by the sequences of their last entries, without reading them.
    pub(super) fn trim_log(&mut self, txn: &mut Txn, user: &Eid, rows: &[Sequence]) -> Result<(), StoreError> {
        let Some(up_to) = rows.last() else { return Ok(()) };
        let bounds = self.log(txn, user)?;
        for last in rows {
            txn.delete(Space::Logs, &key::log(user, *last));
        }
        if *up_to > bounds.trimmed {
            txn.put(&key::log_floor(user), &FloorRecord { last: up_to.get() });
            self.has_trimmed(user, *up_to);
        }
        Ok(())
    }

    /// Deletes the oldest messages of a chat, which nothing refers to.
    pub(super) fn trim_chat(
        &mut self,
        txn: &mut Txn,
        chat: ChatId,
        parties: &(Eid, Eid),
        gone: Vec<Gone>,
    ) -> Result<(), StoreError> {
        let Some(last) = gone.last().map(|gone| gone.version) else { return Ok(()) };
        let is_empty = txn.range(Space::Chats, &key::versions(chat, last, None), Order::Ascending, 1)?.is_empty();
        for Gone { version, id, local } in gone {
            txn.delete(Space::Chats, &key::chat(chat, version));
            txn.delete(Space::Messages, &key::message(id));
            txn.delete(Space::Locals, &local);
            self.forget_message(id);
        }
        // The floor keeps versions from being reused, and tells the next pass where to start.
        txn.put(&key::chat_floor(chat), &FloorRecord { last: last.get() });
        if is_empty {
            for reader in [&parties.0, &parties.1] {
                txn.delete(Space::Marks, &key::mark(chat, reader));
            }
            self.forget_chat(chat);
        }
        Ok(())
    }
}
