//! What a quickstart came to: for people, and as one object.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sixfold_coordinator::message::{JobView, StageState, metric_json};

use super::{count, stage};
use crate::commands::query::Answered;
use crate::watch;

/// Everything that a quickstart has to tell.
pub(super) struct Report {
    pub(super) view: JobView,
    pub(super) question: String,
    pub(super) answer: Answered,
    /// Where the stages' results were copied to.
    pub(super) results: PathBuf,
    /// The page about the training.
    pub(super) training_report: PathBuf,
    /// Where the cluster's folders lie.
    pub(super) dir: PathBuf,
    pub(super) seconds: Duration,
}

impl Report {
    fn figure(&self, kind: &str, name: &str) -> Value {
        let metric = stage(&self.view, kind).and_then(|stage| stage.metrics.get(name));
        metric.map_or(Value::Null, metric_json)
    }

    fn drift(&self) -> Value {
        let names = ["drift_state", "js_distance", "js_limit", "kl_nats", "tokens_asked", "drift_alarms"];
        names
            .map(|name| (name.to_owned(), self.figure("drift", name)))
            .into_iter()
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// One object with the figures of every stage.
    pub(super) fn to_json(&self) -> Value {
        let job = self.view.to_json();
        let tokens =
            count(&self.view, "tokenize", "tokens_train") + count(&self.view, "tokenize", "tokens_held_out");
        let made = self.view.stages.iter().filter(|stage| stage.state == StageState::Succeeded);
        let artifacts: serde_json::Map<String, Value> =
            made.map(|stage| (stage.name.clone(), json!(stage.outputs))).collect();
        json!({
            "job": job["job"],
            "state": job["state"],
            "pages_fetched": self.figure("crawl", "pages_fetched"),
            "documents_kept": self.figure("clean", "documents_kept"),
            "documents_rejected": self.figure("clean", "documents_rejected"),
            "tokens": tokens,
            "plan": job["plan"],
            "steps": job["steps"],
            "loss_first": job["loss_first"],
            "loss_last": job["loss_last"],
            "loss_bits_blake3": job["loss_bits_blake3"],
            "weights_blake3": job["weights_blake3"],
            "perplexity": self.figure("evaluate", "perplexity"),
            "replicas": stage(&self.view, "serve").map_or(0, |stage| stage.tasks_done),
            "question": self.question,
            "answer": self.answer.text,
            "drift": self.drift(),
            "artifacts": artifacts,
            "results": self.results,
            "training_report": self.training_report,
            "dir": self.dir,
            "stages": job["stages"],
            "recoveries": job["recoveries"],
            "seconds": self.seconds.as_secs_f64(),
        })
    }

    /// The same for people, with what to try next.
    pub(super) fn print(&self) {
        print!("\n{}", watch::summary(&self.view));
        let (results, dir) = (self.results.display(), self.dir.display());
        println!("\nwhere everything lies");
        println!("  report of the training    {}", self.training_report.display());
        println!("  report of the evaluation  {results}/evaluate/report.html");
        println!("  data card of the corpus   {results}/clean/data-card.html");
        println!("  model, Hugging Face form  {results}/train/");
        println!("  logs and data             {dir}");
        println!("\nwhat to try next");
        println!("  sixfold quickstart --keep --dir {dir}      leave the cluster up and ask it more");
        println!("  sixfold quickstart --site FOLDER --steps 1000   your own documents, a longer training");
        println!("  sixfold stages                               what a job file can say");
    }
}
