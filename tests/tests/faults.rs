//! Whole clusters lose processes and machines in every stage, and come to the same result.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use sixfold_tests::{Running, Site, alone, kill, stage};

/// Pages of the site that is crawled.
const PAGES: usize = 60;

/// A job through all stages, slow enough that each can be interrupted.
fn job_file(folder: &tempfile::TempDir, site: &Site) -> PathBuf {
    let (seed, host) = (site.seed(), site.host());
    let text = format!(
        r#"name = "faults"
[stage.crawl]
kind = "crawl"
seeds = ["{seed}"]
allow_private_hosts = ["{host}"]
delay_ms = 0
round_requests = 6
sitemaps = false
retry_wait_ms = 50

[stage.clean]
kind = "clean"
inputs = ["crawl"]
extractor = "main_text"
profile = "none"
threads = 1

[stage.tokens]
kind = "tokenize"
inputs = ["clean"]
tokenizer = "bytes"

[stage.train]
kind = "train"
inputs = ["tokens"]
layers = 4
hidden_size = 64
heads = 8
kv_heads = 4
context_length = 64
batch_sequences = 8
steps = 60
tensor_parallel = 2
pipeline_parallel = 2
dropout = 0.1

[stage.serve]
kind = "serve"
inputs = ["train"]
replicas = 2
kv_cache_mib = 8
"#
    );
    let path = folder.path().join("faults.toml");
    std::fs::write(&path, text).unwrap();
    path
}

struct Rig {
    _folder: tempfile::TempDir,
    job: PathBuf,
}

impl Rig {
    fn new() -> Self {
        let site = Site::start(PAGES, Duration::from_millis(20));
        let folder = tempfile::tempdir().unwrap();
        let job = job_file(&folder, &site);
        Self { _folder: folder, job }
    }

    fn start(&self, nodes: &str) -> Running {
        Running::start(&["run", self.job.to_str().unwrap(), "--local", nodes])
    }

    fn undisturbed(&self) -> Value {
        self.start("4").finish()
    }
}

/// Whether a stage has reported at least `least` of a figure and still runs.
fn has(job: &Value, name: &str, figure: &str, least: u64) -> bool {
    let stage = stage(job, name);
    stage["state"] == "running" && stage["metrics"][figure].as_u64().is_some_and(|count| count >= least)
}

/// Whether the moment for the fault has come. Cleaning a small site may be over between two looks; then the
/// fault comes right after it, while its results are what everything else rests on.
fn is_due(job: &Value, name: &str, figure: &str, least: u64) -> bool {
    has(job, name, figure, least) || (name == "clean" && stage(job, name)["state"] == "succeeded")
}

/// What must not depend on what died.
fn outcome(job: &Value) -> Vec<(&'static str, String)> {
    let crawl = &stage(job, "crawl")["metrics"];
    let tokens = &stage(job, "tokens")["metrics"];
    assert_eq!(crawl["pages_fetched"], PAGES, "{job}");
    vec![
        ("crawl", crawl["crawl_blake3"].to_string()),
        ("documents", stage(job, "clean")["metrics"]["documents_kept"].to_string()),
        ("tokens", tokens["tokens_train"].to_string()),
        ("losses", job["loss_bits_blake3"].to_string()),
        ("weights", job["weights_blake3"].to_string()),
    ]
}

/// Prints how long each fault took to be noticed and mended.
fn tell(what: &str, job: &Value) {
    for recovery in job["recoveries"].as_array().into_iter().flatten() {
        println!(
            "{what}: {} on {}: detected after {} ms, resumed {} ms later at step {} ({})",
            recovery["stage"],
            recovery["node"],
            recovery["detect_ms"],
            recovery["resume_ms"],
            recovery["step"],
            recovery["cause"]
        );
    }
}

#[test]
fn a_killed_worker_costs_no_bit() {
    let _alone = alone();
    let rig = Rig::new();
    let expected = outcome(&rig.undisturbed());
    let mut run = rig.start("4");
    run.wait_for("training", |job| has(job, "train", "step", 10));
    let workers = run.node("node-2").children();
    assert_eq!(workers.len(), 1, "one rank a node");
    kill(&workers[0]);
    let job = run.finish();
    tell("worker", &job);
    assert_eq!(outcome(&job), expected);
    let recoveries = job["recoveries"].as_array().unwrap();
    assert!(recoveries.iter().any(|recovery| recovery["stage"] == "train"), "{recoveries:?}");
}

#[test]
fn machines_that_burn_down_in_every_stage_cost_no_bit() {
    let _alone = alone();
    let rig = Rig::new();
    let expected = outcome(&rig.undisturbed());
    for (name, figure, least) in
        [("crawl", "pages_fetched", 12), ("clean", "documents", 1), ("train", "step", 10)]
    {
        let mut run = rig.start("5");
        let job = run.wait_for(name, |job| is_due(job, name, figure, least));
        let home = run.dir().join("coordinator");
        let why = sixfold_tests::result(&["job", "1", "--why", "--json", "--home", home.to_str().unwrap()]);
        let mut placed =
            why.as_array().unwrap().iter().filter(|one| one["stage"] == name && one["nodes"].is_array());
        let node = placed.next_back().unwrap_or_else(|| panic!("{name} is nowhere: {why} {job}"))["nodes"][0]
            .clone();
        run.destroy_node(node.as_str().unwrap());
        let job = run.finish();
        tell(&format!("node {node} in {name}"), &job);
        assert_eq!(outcome(&job), expected, "{name}");
    }
}

#[test]
fn a_coordinator_that_dies_in_every_stage_costs_no_bit() {
    let _alone = alone();
    let rig = Rig::new();
    let expected = outcome(&rig.undisturbed());
    let mut run = rig.start("4");
    for (name, figure, least) in
        [("crawl", "pages_fetched", 12), ("clean", "documents", 1), ("train", "step", 10)]
    {
        run.wait_for(name, |job| is_due(job, name, figure, least));
        kill(&run.coordinator());
    }
    let job = run.finish();
    tell("coordinator", &job);
    assert_eq!(outcome(&job), expected);
}

/// Asks the same question again and again, through whatever node takes it.
fn ask(home: &str) -> String {
    let question = ["query", "the node keeps", "--complete", "--max-tokens", "200", "--json", "--home", home];
    sixfold_tests::result(&question)["answer"].as_str().unwrap().to_owned()
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
    let rig = Rig::new();
    let job = rig.job.to_str().unwrap();
    let fast =
        ["--set", "train.steps=5", "--set", "train.context_length=256", "--set", "train.sequence_length=64"];
    let mut run = Running::start(&[&["run", job, "--local", "4", "--keep"][..], &fast].concat());
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
