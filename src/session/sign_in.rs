//! SessionOpen: from a token to a signed-in device (protocol.md §5).

use std::time::{Duration, Instant};

use crate::auth::Claims;
use crate::hub::{Hub, Membership};
use crate::limits::{TOKEN_LEEWAY, TOKEN_LIFETIME_MAX};
use crate::observe::OpenResult;
use crate::store::{Bearer, DeviceState, StoreError};
use crate::wire::proto::{SessionAccept, SessionOpen};
use crate::wire::{CloseCode, DeviceId, Eid, ErrorCode, Lane, Payload, Sequence};

use super::chat::Chat;
use super::control::Pings;
use super::fault::Fault;
use super::flood::Meter;
use super::tail::Tail;
use super::{Call, Now, Open, Origin, Phase, Session};

/// A sign-in that waits for the store.
pub(super) struct Opening {
    origin: Origin,
    user: Eid,
    device: DeviceId,
    claims: Claims,
    resume_from: Option<Sequence>,
    pipelined: bool,
    client: String,
    /// Joined before the store is asked, so that no entry is missed between its answer and the first wake-up.
    membership: Membership,
}

impl Session {
    pub(super) fn session_open(&mut self, origin: Origin, open: SessionOpen, now: Now) {
        if !self.meter_sign_in(origin) {
            return self.put_off_sign_in();
        }
        match self.authenticate(&open, now) {
            Err((result, fault)) => {
                self.services.metrics.opens[(self.transport, result)].increment(1);
                self.refuse(origin, fault);
                self.close(CloseCode::Unauthenticated, "refused");
            }
            Ok((user, device, claims)) => match &mut self.phase {
                Phase::Open(_) => self.renew(origin, &user, &device, &claims, now),
                _ => {
                    // Checked before joining, or a stolen token that was revoked long ago could still replace the device's
                    // session.
                    if self.services.hub.refuses(&claims, &device) {
                        return self.refuse_revoked(origin);
                    }
                    // Behind that, so that nobody keeps a user out with a token that was revoked.
                    if !self.meter_user_sign_in(origin, &user) {
                        return self.put_off_sign_in();
                    }
                    let join = if self.early { Hub::join_early } else { Hub::join };
                    let membership = join(&self.services.hub, &device, claims.clone(), self.signal.clone());
                    // Checked again after joining, or a revocation in between would neither refuse the token nor find the
                    // session.
                    if self.services.hub.refuses(&claims, &device) {
                        return self.refuse_revoked(origin);
                    }
                    let bearer = Bearer { fingerprint: claims.fingerprint, issued_at: claims.issued_at.unwrap_or(0) };
                    self.call(Call::OpenDevice(user.clone(), device.clone(), bearer));
                    self.phase = Phase::Opening(Box::new(Opening {
                        origin,
                        user,
                        device,
                        claims,
                        resume_from: open.resume_from.map(Sequence::from_wire),
                        pipelined: open.pipelined,
                        client: open.client.chars().filter(|c| !c.is_control()).take(64).collect(),
                        membership,
                    }));
                }
            },
        }
    }

    /// A SessionOpen came too soon, and may come again.
    pub(super) fn put_off_sign_in(&mut self) {
        if let Phase::Waiting { put_off, .. } = &mut self.phase {
            *put_off = true;
        }
    }

    /// The handshake is complete. What an early sign-in has put off, so that no replay of it does this, is done now: the device's
    /// older sessions end.
    pub(super) fn shaken(&mut self) {
        self.early = false;
        match &self.phase {
            Phase::Opening(opening) => opening.membership.confirm(),
            Phase::Open(open) => open.membership.confirm(),
            Phase::Waiting { .. } | Phase::Closed => {}
        }
    }

    fn authenticate(&self, open: &SessionOpen, now: Now) -> Result<(Eid, DeviceId, Claims), (OpenResult, Fault)> {
        let bad = |error| (OpenResult::BadRequest, Fault::from(error));
        let user = Eid::from_identity(open.identity.as_ref()).map_err(bad)?;
        let resource = open.identity.as_ref().map_or("", |identity| identity.connection_resource_id.as_str());
        let device = DeviceId::parse(resource).map_err(bad)?;
        let refused = |message: &'static str| Fault::new(ErrorCode::Unauthenticated, message);
        let claims = self
            .services
            .verifier
            .verify(&open.token, now.unix_ms.div_euclid(1000))
            .map_err(|error| (OpenResult::BadToken, refused("the token is refused").details(error.to_string())))?;
        let lasts = claims.expires_at.saturating_sub(now.unix_ms.div_euclid(1000));
        if u64::try_from(lasts).is_ok_and(|lasts| lasts > TOKEN_LIFETIME_MAX.as_secs()) {
            return Err((OpenResult::BadToken, refused("the token lasts longer than ten years")));
        }
        if claims.eid != user {
            return Err((OpenResult::BadToken, refused("the token is for another user")));
        }
        if claims.device.as_ref().is_some_and(|bound| *bound != device) {
            return Err((OpenResult::WrongDevice, refused("the token is for another device")));
        }
        Ok((user, device, claims))
    }

