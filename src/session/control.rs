//! Connectivity: PingPong both ways, and relayed to another device (BIMip-Foundation 4.2 and 5.3; protocol.md §6).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::hub::Relay;
use crate::limits::{LANE_QUEUE_BYTES, PING_ASKERS_MAX, PING_RELAY_WITHIN, PINGS_ASKED_MAX, PINGS_RELAYED_MAX};
use crate::observe::LimitKind;
use crate::store::Relation;
use crate::wire::proto::PingPong;
use crate::wire::{DeviceId, Eid, ErrorCode, Exchange, Lane, Payload, PingStatus};

use super::call::Purpose;
use super::fault::Fault;
use super::{Call, Now, Origin, Phase, Session};

/// When the client last sent a frame, the pings that it has not answered, and the pings that it asked to be relayed.
pub(super) struct Pings {
    heard: Instant,
    last_asked: Option<Instant>,
    asked: Vec<Asked>,
    relayed: Vec<Relayed>,
    /// Pings for the next pump to send, each with the session that asked for it. Bounded: one for each notice that a session
    /// may hold, and the server's own.
    wanted: Vec<Option<Relay>>,
    numbers: u64,
}

/// A ping to this session's device, and who is waiting for its answer.
struct Asked {
    request_time: i64,
    at: Instant,
    /// At most [`PING_ASKERS_MAX`].
    relays: Vec<Relay>,
}

/// A ping that this session's device asked to be relayed to another device.
struct Relayed {
    number: u64,
    due: Instant,
    origin: Origin,
    ping: PingPong,
}

impl Pings {
    pub(super) fn new(now: Now) -> Pings {
        Pings {
            heard: now.at,
            last_asked: None,
            asked: Vec::new(),
            relayed: Vec::new(),
            wanted: Vec::new(),
            numbers: 0,
        }
    }

    pub(super) fn heard(&mut self, now: Now) {
        self.heard = now.at;
    }

    /// Frees memory that only pings under way need.
    pub(super) fn rest(&mut self) {
        if self.asked.is_empty() {
            self.asked = Vec::new();
        }
        if self.relayed.is_empty() {
            self.relayed = Vec::new();
        }
    }

    /// When the next ping is due, or the oldest relayed ping times out.
    pub(super) fn due(&self, interval: Duration) -> Instant {
        let ping = self.ping_due(interval);
        self.relayed.first().map_or(ping, |oldest| ping.min(oldest.due))
    }

    /// One interval after the client's last frame or the last ping to it, whichever is later.
    fn ping_due(&self, interval: Duration) -> Instant {
        self.last_asked.map_or(self.heard, |at| at.max(self.heard)) + interval
    }
}

impl Session {
    pub(super) fn ping_if_due(&mut self, now: Now) {
        let interval = self.services.settings.ping_interval;
        let Phase::Open(open) = &mut self.phase else { return };
        if open.pings.ping_due(interval) <= now.at {
            open.pings.last_asked = Some(now.at);
            self.want_ping(None);
        }
    }

    /// Queues a ping to the device, for the server itself or for another session.
    pub(super) fn want_ping(&mut self, relay: Option<Relay>) {
        if let Phase::Open(open) = &mut self.phase {
            open.pings.wanted.push(relay);
        }
    }

    /// Sends the queued pings. If the device reads control so late that pings would only pile up, it drops them instead, and
    /// the sessions that asked for them answer TIMEOUT.
    pub(super) fn pump_pings(&mut self, queued: impl FnOnce() -> usize, now: Now) {
        let Phase::Open(open) = &mut self.phase else { return };
        if open.pings.wanted.is_empty() {
            return;
        }
        let wanted = std::mem::take(&mut open.pings.wanted);
        if queued() < LANE_QUEUE_BYTES {
            wanted.into_iter().for_each(|relay| self.ask(relay, now));
        }
    }

