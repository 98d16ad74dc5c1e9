//! The coordinator and a few nodes in virtual time, under seeded faults: messages lost, doubled,
//! late and replayed; nodes killed with their folders, restarted, frozen; tasks that fail; the
//! coordinator killed at any event. Nothing here reads a clock or a socket, so a seed is a history.
//!
//! Checked in every history: the state is the fold of the log; a stale report changes nothing; a
//! task's result counts once, from its newest attempt; no job is lost; every job ends with the
//! outputs of a run without faults.

#![allow(clippy::large_enum_variant, reason = "a simulated message is moved about, not kept")]

mod jobs;
mod ledger;
mod node;
mod random;
mod world;

use std::collections::BTreeMap;

use sixfold_coordinator::event::{Entry, Event, JobEvent, NodeEvent};
use sixfold_wire::id::{ArtifactId, JobId};

use world::{Faults, World};

type Outputs = BTreeMap<(JobId, u32), Vec<ArtifactId>>;

fn outputs(world: &World) -> Outputs {
    let done = world.log.iter().filter_map(|entry| match &entry.event {
        Event::Job(job, JobEvent::PhaseDone { phase, outputs }) => Some(((*job, *phase), outputs.clone())),
        _ => None,
    });
    done.collect()
}

fn finished(faults: Faults, seed: u64) -> World {
    finished_on(world::NODES, faults, seed)
}

fn finished_on(nodes: u64, faults: Faults, seed: u64) -> World {
    let widen_after_ms = faults.training.widen_after_ms;
    let mut world = World::new(seed, faults, nodes);
    world.run();
    ledger::check(&world.log, widen_after_ms);
    world
}

#[test]
fn without_faults_every_attempt_is_the_first() {
    let world = finished(Faults::none(), 1);
    let failures = world.log.iter().filter(|entry| ledger::is_failure(&entry.event)).count();
    assert_eq!(failures, 0);
    assert_eq!(outputs(&world).len(), jobs::BATCH_PHASES);
}

#[test]
fn random_faults_change_no_result_and_lose_no_job() {
    let expected = outputs(&finished(Faults::none(), 1));
    let mut seen = world::Seen::default();
    for seed in 0..150 {
        let world = finished(Faults::random(), seed);
        assert_eq!(outputs(&world), expected, "seed {seed}");
        seen.add(&world.seen);
    }
    println!("{seen:?}");
    // The faults did happen; else this would show nothing.
    assert!(seen.stale_refused > 1000 && seen.replayed > 1000, "{seen:?}");
    assert!(seen.coordinator_kills > 100 && seen.node_kills > 100 && seen.freezes > 100, "{seen:?}");
    assert!(seen.task_failures > 100 && seen.resumed_from_a_step > 50, "{seen:?}");
    assert!(seen.told_the_step_before > 20, "{seen:?}");
}

/// Kills the coordinator at each decision of a run, before and after its events are in the log.
fn kill_at_any_event(quiet: &Faults) -> World {
    let run = finished(quiet.clone(), 1);
    let (expected, decisions) = (outputs(&run), run.seen.decisions);
    assert!(decisions > 50, "{decisions}");
    for decision in 0..decisions {
        for appended in [false, true] {
            let world = finished(quiet.clone().killing_coordinator_at(decision, appended), 1);
            assert_eq!(world.seen.coordinator_kills, 1, "decision {decision}");
            assert_eq!(outputs(&world), expected, "decision {decision}, appended: {appended}");
        }
    }
    run
}

#[test]
fn the_coordinator_may_die_at_any_event() {
    kill_at_any_event(&Faults::none());
}

#[test]
fn the_coordinator_may_die_at_any_event_while_plans_change() {
    let run = kill_at_any_event(&Faults::replans());
    assert!(run.seen.replans >= 3, "{:?}", run.seen);
}

