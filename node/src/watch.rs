//! Live progress of a job: one bar a stage, on standard error.

use anyhow::{Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sixfold_cluster::task::{Metric, Metrics};
use sixfold_coordinator::message::{
    ClientReply, ClientRequest, JobState, JobView, PlanChange, StageState, StageView,
};
use sixfold_wire::id::JobId;

use crate::client::Client;

/// Figures shown beside a bar, in this order, with what is printed behind them.
const FIGURES: [(&str, &str); 17] = [
    ("pages_fetched", "pages"),
    ("documents", "documents"),
    ("documents_kept", "kept"),
    ("documents_rejected", "rejected"),
    ("tokens", "tokens"),
    ("step", "steps"),
    ("steps", "steps"),
    ("loss", "loss"),
    ("loss_last", "loss"),
    ("held_out_loss", "held out"),
    ("gradient_norm", "gradient norm"),
    ("tokens_per_second", "tokens/s"),
    ("mfu", "MFU"),
    ("eta_seconds", "left"),
    ("perplexity", "perplexity"),
    ("js_distance", "JS"),
    ("drift_state", ""),
];

/// Follows a job until it has ended or all of its services are up.
///
/// # Errors
/// Where the cluster cannot be reached for long, or does not know the job.
pub(crate) async fn watch(client: &Client, job: JobId, show: bool) -> Result<JobView> {
    let mut bars = Bars::new(show);
    let mut since = 0;
    loop {
        let (version, view) = changed(client, job, since).await?;
        since = version;
        bars.update(&view);
        if view.state != JobState::Running {
            bars.finish();
            return Ok(view);
        }
    }
}

/// The job when it has changed since `since`, or after a while; and what to ask with next.
///
/// # Errors
/// As [`watch`].
pub(crate) async fn changed(client: &Client, job: JobId, since: u64) -> Result<(u64, JobView)> {
    match client.request(ClientRequest::Watch { job, since }).await? {
        ClientReply::Watched { version, job } => Ok((version, *job)),
        ClientReply::Refused(refusal) => bail!(refusal),
        other => bail!("unexpected answer {other:?}"),
    }
}

struct Bars {
    all: MultiProgress,
    stages: Vec<ProgressBar>,
}

impl Bars {
    fn new(show: bool) -> Self {
        let target = if show { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { all: MultiProgress::with_draw_target(target), stages: Vec::new() }
    }

    fn update(&mut self, job: &JobView) {
        while self.stages.len() < job.stages.len() {
            self.stages.push(self.all.add(ProgressBar::new(0)));
        }
        for (bar, stage) in self.stages.iter().zip(&job.stages) {
            let (done, total) = extent(stage);
            bar.set_style(style(stage.state, total));
            bar.set_prefix(stage.name.clone());
            bar.set_length(total.max(1));
            bar.set_position(done.min(total.max(1)));
            bar.set_message(describe(stage));
        }
    }

    fn finish(&self) {
        self.stages.iter().for_each(ProgressBar::abandon);
    }
}

fn style(state: StageState, total: u64) -> ProgressStyle {
    let mark = match state {
        StageState::Waiting => "·",
        StageState::Running => "{spinner}",
        StageState::Serving | StageState::Succeeded => "✓",
        StageState::Failed => "✗",
        StageState::Cancelled => "-",
    };
    let bar = if total > 1 { "[{bar:24}] {pos}/{len} " } else { "" };
    ProgressStyle::with_template(&format!("{mark} {{prefix:12}} {bar}{{msg}}"))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// How far a stage is: by its own count where it reports one, else by its tasks.
fn extent(stage: &StageView) -> (u64, u64) {
    let count = |name: &str| match stage.metrics.get(name) {
        Some(Metric::Count(count)) => Some(*count),
        _ => None,
    };
    match (count("step"), count("steps")) {
        (Some(step), Some(total)) => (step, total),
        _ => match (count("pages_fetched"), count("pages_max")) {
            (Some(pages), Some(total)) if stage.state == StageState::Running => (pages, total),
            _ => (stage.tasks_done, stage.tasks_total),
        },
    }
}

fn describe(stage: &StageView) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut seen = Vec::new();
    for (name, unit) in FIGURES {
        if let Some(figure) = figure(&stage.metrics, name).filter(|_| !seen.contains(&unit)) {
            parts.push(format!("{figure} {unit}").trim_end().to_owned());
            seen.push(unit);
        }
    }
    if stage.state != StageState::Waiting {
        parts.push(format!("{:.1} s", stage.seconds));
    }
    parts.join(", ")
}

fn figure(metrics: &Metrics, name: &str) -> Option<String> {
    Some(match metrics.get(name)? {
        Metric::Number(seconds) if name == "eta_seconds" => duration(*seconds),
        Metric::Number(part) if name == "mfu" => format!("{:.1} %", 100.0 * part),
        Metric::Count(count) => count.to_string(),
        Metric::Number(number) if number.abs() >= 100.0 => format!("{number:.0}"),
        Metric::Number(number) => format!("{number:.4}"),
        Metric::Text(text) => text.clone(),
    })
}

/// A time for people: `12 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn duration(seconds: f64) -> String {
    // What is no time becomes zero.
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A change of a plan as text.
pub(crate) fn plan_change(change: &PlanChange) -> String {
    let PlanChange { stage, from, to, why, at_ms, resumed_ms, step, redone, .. } = change;
    let mut text = format!("plan of {stage}: {from} -> {to} ({why})");
    if let Some(resumed_ms) = resumed_ms {
        text += &format!(", working again after {:.1} s", resumed_ms.saturating_sub(*at_ms) as f64 / 1e3);
    }
    if let Some((step, redone)) = step.zip(*redone) {
        text += &format!(" from step {step}, {redone} step(s) redone");
    }
    text
}

/// The final figures of a job as text, for people who did not ask for JSON.
pub(crate) fn summary(job: &JobView) -> String {
    let mut text = format!("job {} `{}` {} after {:.1} s\n", job.job, job.name, job.state, job.seconds);
    for stage in &job.stages {
        text += &format!("  {:12} {:10} {:10} {}\n", stage.name, stage.kind, stage.state, describe(stage));
    }
    if let Some(training) = &job.training {
        for name in ["weights_blake3", "loss_bits_blake3"] {
            if let Some(Metric::Text(hash)) = training.metrics.get(name) {
                text += &format!("  {name} {hash}\n");
            }
        }
    }
    for recovery in &job.recoveries {
        let detect = recovery.detected_ms.saturating_sub(recovery.last_sign_ms);
        text += &format!(
            "  recovered: {} on {} ({}), detected after {detect} ms",
            recovery.stage, recovery.node, recovery.cause
        );
        if let Some(resumed) = recovery.resumed_ms {
            text += &format!(", working again {} ms later", resumed.saturating_sub(recovery.detected_ms));
        }
        if let Some((step, redone)) = recovery.step.zip(recovery.redone) {
            text += &format!(" from step {step}, {redone} step(s) redone");
        }
        text.push('\n');
    }
    for change in &job.plan_changes {
        text += &format!("  {}\n", plan_change(change));
    }
    if let Some(message) = &job.message {
        text += &format!("  {message}\n");
    }
    text
}
