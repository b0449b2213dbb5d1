//! Bounds of the emulated link, each with its reason.

use std::time::Duration;

/// Bytes of one packet: what every phone network carries, and what Ethernet does.
pub const MTU: usize = 1500;
/// Packets that a device keeps until the link's thread reads them. A sender that was let loose writes some thousands
/// before the thread's turn comes; what does not fit is lost uncounted by the link, and told by [`Network::missed`].
///
/// [`Network::missed`]: super::Network::missed
pub(super) const DEVICE_QUEUE_PACKETS: i32 = 20_000;
/// Bytes on their way in one direction of one path: 100 ms at 5 Gbit/s. Beyond it packets are lost and counted so; a
/// rate in the profile keeps every honest experiment below.
pub(super) const FLIGHT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Packets taken from one device before the others, and what is due, get their turn.
pub(super) const BATCH_PACKETS: usize = 64;
/// Mappings of one NAT: three quarters of its ports. At the bound a new flow gets none and its packets are lost.
pub(super) const NAT_MAPPINGS_MAX: usize = 36_000;
/// First and last port that a NAT gives.
pub(super) const NAT_PORTS: (u16, u16) = (12_000, 59_999);
/// Orders that wait for the link's thread, which takes them within a millisecond.
pub(super) const ORDERS_MAX: usize = 64;
/// An order that was not taken by then never is: the thread hangs.
pub(super) const ORDER_WITHIN: Duration = Duration::from_secs(10);
