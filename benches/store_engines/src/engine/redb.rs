//! redb 4: copy-on-write B-trees in one file, in Rust.

use super::{CACHE_BYTES, Engine};
use crate::workload::{Message, Space};
use anyhow::{Context, Result, ensure};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::Path;

pub struct Redb {
    db: Database,
    quick_repair: bool,
}

impl Redb {
    pub fn open(dir: &Path, quick_repair: bool) -> Result<Self> {
        let db = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(dir.join("store.redb"))?;
        let write = db.begin_write()?;
        for space in Space::ALL {
            write.open_table(table(space))?;
        }
        write.commit()?;
        Ok(Self { db, quick_repair })
    }
}

impl Engine for Redb {
    fn commit(&mut self, group: &[Message]) -> Result<()> {
        let mut write = self.db.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        write.set_quick_repair(self.quick_repair);
        {
            let mut messages = write.open_table(table(Space::Messages))?;
            let mut dedup = write.open_table(table(Space::Dedup))?;
            let mut logs = write.open_table(table(Space::Logs))?;
            for message in group {
                ensure!(dedup.get(message.dedup_key())?.is_none(), "duplicate");
                for put in &message.puts {
                    let table = match put.space {
                        Space::Messages => &mut messages,
                        Space::Dedup => &mut dedup,
                        Space::Logs => &mut logs,
                    };
                    table.insert(put.key.as_slice(), put.value.as_slice())?;
                }
            }
        }
        Ok(write.commit()?)
    }

    fn get(&self, space: Space, key: &[u8], value: &mut Vec<u8>) -> Result<bool> {
        value.clear();
        let read = self.db.begin_read()?.open_table(table(space))?;
        let found = read.get(key)?;
        Ok(found
            .map(|found| value.extend_from_slice(found.value()))
            .is_some())
    }

    fn tail(&self, from: &[u8], limit: usize, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let to = [&from[..16], &[0xff; 8]].concat();
        let read = self.db.begin_read()?;
        let logs = read.open_table(table(Space::Logs))?;
        let messages = read.open_table(table(Space::Messages))?;
        let mut count = 0;
        for entry in logs.range(from..=to.as_slice())?.take(limit) {
            let (_, entry) = entry?;
            let message = messages
                .get(&entry.value()[..24])?
                .context("dangling log entry")?;
            each(entry.value(), message.value());
            count += 1;
        }
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn table(space: Space) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(space.name())
}
