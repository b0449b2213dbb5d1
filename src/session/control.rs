//! The control family: PingPong both ways (4.2, 5.3, profile 4).

use std::time::{Duration, Instant};

use crate::wire::proto::PingPong;
use crate::wire::{Eid, ErrorCode, Exchange, Lane, Payload, PingStatus};

use super::fault::Fault;
use super::{Now, Origin, Phase, Session};

/// When the client was last heard, and the ping that it has not answered.
pub(super) struct Pings {
    heard: Instant,
    /// `request_time` and the monotonic time of the last ping.
    asked: Option<(i64, Instant)>,
}

impl Pings {
    pub(super) fn new(now: Now) -> Pings {
        Pings { heard: now.at, asked: None }
    }

    pub(super) fn heard(&mut self, now: Now) {
        self.heard = now.at;
    }

    /// When the next ping is due: after an interval without a word, and not before an interval after the last one.
    pub(super) fn due(&self, interval: Duration) -> Instant {
        self.asked.map_or(self.heard, |(_, at)| at.max(self.heard)) + interval
    }
}

impl Session {
    pub(super) fn ping_if_due(&mut self, now: Now) {
        let interval = self.services.settings.ping_interval;
        let Phase::Open(open) = &mut self.phase else { return };
        if open.pings.due(interval) > now.at {
            return;
        }
        open.pings.asked = Some((now.unix_ms, now.at));
        let ping = PingPong {
            to: Some(open.user.device_identity(&open.device)),
            r#type: Exchange::Request.code(),
            status: PingStatus::Pending.code(),
            request_time: now.unix_ms,
            ..PingPong::default()
        };
        self.send(Lane::Control, 0, Payload::PingpongMessage(ping));
    }

    pub(super) fn pingpong(&mut self, origin: Origin, ping: PingPong, now: Now) -> Result<(), Fault> {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        match Exchange::from_code(ping.r#type) {
            None => Err(Fault::malformed("type is 1 REQUEST or 2 RESPONSE")),
            Some(Exchange::Response) => {
                // Measured on our own monotonic clock; an answer to anything but the last ping says nothing.
                if let Some((_, at)) = open.pings.asked.take_if(|(asked, _)| *asked == ping.request_time) {
                    self.services.metrics.ping_rtt.record(now.at.duration_since(at));
                }
                Ok(())
            }
            Some(Exchange::Request) => {
                if let Some(to) = ping.to.as_ref().filter(|to| !to.eid.is_empty()) {
                    let own_device =
                        to.connection_resource_id.is_empty() || to.connection_resource_id == open.device.as_str();
                    if Eid::parse(&to.eid)? != open.user || !own_device {
                        return Err(Fault::new(ErrorCode::Unsupported, "pings to other devices are not served"));
                    }
                }
                let answer = PingPong {
                    r#type: Exchange::Response.code(),
                    status: PingStatus::Ok.code(),
                    response_time: now.unix_ms,
                    rtt: now.unix_ms.saturating_sub(ping.request_time).max(0),
                    ..ping
                };
                self.send(Lane::Control, origin.request_id, Payload::PingpongMessage(answer));
                Ok(())
            }
        }
    }
}
