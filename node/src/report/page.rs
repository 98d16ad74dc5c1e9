//! The page of a report: what the template shows, and the template filled in.
//!
//! The template escapes every text; only pictures, which this program drew, are put in as they are.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use minijinja::{Environment, Value, context};
use sixfold_train::{HistoryPoint, RankAccount};

use super::TrainingReport;
use super::bars::{self, Bar, RANKS_MAX};
use super::curves::Figure;
use super::events::{EVENTS_MAX, Event};
use super::plot::{SMALL, WIDE, compact};
use crate::watch::duration;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const MEBIBYTE: f64 = 1_048_576.0;

/// A row of the table of ranks, in the order of its headings.
type RankRow = Vec<String>;

/// What a part of a step is.
fn about(part: &str) -> &'static str {
    match part {
        "compute" => "passes through the model",
        "tensor_all_reduce" => "sums over the tensor-parallel group",
        "tensor_reduce_scatter" => "sums over it of which each rank keeps its rows",
        "tensor_all_gather" => "rows of its ranks, before a product",
        "pipeline_receive" => "activations and gradients from other stages; its waiting is the bubble",
        "pipeline_send" => "the same on their way out",
        "gradient_reduce_scatter" => "gradients over replicas that share the optimizer",
        "gradient_all_reduce" => "gradients that every replica updates",
        "parameter_all_gather" => "parameters that other replicas have updated",
        "embedding_all_reduce" => "gradients of a tied embedding, between the ends of a pipeline",
        "figures" => "loss, gradient norm and health",
        "optimizer" => "AdamW",
        "data_wait" => "waiting for the batch",
        "save" => "copying the state for commits and checkpoints",
        "other" => "between steps, and what is not named",
        _ => "",
    }
}

/// The whole page.
pub(super) fn render(report: &TrainingReport) -> Result<String> {
    let mut environment = Environment::new();
    environment.add_template("page.html", TEMPLATE).context("the report's template is broken")?;
    let template = environment.get_template("page.html")?;
    let bars: Vec<Bar> = report.ranks.iter().map(|rank| bar(&rank.account)).collect();
    let page = template.render(context! {
        style => STYLE,
        job => report.view.job.0,
        name => report.view.name.clone(),
        state => report.view.state.to_string(),
        subject => subject(report),
        cards => cards(report),
        loss => picture(report.loss_figure()?),
        figures => report.small_figures()?.into_iter().map(picture).collect::<Vec<_>>(),
        bars_small => bars::draw(&bars, SMALL.width)?,
        bars_wide => bars::draw(&bars, WIDE.width)?,
        bars_left_out => bars.len().saturating_sub(RANKS_MAX),
        parts => parts(report),
        rank_headings => RANK_HEADINGS.to_vec(),
        ranks => report.ranks.iter().map(|rank| rank_row(report, rank)).collect::<Vec<_>>(),
        plan => plan(report),
        events => report.events.iter().map(event).collect::<Vec<_>>(),
        events_max => EVENTS_MAX,
        lineage => lineage(report),
    });
    page.context("the report's template cannot be filled in")
}

fn picture(Figure { title, caption, small, wide }: Figure) -> Value {
    context! { title, caption, small, wide }
}

fn event(Event { step, what, text }: &Event) -> Value {
    context! { step, what => *what, text }
}

/// A figure in a card.
fn card(title: &str, value: String, about: String) -> Value {
    context! { title, value, about }
}

/// Milliseconds of a step by part.
fn bar(account: &RankAccount) -> Bar {
    let steps = account.steps.max(1) as f64;
    let parts = account.time.parts();
    let ms = |(name, seconds): (String, f64)| (name, 1e3 * seconds / steps);
    Bar { rank: account.rank, parts: parts.into_iter().map(ms).collect() }
}

fn subject(report: &TrainingReport) -> String {
    let o = &report.options;
    format!(
        "Stage “{}” trains a decoder of the {:?} family on {}: {} layers, width {}, {} heads, contexts of {} tokens.",
        report.training.stage,
        o.family,
        report.training.plan,
        o.layers,
        o.hidden_size,
        o.heads,
        o.context_length
    )
}

