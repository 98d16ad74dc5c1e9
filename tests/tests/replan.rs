//! A training goes on under another plan, because a person asks for it or because nodes leave and join, and comes to
//! the bits that it would have had without that.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::sync::OnceLock;

use serde_json::{Value, json};
use sixfold_tests::{Rig, Running, alone, is_amid, outcome};

/// Checkpoints so far apart that only what nodes hold in memory is there to go on from.
const FAR: [&str; 2] = ["--set", "train.checkpoint_every_steps=10000"];
/// Steps that a change may make a training do again: see `tests/faults.rs`.
const REDONE_MAX: u64 = 2;
/// Steps of the trainings: more than are done before they are changed.
const STEPS: u64 = 200;

/// Prints what changes of plans cost.
fn tell(job: &Value) {
    for change in job["plan_changes"].as_array().unwrap() {
        println!(
            "{} -> {}: working again after {} ms, from step {}, {} redone ({})",
            change["from"],
            change["to"],
            change["resume_ms"],
            change["step"],
            change["redone_steps"],
            change["why"]
        );
    }
}

/// The plans that a job had, one after another.
fn plans(job: &Value) -> Vec<&str> {
    let changes = job["plan_changes"].as_array().unwrap();
    changes.iter().map(|change| change["to"].as_str().unwrap()).collect()
}

fn assert_little_redone(job: &Value) {
    for change in job["plan_changes"].as_array().unwrap() {
        let redone = change["redone_steps"].as_u64();
        assert!(redone.is_some_and(|redone| redone <= REDONE_MAX), "{change}");
        assert!(change["step"].as_u64().unwrap() > 0, "{change}");
    }
}

fn wait_for_step(run: &mut Running, step: u64) {
    run.wait_for("training", |job| is_amid(job, ("train", "step", step)));
}

