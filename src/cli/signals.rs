//! The signals that ask a command to end.

use std::future::pending;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP, for a command that has something to say or to clean up before it ends.
pub(super) struct Ending {
    signals: [(&'static str, Option<Signal>); 3],
}

impl Ending {
    /// Takes these signals over. One that is ignored stays so, as SIGHUP under `nohup`.
    pub(super) fn listen() -> io::Result<Ending> {
        let ignored = ignored();
        let take = |kind: SignalKind| match ignored & (1 << (kind.as_raw_value() - 1)) {
            0 => signal(kind).map(Some),
            _ => Ok(None),
        };
        Ok(Ending {
            signals: [
                ("SIGINT", take(SignalKind::interrupt())?),
                ("SIGTERM", take(SignalKind::terminate())?),
                ("SIGHUP", take(SignalKind::hangup())?),
            ],
        })
    }

    /// Waits for the next of them; returns its name. Cancel safe.
    pub(super) async fn next(&mut self) -> &'static str {
        async fn one((name, signal): &mut (&'static str, Option<Signal>)) -> &'static str {
            match signal {
                Some(signal) => _ = signal.recv().await,
                None => pending().await,
            }
            name
        }
        let [interrupt, terminate, hang_up] = &mut self.signals;
        tokio::select! {
            name = one(interrupt) => name,
            name = one(terminate) => name,
            name = one(hang_up) => name,
        }
    }
}

/// The signals that this process ignores, one bit each; none where the kernel does not say.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