    /// A SessionOpen on an open session renews the token of the same device, and changes nothing else.
    fn renew(&mut self, origin: Origin, user: &Eid, device: &DeviceId, claims: &Claims, now: Now) {
        let Phase::Open(open) = &mut self.phase else { return };
        if open.user != *user || open.device != *device {
            self.services.metrics.opens[(self.transport, OpenResult::WrongDevice)].increment(1);
            self.refuse(origin, Fault::new(ErrorCode::Unauthenticated, "the session is another device's"));
            return self.close(CloseCode::Unauthenticated, "refused");
        }
        // The hub gets the new token before the check, or a revocation in between would neither refuse it nor find the session.
        open.membership.renew(claims.clone());
        if self.services.hub.refuses(claims, device) {
            return self.refuse_revoked(origin);
        }
        open.claims = claims.clone();
        open.expires = expiry(claims, now);
        let accept = SessionAccept {
            session_id: open.session_id.clone(),
            log_head: open.membership.head().wire(),
            resume_from: open.tail.position().wire(),
            ..self.accept_for(user, device, claims, now)
        };
        self.services.metrics.opens[(self.transport, OpenResult::Renewed)].increment(1);
        self.send(Lane::Control, origin.request_id, Payload::SessionAccept(accept));
    }

    fn refuse_revoked(&mut self, origin: Origin) {
        self.services.metrics.opens[(self.transport, OpenResult::Revoked)].increment(1);
        self.refuse(origin, Fault::new(ErrorCode::Unauthenticated, "the token was revoked"));
        self.close(CloseCode::Unauthenticated, "refused");
    }

    /// The store has answered: the session is opened or refused.
    pub(super) fn opened(&mut self, state: Result<DeviceState, StoreError>, now: Now) {
        if !matches!(self.phase, Phase::Opening(_)) {
            return; // Closed meanwhile.
        }
        let Phase::Opening(opening) = std::mem::replace(&mut self.phase, Phase::Closed) else { return };
        if self.closing {
            return; // Told to close in the same turn, as by a revocation in the same commit: nobody is shown as there by it.
        }
        let state = match state {
            Ok(state) => state,
            Err(StoreError::Revoked) => return self.refuse_revoked(opening.origin),
            Err(error) => {
                let full = error == StoreError::TooManyDevices;
                let result = if full { OpenResult::TooManyDevices } else { OpenResult::Unavailable };
                self.services.metrics.opens[(self.transport, result)].increment(1);
                self.refuse(opening.origin, Fault::from(&error));
                let code = if full { CloseCode::Unauthenticated } else { CloseCode::Internal };
                return self.close(code, "refused");
            }
        };
        let Opening { origin, user, device, claims, resume_from, pipelined, client, membership } = *opening;
        membership.appear();
        membership.starts_at(state.log.head);
        let from = resume_from.unwrap_or(state.cursor).clamp(state.log.trimmed, state.log.head);
        let mut id = [0; 12];
        (self.services.random)(&mut id);
        let session_id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let accept = SessionAccept {
            session_id: session_id.clone(),
            log_head: state.log.head.wire(),
            resume_from: from.wire(),
            ..self.accept_for(&user, &device, &claims, now)
        };
        let span = tracing::Span::current();
        span.record("session", &session_id).record("user", user.as_str()).record("device", device.as_str());
        tracing::info!(client, resume_from = %from, log_head = %state.log.head, pipelined, "session open");
        self.services.metrics.opens[(self.transport, OpenResult::Accepted)].increment(1);
        self.services.metrics.sessions[self.transport].increment(1);
        self.phase = Phase::Open(Box::new(Open {
            meter: Meter::new(&self.services.flood),
            put_off: None,
            user,
            device,
            session_id,
            since: now.at,
            expires: expiry(&claims, now),
            membership,
            chat: Chat::new(pipelined),
            tail: Tail::new(from, state.log.head),
            pings: Pings::new(now),
            watching: None,
            claims,
            listing: None,
            paging: 0,
            revoking: 0,
            revoked: false,
        }));
        self.send(Lane::Control, origin.request_id, Payload::SessionAccept(accept));
        self.watch_if_open();
    }

    fn accept_for(&self, user: &Eid, device: &DeviceId, claims: &Claims, now: Now) -> SessionAccept {
        let settings = &self.services.settings;
        let millis = |duration: Duration| i32::try_from(duration.as_millis()).unwrap_or(i32::MAX);
        SessionAccept {
            identity: Some(user.device_identity(device)),
            server_time: now.unix_ms,
            ping_interval_ms: millis(settings.ping_interval),
            max_frame_bytes: i32::try_from(settings.frame_bytes_max).unwrap_or(i32::MAX),
            token_expires_at: claims.expires_at.saturating_mul(1000),
            server: settings.server_name.clone(),
            idle_timeout_ms: millis(settings.idle_timeout),
            ..SessionAccept::default()
        }
    }
}

