//! The demo's record of what was sent and what arrived where, and its check that everything is right.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::timeline::Who;
use crate::client::{AckTarget, Acknowledged, Message, Sent};
use crate::wire::{AckStatus, LocalId, MessageId, Version};

/// A sent message; it has an id and a version once the server has answered.
struct Said {
    by: Who,
    at: Instant,
    numbered: Option<(MessageId, Version)>,
}

/// A copy that a device received.
struct Arrival {
    local_id: Option<LocalId>,
    version: Version,
    /// From the sender's call to this device's event; `None` if the message waited for the device.
    latency: Option<Duration>,
}

/// Everything the demo has recorded.
#[derive(Default)]
pub(super) struct Ledger {
    said: HashMap<LocalId, Said>,
    arrivals: HashMap<Who, Vec<Arrival>>,
    receipts: HashMap<Who, Vec<(AckTarget, AckStatus)>>,
    presence: HashMap<Who, i32>,
    connections: HashMap<Who, u32>,
    losses: HashMap<Who, u32>,
}

/// The results in numbers.
pub(super) struct Figures {
    pub(super) sent: usize,
    pub(super) copies: usize,
    pub(super) copies_due: usize,
    pub(super) delivered_receipts: usize,
    pub(super) read_receipts: usize,
    /// In ascending order.
    pub(super) latencies: Vec<Duration>,
}

impl Ledger {
    pub(super) fn say(&mut self, by: Who, local_id: LocalId) {
        self.said.insert(local_id, Said { by, at: Instant::now(), numbered: None });
    }

    pub(super) fn numbered(&mut self, sent: &Sent) {
        if let Some(said) = self.said.get_mut(&sent.local_id) {
            said.numbered = Some((sent.message_id, sent.version));
        }
    }

    pub(super) fn connected(&mut self, who: Who) {
        *self.connections.entry(who).or_default() += 1;
    }

    pub(super) fn lost(&mut self, who: Who) {
        *self.losses.entry(who).or_default() += 1;
    }

    /// Records an arrival; returns the latency unless the message waited for the device.
    pub(super) fn arrived(&mut self, who: Who, message: &Message, live: bool) -> Option<Duration> {
        let said = message.local_id.as_ref().and_then(|local_id| self.said.get(local_id));
        let latency = said.filter(|_| live).map(|said| message.received.saturating_duration_since(said.at));
        let arrival = Arrival { local_id: message.local_id.clone(), version: message.version, latency };
        self.arrivals.entry(who).or_default().push(arrival);
        latency
    }

    pub(super) fn acknowledged(&mut self, who: Who, receipt: &Acknowledged) {
        self.receipts.entry(who).or_default().push((receipt.target, receipt.status));
    }

    pub(super) fn presence(&mut self, who: Who, status: i32) {
        self.presence.insert(who, status);
    }

    // --- What to wait for -------------------------------------------------------------------------------------------

    pub(super) fn connections_of(&self, who: Who) -> u32 {
        self.connections.get(&who).copied().unwrap_or(0)
    }

    pub(super) fn losses_of(&self, who: Who) -> u32 {
        self.losses.get(&who).copied().unwrap_or(0)
    }

    pub(super) fn presence_at(&self, who: Who) -> Option<i32> {
        self.presence.get(&who).copied()
    }

    /// Whether the device has every message that another device sent.
    pub(super) fn is_complete(&self, who: Who) -> bool {
        self.arrivals_at(who) >= self.due_at(who).count()
    }

    /// Whether each sender has a receipt for each of its messages.
    pub(super) fn is_receipted(&self) -> bool {
        self.said.values().all(|said| {
            let known = self.receipts.get(&said.by).map_or(&[][..], Vec::as_slice);
            said.numbered.is_some_and(|(id, _)| {
                known.iter().any(|(target, status)| {
                    *target == AckTarget::Message(id) && matches!(status, AckStatus::Delivered | AckStatus::Read)
                })
            })
        })
    }

    pub(super) fn has_receipt(&self, who: Who, status: AckStatus) -> bool {
        self.receipts.get(&who).is_some_and(|receipts| receipts.iter().any(|(_, known)| *known == status))
    }

    pub(super) fn arrivals_at(&self, who: Who) -> usize {
        self.arrivals.get(&who).map_or(0, Vec::len)
    }

    fn due_at(&self, who: Who) -> impl Iterator<Item = (&LocalId, &Said)> {
        self.said.iter().filter(move |(_, said)| said.by != who)
    }

    // --- Judgement --------------------------------------------------------------------------------------------------

    /// What is wrong at a device; `None` if every message is there once and in the order of versions.
    pub(super) fn complaint(&self, who: Who) -> Option<String> {
        let mut due: Vec<_> =
            self.due_at(who).map(|(local_id, said)| (said.numbered.map(|(_, version)| version), local_id)).collect();
        due.sort_unstable_by_key(|(version, _)| *version);
        let arrivals = self.arrivals.get(&who).map_or(&[][..], Vec::as_slice);
        let came: Vec<_> = arrivals.iter().map(|arrival| (Some(arrival.version), arrival.local_id.as_ref())).collect();
        let matches = due.len() == came.len()
            && due.iter().zip(&came).all(|(due, came)| due.0 == came.0 && Some(due.1) == came.1);
        let versions = |list: &mut dyn Iterator<Item = Option<Version>>| {
            list.map(|version| version.map_or_else(|| "?".to_owned(), |version| version.to_string()))
                .collect::<Vec<_>>()
                .join(" ")
        };
        (!matches).then(|| {
            format!(
                "{} should have the versions {} and has {}",
                who.name(),
                versions(&mut due.iter().map(|due| due.0)),
                versions(&mut came.iter().map(|came| came.0)),
            )
        })
    }

    pub(super) fn figures(&self) -> Figures {
        let count = |status| {
            let senders = Who::DEVICES.iter().filter_map(|who| self.receipts.get(who).map(|list| (who, list)));
            let own = |who: &Who, target: &AckTarget| {
                self.said.values().any(|said| {
                    said.by == *who && said.numbered.is_some_and(|(id, _)| *target == AckTarget::Message(id))
                })
            };
            senders
                .flat_map(|(who, list)| list.iter().filter(move |(target, s)| *s == status && own(who, target)))
                .count()
        };
        let mut latencies: Vec<_> = self.arrivals.values().flatten().filter_map(|arrival| arrival.latency).collect();
        latencies.sort_unstable();
        Figures {
            sent: self.said.len(),
            copies: Who::DEVICES.iter().map(|who| self.arrivals_at(*who)).sum(),
            copies_due: Who::DEVICES.iter().map(|who| self.due_at(*who).count()).sum(),
            delivered_receipts: count(AckStatus::Delivered),
            read_receipts: count(AckStatus::Read),
            latencies,
        }
    }
}
