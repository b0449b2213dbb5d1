//! Flood control: rate limits for a session, a user and an address (BIMip-Foundation 9; protocol.md §15 and §16).
//!
//! Each limit is a rate with a burst. Bursts are so large that a phone that returns with a full outbox, or a fleet that signs
//! in again after a restart, never reaches them; a client in an endless loop does within seconds. A peer over a limit is told
//! how long to wait; a peer that goes on all the same is closed with ABUSE.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::config::{LimitsConfig, Rate};
use crate::limits::{
    ADDRESS_LIMIT_KEPT, ADDRESSES_LIMITED_MAX, STRIKES_MAX, TOKENS_RATE, USER_LIMIT_LOOKED_FOR_EVERY,
    USER_SIGN_INS_RATE,
};
use crate::observe::LimitKind;
use crate::wire::{CloseCode, Eid, ErrorCode};

use super::fault::Fault;
use super::{Open, Origin, Phase, Session};

/// One rate limit; `None` if there is no limit.
pub(super) struct Limit(Option<Limited>);

struct Limited {
    limiter: DefaultDirectRateLimiter,
    /// How long the limiter takes to refill from empty to its full burst.
    fills_in: Duration,
}

impl Limit {
    /// A rate of zero means no limit.
    pub(super) fn new(rate: Rate) -> Limit {
        Limit(NonZeroU32::new(rate.per_second).map(|per_second| {
            let burst = NonZeroU32::new(rate.burst).unwrap_or(per_second);
            let limiter = RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst));
            Limited { limiter, fills_in: Duration::from_secs(1) * burst.get() / per_second.get() }
        }))
    }

    /// Takes one token, or returns how long to wait for it.
    pub(super) fn take(&self) -> Result<(), Duration> {
        self.take_or_wait(Duration::ZERO)
    }

    /// Like [`Limit::take`], but the wait is at least `least`, or the time of a full refill if that is shorter.
    pub(super) fn take_or_wait(&self, least: Duration) -> Result<(), Duration> {
        let Some(Limited { limiter, fills_in }) = &self.0 else { return Ok(()) };
        limiter.check().map_err(|not_yet| {
            let wait = not_yet.wait_time_from(DefaultClock::default().now());
            wait.max(least.min(*fills_in))
        })
    }
}

/// The limits that sessions share, by user and by address. A limit that nobody used for a while is forgotten.
pub struct Flood {
    limits: LimitsConfig,
    users: Cache<Eid, Arc<Limit>>,
    sign_ins: Cache<Eid, Arc<Limit>>,
    addresses: Cache<IpAddr, Arc<Limit>>,
}

impl Flood {
    /// Limits of which nothing is used yet.
    pub fn new(limits: LimitsConfig) -> Flood {
        Flood::remembering(ADDRESSES_LIMITED_MAX, limits)
    }

    fn remembering(most: u64, limits: LimitsConfig) -> Flood {
        Flood { limits, users: cache(most), sign_ins: cache(most), addresses: cache(most) }
    }

    fn sign_in(&self, address: IpAddr) -> Result<(), Duration> {
        if self.limits.sign_ins.per_second == 0 {
            return Ok(());
        }
        self.addresses.get_with(network_of(address), || Arc::new(Limit::new(self.limits.sign_ins))).take()
    }

    /// A sign-in of a user whose token is good. Not limited if those of addresses are not.
    fn user_sign_in(&self, user: &Eid) -> Result<(), Duration> {
        if self.limits.sign_ins.per_second == 0 {
            return Ok(());
        }
        self.sign_ins.get_with(user.clone(), || Arc::new(Limit::new(USER_SIGN_INS_RATE.into()))).take()
    }

    fn of_user(&self, user: &Eid) -> Arc<Limit> {
        self.users.get_with(user.clone(), || Arc::new(Limit::new(self.limits.messages)))
    }

    fn frames(&self) -> Limit {
        Limit::new(self.limits.frames)
    }

    fn awareness(&self) -> Limit {
        Limit::new(self.limits.awareness)
    }