/// Plans that are asked for, and plans that follow the nodes.
#[test]
fn plans_that_change_amid_random_faults_change_no_result_and_lose_no_job() {
    let expected = outputs(&finished(Faults::none(), 1));
    let mut seen = world::Seen::default();
    for seed in 0..150 {
        let replan_every_ms = [0, 0, 1500][seed as usize % 3];
        let world = finished(Faults::random_with_replans(replan_every_ms), seed);
        assert_eq!(outputs(&world), expected, "seed {seed}");
        seen.add(&world.seen);
    }
    println!("{seen:?}");
    assert!(seen.coordinator_kills > 100 && seen.node_kills > 100, "{seen:?}");
    assert!(seen.replans > 200 && seen.replans_refused > 20, "{seen:?}");
    assert!(seen.shrunk > 30 && seen.widened > 30, "{seen:?}");
}

/// Dead for less than a heartbeat's patience; evicted, but back before a smaller plan is taken; gone for longer.
#[test]
fn a_node_that_is_back_in_time_changes_no_plan() {
    let expected = outputs(&finished(Faults::none(), 1));
    for (away_ms, evicted, changes) in [(50, false, [0, 0]), (1150, true, [0, 0]), (3750, true, [1, 1])] {
        let world = finished(Faults::kill_once(away_ms, false), 1);
        assert_eq!(outputs(&world), expected, "{away_ms} ms");
        assert_eq!([world.seen.shrunk, world.seen.widened], changes, "{away_ms} ms");
        let is_eviction = |entry: &Entry| matches!(entry.event, Event::Node(_, NodeEvent::Evicted { .. }));
        assert_eq!(world.log.iter().any(is_eviction), evicted, "{away_ms} ms");
        assert!(world.seen.resumed_from_a_step > 0, "{away_ms} ms: it was not hit");
    }
}

/// They come back one by one, long after a smaller plan would have been taken had one of them stayed.
#[test]
fn an_outage_of_all_nodes_changes_no_plan() {
    let expected = outputs(&finished(Faults::none(), 1));
    let world = finished(Faults::kill_once(8000, true), 1);
    assert_eq!(outputs(&world), expected);
    assert_eq!((world.seen.node_kills, world.seen.shrunk), (world::NODES, 0));
}

#[test]
fn a_node_that_comes_and_goes_changes_the_plan_twice_a_minute_at_most() {
    let expected = outputs(&finished(Faults::none(), 1));
    for every_ms in [6000, 20_000, 45_000] {
        let world = finished(Faults::flapping(every_ms), 1);
        assert_eq!(outputs(&world), expected);
        let changes = ledger::resizes_ms(&world.log);
        println!("a node that dies every {every_ms} ms: {} changes, {:?}", changes.len(), world.seen);
        assert!(world.seen.node_kills >= 4 && !changes.is_empty(), "{:?}", world.seen);
        for (index, at_ms) in changes.iter().enumerate() {
            let within = changes[index..].iter().filter(|other| **other < at_ms + 60_000).count();
            assert!(within <= 2, "every {every_ms} ms: {changes:?}");
        }
    }
}

#[test]
fn a_short_freeze_evicts_nobody_and_a_long_one_does() {
    for (frozen_ms, evicted) in [(500, 0), (5000, 1)] {
        let world = finished(Faults::freeze_once(frozen_ms), 3);
        let evictions = world
            .log
            .iter()
            .filter(|entry| matches!(&entry.event, Event::Node(_, NodeEvent::Evicted { .. })));
        assert_eq!(evictions.count(), evicted, "{frozen_ms} ms");
    }
}

/// The only node is evicted, so its task cannot be placed elsewhere, and still runs when it thaws.
#[test]
fn a_task_that_outlives_its_nodes_eviction_is_taken_back() {
    let expected = outputs(&finished(Faults::none(), 1));
    let mut adopted = 0;
    for seed in 0..20 {
        let world = finished_on(1, Faults::freeze_once(5000), seed);
        assert_eq!(outputs(&world), expected, "seed {seed}");
        adopted += world.seen.adopted;
    }
    assert!(adopted > 0);
}