    /// Sends a ping. Who asks for one while the last is not answered waits for that answer, which comes no later, as long as
    /// the ping is not so old that its own asker was answered TIMEOUT. At the bound on unanswered pings the oldest is forgotten.
    fn ask(&mut self, relay: Option<Relay>, now: Now) {
        let Phase::Open(open) = &mut self.phase else { return };
        let asked = &mut open.pings.asked;
        let is_shared = |last: &&mut Asked| {
            last.relays.len() < PING_ASKERS_MAX && now.at.saturating_duration_since(last.at) < PING_RELAY_WITHIN
        };
        if relay.is_some()
            && let Some(last) = asked.last_mut().filter(is_shared)
        {
            return last.relays.extend(relay);
        }
        if asked.len() >= PINGS_ASKED_MAX {
            asked.remove(0);
        }
        // `request_time` names the ping, so it must be unique.
        let latest = asked.iter().map(|ping| ping.request_time + 1).max().unwrap_or(0);
        let request_time = now.unix_ms.max(latest);
        asked.push(Asked { request_time, at: now.at, relays: Vec::from_iter(relay) });
        let ping = PingPong {
            to: Some(open.user.device_identity(&open.device)),
            r#type: Exchange::Request.code(),
            status: PingStatus::Pending.code(),
            request_time,
            ..PingPong::default()
        };
        self.send(Lane::Control, 0, Payload::PingpongMessage(ping));
    }

    pub(super) fn pingpong(&mut self, origin: Origin, ping: PingPong, now: Now) -> Result<(), Fault> {
        match Exchange::from_code(ping.r#type) {
            None => Err(Fault::malformed("type is 1 REQUEST or 2 RESPONSE")),
            Some(Exchange::Response) => {
                self.answered(&ping, now);
                Ok(())
            }
            Some(Exchange::Request) => self.ping_request(origin, ping, now),
        }
    }

    /// The round trip is measured on the server's own monotonic clock. An answer that names no ping is ignored.
    fn answered(&mut self, ping: &PingPong, now: Now) {
        let Phase::Open(open) = &mut self.phase else { return };
        let Some(index) = open.pings.asked.iter().position(|asked| asked.request_time == ping.request_time) else {
            return;
        };
        let Asked { at, relays, .. } = open.pings.asked.remove(index);
        let rtt = now.at.duration_since(at);
        self.services.metrics.ping_rtt.record(rtt);
        for relay in relays.into_iter().filter(|relay| !relay.answered.swap(true, Ordering::Relaxed)) {
            relay.asker.notify(crate::hub::Notice::Pong(relay.number, rtt));
        }
    }

    fn ping_request(&mut self, origin: Origin, ping: PingPong, now: Now) -> Result<(), Fault> {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        // A device without a user is refused as no identity: the answer echoes only what was checked.
        let Some(to) = ping.to.as_ref().filter(|to| !to.eid.is_empty() || !to.connection_resource_id.is_empty()) else {
            self.pong(origin, ping, PingStatus::Ok, None, now);
            return Ok(());
        };
        let user = Eid::parse(&to.eid)?;
        let device = Some(to.connection_resource_id.as_str()).filter(|device| !device.is_empty());
        let device = device.map(DeviceId::parse).transpose()?;
        let own = user == open.user;
        if own && device.as_ref().is_none_or(|device| *device == open.device) {
            self.pong(origin, ping, PingStatus::Ok, None, now);
        } else if own {
            self.relay(origin, &user, device.as_ref(), ping, now);
        } else {
            let asker = open.user.clone();
            self.call(Call::Relation(origin, user, asker, Purpose::Ping(device, Box::new(ping))));
        }
        Ok(())
    }

    /// The store has answered whether the device's owner admits the asker: relays the ping, or answers FAIL.
    pub(super) fn relay_if_allowed(
        &mut self,
        origin: Origin,
        (user, device): (&Eid, Option<&DeviceId>),
        ping: PingPong,
        relation: &Relation,
        now: Now,
    ) {
        match relation.access {
            Some(_) => self.relay(origin, user, device, ping, now),
            None => self.pong(origin, ping, PingStatus::Fail, None, now),
        }
    }

    fn relay(&mut self, origin: Origin, user: &Eid, device: Option<&DeviceId>, ping: PingPong, now: Now) {
        let Phase::Open(open) = &mut self.phase else { return };
        let pings = &mut open.pings;
        if pings.relayed.len() >= PINGS_RELAYED_MAX {
            let wait = PING_RELAY_WITHIN.as_millis().to_string();
            self.services.metrics.rate_limited[LimitKind::Pings].increment(1);
            return self.refuse(origin, Fault::new(ErrorCode::TooFast, "too many pings under way").details(wait));
        }
        pings.numbers += 1;
        let relay = Relay { number: pings.numbers, asker: self.signal.clone(), answered: Arc::default() };
        if self.services.hub.relay_ping(user, device, &relay) {
            pings.relayed.push(Relayed { number: pings.numbers, due: now.at + PING_RELAY_WITHIN, origin, ping });
        } else {
            self.pong(origin, ping, PingStatus::Unreachable, None, now);
        }
    }

