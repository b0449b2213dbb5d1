//! Handshakes under way over one transport. However many begin handshakes and finish none, a newcomer finds a place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::limits::HANDSHAKE_SPARED;

use super::{Refusal, site_of};

/// So many places.
pub(super) struct Handshakes {
    places: usize,
    under_way: Mutex<UnderWay>,
}

/// As many networks and sites as there are handshakes at most.
#[derive(Default)]
struct UnderWay {
    total: usize,
    /// The number of the next one.
    next: u64,
    by_site: HashMap<IpAddr, usize>,
    /// By network, and the oldest first.
    by_network: HashMap<IpAddr, BTreeMap<u64, Begun>>,
}

struct Begun {
    at: Instant,
    evicted: CancellationToken,
}

impl Handshakes {
    pub(super) fn new(places: usize) -> Arc<Handshakes> {
        Arc::new(Handshakes { places, under_way: Mutex::default() })
    }

    /// The current number, and the limit.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.under_way().total, self.places)
    }

    /// Takes a place, if need be that of another.
    pub(super) fn begin(self: &Arc<Self>, network: IpAddr, now: Instant) -> Result<Handshake, Refusal> {
        let mut under_way = self.under_way();
        if under_way.total >= self.places {
            under_way.make_room(network, now)?;
        }
        let (number, evicted) = (under_way.next, CancellationToken::new());
        under_way.next += 1;
        under_way.add(network, number, Begun { at: now, evicted: evicted.clone() });
        Ok(Handshake { of: self.clone(), network, number, evicted })
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    /// Evicts the oldest handshake of the network that has the most, within the site that has the most, both counted with the
    /// newcomer. If the newcomer's own network is no better, only one that had its time gives way: otherwise a fleet that comes
    /// back would evict its own handshakes before they are complete.
    fn make_room(&mut self, newcomer: IpAddr, now: Instant) -> Result<(), Refusal> {
        let crowding = |network: IpAddr, count: usize| {
            let site = site_of(network);
            let of_site = self.by_site.get(&site).copied().unwrap_or_default();
            (of_site + usize::from(site == site_of(newcomer)), count + usize::from(network == newcomer))
        };
        let own = crowding(newcomer, self.by_network.get(&newcomer).map_or(0, BTreeMap::len));
        let oldest = self.by_network.iter().filter_map(|(network, begun)| {
            let (number, Begun { at, .. }) = begun.first_key_value()?;
            Some((crowding(*network, begun.len()), Reverse(*number), *network, *at))
        });
        let (most, Reverse(number), network, at) = oldest.max().ok_or(Refusal::Load)?;
        if most == own && now.saturating_duration_since(at) < HANDSHAKE_SPARED {
            return Err(if own == (1, 1) { Refusal::Load } else { Refusal::Share });
        }
        if let Some(Begun { evicted, .. }) = self.remove(network, number) {
            evicted.cancel();
        }
        Ok(())
    }

    fn add(&mut self, network: IpAddr, number: u64, begun: Begun) {
        self.by_network.entry(network).or_default().insert(number, begun);
        *self.by_site.entry(site_of(network)).or_default() += 1;
        self.total += 1;
    }

    /// `None` if it was removed before.
    fn remove(&mut self, network: IpAddr, number: u64) -> Option<Begun> {
        let of_network = self.by_network.get_mut(&network)?;
        let removed = of_network.remove(&number)?;
        if of_network.is_empty() {
            self.by_network.remove(&network);
        }
        let site = site_of(network);
        if let Some(count) = self.by_site.get_mut(&site) {
            *count -= 1;
            if *count == 0 {
                self.by_site.remove(&site);
            }
        }
        self.total -= 1;
        Some(removed)
    }
}

/// A handshake's place, until it is dropped or given to another.
pub(in crate::transport) struct Handshake {
    of: Arc<Handshakes>,
    network: IpAddr,
    number: u64,
    evicted: CancellationToken,
}

