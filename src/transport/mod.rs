//! Bytes to frames per lane, over QUIC. Knows no family: what a frame means is the session's.

pub mod quic;
