//! RocksDB: an LSM tree per column family, one write-ahead log for all, in C++.

use super::{CACHE_BYTES, Engine, JOURNAL_BYTES, MEMTABLE_BYTES};
use crate::workload::{Message, Space};
use anyhow::{Context, Result, ensure};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    Direction, IteratorMode, Options, WaitForCompactOptions, WriteBatch, WriteOptions,
};
use std::path::Path;

pub struct Rocksdb {
    db: DB,
    durable: WriteOptions,
}

impl Rocksdb {
    pub fn open(dir: &Path) -> Result<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_total_wal_size(JOURNAL_BYTES);
        options.increase_parallelism(2);

        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
        table.set_bloom_filter(10.0, false);
        let families = Space::ALL.map(|space| {
            let mut options = Options::default();
            options.set_block_based_table_factory(&table);
            options.set_write_buffer_size(MEMTABLE_BYTES);
            options.set_compression_type(DBCompressionType::Lz4);
            ColumnFamilyDescriptor::new(space.name(), options)
        });
        let db = DB::open_cf_descriptors(&options, dir, families)?;
        let mut durable = WriteOptions::default();
        durable.set_sync(true);
        Ok(Self { db, durable })
    }

    fn space(&self, space: Space) -> &ColumnFamily {
        self.db
            .cf_handle(space.name())
            .expect("opened with every space")
    }
}

impl Engine for Rocksdb {
    fn commit(&mut self, group: &[Message]) -> Result<()> {
        let mut batch = WriteBatch::default();
        let spaces = Space::ALL.map(|space| self.space(space));
        for message in group {
            let seen = self
                .db
                .get_pinned_cf(spaces[Space::Dedup as usize], message.dedup_key())?;
            ensure!(seen.is_none(), "duplicate");
            for put in &message.puts {
                batch.put_cf(spaces[put.space as usize], &put.key, &put.value);
            }
        }
        Ok(self.db.write_opt(batch, &self.durable)?)
    }

    fn get(&self, space: Space, key: &[u8], value: &mut Vec<u8>) -> Result<bool> {
        value.clear();
        let found = self.db.get_pinned_cf(self.space(space), key)?;
        Ok(found.map(|found| value.extend_from_slice(&found)).is_some())
    }

    fn tail(&self, from: &[u8], limit: usize, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let entries = self.db.iterator_cf(
            self.space(Space::Logs),
            IteratorMode::From(from, Direction::Forward),
        );
        let messages = self.space(Space::Messages);
        let mut read = 0;
        for entry in entries.take(limit) {
            let (key, entry) = entry?;
            if key[..16] != from[..16] {
                break;
            }
            let message = self
                .db
                .get_pinned_cf(messages, &entry[..24])?
                .context("dangling log entry")?;
            each(&entry, &message);
            read += 1;
        }
        Ok(read)
    }

    fn flush(&mut self) -> Result<()> {
        for space in Space::ALL {
            self.db.flush_cf(self.space(space))?;
        }
        Ok(self
            .db
            .wait_for_compact(&WaitForCompactOptions::default())?)
    }
}