impl Handshake {
    /// Waits until the place was given to another: then the handshake must end at once.
    pub(in crate::transport) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.of.under_way().remove(self.network, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: usize = 256;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The /64s of one /56.
    fn household(number: u8) -> IpAddr {
        ip(&format!("2001:db8:1:{number:x}::"))
    }

    /// How many of these were not evicted.
    fn left<'a>(some: impl IntoIterator<Item = &'a Handshake>) -> usize {
        some.into_iter().filter(|handshake| !handshake.evicted.is_cancelled()).count()
    }

    #[test]
    fn a_few_networks_that_take_all_places_they_get_leave_one_to_each_newcomer() {
        let (handshakes, now) = (Handshakes::new(PLACES), Instant::now());
        let mut taken = Vec::new();
        for attacker in 1..=12 {
            let network = IpAddr::from([192, 0, 2, attacker]);
            for _ in 0..2 * PLACES {
                taken.extend(handshakes.begin(network, now).ok());
            }
        }
        let (first, last) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 12]));
        let of = |network| taken.iter().filter(move |handshake: &&Handshake| handshake.network == network);
        assert_eq!(left(&taken), PLACES);
        assert!(left(of(first)).abs_diff(left(of(last))) <= 1, "they have the same share");
        assert!(handshakes.begin(last, now).is_err(), "nobody takes a place from others that have no more");
        let newcomers: Vec<_> =
            (100..120).map(|host| handshakes.begin(IpAddr::from([198, 51, 100, host]), now).unwrap()).collect();
        for _ in 0..PLACES {
            assert!(handshakes.begin(first, now).is_err());
        }
        assert_eq!((left(&newcomers), left(&taken), handshakes.counts()), (20, PLACES - 20, (PLACES, PLACES)));
    }

    #[test]
    fn a_household_with_many_networks_counts_as_one_and_leaves_a_newcomer_a_place() {
        let (handshakes, now) = (Handshakes::new(PLACES), Instant::now());
        // All /64s of the /56, and some of them once more.
        let household: Vec<_> =
            (0..300).filter_map(|number| handshakes.begin(household(number as u8), now).ok()).collect();
        assert_eq!((left(&household), handshakes.counts()), (PLACES, (PLACES, PLACES)));
        let newcomer = ip("2001:db8:2::");
        let newcomers: Vec<_> = (0..PLACES / 2).map(|_| handshakes.begin(newcomer, now).unwrap()).collect();
        assert!(handshakes.begin(newcomer, now).is_err(), "each site has half of the places");
        assert_eq!((left(&newcomers), left(&household)), (PLACES / 2, PLACES / 2));
        assert_eq!(left(&household[..PLACES / 2]), 0, "the oldest were evicted");
    }

    #[test]
    fn a_phone_that_takes_all_places_of_its_carrier_leaves_one_to_its_neighbour() {
        let (handshakes, now) = (Handshakes::new(PLACES), Instant::now());
        let _attacker: Vec<_> = (0..PLACES).map(|_| handshakes.begin(household(1), now).unwrap()).collect();
        assert!(handshakes.begin(household(1), now).is_err());
        assert!(handshakes.begin(household(2), now).is_ok());
    }

    #[test]
    fn where_all_have_the_same_share_the_oldest_gives_way_once_it_had_its_time() {
        let (handshakes, now) = (Handshakes::new(3), Instant::now());
        let of = |host, at| handshakes.begin(IpAddr::from([192, 0, 2, host]), at);
        let begun = [1, 2, 3].map(|host| of(host, now).unwrap());
        let later = now + HANDSHAKE_SPARED;
        assert_eq!(of(4, later - std::time::Duration::from_nanos(1)).err(), Some(Refusal::Load));
        let newcomer = of(4, later).unwrap();
        assert_eq!([0, 1, 2].map(|index| left(&begun[index..=index])), [0, 1, 1]);
        // The evicted one's place was given away already.
        drop(begun);
        assert_eq!((left([&newcomer]), handshakes.counts()), (1, (1, 3)));
    }
}
