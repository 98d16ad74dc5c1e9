//! The report as one HTML page that needs nothing else: style and picture are in it, scripts are none.

use super::figures::{Figure, sampling, subject};
use super::{Report, WrittenSample, visible};

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub(super) fn write(report: &Report, figures: &[Figure], curve: &str) -> String {
    let cards: String = figures.iter().map(card).collect();
    let samples: String = report.samples.iter().enumerate().map(sample).collect();
    let (subject, sampling) = (escaped(&subject(report)), escaped(&sampling(report)));
    let (model, tokens) = (report.inputs.model, report.inputs.tokens);
    let losses = if report.losses.is_empty() { String::new() } else { losses(curve) };
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation report</title>
<style>
{STYLE}</style>
</head>
<body>
<header><h1>Evaluation report</h1><p>{subject}</p></header>
<section><h2>Figures</h2><div class="cards">
{cards}</div></section>
{losses}<section><h2>Samples</h2><p>{sampling}</p>
{samples}</section>
<section><h2>Made from</h2><dl><dt>model</dt><dd><code>{model}</code></dd><dt>held-out text</dt><dd><code>{tokens}</code></dd></dl></section>
</body>
</html>
"#
    )
}

fn losses(curve: &str) -> String {
    format!(
        r#"<section><h2>Loss of training</h2><figure>
{curve}
<figcaption>Mean loss of each step's batch, in nats per token, and its running mean.</figcaption></figure></section>
"#
    )
}

fn card(Figure { name, title, value, convention }: &Figure) -> String {
    let convention = escaped(convention);
    format!(
        "<article class=\"card\" id=\"{name}\"><h3>{title}</h3><p class=\"value\">{value}</p><p class=\"convention\">{convention}</p></article>\n"
    )
}

fn sample((number, written): (usize, &WrittenSample)) -> String {
    let (number, document, seed) = (number + 1, written.document, written.sample.seed);
    let (tokens, end) = (
        written.sample.tokens.len(),
        if written.sample.ended { "ended by the model" } else { "cut at the limit" },
    );
    let (prompt, text) = (escaped(&visible(&written.prompt)), escaped(&visible(&written.text)));
    let answer = written.answer.as_ref().map_or_else(String::new, |answer| {
        let answer = escaped(&visible(answer));
        format!("<p class=\"convention\">the dialogue's own answer</p><blockquote>{answer}</blockquote>")
    });
    format!(
        "<article class=\"sample\"><h3>Sample {number}</h3><p class=\"convention\">document {document}, seed {seed}, {tokens} tokens, {end}</p><blockquote><b>{prompt}</b>{text}</blockquote>{answer}</article>\n"
    )
}

/// Text that cannot become markup, in elements and in quoted attributes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_never_becomes_markup() {
        assert_eq!(escaped(r#"<b a="1">'&'"#), "&lt;b a=&quot;1&quot;&gt;&#39;&amp;&#39;");
    }
}