    fn tokens(&self) -> Limit {
        let (per_second, burst) = if self.limits.sign_ins.per_second == 0 { (0, 0) } else { TOKENS_RATE };
        Limit::new(Rate { per_second, burst })
    }
}

/// The cache's default policy would not take in who comes when it is full, and so give them a new limit each time.
fn cache<K: Hash + Eq + Send + Sync + 'static>(most: u64) -> Cache<K, Arc<Limit>> {
    let policy = EvictionPolicy::lru();
    Cache::builder().max_capacity(most).eviction_policy(policy).time_to_idle(ADDRESS_LIMIT_KEPT).build()
}

/// What an address counts as: for IPv6 its /64, since a household or a phone has a whole /64 to itself.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// The rate limits of one session.
pub(super) struct Meter {
    pub(super) frames: Limit,
    /// Created with the first awareness request or change: most devices are idle.
    awareness: Option<Box<Limit>>,
    /// Created with the first renewal or revocation.
    tokens: Option<Box<Limit>>,
    /// The user's limit, and when it was looked up.
    messages: Option<Box<(Arc<Limit>, Instant)>>,
}

impl Meter {
    pub(super) fn new(flood: &Flood) -> Meter {
        Meter { frames: flood.frames(), awareness: None, tokens: None, messages: None }
    }

    pub(super) fn awareness(&mut self, flood: &Flood) -> &Limit {
        self.awareness.get_or_insert_with(|| Box::new(flood.awareness()))
    }

    fn tokens(&mut self, flood: &Flood) -> &Limit {
        self.tokens.get_or_insert_with(|| Box::new(flood.tokens()))
    }

    /// The limit that the user's sessions share. It is looked up again from time to time: a limit that nobody looks up is
    /// forgotten, and another session of the user would start a new one.
    pub(super) fn messages(&mut self, flood: &Flood, user: &Eid, now: Instant) -> &Arc<Limit> {
        let known = self.messages.take().filter(|known| now < known.1 + USER_LIMIT_LOOKED_FOR_EVERY);
        &self.messages.insert(known.unwrap_or_else(|| Box::new((flood.of_user(user), now)))).0
    }
}

impl Session {
    /// Counts a frame against a limit. Over the limit, the frame is refused with 429, and a session that keeps going is closed.
    /// The error is how long the peer was told to wait.
    pub(super) fn meter(
        &mut self,
        origin: Origin,
        kind: LimitKind,
        limit: impl Fn(&mut Open, &Flood) -> Result<(), Duration>,
    ) -> Result<(), Duration> {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        let taken = limit(open, &self.services.flood);
        self.judge(origin, kind, taken);
        taken
    }

    /// Counts a sign-in, renewal or revocation against the sign-ins of the session's address. A session that is open has a much
    /// lower rate of its own, so that it leaves others at the address their sign-ins. Returns `false` if it was refused.
    pub(super) fn meter_sign_in(&mut self, origin: Origin) -> bool {
        let flood = &self.services.flood;
        let own = match &mut self.phase {
            Phase::Open(open) => open.meter.tokens(flood).take(),
            _ => Ok(()),
        };
        let taken = own.and_then(|()| flood.sign_in(self.address));
        self.judge(origin, LimitKind::SignIns, taken)
    }

    /// Counts a sign-in against those of its user. Returns `false` if it was refused.
    pub(super) fn meter_user_sign_in(&mut self, origin: Origin, user: &Eid) -> bool {
        let taken = self.services.flood.user_sign_in(user);
        self.judge(origin, LimitKind::SignIns, taken)
    }

    fn judge(&mut self, origin: Origin, kind: LimitKind, taken: Result<(), Duration>) -> bool {
        let Err(wait) = taken else {
            // Every frame counts against the frames' limit, so only the narrower limits show that the peer has slowed down.
            self.strikes = self.strikes.saturating_sub(u32::from(kind != LimitKind::Frames));
            return true;
        };
        self.services.metrics.rate_limited[kind].increment(1);
        self.refuse(origin, Fault::new(ErrorCode::TooFast, "too fast").details(wait_details(wait)));
        self.strike();
        false
    }

