//! What is known about the networks that the device was in: whether QUIC gets through, and stays. Pure; time is an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::limits::{NETWORKS_MAX, QUIC_RETRY_MAX};

/// Networks in which TCP connected and QUIC did not, identified by the device's own IP address there. That usually
/// differs between networks, and a mistake costs one second at most.
#[derive(Debug)]
pub(crate) struct Networks {
    /// First wait before QUIC is tried again.
    retry_after: Duration,
    silent: HashMap<IpAddr, Silent>,
}

#[derive(Debug)]
struct Silent {
    /// How often QUIC was silent in a row.
    times: u32,
    retry_at: Instant,
    /// A young session over QUIC was cut.
    cut: bool,
}

impl Networks {
    /// Knows no network yet. Where QUIC was silent, it is tried again after `retry_after`, then after twice that, and
    /// so on.
    pub(crate) fn new(retry_after: Duration) -> Networks {
        Networks { retry_after, silent: HashMap::new() }
    }

    /// Whether to start with TCP in this network, because QUIC was silent there and its next attempt is not due.
    pub(crate) fn prefers_tcp(&self, network: IpAddr, now: Instant) -> bool {
        self.silent.get(&network).is_some_and(|silent| now < silent.retry_at)
    }

    /// When to try QUIC again while a TCP connection is in use in this network.
    pub(crate) fn retry_at(&self, network: IpAddr) -> Option<Instant> {
        self.silent.get(&network).map(|silent| silent.retry_at)
    }

    /// A session over QUIC lasted.
    pub(crate) fn quic_worked(&mut self, network: IpAddr) {
        self.silent.remove(&network);
    }

    /// TCP connected first, but only after nothing had got through for a while, as at the end of a tunnel. This says
    /// nothing about QUIC, which is therefore tried again at once.
    pub(crate) fn quic_was_outrun(&mut self, network: IpAddr, now: Instant) {
        self.entry(network, now).retry_at = now;
    }

    /// TCP connected and QUIC did not. QUIC is tried again after a wait that doubles each time.
    pub(crate) fn quic_was_silent(&mut self, network: IpAddr, now: Instant) {
        let retry_after = self.retry_after;
        let silent = self.entry(network, now);
        silent.retry_at = now + retry_after.saturating_mul(1 << silent.times.min(20)).min(QUIC_RETRY_MAX);
        silent.times = silent.times.saturating_add(1);
    }

    /// A session over QUIC was cut while it was young. Once, that may have been a tunnel; twice in a row, or where QUIC was
    /// silent before, a box on the way cuts the flow behind the handshake.
    pub(crate) fn quic_was_cut(&mut self, network: IpAddr, now: Instant) {
        let silent = self.entry(network, now);
        if std::mem::replace(&mut silent.cut, true) || silent.times > 0 {
            self.quic_was_silent(network, now);
        }
    }

    fn entry(&mut self, network: IpAddr, now: Instant) -> &mut Silent {
        if !self.silent.contains_key(&network) && self.silent.len() >= NETWORKS_MAX {
            let oldest = self.silent.iter().min_by_key(|(_, silent)| silent.retry_at).map(|(network, _)| *network);
            oldest.and_then(|network| self.silent.remove(&network));
        }
        self.silent.entry(network).or_insert(Silent { times: 0, retry_at: now, cut: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::limits::QUIC_RETRY_MIN;

    #[test]
    fn a_network_that_drops_udp_is_remembered_for_a_while_that_grows_to_a_bound() {
        let (home, now) = (IpAddr::from([192, 0, 2, 1]), Instant::now());
        let mut networks = Networks::new(QUIC_RETRY_MIN);
        assert!(!networks.prefers_tcp(home, now));
        networks.quic_was_silent(home, now);
        assert!(networks.prefers_tcp(home, now));
        assert!(!networks.prefers_tcp(IpAddr::from([192, 0, 2, 2]), now));
        assert!(!networks.prefers_tcp(home, now + QUIC_RETRY_MIN));
        assert_eq!(networks.retry_at(home), Some(now + QUIC_RETRY_MIN));
        networks.quic_was_silent(home, now);
        assert!(networks.prefers_tcp(home, now + QUIC_RETRY_MIN));
        for _ in 0..40 {
            networks.quic_was_silent(home, now);
        }
        assert_eq!(networks.retry_at(home), Some(now + QUIC_RETRY_MAX));
        networks.quic_worked(home);
        assert!(!networks.prefers_tcp(home, now));
    }

    #[test]
    fn where_nothing_got_through_for_a_while_quic_is_tried_again_at_once() {
        let (home, now) = (IpAddr::from([192, 0, 2, 1]), Instant::now());
        let mut networks = Networks::new(QUIC_RETRY_MIN);
        networks.quic_was_outrun(home, now);
        assert!(!networks.prefers_tcp(home, now));
        assert_eq!(networks.retry_at(home), Some(now));
        networks.quic_was_silent(home, now);
        assert_eq!(networks.retry_at(home), Some(now + QUIC_RETRY_MIN));
    }

    #[test]
    fn where_sessions_over_quic_are_cut_again_and_again_tcp_is_preferred() {
        let (home, now) = (IpAddr::from([192, 0, 2, 1]), Instant::now());
        let mut networks = Networks::new(QUIC_RETRY_MIN);
        networks.quic_was_cut(home, now);
        assert!(!networks.prefers_tcp(home, now));
        networks.quic_worked(home);
        networks.quic_was_cut(home, now);
        assert!(!networks.prefers_tcp(home, now), "not in a row");
        networks.quic_was_cut(home, now);
        assert_eq!(networks.retry_at(home), Some(now + QUIC_RETRY_MIN));
        // At the next try once is enough.
        networks.quic_was_cut(home, now);
        assert_eq!(networks.retry_at(home), Some(now + 2 * QUIC_RETRY_MIN));
        networks.quic_worked(home);
        networks.quic_was_silent(home, now);
        networks.quic_was_cut(home, now);
        assert_eq!(networks.retry_at(home), Some(now + 2 * QUIC_RETRY_MIN));
    }

    #[test]
    fn only_so_many_networks_are_remembered() {
        let now = Instant::now();
        let mut networks = Networks::new(QUIC_RETRY_MIN);
        for number in 0..3 * NETWORKS_MAX as u64 {
            let network = IpAddr::from([10, 0, (number >> 8) as u8, number as u8]);
            networks.quic_was_silent(network, now + Duration::from_millis(number));
            assert!(networks.silent.len() <= NETWORKS_MAX);
            assert!(networks.retry_at(network).is_some());
        }
    }
}
