//! What must be true of every story once it has settled (README.md, What it promises).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::store::{AckTarget, Acknowledged, EntryBody, HistoryQuery, Kv, LogEntry, Message, read_history, read_log};
use crate::wire::{AckStatus, ChatId, Eid, MessageId, Sequence};

use super::Violation;
use super::chronicle::{shown, told};
use super::device::Device;
use super::world::World;

type Log = BTreeMap<u64, Arc<LogEntry>>;
/// The states of messages as one of their parties follows them through a log.
type States = BTreeMap<MessageId, (ChatId, u64, Eid, Option<(AckStatus, i64)>)>;

pub(super) fn check(world: &World) -> Result<(), Violation> {
    if world.waiting() > 0 {
        return Err(format!("{} messages are held back for ever", world.waiting()));
    }
    let none = Log::new();
    for user in &world.users {
        let log = world.chronicle.logs.get(user).unwrap_or(&none);
        stored_as_it_happened(world, user, log)?;
        numbered_without_gap(world, user, log)?;
        messages_are_whole(user, log, world)?;
    }
    versions_have_no_gap(world)?;
    for device in &world.devices {
        device_has_seen(world, device, world.chronicle.logs.get(&device.user).unwrap_or(&none))?;
    }
    acknowledgments_agree(world)
}

/// Everything that was durable once and was not trimmed is stored now, and nothing else is.
fn stored_as_it_happened(world: &World, user: &Eid, log: &Log) -> Result<(), Violation> {
    let view = world.memory.view();
    let stored = read_log(&*view, user, Sequence::ZERO, usize::MAX, usize::MAX).map_err(|error| error.to_string())?;
    let head = log.last_key_value().map_or(0, |(head, _)| *head);
    // A crash may have restored entries that had been trimmed.
    let trimmed = trimmed(world, user).min(stored.first().map_or(head, |entry| entry.sequence.get() - 1));
    let stored: Vec<_> = stored.iter().map(|entry| told(entry)).collect();
    let happened: Vec<_> =
        log.iter().filter(|(sequence, _)| **sequence > trimmed).map(|(_, entry)| told(entry)).collect();
    if stored != happened {
        return Err(format!("{user}'s log is\n{stored:#?}\nand should be\n{happened:#?}"));
    }
    Ok(())
}

fn numbered_without_gap(world: &World, user: &Eid, log: &Log) -> Result<(), Violation> {
    let trimmed = trimmed(world, user);
    let missing = (1..).zip(log.keys()).find(|(expected, sequence)| expected != *sequence);
    match missing {
        Some((expected, _)) if expected > trimmed => Err(format!("{user}'s log has no entry {expected}")),
        _ => Ok(()),
    }
}

/// Every message is in its recipient's log once, and in its sender's log as often as it should be.
fn messages_are_whole(user: &Eid, log: &Log, world: &World) -> Result<(), Violation> {
    let mut counts: BTreeMap<MessageId, [usize; 4]> = BTreeMap::new();
    let mut last: BTreeMap<ChatId, u64> = BTreeMap::new();
    for entry in log.values() {
        let (message, kind): (&Message, usize) = match &entry.body {
            EntryBody::Received(message) => (message, 0),
            EntryBody::Accepted(message) => (message, 1),
            EntryBody::Copy(message) => (message, 2),
            EntryBody::Sent(message) => (message, 3),
            EntryBody::Acknowledged(_) => continue,
        };
        let party = if kind == 0 { &message.recipient } else { &message.sender };
        if party != user {
            return Err(format!("{user} has {} in its log, which is not its own", message.id));
        }
        counts.entry(message.id).or_default()[kind] += 1;
        // Copies and received messages, which devices see as messages: their versions rise.
        if kind != 1 {
            let before = last.insert(message.chat, message.version.get()).unwrap_or(0);
            if before >= message.version.get() {
                return Err(format!("{user} sees version {} after {before}", message.version));
            }
        }
    }
    for (id, counts) in counts {
        let whole = matches!(counts, [1, 0, 0, 0] | [0, 1, 1, 0] | [0, 0, 0, 1]);
        let released = world.chronicle.released.contains_key(&id.to_string());
        if !(whole && released) && trimmed(world, user) == 0 {
            return Err(format!("{user}: {id} is {counts:?} times received, accepted, copied, sent; {released}"));
        }
    }
    Ok(())
}

fn versions_have_no_gap(world: &World) -> Result<(), Violation> {
    let mut versions: BTreeMap<ChatId, Vec<u64>> = BTreeMap::new();
    for entry in world.chronicle.logs.values().flat_map(BTreeMap::values) {
        if let EntryBody::Accepted(message) | EntryBody::Sent(message) = &entry.body {
            versions.entry(message.chat).or_default().push(message.version.get());
        }
    }
    for (chat, mut versions) in versions {
        versions.sort_unstable();
        if let Some((expected, found)) = (1..).zip(&versions).find(|(expected, found)| expected != *found) {
            return Err(format!("chat {chat} has version {found} where {expected} should be"));
        }
    }
    Ok(())
}

