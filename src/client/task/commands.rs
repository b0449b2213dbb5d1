//! Handles the application's commands, one at a time.

use std::time::Instant;

use super::{Closing, Phase, Task, now};
use crate::client::device::Command;
use crate::client::error::{CloseReason, RequestError, SendError};
use crate::client::event::Event;
use crate::client::limits::CLOSE_WITHIN;
use crate::client::requests::{SendReply, answer};
use crate::wire::LocalId;

impl Task {
    pub(super) fn commands(&mut self, command: Option<Command>) {
        match command {
            Some(command) => self.command(command),
            // The last handle is gone, and with it every caller that could wait: also one of `close` that gave it up.
            None => self.closing = Some(Closing { until: Instant::now(), patient: false, connects: false }),
        }
    }

    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Send { draft, reply, at } => {
                let open = match &self.phase {
                    Phase::Stopped(reason) => Err(SendError::Closed(reason.clone())),
                    _ => Ok(()),
                };
                let kept = open
                    .and_then(|()| self.core.admit(&draft))
                    .and_then(|()| self.outbox.insert(&draft).map_err(|error| SendError::Outbox(error.to_string())));
                match kept {
                    Ok(()) => self.core.send(&draft, reply, at),
                    Err(error) => self.not_sent(draft.local_id, reply, error),
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

    /// The device has ended: what it did not take is not sent.
    pub(super) fn refuse_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Send { draft, reply, .. } = command {
                self.not_sent(draft.local_id, reply, SendError::Closed(CloseReason::Local));
            }
        }
    }

    /// Tells the caller that its message was not sent or, if it no longer waits, the application.
    fn not_sent(&mut self, local_id: LocalId, reply: SendReply, error: SendError) {
        if !answer(Some(reply), Err(error.clone()))
            && let Some(event) = Event::of_unsent(local_id, error)
        {
            self.inbox.add(event);
        }
    }
}
