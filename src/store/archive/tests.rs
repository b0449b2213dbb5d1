//! A backup restores exactly what was there, or nothing; rows that do not fit together are found.

use std::sync::Arc;

use super::*;
use crate::store::memory::Memory;
use crate::store::testing::{LATER, Nobody, ack, contact, device, eid, text};
use crate::store::{AckTarget, Embedded, Options, Retention, Revocation, RevocationTarget, Store};
use crate::wire::{AckStatus, ChatId, Sequence, Version};

const TAKEN_AT_MS: i64 = 77;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// A store with rows in every space.
async fn lived_in(memory: &Memory) -> Embedded {
    let store = Embedded::open_memory(memory.clone(), Options::default(), Arc::new(Nobody)).unwrap();
    for number in 1..=5 {
        store.accept(text("alice", "bob", number), true).await.unwrap();
    }
    // The older entries are trimmed, which writes the floors.
    let now = 30 * DAY_MS;
    store.trim(Retention { older_than_ms: 3, entries_max_per_user: u64::MAX }, now).await.unwrap();
    store.open_device(&eid("bob"), &device("phone"), LATER).await.unwrap();
    let chat = ChatId::between(&eid("alice"), &eid("bob"));
    let read = ack("bob", AckTarget::UpTo(chat, Version::from(4)), AckStatus::Read, now);
    store.acknowledge(read).await.unwrap();
    store.put_contact(&eid("alice"), contact("bob")).await.unwrap();
    store.set_block(&eid("alice"), &eid("carol"), true).await.unwrap();
    let target = RevocationTarget::User(eid("mallory"));
    store.revoke(Revocation { target, issued_until: 5, expires_at: i64::MAX }, None).await.unwrap();
    store.accept(text("carol", "bob", 6), true).await.unwrap();
    store.accept(text("bob", "alice", 7), false).await.unwrap();
    store.accept(text("alice", "bob", 8), true).await.unwrap();
    store.check().await.unwrap();
    store
}

fn bytes_of(memory: &Memory) -> Vec<u8> {
    let mut bytes = Vec::new();
    let archived = write(&*memory.view(), TAKEN_AT_MS, &mut bytes).unwrap();
    assert_eq!((archived.bytes, archived.taken_at_ms), (bytes.len() as u64, TAKEN_AT_MS));
    bytes
}

#[tokio::test]
async fn what_is_restored_is_what_was_there_and_goes_on_from_it() {
    let memory = Memory::new();
    let _store = lived_in(&memory).await;
    let spaces = Space::ALL.map(|space| memory.view().range(space, &key::all(), Order::Ascending, 99).unwrap().len());
    assert!(spaces.iter().all(|rows| *rows > 0), "something in every space: {spaces:?}");

    let bytes = bytes_of(&memory);
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("store");
    let (archived, audited) = restore(&mut &bytes[..], &dir).unwrap();
    assert_eq!(archived.rows, spaces.iter().sum::<usize>() as u64);
    assert_eq!((audited.users, audited.messages, audited.unreleased, audited.devices), (3, 6, 2, 1));
    assert_eq!((audited.contacts, audited.entries), (2, 12));
    assert!(matches!(restore(&mut &bytes[..], &dir), Err(ArchiveError::NotEmpty(_))));
    let mut again = Vec::new();
    assert_eq!(archive(&dir, TAKEN_AT_MS, &mut again).unwrap(), archived);
    assert!(again == bytes, "a backup of what was restored is the same");

    let store = Embedded::open(&dir, Options::default(), Arc::new(Nobody)).unwrap();
    let next = store.accept(text("alice", "bob", 9), true).await.unwrap();
    assert_eq!(next.message.version.get(), 8);
    let log = store.read_log(&eid("alice"), Sequence::ZERO, 99).await.unwrap();
    assert_eq!(log.last().unwrap().sequence, next.sequence);
    let mut locked = Vec::new();
    assert!(archive(&dir, 0, &mut locked).unwrap_err().to_string().contains("another process has it open"));
    store.close().await;
}

#[tokio::test]
async fn a_backup_taken_beside_the_writer_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(&folder.path().join("a"), Options::default(), Arc::new(Nobody)).unwrap());
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 1.. {
                if store.accept(text("alice", "bob", number), number % 3 == 0).await.is_err() {
                    return;
                }
            }
        }
    });
    let path = folder.path().join("backup");
    for round in 0..5 {
        let acknowledged = store.chat_version(ChatId::between(&eid("alice"), &eid("bob"))).await.unwrap();
        store.archive(TAKEN_AT_MS, File::create(&path).unwrap()).await.unwrap();
        let dir = folder.path().join(format!("restored-{round}"));
        let (_, audited) = restore(&mut io::BufReader::new(File::open(&path).unwrap()), &dir).unwrap();
        assert!(audited.messages >= acknowledged.get(), "{audited:?} {acknowledged}");
    }
    store.close().await;
    writing.await.unwrap();
}

