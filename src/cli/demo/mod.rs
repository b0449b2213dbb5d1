//! `bimip demo`: shows alice, bob and bob's tablet on a server of their own, over real QUIC.

mod ledger;
mod stage;
mod timeline;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use self::ledger::Figures;
use self::stage::{Stage, session};
use self::timeline::{Who, ms};
use super::Failure;
use crate::client::Device;
use crate::wire::proto::{AwarenessNotification, SubscriberAddRequest};
use crate::wire::{AckStatus, AwarenessStatus, Eid, Payload};

/// Watch a server and three devices at work; takes a few seconds
#[derive(clap::Args)]
pub(super) struct Args {}

/// What the demo measured.
#[derive(Default)]
struct Measured {
    /// Time from the tablet's return to its last missed message, and the number of missed messages.
    catch_up: Duration,
    missed: usize,
    /// Time from each change of address to the first answer on the new address.
    moves: Vec<Duration>,
    /// Whether alice kept her session through the changes.
    one_session: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(play())?;
        Ok(())
    }
}

async fn play() -> anyhow::Result<()> {
    let mut stage = Stage::build().await?;
    let mut measured = Measured::default();

    stage.timeline.scene("Three devices sign in")?;
    let alice = stage.sign_in(Who::AlicePhone).await?;
    let bob = stage.sign_in(Who::BobPhone).await?;
    let tablet = stage.sign_in(Who::BobTablet).await?;

    talk(&mut stage, &alice, &bob).await?;
    let tablet = tunnel(&mut stage, &alice, tablet, &mut measured).await?;
    travel(&mut stage, &alice, &bob, &mut measured).await?;
    presence(&mut stage, &alice).await?;

    stage.until("the last receipt", ledger::Ledger::is_receipted).await?;
    let commits = stage.commits().await?;
    tablet.close().await;
    bob.close().await;
    drop(alice);
    let verdict = summary(&stage, &measured, commits);
    stage.strike().await;
    verdict
}

/// Texts both ways, with their copies and receipts.
async fn talk(stage: &mut Stage, alice: &Device, bob: &Device) -> anyhow::Result<()> {
    stage.timeline.scene("They talk: each message goes to every device of both")?;
    stage.say(alice, Who::AlicePhone, "Hey Bob!").await?;
    everywhere(stage).await?;
    stage.say(bob, Who::BobPhone, "Hi Alice, where are you?").await?;
    everywhere(stage).await?;
    stage.say(alice, Who::AlicePhone, "On the train to you.").await?;
    everywhere(stage).await?;
    stage.read_newest(bob, Who::BobPhone).await?;
    stage.until("the read receipt", |ledger| ledger.has_receipt(Who::AlicePhone, AckStatus::Read)).await
}

/// A device disconnects, misses messages, and comes back.
async fn tunnel(stage: &mut Stage, alice: &Device, tablet: Device, measured: &mut Measured) -> anyhow::Result<Device> {
    stage.timeline.scene("Bob's tablet goes offline; the talk goes on")?;
    let before = stage.ledger.arrivals_at(Who::BobTablet);
    stage.meanwhile("the tablet's leaving", tablet.close()).await?;
    stage.timeline.line(Who::BobTablet, "is switched off")?;
    for text in ["There is a tunnel ahead.", "Still there?", "The tablet will miss these,", "but not for long."] {
        stage.say(alice, Who::AlicePhone, text).await?;
    }
    stage.until("bob's phone", |ledger| ledger.is_complete(Who::BobPhone)).await?;
    anyhow::ensure!(stage.ledger.arrivals_at(Who::BobTablet) == before, "a tablet that is off received something");

    stage.timeline.scene("The tablet comes back and catches up")?;
    let began = Instant::now();
    let tablet = stage.sign_in(Who::BobTablet).await?;
    stage.until("the tablet's catching up", |ledger| ledger.is_complete(Who::BobTablet)).await?;
    measured.catch_up = began.elapsed();
    measured.missed = stage.ledger.arrivals_at(Who::BobTablet) - before;
    Ok(tablet)
}

