//! The report of a training: one HTML page that needs nothing else, and the same figures as JSON.
//!
//! [`TrainingReport::gather`] asks the coordinator, so a report can be had of a job that runs, has ended or has failed.
//! Curves are those that the trainer keeps with its state; times of ranks are those of the newest attempt.

mod bars;
mod curves;
mod events;
mod page;
mod plot;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sixfold_cluster::task::{ACCOUNT_FIGURE, Metric};
use sixfold_coordinator::job::JobSpec;
use sixfold_coordinator::message::{ClientReply, ClientRequest, JobView, RankView, TrainingView};
use sixfold_train::{History, RankAccount, TrainOptions};
use sixfold_wire::id::JobId;

use crate::client::{Client, unexpected};
use crate::commands::jobs;
use events::Event;

/// A rank, where it is and what it accounts for.
struct Rank {
    node: Option<String>,
    account: RankAccount,
}

/// Everything that there is to tell of the last stage of a job that trains.
pub(crate) struct TrainingReport {
    view: JobView,
    training: TrainingView,
    options: TrainOptions,
    history: History,
    ranks: Vec<Rank>,
    events: Vec<Event>,
}

impl TrainingReport {
    /// Asks the coordinator for a job's training.
    ///
    /// # Errors
    /// Where the cluster cannot be reached, or the job has no stage that trains or none that has begun to.
    pub(crate) async fn gather(client: &Client, job: JobId) -> Result<Self> {
        let view = jobs::job_view(client, job).await?;
        let spec = match client.request(ClientRequest::Spec(job)).await? {
            ClientReply::Spec(spec) => *spec,
            ClientReply::Refused(refusal) => bail!(refusal),
            other => return unexpected(&other),
        };
        let histories = match client.request(ClientRequest::Histories(job)).await? {
            ClientReply::Histories(histories) => histories,
            ClientReply::Refused(refusal) => bail!(refusal),
            other => return unexpected(&other),
        };
        let Some(training) = view.training.clone() else {
            bail!("job {job} `{}` has no stage that trains", view.name)
        };
        let history = match histories.iter().find(|history| history.stage == training.stage) {
            Some(history) => serde_json::from_str(&history.json)
                .with_context(|| format!("the curves of stage `{}` cannot be read", training.stage))?,
            None => bail!("stage `{}` of job {job} has done no step yet", training.stage),
        };
        Self::new(view, training, &spec, history)
    }

    fn new(view: JobView, training: TrainingView, spec: &JobSpec, history: History) -> Result<Self> {
        let stage = spec.stages.iter().find(|stage| stage.name == training.stage);
        let stage = stage.with_context(|| format!("the job has no stage `{}`", training.stage))?;
        let options: TrainOptions = serde_json::from_str(&stage.options_json)
            .with_context(|| format!("stage `{}` has options of another version", training.stage))?;
        let ranks = training.ranks.iter().map(rank).collect();
        let events = events::of(&view, &training.stage, &history);
        Ok(Self { view, training, options, history, ranks, events })
    }

    /// The file's name in a folder of reports.
    pub(crate) fn file_name(&self) -> String {
        format!("training-report-job-{}.html", self.view.job)
    }

    /// Writes the page into `folder`, which is made where it is not there. Returns its path.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(self.file_name());
        std::fs::write(&path, self.page()?).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The page.
    ///
    /// # Errors
    /// If a plot cannot be drawn.
    pub(crate) fn page(&self) -> Result<String> {
        page::render(self)
    }

    fn figure(&self, name: &str) -> Option<&Metric> {
        self.training.metrics.get(name)
    }

    /// A figure that is a text.
    fn text(&self, name: &str) -> Option<&str> {
        match self.figure(name) {
            Some(Metric::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Mean loss of held-out tokens, in nats, where the job has evaluated: in a stage of its own, or else while training.
    fn held_out_loss(&self) -> Option<f64> {
        self.evaluated_loss().or_else(|| self.history.evaluations.last().map(|last| last.loss.into()))
    }

    /// That of an `evaluate` stage.
    fn evaluated_loss(&self) -> Option<f64> {
        self.view.stages.iter().rev().find_map(|stage| match stage.metrics.get("perplexity") {
            Some(Metric::Number(perplexity)) if *perplexity > 0.0 => Some(perplexity.ln()),
            _ => None,
        })
    }

    /// Mean of what ranks say, and 0 without ranks.
    fn mean(&self, of: impl Fn(&RankAccount) -> f64) -> f64 {
        self.ranks.iter().map(|rank| of(&rank.account)).sum::<f64>() / self.ranks.len().max(1) as f64
    }

    /// The figures as one object: curves by name, one value a point; times of ranks; events.
    pub(crate) fn to_json(&self) -> Value {
        let History { stride, steps, .. } = self.history;
        let column = |of: fn(&sixfold_train::HistoryPoint) -> f32| -> Value {
            self.history.points.iter().map(|point| json!(of(point))).collect()
        };
        let last_steps: Vec<u64> = self.history.by_step().map(|(step, _)| step).collect();
        let ranks: Vec<Value> =
            self.ranks.iter().map(|rank| json!({"node": rank.node, "account": rank.account})).collect();
        json!({
            "job": self.view.job.0,
            "name": self.view.name,
            "state": self.view.state.to_string(),
            "stage": self.training.stage,
            "plan": self.training.plan.to_string(),
            "steps": steps,
            "steps_wanted": self.options.steps,
            "batch_tokens": self.options.batch_tokens(),
            "held_out_loss": self.held_out_loss(),
            "held_out_losses": self.history.evaluations,
            "weights_blake3": self.text("weights_blake3"),
            "loss_bits_blake3": self.text("loss_bits_blake3"),
            "curves": {
                "steps_of_a_point": stride,
                "step": last_steps,
                "loss": column(|point| point.loss),
                "gradient_norm": column(|point| point.gradient_norm),
                "learning_rate": column(|point| point.learning_rate),
                "step_seconds": column(|point| point.seconds),
                "mfu": column(|point| point.mfu),
                "data_wait_seconds": column(|point| point.data_wait_seconds),
                "bubble": column(|point| point.bubble),
                "resident_bytes": column(|point| point.resident_bytes),
            },
            "ranks": ranks,
            "events": self.events,
        })
    }
}

fn rank(view: &RankView) -> Rank {
    let told = match view.metrics.get(ACCOUNT_FIGURE) {
        Some(Metric::Text(json)) => serde_json::from_str(json).ok(),
        _ => None,
    };
    let account = told.unwrap_or_else(|| RankAccount { rank: view.rank, ..RankAccount::default() });
    Rank { node: view.node.as_ref().map(ToString::to_string), account }
}

#[cfg(test)]
mod tests;
