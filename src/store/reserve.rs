//! Space on the store's disk that messages may not use up. A commit that finds no space fails, and then the store takes nothing
//! more until a restart; and what makes room, the retention and the engine's merges, needs some itself.

use std::io;
use std::path::Path;

use crate::limits::{STORE_DISK_RESERVE_BYTES, STORE_DISK_RESERVE_SHARE};

/// The file system of a folder, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What this process may still use.
    pub free: u64,
    /// What there is in all.
    pub size: u64,
}

impl Disk {
    /// Asks the system.
    ///
    /// # Errors
    /// As the system gives them.
    pub fn of(folder: &Path) -> io::Result<Disk> {
        let figures = rustix::fs::statvfs(folder)?;
        let bytes = |blocks: u64| blocks.saturating_mul(figures.f_frsize);
        Ok(Disk { free: bytes(figures.f_bavail), size: bytes(figures.f_blocks) })
    }

    /// How much has to be free for the store to take messages, in bytes.
    pub fn reserve(self) -> u64 {
        STORE_DISK_RESERVE_BYTES.min(self.size / STORE_DISK_RESERVE_SHARE)
    }
}

/// Whether the disk has come to its reserve.
#[derive(Default)]
pub(crate) struct Reserve {
    touched: bool,
    /// Too little is free for anything but commits.
    bare: bool,
}

impl Reserve {
    pub(crate) fn is_touched(&self) -> bool {
        self.touched
    }

    /// Whether the engine should delete what it no longer needs, for which it writes a small file.
    pub(crate) fn wants_room(&self) -> bool {
        self.touched && !self.bare
    }

    /// Compares with the reserve, and logs when that has another result than before. `None`, the disk is not known, changes
    /// nothing.
    pub(crate) fn look(&mut self, disk: Option<Disk>) {
        let Some(disk) = disk else { return };
        let (free, reserve) = (disk.free, disk.reserve());
        // An eighth more ends it than begins it: a merge that comes and goes must not fill the log.
        let touched = free < if self.touched { reserve + reserve / 8 } else { reserve };
        match (self.touched, touched) {
            (false, true) => tracing::error!(free, reserve, "the disk is nearly full: no new messages are taken"),
            (true, false) => tracing::info!(free, reserve, "the disk has room again: new messages are taken"),
            _ => {}
        }
        (self.touched, self.bare) = (touched, free < reserve / 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_os = "linux")]
    use {
        crate::store::testing::{Nobody, eid, small_disk, text},
        crate::store::{Embedded, Options, Revocation, RevocationTarget, Store, StoreError},
        std::fs::File,
        std::io::Write,
        std::sync::Arc,
    };

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_small_disk_keeps_a_share_of_itself() {
        let reserve = |size| Disk { free: 0, size }.reserve();
        assert_eq!([reserve(64 * MIB), reserve(1024 * MIB)], [8 * MIB, 128 * MIB]);
        assert_eq!([reserve(4096 * MIB), reserve(1 << 44)], [512 * MIB, 512 * MIB]);
    }

    #[test]
    fn what_comes_and_goes_at_the_reserve_changes_nothing() {
        let mut reserve = Reserve::default();
        let mut touched = |free: Option<u64>| {
            reserve.look(free.map(|free| Disk { free: free * MIB, size: 1 << 44 }));
            reserve.is_touched()
        };
        assert!(!touched(None) && !touched(Some(512)));
        assert!(touched(Some(511)) && touched(Some(575)) && touched(None));
        assert!(!touched(Some(576)) && !touched(Some(512)));
    }

    #[test]
    fn room_is_made_below_the_reserve_while_a_file_can_be_written() {
        let mut reserve = Reserve::default();
        let mut wants_room = |free: u64| {
            reserve.look(Some(Disk { free: free * MIB, size: 1 << 44 }));
            reserve.wants_room()
        };
        assert!(!wants_room(512) && wants_room(511) && wants_room(64) && !wants_room(63) && wants_room(575));
        assert!(!wants_room(576));
    }

    #[test]
    fn the_system_says_how_much_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::of(folder.path()).unwrap();
        assert!(disk.size > 0 && disk.free <= disk.size, "{disk:?}");
        assert!(Disk::of(&folder.path().join("none")).is_err());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_store_whose_disk_fills_takes_no_new_messages_and_everything_else() {
        let itself = "store::reserve::tests::a_store_whose_disk_fills_takes_no_new_messages_and_everything_else";
        let Some(folder) = small_disk(64, itself) else { return };
        let store = Embedded::open(&folder.join("store"), Options::default(), Arc::new(Nobody)).unwrap();
        store.accept(text("alice", "bob", 1), true).await.unwrap();
        let mut ballast = File::create(folder.join("ballast")).unwrap();
        while Disk::of(&folder).unwrap().free >= 8 * MIB {
            ballast.write_all(&[1; 64 * 1024]).unwrap();
        }
        assert_eq!(store.accept(text("alice", "bob", 2), true).await.unwrap_err(), StoreError::DiskFull);
        let target = RevocationTarget::User(eid("alice"));
        store.revoke(Revocation { target, issued_until: 5, expires_at: i64::MAX }, None).await.unwrap();
        store.check().await.unwrap();
        std::fs::remove_file(folder.join("ballast")).unwrap();
        drop(ballast);
        store.accept(text("alice", "bob", 2), true).await.unwrap();
        store.close().await;
    }
}
