//! The report in Markdown.

use std::fmt::Write;

use super::figures::{Figure, sampling, subject};
use super::{Report, WrittenSample, visible};

/// The whole document.
pub(super) fn write(report: &Report, figures: &[Figure]) -> String {
    let mut out = format!("# Evaluation report\n\n{}\n\n", subject(report));
    out += "| figure | value | convention |\n|---|---:|---|\n";
    for Figure { name, title, value, convention } in figures {
        // Writing to a string does not fail.
        let _ = writeln!(out, "| {title} (`{name}`) | {value} | {convention} |");
    }
    if !report.losses.is_empty() {
        out += "\n## Loss of training\n\n![training loss by step, in nats per token](loss.svg)\n";
    }
    let _ = write!(out, "\n## Samples\n\n{}\n\n", sampling(report));
    report.samples.iter().enumerate().for_each(|(number, written)| out += &sample(number + 1, written));
    let _ = write!(
        out,
        "## Made from\n\n- model: `{}`\n- held-out text: `{}`\n",
        report.inputs.model, report.inputs.tokens
    );
    out
}

fn sample(number: usize, written: &WrittenSample) -> String {
    let (prompt, text) = (visible(&written.prompt), visible(&written.text));
    let end = if written.sample.ended { "ended by the model" } else { "cut at the limit" };
    let (document, seed, tokens) = (written.document, written.sample.seed, written.sample.tokens.len());
    let answer = written.answer.as_ref().map_or_else(String::new, |answer| {
        format!("The dialogue's own answer:\n\n{}\n", fenced(&visible(answer)))
    });
    format!(
        "### Sample {number}\n\nDocument {document}, seed {seed}, {tokens} tokens, {end}. Prompt:\n\n{}\nContinued by the model:\n\n{}\n{answer}",
        fenced(&prompt),
        fenced(&text)
    )
}

/// A code block that its content cannot end.
fn fenced(text: &str) -> String {
    let ticks = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(ticks.max(2) + 1);
    format!("{fence}text\n{text}\n{fence}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_cannot_leave_its_block() {
        assert_eq!(fenced("a"), "```text\na\n```\n");
        assert_eq!(fenced("```\n# b ````"), "`````text\n```\n# b ````\n`````\n");
    }
}
