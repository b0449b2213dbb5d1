//! Bounds of the emulated link, each with its reason.

use std::time::Duration;

/// Bytes of one packet: the MTU of every phone network, and of Ethernet.
pub const MTU: usize = 1500;
/// Packets that a device queues until the link's thread reads them. An unpaced sender writes some thousands before the
/// thread runs again. What does not fit is lost: the link does not count it, but [`Network::missed`] reports it.
///
/// [`Network::missed`]: super::Network::missed
pub(super) const DEVICE_QUEUE_PACKETS: u32 = 20_000;
/// Bytes on the way in one direction of one path: 100 ms at 5 Gbit/s. Beyond it packets are lost and counted as
/// overrun. A rate in the profile keeps any sensible experiment below.
pub(super) const FLIGHT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Packets read from one device before the thread serves the other devices and delivers what is due.
pub(super) const BATCH_PACKETS: usize = 64;
/// Mappings of one NAT: three quarters of its ports. At the bound a new flow gets no mapping and its packets are lost.
pub(super) const NAT_MAPPINGS_MAX: usize = 36_000;
/// First and last port that a NAT assigns.
pub(super) const NAT_PORTS: (u16, u16) = (12_000, 59_999);
/// Orders queued for the link's thread, which executes them within a millisecond.
pub(super) const ORDERS_MAX: usize = 64;
/// Timeout for an order. One that takes longer will never be executed: the thread hangs.
pub(super) const ORDER_WITHIN: Duration = Duration::from_secs(10);