#[tokio::test]
async fn no_part_and_no_other_version_of_an_archive_passes_for_one() {
    let memory = Memory::new();
    let _store = lived_in(&memory).await;
    let bytes = bytes_of(&memory);
    read(&mut &bytes[..], &Memory::new()).unwrap();
    for length in 0..bytes.len() {
        let refused = read(&mut &bytes[..length], &Memory::new()).unwrap_err();
        assert!(matches!(refused, ArchiveError::Torn(_)), "{length}: {refused}");
    }
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x41;
        assert!(read(&mut &damaged[..], &Memory::new()).is_err(), "damaged at {position}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(read(&mut &longer[..], &Memory::new()).is_err());

    let folder = tempfile::tempdir().unwrap();
    assert!(restore(&mut &bytes[..bytes.len() - 1], &folder.path().join("store")).is_err());
    // The head ends with the names of the spaces. The engine would panic at such keys, long before the checksum is read.
    let head = bytes.windows(5).position(|name| name == Space::ALL[Space::COUNT - 1].name().as_bytes()).unwrap() + 5;
    for length in [0, u32::from(u16::MAX) + 1] {
        let mut damaged = bytes[..head].to_vec();
        for _ in 0..2 {
            damaged.extend([&[1][..], &length.to_le_bytes(), &(ARCHIVE_COMMIT_BYTES as u32).to_le_bytes()].concat());
            damaged.resize(damaged.len() + length as usize + ARCHIVE_COMMIT_BYTES as usize, 7);
        }
        let refused = restore(&mut &damaged[..], &folder.path().join("store")).unwrap_err();
        assert!(matches!(refused, ArchiveError::Torn("a key of an impossible length")), "{refused}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    let (none, empty) = (folder.path().join("none"), folder.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    for dir in [&none, &empty] {
        assert!(matches!(archive(dir, 0, &mut io::sink()), Err(ArchiveError::NoStore(_))));
    }
    assert!(!none.exists() && fs::read_dir(&empty).unwrap().next().is_none(), "nor is a store made");
}

#[tokio::test]
async fn a_row_that_is_missing_or_says_something_else_is_found() {
    let memory = Memory::new();
    let _store = lived_in(&memory).await;
    audit(&*memory.view()).unwrap();
    let whole = bytes_of(&memory);
    for space in
        [Space::Messages, Space::Chats, Space::Locals, Space::Logs, Space::Pending, Space::Floors, Space::Owners]
    {
        for (row, _) in memory.view().range(space, &key::all(), Order::Ascending, 99).unwrap() {
            let other = Memory::new();
            read(&mut &whole[..], &other).unwrap();
            other.commit(vec![(space, row.clone(), None)]).unwrap();
            assert!(audit(&*other.view()).is_err(), "{} without {}", space.name(), row.escape_ascii());
        }
    }
    for space in Space::ALL {
        let (row, _) = memory.view().range(space, &key::all(), Order::Ascending, 1).unwrap().remove(0);
        let other = Memory::new();
        read(&mut &whole[..], &other).unwrap();
        other.commit(vec![(space, row, Some(Slice::from(b"\xff rubbish")))]).unwrap();
        let found = audit(&*other.view()).unwrap_err().to_string();
        assert!(found.contains("corrupt row in "), "{found}");
    }
}

/// An archive at whose end something happens.
struct AtEnd<'a, F> {
    bytes: &'a [u8],
    then: F,
}

impl<F: FnMut()> Read for AtEnd<'_, F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(into)?;
        if read == 0 && !into.is_empty() {
            (self.then)();
        }
        Ok(read)
    }
}

