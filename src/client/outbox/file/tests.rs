//! The journal across restarts, incomplete records and rewrites.

use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("outbox")
    }

    fn open(&self) -> FileOutbox {
        FileOutbox::open(self.path()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        names(&self.open().load(&owner()).unwrap())
    }
}

fn names(backlog: &Backlog) -> Vec<String> {
    backlog.drafts.iter().map(|draft| draft.local_id.to_string()).collect()
}

fn owner() -> Eid {
    Eid::parse("alice@x").unwrap()
}

fn id(name: &str) -> LocalId {
    LocalId::parse(name).unwrap()
}

fn text(name: &str) -> Draft {
    Draft {
        local_id: id(name),
        to: Eid::parse("bob@x").unwrap(),
        content: Content::Text(format!("text of {name} with an ü")),
        created_at: 1_700_000_000_000,
    }
}

#[test]
fn what_was_unanswered_and_the_place_in_the_log_come_back_as_they_were() {
    let place = Place::new();
    let mut outbox = place.open();
    assert_eq!(outbox.load(&owner()).unwrap(), Backlog::default());
    let media = Media {
        kind: MediaType::Video,
        url: "https://cdn.example/7".into(),
        caption: "a film".into(),
        thumbnail_url: "https://cdn.example/7.jpg".into(),
        size_bytes: 1 << 31,
    };
    let media = Draft { content: Content::Media(media), ..text("media") };
    for draft in [&text("a"), &text("b"), &media, &text("c")] {
        outbox.insert(draft).unwrap();
    }
    outbox.advance(Sequence::from(7)).unwrap();
    outbox.remove(&id("b")).unwrap();
    outbox.remove(&id("never there")).unwrap();
    outbox.advance(Sequence::from(9)).unwrap();
    drop(outbox);

    let drafts = vec![text("a"), media, text("c")];
    let mut outbox = place.open();
    assert_eq!(outbox.load(&owner()).unwrap(), Backlog { drafts, cursor: Some(Sequence::from(9)) });
    outbox.remove(&id("a")).unwrap();
    outbox.insert(&text("d")).unwrap();
    drop(outbox);
    assert_eq!(place.names(), ["media", "c", "d"]);
}

