//! Handles the application's commands, one at a time.

use std::time::Instant;

use super::{Closing, Phase, Task, now};
use crate::client::device::Command;
use crate::client::error::{RequestError, SendError};
use crate::client::limits::CLOSE_WITHIN;
use crate::client::requests::answer;

impl Task {
    pub(super) fn commands(&mut self, command: Option<Command>) {
        match command {
            Some(command) => self.command(command),
            // The last handle is gone, and with it every caller that could wait.
            None => {
                self.commands.close();
                self.closing.get_or_insert(Closing { until: Instant::now(), patient: false, connects: false });
            }
        }
    }

    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Send { draft, reply, at } => {
                if let Phase::Stopped(reason) = &self.phase {
                    answer(Some(reply), Err(SendError::Closed(reason.clone())));
                    return;
                }
                let kept = self
                    .core
                    .admit(&draft)
                    .and_then(|()| self.outbox.insert(&draft).map_err(|error| SendError::Outbox(error.to_string())));
                match kept {
                    Ok(()) => self.core.send(&draft, reply, at),
                    Err(error) => drop(answer(Some(reply), Err(error))),
                }
            }
            Command::Request { payload, lasting, reply } => match &self.phase {
                Phase::Stopped(reason) => drop(answer(Some(reply), Err(RequestError::Closed(reason.clone())))),
                _ => self.core.request(payload, lasting, reply),
            },
            Command::Tell { presence, reply } => {
                let told = match &self.phase {
                    Phase::Stopped(reason) => Err(RequestError::Closed(reason.clone())),
                    _ => self.core.tell(*presence, now()),
                };
                answer(Some(reply), told);
            }
            Command::Sync(sequence) => {
                // First count what the application took before this call.
                self.note_taken(now());
                if let Some(sequence) = self.core.sync(Some(sequence), false, Instant::now()) {
                    self.keep(|outbox| outbox.advance(sequence));
                }
            }
            Command::Rebind { to, reply } => drop(answer(Some(reply), self.rebind(to))),
            Command::Reconnect(reply) => {
                if matches!(self.phase, Phase::Waiting(_) | Phase::Stopped(_)) {
                    self.refusals = 0;
                    self.refused = None;
                    self.hinted = true;
                    self.dial();
                }
                answer(Some(reply), ());
            }
            Command::PathRtt(reply) => {
                let rtt = match &self.phase {
                    Phase::Linked(link) => link.rtt(),
                    _ => None,
                };
                answer(Some(reply), rtt);
            }
            Command::Close { connects } => {
                self.closing.get_or_insert(Closing { until: Instant::now() + CLOSE_WITHIN, patient: true, connects });
            }
        }
    }
}