fn cards(report: &TrainingReport) -> Vec<Value> {
    let history = &report.history;
    let loss = |point: Option<&HistoryPoint>| match point {
        Some(point) => format!("{:.4}", point.loss),
        None => "–".to_owned(),
    };
    let (first, last) = (loss(history.points.first()), loss(history.points.last()));
    let of_point = match history.stride {
        1 => "of the last step".to_owned(),
        stride => format!("of up to {stride} last steps"),
    };
    let mut cards = vec![
        card("Steps", format!("{} / {}", history.steps, report.options.steps), state(report)),
        card("Loss", last, format!("nats, {of_point}; it began at {first}")),
    ];
    if let Some(held_out) = report.held_out_loss() {
        let about = format!("nats of held-out text; a perplexity of {:.2}", held_out.exp());
        cards.push(card("Held-out loss", format!("{held_out:.4}"), about));
    }
    let measured: Vec<_> = history.points.iter().filter(|point| point.seconds > 0.0).collect();
    if !measured.is_empty() {
        let seconds = measured.iter().map(|p| f64::from(p.seconds)).sum::<f64>() / measured.len() as f64;
        let speed = report.options.batch_tokens() as f64 / seconds;
        let about = format!("mean; {} tokens a step, {:.0} ms", report.options.batch_tokens(), 1e3 * seconds);
        cards.push(card("Tokens a second", compact(speed), about));
        let mfu = measured.iter().map(|p| f64::from(p.mfu)).sum::<f64>() / measured.len() as f64;
        if mfu > 0.0 {
            let peak = report.ranks.iter().map(|rank| rank.account.peak_gflops).sum::<f64>();
            let told = if report.options.peak_gflops > 0.0 { "told" } else { "measured" };
            let about = format!("mean, of the {told} peak of products: {peak:.0} GFLOP/s of all ranks");
            cards.push(card("MFU", format!("{:.1} %", 100.0 * mfu), about));
        }
    }
    let starved: u64 = report.ranks.iter().map(|rank| rank.account.starved_steps).sum();
    let waited = 1e3 * report.mean(|account| account.time.data_wait_seconds / account.steps.max(1) as f64);
    let about = format!("steps that waited for their batch, of all ranks; {waited:.2} ms a step on average");
    cards.push(card("Starved", starved.to_string(), about));
    cards
}

fn state(report: &TrainingReport) -> String {
    let number = |name| match report.figure(name) {
        Some(sixfold_cluster::task::Metric::Number(number)) => Some(*number),
        _ => None,
    };
    match number("eta_seconds").filter(|_| !report.view.state.has_ended()) {
        Some(seconds) => format!("{} left, as expected", duration(seconds)),
        None => format!("job {}", report.view.state),
    }
}

/// Means over ranks of the parts that any rank has, in the order of the bars.
fn parts(report: &TrainingReport) -> Vec<Value> {
    let mut names: Vec<String> = Vec::new();
    let mut seen = BTreeSet::new();
    for rank in &report.ranks {
        names.extend(
            rank.account
                .time
                .parts()
                .into_iter()
                .map(|(name, _)| name)
                .filter(|name| seen.insert(name.clone())),
        );
    }
    let steps = |account: &RankAccount| account.steps.max(1) as f64;
    let all = report.mean(|account| account.time.seconds / steps(account)).max(f64::MIN_POSITIVE);
    let part = |name: String| {
        let seconds = report.mean(|account| {
            let parts = account.time.parts();
            parts.iter().find(|(part, _)| *part == name).map_or(0.0, |(_, seconds)| seconds / steps(account))
        });
        let of_collective = |of: fn(&sixfold_train::CollectiveTimes) -> f64| {
            report.mean(|account| account.time.collectives.get(&name).map_or(0.0, of) / steps(account))
        };
        let is_collective = report.ranks.iter().any(|rank| rank.account.time.collectives.contains_key(&name));
        let only = |text: String| if is_collective { text } else { String::new() };
        context! {
            about => about(&name),
            colour => bars::css(bars::colour(&name)),
            ms => format!("{:.2}", 1e3 * seconds),
            share => format!("{:.1} %", 100.0 * seconds / all),
            waited_ms => only(format!("{:.2}", 1e3 * of_collective(|times| times.waited_seconds))),
            calls => only(compact(of_collective(|times| times.calls as f64))),
            mib => only(format!("{:.3}", of_collective(|times| times.bytes_sent as f64) / MEBIBYTE)),
            name => name.replace('_', " "),
        }
    };
    names.into_iter().map(part).collect()
}

