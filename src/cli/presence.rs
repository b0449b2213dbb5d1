//! `bimip presence`: sets one's own presence, asks for another user's, or watches everybody's.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::connect::{Account, Connection, seconds};
use super::event_line::{Line, clock};
use super::limits::{ASK_WITHIN, WAIT_MAX};
use super::listen::Stop;
use super::once::{NOT_KNOWN, NOTHING_ASKED, refused, stoppable};
use super::printer::Printer;
use super::signals::Ending;
use super::{Failure, say};
use crate::client::{CloseReason, Device, Event, Events, Presence, RequestError, State};
use crate::clock::Now;
use crate::wire::{AwarenessStatus, Eid, Lane, Sequence};

/// Set or show your presence, ask for somebody's, or watch everybody's
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    connection: Connection,
    /// What others see from now on; all but online and idle apply to all your devices until one of them sets online
    #[arg(long, value_name = "STATUS")]
    set: Option<Own>,
    /// Your location in degrees, shown to subscribers who may see it; with --set
    #[arg(long, value_name = "LAT,LON", requires = "set", allow_hyphen_values = true, value_parser = location)]
    location: Option<(f64, f64)>,
    /// Whose presence to print [your own]
    #[arg(long, value_name = "EID")]
    of: Option<Eid>,
    /// Print every change that you may see, as it comes; you are online meanwhile
    #[arg(long)]
    watch: bool,
    /// How long to watch [until interrupted]
    #[arg(long = "for", value_name = "SECONDS", requires = "watch", value_parser = |text: &str| seconds(text, WAIT_MAX))]
    duration: Option<Duration>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Own {
    Online,
    Away,
    Busy,
    Dnd,
    Invisible,
    Idle,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let account = self.connection.account("cli-presence")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            // Do not move the cursor: messages are for whoever listens as this device.
            let lanes = [Lane::Control, Lane::Presence];
            let (device, events) = account.builder().lanes(&lanes).auto_sync(false).connect()?;
            let until = Instant::now() + ASK_WITHIN;
            let mut ending = Ending::listen()?;
            let about = self.of.clone().unwrap_or_else(|| device.eid().clone());
            let asked = async {
                if let Some(set) = self.set {
                    device.set_presence(set.status(), true, self.location).await?;
                }
                // On the same lane behind the change, so that the answer shows that the server has applied it.
                device.presence_of(&about).await
            };
            let answered = async {
                if !self.watch || self.of.is_some() || self.set.is_some() {
                    let presence = timeout_at(until, asked).await.unwrap_or(Err(RequestError::TimedOut));
                    let presence = presence.map_err(|error| refused(&account, error))?;
                    say(&if self.json { as_json(&about, presence) } else { as_line(&about, presence) })?;
                }
                Ok(())
            };
            let told = async {
                stoppable(account.reach(&device, until), &mut ending, NOTHING_ASKED).await?;
                stoppable(answered, &mut ending, NOT_KNOWN).await?;
                match self.watch {
                    true => watch(&account, &device, events, Stop::new(self.duration, ending)?, self.json).await,
                    false => Ok(()),
                }
            };
            let told = told.await;
            // Also after a refusal: a session that is only dropped stays until it times out, and others see its user online.
            device.close().await;
            told
        })
    }
}

async fn watch(
    account: &Account,
    device: &Device,
    mut events: Events,
    mut stop: Stop,
    json: bool,
) -> Result<(), Failure> {
    let (mut state, printer) = (device.state(), Printer::start()?);
    while stop.overdue().await.is_none() {
        let event = tokio::select! {
            // Events that have come already are printed before watching ends.
            biased;
            event = events.next() => event,
            _ = state.changed() => {
                // A device that stops while it has no session has no event for that.
                if let State::Closed(reason) = &*state.borrow_and_update() {
                    return Err(account.failure(reason));
                }
                continue;
            }
            _ = stop.wanted() => return Ok(()),
        };
        match event {
            Some(event @ (Event::Presence(_) | Event::Connected(_) | Event::Disconnected(_) | Event::Refused(_))) => {
                let line = Line { event: &event, at: Now::system().unix_ms, head: Sequence::ZERO };
                if printer.print(if json { line.json() } else { line.words() }, &mut stop).await?.is_some() {
                    return Ok(());
                }
            }
            Some(_) => {}
            None => return Err(account.failure(&CloseReason::Local)),
        }
    }
    Ok(())
}

impl Own {
    fn status(self) -> AwarenessStatus {
        match self {
            Own::Online => AwarenessStatus::Online,
            Own::Away => AwarenessStatus::Away,
            Own::Busy => AwarenessStatus::Busy,
            Own::Dnd => AwarenessStatus::DoNotDisturb,
            Own::Invisible => AwarenessStatus::Invisible,
            Own::Idle => AwarenessStatus::Idle,
        }
    }
}

fn location(text: &str) -> Result<(f64, f64), String> {
    let parsed = text.split_once(',').and_then(|(latitude, longitude)| {
        Some((latitude.trim().parse::<f64>().ok()?, longitude.trim().parse::<f64>().ok()?))
    });
    match parsed {
        Some((latitude, longitude)) if latitude.abs() <= 90.0 && longitude.abs() <= 180.0 => Ok((latitude, longitude)),
        _ => Err("must be degrees, as in 52.52,13.40".to_owned()),
    }
}

fn as_json(eid: &Eid, presence: Presence) -> String {
    json!({
        "event": "presence",
        "at": Now::system().unix_ms,
        "from": eid.as_str(),
        "status": presence.status.name(),
        "last_seen": presence.last_seen,
        "latitude": presence.location.map(|(latitude, _)| latitude),
        "longitude": presence.location.map(|(_, longitude)| longitude),
    })
    .to_string()
}

fn as_line(eid: &Eid, presence: Presence) -> String {
    let mut line = format!("{eid} is {}", presence.status.name());
    if presence.last_seen > 0 {
        line += &format!(", last seen {}", clock(presence.last_seen, false));
    }
    if let Some((latitude, longitude)) = presence.location {
        line += &format!(", at {latitude:.4},{longitude:.4}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_two_numbers_on_earth() {
        assert_eq!(location("-33.9, 151.2"), Ok((-33.9, 151.2)));
        for wrong in ["", "1", "91,0", "0,181", "NaN,0", "a,b", "1,2,3"] {
            assert!(location(wrong).is_err(), "{wrong}");
        }
    }
}
