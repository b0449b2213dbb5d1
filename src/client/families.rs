//! The protocol's other request families, one method each: media, history, bulk receipts, presence, subscribers,
//! blocks, revocation and sign-out.

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

/// A page of a chat's history (protocol.md §10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The chat.
    pub chat_id: ChatId,
    /// The messages, oldest first, each with its current acknowledgment. Their `sequence` is zero, as they do not come
    /// from the log.
    pub messages: Vec<Message>,
    /// Whether nothing more lies in the direction that was asked for.
    pub complete: bool,
}

/// What this user may know about a user's presence (BIMip-Foundation 5.2; protocol.md §12).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Presence {
    /// The status. `Unknown`: this user may not see it, or there is no such user; the server does not say which.
    pub status: AwarenessStatus,
    /// When the user was last there, in Unix milliseconds; 0 if not disclosed.
    pub last_seen: i64,
    /// Latitude and longitude in degrees; `None` if not shared.
    pub location: Option<(f64, f64)>,
}

/// The result of a ping to another device (protocol.md §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// `Ok`, `Fail` (not allowed), `Timeout` (no answer within 5 s) or `Unreachable` (not connected).
    pub status: PingStatus,
    /// Round-trip time between the server and that device, as the server measured it; `None` unless the status is `Ok`.
    pub rtt: Option<Duration>,
    /// Time from sending the request to its answer, as this device measured it.
    pub elapsed: Duration,
}

/// The details with which a subscriber is admitted (5.5; protocol.md §11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// A name for the subscriber: at most 256 bytes; may be empty.
    pub nickname: String,
    /// A group of subscribers: at most 256 bytes; may be empty.
    pub group: String,
    /// Whether the subscriber also sees this user's location.
    pub share_location: bool,
}

/// An entry of the user's own list: somebody who may see this user's presence, or who is blocked (5.5, 5.6; protocol.md
/// §11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// The subscriber or blocked user.
    pub eid: Eid,
    /// The name from [`Admission`]; may be empty.
    pub nickname: String,
    /// The group from [`Admission`]; may be empty.
    pub group: String,
    /// The id of the entry, assigned when it was added.
    pub resource_id: String,
    /// Whether they see this user's location; `false` for those who are only blocked.
    pub share_location: bool,
    /// Whether they are blocked from writing to this user and from seeing the user's presence.
    pub blocked: bool,
    /// When the entry was added, in Unix milliseconds; 0 for those who are only blocked.
    pub added_at: i64,
}

/// Which tokens to revoke (5.4; protocol.md §13).
#[derive(Clone)]
pub enum Revoke {
    /// This token, and every other one with the same `jti`.
    Token(String),
    /// Every token issued until now, on this device. The server also forgets the device: its log position and its place
    /// among the user's 16 devices. A token that is not bound to a device can still sign in under another device id.
    Device(DeviceId),
    /// Every token of the user issued until now.
    All,
}

impl Default for Admission {
    /// No name and no group; locations are shared, which is the protocol's default (protocol.md §11).
    fn default() -> Admission {
        Admission { nickname: String::new(), group: String::new(), share_location: true }
    }
}

impl Device {
    // --- Chat -------------------------------------------------------------------------------------------------------