    /// The peer went on after it was told to wait. If it does so too often, the session is closed.
    pub(super) fn strike(&mut self) {
        self.strikes += 1;
        if self.strikes > STRIKES_MAX {
            self.close(CloseCode::Abuse, "went on after being told to wait");
        }
    }
}

/// A wait in milliseconds for the details of a 429, rounded up: a peer that waits so long has waited long enough.
pub(super) fn wait_details(wait: Duration) -> String {
    wait.as_micros().div_ceil(1000).max(1).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::testing::House;
    use crate::session::{LaneSet, Output};
    use crate::store::testing::{device, eid};
    use crate::wire::proto::{AwarenessRequest, Logout, SyncAck, TextPayloadRequest};
    use crate::wire::{Lane, Payload};

    #[test]
    fn a_burst_passes_and_what_follows_waits() {
        let limit = Limit::new(Rate { per_second: 1, burst: 3 });
        assert!((0..3).all(|_| limit.take().is_ok()));
        assert!(limit.take().is_err_and(|wait| wait <= Duration::from_secs(1)));
        let none = Limit::new(Rate { per_second: 0, burst: 0 });
        assert!((0..1000).all(|_| none.take().is_ok()));
    }

    #[test]
    fn sessions_of_a_user_have_one_rate_also_when_it_was_forgotten_in_between() {
        let (flood, alice, now) = (Flood::new(LimitsConfig::default()), eid("alice"), Instant::now());
        let (mut phone, mut laptop) = (Meter::new(&flood), Meter::new(&flood));
        let first = phone.messages(&flood, &alice, now).clone();
        assert!(Arc::ptr_eq(&first, laptop.messages(&flood, &alice, now)));
        flood.users.invalidate(&alice);
        assert!(Arc::ptr_eq(&first, phone.messages(&flood, &alice, now)));
        let later = now + USER_LIMIT_LOOKED_FOR_EVERY;
        let second = laptop.messages(&flood, &alice, later).clone();
        assert!(!Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&second, phone.messages(&flood, &alice, later)));
    }

    #[test]
    fn who_comes_when_all_places_are_taken_has_a_limit_and_the_longest_quiet_loses_theirs() {
        const MOST: u64 = 100;
        let flood = Flood::remembering(MOST, LimitsConfig::default());
        let user = |number: u64| eid(&format!("user{number}"));
        let settled = || flood.users.run_pending_tasks();
        for _ in 0..3 {
            (0..MOST).for_each(|number| _ = flood.of_user(&user(number)));
            settled();
        }
        let new = flood.of_user(&user(MOST));
        settled();
        assert!(Arc::ptr_eq(&new, &flood.of_user(&user(MOST))));
        let kept: Vec<_> = (0..MOST).filter(|number| flood.users.contains_key(&user(*number))).collect();
        assert_eq!(kept, (1..MOST).collect::<Vec<_>>());
    }

    #[test]
    fn an_ipv6_network_counts_as_one_and_a_mapped_address_as_ipv4() {
        let of = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn an_ipv6_network_has_one_burst_of_sign_ins() {
        let limits = LimitsConfig { sign_ins: Rate { per_second: 1, burst: 100 }, ..LimitsConfig::default() };
        let flood = Flood::new(limits);
        let household = |host: u16| IpAddr::from([0x2001, 0xdb8, 1, 2, 0, 0, 0, host]);
        // More than come back while the test runs.
        let taken = (0..1000).filter(|host| flood.sign_in(household(*host)).is_ok()).count();
        assert!((100..1000).contains(&taken), "{taken}");
        assert!(flood.sign_in(household(2000)).is_err());
        assert!(flood.sign_in(IpAddr::from([0x2001, 0xdb8, 1, 3, 0, 0, 0, 1])).is_ok());
    }

    #[tokio::test]
    async fn who_renews_without_end_leaves_others_at_the_address_their_sign_ins() {
        let burst = 2 * TOKENS_RATE.1;
        let house = House::new(|_, limits| limits.sign_ins = Rate { per_second: 1, burst });
        let (alice, phone) = (eid("alice"), device("phone"));
        let mut bare = house.bare(&alice, &phone).await;
        let (mut renewed, mut refused) = (0, 0);
        for _ in 0..2 * burst {
            bare.hear(Lane::Control, house.open(&alice, &phone));
            for output in bare.outputs() {
                match output {
                    Output::Send(_, frame) => match crate::session::testing::payload(&frame) {
                        Payload::SessionAccept(_) => renewed += 1,
                        _ => refused += 1,
                    },
                    other => assert!(matches!(other, Output::Close(CloseCode::Abuse, _)), "{other:?}"),
                }
            }
        }
        assert!(renewed >= TOKENS_RATE.1 && renewed < burst && refused > 0, "{renewed} renewed, {refused} refused");
        house.bare(&eid("bob"), &device("phone")).await;
    }

    #[tokio::test]
    async fn who_goes_on_behind_a_sign_in_that_has_to_wait_is_not_listened_to_for_ever() {
        let house = House::new(|_, limits| limits.sign_ins = Rate { per_second: 1, burst: 1 });
        let (alice, phone) = (eid("alice"), device("phone"));
        house.bare(&alice, &phone).await;
        let mut visitor = house.visitor();
        visitor.hear(Lane::Control, house.open(&alice, &phone));
        let closed = |outputs: Vec<Output>| {
            outputs.into_iter().any(|output| matches!(output, Output::Close(CloseCode::Abuse, _)))
        };
        for _ in 1..STRIKES_MAX {
            visitor.hear(Lane::Control, Payload::Logout(Logout::default()));
        }
        assert!(!closed(visitor.outputs()), "as many as a device may have behind it");
        visitor.hear(Lane::Control, Payload::Logout(Logout::default()));
        assert!(closed(visitor.outputs()));
    }

    #[tokio::test]
    async fn a_user_who_signs_in_without_end_is_told_to_wait_and_nobody_else_is() {
        let house = House::new(|_, _| ());
        let (alice, phone) = (eid("alice"), device("phone"));
        let all = Lane::ALL.into_iter().fold(LaneSet::NONE, LaneSet::with);
        let waits = |user: &Eid| {
            let mut visitor = house.visitor();
            visitor.hear(Lane::Control, house.open(user, &phone));
            let outputs = visitor.outputs();
            let [Output::Send(Lane::Control, answer)] = &outputs[..] else {
                assert!(matches!(outputs[..], [Output::Call(_)]), "{outputs:?}");
                return false;
            };
            let answer = crate::session::testing::payload(answer);
            let Payload::ErrorMessage(error) = answer else { panic!("{answer:?}") };
            assert_eq!(error.code, ErrorCode::TooFast.code());
            assert_eq!(visitor.session.wanted(), all, "it may try again, and what is behind it is dropped");
            true
        };
        let refused = (0..3 * USER_SIGN_INS_RATE.1).filter(|_| waits(&alice)).count();
        assert!(refused >= USER_SIGN_INS_RATE.1 as usize, "{refused}");
        assert!(!waits(&eid("bob")));
    }

    #[tokio::test]
    async fn each_request_within_a_narrower_rate_takes_off_a_strike_and_a_mere_frame_takes_off_none() {
        let house = House::new(|_, limits| {
            (limits.frames, limits.messages) = (Rate::default(), Rate::default());
            limits.awareness = Rate { per_second: 1, burst: 1 };
        });
        let too_fast = || Payload::AwarenessRequest(AwarenessRequest::default());
        let message = Payload::TextPayloadRequest(TextPayloadRequest::default());
        for (between, closes) in [(message, false), (Payload::SyncAck(SyncAck::default()), true)] {
            let mut phone = house.bare(&eid("alice"), &device("phone")).await;
            let mut closed = false;
            // Some of the first are within their rate.
            for _ in 0..2 * STRIKES_MAX {
                phone.hear(Lane::Presence, too_fast());
                phone.hear(Lane::Chat, between.clone());
                closed |= phone.outputs().iter().any(|output| matches!(output, Output::Close(CloseCode::Abuse, _)));
            }
            assert_eq!(closed, closes, "{between:?}");
        }
    }
}
