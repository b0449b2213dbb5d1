//! The figures of a run, as a table for people and as JSON.

use super::tally::Tally;
use super::{Args, Shape};
use crate::cli::bench::process::Usage;
use crate::cli::bench::report::{json, percentiles};
use crate::cli::{Failure, say};

/// The result of a run.
pub(super) struct Outcome {
    /// Messages delivered in the measured time, or receipted if receipts are on.
    pub(super) messages: u64,
    pub(super) sessions: usize,
    pub(super) tally: Tally,
    /// The server's usage before the sign-ins, after them, and at the start and end of the measured time.
    pub(super) usage: Option<[Usage; 4]>,
}

impl Outcome {
    fn cpu_seconds(&self) -> Option<f64> {
        self.usage.map(|[_, _, before, after]| after.cpu_seconds - before.cpu_seconds)
    }

    fn bytes_per_session(&self) -> Option<f64> {
        self.usage.map(|[before, signed_in, ..]| {
            signed_in.resident_bytes.saturating_sub(before.resident_bytes) as f64 / self.sessions.max(1) as f64
        })
    }

    pub(super) fn tell(&self, args: &Args) -> Result<(), Failure> {
        let per_second = self.messages as f64 / args.seconds as f64;
        // CPU microseconds per message are CPU seconds per million messages.
        let cpu = self.cpu_seconds().map(|seconds| seconds * 1e6 / self.messages.max(1) as f64);
        let per_session = self.bytes_per_session();
        let resident = self.usage.map(|[.., after]| after.resident_bytes);
        let Tally { sent, arrivals, cuts, changes, accepted, delivered, receipted, told, .. } = &self.tally;
        if args.json {
            let figures = serde_json::json!({
                "pairs": args.pairs, "rate": args.rate, "in_flight": args.in_flight, "size": args.size,
                "receipts": args.receipts, "answering": args.answering, "seconds": args.seconds,
                "transport": format!("{:?}", args.subject.transport()).to_lowercase(),
                "contacts": format!("{:?}", args.contacts).to_lowercase(), "users": args.users(), "devices": args.devices,
                "sessions": self.sessions, "idle": args.idle,
                "messages": self.messages, "messages_per_second": per_second, "sent_in_all": sent, "arrivals": arrivals,
                "server_cpu_us_per_message": cpu, "server_cpu_seconds_per_million": cpu,
                "server_resident_bytes": resident, "server_bytes_per_session": per_session,
                "accepted": json(accepted), "delivered": json(delivered), "receipted": json(receipted),
                "cut_off": cuts, "presence_changes": changes, "presence_told": json(told),
                "once_and_in_order": true,
            });
            return Ok(say(&figures.to_string())?);
        }
        let done = if args.receipts { "delivered and receipted" } else { "delivered" };
        let who = match args.contacts {
            Shape::Pairs => format!("{} pairs", args.pairs),
            Shape::Zipf => format!("{} users", args.users()),
        };
        say(&format!("{who}: {per_second:.0} durable messages a second {done}"))?;
        say(&format!("accepted   {}", percentiles(accepted)))?;
        say(&format!("delivered  {}", percentiles(delivered)))?;
        if args.receipts {
            say(&format!("receipted  {}", percentiles(receipted)))?;
        }
        if args.presence > 0.0 {
            say(&format!("presence   {}", percentiles(told)))?;
            say(&format!("           {changes} changes, {} times told", told.len()))?;
        }
        if args.reconnects > 0.0 {
            say(&format!("reconnects {cuts} times a device was cut off and came back"))?;
        }
        if let Some((cpu, per_session)) = cpu.zip(per_session) {
            say(&format!("server     {cpu:.1} CPU seconds for a million messages"))?;
            let kibibytes = per_session / 1024.0;
            say(&format!("           {kibibytes:.1} KiB of memory for each of {} sessions", self.sessions))?;
        }
        say(&format!("all {sent} messages arrived once and in order, {arrivals} at all devices together"))?;
        Ok(())
    }
}
