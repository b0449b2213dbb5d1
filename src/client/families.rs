//! The families of the protocol beside sending, one call each: history, receipts in bulk, presence, the list of
//! subscribers, blocks, revocation and leaving.

use std::time::Duration;

use super::device::{Device, unix_ms};
use super::error::{RequestError, SendError};
use super::event::{Content, Media, Message};
use super::payloads::acknowledgment_up_to;
use super::requests::Sent;
use crate::wire::proto::{
    AwarenessNotification, AwarenessRequest, BlockSubscriber, HistoryRequest, Logout, PingPong, Subscriber,
    SubscriberAddRequest, SubscriberListRequest, SubscriberRemove, TokenRevokeRequest,
};
use crate::wire::{
    AckStatus, AwarenessIntention, AwarenessStatus, ChatId, DeviceId, Eid, Exchange, Identity, LogoutStatus, Payload,
    PingStatus, RevokeStatus, Sequence, SubscriberStatus, Version,
};

/// A page of a chat (profile 8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The conversation.
    pub chat_id: ChatId,
    /// Newest last, with their current states; their `sequence` is zero, as they do not come from the log.
    pub messages: Vec<Message>,
    /// Nothing lies beyond in the direction asked for.
    pub complete: bool,
}

/// What may be known of a user's presence (5.2, profile 5).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Presence {
    /// `Unknown`: not for this user to know, or nobody there; which of them is not told.
    pub status: AwarenessStatus,
    /// Unix milliseconds; 0 where it is not told.
    pub last_seen: i64,
    /// Latitude and longitude in degrees.
    pub location: Option<(f64, f64)>,
}

/// What came of a ping to another device (profile 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// `Ok`, `Fail` (not allowed), `Timeout` or `Unreachable` (not connected).
    pub status: PingStatus,
    /// From the server to that device and back, as the server measured it.
    pub rtt: Option<Duration>,
    /// From this device to the answer.
    pub elapsed: Duration,
}

/// How a subscriber is admitted (5.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// At most 256 bytes; may be empty.
    pub nickname: String,
    /// At most 256 bytes; may be empty.
    pub group: String,
    /// Whether they also see locations.
    pub share_location: bool,
}

/// An entry of one's own list: somebody admitted to see this user, or blocked (5.5, 5.6, profile 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// Who.
    pub eid: Eid,
    /// May be empty.
    pub nickname: String,
    /// May be empty.
    pub group: String,
    /// The entry's own id, assigned when it was added.
    pub resource_id: String,
    /// Whether they see locations; no for those who are blocked only.
    pub share_location: bool,
    /// Whether they are stopped from writing to and seeing this user.
    pub blocked: bool,
    /// Unix milliseconds.
    pub added_at: i64,
}

/// Which tokens to revoke (5.4, profile 6).
#[derive(Clone)]
pub enum Revoke {
    /// This one.
    Token(String),
    /// Every one that was issued for, or used by, this device until now.
    Device(DeviceId),
    /// Every one of the user that was issued until now.
    All,
}

impl Default for Admission {
    /// Without a name and group; locations are shared, as the profile has it.
    fn default() -> Admission {
        Admission { nickname: String::new(), group: String::new(), share_location: true }
    }
}

impl Device {
    // --- Chat -------------------------------------------------------------------------------------------------------

    /// Sends the metadata of a media message, and waits until the server has it (5.9.1).
    ///
    /// # Errors
    /// See [`SendError`]. Dropping the future does not take the message back.
    pub async fn send_media(&self, to: &Eid, media: Media) -> Result<Sent, SendError> {
        self.send(self.draft(to, Content::Media(media))).await
    }

