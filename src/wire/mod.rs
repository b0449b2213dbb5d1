//! The protocol's types: generated messages, framing, lanes, routes, code tables and identifiers.
//!
//! No I/O, no async code and no clock: server, client and tests share it. Data from a peer is parsed into these types
//! where it enters, and is not checked again after that.

mod code;
mod frame;
mod id;
mod lane;
mod limits;
mod route;

pub use code::{
    AckStatus, Author, AwarenessIntention, AwarenessStatus, CloseCode, ErrorCode, Exchange, LogoutStatus, MediaType,
    PingStatus, RevokeStatus, SubscriberStatus, VersionStatus,
};
pub use frame::{FrameDecoder, FrameError, LaneFrameDecoder, encode_frame, encode_lane_frame, frame_len};
pub use id::{ChatId, DeviceId, Eid, IdError, LocalId, MessageId, Sequence, Version};
pub use lane::Lane;
pub use limits::{CAPTION_BYTES_MAX, DEVICE_FRAME_BYTES_MAX, TEXT_BYTES_MAX, URL_BYTES_MAX};
pub use proto::message_scheme::Payload;
pub use proto::{ErrorMessage, Identity, MessageScheme};
pub use route::{PAYLOAD_NAMES, Route, RouteError, envelope, lane_of, open_envelope, payload_name, route_of};

/// The generated messages of `proto/bimip/v1/bimip.proto`, documented there.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/bimip.v1.rs"));
}

/// Bytes of the longest TLS record that is written to TCP. Nothing of a record can be read before all of it has arrived, and
/// what a connection begins with should come within its first window.
pub const TLS_RECORD_BYTES: usize = 4 * 1024;

/// ALPN protocol name on both transports (protocol.md §1).
pub const ALPN: &[u8] = b"bimip/1";

/// Default UDP and TCP port (protocol.md §1).
pub const DEFAULT_PORT: u16 = 4433;