/// When an open session's token expires: at `exp`. A token that was accepted within the leeway after `exp` lasts to the
/// leeway's end.
fn expiry(claims: &Claims, now: Now) -> Instant {
    let left = claims.expires_at.saturating_mul(1000).saturating_sub(now.unix_ms);
    let left = if left > 0 { left } else { left + i64::try_from(TOKEN_LEEWAY.as_millis()).unwrap_or(0) };
    // At most a year, which surely fits an Instant.
    let left = u64::try_from(left).unwrap_or(0).min(365 * 24 * 3600 * 1000);
    now.at + Duration::from_millis(left)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::hub::Notice;
    use crate::session::testing::House;
    use crate::session::{LinkEvent, Output};
    use crate::store::testing::{device, eid, text};
    use crate::wire::AwarenessStatus;

    #[tokio::test]
    async fn a_renewal_tells_the_newest_of_the_log_also_while_chat_is_not_open() {
        let house = House::new(|_, _| ());
        let (alice, phone) = (eid("alice"), device("phone"));
        let mut visitor = house.visitor();
        visitor.session.event(LinkEvent::Opened(Lane::Control), Now::system());
        for head in [0, 3, 6] {
            visitor.hear(Lane::Control, house.open(&alice, &phone));
            let (sent, _) = visitor.settle().await;
            let [(Lane::Control, Payload::SessionAccept(accept))] = &sent[..] else { panic!("{sent:?}") };
            assert_eq!((accept.log_head, accept.resume_from), (head, 0));
            for number in 1..=3 {
                let message = text("bob", "alice", head as u64 + number);
                house.store.accept(message, true).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_device_that_is_revoked_while_it_signs_in_never_seems_to_be_there() {
        let house = House::new(|_, _| ());
        let (alice, phone) = (eid("alice"), device("phone"));
        let mut visitor = house.visitor();
        visitor.hear(Lane::Control, house.open(&alice, &phone));
        let Some(Output::Call(call)) = visitor.outputs().pop() else { panic!("no call") };
        // The store's answer and the revocation arrive together.
        visitor.session.notice(Notice::Close(CloseCode::Revoked), Now::system());
        visitor.answer(call).await;
        let outputs = visitor.outputs();
        assert!(matches!(outputs[..], [Output::Close(CloseCode::Revoked, _)]), "{outputs:?}");
        assert!(visitor.session.end().is_empty() && visitor.session.signed_in_since().is_none());
        let desk = house.services.hub.presence().watch(&alice, &device("desk"), Arc::default());
        assert_eq!(desk.ask(&alice, Now::system()).unwrap().status, AwarenessStatus::Offline);
    }

    #[tokio::test]
    async fn an_early_sign_in_is_served_at_once_and_replaces_the_older_session_when_the_handshake_is_complete() {
        // The handshake is complete before or after the store has answered, or not at all.
        for completes in [Some(true), Some(false), None] {
            let house = House::new(|_, _| ());
            let (alice, phone) = (eid("alice"), device("phone"));
            let live = house.bare(&alice, &phone).await;
            let mut early = house.visitor();
            early.session.event(LinkEvent::Early, Now::system());
            early.session.event(LinkEvent::Opened(Lane::Control), Now::system());
            early.hear(Lane::Control, house.open(&alice, &phone));
            if completes == Some(true) {
                early.session.event(LinkEvent::Shaken, Now::system());
            }
            let (sent, closed) = early.settle().await;
            assert!(matches!(&sent[..], [(Lane::Control, Payload::SessionAccept(_))]) && closed.is_none(), "{sent:?}");
            if completes == Some(false) {
                assert_eq!(live.session.signal().take_notice(), None);
                early.session.event(LinkEvent::Shaken, Now::system());
            }
            let told = completes.map(|_| Notice::Close(CloseCode::Replaced));
            assert_eq!(live.session.signal().take_notice(), told);
        }
    }

    #[tokio::test]
    async fn a_token_lasts_ten_years_at_most() {
        let house = House::new(|_, _| ());
        let (alice, phone) = (eid("alice"), device("phone"));
        for (ttl, taken) in [(TOKEN_LIFETIME_MAX, true), (TOKEN_LIFETIME_MAX + Duration::from_secs(3600), false)] {
            let mut visitor = house.visitor();
            let token = house.token(&alice, Now::system().unix_ms / 1000, ttl);
            visitor.hear(Lane::Control, house.open_with(&alice, &phone, token));
            match &visitor.settle().await {
                (sent, None) if taken => assert!(matches!(sent[..], [(_, Payload::SessionAccept(_))]), "{sent:?}"),
                (sent, Some(CloseCode::Unauthenticated)) if !taken => {
                    let [(_, Payload::ErrorMessage(error))] = &sent[..] else { panic!("{sent:?}") };
                    assert_eq!((error.code, error.message.contains("ten years")), (401, true), "{error:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
