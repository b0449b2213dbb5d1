//! Tests of lists and blocks (protocol.md §11), and of revocations (protocol.md §13).

use std::collections::HashSet;

use super::*;
use crate::limits::{OWNERS_READ_MAX, STORE_PAGE_ROWS};
use crate::store::record::{OwnerRecord, RevocationRecord};

fn owners(house: &House, of: &str) -> Vec<String> {
    let owners = read::owners(&*house.memory.view(), &eid(of)).unwrap();
    owners.iter().map(|(owner, _)| owner.to_string()).collect()
}

fn list(house: &House, owner: &str) -> Vec<Contact> {
    let page = read::contacts(&*house.memory.view(), &eid(owner), None, usize::MAX).unwrap();
    assert!(!page.more);
    page.contacts
}

#[test]
fn a_list_is_read_in_parts_of_which_each_has_somebody() {
    let mut house = House::new();
    let (all, others) = (2 * STORE_PAGE_ROWS, ["ailce", "alicf", "bob"]);
    others.iter().for_each(|owner| assert!(!house.flag(put(owner, "carol")).unwrap()));
    for number in 0..all {
        house.flag(put("alice", &format!("s{number:04}"))).unwrap();
    }
    for (bytes, parts) in [(0, all), (4096, all.div_ceil(100)), (usize::MAX, 1)] {
        let (mut read, mut after, mut count) = (Vec::new(), None, 0);
        loop {
            let page = read::contacts(&*house.memory.view(), &eid("alice"), after.as_ref(), bytes).unwrap();
            count += 1;
            after = Some(page.contacts.last().expect("somebody").subscriber.clone());
            read.extend(page.contacts);
            if !page.more {
                break;
            }
        }
        assert!(count >= parts, "{bytes} bytes: {count} parts");
        let expected = (0..all).map(|number| eid(&format!("s{number:04}")));
        assert!(read.into_iter().map(|contact| contact.subscriber).eq(expected), "{bytes} bytes");
    }
}

#[test]
fn a_contact_is_added_changed_and_removed() {
    let mut house = House::new();
    assert!(!house.flag(remove("alice", "bob")).unwrap());
    assert!(!house.flag(put("alice", "bob")).unwrap());
    let renamed = Contact { nickname: "Bobby".into(), added_at: 99, ..contact("bob") };
    assert!(house.flag(Op::PutContact(eid("alice"), Box::new(renamed.clone()))).unwrap());
    assert_eq!(list(&house, "alice"), [Contact { added_at: 5, ..renamed }]);
    assert!(house.flag(remove("alice", "bob")).unwrap());
    assert_eq!(house.rows(Space::Contacts) + house.rows(Space::Owners), 0);
}

#[test]
fn a_block_survives_being_added_changed_and_removed() {
    let mut house = House::new();
    assert!(house.flag(block("alice", "bob", true)).unwrap());
    assert!(!house.flag(block("alice", "bob", true)).unwrap());
    assert!(!house.flag(put("alice", "bob")).unwrap(), "blocked is not subscribed");
    assert!(house.flag(put("alice", "bob")).unwrap());
    assert!(house.flag(remove("alice", "bob")).unwrap());
    assert!(!house.flag(remove("alice", "bob")).unwrap());
    let (mut house, _) = house.restart();
    let list = list(&house, "alice");
    assert_eq!((list.len(), list[0].blocked, list[0].subscribed), (1, true, false));
    assert!(house.flag(block("alice", "bob", false)).unwrap());
    assert!(!house.flag(block("alice", "bob", false)).unwrap());
    assert_eq!(house.rows(Space::Contacts), 0);
}

#[test]
fn who_is_on_very_many_lists_sees_a_bounded_number_of_owners() {
    let house = House::new();
    for number in 0..=OWNERS_READ_MAX {
        let owner = eid(&format!("owner{number:05}"));
        house.put(&key::pair(&eid("bob"), &owner), &OwnerRecord { share_location: true });
    }
    let seen = owners(&house, "bob");
    assert_eq!((seen.len(), seen.last().unwrap().as_str()), (OWNERS_READ_MAX, "owner19999@x"));
}

