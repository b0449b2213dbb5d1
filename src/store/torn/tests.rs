//! What a power loss, a bad disk or a client leaves at the end of a journal, and what becomes of it.

use std::os::unix::fs::FileExt;

use super::*;
use crate::store::fjall::Fjall;
use crate::store::kv::{Batch, Kv, Slice, Space};
#[cfg(target_os = "linux")]
use crate::store::testing::small_disk;
use crate::store::{StoreError, seal};

const CACHE: u64 = 1024 * 1024;

/// A text of 16 KiB that does not compress.
fn noise(seed: u64) -> Vec<u8> {
    let mut random = crate::random::Random::new(seed);
    std::iter::repeat_with(|| random.number().to_le_bytes()).take(2048).flatten().collect()
}

fn batch(key: u8, value: &[u8]) -> Batch {
    vec![(Space::Messages, Slice::new(&[key]), Some(Slice::new(value)))]
}

fn newest_journal(dir: &Path) -> PathBuf {
    journals(dir).unwrap().pop_last().unwrap().1
}

fn look(dir: &Path) -> io::Result<Outcome> {
    put_aside(dir, seal::read(dir)?.as_ref())
}

/// Overwrites a page within a value with zeros, as a power loss leaves a file that was not synced.
fn tear(dir: &Path, value: &[u8]) {
    let path = newest_journal(dir);
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(64).position(|window| *window == value[..64]).expect("it lies there as it is");
    let page = (at as u64).next_multiple_of(4096);
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[0; 4096], page).unwrap();
}

#[test]
fn a_last_commit_that_was_torn_is_put_aside_and_all_before_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Fjall::open(folder.path(), CACHE).unwrap();
    engine.commit(batch(1, &noise(1))).unwrap();
    engine.commit(batch(2, b"short")).unwrap();
    engine.commit(batch(3, &noise(3))).unwrap();
    drop(engine);
    tear(folder.path(), &noise(3));

    let engine = Fjall::open(folder.path(), CACHE).unwrap();
    let get = |engine: &Fjall, key: u8| engine.view().get(Space::Messages, &[key]).unwrap().map(|value| value.to_vec());
    assert_eq!(get(&engine, 1), Some(noise(1)));
    assert_eq!(get(&engine, 2), Some(b"short".to_vec()));
    assert_eq!(get(&engine, 3), None);
    let aside = |entry: io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        path.extension().is_some_and(|end| end == "torn").then(|| std::fs::metadata(path).unwrap().len())
    };
    let kept: Vec<u64> = std::fs::read_dir(folder.path()).unwrap().filter_map(aside).collect();
    assert!(matches!(kept[..], [bytes] if bytes > 16 * 1024), "{kept:?}");
    engine.commit(batch(4, &noise(4))).unwrap();
    drop(engine);
    let engine = Fjall::open(folder.path(), CACHE).unwrap();
    assert_eq!([1, 4].map(|key| get(&engine, key)), [Some(noise(1)), Some(noise(4))]);
}

/// Where a journal's first commit ends.
fn end_of_first(journal: &Path) -> u64 {
    let bytes = std::fs::read(journal).unwrap();
    let mut commits = Commits::new(&bytes[..], bytes.len() as u64);
    assert!(commits.next_is_whole().unwrap());
    commits.at
}

