//! The protocol's code tables: one enum each, one conversion from and to the wire's `int32`.

/// Declares an enum over a code table with its conversions.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal $text:literal),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(i32)]
        pub enum $name { $($(#[$vdoc])* $variant = $code),* }

        impl $name {
            /// The whole table, ascending.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The wire's number.
            pub const fn code(self) -> i32 {
                self as i32
            }

            /// From the wire's number.
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
    /// Error codes (profile 9).
    ErrorCode {
        /// Malformed or missing.
        Malformed = 400 "malformed",
        /// Not authenticated.
        Unauthenticated = 401 "unauthenticated",
        /// Not allowed, or blocked.
        Forbidden = 403 "forbidden",
        /// No such user or message.
        NotFound = 404 "not_found",
        /// Timed out.
        TimedOut = 408 "timed_out",
        /// The same `message_id_local` with other content.
        Conflict = 409 "conflict",
        /// Over `max_frame_bytes`.
        TooLarge = 413 "too_large",
        /// The payload belongs on another lane.
        WrongLane = 421 "wrong_lane",
        /// Too fast; `details` has the milliseconds to wait.
        TooFast = 429 "too_fast",
        /// Our fault.
        Internal = 500 "internal",
        /// No known payload, or one that is not for this side.
        Unsupported = 501 "unsupported",
        /// Overload, storage, draining.
        Unavailable = 503 "unavailable",
    }

    /// Application close codes (profile 2).
    CloseCode {
        /// Signed out, or left.
        Goodbye = 0 "goodbye",
        /// A lane opened twice, an unknown lane, an oversized frame.
        ProtocolViolation = 1 "protocol_violation",
        /// No valid token, or it ran out.
        Unauthenticated = 2 "unauthenticated",
        /// The token, device or user was revoked.
        Revoked = 3 "revoked",
        /// The same device signed in again.
        Replaced = 4 "replaced",
        /// Went on after being told to slow down.
        Abuse = 5 "abuse",
        /// The server is shutting down: reconnect.
        Draining = 6 "draining",
        /// Our fault.
        Internal = 7 "internal",
    }

    /// `acknowledgment` of a message (5.9.2, 7).
    AckStatus {
        /// The receiver's copy at first.
        Unread = 1 "unread",
        /// A device of the receiver has it.
        Delivered = 2 "delivered",
        /// The receiver has read it.
        Read = 3 "read",
        /// The sender's copy at first.
        Sent = 4 "sent",
    }

    /// `type` of messages that are request and response at once (7).
    Exchange {
        /// Asks.
        Request = 1 "request",
        /// Answers.
        Response = 2 "response",
    }

    /// `PingPong.status` (7).
    PingStatus {
        /// Asked.
        Pending = 1 "pending",
        /// Answered.
        Ok = 2 "ok",
        /// Not allowed.
        Fail = 3 "fail",
        /// No answer within 5 s.
        Timeout = 4 "timeout",
        /// Our fault.
        Error = 5 "error",
        /// Not connected.
        Unreachable = 6 "unreachable",
    }

    /// `VersionUpdate.status` (5.10).
    VersionStatus {
        /// The server has numbered it.
        Sent = 1 "sent",
        /// The sender has taken the number over.
        Updated = 2 "updated",
    }

    /// Presence (profile 5).
    AwarenessStatus {
        /// Connected and active.
        Online = 1 "online",
        /// Not connected.
        Offline = 2 "offline",
        /// The user's choice.
        Away = 3 "away",
        /// The user's choice.
        Busy = 4 "busy",
        /// The user's choice.
        DoNotDisturb = 5 "do_not_disturb",
        /// The user's choice: others see OFFLINE.
        Invisible = 6 "invisible",
        /// Connected and inactive.
        Idle = 7 "idle",
        /// Not for the asker to know.
        Unknown = 8 "unknown",
    }

    /// `awareness_intention` (profile 5).
    AwarenessIntention {
        /// Tell nobody.
        DoNotBroadcast = 1 "do_not_broadcast",
        /// Tell those who may see.
        Broadcast = 2 "broadcast",
    }

    /// `TokenRevokeResponse.status` and `BlockSubscriber.status` (5.4, profile 6).
    RevokeStatus {
        /// Done.
        Success = 1 "success",
        /// Not done.
        Failed = 2 "failed",
    }

    /// `SubscriberAddResponse.status` (profile 6).
    SubscriberStatus {
        /// Added.
        Success = 1 "success",
        /// Not added.
        Failed = 2 "failed",
        /// Was there; now as given.
        Updated = 3 "updated",
    }

    /// `Logout.status` (7).
    LogoutStatus {
        /// Leaves for now.
        Disconnect = 1 "disconnect",
        /// Failed.
        Fail = 2 "fail",
        /// Signed out.
        Success = 3 "success",
    }

    /// `MediaPayloadRequest.type` (5.9.1).
    MediaType {
        /// A picture.
        Image = 1 "image",
        /// Sound.
        Audio = 2 "audio",
        /// A film.
        Video = 3 "video",
        /// Anything else.
        File = 4 "file",
    }
}

impl CloseCode {
    /// The code of the last `ErrorMessage` over TCP, which has no close frame (profile 2).
    pub const fn tcp_error_code(self) -> i32 {
        1000 + self.code()
    }

    /// From the code of such a last `ErrorMessage`; `None` for any other error.
    pub fn from_tcp(code: i32) -> Option<CloseCode> {
        CloseCode::from_code(code.checked_sub(1000)?)
    }

    /// From a QUIC application close code.
    pub fn from_quic(code: u64) -> Option<CloseCode> {
        CloseCode::from_code(i32::try_from(code).ok()?)
    }
}

/// `ChatMessage.author`: whose copy it is (5.9.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Author {
    /// The sender's other devices.
    Sender,
    /// The recipient's devices.
    Receiver,
}

impl Author {
    /// The wire's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Author::Sender => "sender",
            Author::Receiver => "receiver",
        }
    }
}
