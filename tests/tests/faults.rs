//! Whole clusters lose processes and machines in every stage, and come to the same result.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::collections::HashSet;
use std::sync::OnceLock;

use serde_json::Value;
use sixfold_tests::{MIDDLES, Rig, Running, alone, has_namespaces, is_amid, kill, outcome, result};

/// Runs in which a fault may come too late to be one.
const TRIES: usize = 5;

/// Steps of the trainings that have checkpoints far apart.
const STEPS: u64 = 160;
/// Checkpoints so far apart that there is none to go on from.
const FAR: [&str; 2] = ["--set", "train.checkpoint_every_steps=1000"];

/// What must not depend on what died.
type Outcome = Vec<(&'static str, String)>;

/// A job through all stages, and what undisturbed runs of it come to.
fn whole_way() -> (Rig, &'static Outcome) {
    static EXPECTED: OnceLock<Outcome> = OnceLock::new();
    let rig = Rig::whole_way();
    let expected = EXPECTED.get_or_init(|| outcome(&rig.start(4, &[]).finish()));
    (rig, expected)
}

/// A training with checkpoints far apart, and what undisturbed runs of it come to, of which this is one on one node.
fn training_without_checkpoints() -> (Rig, &'static Outcome) {
    static EXPECTED: OnceLock<Outcome> = OnceLock::new();
    let rig = Rig::training(STEPS);
    let expected = EXPECTED.get_or_init(|| outcome(&rig.start(1, &FAR).finish()));
    (rig, expected)
}

/// Prints how long each fault took to be noticed and mended.
fn tell(what: &str, job: &Value) {
    for recovery in job["recoveries"].as_array().into_iter().flatten() {
        println!(
            "{what}: {} on {}: detected after {} ms, resumed {} ms later at step {}, {} redone ({})",
            recovery["stage"],
            recovery["node"],
            recovery["detect_ms"],
            recovery["resume_ms"],
            recovery["step"],
            recovery["redone_steps"],
            recovery["cause"]
        );
    }
}

/// The stages of which tasks were lost and went on elsewhere.
fn recovered(job: &Value) -> HashSet<&str> {
    let recoveries = job["recoveries"].as_array().unwrap();
    recoveries.iter().map(|recovery| recovery["stage"].as_str().unwrap()).collect()
}

#[test]
fn a_killed_worker_costs_no_bit() {
    let _alone = alone();
    let (rig, expected) = whole_way();
    let mut run = rig.start(4, &[]);
    run.wait_for("training", |job| is_amid(job, ("train", "step", 10)));
    let workers = run.node("node-2").children();
    assert_eq!(workers.len(), 1, "one rank a node");
    kill(&workers[0]);
    let job = run.finish();
    tell("worker", &job);
    assert_eq!(&outcome(&job), expected);
    assert_eq!(recovered(&job), HashSet::from(["train"]));
}

#[test]
fn machines_that_burn_down_in_every_stage_cost_no_bit() {
    let _alone = alone();
    let (rig, expected) = whole_way();
    for middle in MIDDLES {
        // A node may have done its part of the stage between the look and the kill, or between two looks; then it loses
        // nothing, and another run is needed to see it lose something.
        let hit = (0..TRIES).any(|_| {
            let job = burn_down(&rig, middle);
            assert_eq!(&outcome(&job), expected, "{middle:?}");
            recovered(&job).contains(middle.0)
        });
        assert!(hit, "{TRIES} nodes died, each after its part of {middle:?}");
    }
}

/// A run of which a node that works on a stage is lost with its data, if one is seen at work.
fn burn_down(rig: &Rig, middle: (&str, &str, u64)) -> Value {
    let mut run = rig.start(5, &[]);
    if run.look_for(middle.0, |job| is_amid(job, middle)).is_some() {
        let node = run.host_of(middle.0);
        run.destroy_node(&node);
    }
    let job = run.finish();
    tell(middle.0, &job);
    job
}

#[test]
fn a_coordinator_that_dies_in_every_stage_costs_no_bit() {
    let _alone = alone();
    let (rig, expected) = whole_way();
    let mut run = rig.start(4, &[]);
    for middle in MIDDLES {
        run.wait_for(middle.0, |job| is_amid(job, middle));
        kill(&run.coordinator());
    }
    let job = run.finish();
    tell("coordinator", &job);
    assert_eq!(&outcome(&job), expected);
}

/// The nodes share no loopback interface; a worker, then a whole machine is lost while they train over QUIC.
#[test]
fn machines_apart_that_burn_down_cost_no_bit() {
    let _alone = alone();
    if !has_namespaces() {
        return;
    }
    let rig = Rig::training(80);
    let expected = outcome(&rig.start(1, &[]).finish());
    let mut run = rig.start(5, &["--links", "quic", "--namespaces"]);
    run.wait_for("training", |job| is_amid(job, ("train", "step", 10)));
    let node = run.host_of("train");
    kill(&run.node(&node).children()[0]);
    run.wait_for("training again", |job| is_amid(job, ("train", "step", 40)));
    let node = run.host_of("train");
    run.destroy_node(&node);
    let job = run.finish();
    tell("apart", &job);
    assert_eq!(outcome(&job), expected);
    assert_eq!(recovered(&job), HashSet::from(["train"]));
}

/// Steps that a fault may make a training do again: the one after the newest complete step while its commit was
/// under way, and one more where that took longer than a step.
const REDONE_MAX: u64 = 2;

/// Checks that a training with checkpoints far apart has lost no more than the steps since the newest commit.
fn assert_little_redone(job: &Value) {
    let recoveries = job["recoveries"].as_array().unwrap();
    assert!(!recoveries.is_empty(), "nothing was lost");
    for recovery in recoveries {
        let redone = recovery["redone_steps"].as_u64();
        assert!(redone.is_some_and(|redone| redone <= REDONE_MAX), "{recovery}");
        assert!(recovery["step"].as_u64().unwrap() > 0, "{recovery}");
    }
}

/// Neither has a checkpoint to go on from, only what other nodes hold in memory.
#[test]
fn a_worker_and_a_node_lost_between_checkpoints_cost_a_step_or_two() {
    let _alone = alone();
    let (rig, expected) = training_without_checkpoints();
    lose_a_worker_and_a_node("between checkpoints", &rig, &FAR, expected);
}

/// Each replica holds its part of the moments alone, and its state is long enough to go over links between daemons.
#[test]
fn replicas_that_share_the_optimizer_lose_a_worker_and_a_node_and_a_step_or_two() {
    let settings =
        ["data_parallel=2", "tensor_parallel=1", "pipeline_parallel=1", "hidden_size=256", "zero_stage=1"];
    let settings = settings.map(|setting| format!("train.{setting}"));
    let more = settings.iter().flat_map(|setting| ["--set", setting]);
    let more: Vec<&str> = FAR.into_iter().chain(more).collect();
    let _alone = alone();
    let rig = Rig::training(STEPS);
    let expected = outcome(&rig.start(1, &more).finish());
    lose_a_worker_and_a_node("a shared optimizer", &rig, &more, &expected);
}

fn lose_a_worker_and_a_node(what: &str, rig: &Rig, more: &[&str], expected: &Outcome) {
    let mut run = rig.start(5, more);
    run.wait_for("training", |job| is_amid(job, ("train", "step", 20)));
    let node = run.host_of("train");
    kill(&run.node(&node).children()[0]);
    run.wait_for("training again", |job| is_amid(job, ("train", "step", 80)));
    let node = run.host_of("train");
    run.destroy_node(&node);
    let job = run.finish();
    tell(what, &job);
    assert_eq!(&outcome(&job), expected);
    assert_little_redone(&job);
}

/// One node has nobody to hold its states but itself; they outlive its workers.
#[test]
fn a_worker_lost_on_the_only_node_costs_a_step_or_two() {
    let _alone = alone();
    let (rig, expected) = training_without_checkpoints();
    let mut run = rig.start(1, &FAR);
    run.wait_for("training", |job| is_amid(job, ("train", "step", 20)));
    kill(&run.node("node-1").children()[0]);
    let job = run.finish();
    tell("on one node", &job);
    assert_eq!(&outcome(&job), expected);
    assert_little_redone(&job);
}

/// Asks the same question again and again, through whatever node takes it.
fn ask(home: &str) -> String {
    let question = ["query", "the node keeps", "--complete", "--max-tokens", "200", "--json", "--home", home];
    result(&question)["answer"].as_str().unwrap().to_owned()
}

/// Asks until `enough` answers have come, while `disturb` does something; all must be the same.
fn answers_survive(what: &str, run: &Running, disturb: impl FnOnce()) {
    let home = run.dir().join("coordinator");
    let home = home.to_str().unwrap();
    let expected = ask(home);
    assert!(!expected.is_empty());
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| (0..40).map(|_| ask(home)).collect::<Vec<_>>());
        disturb();
        for answer in asking.join().unwrap() {
            assert_eq!(answer, expected, "{what}");
        }
    });
    println!("{what}: 40 answers, all the same");
}

#[test]
fn answers_go_on_when_a_replica_a_node_or_the_coordinator_dies() {
    let _alone = alone();
    let rig = Rig::whole_way();
    let fast =
        ["--set", "train.steps=5", "--set", "train.context_length=256", "--set", "train.sequence_length=64"];
    let mut run = rig.start(4, &[&["--keep"][..], &fast].concat());
    run.wait_for("serving", |job| job["state"] == "serving");
    let replicas = |run: &Running| {
        let nodes = ["node-1", "node-2", "node-3", "node-4"].map(|name| (name, run.node(name).children()));
        nodes.into_iter().filter(|(_, workers)| !workers.is_empty()).collect::<Vec<_>>()
    };
    let serving = replicas(&run);
    assert_eq!(serving.len(), 2, "{serving:?}");
    answers_survive("a replica killed", &run, || kill(&serving[0].1[0]));
    answers_survive("the coordinator killed", &run, || kill(&run.coordinator()));
    let serving = replicas(&run);
    answers_survive("a node lost", &run, || run.destroy_node(serving[0].0));
    run.stop();
}