#[test]
fn a_torn_commit_in_which_a_client_has_written_a_whole_one_is_put_aside() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let engines = folders.each_ref().map(|folder| Fjall::open(folder.path(), CACHE).unwrap());
    engines[0].commit(batch(1, b"short")).unwrap();
    let journal = newest_journal(folders[0].path());
    let mut imitated = std::fs::read(&journal).unwrap();
    imitated.truncate(end_of_commits(&File::open(&journal).unwrap()).unwrap().0 as usize);
    engines[1].commit([batch(1, &imitated), batch(2, &noise(2))].concat()).unwrap();
    drop(engines);
    tear(folders[1].path(), &noise(2));
    assert!(matches!(look(folders[1].path()).unwrap(), Outcome::PutAside { bytes, .. } if bytes > 16 * 1024));

    // Also if what is missing is the page with the seal, because all that follows a sealed commit is sealed.
    let engine = Fjall::open(folders[1].path(), CACHE).unwrap();
    engine.commit(batch(1, b"sealed")).unwrap();
    engine.commit([batch(2, &noise(2)), batch(3, &imitated)].concat()).unwrap();
    drop(engine);
    let torn = newest_journal(folders[1].path());
    let at = end_of_first(&torn);
    let page = at.next_multiple_of(4096);
    OpenOptions::new().write(true).open(&torn).unwrap().write_all_at(&vec![0; (page - at) as usize], at).unwrap();
    assert!(matches!(look(folders[1].path()).unwrap(), Outcome::PutAside { bytes, .. } if bytes > 16 * 1024));

    // With the store's own seal it is one that follows.
    let engine = Fjall::open(folders[1].path(), CACHE).unwrap();
    imitated[SEAL_AT..SEAL_AT + size_of::<Seal>()].copy_from_slice(&seal::read(folders[1].path()).unwrap().unwrap());
    engine.commit([batch(1, &imitated), batch(2, &noise(2))].concat()).unwrap();
    drop(engine);
    tear(folders[1].path(), &noise(2));
    assert_eq!(look(folders[1].path()).unwrap(), Outcome::Damaged { file: torn, at });
}

#[test]
fn damage_that_is_followed_by_more_is_left_alone_and_its_place_told() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Fjall::open(folder.path(), CACHE).unwrap();
    engine.commit(batch(1, &noise(1))).unwrap();
    engine.commit(batch(2, b"short")).unwrap();
    assert_eq!(look(folder.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock, "the engine has it");
    drop(engine);
    assert_eq!(look(folder.path()).unwrap(), Outcome::Sound);
    tear(folder.path(), &noise(1));
    let journal = newest_journal(folder.path());
    let before = std::fs::read(&journal).unwrap();
    for _ in 0..2 {
        let error = Fjall::open(folder.path(), CACHE).map(drop).unwrap_err();
        let StoreError::Engine(reason) = &error else { panic!("{error}") };
        assert!(reason.contains(&format!("{} is damaged at byte ", journal.display())), "{reason}");
    }
    assert!(std::fs::read(&journal).unwrap() == before, "nothing of it was touched");
}

#[test]
fn a_commit_that_is_cut_off_anywhere_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Fjall::open(folder.path(), CACHE).unwrap();
    engine.commit(batch(1, b"short")).unwrap();
    let whole = {
        let path = newest_journal(folder.path());
        end_of_commits(&File::open(path).unwrap()).unwrap().0
    };
    engine.commit(batch(2, &noise(2))).unwrap();
    drop(engine);
    let path = newest_journal(folder.path());
    let before = std::fs::read(&path).unwrap();
    for bytes in [16_000, 4_000, 100, 21, 5, 1] {
        std::fs::write(&path, &before[..whole as usize + bytes]).unwrap();
        let file = folder.path().join(format!("0-{whole}.torn"));
        let outcome = look(folder.path()).unwrap();
        // What is cut may end with zeros, like an empty journal.
        let kept = std::fs::read(&file).unwrap();
        assert!(before[whole as usize..].starts_with(&kept), "{bytes}");
        assert_eq!(outcome, Outcome::PutAside { file, bytes: kept.len() as u64 });
        assert_eq!(look(folder.path()).unwrap(), Outcome::Sound, "{bytes}");
    }
    std::fs::write(&path, &before[..whole as usize]).unwrap();
    assert_eq!(look(folder.path()).unwrap(), Outcome::Sound);
    std::fs::write(&path, []).unwrap();
    assert_eq!(look(folder.path()).unwrap(), Outcome::Sound);
}

