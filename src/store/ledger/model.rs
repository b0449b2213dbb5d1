//! Random operations, crashes and restarts, checked against a model that keeps everything in plain lists.

use std::collections::BTreeMap;

use super::*;
use crate::random::Random;
use crate::store::audit::audit;
use crate::store::kv::View;
use crate::store::memory::{Fault, Memory};
use crate::store::read;
use crate::store::record::DeviceRecord;
use crate::store::testing::{LATER, device, eid, sign_out, text, told};
use crate::store::types::{AckTarget, Content, HistoryQuery};
use crate::wire::{AckStatus, ChatId, LocalId, Version};

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const DEVICES: [&str; 2] = ["phone", "tablet"];
const SEEDS: u64 = 150;
const STEPS: usize = 60;

#[derive(Clone)]
struct Sent {
    id: MessageId,
    sender: Eid,
    recipient: Eid,
    origin: DeviceId,
    ready: bool,
    /// Sequence in the recipient's log; zero: not released.
    received: u64,
    state: Option<(AckStatus, i64)>,
    delivered_at: i64,
}

#[derive(Clone, Default)]
struct Model {
    logs: BTreeMap<Eid, Vec<String>>,
    chats: BTreeMap<ChatId, Vec<Sent>>,
    locals: BTreeMap<(Eid, LocalId), (Eid, Content, MessageId, u64)>,
    devices: BTreeMap<(Eid, DeviceId), u64>,
    blocks: BTreeMap<(Eid, Eid), bool>,
}

impl Model {
    fn append(&mut self, user: &Eid, body: String, origin: Option<&DeviceId>) -> u64 {
        let log = self.logs.entry(user.clone()).or_default();
        let sequence = log.len() as u64 + 1;
        log.push(format!("{sequence} {body} from {}", origin.map_or("none", |device| device.as_str())));
        sequence
    }

    /// Applies an operation, and returns the expected answer in one line.
    fn apply(&mut self, op: &Op) -> String {
        match op {
            Op::Accept { message, release } => self.accept(message, *release),
            Op::Release(id) => {
                let chats: Vec<_> = self.chats.keys().copied().collect();
                for chat in chats {
                    if let Some(sent) = self.chats.get_mut(&chat).unwrap().iter_mut().find(|sent| sent.id == *id) {
                        sent.ready = true;
                        self.settle(chat);
                    }
                }
                "done".into()
            }
            Op::Acknowledge(ack) => self.acknowledge(ack),
            Op::OpenDevice(user, device, _) => {
                let head = self.logs.get(user).map_or(0, Vec::len);
                let cursor = self.devices.entry((user.clone(), device.clone())).or_default();
                format!("device at {cursor} of 0..{head}")
            }
            Op::AdvanceCursor(user, device, to) => {
                self.advance(user, device, to.get());
                "done".into()
            }
            Op::Revoke(revocation, Some(device)) => {
                self.devices.remove(&(revocation.target.user().clone(), device.clone()));
                "done".into()
            }
            Op::SetBlock { owner, subscriber, blocked } => {
                let place = self.blocks.entry((owner.clone(), subscriber.clone())).or_default();
                let changed = *place != *blocked;
                *place = *blocked;
                format!("flag {changed}")
            }
            other => panic!("{other:?}"),
        }
    }

    fn accept(&mut self, new: &NewMessage, release: bool) -> String {
        let name = (new.sender.clone(), new.local_id.clone());
        if let Some((recipient, content, id, sequence)) = self.locals.get(&name) {
            let same = *recipient == new.recipient && *content == new.content;
            return if same { format!("Known {id} at {sequence}") } else { StoreError::Conflict.to_string() };
        }
        if self.blocks.get(&(new.recipient.clone(), new.sender.clone())) == Some(&true) {
            return StoreError::Blocked.to_string();
        }
        let chat = ChatId::between(&new.sender, &new.recipient);
        let id = MessageId::new(new.received_at, new.entropy);
        let waits = self.chats.entry(chat).or_default().iter().any(|sent| sent.received == 0);
        let now = release && !waits;
        let kind = if now { "sent" } else { "accepted" };
        let sequence = self.append(&new.sender, format!("{kind} {id}"), Some(&new.device));
        let received = if now { self.append(&new.recipient, format!("received {id}"), None) } else { 0 };
        self.locals.insert(name, (new.recipient.clone(), new.content.clone(), id, sequence));
        let (sender, recipient) = (new.sender.clone(), new.recipient.clone());
        let (origin, ready) = (new.device.clone(), release);
        let chat = self.chats.get_mut(&chat).unwrap();
        chat.push(Sent { id, sender, recipient, origin, ready, received, state: None, delivered_at: 0 });
        format!("{} {id} v{} at {sequence}", if now { "Released" } else { "Waiting" }, chat.len())
    }