#[test]
fn a_block_either_way_hides_the_owners() {
    let mut house = House::new();
    house.run(vec![put("alice", "bob"), put("bob", "alice"), put("carol", "bob")]);
    assert_eq!(owners(&house, "bob"), ["alice@x", "carol@x"]);
    house.one(block("bob", "alice", true)).unwrap();
    assert_eq!((owners(&house, "bob"), owners(&house, "alice")), (vec!["carol@x".into()], vec![]));
    house.run(vec![block("alice", "bob", true), block("bob", "alice", false)]);
    assert_eq!((owners(&house, "bob"), owners(&house, "alice")), (vec!["carol@x".into()], vec![]));
    house.one(block("alice", "bob", false)).unwrap();
    assert_eq!(owners(&house, "alice"), ["bob@x"]);
    house.one(remove("alice", "bob")).unwrap();
    assert_eq!(owners(&house, "bob"), ["carol@x"]);
}

#[test]
fn lists_are_bounded_subscribers_and_blocks_apart() {
    let mut house = House::new();
    let some = |number| format!("user{number}");
    let fill = |house: &mut House, op: &dyn Fn(&str) -> Op| {
        for number in 0..SUBSCRIBERS_PER_USER_MAX {
            house.ledger.apply(op(&some(number)));
        }
        assert!(house.ledger.commit(Instant::now).outcomes.iter().all(Result::is_ok));
    };
    fill(&mut house, &|user| put("alice", user));
    assert_eq!(house.flag(put("alice", "more")).unwrap_err(), StoreError::ListFull);
    assert!(house.flag(put("alice", "user7")).unwrap());
    assert!(house.flag(block("alice", "user7", true)).unwrap());
    assert!(house.flag(block("alice", "user7", false)).unwrap());
    let (mut house, _) = house.restart();
    fill(&mut house, &|user| block("alice", &format!("not-{user}"), true));
    assert_eq!(house.flag(block("alice", "more", true)).unwrap_err(), StoreError::ListFull);
    assert_eq!(house.flag(block("alice", "user7", true)).unwrap_err(), StoreError::ListFull);
    assert_eq!(house.flag(put("alice", "not-user1")).unwrap_err(), StoreError::ListFull);
    assert!(house.flag(remove("alice", "user8")).unwrap());
    assert!(!house.flag(put("alice", "not-user1")).unwrap());
    // Both lists are full and contain a blocked subscriber: it can still be removed.
    assert!(house.flag(remove("alice", "not-user1")).unwrap());
    assert_eq!(house.flag(block("alice", "more", true)).unwrap_err(), StoreError::ListFull);
    assert!(house.flag(block("alice", "not-user1", false)).unwrap());
    assert!(house.flag(block("alice", "more", true)).unwrap());
}

#[test]
fn a_revocation_never_gets_weaker_and_goes_when_it_has_expired() {
    let mut house = House::new();
    let revoke = |target: &RevocationTarget, issued_until, expires_at| {
        Op::Revoke(Revocation { target: target.clone(), issued_until, expires_at }, None)
    };
    let (token, user) = (RevocationTarget::Token(eid("bob"), [1; 32]), RevocationTarget::User(eid("bob")));
    house.run(vec![revoke(&token, 0, 50), revoke(&user, 10, 100), revoke(&user, 7, 90)]);
    let (mut house, _) = house.restart();
    let expected = [
        Revocation { target: token.clone(), issued_until: 0, expires_at: 50 },
        Revocation { target: user.clone(), issued_until: 10, expires_at: 100 },
    ];
    assert_eq!(read::revocations(&*house.memory.view()).unwrap(), expected);
    // A damaged one that names no user goes, too.
    let broken = RevocationTarget::User(eid("broken"));
    let record = RevocationRecord { expires_at: 1, ..RevocationRecord::default() };
    house
        .memory
        .commit(vec![(
            Space::Revocations,
            Slice::new(&key::revocation(&broken)),
            Some(prost::Message::encode_to_vec(&record).into()),
        )])
        .unwrap();
    let rows = [&broken, &token, &user].map(key::revocation).to_vec();
    let dropped = house.run(vec![Op::DropRevocations { rows, expired_at: 50 }]);
    assert_eq!(dropped.changes, [Change::Lapsed(token)], "who remembers it is told");
    assert_eq!(read::revocations(&*house.memory.view()).unwrap(), expected[1..]);
}