#[test]
fn a_hole_that_begins_with_a_commit_is_damage_if_a_whole_one_follows() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Fjall::open(folder.path(), CACHE).unwrap();
    (1..=4).for_each(|key| engine.commit(batch(key, &noise(u64::from(key)))).unwrap());
    drop(engine);
    let path = newest_journal(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let commit = end_of_commits(&File::open(&path).unwrap()).unwrap().0 as usize / 4;
    bytes[commit..2 * commit + 100].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let damaged = Outcome::Damaged { file: path.clone(), at: commit as u64 };
    assert_eq!(look(folder.path()).unwrap(), damaged);
    assert!(Fjall::open(folder.path(), CACHE).is_err());
    assert!(std::fs::read(&path).unwrap() == bytes, "nothing of it was touched");
    // The same if the commits have no seals that are known.
    assert_eq!(put_aside(folder.path(), None).unwrap(), damaged);
    // In an older journal what follows is the newer one, unless nothing was written to it.
    let cut = bytes.iter().rposition(|byte| *byte != 0).unwrap() - 10;
    bytes.truncate(cut);
    bytes[commit..2 * commit + 100].fill(7);
    bytes.truncate(commit + 50);
    std::fs::write(&path, &bytes).unwrap();
    let newer = folder.path().join("1.jnl");
    std::fs::write(&newer, b"more").unwrap();
    assert_eq!(look(folder.path()).unwrap(), damaged);
    std::fs::write(&newer, [0; 100]).unwrap();
    assert!(matches!(look(folder.path()).unwrap(), Outcome::PutAside { bytes: 50, .. }));
    assert_eq!(look(folder.path()).unwrap(), Outcome::Sound);
}

#[test]
fn a_store_whose_commit_failed_is_written_again_when_it_opens() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Fjall::open(folder.path(), CACHE).unwrap();
    engine.commit(batch(1, &noise(1))).unwrap();
    drop(engine);
    let journal = newest_journal(folder.path());
    let before = std::fs::read(&journal).unwrap();
    write_again(folder.path()).unwrap();
    assert!(std::fs::read(&journal).unwrap() == before);
    note_failure(folder.path());
    for _ in 0..2 {
        let engine = Fjall::open(folder.path(), CACHE).unwrap();
        assert!(!folder.path().join(FAILED).exists());
        let value = engine.view().get(Space::Messages, &[1]).unwrap();
        assert_eq!(value.map(|value| value.to_vec()), Some(noise(1)));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_store_on_a_full_disk_opens_without_what_did_not_fit() {
    let itself = "store::torn::tests::a_store_on_a_full_disk_opens_without_what_did_not_fit";
    let Some(dir) = small_disk(3, itself) else { return };
    let store = dir.join("store");
    let engine = Fjall::open(&store, CACHE).unwrap();
    let fits = (0..=u8::MAX).take_while(|key| engine.commit(batch(*key, &noise(u64::from(*key)))).is_ok()).count();
    assert!((1..256).contains(&fits), "{fits}");
    drop(engine);
    assert!(store.join(FAILED).exists());
    // Not a byte is left, also of what the engine has freed meanwhile.
    let mut ballast = File::create(dir.join("ballast")).unwrap();
    while ballast.write_all(&[1; 4096]).is_ok() {}
    let mut journal = File::open(newest_journal(&store)).unwrap();
    let (at, _) = end_of_commits(&journal).unwrap();
    let bytes = rest(&mut journal, at).unwrap().len() as u64;
    assert!(bytes > 0, "a part of it did fit");
    assert_eq!(look(&store).unwrap(), Outcome::CutOff { file: newest_journal(&store), bytes });
    assert!(!store.join(FAILED).exists() && !store.join(format!("0-{at}.torn")).exists());
    for _ in 0..2 {
        let engine = Fjall::open(&store, CACHE).unwrap();
        for key in 0..fits as u8 {
            let value = engine.view().get(Space::Messages, &[key]).unwrap();
            assert_eq!(value.map(|value| value.to_vec()), Some(noise(u64::from(key))));
        }
    }
    drop(ballast);
    std::fs::remove_file(dir.join("ballast")).unwrap();
    let engine = Fjall::open(&store, CACHE).unwrap();
    engine.commit(batch(1, b"again")).unwrap();
}