    /// A page of the chat with `peer` (profile 8): the newest one, the one that ends before `before`, or the one that
    /// begins after `after`. `limit` is 1 to 200; 0 leaves it to the server, as does a page that one frame does not hold.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn history(
        &self,
        peer: &Eid,
        before: Option<Version>,
        after: Option<Version>,
        limit: u32,
    ) -> Result<Page, RequestError> {
        let request = HistoryRequest {
            peer: Some(peer.identity()),
            before_version: before.map_or(0, Version::wire),
            after_version: after.map_or(0, Version::wire),
            limit: i32::try_from(limit).map_err(|_| RequestError::Invalid("limit is at most 200"))?,
        };
        let Payload::HistoryPage(page) = self.request(Payload::HistoryRequest(request)).await? else {
            return Err(RequestError::Unexpected);
        };
        let received = std::time::Instant::now();
        // One that cannot be read would leave a hole that looks like the chat's own.
        let messages = page.messages.into_iter().map(|message| Message::parse(message, Sequence::ZERO, received));
        Ok(Page {
            chat_id: ChatId::parse(&page.chat_id).map_err(|_| RequestError::Unexpected)?,
            messages: messages.collect::<Option<_>>().ok_or(RequestError::Unexpected)?,
            complete: page.complete,
        })
    }

    /// Says that every message of `sender` in a chat, up to a version, was delivered or read (5.9.3, profile 7). Without a
    /// connection it waits for one.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn acknowledge_up_to(
        &self,
        chat: ChatId,
        version: Version,
        sender: &Eid,
        status: AckStatus,
    ) -> Result<AckStatus, RequestError> {
        self.receipt(acknowledgment_up_to(self.identity(), (chat, version), sender, status, unix_ms())).await
    }

    // --- Presence ---------------------------------------------------------------------------------------------------

    /// Sets this user's presence (5.2, profile 5). `Online` and `Idle` are this device's; `Away`, `Busy`, `DoNotDisturb`
    /// and `Invisible` hold on all devices until one says `Online`. Not to `broadcast` hides the user as `Invisible` does.
    ///
    /// Returns once it is on its way; it is not answered. The newest one is said again on every new connection, also when
    /// there is none now; a location only while it is not older than the server would keep it.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] and [`RequestError::Closed`].
    pub async fn set_presence(
        &self,
        status: AwarenessStatus,
        broadcast: bool,
        location: Option<(f64, f64)>,
    ) -> Result<(), RequestError> {
        self.tell(self.notification(None, status, broadcast, location)?).await
    }

    /// Tells one user alone, now; it is stored nowhere and not said again (profile 5).
    ///
    /// # Errors
    /// [`RequestError::NotConnected`] where there is no connection to say it on; see [`RequestError`].
    pub async fn tell_presence(
        &self,
        to: &Eid,
        status: AwarenessStatus,
        location: Option<(f64, f64)>,
    ) -> Result<(), RequestError> {
        self.tell(self.notification(Some(to.identity()), status, true, location)?).await
    }

    /// What this user may know of somebody's presence (5.2). Changes come as [`super::Event::Presence`].
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn presence_of(&self, eid: &Eid) -> Result<Presence, RequestError> {
        let timestamp = unix_ms();
        let request = AwarenessRequest {
            from: Some(self.identity()),
            to: Some(eid.identity()),
            awareness_identifier: timestamp,
            timestamp,
        };
        match self.request(Payload::AwarenessRequest(request)).await? {
            Payload::AwarenessResponse(response) => Ok(Presence {
                status: AwarenessStatus::from_code(response.status).unwrap_or(AwarenessStatus::Unknown),
                last_seen: response.last_seen,
                location: response.latitude.zip(response.longitude),
            }),
            _ => Err(RequestError::Unexpected),
        }
    }

    /// Pings another device through the server (5.3, profile 4): one's own, or of a user who has admitted this one.
    /// Without a device any of that user serves.
    ///
    /// # Errors
    /// See [`RequestError`]; that the device does not answer is none.
    pub async fn ping_device(&self, eid: &Eid, device: Option<&DeviceId>) -> Result<Reach, RequestError> {
        let to = device.map_or_else(|| eid.identity(), |device| eid.device_identity(device));
        let ping = PingPong { to: Some(to), ..super::payloads::ping(unix_ms()) };
        let answer = self.ask(Payload::PingpongMessage(ping), false).await?;
        let Payload::PingpongMessage(pong) = answer.payload else { return Err(RequestError::Unexpected) };
        let status = PingStatus::from_code(pong.status).ok_or(RequestError::Unexpected)?;
        let rtt = u64::try_from(pong.rtt).ok().filter(|_| status == PingStatus::Ok).map(Duration::from_millis);
        Ok(Reach { status, rtt, elapsed: answer.elapsed })
    }

    // --- Subscribers and blocks -------------------------------------------------------------------------------------

    /// Admits somebody to see this user's presence, or changes how (5.5). Whether they were in the list already.
    ///
    /// # Errors
    /// [`RequestError::Failed`] when the list is full; see [`RequestError`].
    pub async fn add_subscriber(&self, eid: &Eid, admission: Admission) -> Result<bool, RequestError> {
        let request = SubscriberAddRequest {
            owner: Some(self.identity()),
            subscriber: Some(eid.identity()),
            nickname: admission.nickname,
            group: admission.group,
            subscriber_resource_id: String::new(),
            timestamp: unix_ms(),
            share_location: Some(admission.share_location),
        };
        match self.request(Payload::SubscriberAddRequest(request)).await? {
            Payload::SubscriberAddResponse(response) => match SubscriberStatus::from_code(response.status) {
                Some(SubscriberStatus::Success) => Ok(false),
                Some(SubscriberStatus::Updated) => Ok(true),
                Some(SubscriberStatus::Failed) => Err(RequestError::Failed(response.message)),
                None => Err(RequestError::Unexpected),
            },
            _ => Err(RequestError::Unexpected),
        }
    }

    /// Withdraws what [`Device::add_subscriber`] gave (profile 1).
    ///
    /// # Errors
    /// [`RequestError::Failed`] when they are not in the list; see [`RequestError`].
    pub async fn remove_subscriber(&self, eid: &Eid) -> Result<(), RequestError> {
        let request = SubscriberRemove {
            owner: Some(self.identity()),
            subscriber: Some(eid.identity()),
            r#type: Exchange::Request.code(),
            timestamp: unix_ms(),
            ..Default::default()
        };
        match self.request(Payload::SubscriberRemove(request)).await? {
            Payload::SubscriberRemove(response) => done(response.status, response.message),
            _ => Err(RequestError::Unexpected),
        }
    }

    /// Everybody who is admitted or blocked (profile 1), in the server's order.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn subscribers(&self) -> Result<Vec<Contact>, RequestError> {
        let request = SubscriberListRequest { owner: Some(self.identity()) };
        match self.request(Payload::SubscriberListRequest(request)).await? {
            Payload::SubscriberList(list) => {
                list.entries.into_iter().map(Contact::parse).collect::<Option<_>>().ok_or(RequestError::Unexpected)
            }
            _ => Err(RequestError::Unexpected),
        }
    }

    /// Stops somebody from writing to this user and from seeing it, at once and until unblocked (5.6, profile 6).
    ///
    /// # Errors
    /// [`RequestError::Failed`] when the list is full; see [`RequestError`].
    pub async fn block(&self, eid: &Eid) -> Result<(), RequestError> {
        self.set_blocked(eid, true).await
    }

    /// Takes a block back; fine where there was none.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn unblock(&self, eid: &Eid) -> Result<(), RequestError> {
        self.set_blocked(eid, false).await
    }

    // --- Tokens and leaving -----------------------------------------------------------------------------------------

    /// Revokes tokens of this user (5.4, profile 6). Sessions that were opened with them are closed, this one after its
    /// answer: the device then comes back if its token source has a token that was issued since.
    ///
    /// # Errors
    /// [`RequestError::Failed`] when the token is not one of this user's; see [`RequestError`].
    pub async fn revoke(&self, what: Revoke) -> Result<(), RequestError> {
        self.revoke_of(self.eid(), what).await
    }

    /// The same for any user: for tokens with the scope `admin`.
    ///
    /// # Errors
    /// See [`Device::revoke`].
    pub async fn revoke_of(&self, eid: &Eid, what: Revoke) -> Result<(), RequestError> {
        let (to, token) = match what {
            Revoke::Token(token) if token.is_empty() => return Err(RequestError::Invalid("the token is empty")),
            Revoke::Token(token) => (eid.identity(), token),
            Revoke::Device(device) => (eid.device_identity(&device), String::new()),
            Revoke::All => (eid.identity(), String::new()),
        };
        let request =
            TokenRevokeRequest { to: Some(to), token, r#type: Exchange::Request.code(), timestamp: unix_ms(), rtt: 0 };
        match self.request(Payload::TokenRevokeRequest(request)).await? {
            Payload::TokenRevokeResponse(response) => done(response.status, String::new()),
            _ => Err(RequestError::Unexpected),
        }
    }

    /// Signs this device out (5.7, profile 6): the server revokes its token and forgets its place in the log. The device
    /// is closed afterwards.
    ///
    /// # Errors
    /// See [`RequestError`]; the device goes on then.
    pub async fn sign_out(&self) -> Result<(), RequestError> {
        self.log_out(0).await
    }

    /// Leaves for now (5.7): others see it at once, and nothing is forgotten. The device is closed afterwards.
    /// [`Device::close`] leaves like a lost connection, which others see only after a while.
    ///
    /// # Errors
    /// See [`RequestError`]; the device goes on then.
    pub async fn leave(&self) -> Result<(), RequestError> {
        self.log_out(LogoutStatus::Disconnect.code()).await
    }

    async fn log_out(&self, status: i32) -> Result<(), RequestError> {
        let request =
            Logout { entity: Some(self.identity()), r#type: Exchange::Request.code(), status, timestamp: unix_ms() };
        match self.request(Payload::Logout(request)).await? {
            Payload::Logout(response) if response.status == LogoutStatus::Success.code() => {
                self.close().await;
                Ok(())
            }
            Payload::Logout(_) => Err(RequestError::Failed(String::new())),
            _ => Err(RequestError::Unexpected),
        }
    }

    async fn set_blocked(&self, eid: &Eid, blocked: bool) -> Result<(), RequestError> {
        let request = BlockSubscriber {
            owner: Some(self.identity()),
            subscriber: Some(eid.identity()),
            r#type: Exchange::Request.code(),
            timestamp: unix_ms(),
            action: if blocked { 1 } else { 2 },
            ..Default::default()
        };
        match self.request(Payload::BlockSubscriber(request)).await? {
            Payload::BlockSubscriber(response) => done(response.status, response.message),
            _ => Err(RequestError::Unexpected),
        }
    }

    fn notification(
        &self,
        to: Option<Identity>,
        status: AwarenessStatus,
        broadcast: bool,
        location: Option<(f64, f64)>,
    ) -> Result<AwarenessNotification, RequestError> {
        if status == AwarenessStatus::Unknown {
            return Err(RequestError::Invalid("nobody's own status is UNKNOWN"));
        }
        // Not a number is within nothing.
        let on_earth = |(latitude, longitude): (f64, f64)| latitude.abs() <= 90.0 && longitude.abs() <= 180.0;
        if location.is_some_and(|location| !on_earth(location)) {
            return Err(RequestError::Invalid("latitude is within 90 and longitude within 180 degrees"));
        }
        let intention = if broadcast { AwarenessIntention::Broadcast } else { AwarenessIntention::DoNotBroadcast };
        Ok(AwarenessNotification {
            from: Some(self.identity()),
            to,
            status: status.code(),
            last_seen: 0,
            latitude: location.map(|(latitude, _)| latitude),
            longitude: location.map(|(_, longitude)| longitude),
            awareness_intention: intention.code(),
        })
    }
}

impl Contact {
    /// From the wire; `None` if it names nobody.
    fn parse(entry: Subscriber) -> Option<Contact> {
        Some(Contact {
            eid: Eid::from_identity(entry.subscriber.as_ref()).ok()?,
            nickname: entry.nickname,
            group: entry.group,
            resource_id: entry.subscriber_resource_id,
            share_location: entry.share_location,
            blocked: entry.blocked,
            added_at: entry.added_at,
        })
    }
}

impl std::fmt::Debug for Revoke {
    /// Never the token: it may still be good.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Revoke::Token(_) => f.write_str("Token"),
            Revoke::Device(device) => write!(f, "Device({device})"),
            Revoke::All => f.write_str("All"),
        }
    }
}

fn done(status: i32, message: String) -> Result<(), RequestError> {
    match RevokeStatus::from_code(status) {
        Some(RevokeStatus::Success) => Ok(()),
        Some(RevokeStatus::Failed) => Err(RequestError::Failed(message)),
        None => Err(RequestError::Unexpected),
    }
}
