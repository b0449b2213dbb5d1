//! SQLite, bundled: B-trees in one file with a write-ahead log, in C.

use super::{CACHE_BYTES, Engine};
use crate::workload::{Message, Space};
use anyhow::{Result, ensure};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use std::path::Path;

pub struct Sqlite {
    connection: Connection,
}

impl Sqlite {
    pub fn open(dir: &Path) -> Result<Self> {
        let connection = Connection::open(dir.join("store.sqlite"))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // FULL syncs the log on every commit. NORMAL would keep the file consistent, but not make each commit durable.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "cache_size", -((CACHE_BYTES >> 10) as i64))?;
        // 16 MiB of log cause fewer rewrites of the same page than the default of 4 MiB.
        connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
        for space in Space::ALL {
            let name = space.name();
            connection.execute_batch(&format!(
                "CREATE TABLE IF NOT EXISTS {name} (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID, STRICT"
            ))?;
        }
        Ok(Self { connection })
    }
}

impl Engine for Sqlite {
    fn commit(&mut self, group: &[Message]) -> Result<()> {
        let write = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut seen = write.prepare_cached("SELECT 1 FROM dedup WHERE key = ?1")?;
            let mut inserts = [
                write.prepare_cached("INSERT INTO messages VALUES (?1, ?2)")?,
                write.prepare_cached("INSERT INTO dedup VALUES (?1, ?2)")?,
                write.prepare_cached("INSERT INTO logs VALUES (?1, ?2)")?,
            ];
            for message in group {
                ensure!(!seen.exists([message.dedup_key()])?, "duplicate");
                for put in &message.puts {
                    inserts[put.space as usize].execute([&put.key, &put.value])?;
                }
            }
        }
        Ok(write.commit()?)
    }

    fn get(&self, space: Space, key: &[u8], value: &mut Vec<u8>) -> Result<bool> {
        value.clear();
        let mut select = self.connection.prepare_cached(match space {
            Space::Messages => "SELECT value FROM messages WHERE key = ?1",
            Space::Dedup => "SELECT value FROM dedup WHERE key = ?1",
            Space::Logs => "SELECT value FROM logs WHERE key = ?1",
        })?;
        let found = select.query_row([key], |row| {
            value.extend_from_slice(row.get_ref(0)?.as_blob()?);
            Ok(())
        });
        Ok(found.optional()?.is_some())
    }

    fn tail(&self, from: &[u8], limit: usize, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let to = [&from[..16], &[0xff; 8]].concat();
        // CROSS JOIN keeps logs as the outer loop: read in order, stop at the limit, look each message up.
        let mut select = self.connection.prepare_cached(
            "SELECT l.value, m.value FROM logs l CROSS JOIN messages m ON m.key = substr(l.value, 1, 24)
             WHERE l.key BETWEEN ?1 AND ?2 ORDER BY l.key LIMIT ?3",
        )?;
        let mut rows = select.query((from, to, limit as i64))?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            each(row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?);
            count += 1;
        }
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?)
    }
}
