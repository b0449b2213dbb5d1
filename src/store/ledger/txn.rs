//! A commit under construction: its operations see each other's writes, nobody else does.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use crate::limits::LOG_ROW_ENTRIES_MAX;
use crate::store::kv::{Batch, Key, Order, Row, Slice, Space, Span, View};
use crate::store::record::{LogRecord, Record};
use crate::store::types::{Change, LogEntry};
use crate::store::{StoreError, key};
use crate::wire::{Eid, Sequence};

/// `None`: deleted.
type Value = Option<Slice>;

pub(crate) struct Txn {
    base: Box<dyn View>,
    /// The writes so far, also those of the running operation.
    writes: [BTreeMap<Slice, Value>; Space::COUNT],
    /// What each write of the running operation has replaced in `writes`, in order; `None`: there was no write.
    replaced: Vec<(Space, Slice, Option<Value>)>,
    rows: usize,
    rows_read: Cell<usize>,
    appended: Vec<(Eid, Arc<LogEntry>)>,
    changes: Vec<Change>,
    before: Before,
    scratch: Vec<u8>,
}

/// The counts before the running operation, for its roll-back.
#[derive(Default)]
struct Before {
    rows: usize,
    appended: usize,
    changes: usize,
}

/// The result of a transaction.
pub(crate) struct Written {
    pub(crate) batch: Batch,
    /// No other reference to these entries exists yet.
    pub(crate) appended: Vec<(Eid, Arc<LogEntry>)>,
    pub(crate) changes: Vec<Change>,
}

impl Txn {
    pub(crate) fn new(base: Box<dyn View>) -> Txn {
        Txn {
            base,
            writes: Default::default(),
            replaced: Vec::new(),
            rows: 0,
            rows_read: Cell::new(0),
            appended: Vec::new(),
            changes: Vec::new(),
            before: Before::default(),
            scratch: Vec::new(),
        }
    }

    /// Number of writes so far; several to one row count each.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of rows that ranges have read so far; the reads of an operation that failed count as well.
    pub(crate) fn rows_read(&self) -> usize {
        self.rows_read.get()
    }

    pub(crate) fn put<R: Record>(&mut self, key: &[u8], record: &R) {
        let value = encoded(&mut self.scratch, record);
        self.write(R::SPACE, key, Some(value));
    }

    pub(crate) fn delete(&mut self, space: Space, key: &[u8]) {
        self.write(space, key, None);
    }

    /// Appends an entry to `user`'s log. Its row is made at the end of the transaction; until then no range shows it.
    pub(crate) fn append(&mut self, user: Eid, entry: LogEntry) {
        self.rows += 1;
        self.appended.push((user, Arc::new(entry)));
    }

    /// The sequence of the newest entry that this commit appends to `user`'s log, if it appends any.
    pub(crate) fn newest_entry(&self, user: &Eid) -> Option<Sequence> {
        // Called only for logs whose end is not cached, which costs a read of the engine anyway.
        self.appended.iter().rev().find(|(whose, _)| whose == user).map(|(_, entry)| entry.sequence)
    }

    pub(crate) fn changed(&mut self, change: Change) {
        self.changes.push(change);
    }

    fn write(&mut self, space: Space, key: &[u8], value: Value) {
        let key = Slice::new(key);
        let before = self.writes[space.index()].insert(key.clone(), value);
        self.replaced.push((space, key, before));
        self.rows += 1;
    }

    /// Begins the next operation: the writes of the former ones are kept.
    pub(crate) fn begin_operation(&mut self) {
        self.replaced.clear();
        self.before = Before { rows: self.rows, appended: self.appended.len(), changes: self.changes.len() };
    }

    /// Takes back what the running operation wrote; `false` if it wrote nothing.
    pub(crate) fn roll_back(&mut self) -> bool {
        let Before { rows, appended, changes } = self.before;
        let wrote = self.rows > rows;
        for (space, key, before) in self.replaced.drain(..).rev() {
            let writes = &mut self.writes[space.index()];
            match before {
                Some(value) => writes.insert(key, value),
                None => writes.remove(&key),
            };
        }
        self.rows = rows;
        self.appended.truncate(appended);
        self.changes.truncate(changes);
        wrote
    }

    /// Ends the transaction and drops its view.
    pub(crate) fn finish(mut self) -> Written {
        // An upper bound: several writes to one row become one, and entries of one log share rows.
        let mut batch = Vec::with_capacity(self.rows);
        for (space, writes) in Space::ALL.into_iter().zip(self.writes) {
            batch.extend(writes.into_iter().map(|(key, value)| (space, key, value)));
        }
        put_log_rows(&self.appended, &mut batch, &mut self.scratch);
        Written { batch, appended: self.appended, changes: self.changes }
    }
}

/// Adds the rows of all entries: the entries of one user share rows, up to [`LOG_ROW_ENTRIES_MAX`] in each.
fn put_log_rows(appended: &[(Eid, Arc<LogEntry>)], batch: &mut Batch, scratch: &mut Vec<u8>) {
    let mut logs: HashMap<&Eid, Vec<&LogEntry>> = HashMap::new();
    for (user, entry) in appended {
        logs.entry(user).or_default().push(entry);
    }
    let rows = logs.iter().flat_map(|(user, entries)| {
        entries.chunks(LOG_ROW_ENTRIES_MAX).filter_map(|entries| LogRecord::row(user, entries))
    });
    batch.extend(rows.map(|(key, record)| (Space::Logs, Slice::new(&key), Some(encoded(scratch, &record)))));
}

