//! How training grows: with the model, with processes, and with the length of a sequence.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sixfold_bench::peer;
use sixfold_bench::report::Report;
use sixfold_telemetry::usage;
use sixfold_topology::Rank;
use sixfold_train::{Course, TrainOptions};
use sixfold_transport::identity::Role;
use sixfold_transport::link::TensorLink;
use sixfold_transport::tensor::{LinkKey, TensorEndpoint, TensorOptions};
use sixfold_wire::id::{Epoch, JobId};

/// How training grows: with the model, with processes, and with the length of a sequence.
///
/// Each measurement is a run of its own processes, so that peaks of memory are its own: a rank a
/// process, of one thread, joined by the links of a cluster (shared memory). Without a core for
/// each rank, CPU time a token is what counts, and tokens/s say nothing. Efficiency is the CPU
/// time a token of one rank over that of all ranks together; what is lost is computed twice, or
/// is no computing (links, waiting). The lengths are of one sequence a step, on `--threads`.
///
///   growth --sizes 5M,17M --lengths 512,2048 --out growth.md    some minutes on two cores
///   growth --sizes 60M --plans dp1,dp2 --lengths ""
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Arguments {
    /// Models: 5M, 17M, 60M, 135M.
    #[arg(long, value_delimiter = ',', default_value = "5M,17M,60M,135M")]
    sizes: Vec<String>,
    /// Plans of the models: dp1, dp2, tp2, pp2, dp2.tp2, tp2.pp2.
    #[arg(long, value_delimiter = ',', default_value = "dp1,dp2,tp2,pp2,dp2.tp2,tp2.pp2")]
    plans: Vec<String>,
    /// Lengths of a sequence, of the model of 17M.
    #[arg(long, value_delimiter = ',', default_value = "512,1024,2048,4096,8192,16384")]
    lengths: Vec<String>,
    /// Sliding windows of attention alone, in tokens, beside none.
    #[arg(long, value_delimiter = ',', default_value = "1024")]
    windows: Vec<usize>,
    /// Steps that count, after two that do not.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Threads where lengths grow.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Print a line of JSON for each table.
    #[arg(long)]
    json: bool,
    /// Also write the tables to this file, and their figures to the file of the same name with `.json`.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Be a rank, of this task.
    #[arg(long, hide = true, num_args = 2, value_names = ["RANK", "TASK"])]
    child: Option<Vec<String>>,
}

/// Shapes of the Llama family: name, layers, width, heads, feed-forward width, vocabulary.
const SIZES: [(&str, [usize; 5]); 4] = [
    ("5M", [4, 192, 6, 512, 8192]),
    ("17M", [6, 384, 6, 1024, 8192]),
    ("60M", [10, 640, 10, 1728, 8192]),
    ("135M", [12, 768, 12, 2048, 32_768]),
];
const SEQUENCE: usize = 256;
const BATCH_SEQUENCES: usize = 8;
/// A step of so long a sequence is long enough that the first one counts.
const LONG: usize = 8192;

/// What a rank is to do.
#[derive(Serialize, Deserialize)]
struct Task {
    options: TrainOptions,
    vocabulary: usize,
    warmup: u64,
    /// 0: the first step counts.
    steps: u64,
}

/// What a rank came to. Seconds and bytes are of a step.
#[derive(Serialize, Deserialize)]
struct Figures {
    parameters: usize,
    /// Median.
    step_seconds: f64,
    mean_seconds: f64,
    cpu_seconds: f64,
    computed_seconds: f64,
    bubble: f64,
    bytes_sent: f64,
    peak_bytes: u64,
    loss_bits: Vec<u32>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some([rank, task]) = arguments.child.as_deref() {
        return be_a_rank(Rank(rank.parse()?), &serde_json::from_str(task)?);
    }
    let reports = [models(&arguments)?, lengths(&arguments)?];
    for report in &reports {
        report.publish(arguments.json, None)?;
    }
    if let Some(out) = &arguments.out {
        std::fs::write(out.with_extension("json"), serde_json::to_string(&reports)?)?;
        std::fs::write(out, reports.map(|report| report.markdown()).join("\n"))?;
    }
    Ok(())
}

