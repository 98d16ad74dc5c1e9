//! The `evaluate` task: a model and held-out text in, a report out.

use sixfold_artifact::tokens::TokenShards;
use sixfold_cluster::task::{Metric, TaskContext, TaskOutput};

use crate::diversity::distinct_n;
use crate::error::EvaluateError;
use crate::inputs::{Inputs, Selection, document};
use crate::model::Model;
use crate::options::EvaluateOptions;
use crate::perplexity::{Score, Windows, score};
use crate::progress::Progress;
use crate::report::{Report, WrittenSample};
use crate::samples::{Writer, spread};
use crate::{REPORT, report};

/// Does the task. Blocks its thread while it computes: give it a thread of its own.
///
/// # Errors
/// [`EvaluateError`]; then nothing is published.
pub(crate) async fn run(context: &TaskContext) -> Result<TaskOutput, EvaluateError> {
    let options: EvaluateOptions =
        context.options().map_err(|error| EvaluateError::Options(error.message))?;
    options.validate().map_err(EvaluateError::Options)?;
    let fetched = context.cancel.run_until_cancelled(context.fetch_inputs()).await;
    let inputs = Inputs::find(&fetched.ok_or(EvaluateError::Cancelled)??)?;
    set_threads(options.threads)?;
    let report = evaluate(context, &options, inputs)?;
    publish(context, &report).await
}

fn set_threads(threads: usize) -> Result<(), EvaluateError> {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if threads == 0 { cores() } else { threads };
    sixfold_tensor::set_threads(threads).map_err(|error| EvaluateError::Thread(error.to_string()))
}

fn evaluate(
    context: &TaskContext,
    options: &EvaluateOptions,
    inputs: Inputs,
) -> Result<Report, EvaluateError> {
    let model = Model::load(&context.store, inputs.model)?;
    let windows = options.windows(model.positions()).map_err(EvaluateError::Options)?;
    let held_out = inputs.held_out(&context.store)?;
    let selection = Selection::of(&held_out, options.tokens_max);
    let progress = Progress { context, tokens_total: selection.tokens };
    let score = score_held_out(&model, windows, &held_out, selection, &progress)?;
    let samples = write_samples(&model, options, &held_out, &progress)?;
    let tokens: Vec<Vec<u32>> = samples.iter().map(|written| written.sample.tokens.clone()).collect();
    Ok(Report {
        inputs,
        config: model.config().clone(),
        options: options.clone(),
        windows,
        documents: selection.documents,
        are_dialogues: held_out.is_masked(),
        score,
        distinct: [distinct_n(&tokens, 1), distinct_n(&tokens, 2)],
        samples,
        losses: model.losses,
    })
}

fn score_held_out(
    model: &Model,
    windows: Windows,
    held_out: &TokenShards,
    selection: Selection,
    progress: &Progress<'_>,
) -> Result<Score, EvaluateError> {
    let documents = (0..selection.documents).map(|number| document(held_out, number));
    let score = score(&model.decoder, windows, documents, u64::MAX, |tokens| progress.scored(tokens))?;
    match score {
        Score { tokens: 0, .. } => Err(EvaluateError::NothingToScore),
        score if !score.perplexity().is_finite() => Err(EvaluateError::NotFinite),
        score => Ok(score),
    }
}

fn write_samples(
    model: &Model,
    options: &EvaluateOptions,
    held_out: &TokenShards,
    progress: &Progress<'_>,
) -> Result<Vec<WrittenSample>, EvaluateError> {
    let writer = Writer::new(&model.decoder, options);
    let mut samples = Vec::new();
    for number in spread(held_out.documents(), options.samples) {
        let document = document(held_out, number)?;
        let prompt = writer.prompt_of(&document);
        if prompt.is_empty() {
            continue;
        }
        let seed = options.seed.wrapping_add(samples.len() as u64);
        let sample = writer.write(prompt, seed, || progress.check())?;
        let (prompt, text) = model.text(&sample.prompt, &sample.tokens)?;
        let answer =
            document.first_answer().map(|answer| model.text(&sample.prompt, &document.tokens[answer]));
        let answer = answer.transpose()?.map(|(_, answer)| answer);
        samples.push(WrittenSample { document: number, sample, prompt, text, answer });
    }
    Ok(samples)
}

async fn publish(context: &TaskContext, report: &Report) -> Result<TaskOutput, EvaluateError> {
    let mut manifest = context.manifest(REPORT);
    for (name, content) in report::files(report)? {
        manifest.files.push(context.store.put(name, content.as_bytes())?);
    }
    let metrics = report::metrics(report);
    for (name, metric) in &metrics {
        manifest = match metric {
            Metric::Count(count) => manifest.with(name, *count),
            Metric::Number(number) => manifest.with(name, *number),
            Metric::Text(text) => manifest.with(name, text.as_str()),
        };
    }
    Ok(TaskOutput { artifacts: vec![context.host.publish(manifest).await?], metrics })
}