#[tokio::test]
async fn a_restore_whose_folder_is_taken_away_meanwhile_fails() {
    let memory = Memory::new();
    let _store = lived_in(&memory).await;
    let bytes = bytes_of(&memory);
    let folder = tempfile::tempdir().unwrap();
    let (dir, restoring) = (folder.path().join("store"), folder.path().join("store.restoring"));
    let (empty, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let empty = empty.path().join("store");
    Fjall::open(&empty, 1 << 20).unwrap();
    let gone = || fs::remove_dir_all(&restoring).unwrap();
    let another = || {
        fs::rename(&restoring, away.path().join("store")).unwrap();
        fs::rename(&empty, &restoring).unwrap();
    };
    let happens: [&dyn Fn(); 2] = [&gone, &another];
    for then in happens {
        let refused = restore(&mut AtEnd { bytes: &bytes, then }, &dir).unwrap_err();
        assert!(matches!(refused, ArchiveError::Changed(_)), "{refused}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }
}

#[tokio::test]
async fn two_restores_do_not_meet() {
    let memory = Memory::new();
    let _store = lived_in(&memory).await;
    let bytes = bytes_of(&memory);
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("store");
    let mut second = None;
    let then = || second = Some(restore(&mut &bytes[..], &dir));
    restore(&mut AtEnd { bytes: &bytes, then }, &dir).unwrap();
    assert!(matches!(second, Some(Err(ArchiveError::Busy(_)))), "{second:?}");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["store"]);
}

#[test]
fn what_a_later_version_has_made_is_refused_by_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("store");
    Fjall::open(&dir, 1 << 20).unwrap();
    let (number, later) = (dir.join("format"), FORMAT + 1);
    assert_eq!(fs::read_to_string(&number).unwrap(), format!("{FORMAT}\n"));
    let refusals = |written: &str| {
        fs::write(&number, written).unwrap();
        let Err(error) = Fjall::open(&dir, 1 << 20) else { panic!("it opens") };
        [error.to_string(), archive(&dir, 0, &mut io::sink()).unwrap_err().to_string()]
    };
    let named = format!("the store has format {later}, and this version reads up to {FORMAT}");
    assert!(refusals(&format!("{later}\n")).iter().all(|refusal| refusal.contains(&named)));
    assert!(refusals("a word\n").iter().all(|refusal| refusal.contains("holds no number")));
    // Those of before have none.
    fs::remove_file(&number).unwrap();
    let mut bytes = Vec::new();
    archive(&dir, 0, &mut bytes).unwrap();
    assert_eq!(fs::read_to_string(&number).unwrap(), format!("{FORMAT}\n"));

    let rest = bytes.strip_prefix(format!("bimip archive {FORMAT}\n").as_bytes()).unwrap();
    let made = |number: u64| [format!("bimip archive {number}\n").as_bytes(), rest].concat();
    let other = folder.path().join("other");
    let refused = restore(&mut &made(later.into())[..], &other).unwrap_err();
    assert!(matches!(refused, ArchiveError::Newer(number) if number == later), "{refused}");
    let refused = restore(&mut &made(u64::MAX)[..], &other).unwrap_err();
    assert!(matches!(refused, ArchiveError::Torn(_)) && !other.exists(), "{refused}");
}

/// A place for a backup. Whenever it takes something, a row of 64 KiB is written to the store, and a file with it.
struct Meanwhile<'a> {
    engine: &'a Fjall,
    rows: u32,
}

impl Meanwhile<'_> {
    fn write_row(&mut self) {
        self.rows += 1;
        let row = (Space::Contacts, Slice::from(self.rows.to_be_bytes()), Some(Slice::from(vec![0; 64 * 1024])));
        self.engine.commit(vec![row]).unwrap();
        self.engine.write_files();
    }
}

impl Write for Meanwhile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_row();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_backup_for_which_too_much_is_kept_in_memory_ends() {
    const MEMORY_MAX: u64 = 256 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let engine = Fjall::open(folder.path(), 1 << 20).unwrap();
    let row = |n: usize| (Space::Messages, Slice::from((n as u32).to_be_bytes()), Some(Slice::from(vec![0; 64])));
    engine.commit((0..4 * STORE_PAGE_ROWS).map(row).collect()).unwrap();
    let head = || Head { format: FORMAT, taken_at_ms: 0, spaces: Space::ALL.to_vec() };
    let mut meanwhile = Meanwhile { engine: &engine, rows: 0 };
    let view = engine.view();
    let ended = write_as(&head(), &*view, &mut meanwhile, MEMORY_MAX).unwrap_err();
    assert!(matches!(ended, ArchiveError::TooSlow), "{ended}");
    // Each row counts once, although each is in a file by now.
    assert!((MEMORY_MAX..2 * MEMORY_MAX).contains(&(u64::from(meanwhile.rows) * 64 * 1024)), "{}", meanwhile.rows);
    // What was written before it began is not the next one's.
    let (rows, ended) = (meanwhile.rows, write_as(&head(), &*engine.view(), &mut meanwhile, MEMORY_MAX).unwrap_err());
    assert!(matches!(ended, ArchiveError::TooSlow), "{ended}");
    assert!((meanwhile.rows - rows).abs_diff(rows) <= 1, "{} and {rows}", meanwhile.rows);
    write_as(&head(), &*engine.view(), &mut meanwhile, u64::MAX).unwrap();
}
