//! Trials of faults in whole clusters: `kill -9` at random moments, each recorded by itself.
//!
//! A trial is a seed: it decides the moment and the victim. What a trial came to is compared with a run
//! that nothing disturbed. A loss is noticed by whoever is first: a daemon whose child ends, a rank whose link
//! closes, the coordinator. Steps redone are those that a rank had done and that the gang did again, as the job tells.
//! Where the coordinator was killed, it works again when a client has its answer; the longest of a trial counts.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use sixfold_bench::report::Report;
use sixfold_tests::{Process, Rig, Running, kill, outcome, stage};

/// Steps of a training that is disturbed.
const STEPS: u64 = 60;
/// Kills of the coordinator in the life of one job.
const COORDINATOR_KILLS: u64 = 3;
/// Nodes of a cluster: the plan has four ranks, and one node may be lost.
const NODES: usize = 5;
/// Figures of a trial that the table shows, with their titles.
const FIGURES: [(&str, &str); 5] = [
    ("detected_ms", "noticed after ms"),
    ("placed_ms", "placed ms later"),
    ("resumed_ms", "works again ms after notice"),
    ("steps_redone", "steps redone"),
    ("seconds", "whole job s"),
];

/// Trials of faults in whole clusters.
#[derive(Parser)]
struct Arguments {
    /// What is killed.
    #[arg(long, value_delimiter = ',', default_value = "worker,node,coordinator")]
    faults: Vec<Fault>,
    /// Trials a fault; seeds are 1, 2, ...
    #[arg(long, default_value_t = 30)]
    trials: u64,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write the table to this file, and every trial, when it ends, to the file of the same name with
    /// `.jsonl`.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Fault {
    /// A trainer's process in the middle of a training (X-F1).
    Worker,
    /// A node daemon with its workers, its data folder deleted, in the middle of a training (X-F2).
    Node,
    /// The coordinator, three times in the life of a job through all stages (X-F4).
    Coordinator,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Worker => "a worker killed in training",
            Self::Node => "a node killed in training, its folder deleted",
            Self::Coordinator => "the coordinator killed three times in a job through all stages",
        }
    }

    fn rig(self) -> Rig {
        match self {
            Self::Worker | Self::Node => Rig::training(STEPS),
            Self::Coordinator => Rig::whole_way(),
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut report = Report::new("fault_trials", arguments.trials as usize, &FIGURES.map(|(_, title)| title));
    let mut records = match &arguments.out {
        Some(out) => Some(File::create(out.with_extension("jsonl")).context("cannot write the trials")?),
        None => None,
    };
    for &fault in &arguments.faults {
        let rig = fault.rig();
        let since = Instant::now();
        let expected = outcome(&rig.start(NODES, &[]).finish());
        let undisturbed = since.elapsed();
        let (mut rows, mut equal) = (Vec::new(), 0);
        for seed in 1..=arguments.trials {
            let trial = Trial::run(fault, &rig, Dice::new(seed), undisturbed);
            let is_equal = outcome(&trial.job) == expected;
            let record = trial.record(fault, seed, is_equal);
            eprintln!("{record}");
            if let Some(records) = &mut records {
                writeln!(records, "{record}")?;
            }
            equal += u64::from(is_equal);
            rows.push(FIGURES.map(|(figure, _)| record[figure].as_f64()).to_vec());
        }
        let name = fault.name();
        report.add(&format!("{name} ({equal} of {} came to the same bits): median", arguments.trials), &rows);
        report.add_largest(&format!("{name}: largest"), &rows);
    }
    report.publish(arguments.json, arguments.out.as_deref())
}

/// What a trial did and came to.
struct Trial {
    /// What was killed, and when, in milliseconds since 1970.
    killed: Vec<(String, u64)>,
    /// The training's step when the kill was decided.
    step: Option<u64>,
    /// How long the coordinator was away each time, in milliseconds.
    away_ms: Vec<u64>,
    job: Value,
    seconds: f64,
}

impl Trial {
    fn run(fault: Fault, rig: &Rig, mut dice: Dice, undisturbed: Duration) -> Self {
        let since = Instant::now();
        let mut run = rig.start(NODES, &[]);
        let (mut killed, mut away_ms, mut step) = (Vec::new(), Vec::new(), None);
        match fault {
            Fault::Worker | Fault::Node => {
                let moment = 1 + dice.below(STEPS - 10);
                let reached = |job: &Value| step_of(job).filter(|&step| step >= moment);
                step = reached(&run.wait_for("the step", |job| reached(job).is_some()));
                std::thread::sleep(Duration::from_millis(dice.below(100)));
                let busy = busy_nodes(&run);
                let (name, workers) = &busy[dice.below(busy.len() as u64) as usize];
                killed.push((name.clone(), now_ms()));
                if matches!(fault, Fault::Worker) {
                    kill(&workers[0]);
                } else {
                    run.destroy_node(name);
                }
            }
            Fault::Coordinator => {
                run.wait_for("the job", |_| true);
                for _ in 0..COORDINATOR_KILLS {
                    let share = undisturbed / COORDINATOR_KILLS as u32;
                    std::thread::sleep(share.mul_f64(dice.below(800) as f64 / 1000.0));
                    if run.has_finished() {
                        break;
                    }
                    killed.push(("coordinator".to_owned(), now_ms()));
                    let since = Instant::now();
                    kill(&run.coordinator());
                    run.wait_for("the coordinator", |_| true);
                    away_ms.push(since.elapsed().as_millis() as u64);
                }
            }
        }
        let job = run.finish();
        Self { killed, step, away_ms, job, seconds: since.elapsed().as_secs_f64() }
    }

    fn record(&self, fault: Fault, seed: u64, equal: bool) -> Value {
        let first =
            self.job["recoveries"].as_array().and_then(|all| all.first()).filter(|_| self.step.is_some());
        let since_kill = |recovery: &Value| recovery["at_ms"].as_u64()?.checked_sub(self.killed[0].1);
        let figure = |name: &str| first.and_then(|recovery| recovery[name].as_u64());
        json!({
            "fault": fault.name(),
            "seed": seed,
            "killed": self.killed,
            "step": self.step,
            "detected_ms": first.and_then(since_kill),
            "placed_ms": figure("place_ms"),
            "resumed_ms": figure("resume_ms").or(self.away_ms.iter().max().copied()),
            "resumed_step": figure("step"),
            "steps_redone": figure("redone_steps"),
            "equal": equal,
            "loss_bits_blake3": self.job["loss_bits_blake3"],
            "weights_blake3": self.job["weights_blake3"],
            "seconds": self.seconds,
        })
    }
}

/// The step of the job's training, once it has one.
fn step_of(job: &Value) -> Option<u64> {
    stage(job, "train")["metrics"]["step"].as_u64()
}

/// The nodes that have worker processes, with these.
fn busy_nodes(run: &Running) -> Vec<(String, Vec<Process>)> {
    let nodes = (1..=NODES).map(|number| format!("node-{number}"));
    let nodes = nodes.map(|name| {
        let workers = run.node(&name).children();
        (name, workers)
    });
    nodes.filter(|(_, workers)| !workers.is_empty()).collect()
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The random choices of a trial: SplitMix64 of its seed.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound.max(1)
    }
}
