//! What happens to the phone's network in each scenario.

use std::time::Duration;

use crate::link::Profile;

/// The gap of a handover: the time between the last packet on the old path and the first on the new one.
const GAP: Duration = Duration::from_millis(300);

/// One row of the comparison.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) words: &'static str,
    pub(super) wifi: Profile,
    pub(super) lte: Profile,
    pub(super) event: Event,
}

/// What happens while the phone talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The profile alone.
    Nothing,
    /// From Wi-Fi to LTE. If `hinted`, the application calls `network_changed` once the route has changed, as after a
    /// notice of a phone's operating system; otherwise it is not told.
    HandOver { gap: Duration, hinted: bool },
    /// The NAT forgets its mappings; the phone is not told.
    Rebinding,
    /// The radio is off for a while; the application is told when it is back.
    Tunnel(Duration),
    /// A device that has never connected before starts with a full outbox.
    ColdStart,
}

impl Event {
    /// Whether this repetition, counted from zero, is measured: the way back to Wi-Fi is another path, and only prepares the
    /// next handover.
    pub(super) fn counts(self, number: u32) -> bool {
        !matches!(self, Event::HandOver { .. }) || number.is_multiple_of(2)
    }

    /// How often the event happens in a trial, and how long the talk goes on after each time.
    pub(super) fn repeats(self) -> (u32, Duration) {
        match self {
            Event::Nothing => (0, Duration::ZERO),
            Event::HandOver { hinted: true, .. } | Event::Rebinding => (3, Duration::from_secs(6)),
            // Longer than it may take to give up a silent path.
            Event::HandOver { hinted: false, .. } => (1, Duration::from_secs(24)),
            Event::Tunnel(_) => (1, Duration::from_secs(8)),
            Event::ColdStart => (4, Duration::ZERO),
        }
    }
}

const LOSSY: Scenario =
    Scenario { name: "clean", words: "40 ms", wifi: Profile::CLEAN, lte: Profile::CLEAN, event: Event::Nothing };

const fn lossy(name: &'static str, words: &'static str, profile: Profile) -> Scenario {
    Scenario { name, words, wifi: profile, lte: profile, event: Event::Nothing }
}

const fn moving(name: &'static str, words: &'static str, event: Event) -> Scenario {
    Scenario { name, words, wifi: Profile::WIFI, lte: Profile::LTE, event }
}

/// All scenarios, in the order of the report.
pub(super) const SCENARIOS: [Scenario; 13] = [
    LOSSY,
    lossy("loss1", "40 ms, 1 % lost each way", Profile::LOSS_1),
    lossy("loss2", "40 ms, 2 % lost each way", Profile::LOSS_2),
    lossy("loss5", "40 ms, 5 % lost each way", Profile::LOSS_5),
    lossy("bursty3", "40 ms, 3 % lost each way in bursts of 5", Profile::BURSTY_3),
    lossy("3g", "150 ms, 1.5 Mbit/s, 2 % lost each way", Profile::THIRD_GENERATION),
    moving(
        "handover",
        "Wi-Fi to LTE with a gap of 300 ms, the application is told",
        Event::HandOver { gap: GAP, hinted: true },
    ),
    moving("handover-untold", "the same, nobody is told", Event::HandOver { gap: GAP, hinted: false }),
    moving("nat", "the NAT forgets its mappings, nobody is told", Event::Rebinding),
    moving("tunnel", "no radio for 10 s", Event::Tunnel(Duration::from_secs(10))),
    moving("away", "no radio for 30 s, longer than a connection lives", Event::Tunnel(Duration::from_secs(30))),
    moving("cold", "a new device with 100 texts in its outbox", Event::ColdStart),
    Scenario {
        event: Event::ColdStart,
        ..lossy("cold-3g", "the same over 150 ms, 1.5 Mbit/s, 2 % lost each way", Profile::THIRD_GENERATION)
    },
];

impl Scenario {
    /// The round trip of the path in use after the event, without queues.
    pub(super) fn round_trip(&self) -> Duration {
        let profile = match self.event {
            Event::HandOver { .. } => self.lte,
            _ => self.wifi,
        };
        profile.up.delay + profile.down.delay
    }
}
