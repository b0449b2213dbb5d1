//! The protocol's vocabulary: generated types, framing, lanes, routes, code tables and identities.
//!
//! No I/O, no async and no clock: server, client and tests share it. What comes from a peer becomes one of these types
//! at the edge, and is not checked a second time behind it.

mod code;
mod frame;
mod id;
mod lane;
mod route;

pub use code::{
    AckStatus, Author, AwarenessIntention, AwarenessStatus, CloseCode, ErrorCode, Exchange, LogoutStatus, MediaType,
    PingStatus, RevokeStatus, SubscriberStatus, VersionStatus,
};
pub use frame::{FrameDecoder, FrameError, LaneFrameDecoder, encode_frame, encode_lane_frame, frame_len};
pub use id::{ChatId, DeviceId, Eid, IdError, LocalId, MessageId, Sequence, Version};
pub use lane::Lane;
pub use proto::message_scheme::Payload;
pub use proto::{ErrorMessage, Identity, MessageScheme};
pub use route::{PAYLOAD_NAMES, Route, RouteError, envelope, lane_of, open_envelope, payload_name, route_of};

/// The generated messages of `proto/bimip/v1/bimip.proto`, documented there.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/bimip.v1.rs"));
}

/// ALPN protocol of both transports (profile 2).
pub const ALPN: &[u8] = b"bimip/1";

/// Default UDP and TCP port (profile 2).
pub const DEFAULT_PORT: u16 = 4433;