#[test]
fn another_users_messages_are_not_handed_out() {
    let place = Place::new();
    let mut outbox = place.open();
    outbox.load(&owner()).unwrap();
    outbox.insert(&text("a")).unwrap();
    // Also after a rewrite.
    let long = Content::Text("x".repeat(16 * 1024));
    for round in 0..40 {
        let name = format!("round {round}");
        outbox.insert(&Draft { content: long.clone(), ..text(&name) }).unwrap();
        outbox.remove(&id(&name)).unwrap();
    }
    drop(outbox);
    let refused = place.open().load(&Eid::parse("carol@x").unwrap()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    assert!(refused.to_string().ends_with("outbox holds messages of alice@x, not of carol@x"), "{refused}");
    assert_eq!(place.names(), ["a"]);
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_tears() {
    let place = Place::new();
    let mut outbox = place.open();
    outbox.insert(&text("a")).unwrap();
    let whole = outbox.len as usize;
    outbox.insert(&text("b")).unwrap();
    drop(outbox);
    let bytes = std::fs::read(place.path()).unwrap();
    for end in whole..bytes.len() {
        std::fs::write(place.path(), &bytes[..end]).unwrap();
        let mut outbox = place.open();
        assert_eq!(names(&outbox.load(&owner()).unwrap()), ["a"], "{end} bytes");
        outbox.insert(&text("after")).unwrap();
        drop(outbox);
        assert_eq!(place.names(), ["a", "after"], "{end} bytes");
    }
    // One byte of the last record never reached the disk.
    let mut torn = bytes.clone();
    *torn.last_mut().unwrap() ^= 0x40;
    std::fs::write(place.path(), &torn).unwrap();
    assert_eq!(place.names(), ["a"]);
    // A file whose creation was interrupted.
    for end in 0..MAGIC.len() {
        std::fs::write(place.path(), &bytes[..end]).unwrap();
        assert_eq!(place.names(), [""; 0]);
    }
}

#[test]
fn what_is_behind_a_damage_does_not_vanish() {
    let place = Place::new();
    let mut outbox = place.open();
    outbox.load(&owner()).unwrap();
    let mut places = Vec::new();
    for name in ["a", "b", "c"] {
        places.push(outbox.len as usize);
        outbox.insert(&text(name)).unwrap();
    }
    drop(outbox);
    let bytes = std::fs::read(place.path()).unwrap();
    let aside = beside(&place.path(), ".damaged");
    // A byte of the message in the middle, a byte of its length, and a hole in place of it.
    let middle = (places[1] + places[2]) / 2;
    let mut damaged = [bytes.clone(), bytes.clone(), bytes.clone()];
    damaged[0][middle] ^= 0x40;
    damaged[1][places[1] + 1] ^= 0x40;
    damaged[2][places[1]..places[2]].fill(0);
    for damaged in damaged {
        std::fs::write(place.path(), &damaged).unwrap();
        assert_eq!(place.names(), ["a"]);
        assert_eq!(std::fs::read(&aside).unwrap(), damaged);
        // The second time it is whole.
        std::fs::remove_file(&aside).unwrap();
        assert_eq!(place.names(), ["a"]);
        assert!(!aside.exists());
    }
    // As after a crash in the middle of the last message.
    std::fs::write(place.path(), &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(place.names(), ["a", "b"]);
    assert!(!aside.exists());
}

#[test]
#[cfg(target_os = "linux")]
fn a_message_that_is_taken_after_a_failed_sync_is_behind_no_hole() {
    let place = Place::new();
    let mut outbox = place.open();
    outbox.load(&owner()).unwrap();
    outbox.insert(&text("a")).unwrap();
    let hole = outbox.len;
    outbox.advance(Sequence::from(7)).unwrap();
    // A file that takes everything and cannot be synced.
    let null = options().open("/dev/null").unwrap();
    let file = std::mem::replace(&mut outbox.file, null);
    outbox.insert(&text("b")).unwrap_err();
    outbox.file = file;
    // Of what was not synced before, nothing reached the disk, and nothing will.
    let mut old = options().open(place.path()).unwrap();
    old.seek(SeekFrom::Start(hole)).unwrap();
    old.write_all(&vec![0; (outbox.len - hole) as usize]).unwrap();
    outbox.insert(&text("c")).unwrap();
    drop(outbox);
    let backlog = place.open().load(&owner()).unwrap();
    assert_eq!((names(&backlog), backlog.cursor), (vec!["a".to_owned(), "c".to_owned()], Some(Sequence::from(7))));
}

#[test]
fn history_is_written_out_of_the_file_and_nothing_that_is_wanted() {
    let place = Place::new();
    let mut outbox = place.open();
    outbox.insert(&text("first")).unwrap();
    let mut longest = 0;
    let long = Content::Text("x".repeat(16 * 1024));
    for round in 0..100 {
        let name = format!("round {round}");
        outbox.insert(&Draft { content: long.clone(), ..text(&name) }).unwrap();
        outbox.advance(Sequence::from(round)).unwrap();
        longest = longest.max(outbox.len);
        outbox.remove(&id(&name)).unwrap();
    }
    outbox.insert(&text("last")).unwrap();
    assert!(longest < 2 * JOURNAL_DEAD_BYTES_MAX, "{longest} bytes");
    assert_eq!(std::fs::metadata(place.path()).unwrap().len(), outbox.len);
    // Messages from before the rewrite are found after it.
    outbox.remove(&id("first")).unwrap();
    drop(outbox);
    let backlog = place.open().load(&owner()).unwrap();
    assert_eq!((names(&backlog), backlog.cursor), (vec!["last".to_owned()], Some(Sequence::from(99))));
    assert!(!beside(&place.path(), ".new").exists());
}

#[test]
fn a_rewriting_that_was_interrupted_changes_nothing() {
    let place = Place::new();
    let mut outbox = place.open();
    outbox.insert(&text("a")).unwrap();
    drop(outbox);
    std::fs::write(beside(&place.path(), ".new"), b"BIMIPOB\x01 half of a").unwrap();
    assert_eq!(place.names(), ["a"]);
}

#[test]
fn it_is_bounded() {
    let place = Place::new();
    let mut outbox = place.open();
    // Filled without waiting a thousand times for the disk.
    for number in 0..OUTBOX_MESSAGES_MAX as u64 {
        outbox.keep(&id(&number.to_string()), number, 1);
    }
    assert!(outbox.insert(&text("over")).is_err());
    drop(outbox);
    std::fs::File::create(place.path()).unwrap().set_len(JOURNAL_BYTES_MAX + 1).unwrap();
    assert_eq!(FileOutbox::open(place.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn another_kind_of_file_is_left_alone_and_one_in_use_is_not_shared() {
    let place = Place::new();
    std::fs::write(place.path(), "a shopping list").unwrap();
    assert_eq!(FileOutbox::open(place.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(std::fs::read(place.path()).unwrap(), b"a shopping list");

    let place = Place::new();
    let outbox = place.open();
    assert_eq!(FileOutbox::open(place.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(outbox);
    place.open();
}

/// A disk without room for another byte, for as long as it is in the place of a file.
#[cfg(target_os = "linux")]
fn full_disk(at: &Path) -> File {
    std::os::unix::fs::symlink("/dev/full", beside(at, ".new")).unwrap();
    File::options().read(true).write(true).open("/dev/full").unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_full_disk_did_not_let_go_of_does_not_come_back() {
    let place = Place::new();
    let mut outbox = place.open();
    outbox.load(&owner()).unwrap();
    ["a", "b", "c"].into_iter().for_each(|name| outbox.insert(&text(name)).unwrap());
    let file = std::mem::replace(&mut outbox.file, full_disk(&place.path()));
    assert_eq!(outbox.remove(&id("a")).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(!beside(&place.path(), ".new").is_symlink(), "half of a file takes room");
    let _full = full_disk(&place.path());
    assert_eq!(outbox.advance(Sequence::from(7)).unwrap_err().kind(), io::ErrorKind::StorageFull);
    // There is room again.
    outbox.file = file;
    outbox.insert(&text("d")).unwrap();
    drop(outbox);
    let mut outbox = place.open();
    let backlog = outbox.load(&owner()).unwrap();
    assert_eq!((names(&backlog), backlog.cursor), (["b", "c", "d"].map(str::to_owned).into(), Some(Sequence::from(7))));
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_with_room_for_a_message_and_not_for_another_file_takes_the_message() {
    let place = Place::new();
    let mut outbox = place.open();
    outbox.load(&owner()).unwrap();
    let long = Content::Text("x".repeat(16 * 1024));
    let mut round = 0;
    while outbox.len <= 2 * outbox.kept_bytes + JOURNAL_DEAD_BYTES_MAX {
        let name = format!("round {round}");
        outbox.insert(&Draft { content: long.clone(), ..text(&name) }).unwrap();
        // Not with `remove`, which would make the file smaller.
        outbox.forget(&id(&name)).unwrap();
        round += 1;
    }
    let whole = outbox.len;
    let _full = full_disk(&place.path());
    outbox.insert(&text("a")).unwrap();
    assert!(outbox.len > whole && !beside(&place.path(), ".new").is_symlink());
    outbox.insert(&text("b")).unwrap();
    assert!(outbox.len < whole);
    drop(outbox);
    assert_eq!(place.names(), ["a", "b"]);
}

#[test]
fn the_checksum_is_the_usual_one() {
    assert_eq!(checksum(b"123456789"), 0xCBF4_3926);
}

proptest::proptest! {
    #[test]
    fn whatever_a_file_holds_it_is_opened_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let place = Place::new();
        std::fs::write(place.path(), [MAGIC.as_slice(), &bytes].concat()).unwrap();
        place.open().insert(&text("a")).unwrap();
        proptest::prop_assert_eq!(place.names(), ["a"]);
    }
}