const RANK_HEADINGS: [&str; 14] = [
    "rank",
    "node",
    "dp",
    "tp",
    "pp",
    "ms/step",
    "compute ms",
    "bubble",
    "scheduled",
    "GFLOP/s",
    "peak",
    "HFU",
    "memory MiB",
    "sent MiB/step",
];

fn rank_row(report: &TrainingReport, rank: &super::Rank) -> RankRow {
    let account = &rank.account;
    let place = report.training.plan.coordinates(sixfold_topology::Rank(account.rank));
    let steps = account.steps.max(1) as f64;
    let seconds = account.time.seconds.max(f64::MIN_POSITIVE);
    vec![
        account.rank.to_string(),
        rank.node.clone().unwrap_or_else(|| "–".to_owned()),
        place.data.to_string(),
        place.tensor.to_string(),
        place.pipeline.to_string(),
        format!("{:.1}", 1e3 * account.step_seconds),
        format!("{:.1}", 1e3 * account.time.compute_seconds / steps),
        format!("{:.0} %", 100.0 * account.bubble),
        format!("{:.0} %", 100.0 * account.scheduled_bubble),
        format!("{:.1}", account.flops as f64 / seconds / 1e9),
        format!("{:.1}", account.peak_gflops),
        format!("{:.1} %", 100.0 * account.hfu),
        format!("{:.0}", account.resident_bytes_max as f64 / MEBIBYTE),
        format!("{:.3}", account.bytes_sent as f64 / steps / MEBIBYTE),
    ]
}

/// The plan and the choices that go with it.
fn plan(report: &TrainingReport) -> Vec<Vec<String>> {
    let (o, plan) = (&report.options, &report.training.plan);
    let layers = match o.stage_layers.as_slice() {
        [] => "as even as the work is".to_owned(),
        layers => format!("{layers:?}"),
    };
    let optimizer =
        if o.shares_optimizer() { "shared by replicas (ZeRO-1)" } else { "a copy on each replica" };
    let rows = [
        ("data parallel", plan.data_parallel.to_string()),
        ("tensor parallel", plan.tensor_parallel.to_string()),
        ("pipeline parallel", plan.pipeline_parallel.to_string()),
        ("wanted plan", report.training.wanted_plan.to_string()),
        ("virtual stages", o.virtual_stages.to_string()),
        ("layers of stages", layers),
        ("ZeRO stage", format!("{}: {optimizer}", o.zero_stage)),
        ("logical tensor shards", o.tensor_shards.to_string()),
        ("data groups", o.data_groups().to_string()),
        ("batch", format!("{} sequences of {} tokens", o.batch_sequences, o.sequence())),
        ("micro-batch", format!("{} sequences", o.micro_batch())),
        ("threads of a rank", o.threads.to_string()),
        ("operands of products", o.dtype.name().to_owned()),
        (
            "learning rate",
            format!(
                "{} after {} steps, then down to {}",
                o.learning_rate, o.warmup_steps, o.min_learning_rate
            ),
        ),
        (
            "AdamW",
            format!(
                "β {} and {}, ε {}, weight decay {}, clipped at {}",
                o.beta1, o.beta2, o.epsilon, o.weight_decay, o.clip_norm
            ),
        ),
        ("seed", o.seed.to_string()),
        ("commits", format!("every {} steps", o.commit_every_steps)),
        ("checkpoints", format!("every {} steps", o.checkpoint_every_steps)),
    ];
    rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect()
}

/// What came of it, and from what.
fn lineage(report: &TrainingReport) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for (name, about) in
        [("weights_blake3", "BLAKE3 of the weights"), ("loss_bits_blake3", "BLAKE3 of the losses")]
    {
        if let Some(hash) = report.text(name) {
            rows.push(vec![about.to_owned(), hash.to_owned()]);
        }
    }
    for stage in &report.view.stages {
        for output in stage.outputs.iter().take(3) {
            rows.push(vec![format!("{} ({})", stage.name, stage.kind), output.to_string()]);
        }
    }
    rows
}
