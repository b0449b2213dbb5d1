//! fjall 3: an LSM tree per keyspace, one journal for all, in Rust.

use super::{CACHE_BYTES, Engine, JOURNAL_BYTES, MEMTABLE_BYTES};
use crate::workload::{Message, Space};
use anyhow::{Context, Result, ensure};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use std::path::Path;

pub struct Fjall {
    db: Database,
    spaces: [Keyspace; 3],
}

impl Fjall {
    pub fn open(dir: &Path) -> Result<Self> {
        let db = Database::builder(dir)
            .cache_size(CACHE_BYTES as u64)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(2)
            .open()?;
        let open = |space: Space| {
            let options = || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(MEMTABLE_BYTES as u64)
                    // A dedup lookup mostly misses and needs the filters. The other lookups are for existing keys.
                    .expect_point_read_hits(space != Space::Dedup)
            };
            db.keyspace(space.name(), options)
        };
        let spaces = [
            open(Space::Messages)?,
            open(Space::Dedup)?,
            open(Space::Logs)?,
        ];
        Ok(Self { db, spaces })
    }

    fn space(&self, space: Space) -> &Keyspace {
        &self.spaces[space as usize]
    }
}

impl Engine for Fjall {
    fn commit(&mut self, group: &[Message]) -> Result<()> {
        // With a durability set, `commit` syncs the journal before the puts become visible to readers.
        let mut batch = OwnedWriteBatch::with_capacity(self.db.clone(), group.len() * 4)
            .durability(Some(PersistMode::SyncData));
        for message in group {
            ensure!(
                !self.space(Space::Dedup).contains_key(message.dedup_key())?,
                "duplicate"
            );
            for put in &message.puts {
                batch.insert(
                    self.space(put.space),
                    put.key.as_slice(),
                    put.value.as_slice(),
                );
            }
        }
        Ok(batch.commit()?)
    }

    fn get(&self, space: Space, key: &[u8], value: &mut Vec<u8>) -> Result<bool> {
        value.clear();
        let found = self.space(space).get(key)?;
        Ok(found.map(|found| value.extend_from_slice(&found)).is_some())
    }

    fn tail(&self, from: &[u8], limit: usize, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let to = [&from[..16], &[0xff; 8]].concat();
        let mut read = 0;
        for entry in self
            .space(Space::Logs)
            .range(from..=to.as_slice())
            .take(limit)
        {
            let (_, entry) = entry.into_inner()?;
            let message = self
                .space(Space::Messages)
                .get(&entry[..24])?
                .context("dangling log entry")?;
            each(&entry, &message);
            read += 1;
        }
        Ok(read)
    }

    fn flush(&mut self) -> Result<()> {
        for space in &self.spaces {
            space.rotate_memtable_and_wait()?;
        }
        Ok(())
    }
}
