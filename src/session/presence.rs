//! The presence family: awareness requests, responses and notifications (BIMip-Foundation 4.1 and 5.2; protocol.md §12).

use std::collections::VecDeque;

use crate::hub::presence::{Location, Shown, Told, Update, WatchPlace};
use crate::limits::{DIRECTED_ASKED_MAX, LANE_QUEUE_BYTES};
use crate::observe::PresenceResult;
use crate::store::{Access, Relation, StoreError};
use crate::wire::proto::{AwarenessNotification, AwarenessRequest, AwarenessResponse};
use crate::wire::{AwarenessIntention, AwarenessStatus, Eid, ErrorCode, Lane, Payload, encode_frame, envelope};

use super::call::Purpose;
use super::fault::{Fault, require_own};
use super::{Call, Now, Origin, Phase, Session};

/// A presence lane. Nothing is read from it or sent on it before the list of owners has been read.
pub(super) struct Watching {
    place: WatchPlace,
    ready: bool,
    /// The lane is full, so nothing is due until it has room.
    held: bool,
    /// The device's notices to one user alone. The store is asked about the first; the others wait, so that they are told in
    /// their order. Bounded: at the bound the lane is not read.
    directed: VecDeque<(Origin, Eid, Update)>,
}

impl Watching {
    /// Whether the lane is read.
    pub(super) fn is_read(&self) -> bool {
        self.ready && self.directed.len() < DIRECTED_ASKED_MAX
    }

    pub(super) fn has_more(&self) -> bool {
        self.ready && (self.held || self.place.is_marked())
    }

    /// When a notification that was put off is due.
    pub(super) fn due(&self) -> Option<std::time::Instant> {
        self.place.due().filter(|_| self.ready && !self.held)
    }
}

impl Session {
    /// Starts watching once the presence lane is open and the device is signed in.
    pub(super) fn watch_if_open(&mut self) {
        let Phase::Open(open) = &mut self.phase else { return };
        if self.lanes.contains(Lane::Presence) && open.watching.is_none() {
            let place = self.services.hub.presence().watch(&open.user, &open.device, self.signal.clone());
            open.watching = Some(Watching { place, ready: false, held: false, directed: VecDeque::new() });
            let user = open.user.clone();
            self.call(Call::Owners(user));
        }
    }

    pub(super) fn owners_read(&mut self, owners: Result<Vec<(Eid, Access)>, StoreError>) {
        let Phase::Open(open) = &mut self.phase else { return };
        let Some(watching) = &mut open.watching else { return };
        match owners {
            Ok(owners) => {
                watching.place.install(owners);
                watching.ready = true;
            }
            Err(_) => self.close(crate::wire::CloseCode::Internal, "storage is unavailable"),
        }
    }

    /// Sends the notifications that are due, as far as the lane has room.
    pub(super) fn pump_presence(&mut self, queued: usize, now: Now) {
        let mut room = LANE_QUEUE_BYTES.saturating_sub(queued);
        loop {
            let Phase::Open(open) = &mut self.phase else { return };
            let Some(watching) = open.watching.as_mut().filter(|watching| watching.ready) else { return };
            watching.held = room == 0;
            if watching.held {
                return;
            }
            let Some(told) = watching.place.next(now) else { return };
            let frame = encode_frame(&envelope(notification(&told, &open.user)));
            self.services.metrics.presence[PresenceResult::Sent].increment(1);
            room = room.saturating_sub(frame.len());
            self.send_frame(Lane::Presence, frame);
        }
    }

    /// 5.2 AwarenessRequest. An asker who may not see the user gets UNKNOWN, whether the user exists or not.
    pub(super) fn awareness_request(
        &mut self,
        origin: Origin,
        request: AwarenessRequest,
        now: Now,
    ) -> Result<(), Fault> {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        require_own(request.from.as_ref(), &open.user, open.device.as_str())?;
        let asked = Eid::from_identity(request.to.as_ref())?;
        let shown = open.watching.as_ref().and_then(|watching| watching.place.ask(&asked, now));
        let response = AwarenessResponse {
            from: Some(asked.identity()),
            to: Some(open.user.device_identity(&open.device)),
            awareness_identifier: request.awareness_identifier.to_string(),
            status: shown.map_or(AwarenessStatus::Unknown, |shown| shown.status).code(),
            latitude: shown.and_then(|shown| shown.location).map(|location| location.latitude),
            longitude: shown.and_then(|shown| shown.location).map(|location| location.longitude),
            awareness_intention: shown.map_or(0, |shown| intention(&shown)),
            timestamp: now.unix_ms,
            last_seen: shown.map_or(0, |shown| shown.last_seen),
        };
        self.send(Lane::Presence, origin.request_id, Payload::AwarenessResponse(response));
        Ok(())
    }

