//! The card as Markdown.

use std::fmt::{Display, Write};

use super::{Card, grouped, summary};
use crate::figures::Sample;

pub(super) fn write(card: &Card<'_>) -> String {
    let mut out = format!("# Data card: {}\n\n## Summary\n\n", escape(card.stage));
    table(&mut out, summary(card.figures));
    for shown in &card.tables {
        let _ = write!(out, "\n## {0}\n\n![{0}]({1})\n\n", shown.title, shown.plot_name);
        table(&mut out, shown.rows.iter().map(|(name, count)| (name, grouped(*count))));
    }
    let refusals = card.figures.refusals.iter().map(|(reason, sample)| (reason.name(), sample));
    samples(&mut out, "The first document rejected for each reason", refusals);
    samples(&mut out, "The first document of each language", card.figures.samples.iter());
    let _ = write!(out, "\n## Options\n\n```json\n{}\n```\n\n## Sources\n\n", card.options);
    for source in card.sources {
        let _ = writeln!(out, "- `{source}`");
    }
    out
}

fn table<N: AsRef<str>>(out: &mut String, rows: impl IntoIterator<Item = (N, String)>) {
    out.push_str("| | |\n|---|---:|\n");
    for (name, count) in rows {
        let _ = writeln!(out, "| {} | {count} |", escape(name.as_ref()));
    }
}

fn samples<'a, N: Display>(
    out: &mut String,
    title: &str,
    samples: impl ExactSizeIterator<Item = (N, &'a Sample)>,
) {
    if samples.len() > 0 {
        let _ = write!(out, "\n## {title}\n\n");
    }
    for (name, sample) in samples {
        let _ = writeln!(out, "- **{name}**, {}: {}", escape(&sample.url), escape(&sample.words));
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('`', "\\`").replace('<', "&lt;").replace('\n', " ")
}
