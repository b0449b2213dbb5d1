//! Shared by the commands that sign in, make one request, print the answer and leave.

use std::time::Duration;

use anyhow::anyhow;
use tokio::time::{Instant, timeout_at};

use super::connect::{Account, Connection, seconds};
use super::limits::{ASK_WITHIN, WAIT_MAX};
use super::signals::Ending;
use super::{Failure, Usage};
use crate::client::{Device, RequestError};
use crate::wire::Lane;

/// The options of these commands.
#[derive(clap::Args)]
pub(super) struct Once {
    #[command(flatten)]
    connection: Connection,
    /// Give up after this many seconds [15]
    #[arg(long, value_name = "SECONDS", value_parser = |text: &str| seconds(text, WAIT_MAX))]
    timeout: Option<Duration>,
    /// Print JSON, one object a line
    #[arg(long)]
    pub(super) json: bool,
}

/// An answer, or why there is none: from the server, or before it was asked.
pub(super) type Asked<T> = Result<T, RequestError>;

impl Once {
    /// Signs in with the command's own device id and makes the request.
    pub(super) fn ask<T>(
        self,
        name: &'static str,
        lanes: &[Lane],
        ask: impl AsyncFnOnce(&Device) -> Asked<T>,
    ) -> Result<T, Failure> {
        let account = self.connection.account(name)?;
        let within = self.timeout.unwrap_or(ASK_WITHIN);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let until = Instant::now() + within;
            let mut ending = Ending::listen()?;
            // Messages are left for whoever listens as this device: this command does not take them.
            let (device, events) = account.builder().lanes(lanes).auto_sync(false).connect()?;
            drop(events);
            let asked = async {
                match timeout_at(until, ask(&device)).await {
                    Ok(answer) => answer.map_err(|error| refused(&account, error)),
                    Err(_) => {
                        let what = anyhow!("no answer within {} s: {NOT_KNOWN}", within.as_secs_f64());
                        Err(Failure::new(what, "--timeout gives it longer"))
                    }
                }
            };
            let answer = async {
                stoppable(account.reach(&device, until), &mut ending, NOTHING_ASKED).await?;
                stoppable(asked, &mut ending, NOT_KNOWN).await
            };
            let answer = answer.await;
            // Also after a refusal: a session that is only dropped stays until it times out, and others see its user online.
            device.close().await;
            answer
        })
    }
}

/// What a command that is told to end says of its request.
pub(super) const NOTHING_ASKED: &str = "nothing was asked";
pub(super) const NOT_KNOWN: &str = "it is not known whether it was done";

/// The outcome, unless the process is told to end before. Then the error says what that means, in `so` many words.
pub(super) async fn stoppable<T>(
    outcome: impl Future<Output = Result<T, Failure>>,
    ending: &mut Ending,
    so: &str,
) -> Result<T, Failure> {
    tokio::select! {
        // What is there already is not called unknown.
        biased;
        outcome = outcome => outcome,
        signal = ending.next() => Err(anyhow!("stopped by {signal}: {so}").into()),
    }
}

/// Why the server refused or failed, in one line.
pub(super) fn refused(account: &Account, error: RequestError) -> Failure {
    match error {
        RequestError::Invalid(what) => Usage(what).into(),
        RequestError::Closed(reason) => account.failure(&reason),
        RequestError::Refused(refusal) => anyhow!("refused by {}: {refusal}", account.server).into(),
        RequestError::Failed(why) if !why.is_empty() => anyhow!("not done by {}: {why}", account.server).into(),
        other => other.into(),
    }
}
