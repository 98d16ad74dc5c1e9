//! `sixfold quickstart`: the whole way once, from a site's pages to an answer, on a local cluster.

mod report;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sixfold_cluster::task::Metric;
use sixfold_coordinator::job::JobSpec;
use sixfold_coordinator::message::{JobView, StageView};
use sixfold_drift::DriftState;
use sixfold_infer::message::{ChatMessage, Prompt};

use crate::cli::QuickstartArgs;
use crate::client::Client;
use crate::commands::query::{Answered, answer, generate};
use crate::commands::{artifacts, jobs, print_json, verify};
use crate::report::TrainingReport;
use crate::run::{Started, folder};
use crate::site::{self, Site};
use crate::{job, process, watch};
use report::Report;

/// The job, with every choice but the site's.
const JOB: &str = include_str!("../../config/jobs/quickstart.toml");
/// Node daemons: the plan has four ranks.
const NODES: u32 = 4;
/// Tokens of the answer.
const ANSWER_TOKENS: u32 = 48;
/// What the model is asked where nobody asks anything else.
const QUESTION: &str = "What is a package?";
/// Pieces of text that the model is asked to go on with, for the drift monitor to have something to say.
const PROMPTS: usize = 32;
/// Characters of a piece: fewer tokens than the model's context, in any language.
const PROMPT_CHARS: usize = 90;
/// How long the drift monitor may take to hear of the questions and to say so.
const DRIFT_PATIENCE: Duration = Duration::from_secs(15);

/// `sixfold quickstart`.
pub(crate) async fn run(args: QuickstartArgs) -> Result<()> {
    let site = site::choose(args.site.as_deref()).await?;
    let spec = compile(&site, &args)?;
    verify::before_start(&spec, !args.options.json).await?;
    let (dir, temporary) = folder(&args.options, "sixfold-quickstart-")?;
    // People look at the results afterwards.
    temporary.map(tempfile::TempDir::keep);
    eprintln!("{}", site.about);
    let started = Started::start(&args.options, dir, NODES).await?;
    let outcome = tokio::select! {
        outcome = whole_way(&started, spec, &args) => outcome,
        () = process::end(false) => Err(anyhow::anyhow!("interrupted")),
    };
    if let Ok(report) = &outcome {
        if args.options.json {
            print_json(&report.to_json())
        } else {
            report.print()
        }
        if args.options.keep {
            started.explain();
            process::end(false).await;
        }
    }
    started.end().await;
    // The site was served until here.
    drop(site.server);
    outcome.map(drop)
}

/// The job for a site.
fn compile(site: &Site, args: &QuickstartArgs) -> Result<JobSpec> {
    let list = |items: &[String]| serde_json::to_string(items);
    let mut settings = vec![
        format!("crawl.seeds={}", list(&site.seeds)?),
        format!("crawl.path_prefixes={}", list(&site.path_prefixes)?),
        format!("crawl.allow_private_hosts={}", list(&site.allow_private_hosts)?),
        format!("crawl.delay_ms={}", site.delay_ms),
        format!("crawl.pages_max={}", args.pages),
    ];
    settings.extend(args.steps.map(|steps| format!("train.steps={steps}")));
    Ok(job::compile("config/jobs/quickstart.toml", JOB, &settings)?)
}

async fn whole_way(started: &Started, spec: JobSpec, args: &QuickstartArgs) -> Result<Report> {
    let (since, client) = (Instant::now(), &started.client);
    let id = jobs::submit_spec(client, spec).await?;
    let served = watch::watch(client, id, !args.options.json).await?;
    jobs::check(&served)?;
    let results = started.dir.join("results");
    export(client, &served, &results).await?;
    let training_report = TrainingReport::gather(client, id).await?.write(&results.join("train"))?;
    let question = args.question.as_deref().unwrap_or(QUESTION);
    let answered = stream_answer(client, question, args.options.json).await?;
    for prompt in prompts(&results)? {
        let request = generate(None, Prompt::Text(prompt), 1, 0.0, 0);
        answer(client, request, |_| {}).await?;
    }
    let view = drift_verdict(client, served).await?;
    Ok(Report {
        view,
        answer: answered,
        question: question.to_owned(),
        results,
        training_report,
        dir: started.dir.clone(),
        seconds: since.elapsed(),
    })
}

/// Streams the answer to the terminal.
async fn stream_answer(client: &Client, question: &str, quiet: bool) -> Result<Answered> {
    let prompt = Prompt::Chat(vec![ChatMessage { role: "user".to_owned(), content: question.to_owned() }]);
    if !quiet {
        eprint!("\n> {question}\n");
    }
    let answered = answer(client, generate(None, prompt, ANSWER_TOKENS, 0.0, 0), |piece| {
        if !quiet {
            eprint!("{piece}");
        }
    })
    .await?;
    if !quiet {
        eprintln!();
    }
    Ok(answered)
}

/// Copies what people want to look at out of the nodes' stores: one folder a stage.
async fn export(client: &Client, job: &JobView, results: &Path) -> Result<()> {
    let nodes: Vec<_> = client.nodes().await?.into_iter().map(|node| node.node.node).collect();
    for stage in
        job.stages.iter().filter(|stage| ["clean", "train", "evaluate"].contains(&stage.kind.as_str()))
    {
        for &id in &stage.outputs {
            artifacts::fetch(client, id, &nodes, &results.join(&stage.name)).await?;
        }
    }
    Ok(())
}

/// Pieces of documents from all over the corpus: asked of the model, they are what it was trained on.
fn prompts(results: &Path) -> Result<Vec<String>> {
    let file = results.join("clean/documents.jsonl");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines: Vec<&str> = text.lines().collect();
    let every = lines.len().div_ceil(PROMPTS).max(1);
    let piece = |line: &&str| {
        let document: serde_json::Value = serde_json::from_str(line)?;
        let text = document["text"].as_str().unwrap_or_default();
        let middle = text.chars().count() / 2;
        Ok(text.chars().skip(middle).take(PROMPT_CHARS).collect())
    };
    lines.iter().step_by(every).map(piece).collect()
}

/// The job once its drift monitor has heard enough to say something, or has had time enough.
async fn drift_verdict(client: &Client, mut view: JobView) -> Result<JobView> {
    let since = Instant::now();
    while !has_verdict(&view) {
        if since.elapsed() > DRIFT_PATIENCE {
            if count(&view, "drift", "tokens_asked") == 0 {
                bail!("the drift monitor heard of no question within {} s", DRIFT_PATIENCE.as_secs());
            }
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        view = jobs::job_view(client, view.job).await?;
    }
    Ok(view)
}

fn has_verdict(view: &JobView) -> bool {
    let state = stage(view, "drift").and_then(|stage| stage.metrics.get("drift_state"));
    matches!(state, Some(Metric::Text(state)) if *state != DriftState::TooFew.to_string())
}

fn stage<'a>(view: &'a JobView, kind: &str) -> Option<&'a StageView> {
    view.stages.iter().find(|stage| stage.kind == kind)
}

fn count(view: &JobView, kind: &str, name: &str) -> u64 {
    match stage(view, kind).and_then(|stage| stage.metrics.get(name)) {
        Some(Metric::Count(count)) => *count,
        _ => 0,
    }
}