    /// Sends the metadata of a media message, and waits until the server has stored and numbered it (5.9.1). The file
    /// itself is not sent. Like [`Device::send_text`], it has no timeout, and dropping the future does not take the
    /// message back.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send_media(&self, to: &Eid, media: Media) -> Result<Sent, SendError> {
        self.send(self.draft(to, Content::Media(media))).await
    }

    /// Fetches a page of the chat with `peer` (protocol.md §10). `before` and `after` are exclusive bounds:
    ///
    /// - neither, or `before` alone: the newest messages (below `before`);
    /// - `after` alone: the oldest messages above it;
    /// - both: the newest messages between them.
    ///
    /// `limit` is 1 to 200 messages; 0 means the server's default of 50. A page is shorter if more would not fit into a
    /// frame.
    ///
    /// # Errors
    /// See [`RequestError`]: [`RequestError::Refused`] with code 400 for a limit over 200,
    /// [`RequestError::NotConnected`] without a connection.
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
        // Skipping a message that cannot be parsed would leave a hole that looks like the chat's own.
        let messages = page.messages.into_iter().map(|message| Message::parse(message, Sequence::ZERO, received));
        Ok(Page {
            chat_id: ChatId::parse(&page.chat_id).map_err(|_| RequestError::Unexpected)?,
            messages: messages.collect::<Option<_>>().ok_or(RequestError::Unexpected)?,
            complete: page.complete,
        })
    }

    /// Acknowledges every message of `sender` in a chat, up to and including a version, as delivered or read (5.9.3;
    /// protocol.md §7). Returns the status that all of them now have; the server may stop early if there are very many.
    /// Without a connection it waits for one, in memory only; dropping the future is as with [`Device::acknowledge`]. So is
    /// the position in the log: the server moves it to the newest of these messages, also beyond entries of other chats that
    /// the application has not taken.
    ///
    /// # Errors
    /// See [`RequestError`]. [`RequestError::Refused`] has code 404 if there is no such chat with this user. If the next
    /// session's log turns out to be another one ([`super::Session::gap`]), where the version may be another message's,
    /// it is not sent: [`RequestError::NotConnected`].
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

    /// Sets this user's presence (5.2; protocol.md §12). `Online`, `Idle` and `Offline` belong to this device; `Away`,
    /// `Busy`, `DoNotDisturb` and `Invisible` hold on all of the user's devices until one of them says `Online`. With
    /// `broadcast` false the user is hidden, as with `Invisible`. `location` is latitude and longitude in degrees.
    ///
    /// Returns once the state is queued; the server does not answer it. If there is no connection now, or it is lost
    /// before the server is known to have the state, the device sends it on the next one.
    ///
    /// After that, another device of the user may have set something newer. So on later connections this device says
    /// again only `Invisible`, until it hears that another device has ended that, `broadcast` false, and its own `Idle`
    /// and `Offline`. The server remembers the rest unless it is restarted, and a location for at most 10 minutes and only
    /// while a device of the user is there, or away for less than the grace: set it again on [`super::Event::Connected`].
    ///
    /// # Errors
    /// [`RequestError::Invalid`] for the status `Unknown` or coordinates out of range, and [`RequestError::Closed`] if
    /// the device is closed.
    pub async fn set_presence(
        &self,
        status: AwarenessStatus,
        broadcast: bool,
        location: Option<(f64, f64)>,
    ) -> Result<(), RequestError> {
        self.tell(self.notification(None, status, broadcast, location)?).await
    }

    /// Tells one user this user's presence, now and only once; the server does not store it (protocol.md §12).
    ///
    /// # Errors
    /// As for [`Device::set_presence`]; also [`RequestError::NotConnected`] without a connection, and
    /// [`RequestError::Busy`] if too many of these are queued.
    pub async fn tell_presence(
        &self,
        to: &Eid,
        status: AwarenessStatus,
        location: Option<(f64, f64)>,
    ) -> Result<(), RequestError> {
        self.tell(self.notification(Some(to.identity()), status, true, location)?).await
    }

    /// Asks what this user may know about somebody's presence (5.2). Changes arrive as [`super::Event::Presence`].
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

    /// Pings another device through the server (5.3; protocol.md §6): one of this user's, or one of a user who has
    /// added this user as a subscriber. With `None`, any connected device of that user may answer. If the device does
    /// not answer, that is not an error: see [`Reach::status`].
    ///
    /// # Errors
    /// See [`RequestError`]; [`RequestError::Refused`] with code 429 while 16 such pings are pending.
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

    /// Allows somebody to see this user's presence, or changes the details (5.5). Returns whether they were in the list
    /// already.
    ///
    /// # Errors
    /// [`RequestError::Failed`] if the list is full (5,000 subscribers), [`RequestError::Refused`] with code 404 for a
    /// domain that is not served and 413 for a name or group over 256 bytes. See [`RequestError`] for the others.
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

    /// Removes somebody from the list of subscribers (protocol.md §11). A block stays.
    ///
    /// # Errors
    /// [`RequestError::Failed`] if they are not in the list. See [`RequestError`] for the others.
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

    /// Lists all subscribers and blocked users, ordered by eid (protocol.md §11).
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

    /// Blocks somebody at once and until unblocked: they can neither write to this user nor see the user's presence,
    /// and this user does not see theirs (5.6; protocol.md §11).
    ///
    /// # Errors
    /// [`RequestError::Failed`] if the list is full (5,000 blocks). See [`RequestError`] for the others.
    pub async fn block(&self, eid: &Eid) -> Result<(), RequestError> {
        self.set_blocked(eid, true).await
    }

    /// Removes a block. Succeeds if there was none.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn unblock(&self, eid: &Eid) -> Result<(), RequestError> {
        self.set_blocked(eid, false).await
    }

    // --- Tokens and leaving -----------------------------------------------------------------------------------------

    /// Revokes tokens of this user (5.4; protocol.md §13). The server closes the sessions that use them with REVOKED;
    /// if this device's own session is one of them, it closes after the answer. The device then reconnects if its token
    /// source returns a token issued since.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] for an empty token, [`RequestError::Failed`] if the token is not a good one of this
    /// user, and [`RequestError::Refused`] with code 403 if 128 devices of the user are already revoked. See
    /// [`RequestError`] for the others.
    pub async fn revoke(&self, what: Revoke) -> Result<(), RequestError> {
        self.revoke_of(self.eid(), what).await
    }

    /// Like [`Device::revoke`], for any user. The session's token needs the scope `admin`.
    ///
    /// # Errors
    /// As for [`Device::revoke`]; [`RequestError::Refused`] with code 403 without the scope.
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

    /// Signs this device out (5.7; protocol.md §13): the server revokes its token and forgets the device and its
    /// position in the log. The device is then closed.
    ///
    /// Dropping the future does not take the request back once it was sent. If the server carries it out, the device is not
    /// closed but stopped ([`super::State::Closed`] with GOODBYE), and [`Device::reconnect`] would sign it in again: call
    /// [`Device::close`].
    ///
    /// # Errors
    /// See [`RequestError`]; [`RequestError::Failed`] if the server's store failed. After an error the device
    /// continues.
    pub async fn sign_out(&self) -> Result<(), RequestError> {
        self.log_out(0).await
    }

    /// Disconnects for now (5.7): others see it at once, and the server forgets nothing. The device is then closed.
    /// After [`Device::close`], others see this device as connected for 15 s more, as after a lost connection. Dropping the
    /// future is as with [`Device::sign_out`].
    ///
    /// # Errors
    /// See [`RequestError`]; [`RequestError::Failed`] if the server's store failed. After an error the device
    /// continues.
    pub async fn leave(&self) -> Result<(), RequestError> {
        self.log_out(LogoutStatus::Disconnect.code()).await
    }

    async fn log_out(&self, status: i32) -> Result<(), RequestError> {
        let request =
            Logout { entity: Some(self.identity()), r#type: Exchange::Request.code(), status, timestamp: unix_ms() };
        match self.request(Payload::Logout(request)).await? {
            Payload::Logout(response) if response.status == LogoutStatus::Success.code() => {
                // Another connection would sign the device in again.
                self.end(false).await;
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
        // NaN fails both comparisons.
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
    /// Parses the wire form; `None` if it names no valid user.
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
    /// Never prints the token, which may still be valid.
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