    /// 5.2 AwarenessNotification from a device: its user's new state, or with a `to` a notification to that user alone.
    pub(super) fn awareness_notification(
        &mut self,
        origin: Origin,
        notification: &AwarenessNotification,
    ) -> Result<(), Fault> {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        let Some(watching) = &mut open.watching else { return Ok(()) };
        require_own(notification.from.as_ref(), &open.user, open.device.as_str())?;
        let update = parse(notification)?;
        let to = notification.to.as_ref().filter(|to| !to.eid.is_empty() || !to.connection_resource_id.is_empty());
        match to {
            None => {
                self.services.hub.presence().update(&open.user, &open.device, &update);
                Ok(())
            }
            Some(to) => {
                watching.directed.push_back((origin, Eid::parse(&to.eid)?, update));
                if watching.directed.len() == 1 {
                    self.ask_directed();
                }
                Ok(())
            }
        }
    }

    /// Asks the store whether the first of the notices to one user alone may be told.
    fn ask_directed(&mut self) {
        let Phase::Open(open) = &mut self.phase else { return };
        if let Some((origin, to, _)) = open.watching.as_ref().and_then(|watching| watching.directed.front()) {
            let call = Call::Relation(*origin, open.user.clone(), to.clone(), Purpose::Direct);
            self.call(call);
        }
    }

    /// The store has answered whether the first of the notices to one user alone may be told.
    pub(super) fn directed(&mut self, relation: Result<Relation, StoreError>, now: Now) {
        let Phase::Open(open) = &mut self.phase else { return };
        let first = open.watching.as_mut().and_then(|watching| watching.directed.pop_front());
        let Some((origin, to, update)) = first else { return };
        match relation {
            Ok(relation) => self.direct(&to, &update, &relation, now),
            Err(error) => self.refuse(origin, Fault::from(&error)),
        }
        self.ask_directed();
    }

    /// Sends a notification to one user alone. It is not stored, and is dropped if either user has blocked the other.
    fn direct(&mut self, to: &Eid, update: &Update, relation: &Relation, now: Now) {
        let Phase::Open(open) = &mut self.phase else { return };
        if relation.blocked {
            return;
        }
        let hides = update.silent || update.status == AwarenessStatus::Invisible;
        let shown = Shown {
            status: if hides { AwarenessStatus::Offline } else { update.status },
            // What everybody sees is seen here, too: that somebody hides shows no time at which they were there.
            last_seen: if hides { self.services.hub.presence().last_seen(&open.user) } else { now.unix_ms },
            // Shared on the same condition as with everybody who sees the user.
            location: update.location.filter(|_| !hides && relation.access.is_some_and(|access| access.share_location)),
            silent: false,
        };
        self.services.hub.presence().direct(to, &Told { owner: open.user.clone(), shown });
    }
}

fn notification(told: &Told, to: &Eid) -> Payload {
    Payload::AwarenessNotification(AwarenessNotification {
        from: Some(told.owner.identity()),
        to: Some(to.identity()),
        status: told.shown.status.code(),
        last_seen: told.shown.last_seen,
        latitude: told.shown.location.map(|location| location.latitude),
        longitude: told.shown.location.map(|location| location.longitude),
        awareness_intention: intention(&told.shown),
    })
}

fn intention(shown: &Shown) -> i32 {
    if shown.silent { AwarenessIntention::DoNotBroadcast } else { AwarenessIntention::Broadcast }.code()
}

fn parse(notification: &AwarenessNotification) -> Result<Update, Fault> {
    let status = AwarenessStatus::from_code(notification.status)
        .filter(|status| *status != AwarenessStatus::Unknown)
        .ok_or_else(|| Fault::malformed("status is 1 to 7"))?;
    let intention = match notification.awareness_intention {
        0 => AwarenessIntention::Broadcast,
        code => AwarenessIntention::from_code(code)
            .ok_or_else(|| Fault::malformed("awareness_intention is 1 DO_NOT_BROADCAST or 2 BROADCAST"))?,
    };
    let location = match (notification.latitude, notification.longitude) {
        (None, None) => None,
        (Some(latitude), Some(longitude)) if is_on_earth(latitude, longitude) => Some(Location { latitude, longitude }),
        _ => {
            return Err(Fault::new(
                ErrorCode::Malformed,
                "latitude within 90 and longitude within 180, both or neither",
            ));
        }
    };
    Ok(Update { status, silent: intention == AwarenessIntention::DoNotBroadcast, location })
}

