//! Token revocation and logout (BIMip-Foundation 4.3, 4.6, 5.4 and 5.7; protocol.md §13).

use crate::auth::TokenError;
use crate::limits::TOKEN_LIFETIME_MAX;
use crate::store::{Revocation, RevocationTarget, StoreError};
use crate::wire::proto::{Logout, TokenRevokeRequest, TokenRevokeResponse};
use crate::wire::{CloseCode, DeviceId, Eid, ErrorCode, Exchange, Lane, LogoutStatus, Payload, RevokeStatus};

use super::contacts::check_request;
use super::fault::{Fault, require_own};
use super::{Call, Now, Origin, Phase, Session};

impl Session {
    /// 5.4 TokenRevokeRequest: revokes one token, one device's tokens, or all of the user's. Another user's tokens need the
    /// scope `admin`.
    pub(super) fn token_revoke(&mut self, origin: Origin, request: TokenRevokeRequest, now: Now) -> Result<(), Fault> {
        check_request(request.r#type)?;
        // Checking a token's signature costs as much as a sign-in does, and any other revocation a row that is kept for ten
        // years.
        if !self.meter_sign_in(origin) {
            return Ok(());
        }
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        let user = Eid::from_identity(request.to.as_ref())?;
        if user != open.user && !open.claims.admin {
            return Err(Fault::new(ErrorCode::Forbidden, "only an admin revokes somebody else's tokens"));
        }
        let response = TokenRevokeResponse {
            to: request.to.clone(),
            status: RevokeStatus::Success.code(),
            r#type: Exchange::Response.code(),
            timestamp: now.unix_ms,
            rtt: now.unix_ms.saturating_sub(request.timestamp).max(0),
        };
        let resource = request.to.as_ref().map_or("", |to| to.connection_resource_id.as_str());
        // Checked even if a token is named, because the answer echoes it.
        let device = Some(resource).filter(|resource| !resource.is_empty()).map(DeviceId::parse).transpose()?;
        let seconds = now.unix_ms.div_euclid(1000);
        let lasts = now.unix_ms.saturating_add(i64::try_from(TOKEN_LIFETIME_MAX.as_millis()).unwrap_or(i64::MAX));
        let revocation = if !request.token.is_empty() {
            // Only a token that was really issued to the user: a forged one could carry the id of somebody else's token.
            match self.services.verifier.verify(&request.token, seconds) {
                Ok(claims) if claims.eid == user => Revocation {
                    target: RevocationTarget::Token(user, claims.fingerprint),
                    issued_until: 0,
                    expires_at: expiry_ms(claims.expires_at),
                },
                // An expired token is refused anyway, so there is nothing to revoke: success.
                Err(TokenError::Expired) => {
                    self.send(Lane::Control, origin.request_id, Payload::TokenRevokeResponse(response));
                    return Ok(());
                }
                _ => {
                    let failed = TokenRevokeResponse { status: RevokeStatus::Failed.code(), ..response };
                    self.send(Lane::Control, origin.request_id, Payload::TokenRevokeResponse(failed));
                    return Ok(());
                }
            }
        } else {
            let target = match device {
                None => RevocationTarget::User(user),
                Some(device) => RevocationTarget::Device(user, device),
            };
            Revocation { target, issued_until: seconds, expires_at: lasts }
        };
        open.revoking += 1;
        self.call(Call::Revoke(origin, Box::new(revocation), Box::new(response)));
        Ok(())
    }

    /// A revocation has finished. The sessions that it affects were notified before; if this session is one of them, it closes
    /// after its answer.
    pub(super) fn revoked(
        &mut self,
        origin: Origin,
        target: &RevocationTarget,
        response: TokenRevokeResponse,
        revoked: Result<(), StoreError>,
    ) {
        if revoked.is_ok() {
            // The session's span says by whom.
            let (kind, device) = match target {
                RevocationTarget::Token(..) => ("token", None),
                RevocationTarget::Device(_, device) => ("device", Some(device.as_str())),
                RevocationTarget::User(_) => ("user", None),
            };
            tracing::info!(of = %target.user(), kind, device, "tokens are revoked");
        }
        let Phase::Open(open) = &mut self.phase else { return };
        open.revoking -= 1;
        let close = open.revoked && open.revoking == 0;
        match revoked {
            Ok(()) => self.send(Lane::Control, origin.request_id, Payload::TokenRevokeResponse(response)),
            Err(error) => self.refuse(origin, Fault::from(&error)),
        }
        if close {
            self.close(CloseCode::Revoked, "revoked");
        }
    }

    /// The hub closes the session because its token was revoked: at once, unless the session still has to answer a revocation
    /// or sign-out.
    pub(super) fn close_revoked(&mut self) {
        match &mut self.phase {
            Phase::Open(open) if open.revoking > 0 => open.revoked = true,
            _ => self.close(CloseCode::Revoked, "revoked"),
        }
    }

    /// 5.7 Logout: status 1 disconnects for now; 0, 3 and 4 sign the device out.
    pub(super) fn logout(&mut self, origin: Origin, logout: &Logout, now: Now) -> Result<(), Fault> {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        require_own(logout.entity.as_ref(), &open.user, open.device.as_str())?;
        check_request(logout.r#type)?;
        let response = Logout {
            entity: Some(open.user.device_identity(&open.device)),
            r#type: Exchange::Response.code(),
            status: LogoutStatus::Success.code(),
            timestamp: now.unix_ms,
        };
        match logout.status {
            1 => {
                open.membership.disappear(false);
                self.send(Lane::Control, origin.request_id, Payload::Logout(response));
                self.close(CloseCode::Goodbye, "left");
            }
            0 | 3 | 4 => {
                let revocation = Revocation {
                    target: RevocationTarget::Token(open.user.clone(), open.claims.fingerprint),
                    issued_until: 0,
                    expires_at: expiry_ms(open.claims.expires_at),
                };
                let (user, device) = (open.user.clone(), open.device.clone());
                // The revocation of its own token must not close the session before the answer.
                open.revoking += 1;
                self.call(Call::SignOut(origin, user, device, Box::new(revocation), response));
            }
            _ => return Err(Fault::malformed("status is 1 to leave for now, or 0, 3 or 4 to sign out")),
        }
        Ok(())
    }

    pub(super) fn signed_out(
        &mut self,
        origin: Origin,
        (user, device): (&Eid, &DeviceId),
        response: Logout,
        done: Result<(), StoreError>,
    ) {
        let Phase::Open(open) = &mut self.phase else {
            // The connection was lost before the answer. The device's DO_NOT_BROADCAST ends all the same.
            if done.is_ok() {
                self.services.hub.forgotten(user, device);
            }
            return;
        };
        open.revoking -= 1;
        if done.is_err() {
            // Half of it may have happened: a session whose token is revoked closes all the same.
            let close = open.revoked && open.revoking == 0;
            let failed = Logout { status: LogoutStatus::Fail.code(), ..response };
            self.send(Lane::Control, origin.request_id, Payload::Logout(failed));
            if close {
                self.close(CloseCode::Revoked, "revoked");
            }
            return;
        }
        open.membership.disappear(true);
        self.send(Lane::Control, origin.request_id, Payload::Logout(response));
        self.close(CloseCode::Goodbye, "signed out");
    }
}

/// When a token's revocation may be forgotten, in Unix milliseconds. A token is accepted for a leeway after `exp`, so its
/// revocation is kept longer than that.
fn expiry_ms(expires_at: i64) -> i64 {
    let leeway = i64::try_from(crate::limits::TOKEN_LEEWAY.as_millis()).unwrap_or(0);
    expires_at.saturating_mul(1000).saturating_add(2 * leeway)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::config::Rate;
    use crate::hub::Notice;
    use crate::limits::TOKENS_RATE;
    use crate::session::testing::{House, payload};
    use crate::session::{Call, Done, LaneSet, Now, Output};
    use crate::store::StoreError;
    use crate::store::testing::{device, eid};
    use crate::wire::proto::{AwarenessNotification, Logout, PingPong, TokenRevokeRequest};
    use crate::wire::{CloseCode, ErrorCode, Lane, Payload};

    #[tokio::test]
    async fn a_device_that_signs_out_hides_its_user_no_longer_also_if_its_connection_is_lost_meanwhile() {
        let house = House::new(|_, _| ());
        let (alice, now) = (eid("alice"), Now::system());
        let mut phone = house.bare(&alice, &device("phone")).await;
        let me = Some(alice.device_identity(&device("phone")));
        let hide = AwarenessNotification { from: me.clone(), status: 1, awareness_intention: 1, ..Default::default() };
        phone.hear(Lane::Presence, Payload::AwarenessNotification(hide));
        phone.settle().await;
        let desk = house.services.hub.presence().watch(&alice, &device("desk"), Arc::default());
        assert!(desk.ask(&alice, now).unwrap().silent);
        phone.hear(Lane::Control, Payload::Logout(Logout { entity: me, r#type: 1, status: 3, timestamp: 0 }));
        let Some(Output::Call(call)) = phone.outputs().pop() else { panic!() };
        assert!(phone.session.end().is_empty());
        phone.answer(call).await;
        assert!(!desk.ask(&alice, now).unwrap().silent);
    }

    #[tokio::test]
    async fn a_device_that_the_store_does_not_sign_out_is_told_so_and_stays() {
        let house = House::new(|_, _| ());
        let (alice, phone) = (eid("alice"), device("phone"));
        let mut bare = house.bare(&alice, &phone).await;
        let entity = Some(alice.device_identity(&phone));
        bare.hear(Lane::Control, Payload::Logout(Logout { entity, r#type: 1, status: 3, timestamp: 0 }));
        let Some(Output::Call(Call::SignOut(origin, user, device, _, answer))) = bare.outputs().pop() else { panic!() };
        let failed = Done::SignOut(origin, user, device, answer, Err(StoreError::Engine("x".into())));
        bare.session.done(failed, Now::system());
        let outputs = bare.outputs();
        let [Output::Send(Lane::Control, answer)] = &outputs[..] else { panic!("{outputs:?}") };
        assert!(matches!(payload(answer), Payload::Logout(answer) if (answer.r#type, answer.status) == (2, 2)));
    }

    #[tokio::test]
    async fn revocations_have_the_rate_of_renewals() {
        let house = House::new(|_, _| ());
        let alice = eid("alice");
        let mut phone = house.bare(&alice, &device("phone")).await;
        // Far more than the rate allows while the test runs.
        for number in 0..10 * TOKENS_RATE.1 {
            let to = Some(alice.device_identity(&device(&format!("device-{number}"))));
            let revoke = TokenRevokeRequest { to, r#type: 1, ..TokenRevokeRequest::default() };
            phone.hear(Lane::Control, Payload::TokenRevokeRequest(revoke));
        }
        let outputs = phone.outputs();
        let asked = outputs.iter().take_while(|output| matches!(output, Output::Call(Call::Revoke(..)))).count();
        assert!((TOKENS_RATE.1 as usize..outputs.len()).contains(&asked), "{asked} of {}", outputs.len());
        let Output::Send(Lane::Control, refusal) = &outputs[asked] else { panic!("{:?}", outputs[asked]) };
        let Payload::ErrorMessage(refusal) = payload(refusal) else { panic!("no refusal") };
        assert_eq!((refusal.code, refusal.route.as_str()), (ErrorCode::TooFast.code(), "token_revoke_request"));
    }

    #[tokio::test]
    async fn checking_tokens_that_are_to_be_revoked_has_the_rate_of_signing_in() {
        let house = House::new(|_, limits| limits.sign_ins = Rate { per_second: 1, burst: 2 });
        let alice = eid("alice");
        let mut phone = house.bare(&alice, &device("phone")).await;
        let revoke = TokenRevokeRequest {
            to: Some(alice.identity()),
            token: "made up".into(),
            r#type: 1,
            ..TokenRevokeRequest::default()
        };
        let mut told = Vec::new();
        for _ in 0..2 {
            phone.hear(Lane::Control, Payload::TokenRevokeRequest(revoke.clone()));
            told.extend(phone.settle().await.0);
        }
        let [(_, Payload::TokenRevokeResponse(failed)), (_, Payload::ErrorMessage(error))] = &told[..] else {
            panic!("{told:?}")
        };
        assert_eq!((failed.status, error.code), (2, ErrorCode::TooFast.code()));
    }

    #[tokio::test]
    async fn a_revoked_session_is_taken_nothing_more_from_while_it_awaits_its_answer() {
        let house = House::new(|_, _| ());
        let alice = eid("alice");
        let mut phone = house.bare(&alice, &device("phone")).await;
        let revoke = |which: &str| {
            let to = Some(alice.device_identity(&device(which)));
            Payload::TokenRevokeRequest(TokenRevokeRequest { to, r#type: 1, ..TokenRevokeRequest::default() })
        };
        phone.hear(Lane::Control, revoke("phone"));
        let mut outputs = phone.outputs();
        let Some(Output::Call(call)) = outputs.pop() else { panic!("{outputs:?}") };
        phone.session.notice(Notice::Close(CloseCode::Revoked), Now::system());
        assert_eq!(phone.session.wanted(), LaneSet::NONE);
        // Frames that were read before the revocation have no effect either.
        phone.hear(Lane::Control, revoke("another"));
        phone.hear(Lane::Control, Payload::PingpongMessage(PingPong { r#type: 1, ..PingPong::default() }));
        assert!(phone.outputs().is_empty());
        phone.answer(call).await;
        let outputs = phone.outputs();
        let [Output::Send(Lane::Control, answer), Output::Close(CloseCode::Revoked, _)] = &outputs[..] else {
            panic!("{outputs:?}")
        };
        assert!(matches!(payload(answer), Payload::TokenRevokeResponse(answer) if answer.status == 1));
    }

    #[tokio::test]
    async fn nothing_is_taken_from_a_session_that_was_told_to_close() {
        let house = House::new(|_, _| ());
        let alice = eid("alice");
        let mut phone = house.bare(&alice, &device("phone")).await;
        phone.session.notice(Notice::Close(CloseCode::Revoked), Now::system());
        assert_eq!(phone.session.wanted(), LaneSet::NONE);
        let me = Some(alice.device_identity(&device("phone")));
        phone.hear(Lane::Control, Payload::Logout(Logout { entity: me, r#type: 1, ..Logout::default() }));
        phone.session.event(crate::session::LinkEvent::Oversized(Lane::Chat), Now::system());
        let outputs = phone.outputs();
        assert!(matches!(outputs[..], [Output::Close(CloseCode::Revoked, _)]), "{outputs:?}");
    }

    #[tokio::test]
    async fn a_token_that_only_the_leeway_lets_in_is_refused_once_it_is_revoked() {
        let house = House::new(|_, _| ());
        let (alice, minute) = (eid("alice"), Duration::from_secs(60));
        // It ended five seconds ago.
        let token = house.token(&alice, Now::system().unix_ms / 1000 - 65, minute);
        let opens = async |name: &str| {
            let mut visitor = house.visitor();
            visitor.hear(Lane::Control, house.open_with(&alice, &device(name), token.clone()));
            let (sent, _) = visitor.settle().await;
            (visitor, sent)
        };
        let (phone, sent) = opens("phone").await;
        assert!(matches!(sent[..], [(_, Payload::SessionAccept(_))]), "{sent:?}");
        let mut desk = house.bare(&alice, &device("desk")).await;
        let (to, token) = (Some(alice.identity()), token.clone());
        let revoke = TokenRevokeRequest { to, token, r#type: 1, ..TokenRevokeRequest::default() };
        desk.hear(Lane::Control, Payload::TokenRevokeRequest(revoke));
        let (sent, _) = desk.settle().await;
        assert!(matches!(&sent[..], [(_, Payload::TokenRevokeResponse(done))] if done.status == 1), "{sent:?}");
        assert_eq!(phone.session.signal().take_notice(), Some(Notice::Close(CloseCode::Revoked)));
        let (_, sent) = opens("another").await;
        assert!(matches!(&sent[..], [(_, Payload::ErrorMessage(error))] if error.code == 401), "{sent:?}");
    }
}