#[test]
fn so_many_devices_of_a_user_are_revoked_one_by_one_and_no_more() {
    let mut house = House::new();
    let revoke = |user: &str, name: &str| {
        let target = RevocationTarget::Device(eid(user), device(name));
        Op::Revoke(Revocation { target, issued_until: 10, expires_at: 100 }, Some(device(name)))
    };
    for number in 0..REVOKED_DEVICES_PER_USER_MAX {
        house.one(revoke("bob", &format!("d{number}"))).unwrap();
    }
    house.open("bob", "more").unwrap();
    assert_eq!(house.one(revoke("bob", "more")).unwrap_err(), StoreError::TooManyRevoked);
    assert_eq!(house.rows(Space::Devices), 1, "neither is done");
    house.one(revoke("bob", "d7")).unwrap();
    // Of others, who are called nearly so, nothing is counted.
    house.one(revoke("bo", "more")).unwrap();
    house.one(revoke("bobb", "more")).unwrap();
    let all = Revocation { target: RevocationTarget::User(eid("bob")), issued_until: 10, expires_at: 100 };
    house.one(Op::Revoke(all, None)).unwrap();
}

#[test]
fn who_revoked_all_tokens_can_free_the_place_of_a_lost_device_again() {
    use crate::limits::DEVICES_PER_USER_MAX;
    let mut house = House::new();
    let revoke = |name: &str| {
        let target = RevocationTarget::Device(eid("bob"), device(name));
        Op::Revoke(Revocation { target, issued_until: 10, expires_at: 100 }, Some(device(name)))
    };
    for number in 0..DEVICES_PER_USER_MAX {
        house.open("bob", &format!("lost-{number}")).unwrap();
    }
    // A thief with bob's token revokes devices that never were.
    for number in 0..REVOKED_DEVICES_PER_USER_MAX {
        house.one(revoke(&format!("made-up-{number}"))).unwrap();
    }
    // Bob does what the error says.
    assert_eq!(house.one(revoke("lost-1")).unwrap_err(), StoreError::TooManyRevoked);
    let all = Revocation { target: RevocationTarget::User(eid("bob")), issued_until: 20, expires_at: 200 };
    house.one(Op::Revoke(all, None)).unwrap();
    assert_eq!(house.open("bob", "new").unwrap_err(), StoreError::TooManyDevices);
    // What refused tokens of the devices refuses nothing more than the revocation of all does.
    let changes = house.run(vec![revoke("lost-1")]).changes;
    let covered: HashSet<_> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Lapsed(RevocationTarget::Device(_, device)) => Some(device.to_string()),
            _ => None,
        })
        .collect();
    let made_up = (0..REVOKED_DEVICES_PER_USER_MAX).map(|number| format!("made-up-{number}"));
    assert_eq!(covered, made_up.collect(), "nobody needs to remember them");
    house.open("bob", "new").unwrap();
}

#[test]
fn a_device_known_or_not_does_not_sign_in_with_a_token_that_is_revoked() {
    let mut house = House::new();
    let open =
        |name: &str, issued_at| Op::OpenDevice(eid("bob"), device(name), Bearer { fingerprint: [7; 32], issued_at });
    house.one(open("phone", 5)).unwrap();
    house.one(open("tablet", 5)).unwrap();
    let revoke = |target, forget| Op::Revoke(Revocation { target, issued_until: 10, expires_at: 100 }, forget);
    let phone = RevocationTarget::Device(eid("bob"), device("phone"));
    house.one(revoke(phone, Some(device("phone")))).unwrap();
    assert_eq!(house.rows(Space::Devices), 1);
    // It was signing in meanwhile.
    assert_eq!(house.one(open("phone", 10)).unwrap_err(), StoreError::Revoked);
    assert_eq!(house.rows(Space::Devices), 1, "its place stays free");
    house.one(open("watch", 10)).unwrap();
    house.one(open("phone", 11)).unwrap();
    house.one(revoke(RevocationTarget::User(eid("bob")), None)).unwrap();
    assert_eq!(house.one(open("desk", 10)).unwrap_err(), StoreError::Revoked);
    assert_eq!(house.one(open("tablet", 10)).unwrap_err(), StoreError::Revoked);
    house.one(open("tablet", 11)).expect("it has its place");
    house.one(revoke(RevocationTarget::Token(eid("bob"), [7; 32]), None)).unwrap();
    assert_eq!(house.one(open("desk", 11)).unwrap_err(), StoreError::Revoked);
    house.open("bob", "desk").unwrap();
}
