//! Bytes to frames per lane, over QUIC. Knows no family: what a frame means is the session's.

mod crowd;
pub mod quic;
