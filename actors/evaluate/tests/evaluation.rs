//! Evaluations of a tiny model through the actor, checked against computations of their own.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

#[path = "evaluation/fixture.rs"]
mod fixture;

use std::collections::{BTreeMap, BTreeSet};

use fixture::{DOCUMENTS, Fixture, LOSSES, QUESTION, end_of_text, geometry, parameters};
use serde_json::Value;
use sixfold_cluster::task::{ErrorClass, Metric, Record};
use sixfold_model::{Chunk, Decoder, SamplingOptions, Wanted, sample};

const OPTIONS: &str = r#"{"context_tokens":24,"stride_tokens":7,"samples":3,"prompt_tokens":12,"sample_tokens":40,
    "temperature":1.1,"seed":5,"threads":1}"#;

/// The logits after `tokens`, computed in one pass.
fn logits_after(decoder: &Decoder, tokens: &[u32]) -> Vec<f32> {
    let pool = decoder.kv_pool(tokens.len());
    let chunk = Chunk { tokens, sequence: &mut pool.sequence(), wanted: Wanted::Last };
    decoder.forward(&mut [chunk]).unwrap().row(0).to_vec()
}

/// The negative log-likelihood of each token but the first, by the definition of the convention.
fn surprises(decoder: &Decoder, document: &[u32], context: usize, stride: usize) -> Vec<f64> {
    let begin_of = |token: usize| match token.checked_sub(context - 1) {
        None | Some(0) => 0,
        Some(beyond) => (context + beyond.div_ceil(stride) * stride).min(document.len()) - context,
    };
    let surprise = |token: usize| {
        let logits = logits_after(decoder, &document[begin_of(token)..token]);
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        sum.ln() - f64::from(logits[document[token] as usize])
    };
    (1..document.len()).map(surprise).collect()
}

fn number(metric: &Metric) -> f64 {
    match metric {
        Metric::Number(number) => *number,
        other => panic!("{other:?} is not a measurement"),
    }
}

fn distinct(texts: &[Vec<u64>], n: usize) -> f64 {
    let grams: Vec<String> =
        texts.iter().flat_map(|text| text.windows(n)).map(|gram| format!("{gram:?}")).collect();
    grams.iter().collect::<BTreeSet<_>>().len() as f64 / grams.len() as f64
}

fn tokens_of(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect()
}

#[tokio::test]
async fn figures_are_those_of_an_independent_computation() {
    let fixture = Fixture::new();
    let (output, report) = fixture.evaluate(OPTIONS).await.unwrap();
    let decoder = Decoder::new(sixfold_tensor::Device::cpu().stream(), geometry(), &parameters());
    let all: Vec<f64> =
        DOCUMENTS.iter().flat_map(|text| surprises(&decoder, &fixture::tokens(text), 24, 7)).collect();
    let expected = (all.iter().sum::<f64>() / all.len() as f64).exp();
    let found = number(&output.metrics["perplexity"]);
    assert!((found / expected - 1.0).abs() < 1e-5, "{found} is not {expected}");
    assert_eq!(output.metrics["tokens_scored"], Metric::Count(all.len() as u64));
    let convention = &output.metrics["perplexity_convention"];
    assert!(matches!(convention, Metric::Text(text) if text.contains("ctx 24 / stride 7")), "{convention:?}");
    assert_eq!(number(&output.metrics["loss_first"]), f64::from(LOSSES[0]));
    assert_eq!(number(&output.metrics["loss_last"]), f64::from(*LOSSES.last().unwrap()));
    let texts: Vec<Vec<u64>> = report.samples().iter().map(|sample| tokens_of(&sample["tokens"])).collect();
    assert_eq!(number(&output.metrics["distinct_1"]), distinct(&texts, 1));
    assert_eq!(number(&output.metrics["distinct_2"]), distinct(&texts, 2));
    let json: BTreeMap<String, Value> = serde_json::from_str(&report.text("metrics.json")).unwrap();
    assert_eq!(json["perplexity"].as_f64(), Some(found));
    assert_eq!(json["tokens_scored"].as_u64(), Some(all.len() as u64));
    assert!(json["conventions"]["distinct_2"].as_str().unwrap().contains("without their prompts"));
}

