//! Tests of devices (protocol.md §5) and cursors (protocol.md §9).

use super::*;

#[test]
fn a_cursor_moves_forward_only_and_not_past_the_head() {
    let mut house = House::new();
    house.open("bob", "phone").unwrap();
    for number in 1..=3 {
        house.sent("alice", "bob", number);
    }
    for (to, stands) in [(2, 2), (1, 2), (9, 3), (0, 3)] {
        house.run(vec![cursor("bob", "phone", to)]);
        assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::from(stands));
    }
}

#[test]
fn a_cursor_waits_for_its_flush_or_the_end() {
    let mut house = House::new();
    house.open("bob", "phone").unwrap();
    house.sent("alice", "bob", 1);
    house.sent("alice", "bob", 2);
    let commits = house.memory.commits();
    house.run(vec![cursor("bob", "phone", 1)]);
    assert_eq!(house.memory.commits(), commits);
    assert!(house.ledger.has_unwritten_cursors());
    // A crash now loses the cursor, and nothing else.
    let (mut house, _) = house.restart();
    assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::ZERO);

    house.run(vec![cursor("bob", "phone", 1)]);
    house.sent("alice", "bob", 3);
    assert!(house.ledger.has_unwritten_cursors(), "other commits do not take it along unless told");
    house.ledger.add_cursors();
    let commits = house.memory.commits();
    house.sent("alice", "bob", 4);
    assert!(!house.ledger.has_unwritten_cursors());
    assert_eq!(house.memory.commits(), commits + 1, "it was in the same commit");
    let (mut house, _) = house.restart();
    assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::from(1));

    house.run(vec![cursor("bob", "phone", 2)]);
    house.ledger.flush_cursors().unwrap();
    assert!(!house.ledger.has_unwritten_cursors());
    let (mut house, _) = house.restart();
    assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::from(2));
}

#[test]
fn opening_a_known_device_writes_nothing() {
    let mut house = House::new();
    house.open("bob", "phone").unwrap();
    assert_eq!(house.memory.commits(), 1);
    house.open("bob", "phone").unwrap();
    assert_eq!(house.memory.commits(), 1);
}

#[test]
fn a_user_has_so_many_devices_and_a_forgotten_one_makes_room() {
    let mut house = House::new();
    for number in 0..DEVICES_PER_USER_MAX {
        house.open("bob", &format!("d{number}")).unwrap();
    }
    assert_eq!(house.open("bob", "more").unwrap_err(), StoreError::TooManyDevices);
    house.open("bob", "d0").unwrap();
    house.open("alice", "phone").unwrap();
    house.one(sign_out("bob", device("d0"))).unwrap();
    house.open("bob", "more").unwrap();
}

#[test]
fn a_forgotten_device_is_not_brought_back_by_what_was_under_way() {
    let mut house = House::new();
    house.open("bob", "phone").unwrap();
    let message = house.sent("alice", "bob", 1);
    house.run(vec![cursor("bob", "phone", 1), sign_out("bob", device("phone")), cursor("bob", "phone", 1)]);
    house.ack(ack("bob", AckTarget::Message(message.id), AckStatus::Read, 1)).unwrap();
    assert_eq!(house.rows(Space::Devices), 0);
    assert_eq!(house.open("bob", "phone").unwrap().cursor, Sequence::ZERO);
}
