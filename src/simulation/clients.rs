//! The clients' ends of their links: signing in, sending, receiving, and losing the connection.

use crate::wire::proto::HistoryPage;
use crate::wire::{Lane, MessageScheme, Payload, envelope};

use super::Violation;
use super::device::{Device, Effect};
use super::link::{Link, Up};
use super::server::LinkId;
use super::world::World;

impl World {
    pub(super) fn connect(&mut self, device: usize, resume: bool, pipelined: bool) {
        self.abandon(device);
        let id = self.next_link;
        self.next_link += 1;
        let narrow = self.random.percent(self.narrow).then(|| self.random.within(0, 600));
        self.links.insert(id, Link::new(device, narrow));
        self.server.connect(id, self.time.now());
        let open = self.devices[device].open(id, resume, pipelined);
        let (name, highest) = (self.devices[device].name(), self.devices[device].highest);
        self.note(|| format!("{name} signs in on link {id}, resume {resume} from {highest}, pipelined {pipelined}"));
        self.send(device, Lane::Control, open, 0);
        let lane = self.link(id).lane(Lane::Chat);
        lane.up.push_back(Up::Opened);
    }

    /// The device drops its connection without telling the server.
    pub(super) fn abandon(&mut self, device: usize) {
        if let Some(old) = self.devices[device].link {
            if let Some(link) = self.links.get_mut(&old) {
                link.client_lost();
            }
            self.devices[device].offline();
            self.collect(old);
        }
    }

    pub(super) fn send(&mut self, device: usize, lane: Lane, payload: Payload, request_id: i64) {
        let Some(id) = self.devices[device].link else { return };
        let name = self.devices[device].name();
        if self.trace.is_some() {
            let words = format!("{payload:?}");
            self.note(|| format!("{name} sends {}", &words[..words.len().min(400)]));
        }
        let scheme = MessageScheme { request_id, ..envelope(payload) };
        let link = self.link(id);
        if !link.server {
            return;
        }
        let up = &mut link.lane(lane).up;
        if lane == Lane::Control && matches!(scheme.payload, Some(Payload::SessionOpen(_))) {
            up.push_back(Up::Opened);
        }
        up.push_back(Up::Frame(prost::Message::encode_to_vec(&scheme).into()));
    }

    pub(super) fn down(&mut self, link: LinkId, lane: Lane) -> Result<(), Violation> {
        let device = self.link(link).device;
        let Some(frame) = self.link(link).lane(lane).down.pop_front() else { return Ok(()) };
        if self.trace.is_some() {
            let scheme: MessageScheme = prost::Message::decode_length_delimited(&frame[..]).unwrap_or_default();
            let (words, name) = (format!("{scheme:?}"), self.devices[device].name());
            self.note(|| format!("{name} gets {}", &words[..words.len().min(500)]));
        }
        let effect = self.devices[device].frame(lane, &frame)?;
        match effect {
            Effect::Nothing | Effect::Failed => {}
            Effect::Page(page) => self.check_page(&page)?,
            Effect::Starts(at) => {
                let device = &mut self.devices[device];
                let trimmed = self.trimmed.get(&device.user).copied().unwrap_or(0);
                if at > trimmed {
                    return Err(format!("{} starts at {at}, only {trimmed} is trimmed", device.name()));
                }
                device.told_start = device.told_start.max(at);
            }
        }
        while !self.devices[device].unanswered.is_empty() && self.random.percent(self.answers) {
            self.answer(device);
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, device: usize) {
        if let Some(update) = self.devices[device].unanswered.pop_front() {
            self.send(device, Lane::Chat, Device::answer(update), 0);
        }
    }

    pub(super) fn client_sees(&mut self, link: LinkId) {
        let device = self.link(link).device;
        self.note(|| format!("link {link} is gone for its client"));
        self.link(link).client_lost();
        if self.devices[device].link == Some(link) {
            self.devices[device].offline();
        }
        self.collect(link);
    }

    /// Checks that a page shows only what has happened.
    fn check_page(&self, page: &HistoryPage) -> Result<(), Violation> {
        for message in &page.messages {
            let Some(happened) = self.chronicle.released.get(&message.message_id) else {
                return Err(format!("history shows {} before its release", message.message_id));
            };
            if happened.version.wire() != message.version || happened.chat.to_string() != page.chat_id {
                return Err(format!("history shows {message:?}, it was {happened:?}"));
            }
        }
        if !page.messages.is_sorted_by(|one, next| one.version + 1 == next.version) {
            return Err(format!("a page of {} has a hole", page.chat_id));
        }
        Ok(())
    }
}