    /// A device has answered a relayed ping. If all devices of a user were pinged, this is the first answer.
    pub(super) fn relayed(&mut self, number: u64, rtt: Duration, now: Now) {
        let Phase::Open(open) = &mut self.phase else { return };
        if let Some(index) = open.pings.relayed.iter().position(|relayed| relayed.number == number) {
            let Relayed { origin, ping, .. } = open.pings.relayed.remove(index);
            self.pong(origin, ping, PingStatus::Ok, Some(rtt), now);
        }
    }

    pub(super) fn relay_timeouts(&mut self, now: Now) {
        while let Phase::Open(open) = &mut self.phase
            && open.pings.relayed.first().is_some_and(|oldest| oldest.due <= now.at)
        {
            let Relayed { origin, ping, .. } = open.pings.relayed.remove(0);
            self.pong(origin, ping, PingStatus::Timeout, None, now);
        }
    }

    /// Answers a ping with the round trip measured to another device, or else with the difference of the two clocks.
    fn pong(&mut self, origin: Origin, ping: PingPong, status: PingStatus, measured: Option<Duration>, now: Now) {
        let rtt = match (status, measured) {
            (_, Some(rtt)) => i64::try_from(rtt.as_millis()).unwrap_or(i64::MAX),
            (PingStatus::Ok, None) => now.unix_ms.saturating_sub(ping.request_time).max(0),
            _ => 0,
        };
        let answer = PingPong {
            r#type: Exchange::Response.code(),
            status: status.code(),
            response_time: now.unix_ms,
            rtt,
            ..ping
        };
        self.send(Lane::Control, origin.request_id, Payload::PingpongMessage(answer));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::hub::{Notice, Relay, Signal};
    use crate::limits::{LANE_QUEUE_BYTES, PING_ASKERS_MAX, PING_RELAY_WITHIN, PINGS_ASKED_MAX, PINGS_RELAYED_MAX};
    use crate::session::testing::{Bare, House, payload};
    use crate::session::{Now, Output};
    use crate::store::testing::{device, eid};
    use crate::wire::proto::{PingPong, SyncAck};
    use crate::wire::{ErrorCode, Lane, Payload};

    fn relay(number: u64, asker: &Arc<Signal>) -> Relay {
        Relay { number, asker: asker.clone(), answered: Arc::default() }
    }

    fn pings(sent: Vec<(Lane, Payload)>) -> Vec<PingPong> {
        let pings = sent.into_iter().map(|(_, ping)| match ping {
            Payload::PingpongMessage(ping) => ping,
            other => panic!("{other:?}"),
        });
        pings.collect()
    }

    fn answer(phone: &mut Bare, ping: &PingPong) {
        let pong = PingPong { r#type: 2, status: 2, ..ping.clone() };
        phone.hear(Lane::Control, Payload::PingpongMessage(pong));
    }

    fn answered(asker: &Signal) -> Vec<u64> {
        let numbers = std::iter::from_fn(|| asker.take_notice()).map(|notice| match notice {
            Notice::Pong(number, _) => number,
            other => panic!("{other:?}"),
        });
        numbers.collect()
    }

    #[tokio::test]
    async fn who_asks_before_the_device_has_answered_gets_the_same_answer() {
        let house = House::new(|_, _| ());
        let mut phone = house.bare(&eid("alice"), &device("phone")).await;
        let (asker, other, now) = (Arc::new(Signal::default()), Arc::new(Signal::default()), Now::system());
        let numbers = (1..=PINGS_RELAYED_MAX as u64).collect::<Vec<_>>();
        for asker in [&asker, &other] {
            numbers.iter().for_each(|number| phone.session.notice(Notice::Ping(relay(*number, asker)), now));
        }
        let asked = pings(phone.settle().await.0);
        assert_eq!(asked.len(), 1);
        answer(&mut phone, &asked[0]);
        assert_eq!((answered(&asker), answered(&other)), (numbers.clone(), numbers));
        // The next one is asked for its own answer.
        phone.session.notice(Notice::Ping(relay(99, &asker)), now);
        assert_eq!(pings(phone.settle().await.0).len(), 1);
    }

    #[tokio::test]
    async fn of_more_pings_than_a_device_may_leave_unanswered_the_oldest_is_forgotten() {
        let house = House::new(|_, _| ());
        let mut phone = house.bare(&eid("alice"), &device("phone")).await;
        let now = Now::system();
        let askers: Vec<Arc<Signal>> = (0..=PINGS_ASKED_MAX).map(|_| Arc::default()).collect();
        for asker in &askers {
            let full = 0..PING_ASKERS_MAX as u64;
            full.for_each(|number| phone.session.notice(Notice::Ping(relay(number, asker)), now));
        }
        let asked = pings(phone.settle().await.0);
        assert_eq!(asked.len(), PINGS_ASKED_MAX + 1, "a ping has room for so many askers");
        asked.iter().for_each(|ping| answer(&mut phone, ping));
        let heard: Vec<_> = askers.iter().map(|asker| answered(asker).len()).collect();
        assert_eq!((heard[0], &heard[1..]), (0, &[PING_ASKERS_MAX; PINGS_ASKED_MAX][..]));
    }

    #[tokio::test]
    async fn a_ping_that_timed_out_is_not_waited_for_again() {
        let house = House::new(|_, _| ());
        let mut phone = house.bare(&eid("alice"), &device("phone")).await;
        let (asker, now) = (Arc::new(Signal::default()), Now::system());
        phone.session.notice(Notice::Ping(relay(1, &asker)), now);
        assert_eq!(pings(phone.settle().await.0).len(), 1);
        phone.session.notice(Notice::Ping(relay(2, &asker)), now);
        let later = Now::system();
        phone.session.pump(|_| 0, Now { at: later.at + PING_RELAY_WITHIN, ..later });
        let [Output::Send(_, frame)] = &phone.outputs()[..] else { panic!("it is pinged again") };
        let Payload::PingpongMessage(ping) = payload(frame) else { panic!() };
        answer(&mut phone, &ping);
        assert_eq!(answered(&asker), [2]);
    }

    #[tokio::test]
    async fn a_device_that_has_too_many_pings_relayed_is_told_to_wait_and_that_is_counted() {
        let house = House::new(|_, _| ());
        let alice = eid("alice");
        let mut phone = house.bare(&alice, &device("phone")).await;
        let _desk = house.bare(&alice, &device("desk")).await;
        let to = Some(alice.device_identity(&device("desk")));
        for _ in 0..=PINGS_RELAYED_MAX {
            let ping = PingPong { to: to.clone(), r#type: 1, status: 1, ..PingPong::default() };
            phone.hear(Lane::Control, Payload::PingpongMessage(ping));
        }
        let (answers, _) = phone.settle().await;
        let [(Lane::Control, Payload::ErrorMessage(refusal))] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!((refusal.code, refusal.details.as_str()), (ErrorCode::TooFast.code(), "5000"));
        assert!(house.services.metrics.render().contains("bimip_rate_limited_total{limit=\"pings\"} 1\n"));
    }

    #[tokio::test]
    async fn a_device_that_does_not_read_control_is_pinged_no_more_until_it_does() {
        let house = House::new(|settings, _| settings.ping_interval = Duration::ZERO);
        let mut phone = house.bare(&eid("alice"), &device("phone")).await;
        let mut pings = |queued: usize| {
            let now = Now::system();
            (0..3).for_each(|number| phone.session.notice(Notice::Ping(relay(number, &Arc::default())), now));
            // And one of the server's own.
            phone.session.tick(now);
            phone.session.pump(|_| queued, now);
            let outputs = phone.outputs();
            let pings = outputs.iter().map(|output| match output {
                Output::Send(_, frame) => assert!(matches!(payload(frame), Payload::PingpongMessage(_))),
                other => panic!("{other:?}"),
            });
            pings.count()
        };
        assert_eq!(pings(LANE_QUEUE_BYTES - 1), 2, "one for those who ask, and one of its own");
        assert_eq!(pings(LANE_QUEUE_BYTES), 0);
        assert_eq!(pings(0), 1, "what it was not asked then is not asked later");
    }

    #[tokio::test]
    async fn a_device_is_pinged_an_interval_after_its_last_frame() {
        let interval = Duration::from_secs(30);
        let house = House::new(|settings, _| settings.ping_interval = interval);
        let mut phone = house.bare(&eid("alice"), &device("phone")).await;
        let opened = Now::system();
        let after = |time: Duration| Now { at: opened.at + time, ..opened };
        phone.hear_at(Lane::Chat, Payload::SyncAck(SyncAck::default()), after(interval / 2));
        phone.outputs();
        let mut pings = |now| {
            phone.session.tick(now);
            phone.session.pump(|_| 0, now);
            phone.outputs().len()
        };
        assert_eq!((pings(after(interval)), pings(after(interval * 3 / 2))), (0, 1));
    }
}
