//! CUBIC with a floor under its congestion window, for both sides of a connection (docs/decisions/0003).
//!
//! A conversation never fills its window, so the window does not grow back after a loss that congestion did not cause. With one
//! packet in fifty lost it soon reaches its minimum of two packets, and pings wait for the acknowledgment of texts.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};
use quinn_proto::RttEstimator;

/// Packets that may be in flight whatever was lost before: the smallest window that does not slow a conversation down. RFC 9002
/// (7.2) recommends a minimum of two, and starts with ten.
const FLOOR_PACKETS: u64 = 4;

/// Makes a [`Floored`] for each path.
#[derive(Debug, Default)]
pub(crate) struct FlooredCubic(Arc<CubicConfig>);

impl ControllerFactory for FlooredCubic {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Cubic::new(self.0.clone(), now, current_mtu);
        Box::new(Floored { cubic, mtu: current_mtu, collapsed: None })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Floored {
    cubic: Cubic,
    mtu: u16,
    /// When persistent congestion was declared (all packets of a long period were lost). Until a packet that was sent later is
    /// acknowledged, there is no floor: RFC 9002 (7.6.2) requires its own minimum window.
    collapsed: Option<Instant>,
}

impl Floored {
    fn arrived(&mut self, sent: Instant) {
        self.collapsed = self.collapsed.filter(|collapsed| sent <= *collapsed);
    }
}

impl Controller for Floored {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.arrived(sent);
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        if is_persistent_congestion {
            self.collapsed = Some(now);
        }
        self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        let floor = if self.collapsed.is_some() { 0 } else { FLOOR_PACKETS * u64::from(self.mtu) };
        self.cubic.window().max(floor)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.cubic.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MTU: u16 = 1_200;
    const FLOOR: u64 = FLOOR_PACKETS * MTU as u64;

    #[test]
    fn losses_take_the_window_to_the_floor_and_no_further() {
        let start = Instant::now();
        let mut controller = Arc::new(FlooredCubic::default()).build(start, MTU);
        assert_eq!(controller.window(), controller.initial_window());
        for second in 1..20 {
            let now = start + Duration::from_secs(second);
            controller.on_congestion_event(now, now, false, 100);
        }
        assert_eq!(controller.window(), FLOOR);
        assert_eq!(controller.metrics().congestion_window, FLOOR);
        controller.on_mtu_update(1_452);
        assert_eq!(controller.clone_box().window(), FLOOR_PACKETS * 1_452);
    }

    #[test]
    fn where_everything_was_lost_the_floor_is_back_with_the_first_packet_that_arrives() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let cubic = Cubic::new(Arc::default(), start, MTU);
        let mut controller = Floored { cubic, mtu: MTU, collapsed: None };
        controller.on_congestion_event(start + second, start, true, 100);
        assert_eq!(controller.window(), 2 * u64::from(MTU));
        controller.arrived(start);
        assert_eq!(controller.window(), 2 * u64::from(MTU), "it was sent before");
        controller.arrived(start + 2 * second);
        assert_eq!(controller.window(), FLOOR);
    }
}
