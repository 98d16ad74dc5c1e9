//! Trials of faults in whole clusters, each drawn from a seed, compared with an undisturbed run and recorded by itself.
//!
//! A seed decides the fault, the plan, the moment and the victim. Times are those of the coordinator's events and of this
//! program, by the same clock; how far it drifted from the monotonic one during a trial stands in its record. A loss is
//! noticed by whoever is first: a daemon whose child ends, a rank whose link closes, the coordinator.

mod disk;
mod fault;
mod memory;
mod scene;
mod shape;
mod trial;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum as _};
use serde_json::Value;
use sixfold_bench::report::Report;

use fault::Fault;
use trial::{Trial, Undisturbed};

/// Figures of a trial that the table shows, with their titles.
const FIGURES: [(&str, &str); 9] = [
    ("detected_ms", "noticed after ms"),
    ("placed_ms", "placed ms after notice"),
    ("resumed_ms", "works again ms after notice"),
    ("coordinator_answers_again_ms", "coordinator answers again ms"),
    ("steps_redone", "steps redone"),
    ("samples_skipped", "samples skipped"),
    ("samples_doubled", "samples doubled"),
    ("peak_process_mib", "largest process MiB"),
    ("seconds", "whole job s"),
];

/// Trials of faults in whole clusters.
///
/// Each trial starts a cluster of this machine's processes, trains a tiny model under a plan
/// drawn at random (data, tensor and pipeline parallelism, interleaved and uneven stages, a
/// shared optimizer or not, f32 or bf16), does something to it, and compares the loss of every
/// step and the weights, bit by bit, with the run of one rank that nobody disturbed. A trial
/// takes 5 to 20 seconds. One that fails or differs does not end the others; its seed and its
/// kind repeat it:
///
///   fault_trials --seed 17 --trials 1
///   fault_trials --only worker,node --trials 30 --out trials.md
///
/// `--out trials.md` also writes trials.jsonl, a line a trial as soon as it ends: seed, plan,
/// what was injected and when (milliseconds since 1970), when that was noticed, decided and
/// mended, steps redone, samples skipped or doubled, peaks of memory, and whether the bits are
/// equal. Full disks need root, to mount file systems in memory.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Arguments {
    /// What is done; by default anything, drawn by each seed. A list draws among its members, so a
    /// seed is repeated with the same list.
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    only: Vec<Fault>,
    /// Trials.
    #[arg(long, default_value_t = 30)]
    trials: u64,
    /// Seed of the first trial; the others follow.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Go on from the trials in the file of `--out`: they stay, and stand in the table too.
    #[arg(long, requires = "out")]
    append: bool,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write the table to this file, and the trials to the file of the same name with `.jsonl`.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let faults = if arguments.only.is_empty() { Fault::value_variants() } else { &arguments.only };
    let mut report = Report::new("fault_trials", 1, &FIGURES.map(|(_, title)| title));
    let mut records = Vec::new();
    let mut file = match &arguments.out {
        Some(out) => {
            let path = out.with_extension("jsonl");
            if arguments.append {
                records = earlier(&path)?;
            }
            let mut options = File::options();
            options.create(true).write(true).append(arguments.append).truncate(!arguments.append);
            Some(options.open(&path).with_context(|| format!("cannot write {}", path.display()))?)
        }
        None => None,
    };
    let mut undisturbed = Undisturbed::default();
    for seed in arguments.seed..arguments.seed + arguments.trials {
        let mut record = Trial::draw(seed, faults).run(&mut undisturbed);
        record["commit"] = report.commit.as_str().into();
        eprintln!("{record}");
        if let Some(file) = &mut file {
            writeln!(file, "{record}")?;
        }
        records.push(record);
    }
    report.repeats = records.len();
    for &fault in Fault::value_variants() {
        let of_kind = records.iter().filter(|record| record["fault"] == fault.name());
        add_rows(&mut report, fault, &of_kind.collect::<Vec<_>>());
    }
    report.notes = notes(&records);
    report.publish(arguments.json, arguments.out.as_deref())
}

/// The trials that a file has.
fn earlier(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn add_rows(report: &mut Report, fault: Fault, records: &[&Value]) {
    if records.is_empty() {
        return;
    }
    let (n, id, name) = (records.len(), fault.id(), fault.name());
    let count = |what: &str| records.iter().filter(|record| record[what] == true).count();
    let (equal, expected) = (count("equal"), count("as_expected"));
    let rows: Vec<_> =
        records.iter().map(|record| FIGURES.map(|(figure, _)| record[figure].as_f64()).to_vec()).collect();
    report.add(&format!("{id} {name}: n = {n}, {equal} equal, {expected} as expected; median"), &rows);
    report.add_largest(&format!("{id} {name}: largest"), &rows);
}

/// What a reader must know beside the figures: every trial that is not as it should be.
fn notes(records: &[Value]) -> Vec<String> {
    let mut notes = vec![
        "Equal: the loss of every step and the weights have the bits of the undisturbed run of one rank. As expected: the \
         fault took effect and what must follow did (a frozen node that was not evicted after half a second, a checkpoint \
         that failed aloud, a damaged one that was not read, a job that says so when two nodes were all that had its input \
         ...). The commit of each trial stands in its record."
            .to_owned(),
    ];
    let wrong = |record: &&Value| record["equal"] != true || record["as_expected"] != true;
    let wrong: Vec<&Value> = records.iter().filter(wrong).collect();
    if wrong.is_empty() {
        notes.push(format!("All {} trials were equal and as expected.", records.len()));
    }
    for record in wrong {
        // What the run itself said, before the logs of its processes.
        let line = |text: &'_ str| {
            let said = text.lines().find(|line| line.starts_with("error: "));
            said.or_else(|| text.lines().next()).unwrap_or_default().to_owned()
        };
        let said = |what: &str| record[what].as_str().map(line);
        let why = match (said("failed"), said("stopped")) {
            (Some(failed), _) => format!("failed: {failed}"),
            (_, Some(stopped)) => format!("the job stopped: {stopped}"),
            _ if record["equal"] == true => "equal, but not as expected".to_owned(),
            _ => format!("other bits from step {}", record["first_step_with_other_bits"]),
        };
        let [fault, plan] = ["fault", "plan"].map(|name| record[name].as_str().unwrap_or_default());
        notes.push(format!("- seed {}, {fault}, {plan}: {why}", record["seed"]));
    }
    notes
}
