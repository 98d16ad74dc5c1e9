//! One trial: a seed, what follows from it, and the record of what came of it.

use std::any::Any;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, Value, json};
use sixfold_bench::dice::Dice;
use sixfold_tests::{Rig, Running};

use crate::disk::{self, SmallDisks};
use crate::fault::Fault;
use crate::memory::{Peaks, Watch};
use crate::scene::{Injection, Scene, now_ms};
use crate::shape::Shape;

/// Nodes of a cluster with room to spare: a plan has four ranks at most, and two nodes may be lost.
const NODES: usize = 6;
/// Sequences of a step.
const BATCH_SEQUENCES: u64 = 8;

/// What an undisturbed run comes to.
#[derive(PartialEq, Eq)]
pub(crate) struct Bits {
    losses: Vec<String>,
    weights: String,
}

impl Bits {
    fn of(run: &Running, job: &Value) -> Result<Self> {
        let weights = job["weights_blake3"].as_str().unwrap_or_default().to_owned();
        Ok(Self { losses: disk::loss_bits(run.dir())?, weights })
    }
}

/// The undisturbed serial runs so far, by steps and what products are rounded to.
#[derive(Default)]
pub(crate) struct Undisturbed(HashMap<(u64, &'static str), Bits>);

impl Undisturbed {
    /// Runs it if it was not yet.
    fn get(&mut self, steps: u64, dtype: &'static str) -> Result<&Bits> {
        Ok(match self.0.entry((steps, dtype)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let settings = Shape::serial(dtype).settings();
                let settings = with_set([settings, vec!["train.commit_every_steps=0".to_owned()]].concat());
                let more: Vec<&str> = settings.iter().map(String::as_str).collect();
                let (run, job) = Rig::training(steps).start(1, &more).finish_and_keep();
                unknown.insert(Bits::of(&run, &job)?)
            }
        })
    }
}

fn with_set(settings: Vec<String>) -> Vec<String> {
    settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect()
}

/// A trial before it is run.
pub(crate) struct Trial {
    fault: Fault,
    seed: u64,
    dice: Dice,
    shape: Shape,
    checkpoint_every: u64,
}

impl Trial {
    /// What follows from a seed: one of the faults, the plan, and whether checkpoints are near.
    pub(crate) fn draw(seed: u64, faults: &[Fault]) -> Self {
        let mut dice = Dice::new(seed);
        let fault = *dice.pick(faults);
        let shape = Shape::draw(&mut dice);
        let near = dice.heads() || matches!(fault, Fault::FullDisk | Fault::DamagedCheckpoint);
        Self { fault, seed, dice, shape, checkpoint_every: if near { 10 } else { 1_000_000 } }
    }

    /// Runs it to its end, whatever comes; its record.
    pub(crate) fn run(self, undisturbed: &mut Undisturbed) -> Value {
        let (mut record, fault, mut injections) = (self.head(), self.fault, Vec::new());
        let ended = catch_unwind(AssertUnwindSafe(|| self.play(undisturbed, &mut injections)));
        let injections: Vec<Value> = injections.iter().map(|one| json!([one.what, one.at_ms])).collect();
        record.insert("injections".to_owned(), json!(injections));
        let failure = match ended {
            Ok(Ok(told)) => {
                record.extend(told);
                return Value::Object(record);
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => message_of(panic.as_ref()),
        };
        // Two nodes may be all that had some input; then there is nothing to go on with, and the job must say so.
        let lost = failure.lines().find(|line| line.contains("every copy was lost"));
        if let Some(lost) = lost.filter(|_| matches!(fault, Fault::TwoAtOnce | Fault::InRecovery)) {
            record.insert("stopped".to_owned(), json!(lost));
            record.insert("as_expected".to_owned(), json!(true));
        } else {
            record.insert("failed".to_owned(), json!(failure));
        }
        Value::Object(record)
    }

    fn head(&self) -> Map<String, Value> {
        object(json!({
            "seed": self.seed,
            "id": self.fault.id(),
            "fault": self.fault.name(),
            "plan": self.shape.name(),
            "steps": self.fault.steps(),
            "checkpoint_every_steps": self.checkpoint_every,
        }))
    }

    fn settings(&self) -> Vec<String> {
        let mut settings = self.shape.settings();
        settings.push(format!("train.checkpoint_every_steps={}", self.checkpoint_every));
        match self.fault {
            // The states that nodes hold shall be gone too.
            Fault::DamagedCheckpoint => settings.push("train.commit_every_steps=0".to_owned()),
            Fault::Elastic => {
                settings.extend(["shrink", "widen"].map(|what| format!("train.{what}_after_seconds=0")));
            }
            _ => {}
        }
        let mut arguments = with_set(settings);
        arguments.push("--no-verify-plan".to_owned());
        if self.fault == Fault::Elastic {
            arguments.extend(["--cores".to_owned(), "1".to_owned()]);
        }
        arguments
    }

    fn play(
        self,
        undisturbed: &mut Undisturbed,
        injections: &mut Vec<Injection>,
    ) -> Result<Map<String, Value>> {
        let (fault, steps) = (self.fault, self.fault.steps());
        let expected = undisturbed.get(steps, self.shape.dtype)?;
        let nodes = if fault == Fault::Elastic { self.shape.ranks() } else { NODES };
        let folder = tempfile::tempdir()?;
        let disks =
            if fault == Fault::FullDisk { Some(SmallDisks::mount(folder.path(), nodes)?) } else { None };
        let settings = self.settings();
        let more: Vec<&str> = settings.iter().map(String::as_str).collect();
        let (since, since_ms) = (Instant::now(), now_ms());
        let run = Rig::training(steps).start_in_folder(folder, nodes, &more);
        let mut watch = Watch::start(run.dir());
        let facts = Vec::new();
        let mut scene =
            Scene { _disks: disks, run, dice: self.dice, shape: self.shape, injections, step: None, facts };
        scene.play(fault)?;
        let Scene { _disks, run, injections, step, facts, .. } = scene;
        let (run, job) = run.finish_and_keep();
        let ended = Ended {
            job: &job,
            injections,
            step,
            peaks: watch.stop(),
            seconds: since.elapsed().as_secs_f64(),
            clock_drift_ms: (now_ms() - since_ms) as i64 - since.elapsed().as_millis() as i64,
        };
        let mut record = ended.figures();
        record.extend(compare(&Bits::of(&run, &job)?, expected));
        record.extend(facts.into_iter().map(|(name, fact)| (name.to_owned(), fact)));
        record.insert("as_expected".to_owned(), json!(is_as_expected(fault, &record)));
        Ok(record)
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}

/// What a trial that came to its end came to.
struct Ended<'a> {
    job: &'a Value,
    injections: &'a [Injection],
    step: Option<u64>,
    peaks: Peaks,
    seconds: f64,
    clock_drift_ms: i64,
}

impl Ended<'_> {
    fn figures(&self) -> Map<String, Value> {
        let list = |name: &str| self.job[name].as_array().cloned().unwrap_or_default();
        let (recoveries, changes) = (list("recoveries"), list("plan_changes"));
        let all: Vec<&Value> = recoveries.iter().chain(&changes).collect();
        let most = |name: &str| all.iter().filter_map(|one| one[name].as_u64()).max();
        let first = all.iter().filter_map(|one| one["at_ms"].as_u64()).min();
        // What was noticed first was done last before.
        let injected =
            self.injections.iter().map(|injection| injection.at_ms).filter(|&at| Some(at) <= first).max();
        let times = |name: &str| -> Vec<Value> { all.iter().map(|one| one[name].clone()).collect() };
        // Faults that one new attempt mended have cost its steps once.
        let attempts: BTreeSet<_> = all
            .iter()
            .filter_map(|one| {
                let resumed = one["at_ms"].as_u64()? + one["resume_ms"].as_u64()?;
                Some((resumed, one["redone_steps"].as_u64()?))
            })
            .collect();
        let resumed_step = all.first().and_then(|one| one["step"].as_u64());
        // Without states in memory nobody tells how far the gang was.
        let seen = self.step.zip(resumed_step).map_or(0, |(step, resumed)| step.saturating_sub(resumed));
        let redone = attempts.iter().map(|(_, redone)| redone).sum::<u64>().max(seen);
        object(json!({
            "step": self.step,
            "detected_ms": first.zip(injected).map(|(first, injected)| first - injected),
            "placed_ms": most("place_ms"),
            "resumed_ms": most("resume_ms"),
            "detected_at_ms": times("at_ms"),
            "causes": recoveries.iter().map(|one| one["cause"].clone()).collect::<Vec<_>>(),
            "plans": changes.iter().map(|one| one["to"].clone()).collect::<Vec<_>>(),
            "resumed_steps": times("step"),
            "steps_redone": if all.is_empty() { Value::Null } else { json!(redone) },
            "peak_process_mib": self.peaks.process >> 20,
            "peak_cluster_mib": self.peaks.cluster >> 20,
            "clock_drift_ms": self.clock_drift_ms,
            "seconds": self.seconds,
        }))
    }
}

/// How a run's bits differ from those of the undisturbed one. A step's loss follows from the state before it and the
/// samples of the step: where every step is there with its bits, every sample was used once and in its place.
fn compare(bits: &Bits, expected: &Bits) -> Map<String, Value> {
    let pairs = bits.losses.iter().zip(&expected.losses);
    let different = pairs.clone().filter(|(one, other)| one != other).count();
    let first = pairs.clone().position(|(one, other)| one != other);
    let [more, less] = [(&bits.losses, &expected.losses), (&expected.losses, &bits.losses)]
        .map(|(a, b)| (a.len().saturating_sub(b.len())) as u64 * BATCH_SEQUENCES);
    let known = different == 0;
    object(json!({
        "equal": bits == expected,
        "steps_with_other_bits": different,
        "first_step_with_other_bits": first,
        "samples_doubled": known.then_some(more),
        "samples_skipped": known.then_some(less),
        "weights_blake3": bits.weights,
    }))
}

/// Whether the fault had its effect and what must follow did; the bits are another matter.
fn is_as_expected(fault: Fault, record: &Map<String, Value>) -> bool {
    let count = |name: &str| record.get(name).and_then(Value::as_array).map_or(0, Vec::len);
    let number = |name: &str| record.get(name).and_then(Value::as_u64);
    match fault {
        Fault::ShortFreeze => count("causes") == 0,
        Fault::Coordinator => count("causes") == 0 && number("coordinator_answers_again_ms").is_some(),
        Fault::Replan => count("plans") > 0,
        Fault::Elastic => count("plans") == 2,
        Fault::FullDisk => number("checkpoints_failed_aloud") > Some(0),
        Fault::DamagedCheckpoint => {
            let resumed = record.get("resumed_steps").and_then(|steps| steps[0].as_u64());
            resumed.is_some() && resumed < number("damaged_step")
        }
        _ => count("causes") > 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(losses: &[&str], weights: &str) -> Bits {
        Bits { losses: losses.iter().map(|&bits| bits.to_owned()).collect(), weights: weights.to_owned() }
    }

    #[test]
    fn a_run_with_other_bits_is_told_from_one_with_the_same() {
        let expected = bits(&["a", "b", "c"], "w");
        let figures = |losses: &[&str], weights| {
            let record = compare(&bits(losses, weights), &expected);
            ["equal", "first_step_with_other_bits", "samples_skipped", "samples_doubled"]
                .map(|name| record[name].clone())
        };
        assert_eq!(figures(&["a", "b", "c"], "w"), [json!(true), json!(null), json!(0), json!(0)]);
        assert_eq!(figures(&["a", "x", "c"], "w"), [json!(false), json!(1), json!(null), json!(null)]);
        assert_eq!(figures(&["a", "b"], "w"), [json!(false), json!(null), json!(8), json!(0)]);
        assert_eq!(figures(&["a", "b", "c"], "v"), [json!(false), json!(null), json!(0), json!(0)]);
    }

    #[test]
    fn a_seed_decides_the_trial_and_kinds_are_drawn_from_the_list_alone() {
        let head = |seed, faults: &[Fault]| Trial::draw(seed, faults).head();
        assert_eq!(head(7, &[Fault::Worker, Fault::Node]), head(7, &[Fault::Worker, Fault::Node]));
        for seed in 0..20 {
            assert_eq!(head(seed, &[Fault::Elastic])["id"], Fault::Elastic.id());
        }
    }
}