/// NaN is in no range, so it is refused.
fn is_on_earth(latitude: f64, longitude: f64) -> bool {
    (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::testing::{Bare, House, payload};
    use crate::session::{Done, Output};
    use crate::store::testing::{device, eid};

    fn say_to_bob(phone: &mut Bare, status: AwarenessStatus) {
        let word = AwarenessNotification {
            from: Some(eid("alice").identity()),
            to: Some(eid("bob").identity()),
            status: status.code(),
            ..AwarenessNotification::default()
        };
        phone.hear(Lane::Presence, Payload::AwarenessNotification(word));
    }

    fn calls(phone: &mut Bare) -> Vec<Call> {
        let calls = phone.outputs().into_iter().map(|output| match output {
            Output::Call(call) => call,
            other => panic!("{other:?}"),
        });
        calls.collect()
    }

    /// What the presence lane is told once every interval is over.
    fn told(phone: &mut Bare) -> Vec<i32> {
        let now = Now::system();
        phone.session.pump(|_| 0, Now { at: now.at + Duration::from_secs(60), ..now });
        let statuses = phone.outputs().into_iter().map(|output| match output {
            Output::Send(Lane::Presence, frame) => match payload(&frame) {
                Payload::AwarenessNotification(told) => told.status,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        });
        statuses.collect()
    }

    #[tokio::test]
    async fn of_notices_to_one_user_the_newest_is_told_whichever_the_store_answers_first() {
        let house = House::new(|_, _| ());
        let mut phone = house.bare(&eid("alice"), &device("phone")).await;
        let mut bob = house.bare(&eid("bob"), &device("phone")).await;
        say_to_bob(&mut phone, AwarenessStatus::Busy);
        say_to_bob(&mut phone, AwarenessStatus::Away);
        loop {
            let under_way = calls(&mut phone);
            if under_way.is_empty() {
                break;
            }
            for call in under_way.into_iter().rev() {
                phone.answer(call).await;
            }
        }
        assert_eq!(told(&mut bob), [AwarenessStatus::Away.code()]);
    }

    #[tokio::test]
    async fn a_device_with_many_notices_to_single_users_is_not_read_until_the_store_answers() {
        let house = House::new(|_, _| ());
        let mut phone = house.bare(&eid("alice"), &device("phone")).await;
        let mut bob = house.bare(&eid("bob"), &device("phone")).await;
        for _ in 0..DIRECTED_ASKED_MAX {
            assert!(phone.session.wanted().contains(Lane::Presence));
            say_to_bob(&mut phone, AwarenessStatus::Busy);
        }
        assert!(!phone.session.wanted().contains(Lane::Presence));
        let [call] = <[Call; 1]>::try_from(calls(&mut phone)).unwrap();
        let Call::Relation(origin, alice, bobs, purpose) = call else { panic!("{call:?}") };
        let failed = Done::Relation(origin, alice, bobs, purpose, Err(StoreError::Overloaded));
        phone.session.done(failed, Now::system());
        assert!(phone.session.wanted().contains(Lane::Presence));
        let (sent, _) = phone.settle().await;
        assert!(matches!(&sent[..], [(Lane::Presence, Payload::ErrorMessage(_))]), "{sent:?}");
        assert_eq!(told(&mut bob), [AwarenessStatus::Busy.code()], "the others are told");
    }

    #[tokio::test]
    async fn a_stranger_is_not_heard_any_more_once_either_has_blocked_the_other() {
        for alice_blocks in [true, false] {
            let house = House::new(|_, _| ());
            let (alice, bob) = (eid("alice"), eid("bob"));
            let mut phone = house.bare(&alice, &device("phone")).await;
            let says = |status| {
                let shown = Shown { status, last_seen: 1, location: None, silent: false };
                house.services.hub.presence().direct(&alice, &Told { owner: bob.clone(), shown });
            };
            says(AwarenessStatus::Busy);
            let (sent, _) = phone.settle().await;
            assert!(matches!(&sent[..], [(Lane::Presence, Payload::AwarenessNotification(_))]), "{sent:?}");
            // So soon after the first, this one waits.
            says(AwarenessStatus::Away);
            let (one, other) = if alice_blocks { (&alice, &bob) } else { (&bob, &alice) };
            assert!(house.store.set_block(one, other, true).await.unwrap());
            let now = Now::system();
            phone.session.pump(|_| 0, Now { at: now.at + Duration::from_secs(60), ..now });
            let outputs = phone.outputs();
            assert!(outputs.is_empty(), "{outputs:?}");
        }
    }

    #[tokio::test]
    async fn who_has_no_room_is_notified_of_the_rest_later() {
        const NOTICES: usize = 20;
        let house = House::new(|_, _| ());
        let alice = eid("alice");
        let mut phone = house.bare(&alice, &device("phone")).await;
        let shown = Shown { status: AwarenessStatus::Busy, last_seen: 1, location: None, silent: false };
        for number in 0..NOTICES {
            let owner = eid(&format!("user{number}"));
            house.services.hub.presence().direct(&alice, &Told { owner, shown });
        }
        let mut told = |queued: usize| {
            phone.session.pump(|_| queued, Now::system());
            let sent = |output| match output {
                Output::Send(Lane::Presence, frame) => {
                    assert!(matches!(payload(&frame), Payload::AwarenessNotification(_)))
                }
                other => panic!("{other:?}"),
            };
            let frames = phone.outputs().into_iter().map(sent);
            frames.count()
        };
        assert_eq!(told(LANE_QUEUE_BYTES), 0);
        assert_eq!(told(LANE_QUEUE_BYTES - 1), 1, "it takes all the room that there is");
        assert_eq!(told(0), NOTICES - 1);
    }
}