fn task(size: &str, plan: &str, steps: u64) -> Result<Task> {
    let shape = SIZES.iter().find(|(name, _)| *name == size).map(|(_, shape)| *shape);
    let [layers, hidden_size, heads, feed_forward_size, vocabulary] =
        shape.with_context(|| format!("no model {size}: there are 5M, 17M, 60M and 135M"))?;
    let plan: sixfold_topology::ParallelPlan = plan.parse()?;
    let options = TrainOptions {
        layers,
        hidden_size,
        heads,
        kv_heads: heads,
        feed_forward_size,
        context_length: SEQUENCE,
        batch_sequences: BATCH_SEQUENCES,
        data_parallel: plan.data_parallel,
        tensor_parallel: plan.tensor_parallel,
        pipeline_parallel: plan.pipeline_parallel,
        ..TrainOptions::default()
    };
    Ok(Task { options, vocabulary, warmup: 1, steps })
}

/// Runs the ranks of a task, each in a process.
fn run(task: &Task) -> Result<Vec<Figures>> {
    let text = serde_json::to_string(task)?;
    let said = peer::gang(task.options.plan().world_size(), &[&text])?;
    said.iter().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn models(arguments: &Arguments) -> Result<Report> {
    let columns = [
        "tokens/s",
        "CPU ms a token",
        "of it computing",
        "efficiency",
        "waited, of a rank's time",
        "of it for the pipeline",
        "MiB sent a rank a step",
        "peak MiB a rank",
        "peak MiB together",
    ];
    let words = ["parameters", "bits as dp1's"];
    let mut report = Report::new("growth", arguments.steps as usize, &columns).with_words(&words);
    let cores = std::thread::available_parallelism()?.get();
    for size in arguments.sizes.iter().filter(|size| !size.is_empty()) {
        let mut alone: Option<(f64, Vec<u32>)> = None;
        for plan in &arguments.plans {
            let task = task(size, plan, arguments.steps)?;
            let ranks = run(&task)?;
            let tokens = task.options.batch_tokens() as f64;
            let sum = |of: fn(&Figures) -> f64| ranks.iter().map(of).sum::<f64>();
            let most = |of: fn(&Figures) -> f64| ranks.iter().map(of).fold(0.0, f64::max);
            let cpu = sum(|rank| rank.cpu_seconds) * 1e3 / tokens;
            let first = ranks.first().context("no ranks")?;
            if ranks.len() == 1 {
                alone = Some((cpu, first.loss_bits.clone()));
            }
            let equal =
                alone.as_ref().map_or("", |(_, bits)| if *bits == first.loss_bits { "yes" } else { "NO" });
            let own_core = ranks.len() <= cores;
            let figures = vec![
                own_core.then(|| tokens / most(|rank| rank.step_seconds)),
                Some(cpu),
                own_core.then(|| sum(|rank| rank.computed_seconds) * 1e3 / tokens),
                alone.as_ref().map(|(alone, _)| alone / cpu),
                own_core.then(|| most(|rank| 1.0 - rank.computed_seconds / rank.mean_seconds).max(0.0)),
                own_core.then(|| most(|rank| rank.bubble)),
                Some(most(|rank| rank.bytes_sent) / f64::from(1 << 20)),
                Some(most(|rank| mib(rank.peak_bytes))),
                Some(sum(|rank| mib(rank.peak_bytes))),
            ];
            eprintln!("{size} {plan}: {figures:?}");
            let parameters = format!("{:.1} M", first.parameters as f64 / 1e6);
            report.add_told(&format!("{size}, {plan}"), vec![parameters, equal.to_owned()], figures);
        }
    }
    report.notes.push(format!(
        "{BATCH_SEQUENCES} sequences of {SEQUENCE} tokens a step; medians of the steps' times, means of all else. \"Of it \
         computing\" is wall time of ranks that have a core each, without what they waited for others."
    ));
    Ok(report)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn lengths(arguments: &Arguments) -> Result<Report> {
    let columns = ["tokens/s", "step s", "CPU ms a token", "peak MiB", "forward ms", "backward ms"];
    let mut report = Report::new("growth", 1, &columns);
    report.benchmark += " with the length of a sequence";
    for length in arguments.lengths.iter().filter(|length| !length.is_empty()) {
        let length: usize = length.parse().with_context(|| format!("{length} is no length"))?;
        let windows = arguments.windows.iter().filter(|&&window| window < length);
        for sliding_window in [0].iter().chain(windows).copied() {
            let mut task = task("17M", "dp1", if length < LONG { arguments.steps } else { 0 })?;
            task.options = TrainOptions {
                context_length: length,
                sliding_window,
                batch_sequences: 1,
                threads: arguments.threads,
                ..task.options
            };
            if length >= LONG {
                task.warmup = 0;
            }
            let ranks = run(&task)?;
            let rank = ranks.first().context("no rank")?;
            let [forward, backward] = attention(length, sliding_window, arguments.threads)?;
            let figures = vec![
                Some(length as f64 / rank.step_seconds),
                Some(rank.step_seconds),
                Some(rank.cpu_seconds * 1e3 / length as f64),
                Some(mib(rank.peak_bytes)),
                Some(forward),
                Some(backward),
            ];
            let name =
                if sliding_window == 0 { "dense".to_owned() } else { format!("window {sliding_window}") };
            eprintln!("{length}, {name}: {figures:?}");
            report.add_told(&format!("{length} tokens, {name}"), Vec::new(), figures);
        }
    }
    report.notes.push(format!(
        "One sequence a step, {} threads. From {LONG} tokens on it is the first step that is told, which also takes the \
         memory. Steps are those of the model of 17M; forward and backward are attention of one of its layers alone, 6 heads of \
         64.",
        arguments.threads
    ));
    Ok(report)
}

/// Milliseconds of attention forward and backward over one document.
fn attention(tokens: usize, window: usize, threads: usize) -> Result<[f64; 2]> {
    let output = Command::new(sixfold_tests::binary())
        .args(["bench", "attention", &tokens.to_string(), "--window", &window.to_string(), "--json"])
        .args(["--heads", "6", "--head-dim", "64", "--threads", &threads.to_string()])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&output.stdout)?;
    let [forward, backward] =
        ["forward_ms", "backward_ms"].map(|name| figures[name].as_f64().context("no time"));
    Ok([forward?, backward?])
}

fn be_a_rank(rank: Rank, task: &Task) -> Result<()> {
    let identity = peer::given_identity()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let endpoint = TensorEndpoint::bind(identity.into(), TensorOptions::new(peer::loopback()))?;
    peer::announce(endpoint.local_address()?)?;
    let addresses = peer::addresses()?;
    let course = Course::new(&task.options, task.vocabulary, 0, (task.warmup, task.steps))?;
    let mut links = std::collections::HashMap::<Rank, Box<dyn TensorLink>>::new();
    for peer in course.peers(rank) {
        let (from, to) = (rank.0.min(peer.0), rank.0.max(peer.0));
        let key = LinkKey { job: JobId(1), epoch: Epoch(1), from, to, purpose: "growth".to_owned() };
        let link = if rank < peer {
            let address = addresses.get(peer.index()).context("too few ranks")?;
            runtime.block_on(endpoint.connect(*address, Role::Node, key))?
        } else {
            runtime.block_on(endpoint.accept(Role::Node, key))?
        };
        links.insert(peer, link);
    }
    // CPU time after each step, and the peak of memory before weights are hashed.
    let (mut cpu, mut peak) = (vec![usage::cpu_seconds()], Ok(0));
    let measured = course.rank(rank, links, |_| {
        cpu.push(usage::cpu_seconds());
        peak = usage::peak_resident_bytes("self");
    })?;
    let cpu = cpu.into_iter().collect::<Result<Vec<f64>, _>>()?;
    let counted = task.steps.max(1) as f64;
    let since = if task.steps == 0 { 0 } else { 1 + task.warmup as usize };
    let mut steps: Vec<f64> = measured.steps.iter().map(Duration::as_secs_f64).collect();
    steps.sort_by(f64::total_cmp);
    let figures = Figures {
        parameters: course.parameters(),
        step_seconds: steps.get(steps.len() / 2).copied().unwrap_or(measured.first.as_secs_f64()),
        mean_seconds: steps.iter().sum::<f64>() / counted,
        cpu_seconds: (cpu[cpu.len() - 1] - cpu[since]) / counted,
        computed_seconds: measured.computed.as_secs_f64() / counted,
        bubble: measured.bubble,
        bytes_sent: measured.bytes_sent as f64 / counted,
        peak_bytes: peak?,
        loss_bits: measured.losses.iter().map(|loss| loss.to_bits()).collect(),
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}
