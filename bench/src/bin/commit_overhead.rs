//! What it costs a training to have its states held in memory: the same job with and without commits, in
//! alternation, on a local cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::Value;
use sixfold_bench::report::Report;
use sixfold_tests::{Running, root, stage};

/// What it costs a training to have its states held in memory.
#[derive(Parser)]
struct Arguments {
    /// Runs of each kind.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Which jobs, by their names; all by default.
    #[arg(long, value_delimiter = ',')]
    jobs: Vec<String>,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write the table to this file.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A job, the nodes that it runs on, its options, and the intervals between its commits.
struct Shape {
    name: &'static str,
    nodes: &'static str,
    settings: &'static [&'static str],
    every: &'static [u64],
}

/// The tiny job on four ranks, and the 16.9 M parameters of `sixfold bench train` on one.
const SHAPES: [Shape; 2] = [
    Shape {
        name: "tiny",
        nodes: "5",
        settings: &["steps=300", "tensor_parallel=2", "pipeline_parallel=2"],
        every: &[0, 1],
    },
    Shape {
        name: "17M",
        nodes: "2",
        settings: &[
            "steps=25",
            "layers=6",
            "hidden_size=384",
            "heads=6",
            "kv_heads=6",
            "feed_forward_size=1024",
            "context_length=256",
            "batch_sequences=8",
            "threads=2",
            "dropout=0.0",
        ],
        every: &[0, 1, 5],
    },
];

/// Vocabulary of the larger job's tokenizer.
const TOKENS_17M: [&str; 4] = ["--set", "tokens.tokenizer=train", "--set", "tokens.vocabulary=8192"];
/// Checkpoints are not what is measured.
const NO_CHECKPOINTS: &str = "train.checkpoint_every_steps=1000000";

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let columns = ["step ms", "steps committed", "whole job s"];
    let mut report = Report::new("commit_overhead", arguments.repeats, &columns);
    let text = std::env::temp_dir().join(format!("commit_overhead-{}.txt", std::process::id()));
    std::fs::write(&text, sources(&root().join("runtime"))?).context("cannot write the text")?;
    let chosen =
        |shape: &&Shape| arguments.jobs.is_empty() || arguments.jobs.iter().any(|job| job == shape.name);
    for shape in SHAPES.iter().filter(chosen) {
        let mut rows = vec![Vec::new(); shape.every.len()];
        for _ in 0..arguments.repeats {
            for (rows, &every) in rows.iter_mut().zip(shape.every) {
                let row = run(shape, every, &text)?;
                eprintln!("{}, every {every}: {row:?}", shape.name);
                rows.push(row);
            }
        }
        for (rows, every) in rows.iter().zip(shape.every) {
            let name = match every {
                0 => format!("{}, no commits", shape.name),
                every => format!("{}, a commit every {every} step(s)", shape.name),
            };
            report.add(&name, rows);
        }
    }
    std::fs::remove_file(&text).context("cannot remove the text")?;
    report.publish(arguments.json, arguments.out.as_deref())
}

/// The text to train on, which every checkout has: the sources in a folder.
fn sources(folder: &Path) -> Result<String> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort_unstable();
    let mut text = String::new();
    for path in paths {
        if path.is_dir() {
            text += &sources(&path)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            text += &std::fs::read_to_string(path)?;
        }
    }
    Ok(text)
}

/// One job to its end: the figures of the table's columns.
fn run(shape: &Shape, every: u64, text: &Path) -> Result<Vec<Option<f64>>> {
    let job = root().join("config/jobs/pretrain-tiny.toml");
    let settings = [
        format!("data.text={}", text.display()),
        format!("train.commit_every_steps={every}"),
        NO_CHECKPOINTS.to_owned(),
    ];
    let own = shape.settings.iter().map(|setting| format!("train.{setting}"));
    let settings: Vec<String> = settings.into_iter().chain(own).collect();
    let mut command = vec!["run", job.to_str().context("a path that is no text")?, "--local", shape.nodes];
    command.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    if shape.name == "17M" {
        command.extend(TOKENS_17M);
    }
    let job = Running::start(&command).finish();
    let rank = &job["ranks"][0];
    let figure = |value: &Value| value.as_f64();
    Ok(vec![
        figure(&rank["step_seconds"]).map(|seconds| seconds * 1000.0),
        figure(&rank["commits"]),
        figure(&stage(&job, "train")["seconds"]),
    ])
}