/// What an undisturbed run on one rank comes to.
fn expected() -> &'static [(&'static str, String)] {
    static EXPECTED: OnceLock<Vec<(&'static str, String)>> = OnceLock::new();
    let undisturbed = || {
        let alone = [&FAR[..], &["--set", "train.commit_every_steps=0"]].concat();
        outcome(&Rig::training_under((1, 1, 1), STEPS).start(1, &alone).finish())
    };
    EXPECTED.get_or_init(undisturbed)
}

#[test]
fn a_training_that_changes_its_plan_again_and_again_keeps_its_bits() {
    let _alone = alone();
    let mut run = Rig::training_under((1, 1, 1), STEPS).start(2, &[&FAR[..], &["--cores", "2"]].concat());
    let mut step = 10;
    for (data, tensor, pipeline) in [(1, 2, 1), (2, 1, 1), (1, 1, 2)] {
        wait_for_step(&mut run, step);
        let degrees = [("data", data), ("tensor", tensor), ("pipeline", pipeline)];
        let mut settings = degrees.map(|(axis, degree)| format!("train.{axis}_parallel={degree}")).to_vec();
        // Trying the plan is another test's; it would take the time of many steps here.
        settings.push("train.verify_plan=false".to_owned());
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let said = run.replan(&settings);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let change: Value = serde_json::from_slice(&said.stdout).unwrap();
        assert_eq!(change["to"], format!("dp{data}·tp{tensor}·pp{pipeline}"), "{change}");
        assert_eq!((&change["state"], &change["by_itself"]), (&json!("running"), &json!(false)), "{change}");
        step = change["step"].as_u64().unwrap() + 10;
    }
    let job = run.finish();
    tell(&job);
    assert_eq!(outcome(&job), expected());
    assert_eq!(plans(&job), ["dp1·tp2·pp1", "dp2·tp1·pp1", "dp1·tp1·pp2"]);
    assert_little_redone(&job);
    assert_eq!(job["plan"], json!({"data_parallel": 1, "tensor_parallel": 1, "pipeline_parallel": 2}));
}

/// What is refused changes nothing; the last refusal is that of a job that has ended.
#[test]
fn a_change_that_cannot_be_is_refused_with_the_reason_and_the_job_goes_on() {
    let _alone = alone();
    let rig = Rig::training_under((1, 1, 2), STEPS);
    let mut run = rig.start(2, &["--cores", "1", "--keep"]);
    wait_for_step(&mut run, 10);
    for (setting, words) in [
        ("train.seed=2", &["`train.seed` decides what comes out", "data_parallel, tensor_parallel"][..]),
        ("train.tensor_parallel=8", &["only 4 logical tensor shards"]),
        ("train.data_parallel=2", &["has 4 ranks of 1 thread(s)", "cores for 2: node-1 1, node-2 1"]),
        ("tokens.tokenizer=bytes", &["`tokens` is of kind `tokenize`, which has no plan"]),
        ("train.pipeline_parallel=2", &["nothing is to change"]),
        ("train.tensor_paralell=2", &["did you mean `tensor_parallel`?"]),
    ] {
        let said = run.replan(&[setting]);
        let text = String::from_utf8(said.stderr).unwrap();
        assert!(!said.status.success(), "{setting} was accepted");
        for word in words {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    }
    let job = run.wait_for("the end", |job| job["state"] == "succeeded");
    assert_eq!((plans(&job), &job["plan"]["pipeline_parallel"]), (vec![], &json!(2)));
    let said = run.replan(&["train.pipeline_parallel=1"]);
    assert!(String::from_utf8(said.stderr).unwrap().contains("job 1 has succeeded"));
    run.stop();
}

/// Each node has a core for one rank. One is lost with its data, for good; then another one joins.
#[test]
fn a_training_goes_on_on_the_nodes_that_are_left_and_widens_when_one_joins() {
    let _alone = alone();
    let times = ["--set", "train.shrink_after_seconds=0", "--set", "train.widen_after_seconds=0"];
    let rig = Rig::training_under((1, 2, 1), STEPS);
    let mut run = rig.start(2, &[&FAR[..], &times, &["--cores", "1"]].concat());
    wait_for_step(&mut run, 10);
    run.destroy_node("node-2");
    let changed = |count: usize| {
        move |job: &Value| {
            let changes = job["plan_changes"].as_array().unwrap();
            changes.len() == count && changes[count - 1]["redone_steps"].is_u64()
        }
    };
    let job = run.wait_for("a smaller plan", changed(1));
    assert_eq!(plans(&job), ["dp1·tp1·pp1"]);
    assert_eq!(job["wanted_plan"]["tensor_parallel"], 2);
    let step = job["plan_changes"][0]["step"].as_u64().unwrap();
    wait_for_step(&mut run, step + 5);
    let _node = run.join_node("node-3");
    run.wait_for("the wanted plan", changed(2));
    let job = run.finish();
    tell(&job);
    assert_eq!(outcome(&job), expected());
    assert_eq!(plans(&job), ["dp1·tp1·pp1", "dp1·tp2·pp1"]);
    assert!(job["plan_changes"].as_array().unwrap().iter().all(|change| change["by_itself"] == true));
    assert_eq!(job["plan"], job["wanted_plan"]);
    assert_little_redone(&job);
    let nodes: Vec<&str> =
        job["ranks"].as_array().unwrap().iter().map(|rank| rank["node"].as_str().unwrap()).collect();
    assert!(nodes.contains(&"node-1") && nodes.contains(&"node-3"), "{nodes:?}");
}

/// The job asks to wait for its nodes; the ranks are crowded onto the one that is left.
#[test]
fn a_training_that_is_not_elastic_keeps_its_plan() {
    let _alone = alone();
    let rig = Rig::training_under((1, 2, 1), STEPS);
    let more = [&FAR[..], &["--set", "train.elastic=false", "--cores", "1"]].concat();
    let mut run = rig.start(2, &more);
    wait_for_step(&mut run, 10);
    run.destroy_node("node-2");
    let job = run.finish();
    assert_eq!(plans(&job), Vec::<&str>::new());
    assert_eq!(job["plan"]["tensor_parallel"], 2);
    assert_eq!(outcome(&job), expected());
}