    /// Releases the messages that are ready and have no unreleased message before them.
    fn settle(&mut self, chat: ChatId) {
        for index in 0..self.chats[&chat].len() {
            let sent = self.chats[&chat][index].clone();
            if sent.received == 0 {
                if !sent.ready {
                    return;
                }
                let received = self.append(&sent.recipient, format!("received {}", sent.id), None);
                self.append(&sent.sender, format!("copy {}", sent.id), Some(&sent.origin));
                self.chats.get_mut(&chat).unwrap()[index].received = received;
            }
        }
    }

    /// Releases all messages, as start-up does.
    fn recover(&mut self) {
        let chats: Vec<_> = self.chats.keys().copied().collect();
        for chat in chats {
            for sent in self.chats.get_mut(&chat).unwrap() {
                sent.ready = true;
            }
            self.settle(chat);
        }
    }

    fn acknowledge(&mut self, ack: &Acknowledgment) -> String {
        let all = || self.chats.iter().flat_map(|(chat, sent)| sent.iter().map(move |sent| (*chat, sent)));
        let (chat, sender, target, range) = match ack.target {
            AckTarget::Message(id) => {
                let Some((chat, sent)) = all().find(|(_, sent)| sent.id == id && sent.received > 0) else {
                    return StoreError::NoSuchMessage.to_string();
                };
                if sent.recipient != ack.reader {
                    return StoreError::NotRecipient.to_string();
                }
                let at = self.chats[&chat].iter().position(|sent| sent.id == id).unwrap();
                (chat, sent.sender.clone(), ack.target.clone(), at..at + 1)
            }
            AckTarget::UpTo(chat, version) => {
                let Some(sent) = self.chats.get(&chat).filter(|sent| !sent.is_empty()) else {
                    return StoreError::NoSuchMessage.to_string();
                };
                let peer = match &sent[0] {
                    Sent { sender, recipient, .. } if *sender == ack.reader => recipient.clone(),
                    Sent { sender, recipient, .. } if *recipient == ack.reader => sender.clone(),
                    _ => return StoreError::NoSuchMessage.to_string(),
                };
                let released = sent.iter().take_while(|sent| sent.received > 0).count();
                let last = released.min(version.get() as usize);
                if last == 0 {
                    return StoreError::NoSuchMessage.to_string();
                }
                (chat, peer, AckTarget::UpTo(chat, Version::from(last as u64)), 0..last)
            }
        };
        let rows = &mut self.chats.get_mut(&chat).unwrap()[range];
        let (mut changed, mut newest) = (false, None);
        for sent in rows.iter_mut().filter(|sent| sent.recipient == ack.reader) {
            if sent.state.is_none_or(|(status, _)| status < ack.status) {
                if sent.state.is_none() {
                    sent.delivered_at = ack.at;
                }
                sent.state = Some((ack.status, ack.at));
                changed = true;
            }
            newest = Some(sent.clone());
        }
        let is_read = |sent: &&Sent| sent.state.is_some_and(|(status, _)| status == AckStatus::Read);
        let all_read = rows.iter().filter(|sent| sent.recipient == ack.reader).all(|sent| is_read(&sent));
        let (status, at) = match newest.as_ref().and_then(|sent| Some((sent, sent.state?))).filter(|_| !changed) {
            Some((_, read)) if all_read => read,
            Some((sent, _)) if ack.status == AckStatus::Delivered => (AckStatus::Delivered, sent.delivered_at),
            Some((_, stored)) => stored,
            None => (ack.status, ack.at),
        };
        if changed {
            let body = format!("{} {at} {target:?} by {} of {sender}", status.name(), ack.reader);
            self.append(&sender, body.clone(), None);
            self.append(&ack.reader, body, Some(&ack.device));
        }
        self.advance(&ack.reader, &ack.device, newest.map_or(0, |sent| sent.received));
        format!("{} {at} {target:?} {changed}", status.name())
    }