/// Encodes a record as it is stored. It goes through a reused buffer, because a slice is created in one piece.
fn encoded<R: Record>(buffer: &mut Vec<u8>, record: &R) -> Slice {
    buffer.clear();
    let encoded = record.encode(buffer);
    debug_assert!(encoded.is_ok(), "a Vec has no end");
    Slice::new(buffer)
}

impl View for Txn {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        match self.writes[space.index()].get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(space, key),
        }
    }

    /// Merges the writes with the rows of the base, and looks at no more of either than it takes to meet the limit: a
    /// commit may hold very many writes, and each of its operations may read among them.
    fn range(&self, space: Space, span: &Span, order: Order, limit: usize) -> Result<Vec<Row>, StoreError> {
        if span.from >= span.to {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Included(span.from.as_slice()), Bound::Excluded(span.to.as_slice()));
        let writes = self.writes[space.index()].range::<[u8], _>(bounds);
        let writes: Box<dyn Iterator<Item = _>> = match order {
            Order::Ascending => Box::new(writes),
            Order::Descending => Box::new(writes.rev()),
        };
        let (mut writes, mut base) = (writes.peekable(), Vec::new().into_iter().peekable());
        let (mut rows, mut rest, mut read, mut is_read) = (Vec::new(), span.clone(), 0, false);
        while rows.len() < limit {
            if base.peek().is_none() && !is_read {
                // As many more as were read so far: they may all be deleted here.
                let wanted = (limit - rows.len()).max(read);
                let page = self.base.range(space, &rest, order, wanted)?;
                (read, is_read) = (read + page.len(), page.len() < wanted);
                if let Some((last, _)) = page.last() {
                    rest = match order {
                        Order::Ascending => key::following(rest, last),
                        Order::Descending => Span { from: rest.from, to: Key::from_slice(last) },
                    };
                }
                base = page.into_iter().peekable();
            }
            let write = writes.next_if(|(key, _)| match (base.peek(), order) {
                (None, _) => true,
                (Some((next, _)), Order::Ascending) => *key <= next,
                (Some((next, _)), Order::Descending) => *key >= next,
            });
            match write {
                Some((key, value)) => {
                    // It hides the base's row.
                    base.next_if(|(next, _)| next == key);
                    rows.extend(value.clone().map(|value| (key.clone(), value)));
                }
                None => match base.next() {
                    Some(row) => rows.push(row),
                    None => break,
                },
            }
        }
        self.rows_read.set(self.rows_read.get() + read.max(rows.len()));
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::key;
    use crate::store::kv::{Key, Kv};
    use crate::store::memory::Memory;
    use crate::store::record::{FloorRecord, read};

    fn numbers(txn: &Txn, order: Order, limit: usize) -> Vec<u8> {
        let span = Span { from: Key::from_slice(&[0]), to: Key::from_slice(&[100]) };
        txn.range(Space::Floors, &span, order, limit).unwrap().iter().map(|(key, _)| key[0]).collect()
    }

    #[test]
    fn operations_of_one_commit_see_each_other() {
        let memory = Memory::new();
        let mut first = Txn::new(memory.view());
        for key in [1, 3, 5, 7] {
            first.put(&[key], &FloorRecord { last: 1 });
        }
        memory.commit(first.finish().batch).unwrap();

        let mut txn = Txn::new(memory.view());
        txn.delete(Space::Floors, &[3]);
        txn.put(&[4], &FloorRecord { last: 9 });
        txn.put(&[5], &FloorRecord { last: 9 });
        assert_eq!(numbers(&txn, Order::Ascending, 3), [1, 4, 5]);
        assert_eq!(numbers(&txn, Order::Descending, 3), [7, 5, 4]);
        assert_eq!(numbers(&txn, Order::Ascending, 1), [1]);
        txn.delete(Space::Floors, &[1]);
        assert_eq!(numbers(&txn, Order::Ascending, 3), [4, 5, 7], "what is deleted does not count");
        assert_eq!(read::<FloorRecord>(&txn, &[5]).unwrap().unwrap().last, 9);
        assert_eq!(read::<FloorRecord>(&txn, &[3]).unwrap(), None);
        let none = txn.range(Space::Floors, &key::following(key::all(), &[255; 40]), Order::Ascending, 9).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn an_operation_that_fails_leaves_nothing() {
        let memory = Memory::new();
        let mut txn = Txn::new(memory.view());
        txn.begin_operation();
        txn.put(&[1], &FloorRecord { last: 1 });
        txn.begin_operation();
        txn.put(&[1], &FloorRecord { last: 2 });
        txn.put(&[2], &FloorRecord { last: 2 });
        assert!(txn.roll_back());
        assert_eq!(read::<FloorRecord>(&txn, &[1]).unwrap().unwrap().last, 1);
        assert_eq!(numbers(&txn, Order::Ascending, 9), [1]);
        assert_eq!(txn.rows(), 1);
        txn.begin_operation();
        assert!(!txn.roll_back());
    }
}
