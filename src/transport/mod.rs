//! Turns bytes into frames per lane, over QUIC and over TLS on TCP. It knows no family: what a frame means is the session's
//! part.

mod bursts;
mod crowd;
#[cfg(feature = "qlog")]
pub mod qlog;
pub mod quic;
pub mod quic_lb;
mod tcp_info;
#[cfg(test)]
mod testing;
mod tickets;
pub mod tls_tcp;

pub use crowd::{Crowd, CrowdLimits};
pub use tickets::Tickets;
