//! The presence family: awareness requests, responses and notifications (BIMip-Foundation 4.1 and 5.2; protocol.md §12).

use crate::hub::presence::{Location, Shown, Told, Update, WatchPlace};
use crate::limits::LANE_QUEUE_BYTES;
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
}

impl Watching {
    pub(super) fn is_ready(&self) -> bool {
        self.ready
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
            open.watching = Some(Watching { place, ready: false, held: false });
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
        require_own(notification.from.as_ref(), &open.user, open.device.as_str())?;
        let update = parse(notification)?;
        let to = notification.to.as_ref().filter(|to| !to.eid.is_empty() || !to.connection_resource_id.is_empty());
        match to {
            None => {
                self.services.hub.presence().update(&open.user, &open.device, &update);
                Ok(())
            }
            Some(to) => {
                let (from, to) = (open.user.clone(), Eid::parse(&to.eid)?);
                self.call(Call::Relation(origin, from, to, Purpose::Direct(update)));
                Ok(())
            }
        }
    }

    /// Sends a notification to one user alone. It is not stored, and is dropped if either user has blocked the other.
    pub(super) fn direct(&mut self, to: &Eid, update: &Update, relation: &Relation, now: Now) {
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
    use crate::session::testing::House;
    use crate::store::testing::{device, eid};

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
}