/// Each device has seen its form of every entry, once and in order, and nothing else.
fn device_has_seen(world: &World, device: &Device, log: &Log) -> Result<(), Violation> {
    let trimmed = trimmed(world, &device.user);
    let mut seen = device.seen.clone();
    for (sequence, entry) in log {
        let Some(shown) = shown(entry, &device.id) else { continue };
        let got = seen.remove(&(*sequence as i64));
        match got {
            Some(got) if got == shown => {}
            None if *sequence <= trimmed => {}
            got => return Err(format!("{}: entry {sequence} is {shown}, seen {got:?}", device.name())),
        }
    }
    if let Some((sequence, shown)) = seen.pop_first() {
        return Err(format!("{} saw {shown} at {sequence}, which is no entry for it", device.name()));
    }
    for out in &device.outbox {
        let Some((answer, _)) = &out.answer else {
            if out.given_up {
                continue;
            }
            return Err(format!("{} never got an answer for {}", device.name(), out.local));
        };
        let id = answer.split(' ').nth(1).unwrap_or_default();
        let released = world.chronicle.released.get(id);
        if released.is_none_or(|message| message.recipient != out.to || message.local_id.as_str() != out.local) {
            return Err(format!("{}: {answer} is not in the log of {}", device.name(), out.to));
        }
    }
    Ok(())
}

/// States only move forward in each log, and all parties end with the same states.
fn acknowledgments_agree(world: &World) -> Result<(), Violation> {
    let mut ends: BTreeMap<&Eid, States> = BTreeMap::new();
    for user in &world.users {
        let mut states = States::new();
        for entry in world.chronicle.logs.get(user).into_iter().flat_map(BTreeMap::values) {
            match &entry.body {
                EntryBody::Acknowledged(state) => follow(&mut states, user, state, trimmed(world, user) > 0)?,
                EntryBody::Received(m) | EntryBody::Accepted(m) | EntryBody::Copy(m) | EntryBody::Sent(m) => {
                    states.entry(m.id).or_insert_with(|| (m.chat, m.version.get(), m.recipient.clone(), None));
                }
            }
        }
        ends.insert(user, states);
    }
    let view = world.memory.view();
    for (reader, states) in &ends {
        for peer in world.users.iter().filter(|peer| peer != reader) {
            let query = HistoryQuery {
                reader: (*reader).clone(),
                peer: peer.clone(),
                before: None,
                after: None,
                limit: 100_000,
                bytes_max: usize::MAX,
            };
            for message in read_history(&*view, &query).map_err(|error| error.to_string())? {
                let id = message.message.id;
                let followed = states.get(&id).and_then(|(.., state)| *state);
                if followed != message.acknowledged && trimmed(world, reader) == 0 {
                    return Err(format!("{reader} followed {id} to {followed:?}, stored {:?}", message.acknowledged));
                }
            }
        }
    }
    world.devices.iter().try_for_each(|device| confirmed_holds(device, &ends[&device.user], world))
}

fn follow(states: &mut States, user: &Eid, state: &Acknowledged, trimmed: bool) -> Result<(), Violation> {
    let mut moved = false;
    let covered = |id: &MessageId, (chat, version, recipient, _): &(ChatId, u64, Eid, _)| match &state.target {
        AckTarget::Message(target) => target == id,
        AckTarget::UpTo(target, up_to) => target == chat && recipient == &state.reader && *version <= up_to.get(),
    };
    for (id, known) in states.iter_mut() {
        if covered(id, known) && known.3.is_none_or(|(status, _)| status.code() < state.status.code()) {
            known.3 = Some((state.status, state.at));
            moved = true;
        }
    }
    // A repeat or a step back: neither belongs in a log.
    if moved || trimmed { Ok(()) } else { Err(format!("{user}'s log has {state:?}, which moves nothing forward")) }
}

/// What a device was told about its own acknowledgments is still true.
fn confirmed_holds(device: &Device, states: &States, world: &World) -> Result<(), Violation> {
    for told in &device.confirmed {
        for (id, (chat, version, recipient, state)) in states {
            let covered = id.to_string() == told.message_id
                || told.message_id.is_empty()
                    && chat.to_string() == told.chat_id
                    && *recipient == device.user
                    && *version as i64 <= told.up_to_version;
            let status = state.map_or(0, |(status, _)| status.code());
            if covered && status < told.status && trimmed(world, &device.user) == 0 {
                return Err(format!("{} was told {told:?}, and {id} is {status}", device.name()));
            }
        }
    }
    Ok(())
}

fn trimmed(world: &World, user: &Eid) -> u64 {
    world.trimmed.get(user).map_or(0, |trimmed| *trimmed as u64)
}
