//! Deterministic simulation: the real sessions, hub and ledger under a seeded scheduler, which lets phones vanish and the
//! server die between any two steps. After every story the promises of README.md (What it promises) are checked.
//!
//! `BIMIP_SEED=n cargo test --lib simulation::replay -- --nocapture` prints one story move by move. `BIMIP_SEEDS=n` runs so
//! many stories, from `BIMIP_SEED` on. How it works: docs/decisions/0002-deterministic-simulation.md.

mod chronicle;
mod clients;
mod device;
mod disasters;
mod link;
mod promises;
mod script;
mod server;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::planted::{self, Bug};
use world::World;

/// How a promise was broken.
type Violation = String;

/// Stories of every test run: some 50 s of one core without optimisation.
const SEEDS: u64 = 3000;
/// Steps of a usual story before it settles.
const STEPS: usize = 600;

fn story(world: &mut Result<World, Violation>) -> Result<(), Violation> {
    let world = world.as_mut().map_err(|violation| violation.clone())?;
    let steps = world.random.of(&[STEPS / 4, STEPS, STEPS, 2 * STEPS]);
    world.live(steps)?;
    world.settle()?;
    promises::check(world)?;
    world.trim_all()
}

/// Runs the story of a seed. Returns the number of its moves, or what went wrong, and the trace if requested.
fn tell(seed: u64, traced: bool) -> (Result<usize, Violation>, Vec<String>) {
    let mut world = World::new(seed, traced);
    let told = catch_unwind(AssertUnwindSafe(|| story(&mut world)));
    let (moves, trace) = world.map_or((0, None), |world| (world.moves, world.trace));
    let told = told.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    });
    (told.map(|()| moves), trace.unwrap_or_default())
}

fn report(seed: u64, violation: &str) -> String {
    let (_, trace) = tell(seed, true);
    let end = &trace[trace.len().saturating_sub(30)..];
    format!(
        "seed {seed}: {violation}\nthe last moves:\n{}\nthe whole story:\n  BIMIP_SEED={seed} cargo test --lib simulation::replay -- --nocapture",
        end.join("\n")
    )
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn every_promise_holds_in_every_story() {
    let (first, seeds) = (setting("BIMIP_SEED").unwrap_or(0), setting("BIMIP_SEEDS").unwrap_or(SEEDS));
    let began = std::time::Instant::now();
    let mut moves = 0;
    for seed in first..first + seeds {
        match tell(seed, false).0 {
            Ok(told) => moves += told,
            Err(violation) => panic!("{}", report(seed, &violation)),
        }
        server::upkeep();
    }
    let per_minute = seeds as f64 * 60.0 / began.elapsed().as_secs_f64();
    println!("{seeds} stories, {moves} moves, {per_minute:.0} stories a minute");
}

/// With `BIMIP_SEED`, prints that story. Always checks that the same seed gives the same story twice.
#[test]
fn replay() {
    let asked = setting("BIMIP_SEED");
    let seed = asked.unwrap_or(7);
    let (told, trace) = tell(seed, true);
    assert_eq!(tell(seed, true).1, trace, "the same seed, the same story");
    if asked.is_some() {
        trace.iter().for_each(|line| println!("{line}"));
        told.unwrap();
    }
}

/// The number of stories until a planted bug is found.
fn found_after(bug: Bug, seeds: u64) -> Option<(u64, Violation)> {
    planted::plant(Some(bug));
    let found = (0..seeds).find_map(|seed| Some((seed + 1, tell(seed, false).0.err()?)));
    planted::plant(None);
    found
}

fn assert_found(bug: Bug, seeds: u64) {
    let (after, violation) = found_after(bug, seeds).unwrap_or_else(|| panic!("{bug:?} was not found"));
    println!("{bug:?} found by story {after}: {violation}");
}

#[test]
fn a_release_lost_at_a_crash_is_found() {
    assert_found(Bug::LostRelease, 100);
}

#[test]
fn a_gap_in_the_versions_is_found() {
    assert_found(Bug::VersionGap, 100);
}

#[test]
fn an_acknowledgment_going_backwards_is_found() {
    assert_found(Bug::AcknowledgmentBackwards, 100);
}

#[test]
fn a_lost_wake_up_at_the_seam_is_found() {
    assert_found(Bug::LostWakeUp, 100);
}
