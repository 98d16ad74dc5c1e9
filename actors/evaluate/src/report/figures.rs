//! The figures of a report, each with the convention by which it was taken.

use sixfold_cluster::task::{Metric, Metrics};

use super::Report;

/// A figure for people.
pub(super) struct Figure {
    /// Name of the metric.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) value: String,
    /// How it was measured, so that it can be compared with others.
    pub(super) convention: String,
}

/// The figures for programs.
pub(crate) fn metrics(report: &Report) -> Metrics {
    let [distinct_1, distinct_2] = report.distinct;
    let metrics: [(&str, Metric); 5] = [
        ("perplexity", report.score.perplexity().into()),
        ("perplexity_convention", convention(report).into()),
        ("tokens_scored", report.score.tokens.into()),
        ("distinct_1", distinct_1.into()),
        ("distinct_2", distinct_2.into()),
    ];
    let losses = [("loss_first", report.losses.first()), ("loss_last", report.losses.last())];
    let losses = losses.into_iter().filter_map(|(name, loss)| Some((name, f64::from(*loss?).into())));
    metrics.into_iter().chain(losses).map(|(name, metric)| (name.to_owned(), metric)).collect()
}

/// The same figures for people.
pub(super) fn figures(report: &Report) -> Vec<Figure> {
    let documents = report.documents;
    let scored = match report.are_dialogues {
        true => format!("the tokens of the answers in the first {documents} held-out dialogues"),
        false => format!("every token but the first of each of the first {documents} held-out documents"),
    };
    let figure = |name, title, value, convention| Figure { name, title, value, convention };
    let mut figures = vec![
        figure("perplexity", "Perplexity", format!("{:.2}", report.score.perplexity()), perplexity(report)),
        figure("tokens_scored", "Tokens scored", report.score.tokens.to_string(), scored),
    ];
    for (n, [name, title]) in
        [["distinct_1", "Distinct-1"], ["distinct_2", "Distinct-2"]].into_iter().enumerate()
    {
        figures.push(figure(name, title, format!("{:.3}", report.distinct[n]), distinct(report, n + 1)));
    }
    let losses = [
        ("loss_first", "First loss", report.losses.first()),
        ("loss_last", "Last loss", report.losses.last()),
    ];
    for (name, title, value) in losses {
        let Some(loss) = value else { continue };
        let step = if name == "loss_first" { 1 } else { report.losses.len() };
        let convention =
            format!("mean training loss of step {step}'s batch, in nats per token, as training.json has it");
        figures.push(figure(name, title, format!("{loss:.4}"), convention));
    }
    figures
}

fn perplexity(report: &Report) -> String {
    let vocabulary = report.config.vocab_size;
    format!(
        "held-out, exp of the mean negative log-likelihood; {}; guessing among {vocabulary} tokens has {vocabulary}",
        convention(report)
    )
}

/// Which tokens are scored, and with what in sight.
fn convention(report: &Report) -> String {
    let answers = if report.are_dialogues { ", of dialogues the answers alone" } else { "" };
    format!("{}{answers}", report.windows)
}

fn distinct(report: &Report, n: usize) -> String {
    let samples = report.samples.len();
    format!(
        "distinct {n}-grams of tokens divided by all of them, over the generated tokens of {samples} samples, without their prompts and not across samples"
    )
}

/// How samples were made.
pub(super) fn sampling(report: &Report) -> String {
    let options = &report.options;
    let how = match options.temperature > 0.0 {
        true => format!(
            "sampled at temperature {} from all tokens, seeds from {} on",
            options.temperature, options.seed
        ),
        false => "the likeliest token each time".to_owned(),
    };
    let prompt = match report.are_dialogues {
        true => "Held-out dialogues up to their first answer".to_owned(),
        false => format!("The first {} tokens of held-out documents", options.prompt_tokens),
    };
    format!(
        "{prompt}, continued by at most {} tokens: {how}. A replica that serves this model gives the same tokens for the same prompt tokens and seed.",
        options.sample_tokens
    )
}

/// What was evaluated, in one sentence.
pub(super) fn subject(report: &Report) -> String {
    let config = &report.config;
    format!(
        "A decoder of {} parameters: {} layers, width {}, {} heads, a vocabulary of {} tokens, {} positions.",
        config.parameters(),
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.vocab_size,
        config.max_position_embeddings
    )
}
