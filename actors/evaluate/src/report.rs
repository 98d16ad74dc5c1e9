//! The report of an evaluation: for people in Markdown and HTML, for programs in JSON.
//!
//! It depends on the model, the held-out text and the options alone: no times, no names of machines.
//! Text that a model wrote is hostile input here; it is escaped and never becomes markup.

mod curve;
mod figures;
mod markdown;
mod page;

use serde_json::{Value, json};
use sixfold_cluster::task::{Metric, Metrics};
use sixfold_model::ModelConfig;

pub(crate) use figures::metrics;
use figures::{Figure, figures};

use crate::error::EvaluateError;
use crate::inputs::Inputs;
use crate::options::EvaluateOptions;
use crate::perplexity::{Score, Windows};
use crate::samples::Sample;

/// What an evaluation found.
pub(crate) struct Report {
    pub(crate) inputs: Inputs,
    pub(crate) config: ModelConfig,
    pub(crate) options: EvaluateOptions,
    pub(crate) windows: Windows,
    /// Documents scored.
    pub(crate) documents: u64,
    /// Whether they are dialogues, of which answers alone are scored.
    pub(crate) are_dialogues: bool,
    pub(crate) score: Score,
    /// Distinct-1 and distinct-2 of the samples.
    pub(crate) distinct: [f64; 2],
    pub(crate) samples: Vec<WrittenSample>,
    /// The training loss of every step, in nats per token.
    pub(crate) losses: Vec<f32>,
}

/// A sample as text.
pub(crate) struct WrittenSample {
    /// Number of the held-out document that it begins like.
    pub(crate) document: u64,
    pub(crate) sample: Sample,
    pub(crate) prompt: String,
    pub(crate) text: String,
    /// What the held-out dialogue has in its place.
    pub(crate) answer: Option<String>,
}

/// The files of the artefact, by name.
///
/// # Errors
/// [`EvaluateError::Plot`].
pub(crate) fn files(report: &Report) -> Result<Vec<(&'static str, String)>, EvaluateError> {
    let trained_here = !report.losses.is_empty();
    let curve = if trained_here { curve::draw(&report.losses)? } else { String::new() };
    let figures = figures(report);
    let mut files = vec![
        ("report.md", markdown::write(report, &figures)),
        ("report.html", page::write(report, &figures, &curve)),
        ("samples.jsonl", report.samples.iter().map(|written| format!("{}\n", json_of(written))).collect()),
        ("metrics.json", format!("{:#}\n", metrics_json(&metrics(report), &figures))),
    ];
    if trained_here {
        files.push(("loss.svg", curve));
    }
    Ok(files)
}

fn json_of(written: &WrittenSample) -> Value {
    let Sample { seed, prompt, tokens, ended } = &written.sample;
    json!({
        "document": written.document,
        "seed": seed,
        "prompt": written.prompt,
        "text": written.text,
        "answer": written.answer,
        "prompt_tokens": prompt,
        "tokens": tokens,
        "ended": ended,
    })
}

fn metrics_json(metrics: &Metrics, figures: &[Figure]) -> Value {
    let value = |metric: &Metric| match metric {
        Metric::Count(count) => json!(count),
        Metric::Number(number) => json!(number),
        Metric::Text(text) => json!(text),
    };
    let mut object: serde_json::Map<String, Value> =
        metrics.iter().map(|(name, metric)| (name.clone(), value(metric))).collect();
    let conventions = figures.iter().map(|figure| (figure.name.to_owned(), json!(figure.convention)));
    object.insert("conventions".to_owned(), Value::Object(conventions.collect()));
    Value::Object(object)
}

/// Text with its control characters made visible; line breaks and tabs stay.
fn visible(text: &str) -> String {
    let hidden = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    text.chars().map(|c| if hidden(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