#[tokio::test]
async fn samples_are_what_a_replica_would_answer() {
    let fixture = Fixture::new();
    let (_, report) = fixture.evaluate(OPTIONS).await.unwrap();
    let decoder = Decoder::new(sixfold_tensor::Device::cpu().stream(), geometry(), &parameters());
    let samples = report.samples();
    assert_eq!(samples.len(), 3);
    for (number, sampled) in samples.iter().enumerate() {
        let document = fixture::tokens(DOCUMENTS[sampled["document"].as_u64().unwrap() as usize]);
        let mut text = document[..12].to_vec();
        let ids = |value: &Value| tokens_of(value).into_iter().map(|id| id as u32).collect::<Vec<u32>>();
        assert_eq!(ids(&sampled["prompt_tokens"]), text);
        assert_eq!(sampled["seed"], 5 + number as u64);
        let options = SamplingOptions { temperature: 1.1, seed: 5 + number as u64, ..Default::default() };
        let expected = ids(&sampled["tokens"]);
        assert!(expected.len() == 40 || sampled["ended"] == true);
        for token in expected {
            assert_eq!(sample(&logits_after(&decoder, &text), &options, text.len() as u64), token);
            text.push(token);
        }
    }
}

#[tokio::test]
async fn of_dialogues_answers_are_scored_and_questions_answered() {
    let fixture = Fixture::of_dialogues();
    let (output, report) = fixture.evaluate(OPTIONS).await.unwrap();
    let decoder = Decoder::new(sixfold_tensor::Device::cpu().stream(), geometry(), &parameters());
    let answers: Vec<f64> = DOCUMENTS
        .iter()
        .flat_map(|text| surprises(&decoder, &fixture::tokens(text), 24, 7).split_off(QUESTION - 1))
        .collect();
    let expected = (answers.iter().sum::<f64>() / answers.len() as f64).exp();
    let found = number(&output.metrics["perplexity"]);
    assert!((found / expected - 1.0).abs() < 1e-5, "{found} is not {expected}");
    assert_eq!(output.metrics["tokens_scored"], Metric::Count(answers.len() as u64));
    let convention = &output.metrics["perplexity_convention"];
    assert!(matches!(convention, Metric::Text(text) if text.contains("answers alone")), "{convention:?}");
    for sampled in report.samples() {
        let text = DOCUMENTS[sampled["document"].as_u64().unwrap() as usize];
        let (question, answer) = text.split_at(QUESTION);
        assert_eq!(
            (&sampled["prompt"], &sampled["answer"]),
            (&question.into(), &format!("{answer}<|endoftext|>").into())
        );
    }
    assert!(report.text("report.html").contains("own answer"));
}

#[tokio::test]
async fn a_second_run_publishes_the_same_artefact() {
    let mut fixture = Fixture::new();
    let (first, report) = fixture.evaluate(OPTIONS).await.unwrap();
    let (second, _) = fixture.evaluate(OPTIONS).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(report.manifest.kind, "report");
    assert_eq!(report.manifest.parents, fixture.inputs);
    fixture.inputs.reverse();
    let (swapped, _) = fixture.evaluate(OPTIONS).await.unwrap();
    assert_eq!(swapped.metrics, first.metrics, "inputs are taken by their kinds");
    let other = OPTIONS.replace("\"seed\":5", "\"seed\":6");
    assert_ne!(fixture.evaluate(&other).await.unwrap().0.artifacts, swapped.artifacts);
}

#[tokio::test]
async fn pages_are_whole_and_text_in_them_is_no_markup() {
    let fixture = Fixture::new();
    let (_, report) = fixture.evaluate(OPTIONS).await.unwrap();
    let (page, markdown, curve) =
        (report.text("report.html"), report.text("report.md"), report.text("loss.svg"));
    assert!(curve.starts_with("<svg") && page.contains(&curve), "the curve is inline");
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "a prompt became markup");
    assert!(!page.contains("src=") && !page.contains("href="), "the page needs other files");
    assert!(markdown.contains("](loss.svg)") && markdown.contains("per token, strided ctx 24 / stride 7"));
    for (name, input) in ["model", "held-out text"].into_iter().zip(&fixture.inputs) {
        assert!(markdown.contains(&format!("- {name}: `{input}`")) && page.contains(&input.to_string()));
    }
}

#[tokio::test]
async fn progress_grows_to_all_tokens() {
    let fixture = Fixture::new();
    fixture.evaluate(OPTIONS).await.unwrap();
    let count = |metric: &Metric| if let Metric::Count(count) = metric { *count } else { 0 };
    let scored: Vec<[u64; 2]> = fixture
        .host
        .records()
        .into_iter()
        .filter_map(|record| match record {
            Record::Progress(figures) => {
                Some(["tokens_scored", "tokens_total"].map(|name| count(&figures[name])))
            }
            _ => None,
        })
        .collect();
    assert!(scored.len() > 10 && scored.is_sorted());
    let [last, total] = scored[scored.len() - 1];
    assert_eq!((last, total), (total, DOCUMENTS.map(|text| text.len() as u64).iter().sum()));
}