    fn advance(&mut self, user: &Eid, device: &DeviceId, to: u64) {
        let head = self.logs.get(user).map_or(0, Vec::len) as u64;
        if let Some(cursor) = self.devices.get_mut(&(user.clone(), device.clone())) {
            *cursor = to.min(head).max(*cursor);
        }
    }
}

fn answer(outcome: &Outcome) -> String {
    match outcome {
        Ok(Reply::Accepted(accepted)) if accepted.outcome == crate::store::AcceptOutcome::Known => {
            format!("Known {} at {}", accepted.message.id, accepted.sequence)
        }
        Ok(Reply::Accepted(accepted)) => {
            let (message, sequence) = (&accepted.message, accepted.sequence);
            format!("{:?} {} v{} at {sequence}", accepted.outcome, message.id, message.version)
        }
        Ok(Reply::Acknowledged(ack)) => {
            format!("{} {} {:?} {}", ack.status.name(), ack.at, ack.target, ack.changed)
        }
        Ok(Reply::Device(state)) => format!("device at {} of {}..{}", state.cursor, state.log.trimmed, state.log.head),
        Ok(Reply::Flag(flag)) => format!("flag {flag}"),
        Ok(Reply::Done) => "done".into(),
        Err(error) => error.to_string(),
    }
}

fn some_op(random: &mut Random, number: u64, model: &Model) -> Op {
    let ids: Vec<_> = model.chats.values().flatten().map(|sent| sent.id).collect();
    let user = random.of(&USERS);
    let peer = random.of(&USERS.into_iter().filter(|other| *other != user).collect::<Vec<_>>());
    let at_device = device(random.of(&DEVICES));
    match random.below(20) {
        0..7 => {
            let mut message = text(user, peer, number);
            message.device = at_device;
            // `message_id_local`s repeat, mostly with the same content.
            let name = random.below(40) as u64;
            message.local_id = LocalId::parse(&format!("n{name}")).unwrap();
            message.content = Content::Text(format!("{}", name + random.below(8) as u64 / 7));
            Op::Accept { message: Box::new(message), release: random.below(3) == 0 }
        }
        7..11 if !ids.is_empty() => Op::Release(random.of(&ids)),
        11..16 => {
            let chat = ChatId::between(&eid(user), &eid(peer));
            let target = match random.below(2) {
                0 if !ids.is_empty() => AckTarget::Message(random.of(&ids)),
                _ => AckTarget::UpTo(chat, Version::from(random.below(12) as u64)),
            };
            let status = random.of(&[AckStatus::Delivered, AckStatus::Read]);
            let reader = eid(random.of(&[user, user, peer, USERS[0]]));
            let at = number as i64;
            Op::Acknowledge(Acknowledgment { reader, device: at_device, target, status, at, received_at: at })
        }
        16 | 17 => Op::AdvanceCursor(eid(user), at_device, Sequence::from(random.below(30) as u64)),
        18 => Op::OpenDevice(eid(user), at_device, LATER),
        _ => match random.below(4) {
            0 => sign_out(user, at_device),
            _ => Op::SetBlock { owner: eid(user), subscriber: eid(peer), blocked: random.below(3) == 0 },
        },
    }
}

fn compare(model: &Model, view: &dyn View) {
    audit(view).unwrap();
    for user in USERS {
        let log = read::log(view, &eid(user), Sequence::ZERO, usize::MAX, usize::MAX).unwrap();
        let lines: Vec<_> = log.iter().map(|entry| told(entry)).collect();
        assert_eq!(lines, model.logs.get(&eid(user)).cloned().unwrap_or_default(), "log of {user}");
        for peer in USERS.into_iter().filter(|peer| *peer != user) {
            let query = HistoryQuery {
                reader: eid(user),
                peer: eid(peer),
                before: None,
                after: None,
                limit: 999,
                bytes_max: usize::MAX,
            };
            let page = read::history(view, &query).unwrap();
            let page: Vec<_> =
                page.iter().map(|row| (row.message.version.get(), row.message.id, row.acknowledged)).collect();
            let chat = model.chats.get(&ChatId::between(&eid(user), &eid(peer))).cloned().unwrap_or_default();
            let released = (1..).zip(&chat).filter(|(_, sent)| sent.received > 0);
            let expected: Vec<_> = released.map(|(version, sent)| (version, sent.id, sent.state)).collect();
            assert_eq!(page, expected, "history of {user} and {peer}");
        }
    }
    let waiting = model.chats.values().flatten().filter(|sent| sent.received == 0).count();
    assert_eq!(view.range(Space::Pending, &key::all(), Order::Ascending, 999).unwrap().len(), waiting);
}

