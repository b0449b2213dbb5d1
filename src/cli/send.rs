//! `bimip send`: sends one text and prints the server's answer.

use std::time::Duration;

use anyhow::anyhow;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::connect::{Account, Connection, seconds};
use super::limits::{SEND_WITHIN, WAIT_MAX};
use super::signals::Ending;
use super::{Failure, Usage, complain, say};
use crate::client::{Content, SendError, Sent};
use crate::wire::{Eid, Lane};

/// Send a text; returns once the server has it on disk
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connection: Connection,
    /// Recipient, local@domain
    #[arg(long, value_name = "EID")]
    to: Eid,
    /// The text, up to 16 KiB
    #[arg(long)]
    text: String,
    /// Give up after this many seconds [15]
    #[arg(long, value_name = "SECONDS", value_parser = |text: &str| seconds(text, WAIT_MAX))]
    timeout: Option<Duration>,
    /// Print the answer as a JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let account = self.connection.account("cli-send")?;
        let until = self.timeout.unwrap_or(SEND_WITHIN);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sent = runtime.block_on(send(&account, &self.to, self.text, until))?;
        let line = if self.json { as_json(&sent, &self.to) } else { as_line(&sent, &self.to) };
        if let Err(error) = say(&line) {
            // Not a failure: whoever takes it for one would send the message again.
            complain(&format!("{line}; standard output did not take this: {error}"), None);
        }
        Ok(())
    }
}

async fn send(account: &Account, to: &Eid, text: String, within: Duration) -> Result<Sent, Failure> {
    let until = Instant::now() + within;
    let mut ending = Ending::listen()?;
    // Messages are left for whoever listens as this device: this command neither takes nor acknowledges them.
    let (device, events) = account.builder().lanes(&[Lane::Control, Lane::Chat]).auto_sync(false).connect()?;
    drop(events);
    let _session = tokio::select! {
        reached = account.reach(&device, until) => reached?,
        signal = ending.next() => {
            device.close().await;
            return Err(anyhow!("stopped by {signal}: nothing was sent").into());
        }
    };
    let answer = timeout_at(until, device.send(device.draft(to, Content::Text(text))));
    let sent = tokio::select! {
        // What is answered already is not called unknown.
        biased;
        answer = answer => match answer {
            Ok(Ok(sent)) => Ok(sent),
            Ok(Err(error)) => Err(refused(account, error)),
            Err(_) => {
                let what = anyhow!("no answer within {} s: {}", within.as_secs_f64(), not_known(account));
                Err(Failure::new(what, "--timeout gives it longer"))
            }
        },
        signal = ending.next() => Err(anyhow!("stopped by {signal}: {}", not_known(account)).into()),
    };
    // Also without an answer: a session that is only dropped stays until it times out, and others see its user online.
    device.close().await;
    sent
}

fn refused(account: &Account, error: SendError) -> Failure {
    match error {
        SendError::Invalid(what) => Usage(what).into(),
        SendError::Closed(reason) => account.failure(&reason),
        SendError::Unanswered(reason) => {
            let Failure { reason, hint } = account.failure(&reason);
            Failure { reason: anyhow!("{reason}: {}", not_known(account)), hint }
        }
        SendError::Refused(refusal) => anyhow!("refused by {}: {refusal}", account.server).into(),
        other => other.into(),
    }
}

/// What tells somebody who would send it again that the recipient could get it twice.
fn not_known(account: &Account) -> String {
    format!("it is not known whether the message of {} was sent", account.eid)
}

fn as_line(sent: &Sent, to: &Eid) -> String {
    let ms = sent.latency.as_secs_f64() * 1e3;
    format!("sent to {to}: version {}, message {}, {ms:.1} ms", sent.version, sent.message_id)
}

fn as_json(sent: &Sent, to: &Eid) -> String {
    json!({
        "event": "sent",
        "to": to.as_str(),
        "version": sent.version.get(),
        "message_id": sent.message_id.to_string(),
        "message_id_local": sent.local_id.as_str(),
        "chat_id": sent.chat_id.to_string(),
        "sequence": sent.sequence.get(),
        "latency_ms": super::event_line::ms(sent.latency),
    })
    .to_string()
}
