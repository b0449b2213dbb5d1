//! An owner with many watchers whose state changes very often.

use std::collections::BTreeSet;

use bimip::wire::Lane;
use bimip::wire::proto::AwarenessNotification;

use super::common::{TestServer, now_ms};
use super::{ALICE, AWAY, BOB, BUSY, DO_NOT_DISTURB, ONLINE, admit, be, sign_in, tell, told};

#[tokio::test]
async fn a_flapping_owner_costs_each_watcher_a_bounded_number_of_notifications_and_the_newest_comes_last() {
    const WATCHERS: usize = 30;
    const CHANGES: usize = 600;
    const INTERVAL_MS: i64 = 200;
    let server = TestServer::with(|config| config.presence.interval_ms = INTERVAL_MS as u64).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    let mut watchers = Vec::new();
    for n in 0..WATCHERS {
        let eid = format!("watcher{n}@localhost");
        admit(&mut alice, &eid, None).await;
        watchers.push(sign_in(&server, &eid, "phone").await);
    }
    for watcher in &mut watchers {
        told(watcher, ALICE, ONLINE).await;
    }
    let began = now_ms();
    for n in 0..CHANGES {
        let status = [AWAY, BUSY, ONLINE][n % 3];
        tell(&mut alice, status).await;
    }
    be(&mut alice, DO_NOT_DISTURB).await;
    let mut most = 0;
    for watcher in &mut watchers {
        let mut heard = 0;
        let last = loop {
            let told = watcher.expect::<AwarenessNotification>(Lane::Presence).await;
            heard += 1;
            if told.status == DO_NOT_DISTURB {
                break told;
            }
        };
        assert_eq!(last.from.clone().unwrap().eid, ALICE);
        watcher.expect_nothing_more(Lane::Presence).await;
        most = most.max(heard);
    }
    // At most one notification at once, one for each interval that has passed, and the last one.
    let intervals = (now_ms() - began) / INTERVAL_MS;
    assert!(most <= 2 + intervals, "{most} in {intervals} intervals, of {CHANGES} changes");
}

#[tokio::test]
async fn contacts_that_all_change_right_after_they_were_told_are_all_told_again() {
    const CONTACTS: usize = 20;
    let server = TestServer::with(|config| config.presence.interval_ms = 2000).await;
    let mut contacts = Vec::new();
    for n in 0..CONTACTS {
        let mut contact = sign_in(&server, &format!("contact{n}@localhost"), "phone").await;
        admit(&mut contact, BOB, None).await;
        contacts.push(contact);
    }
    let mut bob = sign_in(&server, BOB, "phone").await;
    for status in [ONLINE, AWAY] {
        let mut missing: BTreeSet<_> = (0..CONTACTS).map(|n| format!("contact{n}@localhost")).collect();
        while !missing.is_empty() {
            let told = bob.expect::<AwarenessNotification>(Lane::Presence).await;
            assert_eq!(told.status, status);
            assert!(missing.remove(&told.from.clone().unwrap().eid));
        }
        for contact in &mut contacts {
            tell(contact, AWAY).await;
        }
    }
}

#[tokio::test]
async fn a_watcher_who_does_not_read_costs_nobody_and_finds_the_newest_state() {
    let server = TestServer::with(|config| config.presence.interval_ms = 0).await;
    let mut alice = sign_in(&server, ALICE, "phone").await;
    let mut slow = sign_in(&server, BOB, "slow").await;
    let mut quick = sign_in(&server, BOB, "quick").await;
    admit(&mut alice, BOB, None).await;
    told(&mut slow, ALICE, ONLINE).await;
    told(&mut quick, ALICE, ONLINE).await;
    for n in 0..300 {
        let status = [AWAY, BUSY][n % 2];
        tell(&mut alice, status).await;
        told(&mut quick, ALICE, status).await;
    }
    tell(&mut alice, DO_NOT_DISTURB).await;
    told(&mut quick, ALICE, DO_NOT_DISTURB).await;
    let mut before = ONLINE;
    while before != DO_NOT_DISTURB {
        let told = slow.expect::<AwarenessNotification>(Lane::Presence).await;
        assert_ne!(told.status, before, "the same twice");
        before = told.status;
    }
    slow.expect_nothing_more(Lane::Presence).await;
}
