//! What nobody asked for: the server dies and starts again, and the retention deletes what is old.

use crate::store::{EntryBody, Fault, Key, Kv, LogEntry, Op, Pass, Retention};

use super::Violation;
use super::server::Server;
use super::world::World;

impl World {
    /// The server dies, and starts again from what a crash leaves.
    pub(super) fn restart(&mut self) -> Result<(), Violation> {
        self.note(|| "the server dies".into());
        let ids: Vec<_> = self.links.keys().copied().collect();
        self.server.conns.clear();
        for id in ids {
            self.link(id).server_lost();
            self.collect(id);
        }
        self.memory.crash();
        (self.pass, self.swept) = (None, Key::new());
        // It may die again while it starts.
        if self.random.percent(10) {
            self.memory.fail_after(0, self.random.of(&[Fault::Before, Fault::After]));
        }
        for _ in 0..2 {
            let seed = self.random.number();
            match Server::start(&self.memory, &self.time, seed) {
                Ok(server) => {
                    self.server = server;
                    self.memory.heal();
                    return self.chronicle.catch_up(&self.memory, &self.users);
                }
                Err(_) => self.memory.crash(),
            }
        }
        Err("the server does not come up".into())
    }

    pub(super) fn begin_pass(&mut self, older_than_ms: i64, entries_max_per_user: u64) {
        let retention = Retention { older_than_ms, entries_max_per_user };
        self.note(|| format!("the retention begins: {retention:?}"));
        self.pass = Some((retention, Pass::new(retention, self.time.now().unix_ms, self.swept.clone())));
    }

    /// The retention takes a step. It is a violation if it deletes what it must keep.
    pub(super) fn trim(&mut self) -> Result<(), Violation> {
        let Some((retention, mut pass)) = self.pass.take() else { return Ok(()) };
        let Some(ops) = pass.step(&*self.memory.view()).map_err(|error| error.to_string())? else {
            self.note(|| "the retention ends".into());
            self.swept = pass.swept();
            return Ok(());
        };
        self.pass = Some((retention, pass));
        for op in ops {
            self.note(|| format!("the retention wants {op:?}"));
            if let Op::TrimLog { user, rows, .. } = &op
                && let Some(up_to) = rows.last()
            {
                let log = &self.chronicle.logs[user];
                let head = log.last_key_value().map_or(0, |(head, _)| *head);
                let kept = |sequence: u64, at: i64| {
                    sequence + retention.entries_max_per_user > head && at >= retention.older_than_ms
                };
                let loss = log.range(..=up_to.get()).find(|(sequence, entry)| kept(**sequence, time_of(entry)));
                let before = self.trimmed.get(user).copied().unwrap_or(0);
                if let Some((sequence, _)) = loss.filter(|(sequence, _)| **sequence as i64 > before) {
                    return Err(format!("the retention takes {user}'s entry {sequence} of {head}: {retention:?}"));
                }
                self.trimmed.insert(user.clone(), before.max(up_to.wire()));
            }
            self.server.enqueue(op);
        }
        Ok(())
    }
}

/// When an entry happened for the retention, in Unix milliseconds.
fn time_of(entry: &LogEntry) -> i64 {
    match &entry.body {
        EntryBody::Acknowledged(state) => state.at,
        EntryBody::Received(m) | EntryBody::Accepted(m) | EntryBody::Copy(m) | EntryBody::Sent(m) => m.received_at,
    }
}
