//! The protocol's code tables: one enum for each, with conversions from and to the wire's `int32`.

/// Declares an enum for a code table, with its conversions.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal $text:literal),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(i32)]
        pub enum $name { $($(#[$vdoc])* $variant = $code),* }

        impl $name {
            /// All codes, ascending.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The number on the wire.
            pub const fn code(self) -> i32 {
                self as i32
            }

            /// The code for a number on the wire; `None` for an unknown one.
            pub fn from_code(code: i32) -> Option<$name> {
                match code { $($code => Some($name::$variant),)* _ => None }
            }

            /// Name for people, logs and metric labels.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }
    )*};
}

codes! {
    /// Error codes (protocol.md §15).
    ErrorCode {
        /// The request is malformed, or a field is missing or out of bounds.
        Malformed = 400 "malformed",
        /// The session or its token is not valid.
        Unauthenticated = 401 "unauthenticated",
        /// Not allowed, or blocked by the recipient.
        Forbidden = 403 "forbidden",
        /// No such message or chat, or a user in a domain that is not served.
        NotFound = 404 "not_found",
        /// Timed out; not used by this server.
        TimedOut = 408 "timed_out",
        /// The same `message_id_local` was used for another message.
        Conflict = 409 "conflict",
        /// A frame over `max_frame_bytes`, or a text, caption, nickname or group that is too long.
        TooLarge = 413 "too_large",
        /// The payload belongs on another lane.
        WrongLane = 421 "wrong_lane",
        /// Over a rate; `details` has the milliseconds to wait.
        TooFast = 429 "too_fast",
        /// A fault of the server; not used by this server.
        Internal = 500 "internal",
        /// No known payload, or one that only a server sends.
        Unsupported = 501 "unsupported",
        /// The store is overloaded, has failed, or is shutting down.
        Unavailable = 503 "unavailable",
    }

    /// Application close codes (protocol.md §14).
    CloseCode {
        /// The client signed out or left.
        Goodbye = 0 "goodbye",
        /// A lane opened twice, an unknown lane, an oversized frame.
        ProtocolViolation = 1 "protocol_violation",
        /// No valid token, or it expired; no `SessionOpen` in time; too many devices.
        Unauthenticated = 2 "unauthenticated",
        /// The token, device or user was revoked.
        Revoked = 3 "revoked",
        /// The same device signed in again.
        Replaced = 4 "replaced",
        /// The client continued after being told to wait.
        Abuse = 5 "abuse",
        /// The server is shutting down: reconnect after a random wait.
        Draining = 6 "draining",
        /// A fault of the server, most likely of its store.
        Internal = 7 "internal",
    }

    /// `acknowledgment` of a message (BIMip-Foundation 5.9.2, 7; protocol.md §7).
    AckStatus {
        /// The receiver's copy, not yet acknowledged.
        Unread = 1 "unread",
        /// A device of the receiver has received it.
        Delivered = 2 "delivered",
        /// The receiver has read it.
        Read = 3 "read",
        /// The sender's copy, not yet acknowledged.
        Sent = 4 "sent",
    }

    /// `type` of payloads that are used both as request and as response (7).
    Exchange {
        /// A request.
        Request = 1 "request",
        /// A response.
        Response = 2 "response",
    }

    /// `PingPong.status` (7; protocol.md §6).
    PingStatus {
        /// The request's status.
        Pending = 1 "pending",
        /// The pinged side answered.
        Ok = 2 "ok",
        /// Not allowed to ping that device.
        Fail = 3 "fail",
        /// No answer within 5 s.
        Timeout = 4 "timeout",
        /// A fault of the server; not used.
        Error = 5 "error",
        /// The device is not connected.
        Unreachable = 6 "unreachable",
    }

    /// `VersionUpdate.status` (5.10).
    VersionStatus {
        /// The server has accepted and numbered the message.
        Sent = 1 "sent",
        /// The sender has received the number.
        Updated = 2 "updated",
    }

    /// Presence (protocol.md §12).
    AwarenessStatus {
        /// Connected and active.
        Online = 1 "online",
        /// Not connected.
        Offline = 2 "offline",
        /// Away: set by the user for all devices.
        Away = 3 "away",
        /// Busy: set by the user for all devices.
        Busy = 4 "busy",
        /// Do not disturb: set by the user for all devices.
        DoNotDisturb = 5 "do_not_disturb",
        /// Invisible: set by the user for all devices; others see OFFLINE.
        Invisible = 6 "invisible",
        /// Connected and inactive.
        Idle = 7 "idle",
        /// The asker may not see the presence, or there is no such user.
        Unknown = 8 "unknown",
    }

    /// `awareness_intention` (protocol.md §12).
    AwarenessIntention {
        /// Hide the user's presence.
        DoNotBroadcast = 1 "do_not_broadcast",
        /// Show the presence to those who may see it.
        Broadcast = 2 "broadcast",
    }

    /// Status in `TokenRevokeResponse`, `BlockSubscriber` and `SubscriberRemove` (5.4; protocol.md §11, §13).
    RevokeStatus {
        /// Done.
        Success = 1 "success",
        /// Not done.
        Failed = 2 "failed",
    }

    /// `SubscriberAddResponse.status` (protocol.md §11).
    SubscriberStatus {
        /// Added.
        Success = 1 "success",
        /// Not added.
        Failed = 2 "failed",
        /// Was in the list already; now as given.
        Updated = 3 "updated",
    }

    /// `Logout.status` (7; protocol.md §13).
    LogoutStatus {
        /// Request: the device leaves for now.
        Disconnect = 1 "disconnect",
        /// Answer: the server's store failed.
        Fail = 2 "fail",
        /// Answer: done. In a request: sign out.
        Success = 3 "success",
    }

    /// `MediaPayloadRequest.type` (5.9.1).
    MediaType {
        /// An image.
        Image = 1 "image",
        /// Audio.
        Audio = 2 "audio",
        /// A video.
        Video = 3 "video",
        /// Any other file.
        File = 4 "file",
    }
}

impl CloseCode {
    /// The code of the last `ErrorMessage` over TCP, which has no close codes: 1000 plus this code (protocol.md §1).
    pub const fn tcp_error_code(self) -> i32 {
        1000 + self.code()
    }

    /// The close code in such a last `ErrorMessage`; `None` for any other error.
    pub fn from_tcp(code: i32) -> Option<CloseCode> {
        CloseCode::from_code(code.checked_sub(1000)?)
    }

    /// The close code in a QUIC application close; `None` for an unknown one.
    pub fn from_quic(code: u64) -> Option<CloseCode> {
        CloseCode::from_code(i32::try_from(code).ok()?)
    }
}

/// `ChatMessage.author`: whose copy it is (5.9.2; protocol.md §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Author {
    /// The copy for the sender's other devices.
    Sender,
    /// The copy for the recipient's devices.
    Receiver,
}

impl Author {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Author::Sender => "sender",
            Author::Receiver => "receiver",
        }
    }
}