#[tokio::test]
async fn only_as_many_documents_are_scored_as_asked_for() {
    let fixture = Fixture::new();
    let (output, _) = fixture.evaluate(r#"{"tokens_max":1,"samples":0,"threads":1}"#).await.unwrap();
    assert_eq!(output.metrics["tokens_scored"], Metric::Count(DOCUMENTS[0].len() as u64));
    assert_eq!(number(&output.metrics["distinct_1"]), 0.0);
}

#[tokio::test]
async fn inputs_and_options_that_do_not_fit_are_fatal_and_say_why() {
    let good = Fixture::new();
    let [model, tokens] = good.inputs[..] else { panic!("two inputs") };
    let cases = [
        (vec![model], "{}", "one artefact of kind `tokens`"),
        (vec![tokens], "{}", "one artefact of kind `model`"),
        (vec![model, tokens, good.other_model(&[])], "{}", "it has 2"),
        (vec![model, good.other_tokens("train")], "{}", "held-out.idx.json"),
        (vec![model, good.other_tokenizer()], "{}", "tokenizer"),
        (vec![good.other_model(&["model.safetensors"]), tokens], "{}", "model.safetensors"),
        (vec![good.damaged_model("training.json", b"{\"losses\":[null]}"), tokens], "{}", "training.json"),
        (vec![good.damaged_model("config.json", b"{}"), tokens], "{}", "config.json"),
        (vec![good.damaged_model("model.safetensors", b"weights"), tokens], "{}", "not readable"),
        (vec![model, tokens], r#"{"context_tokens":4096}"#, "the model's 64"),
        (vec![model, tokens], r#"{"stride":1}"#, "unknown field `stride`"),
        (vec![model, tokens], r#"{"temperature":-1}"#, "temperature"),
        (vec![model, good.empty_tokens()], "{}", "held_out"),
    ];
    for (inputs, options, hint) in cases {
        let error = good.evaluate_from(&inputs, options).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Fatal, "{error}");
        assert!(error.message.contains(hint), "{error} does not say {hint}");
    }
}

#[tokio::test]
async fn adapters_beside_their_base_are_evaluated_as_the_merged_model_is() {
    let fixture = Fixture::new();
    let [model, tokens] = fixture.inputs[..] else { panic!("two inputs") };
    let mut figures = Vec::new();
    for model in [model].into_iter().chain(fixture.adapted_models()) {
        figures.push(fixture.evaluate_from(&[model, tokens], OPTIONS).await.unwrap().metrics);
    }
    let [of_base, adapted, merged] = &figures[..] else { panic!("{figures:?}") };
    assert_eq!(adapted, merged);
    assert_ne!(adapted["perplexity"], of_base["perplexity"]);

    fixture.store.remove(model).unwrap();
    let [adapted, _] = fixture.adapted_models();
    let error = fixture.evaluate_from(&[adapted, tokens], OPTIONS).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Restart, "the base may be on another node");
    assert!(error.message.contains(&model.to_string()), "{error}");
}

#[tokio::test]
async fn a_model_that_was_trained_elsewhere_is_evaluated_without_its_losses() {
    let fixture = Fixture::new();
    let inputs = [fixture.other_model(&["training.json"]), fixture.inputs[1]];
    let output = fixture.evaluate_from(&inputs, OPTIONS).await.unwrap();
    assert!(number(&output.metrics["perplexity"]) > 1.0);
    let report = fixture.store.verify(output.artifacts[0]).unwrap();
    assert!(report.file("report.html").is_some() && report.file("loss.svg").is_none());
    assert!(!output.metrics.contains_key("loss_first") && !output.metrics.contains_key("loss_last"));
}

#[tokio::test]
async fn a_model_that_computes_no_numbers_is_refused() {
    let good = Fixture::new();
    let error = good.evaluate_from(&[good.diverged_model(), good.inputs[1]], OPTIONS).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Fatal);
    assert!(error.message.contains("diverged"), "{error}");
}

#[tokio::test]
async fn a_cancelled_evaluation_stops_at_once_and_publishes_nothing() {
    let fixture = Fixture::new();
    let before = fixture.store.list().unwrap();
    let error = fixture.evaluate_and_cancel(OPTIONS).await.unwrap_err();
    assert_eq!(error.message, "cancelled");
    assert_eq!(fixture.store.list().unwrap(), before);
    let reports =
        fixture.host.records().iter().filter(|record| matches!(record, Record::Progress(_))).count();
    assert_eq!(reports, 1, "it went on after the cancellation");
}

#[test]
fn the_fixture_ends_each_document() {
    assert!(DOCUMENTS.iter().all(|text| fixture::tokens(text).last() == Some(&end_of_text())));
}
