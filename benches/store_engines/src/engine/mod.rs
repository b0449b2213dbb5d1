//! The one interface that every engine is measured through.

mod fjall;
mod none;
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod sqlite;

use crate::workload::{Message, Space};
use anyhow::Result;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Cache of table data in memory, the same for all engines.
const CACHE_BYTES: usize = 128 << 20;

/// What one keyspace collects in memory before it writes a table, the same for both LSM engines.
const MEMTABLE_BYTES: usize = 16 << 20;

/// The log that a start after a crash may have to replay, the same for both LSM engines.
const JOURNAL_BYTES: u64 = 64 << 20;

/// An open database. Dropping it is a clean close.
pub trait Engine {
    /// Looks up every message's dedup key, which must be missing, and makes the whole group durable in one commit.
    fn commit(&mut self, group: &[Message]) -> Result<()>;

    /// Reads into `value`; false if the key is missing.
    fn get(&self, space: Space, key: &[u8], value: &mut Vec<u8>) -> Result<bool>;

    /// Reads up to `limit` log entries from `from` to the end of `user`'s log, and for each the message it points to.
    fn tail(&self, from: &[u8], limit: usize, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize>;

    /// Writes everything from memory and log to its permanent place.
    fn flush(&mut self) -> Result<()>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Stores nothing; measures the cost of the workload itself
    None,
    Fjall,
    Redb,
    /// redb that saves its allocator state in each commit, so that a start after a crash need not walk the file
    RedbQuickRepair,
    Sqlite,
    #[cfg(feature = "rocksdb")]
    Rocksdb,
}

impl Kind {
    pub fn open(self, dir: &Path) -> Result<Box<dyn Engine>> {
        std::fs::create_dir_all(dir)?;
        Ok(match self {
            Kind::None => Box::new(none::None),
            Kind::Fjall => Box::new(fjall::Fjall::open(dir)?),
            Kind::Redb => Box::new(redb::Redb::open(dir, false)?),
            Kind::RedbQuickRepair => Box::new(redb::Redb::open(dir, true)?),
            Kind::Sqlite => Box::new(sqlite::Sqlite::open(dir)?),
            #[cfg(feature = "rocksdb")]
            Kind::Rocksdb => Box::new(rocksdb::Rocksdb::open(dir)?),
        })
    }

    /// The newest file of the engine's write-ahead log, for the torn-tail test. `None`: the engine has no log.
    pub fn journal(self, dir: &Path) -> Result<Option<PathBuf>> {
        let extension = match self {
            Kind::None | Kind::Redb | Kind::RedbQuickRepair => return Ok(None),
            Kind::Fjall => "jnl",
            Kind::Sqlite => "sqlite-wal",
            #[cfg(feature = "rocksdb")]
            Kind::Rocksdb => "log",
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == extension) {
                files.push(path);
            }
        }
        Ok(files.into_iter().max())
    }
}