/// Takes over the cursors that a restart has left: none is further than before, and no device is missing or new.
fn take_cursors(model: &mut Model, view: &dyn View, exact: bool) {
    assert_eq!(view.range(Space::Devices, &key::all(), Order::Ascending, 999).unwrap().len(), model.devices.len());
    for ((user, device), cursor) in &mut model.devices {
        let record = record::read::<DeviceRecord>(view, &key::device(user, device)).unwrap().expect("registered");
        assert!(if exact { record.cursor == *cursor } else { record.cursor <= *cursor });
        *cursor = record.cursor;
    }
}

#[derive(Debug, Default)]
struct Seen {
    crashes: [usize; 2],
    closes: usize,
    answers: BTreeMap<String, usize>,
}

fn story(seed: u64, seen: &mut Seen) {
    let mut random = Random::new(seed);
    let memory = Memory::new();
    let mut model = Model::default();
    // Caches from one that evicts all the time to one that never evicts.
    let ends = [1, 2, 100][(seed % 3) as usize];
    let open = |memory: &Memory| Ledger::open_caching(Arc::new(memory.clone()), Instant::now(), ends, drop).unwrap();
    let mut ledger = open(&memory);
    let mut number = 0;
    let mut armed = None;
    for _ in 0..STEPS {
        let mut restarted = false;
        let mut next = model.clone();
        let mut ops = Vec::new();
        let mut expected = Vec::new();
        for _ in 0..=random.below(5) {
            number += 1;
            let op = some_op(&mut random, number, &next);
            expected.push(next.apply(&op));
            ops.push(op);
        }
        if armed.is_none() && random.below(8) == 0 {
            let fault = random.of(&[Fault::Before, Fault::After]);
            memory.fail_after(0, fault);
            armed = Some(fault);
        }
        let committed = ledger.run(ops, Instant::now());
        if !ledger.has_failed() {
            let answers: Vec<_> = committed.outcomes.iter().map(answer).collect();
            assert_eq!(answers, expected);
            for answer in answers {
                let kind: String = answer.split(' ').take(1).collect();
                *seen.answers.entry(kind).or_default() += 1;
            }
            for (user, entry) in &committed.appended {
                assert_eq!(next.logs[user][entry.sequence.get() as usize - 1], told(entry));
            }
            let longer = |model: &Model| model.logs.values().map(Vec::len).sum::<usize>();
            assert_eq!(committed.appended.len(), longer(&next) - longer(&model));
            model = next;
        } else {
            assert!(committed.outcomes.iter().all(|outcome| matches!(outcome, Err(StoreError::Engine(_)))));
            let fault = armed.take().expect("only a fault fails a commit");
            if fault == Fault::After {
                model = next;
            }
            seen.crashes[usize::from(fault == Fault::After)] += 1;
            memory.crash();
            take_cursors(&mut model, &*memory.view(), false);
            ledger = open(&memory);
            model.recover();
            restarted = true;
        }
        if armed.is_none() && random.below(20) == 0 {
            ledger.flush_cursors().unwrap();
            memory.crash();
            take_cursors(&mut model, &*memory.view(), true);
            ledger = open(&memory);
            model.recover();
            seen.closes += 1;
            restarted = true;
        }
        // Comparing everything is most of the work, and an error in between is still visible later.
        if restarted || random.below(8) == 0 {
            compare(&model, &*memory.view());
        }
    }
    compare(&model, &*memory.view());
}

#[test]
fn random_operations_and_crashes_agree_with_the_model() {
    let mut seen = Seen::default();
    for seed in 0..SEEDS {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| story(seed, &mut seen)));
        if let Err(panic) = result {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
    // The stories are not trivial: all of this has happened in them.
    assert!(seen.crashes.iter().all(|crashes| *crashes > 50) && seen.closes > 50, "{seen:?}");
    for kind in ["Released", "Waiting", "Known", "delivered", "read", "device", "flag", "this", "no", "only", "not"] {
        assert!(seen.answers.contains_key(kind), "{kind}: {seen:?}");
    }
}