/// A device's address changes twice in the middle of a conversation.
async fn travel(stage: &mut Stage, alice: &Device, bob: &Device, measured: &mut Measured) -> anyhow::Result<()> {
    stage.timeline.scene("Alice's phone changes networks in mid-conversation")?;
    let session_before = session(alice).context("alice is not connected")?.session_id;
    let losses = stage.ledger.losses_of(Who::AlicePhone);
    stage.say(alice, Who::AlicePhone, "Leaving the train's Wi-Fi.").await?;

    // Another host address where the system has all of 127.0.0.0/8 on loopback; otherwise another port.
    let street = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 0));
    let home = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let first = match alice.rebind(street).await {
        Ok(address) => address,
        Err(_) => alice.rebind(home).await?,
    };
    let began = Instant::now();
    let first = first.context("alice has no socket")?;
    stage.timeline.line(Who::AlicePhone, format!("is at {first} now, without saying so to anybody"))?;
    stage.say(alice, Who::AlicePhone, "On the street now.").await?;
    measured.moves.push(began.elapsed());
    stage.say(bob, Who::BobPhone, "I did not notice.").await?;
    everywhere(stage).await?;

    let began = Instant::now();
    let second = alice.rebind(home).await?.context("alice has no socket")?;
    stage.timeline.line(Who::AlicePhone, format!("moves on: {first} → {second}"))?;
    stage.say(alice, Who::AlicePhone, "And on your Wi-Fi.").await?;
    measured.moves.push(began.elapsed());
    everywhere(stage).await?;

    let session_after = session(alice).map(|session| session.session_id);
    measured.one_session =
        session_after.as_deref() == Some(session_before.as_str()) && stage.ledger.losses_of(Who::AlicePhone) == losses;
    if measured.one_session {
        stage.timeline.line(Who::AlicePhone, format!("is still in session {session_before}"))?;
    }
    Ok(())
}

/// Alice lets bob see her presence and sets it to away.
async fn presence(stage: &mut Stage, alice: &Device) -> anyhow::Result<()> {
    stage.timeline.scene("Alice lets Bob see her presence")?;
    let own = alice.eid().device_identity(alice.device_id());
    let admit = Payload::SubscriberAddRequest(SubscriberAddRequest {
        owner: Some(own.clone()),
        subscriber: Some(Eid::parse(Who::BobPhone.user())?.identity()),
        nickname: "Bob".to_owned(),
        ..SubscriberAddRequest::default()
    });
    stage.timeline.line(Who::AlicePhone, "admits bob@localhost")?;
    stage.meanwhile("the admission", alice.request(admit)).await??;

    let away = AwarenessStatus::Away.code();
    let notification = AwarenessNotification { from: Some(own), status: away, ..AwarenessNotification::default() };
    stage.timeline.line(Who::AlicePhone, "is away from now on")?;
    let device = alice.clone();
    // The server does not reply to it; only bob's devices show that it worked.
    let told = tokio::spawn(async move { device.request(Payload::AwarenessNotification(notification)).await });
    let bob_knows = |ledger: &ledger::Ledger| {
        [Who::BobPhone, Who::BobTablet].iter().all(|who| ledger.presence_at(*who) == Some(away))
    };
    let seen = stage.until("alice's presence", bob_knows).await;
    told.abort();
    seen
}

/// Waits until every device has every message.
async fn everywhere(stage: &mut Stage) -> anyhow::Result<()> {
    stage.until("a message", |ledger| Who::DEVICES.iter().all(|who| ledger.is_complete(*who))).await
}

/// Prints the figures; an error unless everything arrived.
fn summary(stage: &Stage, measured: &Measured, commits: u64) -> anyhow::Result<()> {
    let Stage { timeline, ledger, .. } = stage;
    let Figures { sent, copies, copies_due, delivered_receipts, read_receipts, latencies } = ledger.figures();
    let p50 = latencies.get(latencies.len() / 2).copied().unwrap_or_default();
    let max = latencies.last().copied().unwrap_or_default();
    let moves: Vec<_> = measured.moves.iter().map(|time| ms(*time)).collect();

    timeline.scene("Summary")?;
    timeline.row("messages sent", &sent.to_string())?;
    timeline.row("copies delivered", &format!("{copies} of {copies_due}, to three devices"))?;
    timeline.row("receipts", &format!("{delivered_receipts} delivered, {read_receipts} read"))?;
    timeline.row(
        "delivery latency",
        &format!("p50 {}, max {}, from the call to the other device's event", ms(p50), ms(max)),
    )?;
    timeline.row(
        "catching up",
        &format!("{} messages {} after the tablet dialed", measured.missed, ms(measured.catch_up)),
    )?;
    timeline.row("changes of address", &format!("{}, answered after {}", moves.len(), moves.join(" and ")))?;
    timeline.row("durable commits", &format!("{commits}"))?;
    timeline.row("took", &format!("{:.1} s", timeline.elapsed().as_secs_f64()))?;

    let mut complaints: Vec<_> = Who::DEVICES.iter().filter_map(|who| ledger.complaint(*who)).collect();
    if !measured.one_session {
        complaints.push("alice lost her session when her address changed".to_owned());
    }
    if complaints.is_empty() {
        timeline.verdict(true, "Everything arrived, in order, exactly once.")?;
        return Ok(());
    }
    timeline.verdict(false, "Something went wrong.")?;
    Err(anyhow!(complaints.join("; ")))
}
